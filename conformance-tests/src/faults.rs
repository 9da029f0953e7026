//! What each fault costs: a table for the manual, measured on the suite's server.

use std::fmt::Write;
use std::path::Path;
use std::time::Duration;

use crate::cases::common::{SOON, at_rest, plain, restart, start, wait_rolled_back};
use crate::client::{Load, Report};
use crate::signal::Signal;
use crate::{Context, Doing, Failure, Scenario, ensure};

/// A fault of a restart.
struct Fault {
    name: &'static str,
    old: fn(Scenario) -> Scenario,
    new: fn(Scenario) -> Scenario,
    /// Breaks the executable.
    breaks: fn(&Context) -> Result<(), Failure>,
    /// What happens to the old process after it was asked to restart.
    strikes: fn(&Context, u32) -> Result<(), Failure>,
}

const NONE: Fault = Fault {
    name: "none: a restart that succeeds",
    old: |scenario| scenario,
    new: |scenario| scenario,
    breaks: |_| Ok(()),
    strikes: |case, old| case.wait_for_from(old, "restart", SOON * 3).map(drop),
};

/// How long a successor is on probation here, longer than the latest death.
const PROBATION: u32 = 3_000;

/// Of so many runs the one with the middle gap is told: the machine's own pauses are in the others.
const RUNS: usize = 3;

const FAULTS: &[Fault] = &[
    NONE,
    Fault { name: "new: the binary is missing", breaks: |case| case.program().remove(), ..NONE },
    Fault {
        name: "new: the binary is not executable",
        breaks: |case| case.program().make_not_executable(),
        ..NONE
    },
    Fault {
        name: "new: the binary is garbage",
        breaks: |case| case.program().replace_with(b"garbage\n", 0o755),
        ..NONE
    },
    Fault {
        name: "new: exits with 1 before it is ready",
        new: |scenario| scenario.with("at.claimed", "exit 1"),
        ..NONE
    },
    Fault {
        name: "new: dies of SIGSEGV before it is ready",
        new: |scenario| scenario.with("at.claimed", "segv"),
        ..NONE
    },
    Fault {
        name: "new: gives up, since its configuration is bad",
        new: |scenario| scenario.with("at.claimed", "give-up a bad configuration"),
        ..NONE
    },
    Fault {
        name: "new: hangs before it is ready, killed after 1 s (`ready`)",
        old: |scenario| scenario.with("policy.ready", 1_000).with("policy.abort", 100),
        new: |scenario| scenario.with("at.claimed", "hang"),
        ..NONE
    },
    Fault {
        name: "new: speaks garbage",
        old: |scenario| scenario.with("policy.abort", 100),
        new: |scenario| scenario.with("at.born", "garbage\nhang"),
        ..NONE
    },
    Fault {
        name: "new: gets COMMIT and exits",
        new: |scenario| scenario.with("at.born", "hello\noffer\nready 1\ncommit\nexit 1"),
        ..NONE
    },
    Fault {
        name: "new: gets COMMIT and hangs, killed after 500 ms (`confirm`)",
        old: |scenario| scenario.with("policy.confirm", 500),
        new: |scenario| scenario.with("at.born", "hello\noffer\nready 1\ncommit\nhang"),
        ..NONE
    },
    Fault {
        name: "new: killed 1 ms after it began to serve",
        new: |scenario| scenario.with("at.serving", "pause 1\nkill"),
        strikes: rolls_back,
        ..NONE
    },
    Fault {
        name: "new: killed 50 ms after",
        new: |scenario| scenario.with("at.serving", "pause 50\nkill"),
        strikes: rolls_back,
        ..NONE
    },
    Fault {
        name: "new: killed 200 ms after",
        new: |scenario| scenario.with("at.serving", "pause 200\nkill"),
        strikes: rolls_back,
        ..NONE
    },
    Fault {
        name: "new: killed 2 s after, within a probation of 3 s",
        new: |scenario| scenario.with("at.serving", "pause 2000\nkill"),
        strikes: rolls_back,
        ..NONE
    },
    Fault {
        name: "old: killed after its offer",
        new: |scenario| scenario.with("at.claimed", "wait here"),
        strikes: |case, old| {
            let new = case.wait_for_other(&[old], "waits", SOON)?.pid.unwrap_or(0);
            case.signal(old, Signal::KILL)?;
            case.wait_exit(old, SOON)?;
            case.command(new, "go", &[("at", "here")])?;
            case.wait_for_from(new, "serving", SOON).map(drop)
        },
        ..NONE
    },
    Fault {
        name: "old: killed after READY",
        old: |scenario| scenario.with("hooks", "before commit kill"),
        strikes: |case, old| case.wait_for_other(&[old], "serving", SOON).map(drop),
        ..NONE
    },
    Fault {
        name: "old: killed after COMMIT",
        old: |scenario| scenario.with("hooks", "after commit kill"),
        strikes: |case, old| case.wait_for_other(&[old], "serving", SOON).map(drop),
        ..NONE
    },
    Fault {
        name: "old: killed while it drains",
        strikes: |case, old| {
            case.wait_for_from(old, "restart", SOON)?;
            case.signal(old, Signal::KILL)
        },
        ..NONE
    },
];

fn rolls_back(case: &Context, old: u32) -> Result<(), Failure> {
    wait_rolled_back(case, 0, old)
}

/// What came of a fault.
struct Row {
    fault: &'static str,
    /// `old` or `new`.
    serves: &'static str,
    report: Report,
    /// Beyond those that serve and drain.
    left: usize,
    restarts: bool,
}

fn measure(fault: &Fault) -> Result<Row, Failure> {
    let case = Context::new()?;
    let all = plain().with("policy.probation", PROBATION).with("policy.linger", PROBATION);
    let old = (fault.old)(all.clone());
    let first = start(&case, &old)?;
    at_rest(&case, first.pid)?;
    let load = Load::builder(first.address()?)
        .fresh(1_000.0)
        .kept(8, Duration::ZERO..Duration::from_millis(5))
        .slow(2, Duration::from_millis(50));
    let load = case.start_load(load)?;
    load.wait_for_answers(500, SOON)?;
    case.set_scenario(&(fault.new)(all.clone()))?;
    (fault.breaks)(&case)?;
    case.signal(first.pid, Signal::HUP)?;
    (fault.strikes)(&case, first.pid)?;
    load.wait_for_answers(1_000, SOON)?;
    let report = load.stop();
    let serving = report.serving().ok_or_else(|| Failure::new("nobody serves"))?;
    let only = case.wait_only(&[serving], SOON);
    let left = case.processes().len().saturating_sub(1);
    ensure!(only.is_ok() || left > 0, "{serving} is gone");
    let _ = case.program().replace();
    case.set_scenario(&plain())?;
    let restarts = restart(&case, serving).is_ok();
    let serves = if serving == first.pid { "old" } else { "new" };
    Ok(Row { fault: fault.name, serves, report, left, restarts })
}

/// Measures all of it, and puts the table into the file, in place of the one of the same name.
pub(crate) fn write(runtime: &str, path: &Path) -> Result<(), Failure> {
    let mut table = format!(
        "## {runtime}\n\n\
         | fault | serves then | requests lost | of these refused or left waiting | longest gap \
         for new connections | processes left | next restart |\n\
         |---|---|---|---|---|---|---|\n"
    );
    for fault in FAULTS {
        let rows: Result<Vec<Row>, Failure> = (0..RUNS).map(|_| measure(fault)).collect();
        let mut rows = rows.map_err(|failure| failure.while_doing(fault.name))?;
        rows.sort_by_key(|row| row.report.longest_gap.length);
        let row = rows.swap_remove(RUNS / 2);
        let lost = |count: fn(&crate::client::Lost) -> u64| -> u64 {
            row.report.groups.iter().map(|group| count(&group.lost)).sum()
        };
        writeln!(
            table,
            "| {} | {} | {} of {} | {} | {:.1} ms | {} | {} |",
            row.fault,
            row.serves,
            row.report.lost() + row.report.races(),
            row.report.ok() + row.report.lost() + row.report.races(),
            lost(|lost| lost.refused + lost.timed_out),
            row.report.longest_gap.length.as_secs_f64() * 1e3,
            row.left,
            if row.restarts { "succeeds" } else { "FAILS" },
        )?;
    }
    let old = std::fs::read_to_string(path).unwrap_or_default();
    std::fs::write(path, replaced(&old, runtime, &table)).doing("writing the table of faults")
}

/// The text with this section in place of the one of that name, or at its end.
fn replaced(text: &str, name: &str, section: &str) -> String {
    let heading = format!("## {name}\n");
    let Some(start) = text.find(&heading) else {
        let text = text.trim_end();
        return format!("{text}{}{section}", if text.is_empty() { "" } else { "\n\n" });
    };
    let rest = &text[start + heading.len()..];
    let end = rest.find("\n## ").map_or("", |next| &rest[next..]);
    format!("{}{section}{end}", &text[..start])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_section_is_replaced_or_added() {
        let text = "Intro.\n\n## a\n\nold\n\n## b\n\nstays\n";
        let new = replaced(text, "a", "## a\n\nnew\n");
        assert_eq!(new, "Intro.\n\n## a\n\nnew\n\n## b\n\nstays\n");
        assert_eq!(replaced(text, "c", "## c\n"), format!("{text}\n## c\n"));
    }
}
