//! The machine alone: its table cell by cell, every sequence of inputs to a fixed point, and long
//! random ones. What several machines do together is `tests/model.rs`.

use std::collections::{HashMap, HashSet};

use proptest::prelude::*;

use super::*;

const S: fn(u64) -> Duration = Duration::from_secs;

fn timing() -> Timing {
    Timing {
        hooks: S(10),
        commit: S(24),
        lame_duck: S(0),
        spawn: S(11),
        hello: S(12),
        ready: S(13),
        abort: S(3),
        confirm: S(2),
        probation: S(30),
        linger: S(60),
        drain: S(600),
        stop_linger: S(5),
        stop_drain: S(20),
    }
}

/// One that is over before probation is: a timeout then passes several deadlines at once.
fn hasty() -> Timing {
    Timing {
        lame_duck: S(3),
        linger: S(1),
        drain: S(20),
        stop_linger: S(0),
        stop_drain: S(0),
        ..timing()
    }
}

/// What a test does to the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Do {
    Give(Input),
    /// Time passes up to exactly the next deadline.
    Time,
}

impl From<Input> for Do {
    fn from(input: Input) -> Self {
        Do::Give(input)
    }
}

#[derive(Debug, Clone)]
struct Rig {
    machine: Machine,
    now: Instant,
}

impl Rig {
    fn new(timing: Timing, has_predecessor: bool) -> Self {
        Self { machine: Machine::new(timing, has_predecessor), now: Instant::now() }
    }

    fn step(&mut self, step: impl Into<Do>) -> Vec<Action> {
        match step.into() {
            Do::Give(input) => self.machine.handle(input, self.now),
            Do::Time => {
                let at = self.machine.poll_timeout().expect("a deadline");
                self.now = self.now.max(at);
                self.machine.handle_timeout(self.now);
            }
        }
        std::iter::from_fn(|| self.machine.poll_action()).collect()
    }
}

mod table {
    use Action::*;
    use Input::{
        Begin, Committed, Idle, Locked, Predecessor as Pre, PredecessorDied, Quit, Restart, Sealed,
        ServerEnded, SpawnFailed, Spawned, Stop, Successor as Suc, SuccessorDied, Vetted,
    };

    use super::*;

    const GONE: Result<(), Failure> = Err(Failure::Exited);
    const STOPPED: Result<(), Failure> = Err(Failure::Stopping);

    #[test]
    fn a_lame_duck_accepts_until_it_is_over_or_told_twice() {
        let lame = || {
            let mut rig = Rig::new(hasty(), false);
            rig.step(Begin);
            rig.step(Locked(true));
            assert_eq!(rig.step(Stop), [NotReady]);
            assert_eq!(rig.machine.state(), Some(State::Serving));
            rig
        };
        assert_eq!(lame().step(Restart), [Refuse(Failure::Stopping)]);
        assert_eq!(lame().step(Quit), [CloseListeners, Cut, Exit]);
        for mut end in [Do::Time, Stop.into(), ServerEnded.into()].map(|end| (lame(), end)) {
            let actions = end.0.step(end.1);
            assert_eq!(actions[..2], [CloseListeners, Closing], "{:?}", end.1);
        }
    }

    /// The phases by name: how to get there. The bool says whether there is a predecessor.
    fn at(phase: &str) -> Rig {
        let heir = phase.ends_with("+heir");
        let name = phase.trim_end_matches("+heir");
        let forked: &[Do] = &[
            Restart.into(),
            Vetted(1, Ok(())).into(),
            Spawned(1).into(),
            Suc(1, Heard::Hello).into(),
            Suc(1, Heard::Ready).into(),
            Sealed(1, Ok(())).into(),
            Committed(true).into(),
            Suc(1, Heard::Serving).into(),
        ];
        let with = |count: usize, more: &[Do]| [&forked[..count], more].concat();
        let script = match name {
            "initialising" | "awaiting" | "awaiting, lost" | "taking" => {
                let mut rig = Rig::new(timing(), true);
                let script: &[Do] = match name {
                    "initialising" => &[],
                    "awaiting" => &[Do::Give(Begin)],
                    "awaiting, lost" => &[Do::Give(Begin), Do::Give(Pre(Told::Lost))],
                    _ => &[Do::Give(Begin), Do::Give(Pre(Told::Commit))],
                };
                for step in script {
                    rig.step(*step);
                }
                return rig;
            }
            "serving" => with(0, &[]),
            "vetting" => with(1, &[]),
            "spawning" => with(2, &[]),
            "hello" => with(3, &[]),
            "ready" => with(4, &[]),
            "sealing" => with(5, &[]),
            "committing" => with(6, &[]),
            "retaking" => with(6, &[Committed(false).into()]),
            "confirming" => with(7, &[]),
            "confirming, killed" => with(7, &[Do::Time]),
            "probation" => with(8, &[]),
            "resuming" => with(8, &[SuccessorDied(1).into()]),
            "released" => with(8, &[Suc(1, Heard::Release).into()]),
            "aborting" => with(3, &[Do::Time]),
            "aborting, killed" => with(3, &[Do::Time, Do::Time]),
            "aborting to stop" => with(3, &[Stop.into()]),
            "aborting the spawn" => with(2, &[Stop.into()]),
            "aborting the spawn, killed" => with(2, &[Stop.into(), Do::Time]),
            "ghost" => with(2, &[Do::Time]),
            "farewell" => with(0, &[Stop.into()]),
            "stopping" => with(0, &[Stop.into()]),
            "exited" => with(0, &[Stop.into(), Idle.into()]),
            _ => panic!("no phase {phase}"),
        };
        let mut rig = Rig::new(timing(), heir);
        rig.step(Begin);
        if heir {
            rig.step(Pre(Told::Commit));
        }
        rig.step(Locked(true));
        for step in script {
            rig.step(step);
        }
        rig
    }

    /// What each phase does with each input, one after the other.
    fn check(rows: &[(&str, Do, &[Action], Option<State>)]) {
        for (phase, step, actions, state) in rows {
            let mut rig = at(phase);
            let before = rig.machine.clone();
            assert_eq!(rig.step(*step), *actions, "in {phase}, given {step:?}");
            assert_eq!(rig.machine.state(), *state, "in {phase}, given {step:?}");
            if actions.is_empty() && matches!(step, Do::Give(Input::Restart)) {
                assert_eq!(rig.machine, before, "in {phase}, given {step:?}");
            }
        }
    }

    fn g(input: Input) -> Do {
        Do::Give(input)
    }

    const SERVING: Option<State> = Some(State::Serving);
    const FORKING: Option<State> = Some(State::Forking);
    const DRAINING: Option<State> = Some(State::Draining);
    const EXITED: Option<State> = Some(State::Exited);

    #[test]
    fn a_restart_step_by_step() {
        check(&[
            ("serving", g(Restart), &[Vet(1)], FORKING),
            ("vetting", g(Vetted(1, Ok(()))), &[Spawn(1)], FORKING),
            ("spawning", g(Spawned(1)), &[], FORKING),
            ("hello", g(Suc(1, Heard::Hello)), &[Offer(1)], FORKING),
            ("ready", g(Suc(1, Heard::Ready)), &[Seal(1)], FORKING),
            ("sealing", g(Sealed(1, Ok(()))), &[CloseGates(1), Unlock, Commit(1)], FORKING),
            ("committing", g(Committed(true)), &[Closing], DRAINING),
            ("confirming", g(Suc(1, Heard::Serving)), &[Report(1, Ok(()))], DRAINING),
            ("probation", Do::Time, &[Settled, LetGo], DRAINING),
            ("released", Do::Time, &[Over], DRAINING),
            ("released", g(Idle), &[Exit], EXITED),
        ]);
    }

    #[test]
    fn predecessor_waiting_for_spawn() {
        let refuse = &[Refuse(Failure::InProgress)][..];
        check(&[
            (
                "vetting",
                g(Vetted(1, Err(Failure::Vetoed))),
                &[Report(1, Err(Failure::Vetoed)), Forget(1)],
                SERVING,
            ),
            ("vetting", Do::Time, &[Report(1, Err(Failure::HookDeadline)), Forget(1)], SERVING),
            (
                "vetting",
                g(Stop),
                &[Report(1, STOPPED), Forget(1), CloseListeners, Closing],
                DRAINING,
            ),
            ("vetting+heir", g(Stop), &[SayStopping, Report(1, STOPPED), Forget(1)], SERVING),
            ("vetting", g(Restart), refuse, FORKING),
            ("spawning", g(SpawnFailed(1)), &[Report(1, Err(Failure::Spawn)), Forget(1)], SERVING),
            ("spawning", Do::Time, &[Abort(1), Report(1, Err(Failure::SpawnDeadline))], SERVING),
            ("spawning", g(Stop), &[Abort(1)], FORKING),
            ("spawning", g(Restart), refuse, FORKING),
            ("spawning", g(Quit), &[], FORKING),
            ("aborting the spawn", g(Spawned(1)), &[], FORKING),
            (
                "aborting the spawn",
                g(SpawnFailed(1)),
                &[Report(1, STOPPED), Forget(1), CloseListeners, Closing],
                DRAINING,
            ),
            ("aborting the spawn, killed", g(Spawned(1)), &[Kill(1)], FORKING),
            ("ghost", g(Spawned(1)), &[Kill(1)], SERVING),
            ("ghost", g(SpawnFailed(1)), &[Forget(1)], SERVING),
            ("ghost", g(Restart), &[Refuse(Failure::Unkillable)], SERVING),
            ("ghost", g(SuccessorDied(1)), &[Forget(1)], SERVING),
            ("ghost", g(Suc(1, Heard::Hello)), &[], SERVING),
            ("ghost", g(Stop), &[CloseListeners, Closing], DRAINING),
        ]);
    }

    #[test]
    fn predecessor_waiting_for_hello() {
        check(&[
            ("hello", g(Suc(1, Heard::Garbage)), &[Abort(1)], FORKING),
            ("hello", g(Suc(1, Heard::Ready)), &[Abort(1)], FORKING),
            ("hello", g(Suc(1, Heard::Serving)), &[Abort(1)], FORKING),
            ("hello", g(Suc(1, Heard::GaveUp)), &[Abort(1)], FORKING),
            ("hello", g(Suc(1, Heard::Lost)), &[Abort(1)], FORKING),
            ("hello", g(SuccessorDied(1)), &[Report(1, GONE), Forget(1)], SERVING),
            ("hello", Do::Time, &[Abort(1)], FORKING),
            ("hello", g(Stop), &[Abort(1)], FORKING),
            ("hello+heir", g(Stop), &[SayStopping, Abort(1)], FORKING),
            ("hello", g(ServerEnded), &[Abort(1)], FORKING),
            ("hello", g(Restart), &[Refuse(Failure::InProgress)], FORKING),
            ("hello", g(Quit), &[], FORKING),
            ("hello", g(Idle), &[], FORKING),
        ]);
    }

    #[test]
    fn predecessor_waiting_for_ready() {
        for phase in ["ready", "sealing"] {
            check(&[
                (phase, g(Suc(1, Heard::Garbage)), &[Abort(1)], FORKING),
                (phase, g(Suc(1, Heard::Hello)), &[Abort(1)], FORKING),
                (phase, g(Suc(1, Heard::Serving)), &[Abort(1)], FORKING),
                (phase, g(Suc(1, Heard::Lost)), &[Abort(1)], FORKING),
                (phase, g(Suc(1, Heard::GaveUp)), &[Abort(1)], FORKING),
                (phase, g(SuccessorDied(1)), &[Report(1, GONE), Forget(1)], SERVING),
                (phase, Do::Time, &[Abort(1)], FORKING),
                (phase, g(Stop), &[Abort(1)], FORKING),
                (phase, g(ServerEnded), &[Abort(1)], FORKING),
                (phase, g(Restart), &[Refuse(Failure::InProgress)], FORKING),
            ]);
        }
        check(&[
            ("sealing", g(Suc(1, Heard::Ready)), &[Abort(1)], FORKING),
            ("sealing", g(Sealed(1, Err(Failure::Vetoed))), &[Abort(1)], FORKING),
            // The write failed: lock, open again, and the successor is to end.
            ("committing", g(Committed(false)), &[Lock], FORKING),
            ("retaking", g(Locked(true)), &[OpenGates, Abort(1)], FORKING),
            ("retaking", g(Locked(false)), &[Report(1, GONE), Closing, LetGo], DRAINING),
        ]);
    }

    #[test]
    fn predecessor_aborting() {
        let outcome = Report(1, Err(Failure::HelloDeadline));
        for heard in [Heard::Hello, Heard::Ready, Heard::Garbage, Heard::Lost, Heard::GaveUp] {
            for phase in ["aborting", "aborting, killed", "aborting to stop"] {
                let mut rig = at(phase);
                let before = rig.machine.clone();
                assert_eq!(rig.step(Suc(1, heard)), [], "{phase} {heard:?}");
                assert_eq!(rig.machine, before, "{phase} {heard:?}");
            }
        }
        check(&[
            ("aborting", g(SuccessorDied(1)), &[outcome, Forget(1)], SERVING),
            ("aborting", Do::Time, &[Kill(1)], FORKING),
            ("aborting", g(Stop), &[], FORKING),
            ("aborting+heir", g(Stop), &[SayStopping], FORKING),
            ("aborting", g(Quit), &[], FORKING),
            ("aborting", g(Restart), &[Refuse(Failure::InProgress)], FORKING),
            ("aborting, killed", g(SuccessorDied(1)), &[outcome, Forget(1)], SERVING),
            ("aborting, killed", Do::Time, &[Report(1, Err(Failure::Unkillable))], SERVING),
            (
                "aborting to stop",
                g(SuccessorDied(1)),
                &[Report(1, STOPPED), Forget(1), CloseListeners, Closing],
                DRAINING,
            ),
            (
                "aborting to stop+heir",
                g(SuccessorDied(1)),
                &[Report(1, STOPPED), Forget(1)],
                SERVING,
            ),
            ("aborting to stop", g(ServerEnded), &[], FORKING),
            (
                "aborting to stop",
                g(Stop),
                &[Kill(1), Report(1, STOPPED), CloseListeners, Cut, Exit],
                EXITED,
            ),
            (
                "aborting to stop",
                g(Quit),
                &[Kill(1), Report(1, STOPPED), CloseListeners, Cut, Exit],
                EXITED,
            ),
            ("aborting to stop", g(Restart), &[Refuse(Failure::Stopping)], FORKING),
        ]);
    }

    /// What the one who asked for the restart is told.
    #[test]
    fn why_it_failed() {
        let rows: &[(&str, &[Do], Failure)] = &[
            ("hello", &[g(Suc(1, Heard::Lost)), g(SuccessorDied(1))], Failure::Exited),
            ("hello", &[g(Suc(1, Heard::Lost)), Do::Time, g(SuccessorDied(1))], Failure::Protocol),
            ("hello", &[g(Suc(1, Heard::Garbage)), g(SuccessorDied(1))], Failure::Protocol),
            (
                "hello",
                &[g(Suc(1, Heard::GaveUp)), g(Suc(1, Heard::Lost)), g(SuccessorDied(1))],
                Failure::GaveUp,
            ),
            (
                "ready",
                &[Do::Time, g(Suc(1, Heard::GaveUp)), g(SuccessorDied(1))],
                Failure::ReadyDeadline,
            ),
            ("sealing", &[Do::Time, g(SuccessorDied(1))], Failure::HookDeadline),
            (
                "sealing",
                &[g(Sealed(1, Err(Failure::Vetoed))), g(SuccessorDied(1))],
                Failure::Vetoed,
            ),
            ("retaking", &[g(Locked(true)), g(SuccessorDied(1))], Failure::Exited),
            (
                "retaking",
                &[g(Locked(true)), g(Suc(1, Heard::GaveUp)), g(SuccessorDied(1))],
                Failure::GaveUp,
            ),
            ("confirming", &[g(SuccessorDied(1)), g(Locked(true))], Failure::DiedAfterCommit),
            (
                "confirming",
                &[Do::Time, g(SuccessorDied(1)), g(Locked(true))],
                Failure::NotConfirmed,
            ),
            ("confirming", &[Do::Time, Do::Time, g(Locked(true))], Failure::Unkillable),
        ];
        for (phase, script, why) in rows {
            let mut rig = at(phase);
            let last = script.iter().map(|step| rig.step(*step)).last().unwrap();
            assert!(last.contains(&Report(1, Err(*why))), "{phase} {script:?}: {last:?}");
            assert_eq!(rig.machine.state(), SERVING);
        }
    }

    #[test]
    fn predecessor_waiting_for_serving() {
        let died = Failure::DiedAfterCommit;
        check(&[
            (
                "confirming+heir",
                g(Suc(1, Heard::Serving)),
                &[SayRelease, Report(1, Ok(()))],
                DRAINING,
            ),
            ("confirming", g(Suc(1, Heard::Garbage)), &[Kill(1)], DRAINING),
            ("confirming", g(Suc(1, Heard::Ready)), &[Kill(1)], DRAINING),
            ("confirming", g(Suc(1, Heard::GaveUp)), &[Kill(1)], DRAINING),
            ("confirming", g(Suc(1, Heard::Release)), &[Kill(1)], DRAINING),
            ("confirming", g(Suc(1, Heard::Lost)), &[], DRAINING),
            ("confirming", g(SuccessorDied(1)), &[Lock], DRAINING),
            ("confirming", Do::Time, &[Kill(1)], DRAINING),
            ("confirming", g(Stop), &[Report(1, Ok(())), LetGo], DRAINING),
            ("confirming+heir", g(Stop), &[SayRelease, Report(1, Ok(())), LetGo], DRAINING),
            ("confirming", g(Quit), &[Report(1, Ok(())), LetGo, Cut, Exit], EXITED),
            ("confirming", g(ServerEnded), &[Report(1, Ok(())), LetGo], DRAINING),
            ("confirming", g(Restart), &[Refuse(Failure::Stopping)], DRAINING),
            ("confirming", g(Idle), &[], DRAINING),
            (
                "confirming",
                g(Suc(1, Heard::Stopping)),
                &[Report(1, Ok(())), LetGo, SayReleased(1)],
                DRAINING,
            ),
            ("confirming, killed", g(Suc(1, Heard::Serving)), &[], DRAINING),
            ("confirming, killed", g(Suc(1, Heard::Garbage)), &[], DRAINING),
            (
                "confirming, killed",
                g(Suc(1, Heard::Stopping)),
                &[Report(1, Err(Failure::NotConfirmed)), LetGo, SayReleased(1)],
                DRAINING,
            ),
            (
                "confirming, killed",
                g(Suc(1, Heard::Release)),
                &[Report(1, Err(Failure::NotConfirmed)), LetGo],
                DRAINING,
            ),
            ("confirming, killed", g(SuccessorDied(1)), &[Lock], DRAINING),
            ("confirming, killed", Do::Time, &[Lock], DRAINING),
            (
                "confirming, killed",
                g(Stop),
                &[Report(1, Err(Failure::NotConfirmed)), LetGo],
                DRAINING,
            ),
            ("resuming", g(Locked(true)), &[OpenGates, RolledBack(died), Forget(1)], SERVING),
            ("resuming", g(Locked(false)), &[Forget(1), LetGo], DRAINING),
        ]);
    }

    /// A successor that even SIGKILL does not end in time: the lock says who may accept.
    #[test]
    fn unkillable_after_the_commit() {
        let why = Failure::Unkillable;
        let mut rig = at("confirming, killed");
        assert_eq!(rig.step(Do::Time), [Lock]);
        let mut held = rig.clone();
        assert_eq!(rig.step(Locked(true)), [OpenGates, RolledBack(why), Report(1, Err(why))]);
        assert_eq!(rig.step(Restart), [Refuse(why)]);
        assert_eq!(rig.step(SuccessorDied(1)), [Forget(1)]);
        assert_eq!(rig.step(Restart), [Vet(2)]);
        // It holds the lock: as long as this process is there it waits for the death.
        assert_eq!(held.step(Locked(false)), []);
        let mut late = held.clone();
        let why = Failure::NotConfirmed;
        assert_eq!(held.step(SuccessorDied(1)), [Lock]);
        assert_eq!(
            held.step(Locked(true)),
            [OpenGates, RolledBack(why), Report(1, Err(why)), Forget(1)]
        );
        assert_eq!(
            late.step(Do::Time),
            [Report(1, Err(Failure::Unkillable)), LetGo, Over, Cut, Exit]
        );
    }

    #[test]
    fn predecessor_in_probation() {
        check(&[
            ("probation", g(Suc(1, Heard::Stopping)), &[LetGo, SayReleased(1)], DRAINING),
            ("probation", g(Suc(1, Heard::Release)), &[Settled, LetGo], DRAINING),
            ("probation", g(Suc(1, Heard::Garbage)), &[], DRAINING),
            ("probation", g(Suc(1, Heard::Serving)), &[], DRAINING),
            ("probation", g(Suc(1, Heard::Lost)), &[], DRAINING),
            ("probation", g(SuccessorDied(1)), &[Lock], DRAINING),
            ("probation", g(Stop), &[LetGo], DRAINING),
            ("probation", g(Quit), &[LetGo, Cut, Exit], EXITED),
            ("probation", g(ServerEnded), &[LetGo], DRAINING),
            ("probation", g(Restart), &[Refuse(Failure::Stopping)], DRAINING),
            ("probation", g(Idle), &[], DRAINING),
        ]);
    }

    #[test]
    fn predecessor_released() {
        for heard in [Heard::Serving, Heard::Garbage, Heard::Lost, Heard::Release] {
            check(&[("released", g(Suc(1, heard)), &[], DRAINING)]);
        }
        check(&[
            ("released", g(Suc(1, Heard::Stopping)), &[SayReleased(1)], DRAINING),
            ("released", g(SuccessorDied(1)), &[Forget(1)], DRAINING),
            ("released", g(Stop), &[], DRAINING),
            ("released", g(Quit), &[Cut, Exit], EXITED),
            ("released", g(Restart), &[Refuse(Failure::Stopping)], DRAINING),
            ("stopping", g(Stop), &[Cut, Exit], EXITED),
            ("stopping", g(Quit), &[Cut, Exit], EXITED),
            ("stopping", Do::Time, &[Over], DRAINING),
            ("stopping", g(ServerEnded), &[], DRAINING),
            ("exited", g(Stop), &[], EXITED),
            ("exited", g(Idle), &[], EXITED),
            ("exited", g(Restart), &[Refuse(Failure::Stopping)], EXITED),
        ]);
        // Tell, cut, exit; and the first stop only shortens.
        let mut rig = at("stopping");
        assert_eq!([rig.step(Do::Time), rig.step(Do::Time)].concat(), [Over, Cut, Exit]);
        let mut rig = at("released");
        rig.step(Stop);
        assert_eq!(rig.machine.poll_timeout(), Some(rig.now + timing().stop_linger));
        assert!(rig.machine.is_stopping());
        assert_eq!(rig.step(Stop), [Cut, Exit]);
        // All deadlines at once.
        let mut rig = at("probation");
        rig.now += timing().drain * 2;
        rig.machine.handle_timeout(rig.now);
        let all: Vec<_> = std::iter::from_fn(|| rig.machine.poll_action()).collect();
        assert_eq!(all, [Settled, LetGo, Over, Cut, Exit]);
    }

    #[test]
    fn successor_before_the_first_accept() {
        for phase in ["initialising", "awaiting"] {
            check(&[
                (phase, g(Pre(Told::Abort)), &[GiveUp(super::GiveUp::Aborted)], EXITED),
                (phase, g(Pre(Told::Garbage)), &[GiveUp(super::GiveUp::Protocol)], EXITED),
                (phase, g(Pre(Told::Released)), &[GiveUp(super::GiveUp::Protocol)], EXITED),
                (phase, g(Pre(Told::Lost)), &[], None),
                (phase, g(Stop), &[GiveUp(super::GiveUp::Stopped)], EXITED),
                (phase, g(ServerEnded), &[GiveUp(super::GiveUp::ServerEnded)], EXITED),
                (phase, g(Restart), &[Refuse(Failure::InProgress)], None),
                (phase, g(Quit), &[], None),
                (phase, g(Idle), &[], None),
            ]);
        }
        check(&[
            ("initialising", g(Begin), &[SayReady], None),
            ("initialising", g(Pre(Told::Commit)), &[GiveUp(super::GiveUp::Protocol)], EXITED),
            ("initialising", g(PredecessorDied), &[], None),
            ("awaiting", g(Begin), &[], None),
            ("awaiting", g(Pre(Told::Commit)), &[Lock], None),
            ("awaiting", g(PredecessorDied), &[Lock], None),
            ("awaiting", Do::Time, &[GiveUp(super::GiveUp::Deadline)], EXITED),
            ("awaiting, lost", Do::Time, &[GiveUp(super::GiveUp::LinkLost)], EXITED),
            ("awaiting, lost", g(PredecessorDied), &[Lock], None),
            ("taking", g(Locked(true)), &[SayServing, OpenGates], SERVING),
            ("taking", g(Locked(false)), &[GiveUp(super::GiveUp::NotOwner)], EXITED),
        ]);
        // Dead before ready: the lock is tried at ready, not before.
        for told in [&[][..], &[Pre(Told::Lost)]] {
            for won in [true, false] {
                let mut rig = at("initialising");
                for told in told {
                    assert_eq!(rig.step(*told), []);
                }
                assert_eq!(rig.step(PredecessorDied), []);
                assert_eq!(rig.machine.poll_timeout(), None);
                assert_eq!(rig.step(Begin), [Lock]);
                let expected: &[Action] =
                    if won { &[Alone, OpenGates] } else { &[GiveUp(super::GiveUp::NotOwner)] };
                assert_eq!(rig.step(Locked(won)), expected);
            }
        }
        // Lost, and it lives: no READY, no accept.
        let mut rig = at("initialising");
        rig.step(Pre(Told::Lost));
        assert_eq!(rig.step(Begin), []);
        assert_eq!(rig.step(Do::Time), [GiveUp(super::GiveUp::LinkLost)]);
        // The first generation.
        let mut rig = Rig::new(timing(), false);
        assert_eq!(rig.step(Begin), [Lock]);
        assert_eq!(rig.step(Locked(true)), [OpenGates]);
    }

    #[test]
    fn successor_serving() {
        check(&[
            ("serving+heir", g(Pre(Told::Lost)), &[Alone], SERVING),
            ("serving+heir", g(Pre(Told::Garbage)), &[Alone], SERVING),
            ("serving+heir", g(Pre(Told::Released)), &[], SERVING),
            ("serving+heir", g(Pre(Told::Commit)), &[], SERVING),
            ("serving+heir", g(Pre(Told::Abort)), &[], SERVING),
            ("serving+heir", g(PredecessorDied), &[Alone], SERVING),
            ("serving+heir", g(Stop), &[SayStopping], SERVING),
            ("serving+heir", g(ServerEnded), &[SayStopping], SERVING),
            ("serving+heir", g(Quit), &[], SERVING),
            ("serving", g(Stop), &[CloseListeners, Closing], DRAINING),
            ("farewell+heir", g(Pre(Told::Released)), &[CloseListeners, Closing], DRAINING),
            ("farewell+heir", g(Pre(Told::Lost)), &[CloseListeners, Closing], DRAINING),
            ("farewell+heir", g(PredecessorDied), &[CloseListeners, Closing], DRAINING),
            ("farewell+heir", Do::Time, &[CloseListeners, Closing], DRAINING),
            ("farewell+heir", g(Stop), &[CloseListeners, Cut, Exit], EXITED),
            ("farewell+heir", g(Quit), &[CloseListeners, Cut, Exit], EXITED),
            ("farewell+heir", g(Restart), &[Refuse(Failure::Stopping)], SERVING),
            // While a successor is being started, too.
            ("hello+heir", g(Pre(Told::Lost)), &[Alone], FORKING),
            ("probation+heir", g(PredecessorDied), &[], DRAINING),
        ]);
        // The answer may come while the successor is still being ended: no second wait.
        let mut rig = at("aborting to stop+heir");
        assert_eq!(rig.step(Pre(Told::Released)), []);
        assert_eq!(
            rig.step(SuccessorDied(1)),
            [Report(1, STOPPED), Forget(1), CloseListeners, Closing]
        );
        // Exited is the end, also for what was still expected.
        let mut rig = at("farewell+heir");
        rig.step(Stop);
        assert_eq!(rig.step(Pre(Told::Lost)), []);
        let mut rig = at("ghost");
        rig.step(Stop);
        rig.step(Stop);
        assert_eq!(rig.step(Spawned(1)), []);
    }

    /// A race has one winner, whatever the order in which the kernel reported it.
    #[test]
    fn races() {
        let wake = |phase: &str, batch: &[Input]| {
            let mut results = Vec::new();
            for turn in 0..batch.len() {
                let mut batch = batch.to_vec();
                batch.rotate_left(turn);
                batch.sort_by_key(Input::rank);
                let mut rig = at(phase);
                let actions: Vec<_> = batch.iter().flat_map(|input| rig.step(*input)).collect();
                results.push((rig.machine, actions));
            }
            assert!(results.windows(2).all(|pair| pair[0] == pair[1]), "{phase} {batch:?}");
            results.remove(0)
        };
        // Ready against exit: the death wins, and nothing is committed to the dead.
        let (machine, actions) = wake("ready", &[SuccessorDied(1), Suc(1, Heard::Ready)]);
        assert_eq!(actions, [Seal(1), Report(1, GONE), Forget(1)]);
        assert_eq!(machine.state(), SERVING);
        // Stop against ready: the stop wins.
        let (_, actions) = wake("sealing", &[Sealed(1, Ok(())), Stop, Restart]);
        assert_eq!(actions, [Abort(1), Refuse(Failure::Stopping)]);
        // HELLO may be there as early as the news that the process exists.
        let (_, actions) = wake("spawning", &[Suc(1, Heard::Hello), Spawned(1)]);
        assert_eq!(actions, [Offer(1)]);
        // STOPPING against death: still a stop.
        let (machine, actions) = wake("probation", &[SuccessorDied(1), Suc(1, Heard::Stopping)]);
        assert_eq!(actions, [LetGo, SayReleased(1), Forget(1)]);
        assert!(machine.is_leaving());
        // COMMIT against the predecessor's death and our own stop.
        let (_, actions) = wake("awaiting", &[PredecessorDied, Pre(Told::Commit)]);
        assert_eq!(actions, [Lock]);
    }

    /// Inputs that one wake-up can bring from different sources never share a rank.
    #[test]
    fn ranks_are_a_total_order() {
        let sources: &[Input] = &[
            Locked(true),
            Spawned(1),
            Suc(1, Heard::Hello),
            Pre(Told::Commit),
            SuccessorDied(1),
            PredecessorDied,
            Quit,
            Stop,
            ServerEnded,
            Restart,
            Begin,
            Vetted(1, Ok(())),
            Sealed(1, Ok(())),
            Idle,
        ];
        assert!(sources.windows(2).all(|pair| pair[0].rank() < pair[1].rank()));
    }
}

/// What the rest of the process knows and did: the world around one machine, and its judge.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Watch {
    lock: bool,
    gate: bool,
    /// `Some` if the next input must be this answer.
    asked: Option<Asked>,
    restart: Option<Attempt>,
    vet: Option<Attempt>,
    seal: Option<Attempt>,
    child: Option<Child>,
    server_ended: bool,
    predecessor: Option<Peer>,
    said_ready: bool,
    said_serving: bool,
    told_commit: bool,
    /// The predecessor was told to close its copies, or to be no heir.
    released: bool,
    stopped: bool,
    exited: bool,
    before: Option<Machine>,
    /// The predecessor did something since, so that `before` is not to be compared.
    disturbed: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Asked {
    Lock,
    Commit,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Child {
    attempt: Attempt,
    spawned: bool,
    lost: bool,
    dead: bool,
    killed: bool,
    sealed: bool,
    committed: bool,
    stopping: bool,
    /// It stops on purpose or has an heir of its own: its death calls nobody back.
    settled: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
struct Peer {
    lost: bool,
    dead: bool,
    /// It is no heir any more: released, dead, or out of hearing.
    gone: bool,
}

/// Machine and world together.
#[derive(Debug, Clone)]
struct Bench {
    rig: Rig,
    watch: Watch,
}

type Verdict = Result<(), String>;

macro_rules! ensure {
    ($what:expr, $($why:tt)+) => {
        if !$what {
            return Err(format!($($why)+));
        }
    };
}

impl Bench {
    fn new(timing: Timing, has_predecessor: bool) -> Self {
        Self {
            rig: Rig::new(timing, has_predecessor),
            watch: Watch {
                lock: false,
                gate: false,
                asked: None,
                restart: None,
                vet: None,
                seal: None,
                child: None,
                server_ended: false,
                predecessor: has_predecessor.then(Peer::default),
                said_ready: false,
                said_serving: false,
                told_commit: false,
                released: false,
                stopped: false,
                exited: false,
                before: None,
                disturbed: false,
            },
        }
    }

    /// Everything that can happen next, in this world.
    fn enabled(&self, restarts: Attempt) -> Vec<Do> {
        let watch = &self.watch;
        match watch.asked {
            Some(Asked::Lock) => return [true, false].map(|won| Input::Locked(won).into()).into(),
            Some(Asked::Commit) => {
                return [true, false].map(|written| Input::Committed(written).into()).into();
            }
            None => {}
        }
        let mut next: Vec<Do> =
            [Input::Begin, Input::Stop, Input::Quit, Input::Idle].map(Do::Give).into();
        if self.rig.machine.poll_timeout().is_some() {
            next.push(Do::Time);
        }
        let mut give = |input: Input| next.push(input.into());
        if !watch.server_ended {
            give(Input::ServerEnded);
        }
        if self.rig.machine.attempt() < restarts || self.rig.machine.state() != Some(State::Serving)
        {
            give(Input::Restart);
        }
        for verdict in [Ok(()), Err(Failure::Vetoed)] {
            watch.vet.into_iter().for_each(|attempt| give(Input::Vetted(attempt, verdict)));
            watch.seal.into_iter().for_each(|attempt| give(Input::Sealed(attempt, verdict)));
        }
        if let Some(Child { attempt, spawned, lost, dead, .. }) = watch.child
            && !dead
        {
            use Heard::*;
            if !spawned {
                give(Input::Spawned(attempt));
                give(Input::SpawnFailed(attempt));
            } else {
                give(Input::SuccessorDied(attempt));
                if !lost {
                    for heard in [Hello, Ready, Serving, Stopping, Release, GaveUp, Garbage, Lost] {
                        give(Input::Successor(attempt, heard));
                    }
                }
            }
        }
        if let Some(Peer { lost, dead, .. }) = watch.predecessor {
            use Told::*;
            if !lost && !dead {
                for told in [Commit, Abort, Released, Garbage, Lost] {
                    give(Input::Predecessor(told));
                }
            }
            if !dead {
                give(Input::PredecessorDied);
            }
        }
        next
    }

    fn step(&mut self, step: Do) -> Verdict {
        let old = self.rig.machine.clone();
        let watch = &mut self.watch;
        watch.asked = None;
        match step {
            Do::Give(Input::Locked(true)) => watch.lock = true,
            Do::Give(Input::Vetted(..)) => watch.vet = None,
            Do::Give(Input::Sealed(..)) => watch.seal = None,
            Do::Give(Input::ServerEnded) => watch.server_ended = true,
            Do::Give(Input::Stop) => watch.stopped |= !watch.exited,
            Do::Give(Input::Predecessor(told)) => {
                watch.disturbed = true;
                watch.told_commit |= told == Told::Commit;
                let peer = watch.predecessor.as_mut().unwrap();
                peer.lost |= told == Told::Lost;
                peer.gone |= matches!(told, Told::Released | Told::Lost | Told::Garbage);
            }
            Do::Give(Input::PredecessorDied) => {
                watch.disturbed = true;
                let peer = watch.predecessor.as_mut().unwrap();
                peer.dead = true;
                peer.gone = true;
            }
            Do::Give(Input::Spawned(_)) => watch.child.as_mut().unwrap().spawned = true,
            Do::Give(Input::SpawnFailed(_) | Input::SuccessorDied(_)) => {
                watch.child.as_mut().unwrap().dead = true;
            }
            Do::Give(Input::Successor(_, heard)) => {
                let child = watch.child.as_mut().unwrap();
                child.lost |= heard == Heard::Lost;
                child.stopping |= heard == Heard::Stopping;
                // Without SERVING before it, RELEASE is a bad frame.
                child.settled |= match old.phase {
                    Phase::Probation { .. }
                    | Phase::Confirming { fate: Fate::Killed | Fate::Unkillable, .. } => {
                        matches!(heard, Heard::Stopping | Heard::Release)
                    }
                    _ => heard == Heard::Stopping && child.committed,
                };
            }
            Do::Give(Input::Committed(written)) => {
                watch.child.as_mut().unwrap().committed = written;
            }
            _ => {}
        }
        let actions = self.rig.step(step);
        let mut answers = 0;
        for (index, action) in actions.iter().enumerate() {
            if let Action::Vet(_) | Action::Refuse(_) = action {
                answers += 1;
            }
            self.act(*action, actions.len() - index - 1)
                .map_err(|why| format!("{why}, at {action:?} of {actions:?}"))?;
        }
        let restart = step == Do::Give(Input::Restart);
        ensure!(answers == usize::from(restart), "a request is answered once, {actions:?}");
        self.judge(&old)
    }

    fn act(&mut self, action: Action, rest: usize) -> Verdict {
        let watch = &mut self.watch;
        let machine = &self.rig.machine;
        ensure!(!watch.exited || matches!(action, Action::Refuse(_)), "exited");
        let ours = |attempt: Attempt| {
            let child = watch.child.filter(|child| child.attempt == attempt);
            child.ok_or_else(|| format!("no successor {attempt}"))
        };
        match action {
            Action::Vet(attempt) => {
                ensure!(watch.restart.is_none(), "the last restart is unanswered");
                ensure!(watch.child.is_none(), "5: the last successor is not forgotten");
                watch.restart = Some(attempt);
                watch.vet = Some(attempt);
                watch.disturbed = false;
            }
            Action::Spawn(attempt) => {
                ensure!(watch.child.is_none(), "5: the last successor is not forgotten");
                watch.child = Some(Child {
                    attempt,
                    spawned: false,
                    lost: false,
                    dead: false,
                    killed: false,
                    sealed: false,
                    committed: false,
                    stopping: false,
                    settled: false,
                });
            }
            Action::Offer(attempt) => ensure!(ours(attempt)?.spawned, "offer to nobody"),
            Action::Seal(attempt) => {
                ensure!(!ours(attempt)?.sealed, "8: sealed twice");
                watch.child.as_mut().unwrap().sealed = true;
                watch.seal = Some(attempt);
            }
            Action::CloseGates(_) => {
                ensure!(watch.gate, "the gate is closed already");
                watch.gate = false;
            }
            Action::Unlock => {
                ensure!(!watch.gate && watch.lock, "2: gate closed, then unlocked");
                watch.lock = false;
            }
            Action::Commit(attempt) => {
                let child = ours(attempt)?;
                ensure!(!watch.gate && !watch.lock, "2: unlocked, then COMMIT");
                ensure!(child.sealed && !child.dead && !child.committed, "8: COMMIT");
                ensure!(rest == 0, "COMMIT is answered at once");
                watch.asked = Some(Asked::Commit);
            }
            Action::Lock => {
                ensure!(rest == 0, "a lock is answered at once");
                if !watch.said_serving
                    && let Some(peer) = watch.predecessor
                    && watch.child.is_none()
                {
                    ensure!(watch.told_commit || peer.dead, "2: a lock without COMMIT or death");
                }
                if let Some(child) = watch.child {
                    let gone = child.dead || child.killed || !child.committed;
                    ensure!(gone, "2: a lock beside a living successor");
                    ensure!(!child.settled, "7: called back after STOPPING or RELEASE");
                }
                watch.asked = Some(Asked::Lock);
            }
            Action::OpenGates => {
                ensure!(watch.lock && !watch.gate, "1: a gate without the lock");
                watch.gate = true;
            }
            Action::Abort(attempt) => ensure!(!ours(attempt)?.dead, "abort the dead"),
            Action::Kill(attempt) => {
                ensure!(!ours(attempt)?.dead, "kill the dead");
                watch.child.as_mut().unwrap().killed = true;
            }
            Action::Forget(attempt) => {
                if let Some(child) = watch.child {
                    ensure!(child.attempt == attempt && child.dead, "5: forgotten alive");
                }
                watch.child = None;
                if machine.phase == Phase::Serving && !watch.disturbed && !watch.released {
                    let now = Machine { attempt: 0, actions: VecDeque::new(), ..machine.clone() };
                    ensure!(Some(&now) == watch.before.as_ref(), "6: not its former self");
                }
            }
            Action::Report(attempt, _) => {
                ensure!(watch.restart == Some(attempt), "a restart is answered once");
                watch.restart = None;
            }
            Action::SayReady => {
                ensure!(!watch.said_ready && machine.state().is_none(), "8: READY");
                watch.said_ready = true;
            }
            Action::SayServing => {
                ensure!(!watch.said_serving && watch.told_commit && watch.lock, "8: SERVING");
                watch.said_serving = true;
            }
            Action::SayStopping | Action::SayRelease => {
                ensure!(!watch.released && watch.said_serving, "told twice, or to nobody");
                watch.released = true;
            }
            Action::SayReleased(attempt) => ensure!(ours(attempt)?.stopping, "RELEASED to nobody"),
            Action::GiveUp(_) => {
                ensure!(!watch.gate && !watch.lock && !watch.said_serving, "gave up an ownership");
                watch.exited = true;
            }
            Action::LetGo => ensure!(!watch.gate && !watch.lock, "let go of what it owns"),
            Action::CloseListeners => watch.gate = false,
            Action::Exit => {
                ensure!(!watch.gate, "an open gate at the exit");
                ensure!(watch.restart.is_none(), "a restart is not answered");
                watch.exited = true;
            }
            Action::Refuse(_)
            | Action::Closing
            | Action::Settled
            | Action::RolledBack(_)
            | Action::Over
            | Action::Cut
            | Action::NotReady
            | Action::Alone => {}
        }
        Ok(())
    }

    /// What must hold after every input.
    fn judge(&mut self, old: &Machine) -> Verdict {
        let Self { rig, watch } = self;
        let machine = &rig.machine;
        if watch.asked.is_some() {
            return Ok(());
        }
        match machine.state() {
            None => {
                // Only as long as the user initialises is there no deadline of our own.
                let waiting = machine.phase != Phase::Initialising;
                ensure!(!watch.gate, "a gate before the first accept");
                ensure!(!waiting || machine.poll_timeout().is_some(), "9: no deadline");
            }
            Some(State::Serving) => {
                ensure!(watch.gate && watch.lock, "it serves");
                ensure!(watch.restart.is_none(), "a restart is not answered");
                if machine.phase == Phase::Serving && watch.child.is_none() {
                    let now = Machine { attempt: 0, ..machine.clone() };
                    watch.before = Some(now);
                    ensure!(machine.ghost.is_none(), "a ghost of nobody");
                }
            }
            Some(State::Forking) => {
                ensure!(watch.gate && watch.lock, "it serves while it forks");
                ensure!(watch.restart.is_some(), "forking without a request");
                ensure!(machine.poll_timeout().is_some(), "9: no deadline");
            }
            Some(State::Draining) => {
                ensure!(!watch.gate, "a gate while draining");
                ensure!(machine.poll_timeout().is_some(), "9: no deadline");
            }
            Some(State::Exited) => {
                ensure!(watch.exited, "exited without saying so");
                ensure!(machine.poll_timeout().is_none(), "a deadline after the end");
            }
        }
        let heir = watch.predecessor.is_some_and(|peer| !peer.gone);
        if watch.stopped && watch.said_serving && heir {
            ensure!(watch.released, "7: a stop that no predecessor knows of");
        }
        if old.is_leaving() {
            ensure!(machine.is_leaving(), "irreversible");
        }
        Ok(())
    }

    /// What must change nothing, in whatever state.
    fn inert(&self) -> Verdict {
        let Self { rig, watch } = self;
        let machine = &rig.machine;
        if watch.asked.is_some() {
            return Ok(());
        }
        // 8 and the attempts' numbers: whatever comes from another attempt changes nothing.
        for attempt in [machine.attempt.wrapping_sub(1), machine.attempt + 1] {
            for input in [
                Input::Vetted(attempt, Ok(())),
                Input::Sealed(attempt, Ok(())),
                Input::Spawned(attempt),
                Input::SpawnFailed(attempt),
                Input::SuccessorDied(attempt),
                Input::Successor(attempt, Heard::Ready),
                Input::Successor(attempt, Heard::Stopping),
                Input::Successor(attempt, Heard::Garbage),
            ] {
                let mut other = machine.clone();
                other.handle(input, rig.now);
                ensure!(&other == machine, "a stale {input:?} changed something");
            }
        }
        // A timeout that comes early is harmless.
        if let Some(at) = machine.poll_timeout()
            && let Some(early) = at.checked_sub(Duration::from_nanos(1))
        {
            let mut other = machine.clone();
            other.handle_timeout(early.min(rig.now));
            ensure!(&other == machine || at <= rig.now, "an early timeout changed something");
        }
        Ok(())
    }
}

/// Every sequence of inputs, until no new state is found: so of any length, with this many
/// restarts.
fn explore(timing: Timing, has_predecessor: bool, restarts: Attempt) -> usize {
    let start = Bench::new(timing, has_predecessor);
    let mut seen = HashSet::from([(start.rig.machine.clone(), start.watch.clone())]);
    let mut from: HashMap<usize, (usize, Do)> = HashMap::new();
    let mut benches = vec![start];
    let mut next = 0;
    while next < benches.len() {
        for step in benches[next].enabled(restarts) {
            let mut bench = benches[next].clone();
            if let Err(why) = bench.step(step) {
                let mut path = vec![step];
                let mut at = next;
                while let Some((before, step)) = from.get(&at) {
                    path.push(*step);
                    at = *before;
                }
                path.reverse();
                panic!("{why}\nafter {path:?}");
            }
            if seen.insert((bench.rig.machine.clone(), bench.watch.clone())) {
                from.insert(benches.len(), (next, step));
                let inert = bench.inert();
                assert!(inert.is_ok(), "{inert:?} in {bench:?}");
                benches.push(bench);
            }
        }
        next += 1;
    }
    benches.len()
}

fn explore_all(name: &str, timing: Timing, restarts: Attempt) {
    for has_predecessor in [false, true] {
        let states = explore(timing, has_predecessor, restarts);
        println!("{name} timing, predecessor {has_predecessor}: {states} states");
        assert!(states > 500);
    }
}

#[test]
fn every_sequence_of_inputs() {
    explore_all("ordinary", timing(), 2);
}

#[test]
fn every_sequence_of_inputs_with_hasty_deadlines() {
    explore_all("hasty", hasty(), 1);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..Default::default() })]

    /// Long lives: many restarts, one after the other.
    #[test]
    fn long_sequences(
        has_predecessor: bool,
        choices in prop::collection::vec(any::<prop::sample::Index>(), 1..400),
    ) {
        let mut bench = Bench::new(timing(), has_predecessor);
        for (at, choice) in choices.iter().enumerate() {
            let mut enabled = bench.enabled(Attempt::MAX);
            // Most lives would be short otherwise.
            if at < choices.len() / 2 {
                enabled.retain(|step| {
                    !matches!(step, Do::Give(Input::Stop | Input::Quit | Input::ServerEnded))
                });
            }
            let step = enabled[choice.index(enabled.len())];
            let verdict = bench.step(step).and_then(|()| bench.inert());
            prop_assert!(verdict.is_ok(), "{}", verdict.unwrap_err());
        }
    }

    /// 10: the inputs of one wake-up, in any order, give the same state and actions.
    #[test]
    fn one_wake_up_in_any_order(
        has_predecessor: bool,
        choices in prop::collection::vec(any::<prop::sample::Index>(), 0..60),
        batch in prop::collection::vec(any::<prop::sample::Index>(), 2..6),
        keys in prop::collection::vec(any::<u32>(), 6),
    ) {
        let mut bench = Bench::new(timing(), has_predecessor);
        for choice in &choices {
            let enabled = bench.enabled(Attempt::MAX);
            bench.step(enabled[choice.index(enabled.len())]).unwrap();
        }
        // One input of each source: several frames of one link keep their order.
        let enabled = bench.enabled(Attempt::MAX);
        let mut inputs: Vec<Input> = Vec::new();
        for choice in &batch {
            if let Do::Give(input) = enabled[choice.index(enabled.len())]
                && inputs.iter().all(|other| !same_source(*other, input))
            {
                inputs.push(input);
            }
        }
        let wake = |mut inputs: Vec<Input>| {
            inputs.sort_by_key(Input::rank);
            let mut rig = bench.rig.clone();
            let actions: Vec<_> = inputs.into_iter().flat_map(|input| rig.step(input)).collect();
            (rig.machine, actions)
        };
        let mut shuffled: Vec<_> = inputs.iter().copied().zip(&keys).collect();
        shuffled.sort_by_key(|(_, key)| **key);
        let shuffled = shuffled.into_iter().map(|(input, _)| input).collect();
        prop_assert_eq!(wake(inputs), wake(shuffled));
    }
}

fn same_source(one: Input, other: Input) -> bool {
    use Input::*;
    let started = |input| matches!(input, Spawned(_) | SpawnFailed(_));
    std::mem::discriminant(&one) == std::mem::discriminant(&other)
        || (started(one) && started(other))
}
