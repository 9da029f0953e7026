//! Load, ten restarts, and the account of them.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use handover_conformance::client::{Load, Report, Running};
use handover_conformance::hygiene::Belongings;
use handover_conformance::signal::{Process, Signal};
use handover_conformance::{Doing, Failure, Stamp, poll_until};

use crate::fleet::{Fleet, Told};
use crate::view::{Row, View};

const RESTARTS: u32 = 10;
/// New connections a second, each due at its time whatever the server does.
const FRESH: f64 = 1000.0;
const KEPT: usize = 12;
const SLOW: usize = 4;
/// How much longer than the takeover a restart counts as going on, for the latencies.
const AFTERMATH: Duration = Duration::from_millis(250);
const BETWEEN: Duration = Duration::from_millis(300);

struct Story {
    load: Running,
    fleet: Fleet,
    view: View,
    interrupted: Arc<AtomicBool>,
    /// Zombies and processes too many, with a line for each.
    left_over: Vec<String>,
}

/// Whether nothing was lost and nothing left behind.
pub(crate) fn run() -> Result<bool, Failure> {
    let interrupted = on_interrupt()?;
    let mut fleet = Fleet::start()?;
    let up = fleet.hear("up", Duration::from_secs(10), |told| told.what == "up")?;
    let target = ([127, 0, 0, 1], up.number("port") as u16).into();
    let first = serving_and_idle(up.number("pid") as u32, target)?;

    let view = View::new();
    view.title(&format!(
        "Serving on {target}. Load: {FRESH} new connections/s, {KEPT} keep-alive clients, \
         {SLOW} slow requests and an upload always in flight."
    ));
    let load = Load::builder(target)
        .fresh(FRESH)
        .kept(KEPT, Duration::ZERO..Duration::from_millis(20))
        .slow(SLOW, Duration::from_millis(600))
        .upload(1, 256 * 1024, Duration::from_millis(900))
        .start()?;
    let mut story = Story { load, fleet, view, interrupted, left_over: Vec::new() };
    let mut serving = up.number("pid") as u32;
    story.wait(Duration::from_secs(10), "warming up", |_, report| report.ok() > 1000)?;
    for number in 1..=RESTARTS {
        serving = story.restart(number, serving)?;
    }
    story.end(serving, &first)
}

impl Story {
    /// Replaces the program and the process, and says which serves now.
    fn restart(&mut self, number: u32, old: u32) -> Result<u32, Failure> {
        self.fleet.install(number + 1)?;
        let process = Process::open(old)?;
        let before = self.load.snapshot();
        let mark = self.load.mark(format!("restart {number}"));
        let triggered = Stamp::now();
        process.signal(Signal::HUP)?;

        let doing = format!("restart {number} of {RESTARTS}: waiting for a new process");
        let report = self.wait(Duration::from_secs(20), &doing, |_, report| {
            report.serving().is_some_and(|pid| pid != old)
        })?;
        let new = report.serving().unwrap_or(old);
        let first = report.answered(new).and_then(|answered| answered.fresh);
        let took = first.map_or(Duration::ZERO, |(first, _)| first.since(triggered));
        let soon = Duration::from_secs(5);
        let steps = self.fleet.hear("restarted", soon, |told| told.what == "restarted")?;
        let up = self.fleet.hear("up", soon, |told| told.what == "up")?;

        let doing = format!("restart {number} of {RESTARTS}: {new} serves, {old} finishes");
        let end = Stamp::now() + AFTERMATH;
        self.wait(AFTERMATH * 4, &doing, |_, _| Stamp::now() >= end)?;
        drop(mark);
        let gone = self.wait(Duration::from_secs(20), &doing, |_, _| process.is_gone()).is_ok();
        let gone = gone.then(|| Stamp::now().since(triggered));
        let end = Stamp::now() + BETWEEN;
        let after = self.wait(BETWEEN * 4, &doing, |_, _| Stamp::now() >= end)?;
        let left = self.fleet.heard(|told| told.what == "left");
        self.look_for_leavings(number, Some(new));
        self.view.row(&Row {
            number,
            old,
            new,
            build: up.number("build"),
            took,
            steps,
            finished: left.as_ref().map(|left| left.number("finished")),
            gone,
            lost: lost(&after) - lost(&before) + left.map_or(0, |left| left.number("cut")),
        });
        Ok(new)
    }

    fn end(mut self, serving: u32, first: &Belongings) -> Result<bool, Failure> {
        self.view.progress("the load ends");
        let report = self.load.stop();
        // The last connections are closed by the clients, which the server has yet to see.
        let idle = || {
            let last = Belongings::of(serving).ok()?;
            (last.descriptors.len() <= first.descriptors.len()).then_some(last)
        };
        let last = match poll_until(Duration::from_secs(3), "idle connections", idle) {
            Ok(last) => last,
            Err(_) => Belongings::of(serving)?,
        };
        self.view.progress("the last generation stops");
        let left = self.fleet.stop(serving)?;
        let mut left_over = std::mem::take(&mut self.left_over);
        left_over
            .extend(self.fleet.left_over(None).iter().map(|process| format!("end: {process}")));

        self.view.clear();
        self.view.failures(&report);
        self.view.latencies(&report);
        self.view.belongings(first, &last, &left_over);
        let more = last.descriptors.len().saturating_sub(first.descriptors.len()) as u64;
        let good = lost(&report) + left.number("cut") + more == 0 && left_over.is_empty();
        self.view.verdict(good, RESTARTS, &report);
        Ok(good)
    }

    /// Waits, while showing how it goes.
    fn wait(
        &mut self,
        within: Duration,
        doing: &str,
        mut condition: impl FnMut(&mut Fleet, &Report) -> bool,
    ) -> Result<Report, Failure> {
        const LOOK: Duration = Duration::from_millis(20);
        let deadline = Stamp::now() + within;
        loop {
            let report = self.load.snapshot();
            self.view.load(doing, &report);
            if condition(&mut self.fleet, &report) {
                return Ok(report);
            }
            if self.interrupted.load(Ordering::Relaxed) {
                self.view.clear();
                return Err(Failure::new("interrupted"));
            }
            if let Some(Told { line, .. }) = self.fleet.heard(|told| told.what == "failed") {
                return Err(Failure::new(format!("{doing}: {line}")));
            }
            if Stamp::now() >= deadline {
                return Err(Failure::new(format!("{doing}: not within {within:?}\n{report}")));
            }
            std::thread::sleep(LOOK);
        }
    }

    fn look_for_leavings(&mut self, number: u32, serving: Option<u32>) {
        let found = self.fleet.left_over(serving);
        let lines = found.iter().map(|process| format!("after restart {number}: {process}"));
        self.left_over.extend(lines);
    }
}

/// What a process owns that has answered something and has nothing in flight.
fn serving_and_idle(pid: u32, target: SocketAddr) -> Result<Belongings, Failure> {
    let mut stream = TcpStream::connect(target).doing("connecting")?;
    let request = b"GET / HTTP/1.1\r\nHost: demo\r\nConnection: close\r\n\r\n";
    stream.write_all(request).doing("asking")?;
    stream.read_to_end(&mut Vec::new()).doing("reading the answer")?;
    drop(stream);
    let mut before = Belongings::of(pid)?;
    poll_until(Duration::from_secs(3), "the first connection's end", || {
        std::thread::sleep(Duration::from_millis(20));
        let now = Belongings::of(pid).ok()?;
        let same = now.descriptors == before.descriptors;
        before = now.clone();
        same.then_some(now)
    })
}

/// Requests without a right answer: also those on a kept connection that was closed under them.
fn lost(report: &Report) -> u64 {
    report.lost() + report.races()
}

/// A flag that Ctrl-C and SIGTERM set: the story then ends early, and cleans up behind itself.
fn on_interrupt() -> Result<Arc<AtomicBool>, Failure> {
    use tokio::signal::unix::{SignalKind, signal};
    let flag = Arc::new(AtomicBool::new(false));
    let set = Arc::clone(&flag);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (mut interrupt, mut terminate) = {
        let _context = runtime.enter();
        let interrupt = signal(SignalKind::interrupt()).doing("catching SIGINT")?;
        (interrupt, signal(SignalKind::terminate()).doing("catching SIGTERM")?)
    };
    std::thread::Builder::new().name("signals".into()).spawn(move || {
        runtime.block_on(async {
            tokio::select! { _ = interrupt.recv() => {}, _ = terminate.recv() => {} }
        });
        set.store(true, Ordering::Relaxed);
    })?;
    Ok(flag)
}
