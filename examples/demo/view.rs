//! What the demo shows: one line that is rewritten while something goes on (on a terminal), a row
//! for each restart, and the tables of the end.

use std::fmt::Display;
use std::io::{IsTerminal, Write};
use std::time::Duration;

use handover_conformance::Stamp;
use handover_conformance::client::{Group, Histogram, Lost, Report};
use handover_conformance::hygiene::Belongings;

use crate::fleet::Told;

/// How often the line is rewritten.
const REDRAW: Duration = Duration::from_millis(100);

pub(crate) struct View {
    terminal: bool,
    rows: u32,
    drawn: Stamp,
}

/// A restart.
pub(crate) struct Row {
    pub(crate) number: u32,
    pub(crate) old: u32,
    pub(crate) new: u32,
    pub(crate) build: u64,
    /// From the signal to the first answer of the new process.
    pub(crate) took: Duration,
    /// How long the library's steps took, as it says.
    pub(crate) steps: Told,
    /// Requests in flight at the switch that the old process finished.
    pub(crate) finished: Option<u64>,
    /// From the signal to the end of the old process, if it has ended.
    pub(crate) gone: Option<Duration>,
    pub(crate) lost: u64,
}

impl View {
    pub(crate) fn new() -> Self {
        let terminal = std::io::stdout().is_terminal()
            && std::env::var_os("CI").is_none()
            && std::env::var_os("TERM").is_none_or(|term| term != "dumb");
        Self { terminal, rows: 0, drawn: Stamp::default() }
    }

    pub(crate) fn title(&self, text: &str) {
        println!("{text}\n");
    }

    /// Shows how the load goes, now and then.
    pub(crate) fn load(&mut self, doing: &str, report: &Report) {
        if self.terminal && Stamp::now().since(self.drawn) >= REDRAW {
            self.drawn = Stamp::now();
            let lost = report.lost() + report.races();
            let (ok, flying) = (report.ok(), report.in_flight);
            self.progress(&format!(
                "{ok:>7} answered, {lost} lost, {flying:>2} in flight | {doing}"
            ));
        }
    }

    /// Rewrites the line.
    pub(crate) fn progress(&self, text: &str) {
        if self.terminal {
            print!("\r\x1b[2K{text}");
            let _ = std::io::stdout().flush();
        }
    }

    /// Takes the line away.
    pub(crate) fn clear(&self) {
        self.progress("");
    }

    pub(crate) fn row(&mut self, row: &Row) {
        self.clear();
        if self.rows == 0 {
            println!(
                "                             takeover |  its steps in ms              | old one"
            );
            println!(
                "  #      old -> new     build      ms | spawn  hello  ready   switch  | finished  \
                 gone s | lost"
            );
        }
        self.rows += 1;
        println!(
            "{:>3}  {:>7} -> {:<7}  {:>5} {:>7.2} | {:>5.2} {:>6.2} {:>6.2} {:>8.3}  | {:>8} {:>7} | {:>4}",
            row.number,
            row.old,
            row.new,
            row.build,
            millis(row.took),
            row.steps.millis("spawn"),
            row.steps.millis("hello"),
            row.steps.millis("ready"),
            row.steps.millis("switch"),
            or_unknown(row.finished),
            or_unknown(row.gone.map(|gone| format!("{:.2}", gone.as_secs_f64()))),
            row.lost,
        );
    }

    pub(crate) fn failures(&self, report: &Report) {
        println!(
            "\nrequests      answered  refused  reset  closed early  truncated  wrong  timed out  \
             unsent  idle race"
        );
        let print = |name: &str, ok: u64, lost: &Lost, races: u64| {
            println!(
                "{name:<12} {ok:>9} {:>8} {:>6} {:>13} {:>10} {:>6} {:>10} {:>7} {races:>10}",
                lost.refused,
                lost.reset,
                lost.closed,
                lost.truncated,
                lost.wrong,
                lost.timed_out,
                lost.unsent,
            );
        };
        let mut all = Lost::default();
        for group in &report.groups {
            print(named(group), group.ok, &group.lost, group.races);
            let Lost { refused, reset, closed, truncated, wrong, timed_out, unsent } = group.lost;
            all.refused += refused;
            all.reset += reset;
            all.closed += closed;
            all.truncated += truncated;
            all.wrong += wrong;
            all.timed_out += timed_out;
            all.unsent += unsent;
        }
        print("all", report.ok(), &all, report.races());
        for sample in &report.samples {
            println!("  {}", sample.relative_to(report.started));
        }
    }

    pub(crate) fn latencies(&self, report: &Report) {
        println!("\nlatency, ms         between restarts            during restarts");
        println!("                  p50     p99     max         p50     p99     max");
        for group in report.groups.iter().filter(|group| ["fresh", "kept"].contains(&&*group.name))
        {
            let show = |one: &Histogram| {
                let [half, most] = [0.5, 0.99].map(|share| millis(one.quantile(share)));
                format!("{half:>7.2} {most:>7.2} {:>7.2}", millis(one.max()))
            };
            println!("{:<12}  {}     {}", named(group), show(&group.outside), show(&group.inside));
        }
        println!(
            "(the clients themselves were late by {:.2} ms at p99, {:.2} at most)",
            millis(report.generator_lag.quantile(0.99)),
            millis(report.generator_lag.max()),
        );
    }

    pub(crate) fn belongings(&self, first: &Belongings, last: &Belongings, left_over: &[String]) {
        let mib = |belongings: &Belongings| belongings.resident_kib as f64 / 1024.0;
        let (one, other) = (first.descriptors.len(), last.descriptors.len());
        println!("\ngeneration     descriptors  threads  memory, MiB");
        println!("first, idle    {one:>11} {:>8} {:>12.1}", first.threads.len(), mib(first));
        println!("last, idle     {other:>11} {:>8} {:>12.1}", last.threads.len(), mib(last));
        println!("processes and zombies left over: {}", left_over.len());
        for line in left_over {
            println!("  {line}");
        }
    }

    pub(crate) fn verdict(&self, good: bool, restarts: u32, report: &Report) {
        let (answered, lost) = (report.ok(), report.lost() + report.races());
        let verdict = if good { "OK" } else { "FAILED" };
        println!("\n{verdict}: {restarts} restarts, {answered} requests answered, {lost} lost.");
    }
}

fn named(group: &Group) -> &str {
    match group.name.as_str() {
        "fresh" => "new conns",
        "kept" => "keep-alive",
        other => other,
    }
}

fn or_unknown(value: Option<impl Display>) -> String {
    value.map_or_else(|| "?".into(), |value| value.to_string())
}

fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}
