//! The restart state machine: inputs in, actions out, time passed in.
//!
//! It does no input or output, reads no clock and owns no descriptor. How to drive it:
//!
//! 1. Collect what one wake-up brought, order it by [`Input::rank`] (stable: frames of one link
//!    keep their order), and give each input to [`Machine::handle`]. Look at the pidfds *before*
//!    the links are read to their end: a death that was seen only afterwards may hide frames that
//!    were written in between, and it waits for the next wake-up.
//! 2. After *each* input take [`Machine::poll_action`] until it is `None`, and carry each action
//!    out. [`Action::Lock`] and [`Action::Commit`] are answered at once, with
//!    [`Input::Locked`] and [`Input::Committed`], before anything else is given.
//! 3. When the inputs are used up, call [`Machine::handle_timeout`] with the present time (it is
//!    harmless to call it early or often), carry its actions out, and sleep until
//!    [`Machine::poll_timeout`].
//!
//! Inputs about a successor carry the number of its attempt; those of an older attempt change
//! nothing. Every phase that waits for somebody else has a deadline.

use std::collections::VecDeque;
use std::hash::{Hash, Hasher};
use std::time::{Duration, Instant};

mod vocabulary;

pub use vocabulary::{Action, Attempt, Failure, GiveUp, Heard, Input, State, Timing, Told};

/// How long the kernel may take to end a process after SIGKILL before we call it unkillable.
const UNKILLABLE: Duration = Duration::from_secs(5);
/// A dying process closes its sockets before its pidfd becomes readable: how long to wait for the
/// second after the first before concluding that it lives.
const DYING: Duration = Duration::from_secs(1);
/// How long a stopping process waits for its predecessor to close its copies.
const FAREWELL: Duration = Duration::from_secs(1);

/// A point in time that is not part of a state's identity: two machines that differ only in when
/// their deadlines fall are the same state.
#[derive(Debug, Clone, Copy)]
pub struct Deadline(pub Instant);

impl PartialEq for Deadline {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for Deadline {}

impl Hash for Deadline {
    fn hash<H: Hasher>(&self, _: &mut H) {}
}

/// The part of a restart before the commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Step {
    Vetting,
    Spawning,
    Hello,
    Ready,
    Sealing,
    /// COMMIT is being written, or failed to be and the lock is being taken back.
    Committing,
    /// The successor is to end; `killed` once SIGKILL was sent.
    Aborting {
        why: Failure,
        stop: bool,
        killed: bool,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Phase {
    /// Before the first accept: the user's program initialises.
    Initialising,
    /// READY was sent, or would have been if the predecessor were there.
    AwaitingCommit {
        deadline: Deadline,
    },
    /// The lock is being tried for the first accept.
    Taking {
        committed: bool,
    },
    Serving,
    Forking {
        step: Step,
        deadline: Deadline,
    },
    /// Committed; the successor has not confirmed yet.
    Confirming {
        deadline: Deadline,
        fate: Fate,
        drain: Drain,
    },
    /// The successor serves; this process is its heir.
    Probation {
        deadline: Deadline,
        drain: Drain,
    },
    /// The successor is dead; the lock is being tried.
    Resuming {
        why: Failure,
        reported: bool,
        drain: Drain,
    },
    /// STOPPING was sent; the predecessor closes its copies.
    Farewell {
        deadline: Deadline,
    },
    /// Told to stop; it still accepts, while load balancers learn that they should not send.
    LameDuck {
        deadline: Deadline,
    },
    /// Irreversible. `linger` is `None` once it is over.
    Leaving {
        linger: Option<Deadline>,
        drain: Deadline,
        stopped: bool,
    },
    Exited,
}

/// What became of a successor that has not confirmed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Fate {
    Awaited,
    Killed,
    /// Killed in vain: it hangs in the kernel and holds the lock.
    Unkillable,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Drain {
    linger: Deadline,
    end: Deadline,
}

/// The relation to the process before this one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Predecessor {
    /// There is none, or none that matters any more.
    None,
    /// It offered and lives.
    Offering,
    /// Its link is lost; its death may be on its way.
    Lost { deadline: Deadline },
    /// It died before it committed.
    Dead,
    /// It committed and keeps its copies until it releases them.
    Heir,
}

/// The state machine of one process. See the [module](self) for how to drive it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Machine {
    timing: Timing,
    phase: Phase,
    predecessor: Predecessor,
    attempt: Attempt,
    /// An attempt whose process could not be ended in time, or whose start never returned.
    ghost: Option<Attempt>,
    actions: VecDeque<Action>,
}

impl Machine {
    /// The machine of a process that initialises: with a predecessor whose whole OFFER has been
    /// read, or as the first generation.
    pub fn new(timing: Timing, has_predecessor: bool) -> Self {
        Self {
            timing,
            phase: Phase::Initialising,
            predecessor: if has_predecessor { Predecessor::Offering } else { Predecessor::None },
            attempt: 0,
            ghost: None,
            actions: VecDeque::new(),
        }
    }

    /// The public state, or `None` before the first accept.
    pub fn state(&self) -> Option<State> {
        match self.phase {
            Phase::Initialising | Phase::AwaitingCommit { .. } | Phase::Taking { .. } => None,
            Phase::Serving | Phase::Farewell { .. } | Phase::LameDuck { .. } => {
                Some(State::Serving)
            }
            Phase::Forking { .. } => Some(State::Forking),
            Phase::Confirming { .. }
            | Phase::Probation { .. }
            | Phase::Resuming { .. }
            | Phase::Leaving { .. } => Some(State::Draining),
            Phase::Exited => Some(State::Exited),
        }
    }

    /// The number of the present or the last attempt.
    pub fn attempt(&self) -> Attempt {
        self.attempt
    }

    /// Whether a stop, not a successor, is the reason for draining.
    pub fn is_stopping(&self) -> bool {
        matches!(
            self.phase,
            Phase::Leaving { stopped: true, .. } | Phase::Farewell { .. } | Phase::LameDuck { .. }
        )
    }

    /// Whether probation is over, so that nothing leads back to serving.
    pub fn is_leaving(&self) -> bool {
        matches!(self.phase, Phase::Leaving { .. } | Phase::Exited)
    }

    /// The next thing to do, or `None` when everything has been handed out.
    pub fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// When [`handle_timeout`](Self::handle_timeout) has something to do next.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let phase = match self.phase {
            Phase::AwaitingCommit { deadline }
            | Phase::Forking { deadline, .. }
            | Phase::Confirming { deadline, .. }
            | Phase::Probation { deadline, .. }
            | Phase::Farewell { deadline }
            | Phase::LameDuck { deadline } => Some(deadline.0),
            Phase::Leaving { linger: Some(linger), drain, .. } => Some(linger.0.min(drain.0)),
            Phase::Leaving { drain, .. } => Some(drain.0),
            Phase::Initialising
            | Phase::Taking { .. }
            | Phase::Serving
            | Phase::Resuming { .. }
            | Phase::Exited => None,
        };
        let lost = match self.predecessor {
            Predecessor::Lost { deadline } => Some(deadline.0),
            _ => None,
        };
        [phase, lost].into_iter().flatten().min()
    }

    /// Acts on every deadline that has passed.
    pub fn handle_timeout(&mut self, now: Instant) {
        if let Predecessor::Lost { deadline } = self.predecessor
            && deadline.0 <= now
        {
            self.give_up(GiveUp::LinkLost);
        }
        match self.phase {
            Phase::AwaitingCommit { deadline } if deadline.0 <= now => {
                self.give_up(GiveUp::Deadline);
            }
            Phase::Forking { step, deadline } if deadline.0 <= now => self.step_timeout(step, now),
            Phase::Confirming { deadline, fate, drain } if deadline.0 <= now => match fate {
                Fate::Awaited => self.kill(drain, now),
                // Whoever was killed never takes the lock later. If it holds it, nobody else may
                // accept; if it never got as far, nobody but us would.
                Fate::Killed => {
                    let why = Failure::Unkillable;
                    self.phase = Phase::Resuming { why, reported: false, drain };
                    self.push(Action::Lock);
                }
                Fate::Unkillable => self.let_go(drain),
            },
            Phase::Probation { deadline, drain } if deadline.0 <= now => {
                self.push(Action::Settled);
                self.let_go(drain);
            }
            Phase::Farewell { deadline } if deadline.0 <= now => {
                self.predecessor = Predecessor::None;
                self.drain_to_stop(now);
            }
            Phase::LameDuck { deadline } if deadline.0 <= now => self.close_listeners(now),
            _ => {}
        }
        // Not in the match above: a phase that was just left for this one may be past its own.
        if let Phase::Leaving { linger, drain, stopped } = self.phase {
            if drain.0 <= now {
                if linger.is_some() {
                    self.push(Action::Over);
                }
                self.cut();
            } else if linger.is_some_and(|linger| linger.0 <= now) {
                self.push(Action::Over);
                self.phase = Phase::Leaving { linger: None, drain, stopped };
            }
        }
    }

    /// Takes one input. `now` must not be earlier than at the last call.
    pub fn handle(&mut self, input: Input, now: Instant) {
        match input {
            Input::Locked(won) => self.locked(won, now),
            Input::Committed(written) => self.committed(written, now),
            Input::Successor(attempt, heard) => {
                // A ghost has nothing to say any more.
                if attempt == self.attempt && self.ghost.is_none() {
                    self.heard(heard, now);
                }
            }
            Input::Predecessor(told) => self.told(told, now),
            Input::SuccessorDied(attempt) => self.successor_died(attempt, now),
            Input::PredecessorDied => self.predecessor_died(now),
            Input::Spawned(attempt) => self.spawned(attempt, now),
            Input::SpawnFailed(attempt) => self.spawn_failed(attempt, now),
            Input::Stop => self.stop(now),
            Input::Quit => self.quit(),
            Input::ServerEnded => self.server_ended(now),
            Input::Restart => self.restart(now),
            Input::Begin => self.begin(now),
            Input::Vetted(attempt, verdict) if attempt == self.attempt => {
                if let Phase::Forking { step: Step::Vetting, .. } = self.phase {
                    match verdict {
                        Ok(()) => {
                            self.push(Action::Spawn(attempt));
                            self.step(Step::Spawning, now + self.timing.spawn);
                        }
                        Err(why) => self.failed(why, false, now),
                    }
                }
            }
            Input::Sealed(attempt, verdict) if attempt == self.attempt => {
                if let Phase::Forking { step: Step::Sealing, .. } = self.phase {
                    match verdict {
                        Ok(()) => {
                            self.push(Action::CloseGates(attempt));
                            self.push(Action::Unlock);
                            self.push(Action::Commit(attempt));
                            self.step(Step::Committing, now + self.timing.confirm);
                        }
                        Err(why) => self.abort(why, false, now),
                    }
                }
            }
            Input::Vetted(..) | Input::Sealed(..) => {}
            Input::Hurry => {
                if let Phase::Leaving { linger: Some(_), drain, stopped } = self.phase {
                    self.push(Action::Over);
                    self.phase = Phase::Leaving { linger: None, drain, stopped };
                }
            }
            Input::Idle => {
                if let Phase::Leaving { .. } = self.phase {
                    self.exit();
                }
            }
        }
    }

    // Before the first accept.

    fn begin(&mut self, now: Instant) {
        if self.phase != Phase::Initialising {
            return;
        }
        match self.predecessor {
            Predecessor::Offering => {
                self.push(Action::SayReady);
                self.await_commit(now);
            }
            Predecessor::Lost { .. } => self.await_commit(now),
            Predecessor::None | Predecessor::Dead | Predecessor::Heir => self.take(false),
        }
    }

    fn await_commit(&mut self, now: Instant) {
        // The predecessor's hooks and its sealing lie between our READY and its COMMIT.
        self.phase = Phase::AwaitingCommit { deadline: Deadline(now + self.timing.commit) };
    }

    fn take(&mut self, committed: bool) {
        self.push(Action::Lock);
        self.phase = Phase::Taking { committed };
    }

    fn told(&mut self, told: Told, now: Instant) {
        match (self.phase, told) {
            (Phase::AwaitingCommit { .. }, Told::Commit) => self.take(true),
            (Phase::Initialising | Phase::AwaitingCommit { .. }, told) => match told {
                Told::Abort => self.give_up(GiveUp::Aborted),
                Told::Lost => {
                    if self.predecessor == Predecessor::Offering {
                        self.predecessor = Predecessor::Lost { deadline: Deadline(now + DYING) };
                    }
                }
                Told::Commit | Told::Released | Told::Garbage => self.give_up(GiveUp::Protocol),
            },
            (Phase::Farewell { .. }, Told::Released | Told::Lost | Told::Garbage) => {
                self.predecessor = Predecessor::None;
                self.drain_to_stop(now);
            }
            (_, Told::Released) => {
                if self.predecessor == Predecessor::Heir {
                    self.predecessor = Predecessor::None;
                }
            }
            (_, Told::Lost | Told::Garbage) => self.alone(),
            (_, Told::Commit | Told::Abort) => {}
        }
    }

    fn predecessor_died(&mut self, now: Instant) {
        match self.phase {
            Phase::Initialising => self.predecessor = Predecessor::Dead,
            Phase::AwaitingCommit { .. } => {
                self.predecessor = Predecessor::Dead;
                self.take(false);
            }
            Phase::Farewell { .. } => {
                self.predecessor = Predecessor::None;
                self.drain_to_stop(now);
            }
            _ => self.alone(),
        }
    }

    fn alone(&mut self) {
        if self.predecessor == Predecessor::Heir {
            self.predecessor = Predecessor::None;
            self.push(Action::Alone);
        }
    }

    fn give_up(&mut self, why: GiveUp) {
        self.push(Action::GiveUp(why));
        self.exited();
    }

    // The ownership.

    fn locked(&mut self, won: bool, now: Instant) {
        match self.phase {
            Phase::Taking { committed } => {
                if !won {
                    return self.give_up(GiveUp::NotOwner);
                }
                if committed {
                    self.push(Action::SayServing);
                    self.predecessor = Predecessor::Heir;
                } else if self.predecessor == Predecessor::Dead {
                    self.predecessor = Predecessor::None;
                    self.push(Action::Alone);
                }
                self.push(Action::OpenGates);
                self.phase = Phase::Serving;
            }
            Phase::Forking { step: Step::Committing, .. } => {
                if won {
                    self.push(Action::OpenGates);
                    self.abort(Failure::Exited, false, now);
                } else {
                    // Nobody read a COMMIT from us, so this is an ancestor that serves again.
                    self.report(Err(Failure::Exited));
                    self.push(Action::Closing);
                    self.release(self.drain_from(now));
                }
            }
            Phase::Resuming { why, reported, drain } => {
                let unkillable = why == Failure::Unkillable;
                if unkillable && !won {
                    // It holds the lock, and falls with it: stay the heir while we are here.
                    let fate = Fate::Unkillable;
                    self.phase = Phase::Confirming { deadline: drain.end, fate, drain };
                    return;
                }
                if won {
                    self.phase = Phase::Serving;
                    self.push(Action::OpenGates);
                    self.push(Action::RolledBack(why));
                }
                if !reported {
                    self.report(Err(why));
                }
                if unkillable {
                    self.ghost = Some(self.attempt);
                } else {
                    self.push(Action::Forget(self.attempt));
                }
                if !won {
                    // A younger generation serves: go on draining.
                    self.release(drain);
                }
            }
            _ => {}
        }
    }

    // The restart.

    fn restart(&mut self, now: Instant) {
        match self.phase {
            Phase::Serving if self.ghost.is_some() => self.refuse(Failure::Unkillable),
            Phase::Serving => {
                self.attempt += 1;
                self.push(Action::Vet(self.attempt));
                self.step(Step::Vetting, now + self.timing.hooks);
            }
            Phase::Forking { step: Step::Aborting { stop: true, .. }, .. } => {
                self.refuse(Failure::Stopping);
            }
            // Before the first accept this process is itself the restart.
            Phase::Forking { .. }
            | Phase::Initialising
            | Phase::AwaitingCommit { .. }
            | Phase::Taking { .. } => self.refuse(Failure::InProgress),
            _ => self.refuse(Failure::Stopping),
        }
    }

    fn spawned(&mut self, attempt: Attempt, now: Instant) {
        if self.ghost == Some(attempt) {
            self.push(Action::Kill(attempt));
            return;
        }
        match self.phase {
            Phase::Forking { step: Step::Spawning, .. } if attempt == self.attempt => {
                self.step(Step::Hello, now + self.timing.hello);
            }
            // Told to stop while it was being started. The kill then reached nobody; ABORT waits for
            // it in its socket.
            Phase::Forking { step: Step::Aborting { killed: true, .. }, .. }
                if attempt == self.attempt =>
            {
                self.push(Action::Kill(attempt));
            }
            _ => {}
        }
    }

    fn spawn_failed(&mut self, attempt: Attempt, now: Instant) {
        if self.ghost == Some(attempt) {
            self.ghost = None;
            self.push(Action::Forget(attempt));
            return;
        }
        if attempt != self.attempt {
            return;
        }
        match self.phase {
            Phase::Forking { step: Step::Spawning, .. } => self.failed(Failure::Spawn, false, now),
            Phase::Forking { step: Step::Aborting { why, stop, .. }, .. } => {
                self.failed(why, stop, now);
            }
            _ => {}
        }
    }

    fn heard(&mut self, heard: Heard, now: Instant) {
        let attempt = self.attempt;
        match self.phase {
            Phase::Forking { step, .. } => match (step, heard) {
                (Step::Aborting { why: Failure::Exited, stop, killed }, Heard::GaveUp) => {
                    // Its reason, read after COMMIT could not be written, says more than that.
                    self.set_step(Step::Aborting { why: Failure::GaveUp, stop, killed });
                }
                (Step::Aborting { .. }, _) => {}
                (Step::Hello, Heard::Hello) => {
                    self.push(Action::Offer(attempt));
                    self.step(Step::Ready, now + self.timing.ready);
                }
                (Step::Ready, Heard::Ready) => {
                    self.push(Action::Seal(attempt));
                    self.step(Step::Sealing, now + self.timing.hooks);
                }
                (_, Heard::GaveUp) => self.abort(Failure::GaveUp, false, now),
                // Its death is most likely on its way.
                (_, Heard::Lost) => self.abort(Failure::Exited, false, now),
                (_, _) => self.abort(Failure::Protocol, false, now),
            },
            Phase::Confirming { fate, drain, .. } => match heard {
                Heard::Serving if fate == Fate::Awaited => {
                    self.release_predecessor();
                    self.report(Ok(()));
                    let probation = Deadline(now + self.timing.probation);
                    self.phase = Phase::Probation { deadline: probation, drain };
                }
                // Even if it was killed: these say that it confirmed, too late for us but in time
                // for its own successor or for whoever stopped it, and its death must not call us
                // back.
                Heard::Stopping => {
                    self.release(drain);
                    self.push(Action::SayReleased(attempt));
                }
                Heard::Release if fate != Fate::Awaited => self.release(drain),
                Heard::Lost => {}
                _ if fate != Fate::Awaited => {}
                _ => self.kill(drain, now),
            },
            Phase::Probation { drain, .. } => match heard {
                Heard::Stopping => {
                    self.release(drain);
                    self.push(Action::SayReleased(attempt));
                }
                Heard::Release => {
                    self.push(Action::Settled);
                    self.let_go(drain);
                }
                _ => {}
            },
            // Whoever stops waits for this answer before it closes its listeners.
            Phase::Leaving { .. } if heard == Heard::Stopping => {
                self.push(Action::SayReleased(attempt));
            }
            _ => {}
        }
    }

    fn committed(&mut self, written: bool, now: Instant) {
        if let Phase::Forking { step: Step::Committing, .. } = self.phase {
            if written {
                self.push(Action::Closing);
                self.phase = Phase::Confirming {
                    deadline: Deadline(now + self.timing.confirm),
                    fate: Fate::Awaited,
                    drain: self.drain_from(now),
                };
            } else {
                self.push(Action::Lock);
            }
        }
    }

    fn successor_died(&mut self, attempt: Attempt, now: Instant) {
        if self.ghost == Some(attempt) {
            self.ghost = None;
            self.push(Action::Forget(attempt));
            return;
        }
        if attempt != self.attempt {
            return;
        }
        match self.phase {
            Phase::Forking { step: Step::Aborting { why, stop, .. }, .. } => {
                self.failed(why, stop, now);
            }
            Phase::Forking { step: Step::Committing, .. } => {}
            Phase::Forking { .. } => self.failed(Failure::Exited, false, now),
            Phase::Confirming { fate, drain, .. } => {
                let why = match fate {
                    Fate::Awaited => Failure::DiedAfterCommit,
                    Fate::Killed | Fate::Unkillable => Failure::NotConfirmed,
                };
                self.phase = Phase::Resuming { why, reported: false, drain };
                self.push(Action::Lock);
            }
            Phase::Probation { drain, .. } => {
                let why = Failure::DiedAfterCommit;
                self.phase = Phase::Resuming { why, reported: true, drain };
                self.push(Action::Lock);
            }
            Phase::Leaving { .. } => self.push(Action::Forget(attempt)),
            _ => {}
        }
    }

    fn step_timeout(&mut self, step: Step, now: Instant) {
        match step {
            Step::Vetting => self.failed(Failure::HookDeadline, false, now),
            Step::Spawning => {
                // Read by whoever starts after all, also if nobody is left to kill it.
                self.push(Action::Abort(self.attempt));
                self.ghost = Some(self.attempt);
                self.report(Err(Failure::SpawnDeadline));
                self.phase = Phase::Serving;
            }
            Step::Hello => self.abort(Failure::HelloDeadline, false, now),
            Step::Ready => self.abort(Failure::ReadyDeadline, false, now),
            Step::Sealing => self.abort(Failure::HookDeadline, false, now),
            // Answered at once by the driver, so its deadline cannot pass.
            Step::Committing => {}
            Step::Aborting { why, stop, killed: false } => {
                // It closed its link and lives on.
                let why = if why == Failure::Exited { Failure::Protocol } else { why };
                self.push(Action::Kill(self.attempt));
                self.step(Step::Aborting { why, stop, killed: true }, now + UNKILLABLE);
            }
            Step::Aborting { stop, killed: true, .. } => {
                self.ghost = Some(self.attempt);
                self.report(Err(Failure::Unkillable));
                self.phase = Phase::Serving;
                if stop {
                    self.end(now);
                }
            }
        }
    }

    /// Tells the successor to end, and waits for its death.
    fn abort(&mut self, why: Failure, stop: bool, now: Instant) {
        self.push(Action::Abort(self.attempt));
        self.step(Step::Aborting { why, stop, killed: false }, now + self.timing.abort);
    }

    /// The successor was committed to and does not confirm.
    fn kill(&mut self, drain: Drain, now: Instant) {
        self.push(Action::Kill(self.attempt));
        let deadline = Deadline(now + UNKILLABLE);
        self.phase = Phase::Confirming { deadline, fate: Fate::Killed, drain };
    }

    /// The attempt has left nothing behind.
    fn failed(&mut self, why: Failure, stop: bool, now: Instant) {
        self.report(Err(why));
        self.push(Action::Forget(self.attempt));
        self.phase = Phase::Serving;
        if stop {
            self.end(now);
        }
    }

    // The end.

    fn stop(&mut self, now: Instant) {
        match self.phase {
            Phase::Initialising | Phase::AwaitingCommit { .. } => self.give_up(GiveUp::Stopped),
            Phase::Serving => {
                self.say_stopping();
                self.end(now);
            }
            Phase::Forking { step: Step::Aborting { why, stop: false, killed }, deadline } => {
                self.say_stopping();
                let step = Step::Aborting { why, stop: true, killed };
                self.phase = Phase::Forking { step, deadline };
            }
            // Told twice: nothing is waited for any more.
            Phase::Forking { step: Step::Aborting { stop: true, .. }, .. } => self.cut(),
            Phase::Forking { step: Step::Vetting, .. } => {
                self.say_stopping();
                self.failed(Failure::Stopping, true, now);
            }
            Phase::Forking { .. } => {
                self.say_stopping();
                self.abort(Failure::Stopping, true, now);
            }
            Phase::Confirming { drain, .. } | Phase::Probation { drain, .. } => {
                self.release(drain);
                self.shorten(now);
            }
            Phase::Leaving { stopped: false, .. } => self.shorten(now),
            // Told twice: whoever steers clients elsewhere need not be waited for.
            Phase::LameDuck { .. } => self.close_listeners(now),
            Phase::Leaving { stopped: true, .. } | Phase::Farewell { .. } => self.cut(),
            Phase::Taking { .. } | Phase::Resuming { .. } | Phase::Exited => {}
        }
    }

    fn quit(&mut self) {
        match self.phase {
            Phase::Confirming { drain, .. } | Phase::Probation { drain, .. } => {
                self.release(drain);
                self.cut();
            }
            Phase::Leaving { .. }
            | Phase::Farewell { .. }
            | Phase::LameDuck { .. }
            | Phase::Forking { step: Step::Aborting { stop: true, .. }, .. } => self.cut(),
            // While serving it means nothing.
            _ => {}
        }
    }

    fn server_ended(&mut self, now: Instant) {
        match self.phase {
            Phase::Initialising | Phase::AwaitingCommit { .. } => {
                self.give_up(GiveUp::ServerEnded);
            }
            Phase::Serving => self.stop(now),
            Phase::LameDuck { .. } => self.close_listeners(now),
            Phase::Forking { step: Step::Aborting { stop: true, .. }, .. } => {}
            Phase::Forking { .. } => self.stop(now),
            // Nobody is left who could accept after a rollback.
            Phase::Confirming { drain, .. } | Phase::Probation { drain, .. } => self.release(drain),
            _ => {}
        }
    }

    /// Tells the predecessor at once, even if a successor has to be ended first: if this process
    /// is killed meanwhile, that is still a stop and calls nobody back.
    fn say_stopping(&mut self) {
        if self.predecessor == Predecessor::Heir {
            self.push(Action::SayStopping);
        }
    }

    /// The predecessor was told; without one, or when it has answered, the listeners are closed.
    fn end(&mut self, now: Instant) {
        if self.predecessor == Predecessor::Heir {
            self.phase = Phase::Farewell { deadline: Deadline(now + FAREWELL) };
        } else {
            self.drain_to_stop(now);
        }
    }

    /// Somebody stops on purpose, or serves already: neither this process nor its predecessor is
    /// to be called back by anybody's end.
    fn release(&mut self, drain: Drain) {
        self.release_predecessor();
        self.let_go(drain);
    }

    fn release_predecessor(&mut self) {
        if self.predecessor == Predecessor::Heir {
            self.push(Action::SayRelease);
            self.predecessor = Predecessor::None;
        }
    }

    /// From here on this process is nobody's heir, whatever becomes of the successor.
    fn let_go(&mut self, drain: Drain) {
        if let Phase::Confirming { fate, .. } = self.phase {
            self.report(match fate {
                Fate::Awaited => Ok(()),
                Fate::Killed => Err(Failure::NotConfirmed),
                Fate::Unkillable => Err(Failure::Unkillable),
            });
        }
        self.push(Action::LetGo);
        self.phase =
            Phase::Leaving { linger: Some(drain.linger), drain: drain.end, stopped: false };
    }

    fn drain_to_stop(&mut self, now: Instant) {
        if self.timing.lame_duck.is_zero() {
            self.close_listeners(now);
        } else {
            self.push(Action::NotReady);
            self.phase = Phase::LameDuck { deadline: Deadline(now + self.timing.lame_duck) };
        }
    }

    fn close_listeners(&mut self, now: Instant) {
        self.push(Action::CloseListeners);
        self.push(Action::Closing);
        self.phase = Phase::Leaving {
            linger: Some(Deadline(now + self.timing.stop_linger)),
            drain: Deadline(now + self.timing.stop_drain),
            stopped: true,
        };
    }

    /// A stop reaches a process that leaves anyway: it keeps to the stop's deadlines.
    fn shorten(&mut self, now: Instant) {
        if let Phase::Leaving { linger, drain, .. } = self.phase {
            let sooner = |at: Deadline, after| Deadline(at.0.min(now + after));
            self.phase = Phase::Leaving {
                linger: linger.map(|linger| sooner(linger, self.timing.stop_linger)),
                drain: sooner(drain, self.timing.stop_drain),
                stopped: true,
            };
        }
    }

    fn cut(&mut self) {
        match self.phase {
            Phase::Forking { .. } => {
                self.push(Action::Kill(self.attempt));
                self.report(Err(Failure::Stopping));
                self.push(Action::CloseListeners);
            }
            Phase::Farewell { .. } | Phase::LameDuck { .. } => self.push(Action::CloseListeners),
            _ => {}
        }
        self.push(Action::Cut);
        self.exit();
    }

    fn exit(&mut self) {
        self.push(Action::Exit);
        self.exited();
    }

    /// Nothing that still comes in means anything.
    fn exited(&mut self) {
        self.predecessor = Predecessor::None;
        self.ghost = None;
        self.phase = Phase::Exited;
    }

    // Helpers.

    fn drain_from(&self, now: Instant) -> Drain {
        Drain { linger: Deadline(now + self.timing.linger), end: Deadline(now + self.timing.drain) }
    }

    fn step(&mut self, step: Step, deadline: Instant) {
        self.phase = Phase::Forking { step, deadline: Deadline(deadline) };
    }

    fn set_step(&mut self, next: Step) {
        if let Phase::Forking { step, .. } = &mut self.phase {
            *step = next;
        }
    }

    fn report(&mut self, outcome: Result<(), Failure>) {
        self.push(Action::Report(self.attempt, outcome));
    }

    fn refuse(&mut self, why: Failure) {
        self.push(Action::Refuse(why));
    }

    fn push(&mut self, action: Action) {
        self.actions.push_back(action);
    }
}

#[cfg(test)]
mod tests;
