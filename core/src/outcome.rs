use std::fmt;
use std::time::Duration;

use crate::machine::Failure;
use crate::spawn::Ended;

/// A successful restart: who took over, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Takeover {
    /// The process that serves now.
    pub pid: u32,
    /// Its generation; the first process is 1.
    pub generation: u32,
    /// How long each step took.
    pub steps: Steps,
    /// Names that it took over.
    pub claimed: Vec<String>,
    /// Names that it bound anew.
    pub bound: Vec<String>,
    /// Names that it did not ask for, or wants elsewhere. They are served here until probation is
    /// over, then what is queued is served, and they are closed.
    pub dropped: Vec<String>,
    /// Connections and other work in flight here at the commit.
    pub in_flight: u64,
}

/// How long the steps of a restart took.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Steps {
    /// Room below the generation cap, the hooks before the restart, and the application state as it
    /// is then.
    pub prepare: Duration,
    /// Until the successor's process existed.
    pub spawn: Duration,
    /// Until the library's `start` ran in it.
    pub hello: Duration,
    /// Until it was ready to serve: the program's own initialisation.
    pub ready: Duration,
    /// The hooks before the commit, and the application state as it is then.
    pub seal: Duration,
    /// From the closed gate to the confirmation that the successor serves: the longest that a new
    /// connection waited.
    pub switch: Duration,
}

impl Steps {
    /// All of it.
    pub fn total(&self) -> Duration {
        self.prepare + self.spawn + self.hello + self.ready + self.seal + self.switch
    }
}

/// Why a restart did not happen, or was taken back. This process serves as before, unless it is
/// stopping.
#[derive(Debug, Clone)]
pub struct RestartError {
    pub(crate) failure: Failure,
    pub(crate) detail: Option<String>,
    pub(crate) os_error: Option<i32>,
    pub(crate) ended: Option<Ended>,
}

impl RestartError {
    pub(crate) fn new(failure: Failure) -> Self {
        Self { failure, detail: None, os_error: None, ended: None }
    }

    /// The class of the failure.
    pub fn failure(&self) -> Failure {
        self.failure
    }

    /// What the successor, a hook or the operating system said, where one said something.
    pub fn detail(&self) -> Option<&str> {
        self.detail.as_deref()
    }

    /// The operating system's error code, if a system call was the cause.
    pub fn raw_os_error(&self) -> Option<i32> {
        self.os_error
    }

    /// How the successor's process ended, if it did and that could be learnt.
    pub fn ended(&self) -> Option<&Ended> {
        self.ended.as_ref()
    }
}

impl fmt::Display for RestartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match self.failure {
            Failure::Spawn => "the successor could not be started",
            Failure::SpawnDeadline => "starting the successor took too long",
            Failure::Exited => "the successor ended before it was ready",
            Failure::GaveUp => "the successor gave up",
            Failure::Resources => "this process lacks the resources for it",
            Failure::State => "the application state could not be sealed",
            Failure::HelloDeadline => "the successor did not say hello in time",
            Failure::ReadyDeadline => "the successor was not ready in time",
            Failure::Protocol => "the successor broke the protocol",
            Failure::Vetoed => "a hook refused",
            Failure::HookDeadline => "the hooks before the step took too long",
            Failure::InProgress => "another restart is under way",
            Failure::TooManyGenerations => "too many older generations are still draining",
            Failure::Stopping => "this process is stopping or has been replaced",
            Failure::NotConfirmed => "the successor did not confirm that it serves",
            Failure::DiedAfterCommit => "the successor died after it had taken over",
            Failure::Unkillable => "an earlier successor cannot be ended",
            Failure::Unfollowed => "the service would end with this process",
        };
        write!(f, "restart: {what}")?;
        if let Some(detail) = &self.detail {
            write!(f, ": {detail}")?;
        }
        if let Some(ended) = &self.ended {
            write!(f, " ({ended})")?;
        }
        Ok(())
    }
}

impl std::error::Error for RestartError {}

/// How an instance ended: what [`run`](crate::Start::run) returns.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Exit {
    /// The process that took over, or `None` after a stop.
    pub successor: Option<u32>,
    /// From the commit, or the stop, to the end.
    pub drained: Duration,
    /// Connections and other work that were still in flight at the drain deadline, and are cut by
    /// the end of the process.
    pub cut: u64,
}

/// What the future given to [`run`](crate::Start::run) may return: nothing, or a result whose
/// error becomes the error of `run`.
pub trait ServerOutput {
    /// The server's error, if it failed.
    fn into_error(self) -> Option<Box<dyn std::error::Error + Send + Sync>>;
}

/// A loop without an end: what an `async` block around a bare `accept` loop returns.
impl ServerOutput for Never {
    fn into_error(self) -> Option<Box<dyn std::error::Error + Send + Sync>> {
        match self {}
    }
}

/// The type `!`, which has no stable name of its own yet.
type Never = <fn() -> ! as Returns>::Output;

use never::Returns;

mod never {
    /// Names what a function type returns.
    #[allow(unreachable_pub, reason = "it stands in the header of a public impl")]
    pub trait Returns {
        type Output;
    }

    impl<T> Returns for fn() -> T {
        type Output = T;
    }
}

impl ServerOutput for () {
    fn into_error(self) -> Option<Box<dyn std::error::Error + Send + Sync>> {
        None
    }
}

impl<E: Into<Box<dyn std::error::Error + Send + Sync>>> ServerOutput for Result<(), E> {
    fn into_error(self) -> Option<Box<dyn std::error::Error + Send + Sync>> {
        self.err().map(Into::into)
    }
}
