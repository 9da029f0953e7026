//! Whatever the new version does wrong, the old one serves on.

use std::collections::BTreeMap;

use super::common::{
    DEADLINE, SOON, Serving, ask, at_rest, carry_out, finish, has_rolled_back, hold, is_refused,
    load, plain, refused, restart, settled, start, stop, took_over, wait_in_flight,
    wait_rolled_back, wait_state,
};
use super::talk::{self, Talk};
use crate::client::{Load, Report};
use crate::hygiene::Belongings;
use crate::program::{HeldUp, Program};
use crate::signal::Signal;
use crate::timeline::Event;
use crate::{Case, Context, Failure, Scenario, ensure, poll_until};

macro_rules! case {
    ($name:literal, $clause:literal, $run:expr) => {
        case!($name, $clause, $run, &[])
    };
    ($name:literal, $clause:literal, $run:expr, $needs:expr) => {
        Case {
            name: concat!("new_version_fails::", $name),
            clause: $clause,
            deadline: DEADLINE,
            needs: $needs,
            run: $run,
        }
    };
}

/// After each of these the next restart succeeds, SIGTERM stops promptly, and nothing is left.
pub(super) const CASES: &[Case] = &[
    case!("the_binary_is_missing", "a missing binary is a typed error", |case| {
        broken(case, 2, |program| program.remove())
    }),
    case!("the_binary_is_not_executable", "one without the right to execute", |case| {
        broken(case, 13, Program::make_not_executable)
    }),
    case!("the_binary_is_garbage", "garbage in place of a program", |case| {
        broken(case, 8, |program| program.replace_with(b"garbage\n", 0o755))
    }),
    case!("the_binary_is_of_another_machine", "a program for another processor", |case| {
        broken(case, 8, |program| {
            let mut bytes = std::fs::read(program.path())?;
            // The machine's number in an ELF header.
            bytes[18..20].copy_from_slice(&[0xff, 0x7f]);
            program.replace_with(&bytes, 0o755)
        })
    }),
    case!("the_binary_is_busy", "text file busy", |case| {
        let faulty = Faulty {
            prepare: &|case| {
                let busy = case.program().make_busy()?;
                Ok(Box::new(busy))
            },
            expect: &|outcome| failed_to_start(outcome, 26),
            ..Faulty::new()
        };
        faulty.is_survived(case)
    }),
    case!("the_binary_is_a_directory", "a directory in place of a program", |case| {
        let faulty = Faulty {
            prepare: &|case| {
                case.program().make_directory()?;
                Ok(Box::new(Directory(case.program().clone())))
            },
            expect: &|outcome| failed_to_start(outcome, 13),
            ..Faulty::new()
        };
        faulty.is_survived(case)
    }),
    case!("the_interpreter_is_missing", "a script whose interpreter is missing", |case| {
        broken(case, 2, |program| program.replace_with(b"#!/nowhere/at/all\n", 0o755))
    }),
    case!("the_binary_is_half_written", "a program of which a part is there", |case| {
        let faulty = Faulty {
            prepare: &|case| {
                let mut bytes = std::fs::read(case.program().path())?;
                // Beyond that there is nothing but what a debugger reads.
                bytes.truncate(bytes.len() / 20);
                case.program().replace_with(&bytes, 0o755)?;
                Ok(Box::new(()))
            },
            // The kernel may refuse it, or start it to die of what is missing.
            expect: &|outcome| {
                let failure = outcome.get("failure").unwrap_or_default();
                ensure!(["Spawn", "Exited"].contains(&failure), "{outcome}");
                Ok(())
            },
            ..Faulty::new()
        };
        faulty.is_survived(case)
    }),
    case!(
        "its_start_hangs",
        "its exec hangs in a file system: an answer at the deadline, and no second start beside it; \
         if it goes on after all, it is ended",
        start_hangs,
        &[HeldUp::NEED]
    ),
    case!(
        "there_is_no_memory_to_start_it",
        "no memory for a start: an error that says so, and nothing is lost",
        no_memory
    ),
    case!("it_exits_with_0", "it exits with 0 before it is ready", |case| {
        ended(case, "exit 0", "exit status 0")
    }),
    case!("it_exits_with_1", "it exits with 1 before it is ready", |case| {
        ended(case, "exit 1", "exit status 1")
    }),
    case!("it_panics", "it panics before the library was asked for anything", |case| {
        ended(case, "panic at the start", "exit status 101")
    }),
    case!("it_panics_with_listeners", "it panics when it has its listeners", |case| {
        let faulty = Faulty {
            successor: plain().with("at.claimed", "panic before it was ready"),
            expect: &|outcome| is_refused(outcome, "GaveUp"),
            ..Faulty::new()
        };
        faulty.is_survived(case)
    }),
    case!("it_dies_of_sigsegv", "it dies of SIGSEGV before it is ready", |case| {
        ended(case, "segv", "killed by SIGSEGV")
    }),
    case!("it_never_says_hello", "it hangs before the library's start: killed", |case| {
        let faulty = Faulty {
            first: plain().with("policy.spawn", REACHED).with("policy.abort", 100),
            successor: plain().with("at.born", "hang"),
            expect: &|outcome| is_refused(outcome, "HelloDeadline"),
            ..Faulty::new()
        };
        faulty.is_survived(case)
    }),
    case!(
        "it_hangs_before_it_is_ready",
        "it hangs before ready: killed at the deadline, with what it started and still parents",
        |case| {
            let faulty = Faulty {
                first: plain().with("policy.ready", REACHED).with("policy.abort", 100),
                successor: plain().also("at.claimed", "helper").also("at.claimed", "hang"),
                expect: &|outcome| is_refused(outcome, "ReadyDeadline"),
                ..Faulty::new()
            };
            faulty.is_survived(case)
        }
    ),
    case!("it_gives_up_with_a_reason", "it gives up: the outcome has its reason", |case| {
        let faulty = Faulty {
            successor: plain().with("at.claimed", "give-up the configuration is bad"),
            expect: &|outcome| said(outcome, "GaveUp", "the configuration is bad"),
            ..Faulty::new()
        };
        faulty.is_survived(case)
    }),
    case!(
        "it_never_confirms",
        "it says READY and gets COMMIT but never confirms: killed at that deadline, rollback",
        |case| {
            let faulty = Faulty {
                first: plain().with("policy.confirm", REACHED),
                successor: raw("hello\noffer\nready 1\ncommit\nhang"),
                expect: &|outcome| is_refused(outcome, "NotConfirmed"),
                ..Faulty::new()
            };
            faulty.is_survived(case)
        }
    ),
    case!(
        "it_leaves_a_helper_with_its_descriptors",
        "it forks a helper that keeps its descriptors, then dies: noticed at once",
        helper
    ),
    case!(
        "it_is_wrapped_in_a_shell",
        "it is started through a shell, so that the pid that was spawned is not the one that speaks",
        wrapped
    ),
    case!("it_says_garbage", "garbage on the handover socket", |case| {
        protocol(case, "garbage\nhang", "")
    }),
    case!("it_says_half_a_frame", "half a frame on the handover socket", |case| {
        protocol(case, "half\nhang", "")
    }),
    case!("it_says_too_much", "an oversized frame on the handover socket", |case| {
        protocol(case, "hello\noffer\noversized\nhang", "")
    }),
    case!("it_sends_a_descriptor", "a descriptor where none belongs", |case| {
        protocol(case, "hello\noffer\nattach\nhang", "")
    }),
    case!("it_speaks_another_version", "a version that the old one does not speak", |case| {
        protocol(case, "hello 77 99\nhang", "protocol versions 77 to 99")
    }),
    case!("it_claims_what_was_not_offered", "a claim of what was not offered", |case| {
        protocol(case, "hello\noffer\nready 500\nhang", "not offered")
    }),
    case!("it_says_hello_twice", "HELLO twice", |case| {
        protocol(case, "hello\noffer\nhello\nhang", "HELLO out of place")
    }),
    case!("it_serves_without_a_commit", "SERVING in place of READY", |case| {
        protocol(case, "hello\noffer\nserving\nhang", "")
    }),
    case!("it_says_ready_twice", "READY twice", |case| {
        let faulty = Faulty {
            // The second comes before the commit.
            first: plain().with("hooks", format!("before commit pause {REACHED}")),
            successor: raw("hello\noffer\nready 1\nready 1\nhang"),
            expect: &|outcome| is_refused(outcome, "Protocol"),
            ..Faulty::new()
        };
        faulty.is_survived(case)
    }),
    case!("it_closes_the_socket", "it closes the handover socket and lives on", |case| {
        protocol(case, "hello\noffer\nclose\nhang", "")
    }),
    case!("it_never_asks_for_anything", "it says HELLO and nothing more, ever", |case| {
        let faulty = Faulty {
            first: plain().with("policy.ready", REACHED).with("policy.abort", 100),
            successor: raw("hello\nhang"),
            expect: &|outcome| is_refused(outcome, "ReadyDeadline"),
            ..Faulty::new()
        };
        faulty.is_survived(case)
    }),
    case!(
        "it_exits_at_the_instant_of_ready",
        "it exits at the instant of ready: one verdict, and no request is lost",
        at_the_instant
    ),
    case!(
        "the_old_one_has_no_descriptors_left",
        "near RLIMIT_NOFILE in the old process: an error that says so, and nothing is lost",
        old_near_the_limit
    ),
    case!(
        "the_new_one_has_no_descriptors_left",
        "near RLIMIT_NOFILE in the new process: all descriptors or none, and an error that says so",
        new_near_the_limit
    ),
    case!(
        "it_dies_while_the_old_one_drains",
        "it dies within the probation while the old one drains: the old accepts again, only what \
         the dead one had accepted is lost, and the next restart succeeds",
        |case| dies_after_commit(case, true)
    ),
    case!(
        "it_dies_when_the_old_one_is_idle",
        "it dies within the probation when the old one has nothing left to do: the same",
        |case| dies_after_commit(case, false)
    ),
    case!(
        "it_dies_before_it_could_confirm",
        "it dies between COMMIT and its confirmation: the old one accepts again, nothing is lost",
        |case| {
            let faulty = Faulty {
                successor: raw("hello\noffer\nready 1\ncommit\nexit 3"),
                expect: &|outcome| is_refused(outcome, "DiedAfterCommit"),
                ..Faulty::new()
            };
            faulty.is_survived(case)
        }
    ),
    case!(
        "it_stops_within_the_probation",
        "it stops on purpose within the probation: no rollback, both end, no client hangs",
        stops
    ),
    case!(
        "it_is_killed_within_that_stop",
        "it is killed in the middle of a stop within the probation: still a stop",
        killed_while_stopping
    ),
    case!(
        "three_generations_and_the_third_dies",
        "3 takes over from 2 while 1 drains, then 3 dies: 2 serves, and only 2",
        |case| three(case, true)
    ),
    case!(
        "three_generations_and_the_second_stops",
        "3 takes over from 2 while 1 drains, then 2 is told to stop: 3 serves, and only 3",
        |case| three(case, false)
    ),
];

/// A deadline that a broken version is to reach, and a sound one not, in milliseconds: of the same
/// process, on a machine that may be busy with something else.
const REACHED: u64 = 8_000;

type Keep = Box<dyn std::any::Any>;

/// A fault of a successor, and what comes of it.
struct Faulty<'a> {
    /// What the generations that work are like.
    first: Scenario,
    successor: Scenario,
    /// Breaks what is broken until the value is dropped.
    prepare: &'a dyn Fn(&Context) -> Result<Keep, Failure>,
    expect: &'a dyn Fn(&Event) -> Result<(), Failure>,
}

impl Faulty<'_> {
    fn new() -> Self {
        Self {
            first: plain(),
            successor: plain(),
            prepare: &|_| Ok(Box::new(())),
            expect: &|_| Ok(()),
        }
    }

    /// Twice: the first server is restarted after the fault, the second one is stopped.
    fn is_survived(&self, case: &Context) -> Result<(), Failure> {
        let first = start(case, &self.first)?;
        self.strikes(case, &first)?;
        let second = restart(case, first.pid)?;
        case.wait_exit(first.pid, SOON)?;
        self.strikes(case, &second)?;
        stop(case, second.pid)
    }

    fn strikes(&self, case: &Context, server: &Serving) -> Result<(), Failure> {
        let before = answering(case, server)?;
        let load = load(case, server.address()?)?;
        let keep = (self.prepare)(case)?;
        case.set_scenario(&self.successor)?;
        let outcome = ask(case, server.pid)?;
        (self.expect)(&outcome)?;
        drop(keep);
        case.program().replace()?;
        case.set_scenario(&self.first)?;
        load.wait_for_answers(50, SOON)?;
        let report = load.stop();
        case.nothing_lost(&report)?;
        ensure!(report.serving() == Some(server.pid), "{report}");
        settled(case, &[server.pid])?;
        owns_the_same(&before, server.pid)
    }
}

/// Removes a folder that stands in a program's place.
struct Directory(Program);

impl Drop for Directory {
    fn drop(&mut self) {
        // If it fails, the program cannot be put back, and the case says so.
        let _ = std::fs::remove_dir(self.0.path());
    }
}

/// What a process owns at rest, once all that it makes at a first connection has been made.
fn answering(case: &Context, server: &Serving) -> Result<Belongings, Failure> {
    talk::get(server.address()?, "/")?;
    wait_in_flight(case, server.pid, 0)?;
    at_rest(case, server.pid)
}

/// Waits until a process owns no more descriptors of any kind, and no more threads, than before. A
/// listener that has left its poller and come back may have another number.
fn owns_the_same(before: &Belongings, pid: u32) -> Result<(), Failure> {
    let kinds = |owner: &Belongings| -> BTreeMap<String, usize> {
        let mut kinds = BTreeMap::from([("thread".to_owned(), owner.threads.len())]);
        for descriptor in &owner.descriptors {
            *kinds.entry(descriptor.kind().to_owned()).or_default() += 1;
        }
        kinds
    };
    let (before, mut now) = (kinds(before), BTreeMap::new());
    let same = poll_until(SOON, "what it owned before", || {
        now = kinds(&Belongings::of(pid).ok()?);
        let more = |(kind, count): (&String, &usize)| count > before.get(kind).unwrap_or(&0);
        (!now.iter().any(more)).then_some(())
    });
    same.map_err(|failure| Failure::new(format!("{failure}: {before:#?} has become {now:#?}")))
}

/// A successor that speaks by hand in place of the library.
fn raw(words: &str) -> Scenario {
    plain().with("at.born", words)
}

fn failed_to_start(outcome: &Event, os_error: i32) -> Result<(), Failure> {
    is_refused(outcome, "Spawn")?;
    ensure!(outcome.get("os_error") == Some(&os_error.to_string()), "not {os_error}: {outcome}");
    ensure!(outcome.get("detail").is_some_and(|detail| detail.contains("subject")), "{outcome}");
    Ok(())
}

fn said(outcome: &Event, failure: &str, detail: &str) -> Result<(), Failure> {
    is_refused(outcome, failure)?;
    let found = outcome.get("detail").unwrap_or_default();
    ensure!(found.contains(detail), "no `{detail}` in {outcome}");
    Ok(())
}

fn broken(
    case: &Context,
    os_error: i32,
    breaks: impl Fn(&Program) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let faulty = Faulty {
        prepare: &|case| {
            breaks(case.program())?;
            Ok(Box::new(()))
        },
        expect: &|outcome| failed_to_start(outcome, os_error),
        ..Faulty::new()
    };
    faulty.is_survived(case)
}

fn ended(case: &Context, act: &str, how: &str) -> Result<(), Failure> {
    let faulty = Faulty {
        successor: raw(act),
        expect: &|outcome| {
            is_refused(outcome, "Exited")?;
            ensure!(outcome.get("ended") == Some(how), "{outcome}");
            Ok(())
        },
        ..Faulty::new()
    };
    faulty.is_survived(case)
}

fn protocol(case: &Context, words: &str, detail: &str) -> Result<(), Failure> {
    let first = plain().with("policy.abort", 100);
    let faulty = Faulty {
        successor: first.clone().with("at.born", words),
        first,
        expect: &|outcome| said(outcome, "Protocol", detail),
        ..Faulty::new()
    };
    faulty.is_survived(case)
}

fn helper(case: &Context) -> Result<(), Failure> {
    // Long enough for the last of them to die within it.
    let first = start(case, &plain().with("policy.probation", 20_000))?;
    for at in ["at.born", "at.claimed"] {
        let before = answering(case, &first)?;
        let load = load(case, first.address()?)?;
        case.set_scenario(&plain().also(at, "helper").also(at, "exit 1"))?;
        let seen = case.timeline().len();
        // Not at a deadline.
        refused(case, first.pid, "Exited")?;
        let helper =
            case.timeline().wait_for_after(seen, "a helper", SOON, |event| event.is("helper"))?;
        let report = load.stop();
        case.nothing_lost(&report)?;
        let helper: u32 = helper.get("pid").unwrap_or_default().parse()?;
        settled(case, &[first.pid, helper])?;
        let process = crate::signal::Process::open(helper)?;
        process.signal(Signal::KILL)?;
        process.wait_gone(SOON)?;
        // It has become the runner's.
        let _ = process.reap();
        settled(case, &[first.pid])?;
        owns_the_same(&before, first.pid)?;
    }
    // The same after the commit, when it has accepted already.
    let load = load(case, first.address()?)?;
    case.set_scenario(&plain().also("at.serving", "helper").also("at.serving", "exit 1"))?;
    let seen = case.timeline().len();
    let outcome = ask(case, first.pid)?;
    took_over(case, &outcome)?;
    wait_rolled_back(case, seen, first.pid)?;
    let helper =
        case.timeline().wait_for_after(seen, "a helper", SOON, |event| event.is("helper"))?;
    case.signal(helper.get("pid").unwrap_or_default().parse()?, Signal::KILL)?;
    load.wait_for_answers(50, SOON)?;
    only_the_dead_ones_are_lost(&load.stop())?;
    case.set_scenario(&plain())?;
    let again = super::common::load(case, first.address()?)?;
    let process = helper.get("pid").unwrap_or_default().parse()?;
    if let Ok(process) = crate::signal::Process::open(process) {
        process.wait_gone(SOON)?;
        let _ = process.reap();
    }
    finish_soon(case, again, first.pid)
}

fn wrapped(case: &Context) -> Result<(), Failure> {
    let wrapper = case.folder().join("wrapper");
    let script = format!("#!/bin/sh\n'{}' \"$@\"\n", case.program().path().display());
    let program = case.another_program("wrapper")?;
    program.replace_with(script.as_bytes(), 0o755)?;
    let scenario = plain()
        .with("policy.executable", wrapper.display())
        .with("policy.ready", REACHED)
        .with("policy.abort", 100);
    let first = start(case, &scenario)?;
    let load = load(case, first.address()?)?;
    // It fails behind its wrapper.
    case.set_scenario(&scenario.clone().with("at.claimed", "exit 1"))?;
    refused(case, first.pid, "Exited")?;
    case.set_scenario(&scenario.clone().with("at.claimed", "give-up a bad day"))?;
    said(&ask(case, first.pid)?, "GaveUp", "a bad day")?;
    // Killed behind its wrapper, and the wrapper with it.
    case.set_scenario(&scenario.clone().with("at.claimed", "hang"))?;
    refused(case, first.pid, "ReadyDeadline")?;
    settled(case, &[first.pid])?;
    // It works behind its wrapper.
    case.set_scenario(&scenario)?;
    let second = restart(case, first.pid)?;
    load.wait_for_successor(first.pid, SOON)?;
    case.wait_exit(first.pid, SOON)?;
    let born = case.wait_for_from(second.pid, "born", SOON)?;
    ensure!(born.get("argv") == Some(&case.program().path().display().to_string()), "{born}");
    let shell: u32 = born.get("parent").unwrap_or_default().parse()?;
    case.wait_only(&[second.pid, shell], SOON)?;
    let third = restart(case, second.pid)?;
    load.wait_for_successor(second.pid, SOON)?;
    case.wait_exit(second.pid, SOON)?;
    let report = load.stop();
    case.nothing_lost(&report)?;
    // The shell waits for its child, and then it is the runner's to bury.
    if let Ok(shell) = crate::signal::Process::open(shell) {
        shell.wait_gone(SOON)?;
        let _ = shell.reap();
    }
    case.signal(third.pid, Signal::TERM)?;
    case.wait_exit(third.pid, SOON)?;
    let parent = case.wait_for_from(third.pid, "born", SOON)?;
    let parent = parent.get("parent").unwrap_or_default().parse()?;
    if let Ok(shell) = crate::signal::Process::open(parent) {
        shell.wait_gone(SOON)?;
        let _ = shell.reap();
    }
    case.wait_only(&[], SOON)
}

fn at_the_instant(case: &Context) -> Result<(), Failure> {
    let first = start(case, &plain())?;
    let before = answering(case, &first)?;
    let load = load(case, first.address()?)?;
    case.set_scenario(&raw("hello\noffer\nready 1\nexit 0"))?;
    for _ in 0..20 {
        let outcome = ask(case, first.pid)?;
        // Whether COMMIT could still be written is seen by whoever writes it.
        let failure = outcome.get("failure").unwrap_or_default();
        ensure!(["Exited", "DiedAfterCommit"].contains(&failure), "{outcome}");
    }
    // With time between the two there is but one.
    load.wait_for_answers(50, SOON)?;
    let report = load.stop();
    case.nothing_lost(&report)?;
    settled(case, &[first.pid])?;
    owns_the_same(&before, first.pid)?;
    case.set_scenario(&plain().with("hooks", "before commit wait commit"))?;
    let second = restart(case, first.pid)?;
    let load = super::common::load(case, first.address()?)?;
    case.set_scenario(&raw("hello\noffer\nready 1\nexit 0"))?;
    refused(case, second.pid, "Exited")?;
    case.set_scenario(&plain())?;
    case.command(second.pid, "go", &[("at", "commit")])?;
    finish(case, load, second.pid)
}

fn old_near_the_limit(case: &Context) -> Result<(), Failure> {
    let first = start(case, &plain())?;
    let before = answering(case, &first)?;
    // From no descriptor at all to enough: what is below the lowest free number is in use.
    let used = |number: &i32| before.descriptors.iter().any(|one| one.number == *number);
    let lowest = (0..).find(|number| !used(number)).unwrap_or(0);
    for (failed, limit) in (lowest..lowest + 40).enumerate() {
        let limit = format!("nofile {limit}");
        carry_out(case, first.pid, "thread-act", &[("action", &limit)])?;
        let outcome = ask(case, first.pid)?;
        if outcome.get("ok") == Some("true") {
            ensure!(failed > 2, "only {failed} limits were too low: {outcome}");
            let second = took_over(case, &outcome)?;
            case.wait_exit(first.pid, SOON)?;
            // The limit is inherited like everything else.
            carry_out(case, second.pid, "thread-act", &[("action", "nofile 1024")])?;
            let load = load(case, second.address()?)?;
            return finish(case, load, second.pid);
        }
        let failure = outcome.get("failure").unwrap_or_default();
        ensure!(["Spawn", "Resources", "Protocol", "GaveUp"].contains(&failure), "{outcome}");
        let error = outcome.get("error").unwrap_or_default();
        ensure!(error.contains("os error 24"), "it does not say so: {outcome}");
        settled(case, &[first.pid])?;
        owns_the_same(&before, first.pid)?;
    }
    Err(Failure::new("40 descriptors were not enough"))
}

fn start_hangs(case: &Context) -> Result<(), Failure> {
    let scenario = plain().with("policy.spawn", REACHED);
    let first = start(case, &scenario)?;
    let before = answering(case, &first)?;
    let load = load(case, first.address()?)?;
    let held = case.program().hold_up()?;
    refused(case, first.pid, "SpawnDeadline")?;
    refused(case, first.pid, "Unkillable")?;
    load.wait_for_answers(50, SOON)?;
    drop(held);
    settled(case, &[first.pid])?;
    let report = load.stop();
    case.nothing_lost(&report)?;
    ensure!(report.serving() == Some(first.pid), "{report}");
    owns_the_same(&before, first.pid)?;
    let second = restart(case, first.pid)?;
    case.wait_exit(first.pid, SOON)?;

    // Nobody is there any more when it goes on: told to stop after the deadline, and before it.
    let held = case.program().hold_up()?;
    refused(case, second.pid, "SpawnDeadline")?;
    case.signal(second.pid, Signal::TERM)?;
    case.wait_exit(second.pid, SOON)?;
    drop(held);
    case.wait_only(&[], SOON)?;
    let third = start(case, &plain().with("policy.spawn", 600_000))?;
    let held = case.program().hold_up()?;
    case.signal(third.pid, Signal::HUP)?;
    wait_state(case, third.pid, "Forking")?;
    case.signal(third.pid, Signal::TERM)?;
    case.wait_exit(third.pid, SOON)?;
    drop(held);
    case.wait_only(&[], SOON)
}

fn no_memory(case: &Context) -> Result<(), Failure> {
    let first = start(case, &plain())?;
    let before = answering(case, &first)?;
    // Less than the stack of a thread.
    carry_out(case, first.pid, "thread-act", &[("action", "memory 1024")])?;
    for _ in 0..3 {
        let outcome = ask(case, first.pid)?;
        is_refused(&outcome, "Resources")?;
        let error = outcome.get("error").unwrap_or_default();
        ensure!(error.contains("os error 11"), "it does not say so: {outcome}");
    }
    carry_out(case, first.pid, "thread-act", &[("action", "memory")])?;
    settled(case, &[first.pid])?;
    owns_the_same(&before, first.pid)?;
    let load = load(case, first.address()?)?;
    finish(case, load, first.pid)
}

fn new_near_the_limit(case: &Context) -> Result<(), Failure> {
    let mut scenario = Scenario::new().with("quiet", true);
    for number in 0..40 {
        scenario = scenario.also("listen", format!("l{number} tcp 127.0.0.1:0"));
    }
    let first = start(case, &scenario)?;
    let before = answering(case, &first)?;
    let load = load(case, first.address()?)?;
    for limit in [12, 20, 40] {
        case.set_scenario(&scenario.clone().with("at.born", format!("nofile {limit}")))?;
        let outcome = ask(case, first.pid)?;
        let failure = outcome.get("failure").unwrap_or_default();
        ensure!(["GaveUp", "Protocol"].contains(&failure), "{outcome}");
        let detail = outcome.get("detail").unwrap_or_default();
        ensure!(detail.contains("descriptors"), "it does not say so: {outcome}");
    }
    load.wait_for_answers(50, SOON)?;
    let report = load.stop();
    case.nothing_lost(&report)?;
    settled(case, &[first.pid])?;
    owns_the_same(&before, first.pid)?;
    case.set_scenario(&scenario)?;
    let load = super::common::load(case, first.address()?)?;
    finish(case, load, first.pid)
}

/// Connections that the dead process had accepted end. Nothing else is allowed to.
fn only_the_dead_ones_are_lost(report: &Report) -> Result<(), Failure> {
    for group in &report.groups {
        let lost = group.lost;
        ensure!(
            lost.refused + lost.timed_out + lost.wrong + lost.unsent == 0,
            "clients were refused or left waiting:\n{report}"
        );
    }
    Ok(())
}

fn dies_after_commit(case: &Context, drains: bool) -> Result<(), Failure> {
    let scenario = plain()
        .with("policy.probation", 20_000)
        .with("policy.linger", 20_000)
        .also("hooks", "after roll-back ok");
    let first = start(case, &scenario)?;
    let before = answering(case, &first)?;
    // An upgraded connection, which never ends by itself.
    let mut kept = drains.then(|| Talk::to(first.address()?)).transpose()?;
    let mut ping = || -> Result<(), Failure> {
        let Some(kept) = &mut kept else { return Ok(()) };
        let said = kept.ping()?;
        ensure!(said.pid == first.pid, "{said:?}");
        Ok(())
    };
    ping()?;
    let load = Load::builder(first.address()?).fresh(400.0);
    let load = case.start_load(load)?;
    load.wait_for_answers(50, SOON)?;
    for _ in 0..3 {
        let seen = case.timeline().len();
        let second = restart(case, first.pid)?;
        load.wait_for_successor(first.pid, SOON)?;
        ping()?;
        case.signal(second.pid, Signal::KILL)?;
        wait_rolled_back(case, seen, first.pid)?;
        case.timeline().wait_for_after(seen, "the hook after a rollback", SOON, |event| {
            event.is("hook") && event.get("event") == Some("roll-back")
        })?;
        load.wait_for_successor(second.pid, SOON)?;
        ping()?;
    }
    let report = load.stop();
    only_the_dead_ones_are_lost(&report)?;
    drop(kept);
    settled(case, &[first.pid])?;
    owns_the_same(&before, first.pid)?;
    // From here on nothing is lost at all, and connections are kept alive again.
    case.set_scenario(&plain())?;
    let mut talk = Talk::to(first.address()?)?;
    let said = talk.get("/")?;
    ensure!(said.pid == first.pid && !said.close, "{said:?}");
    drop(talk);
    let load = super::common::load(case, first.address()?)?;
    finish_soon(case, load, first.pid)
}

/// As `finish`, for a process whose own linger is long.
fn finish_soon(case: &Context, load: crate::client::Running, pid: u32) -> Result<(), Failure> {
    let next = restart(case, pid)?.pid;
    load.wait_for_successor(pid, SOON)?;
    load.wait_for_answers(50, SOON)?;
    let report = load.stop();
    case.nothing_lost(&report)?;
    case.signal(pid, Signal::TERM)?;
    case.wait_exit(pid, SOON)?;
    settled(case, &[next])?;
    stop(case, next)
}

fn stops(case: &Context) -> Result<(), Failure> {
    let first = start(case, &plain().with("policy.probation", 20_000))?;
    let load = Load::builder(first.address()?).fresh(300.0);
    let load = case.start_load(load)?;
    load.wait_for_answers(50, SOON)?;
    let second = restart(case, first.pid)?;
    load.wait_for_successor(first.pid, SOON)?;
    case.signal(second.pid, Signal::TERM)?;
    case.wait_exit(second.pid, SOON)?;
    case.wait_exit(first.pid, SOON)?;
    case.wait_only(&[], SOON)?;
    load.wait_until(SOON, |report| report.groups[0].lost.refused > 10)?;
    let report = load.stop();
    let lost = report.groups[0].lost;
    ensure!(lost.total() == lost.refused, "a client was left in a queue:\n{report}");
    ensure!(!has_rolled_back(case, first.pid), "it came back");
    ensure!(talk::is_refused(first.address()?), "somebody listens");
    Ok(())
}

fn killed_while_stopping(case: &Context) -> Result<(), Failure> {
    let first = start(case, &plain().with("policy.probation", 20_000))?;
    hold(case, first.pid)?;
    let second = restart(case, first.pid)?;
    hold(case, second.pid)?;
    let seen = case.timeline().len();
    case.signal(second.pid, Signal::TERM)?;
    case.timeline().wait_for_after(seen, "the stop's drain", SOON, |event| {
        event.pid == Some(second.pid) && event.get("state") == Some("Draining")
    })?;
    case.signal(second.pid, Signal::KILL)?;
    case.wait_exit(second.pid, SOON)?;
    case.command(first.pid, "unguard", &[])?;
    case.wait_exit(first.pid, SOON)?;
    case.wait_only(&[], SOON)?;
    ensure!(!has_rolled_back(case, first.pid), "it came back");
    ensure!(talk::is_refused(first.address()?), "somebody listens");
    Ok(())
}

fn three(case: &Context, third_dies: bool) -> Result<(), Failure> {
    let scenario = plain().with("policy.probation", 20_000).with("policy.linger", 20_000);
    let first = start(case, &scenario)?;
    // Only 1 drains for a reason; 2 would leave at once if it could.
    hold(case, first.pid)?;
    let load = Load::builder(first.address()?).fresh(400.0);
    let load = case.start_load(load)?;
    load.wait_for_answers(50, SOON)?;
    let second = restart(case, first.pid)?;
    load.wait_for_successor(first.pid, SOON)?;
    let seen = case.timeline().len();
    let third = restart(case, second.pid)?;
    load.wait_for_successor(second.pid, SOON)?;
    // 1 is not the heir any more: it has given its listener up.
    case.wait_for_from(first.pid, "closed", SOON)?;
    let serves = if third_dies { second.pid } else { third.pid };
    if third_dies {
        case.signal(third.pid, Signal::KILL)?;
        wait_rolled_back(case, seen, second.pid)?;
        load.wait_for_successor(third.pid, SOON)?;
    } else {
        case.signal(second.pid, Signal::TERM)?;
        case.wait_exit(second.pid, SOON)?;
    }
    load.wait_for_answers(200, SOON)?;
    let report = load.stop();
    only_the_dead_ones_are_lost(&report)?;
    ensure!(report.serving() == Some(serves), "{serves} is to serve:\n{report}");
    ensure!(!has_rolled_back(case, first.pid), "1 came back");
    settled(case, &[first.pid, serves])?;
    // Whoever serves is not in anybody's way, and 1 not in its.
    case.command(first.pid, "unguard", &[])?;
    case.wait_exit(first.pid, SOON)?;
    case.set_scenario(&plain())?;
    let load = super::common::load(case, first.address()?)?;
    finish_soon(case, load, serves)
}
