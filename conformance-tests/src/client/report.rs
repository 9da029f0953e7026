//! What the clients saw.

use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use super::histogram::Histogram;
use super::target::Target;
use crate::Stamp;

/// Everything that a load has seen, up to now or up to its end.
#[derive(Clone, Debug)]
pub struct Report {
    /// Where the load went.
    pub target: Target,
    /// When the load began. All other moments are best read relative to this.
    pub started: Stamp,
    /// When it ended, or when this report was taken.
    pub taken: Stamp,
    /// Requests that are on their way at that moment.
    pub in_flight: usize,
    /// One for each kind of load, in the order of the builder's calls.
    pub groups: Vec<Group>,
    /// One for each process that has answered, in the order of first answers.
    pub pids: Vec<Answered>,
    /// The longest time in which no request on a fresh connection succeeded.
    pub longest_gap: Gap,
    /// The stretches that were named with [`Running::mark`](super::Running::mark).
    pub windows: Vec<Window>,
    /// The first few failures of each class, see [`Load::keep_samples`](super::Load::keep_samples).
    pub samples: Vec<Sample>,
    /// How late the generator itself was in sending what was due. If this is
    /// large, the machine was busy and latencies say nothing of the server.
    pub generator_lag: Histogram,
}

/// The counters of one kind of load.
#[derive(Clone, Debug)]
pub struct Group {
    /// `fresh`, `kept`, ...
    pub name: String,
    /// Requests that found a connection and were begun.
    pub sent: u64,
    /// Requests answered right.
    pub ok: u64,
    /// Of those, answered later than the threshold after they were due.
    pub late: u64,
    /// Requests lost, by how.
    pub lost: Lost,
    /// Requests sent on a kept connection that had answered before, and that the
    /// server closed without a byte of this answer. No fault by HTTP's rules, a
    /// failed request to whoever cannot send it again.
    pub races: u64,
    /// Kept connections that the server closed between two requests.
    pub idle_closes: u64,
    /// Kept connections that the server reset between two requests.
    pub idle_resets: u64,
    /// From when a request was due to its complete answer, outside of all windows.
    pub outside: Histogram,
    /// The same for requests that touch a window.
    pub inside: Histogram,
}

/// Requests without a right answer, counted by the way it was missed.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
pub struct Lost {
    /// Nobody listens: `ECONNREFUSED`, `ENOENT` at connect.
    pub refused: u64,
    /// `ECONNRESET`, `EPIPE` before the complete answer.
    pub reset: u64,
    /// Closed in order before any byte of the answer.
    pub closed: u64,
    /// Closed in order within the answer.
    pub truncated: u64,
    /// Another status, body or length than the contract says.
    pub wrong: u64,
    /// Not complete at the request's deadline.
    pub timed_out: u64,
    /// Not sent: the client's own fault (out of descriptors). Counted as lost,
    /// because a load that was not sent must not look like one that was served.
    pub unsent: u64,
}

/// A way to lose a request.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash)]
pub enum Class {
    /// See [`Lost::refused`].
    Refused,
    /// See [`Lost::reset`].
    Reset,
    /// See [`Lost::closed`].
    Closed,
    /// See [`Lost::truncated`].
    Truncated,
    /// See [`Lost::wrong`].
    Wrong,
    /// See [`Lost::timed_out`].
    TimedOut,
    /// See [`Lost::unsent`].
    Unsent,
    /// See [`Group::races`]; not a loss.
    Race,
}

/// The answers of one process.
#[derive(Copy, Clone, Debug)]
pub struct Answered {
    /// The process, as it names itself.
    pub pid: u32,
    /// All its answers.
    pub answers: u64,
    /// The moment of the first of them.
    pub first: Stamp,
    /// The moment of the last of them.
    pub last: Stamp,
    /// The first and last moment of answers on fresh connections: the process
    /// that accepts. Kept and slow connections stay with the old one for longer.
    pub fresh: Option<(Stamp, Stamp)>,
}

/// A stretch without a success.
#[derive(Copy, Clone, Debug, Default)]
pub struct Gap {
    /// When the last success before it came.
    pub from: Stamp,
    /// How long the next one took to come.
    pub length: Duration,
}

/// A named stretch of time, such as a restart.
#[derive(Clone, Debug)]
pub struct Window {
    /// As given to [`Running::mark`](super::Running::mark).
    pub name: String,
    /// Its first moment.
    pub start: Stamp,
    /// Its last moment, if it is over.
    pub end: Option<Stamp>,
    /// Right answers to requests that touch it.
    pub ok: u64,
    /// Requests that touch it and were lost, races included.
    pub failed: u64,
    /// The longest that a right answer took.
    pub max: Duration,
}

/// One failure, told so that it can be found in the timeline.
#[derive(Clone, Debug)]
pub struct Sample {
    /// When it was noticed.
    pub at: Stamp,
    /// When the request had been due.
    pub due: Stamp,
    /// The kind of load.
    pub group: String,
    /// How it was lost.
    pub class: Class,
    /// What the client was doing: connecting, sending, waiting, reading.
    pub phase: &'static str,
    /// Which process it was connected to, if that had answered before.
    pub pid: Option<u32>,
    /// The client's own address, by which a server's connection can be told to be this one.
    pub local: Option<SocketAddr>,
    /// The operating system's error or the reason why the answer was wrong.
    pub detail: String,
}

impl Report {
    /// Requests that were lost, in all groups. Races are counted apart, see [`races`](Self::races).
    #[must_use]
    pub fn lost(&self) -> u64 {
        self.groups.iter().map(|group| group.lost.total()).sum()
    }

    /// Requests on kept connections that a close overtook, in all groups.
    #[must_use]
    pub fn races(&self) -> u64 {
        self.groups.iter().map(|group| group.races).sum()
    }

    /// Requests answered right, in all groups.
    #[must_use]
    pub fn ok(&self) -> u64 {
        self.groups.iter().map(|group| group.ok).sum()
    }

    /// Requests answered right but late, in all groups.
    #[must_use]
    pub fn late(&self) -> u64 {
        self.groups.iter().map(|group| group.late).sum()
    }

    /// The group of that name.
    #[must_use]
    pub fn group(&self, name: &str) -> Option<&Group> {
        self.groups.iter().find(|group| group.name == name)
    }

    /// What the process of that pid has answered.
    #[must_use]
    pub fn answered(&self, pid: u32) -> Option<&Answered> {
        self.pids.iter().find(|answered| answered.pid == pid)
    }

    /// The process that answered a fresh connection last: the one that accepts.
    #[must_use]
    pub fn serving(&self) -> Option<u32> {
        let fresh = self.pids.iter().filter_map(|answered| Some((answered.fresh?.1, answered.pid)));
        fresh.max().map(|(_, pid)| pid)
    }
}

impl Group {
    pub(super) fn new(name: String) -> Self {
        Self {
            name,
            sent: 0,
            ok: 0,
            late: 0,
            lost: Lost::default(),
            races: 0,
            idle_closes: 0,
            idle_resets: 0,
            outside: Histogram::new(),
            inside: Histogram::new(),
        }
    }

    /// All latencies, in windows and outside.
    #[must_use]
    pub fn latency(&self) -> Histogram {
        self.outside.plus(&self.inside)
    }
}

impl Lost {
    /// Their sum.
    #[must_use]
    pub fn total(&self) -> u64 {
        let Self { refused, reset, closed, truncated, wrong, timed_out, unsent } = self;
        refused + reset + closed + truncated + wrong + timed_out + unsent
    }
}

impl Window {
    pub(super) fn touches(&self, from: Stamp, to: Stamp) -> bool {
        self.start <= to && self.end.is_none_or(|end| end >= from)
    }
}

impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Refused => "refused",
            Self::Reset => "reset",
            Self::Closed => "closed",
            Self::Truncated => "truncated",
            Self::Wrong => "wrong",
            Self::TimedOut => "timed out",
            Self::Unsent => "unsent",
            Self::Race => "race",
        })
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = |stamp: Stamp| stamp.since(self.started).as_secs_f64();
        writeln!(
            f,
            "load on {} for {:.1} s: {} ok, {} lost, {} races, {} late, {} in flight",
            self.target,
            seconds(self.taken),
            self.ok(),
            self.lost(),
            self.races(),
            self.late(),
            self.in_flight,
        )?;
        writeln!(
            f,
            "  {:<12} {:>8} {:>6} {:>7} {:>5} {:>6} {:>5} {:>5} {:>4} {:>6} {:>5} {:>9} {:>9} {:>9}",
            "group",
            "ok",
            "late",
            "refused",
            "reset",
            "closed",
            "trunc",
            "wrong",
            "hung",
            "unsent",
            "races",
            "p50 ms",
            "p99 ms",
            "max ms",
        )?;
        for group in &self.groups {
            let (lost, latency) = (&group.lost, group.latency());
            writeln!(
                f,
                "  {:<12} {:>8} {:>6} {:>7} {:>5} {:>6} {:>5} {:>5} {:>4} {:>6} {:>5} {:>9.3} {:>9.3} {:>9.3}",
                group.name,
                group.ok,
                group.late,
                lost.refused,
                lost.reset,
                lost.closed,
                lost.truncated,
                lost.wrong,
                lost.timed_out,
                lost.unsent,
                group.races,
                millis(latency.quantile(0.5)),
                millis(latency.quantile(0.99)),
                millis(latency.max()),
            )?;
        }
        for answered in &self.pids {
            write!(
                f,
                "  pid {}: {} answers, +{:.3} .. +{:.3} s",
                answered.pid,
                answered.answers,
                seconds(answered.first),
                seconds(answered.last),
            )?;
            match answered.fresh {
                Some((first, last)) => {
                    writeln!(f, "; fresh +{:.3} .. +{:.3} s", seconds(first), seconds(last))?;
                }
                None => writeln!(f)?,
            }
        }
        for window in &self.windows {
            writeln!(
                f,
                "  {}: +{:.3} .. +{:.3} s, {} ok, {} failed, max {:.3} ms",
                window.name,
                seconds(window.start),
                seconds(window.end.unwrap_or(self.taken)),
                window.ok,
                window.failed,
                millis(window.max),
            )?;
        }
        writeln!(
            f,
            "  longest gap {:.3} ms at +{:.3} s; generator late by p99 {:.3} ms, max {:.3} ms",
            millis(self.longest_gap.length),
            seconds(self.longest_gap.from),
            millis(self.generator_lag.quantile(0.99)),
            millis(self.generator_lag.max()),
        )?;
        for sample in &self.samples {
            writeln!(f, "  {}", sample.relative_to(self.started))?;
        }
        Ok(())
    }
}

impl Sample {
    /// Without the group's name and the process, which are not always known yet.
    pub(super) fn new(due: Stamp, class: Class, phase: &'static str, detail: String) -> Self {
        Self {
            at: Stamp::now(),
            due,
            group: String::new(),
            class,
            phase,
            pid: None,
            local: None,
            detail,
        }
    }

    /// In one line, with its moments counted from `zero`.
    #[must_use]
    pub fn relative_to(&self, zero: Stamp) -> String {
        let pid = self.pid.map_or(String::new(), |pid| format!(", pid {pid}"));
        format!(
            "+{:.6} s {} {} while {} (due +{:.6} s{pid}): {}",
            self.at.since(zero).as_secs_f64(),
            self.group,
            self.class,
            self.phase,
            self.due.since(zero).as_secs_f64(),
            self.detail,
        )
    }
}

fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}
