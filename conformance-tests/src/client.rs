//! The clients that must notice nothing: a load generator for the servers of this suite.
//!
//! Not a benchmark tool for web servers in general: it speaks the few requests
//! of the suite's contract and is exact about how one is lost, which is what
//! tools of that kind sum up as "errors".
//!
//! ```no_run
//! use std::time::Duration;
//! use handover_conformance::client::{Load, Target};
//!
//! let target: Target = "127.0.0.1:3000".parse()?;
//! let load = Load::builder(target)
//!     .fresh(1500.0)
//!     .kept(16, Duration::ZERO..Duration::from_millis(5))
//!     .slow(2, Duration::from_millis(800))
//!     .start()?;
//! load.wait_for_answers(1_000, Duration::from_secs(5))?;
//! let restart = load.mark("restart 1");
//! // ... restart the server ...
//! drop(restart);
//! let report = load.stop();
//! assert_eq!(report.lost(), 0, "{report}");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # The contract
//!
//! `GET /` is answered with `ok <pid>\n`, `GET /slow?ms=N` after N milliseconds
//! with `slow <pid>\n`, `POST /upload` with `got <pid> <bytes>\n`, and the bare
//! line `PING` with `PONG <pid>`. [`http`](crate::http) is a server's side of it, which
//! has requests for the cases besides: `GET /name`, and `GET /download?bytes=N`, answered with
//! `down <pid>\n` and so many bytes.
//!
//! # Implementation
//!
//! One thread and one epoll instance for all connections. Fresh requests are due
//! at fixed times, whatever the server does, and their latency counts from then:
//! a server that stalls for a second makes 1,500 late requests, not one. The
//! other kinds are closed loops, one request after another.
//! To `127.0.0.0/8` every connection comes from another address of that network.

mod answer;
mod engine;
mod histogram;
mod report;
mod target;
#[cfg(test)]
mod tests;

use std::fmt;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::event::{EventfdFlags, eventfd};

pub use histogram::Histogram;
pub use report::{Answered, Class, Gap, Group, Lost, Report, Sample, Window};
pub use target::Target;

use crate::Stamp;

/// What load to put on a server.
#[derive(Clone, Debug)]
#[must_use = "nothing is sent before `start`"]
pub struct Load {
    target: Target,
    groups: Vec<(String, Kind)>,
    patience: Duration,
    late_after: Duration,
    at_most: Duration,
    any_answer: bool,
    samples: usize,
}

/// A load that is being put on a server. Dropping it ends it at once.
#[derive(Debug)]
#[must_use = "the load ends when this is dropped"]
pub struct Running {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

/// A named stretch of time, which ends when this is dropped.
#[derive(Debug)]
#[must_use = "the window ends when this is dropped"]
pub struct Mark {
    shared: Arc<Shared>,
    index: usize,
}

/// Sees what a load's clients see, also when the load is over.
#[derive(Clone, Debug)]
pub struct Observer {
    shared: Arc<Shared>,
}

/// The condition did not come true in time. Has what the clients had seen by then.
#[derive(Debug)]
pub struct NotInTime(pub Box<Report>);

/// One kind of load.
#[derive(Clone, Debug)]
enum Kind {
    /// A new connection for each request, so many a second.
    Fresh { rate: f64 },
    /// Keep-alive clients. `first` is the pause between a connection and its first request.
    Kept { clients: usize, think: Range<Duration>, first: Range<Duration>, body: Option<usize> },
    /// Requests that take that long.
    Slow { clients: usize, takes: Duration },
    /// Bodies sent in pieces over that time.
    Upload { clients: usize, bytes: usize, over: Duration },
    /// Lines on connections that must never be closed.
    Ping { clients: usize, every: Duration },
}

#[derive(Debug)]
struct Shared {
    // A lock for every answer costs 20 ns and makes each report consistent in
    // itself, which single counters would not.
    state: Mutex<State>,
    changed: Condvar,
    wake: OwnedFd,
}

#[derive(Debug)]
struct State {
    report: Report,
    phase: Phase,
}

#[derive(Copy, Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Phase {
    Sending,
    /// No new requests; those on their way may finish.
    Stopping,
    Aborting,
    Over,
}

impl Load {
    /// A load on `target`, of no requests so far.
    pub fn builder(target: impl Into<Target>) -> Self {
        Self {
            target: target.into(),
            groups: Vec::new(),
            patience: Duration::from_secs(30),
            late_after: Duration::from_millis(500),
            at_most: Duration::from_secs(600),
            any_answer: false,
            samples: 5,
        }
    }

    /// `rate` requests a second, each on a connection of its own. Group `fresh`.
    pub fn fresh(self, rate: f64) -> Self {
        self.group("fresh", Kind::Fresh { rate })
    }

    /// Keep-alive clients that pause for a random time out of `think` between an
    /// answer and the next request. Group `kept`.
    pub fn kept(self, clients: usize, think: Range<Duration>) -> Self {
        let first = Duration::ZERO..Duration::ZERO;
        self.group("kept", Kind::Kept { clients, think, first, body: None })
    }

    /// Keep-alive clients that post `bytes` in each request. Group `kept-post`.
    pub fn kept_post(self, clients: usize, think: Range<Duration>, bytes: usize) -> Self {
        let first = Duration::ZERO..Duration::ZERO;
        self.group("kept-post", Kind::Kept { clients, think, first, body: Some(bytes) })
    }

    /// Keep-alive clients that connect and then leave the connection alone for a
    /// random time out of `first` before its first request, and after each
    /// request end the connection. Group `kept-late`.
    pub fn kept_late(self, clients: usize, first: Range<Duration>) -> Self {
        let think = Duration::ZERO..Duration::ZERO;
        self.group("kept-late", Kind::Kept { clients, think, first, body: None })
    }

    /// Clients that always have a request under way that takes `takes`. Group `slow`.
    pub fn slow(self, clients: usize, takes: Duration) -> Self {
        self.group("slow", Kind::Slow { clients, takes })
    }

    /// Clients that always have an upload of `bytes` under way, sent in pieces
    /// over the time `over`. Group `upload`.
    pub fn upload(self, clients: usize, bytes: usize, over: Duration) -> Self {
        self.group("upload", Kind::Upload { clients, bytes, over })
    }

    /// Clients that send a `PING` line `every` so often on a connection that is
    /// never to be closed: its close is a loss. Group `ping`.
    pub fn ping(self, clients: usize, every: Duration) -> Self {
        self.group("ping", Kind::Ping { clients, every })
    }

    /// How long a request may take (beyond what it is meant to) before it counts
    /// as hung. 30 s unless told otherwise.
    pub fn patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// How long after its due time an answer counts as late. 500 ms unless told otherwise.
    pub fn late_after(mut self, late_after: Duration) -> Self {
        self.late_after = late_after;
        self
    }

    /// The load ends by itself after this time. 10 minutes unless told otherwise.
    pub fn for_at_most(mut self, at_most: Duration) -> Self {
        self.at_most = at_most;
        self
    }

    /// Any answer with status 200 is right: for servers that do not know the contract.
    pub fn any_answer(mut self) -> Self {
        self.any_answer = true;
        self
    }

    /// Tells up to so many failures of each class in full, see [`Report::samples`]. 5 unless told
    /// otherwise.
    pub fn keep_samples(mut self, samples: usize) -> Self {
        self.samples = samples;
        self
    }

    /// Begins to send.
    ///
    /// # Errors
    ///
    /// If the process is out of descriptors or threads.
    pub fn start(self) -> std::io::Result<Running> {
        let now = Stamp::now();
        let report = Report {
            target: self.target.clone(),
            started: now,
            taken: now,
            in_flight: 0,
            groups: self.groups.iter().map(|(name, _)| Group::new(name.clone())).collect(),
            pids: Vec::new(),
            longest_gap: Gap { from: now, length: Duration::ZERO },
            windows: Vec::new(),
            samples: Vec::new(),
            generator_lag: Histogram::new(),
        };
        let shared = Arc::new(Shared {
            state: Mutex::new(State { report, phase: Phase::Sending }),
            changed: Condvar::new(),
            wake: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
        });
        let engine = engine::Engine::new(self, Arc::clone(&shared), now)?;
        let thread = std::thread::Builder::new().name("load".into()).spawn(|| engine.run())?;
        Ok(Running { shared, thread: Some(thread) })
    }

    fn group(mut self, name: &str, kind: Kind) -> Self {
        // The same kind twice: each has a name of its own in the report.
        let same = self.groups.iter().filter(|(other, _)| other.starts_with(name)).count();
        let taken = self.groups.iter().any(|(other, _)| other == name);
        let name = if taken { format!("{name}-{}", same + 1) } else { name.into() };
        self.groups.push((name, kind));
        self
    }
}

impl Running {
    /// What the clients have seen so far.
    #[must_use]
    pub fn snapshot(&self) -> Report {
        self.shared.lock().snapshot()
    }

    /// Somebody else who can take reports.
    #[must_use]
    pub fn observer(&self) -> Observer {
        Observer { shared: Arc::clone(&self.shared) }
    }

    /// Names the time from now until the value is dropped, to compare what
    /// happens in it with what happens outside.
    pub fn mark(&self, name: impl Into<String>) -> Mark {
        let mut state = self.shared.lock();
        state.report.windows.push(Window {
            name: name.into(),
            start: Stamp::now(),
            end: None,
            ok: 0,
            failed: 0,
            max: Duration::ZERO,
        });
        Mark { shared: Arc::clone(&self.shared), index: state.report.windows.len() - 1 }
    }

    /// Waits until what the clients have seen meets `condition`, which is looked
    /// at after every answer and every loss.
    ///
    /// # Errors
    ///
    /// After `within`, or when the load has ended by itself.
    pub fn wait_until(
        &self,
        within: Duration,
        mut condition: impl FnMut(&Report) -> bool,
    ) -> Result<Report, NotInTime> {
        let deadline = Stamp::now() + within;
        let mut state = self.shared.lock();
        loop {
            if condition(&state.report) {
                return Ok(state.snapshot());
            }
            let left = deadline.since(Stamp::now());
            if left.is_zero() || state.phase == Phase::Over {
                return Err(NotInTime(Box::new(state.snapshot())));
            }
            state = self
                .shared
                .changed
                .wait_timeout(state, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }

    /// Waits for that many more right answers.
    ///
    /// # Errors
    ///
    /// If they have not come `within` that time.
    pub fn wait_for_answers(&self, more: u64, within: Duration) -> Result<Report, NotInTime> {
        let before = self.shared.lock().report.ok();
        self.wait_until(within, |report| report.ok() >= before + more)
    }

    /// Waits until another process than `old` answers fresh connections, and gives its pid.
    ///
    /// # Errors
    ///
    /// If none has `within` that time.
    pub fn wait_for_successor(&self, old: u32, within: Duration) -> Result<u32, NotInTime> {
        let report =
            self.wait_until(within, |report| report.serving().is_some_and(|pid| pid != old))?;
        Ok(report.serving().unwrap_or(old))
    }

    /// Sends nothing more, waits for what is on its way (each request up to its
    /// own deadline), and gives the whole account.
    #[must_use = "a load whose report nobody reads proves nothing"]
    pub fn stop(self) -> Report {
        self.shared.advance(Phase::Stopping);
        self.wait()
    }

    /// Waits until the load ends by itself, see [`Load::for_at_most`].
    #[must_use = "a load whose report nobody reads proves nothing"]
    pub fn wait(mut self) -> Report {
        if let Some(thread) = self.thread.take() {
            // A panic of the engine would lose its counts without a word.
            if let Err(panic) = thread.join() {
                std::panic::resume_unwind(panic);
            }
        }
        self.shared.lock().report.clone()
    }
}

impl Observer {
    /// What the clients have seen so far.
    #[must_use]
    pub fn snapshot(&self) -> Report {
        self.shared.lock().snapshot()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(thread) = self.thread.take() {
            self.shared.advance(Phase::Aborting);
            // A panic was printed by its thread, and this may run during another one.
            let _ = thread.join();
        }
    }
}

impl Drop for Mark {
    fn drop(&mut self) {
        self.shared.lock().report.windows[self.index].end = Some(Stamp::now());
    }
}

impl fmt::Display for NotInTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the clients did not see it in time; what they saw:\n{}", self.0)
    }
}

impl std::error::Error for NotInTime {}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn advance(&self, phase: Phase) {
        let mut state = self.lock();
        state.phase = state.phase.max(phase);
        drop(state);
        // The counter of an eventfd cannot be full after a handful of writes.
        let _ = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
    }
}

impl State {
    fn snapshot(&self) -> Report {
        let mut report = self.report.clone();
        if self.phase != Phase::Over {
            report.taken = Stamp::now();
        }
        report
    }
}
