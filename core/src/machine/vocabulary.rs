//! What goes into the machine, what comes out of it, and how long each step may take.

use std::time::Duration;

/// The public states of a process that has started to accept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum State {
    /// It accepts, and no restart is under way.
    Serving,
    /// It accepts, and a successor is being started.
    Forking,
    /// It accepts nothing more on what its successor claimed (or on anything, at a stop) and
    /// finishes what is in flight. A rollback leads back to `Serving`.
    Draining,
    /// Nothing is in flight any more, or it was cut.
    Exited,
}

/// Why a restart did not lead to a new generation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Failure {
    /// The executable could not be started.
    Spawn,
    /// Starting the executable took longer than its deadline. If it starts after all it is killed,
    /// or gives up by itself; until then no other can be started.
    SpawnDeadline,
    /// The successor ended before it was ready.
    Exited,
    /// The successor gave up and said why.
    GaveUp,
    /// This process has no descriptors, memory or threads left for the attempt.
    Resources,
    /// The application state is too large, or could not be provided.
    State,
    /// The successor did not say hello in time.
    HelloDeadline,
    /// The successor was not ready in time.
    ReadyDeadline,
    /// The successor broke the protocol, or closed the handover socket and lived on.
    Protocol,
    /// A hook refused.
    Vetoed,
    /// A hook, or sealing the application state, took too long.
    HookDeadline,
    /// Another restart is under way.
    InProgress,
    /// Too many older generations are still draining.
    TooManyGenerations,
    /// This process is stopping, or has been replaced.
    Stopping,
    /// The successor took over but did not confirm that it serves; this process serves again.
    NotConfirmed,
    /// The successor took over and died; this process serves again.
    DiedAfterCommit,
    /// The last successor ignores even SIGKILL (it hangs in the kernel), or its start still hangs;
    /// until it is gone no other can be started.
    Unkillable,
    /// The process must not leave: it is PID 1, or its supervisor follows only this process.
    Unfollowed,
}

/// Why a process that was to take over must not serve.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum GiveUp {
    /// The predecessor said so.
    Aborted,
    /// The predecessor broke the protocol.
    Protocol,
    /// The handover socket was closed and the predecessor lives.
    LinkLost,
    /// The predecessor did not answer READY in time.
    Deadline,
    /// Another process owns the listeners.
    NotOwner,
    /// The process was told to stop before it served.
    Stopped,
    /// The user's server ended before it served.
    ServerEnded,
}

/// What a successor says, or what its link does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Heard {
    /// It is there and speaks our version.
    Hello,
    /// It claims these listeners and can serve.
    Ready,
    /// It owns the listeners and accepts.
    Serving,
    /// It was told to stop.
    Stopping,
    /// It has a successor of its own that serves.
    Release,
    /// It ends by itself, for a reason that it sent.
    GaveUp,
    /// Something that the protocol does not allow.
    Garbage,
    /// End-of-file or an error: not yet a death.
    Lost,
}

/// What the predecessor says, or what its link does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Told {
    /// The listeners are yours: lock, confirm, accept.
    Commit,
    /// You are not wanted.
    Abort,
    /// It has closed its copies.
    Released,
    /// Something that the protocol does not allow.
    Garbage,
    /// End-of-file or an error: not yet a death.
    Lost,
}

/// The number of a restart attempt of this process, from 1.
pub type Attempt = u32;

/// What can happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Input {
    /// The answer to [`Action::Lock`].
    Locked(bool),
    /// The answer to [`Action::Commit`]: whether the frame was written.
    Committed(bool),
    /// From the successor of this attempt. Its link is not read before `Spawned` was handled, since
    /// its HELLO is checked against the process that was started.
    Successor(Attempt, Heard),
    /// From the predecessor.
    Predecessor(Told),
    /// The successor's process has ended.
    SuccessorDied(Attempt),
    /// The predecessor's process has ended.
    PredecessorDied,
    /// The successor's process exists.
    Spawned(Attempt),
    /// It could not be started.
    SpawnFailed(Attempt),
    /// Told to stop.
    Stop,
    /// Told to end at once.
    Quit,
    /// The user's server future has ended.
    ServerEnded,
    /// Told to restart.
    Restart,
    /// Everything is set up and the before-accept hooks have run.
    Begin,
    /// The answer to [`Action::Vet`].
    Vetted(Attempt, Result<(), Failure>),
    /// The answer to [`Action::Seal`].
    Sealed(Attempt, Result<(), Failure>),
    /// A younger generation asks for room: end the linger, but cut nothing.
    Hurry,
    /// Nothing is in flight and no queue of a closing listener holds a connection.
    Idle,
}

impl Input {
    /// The order of the inputs of one wake-up: answers, frames, deaths, stops, requests, results of
    /// the user's steps. Lower comes first; inputs of the same rank keep their order.
    pub fn rank(&self) -> u8 {
        match self {
            Input::Locked(_) | Input::Committed(_) => 0,
            // Before what the process that was started says, and before its end.
            Input::Spawned(_) | Input::SpawnFailed(_) => 1,
            Input::Successor(..) => 2,
            Input::Predecessor(_) => 3,
            Input::SuccessorDied(_) => 4,
            Input::PredecessorDied => 5,
            Input::Quit => 6,
            Input::Stop => 7,
            Input::ServerEnded => 8,
            Input::Restart => 9,
            Input::Begin => 10,
            Input::Vetted(..) => 11,
            Input::Sealed(..) => 12,
            Input::Hurry => 13,
            Input::Idle => 14,
        }
    }
}

/// What is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Action {
    /// Make room below the generation cap and run the hooks before a restart; answer `Vetted`.
    Vet(Attempt),
    /// Start the successor; answer `Spawned` or `SpawnFailed`.
    Spawn(Attempt),
    /// Send OFFER with every descriptor.
    Offer(Attempt),
    /// Run the hooks before a commit and seal the application state; answer `Sealed`.
    Seal(Attempt),
    /// Close the gates of everything that the successor claimed.
    CloseGates(Attempt),
    /// Give up the ownership.
    Unlock,
    /// Write COMMIT; answer `Committed` at once.
    Commit(Attempt),
    /// Try to become the owner; answer `Locked` at once.
    Lock,
    /// Open the gates: the first accept, or the first after a rollback.
    OpenGates,
    /// Tell the successor to give up.
    Abort(Attempt),
    /// Kill the successor, and what it started and still parents.
    Kill(Attempt),
    /// The attempt is over: forget its link and its process.
    Forget(Attempt),
    /// Answer whoever asked for this restart.
    Report(Attempt, Result<(), Failure>),
    /// Answer the request that was just handled: no.
    Refuse(Failure),
    /// Send READY.
    SayReady,
    /// Send SERVING.
    SayServing,
    /// Send STOPPING to the predecessor.
    SayStopping,
    /// Send RELEASE to the predecessor.
    SayRelease,
    /// Send RELEASED to the successor.
    SayReleased(Attempt),
    /// The successor lives after its probation, stops on purpose, or nobody may go back any more:
    /// close what it claimed, serve what is queued on the rest and close that too.
    LetGo,
    /// A stop begins: say that this process is not ready any more, and go on accepting.
    NotReady,
    /// A final stop: steer new connections away, serve what is queued, close.
    CloseListeners,
    /// The drain signal: connections should end when they can.
    Closing,
    /// Probation was survived.
    Settled,
    /// The successor is dead (or was killed without ever owning the listeners) and this process
    /// serves again.
    RolledBack(Failure),
    /// The drain signal: a server's own graceful shutdown may begin.
    Over,
    /// The drain signal: whatever is left will not be waited for.
    Cut,
    /// The predecessor is gone or cannot be heard; nobody takes over if this process dies.
    Alone,
    /// This process never accepts; `run` returns the error.
    GiveUp(GiveUp),
    /// `run` returns.
    Exit,
}

/// How long each step may take. All are measured from the beginning of their step, except
/// `linger` and `drain`, which count from the commit, and `stop_linger` and `stop_drain`, which
/// count from the stop (or from when the successor that it interrupted and the predecessor are out
/// of the way).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs, reason = "each is a method of `Policy`, where it is documented")]
pub struct Timing {
    pub hooks: Duration,
    pub spawn: Duration,
    pub hello: Duration,
    pub ready: Duration,
    pub commit: Duration,
    pub abort: Duration,
    pub confirm: Duration,
    pub probation: Duration,
    pub linger: Duration,
    pub drain: Duration,
    pub lame_duck: Duration,
    pub stop_linger: Duration,
    pub stop_drain: Duration,
}
