//! Whatever becomes of the old process, the new one serves everything or exits cleanly.

use std::os::fd::OwnedFd;

use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socketpair, sockopt,
};

use super::common::{
    DEADLINE, SOON, Serving, ask, finish, has_rolled_back, hold, load, outcome, plain, restart,
    serving, settled, start, stop,
};
use super::talk;
use crate::client::{Load, Running};
use crate::signal::Signal;
use crate::{Case, Context, Failure, Scenario, ensure, hygiene, poll_until};

macro_rules! case {
    ($name:literal, $clause:literal, $run:expr) => {
        Case {
            name: concat!("old_process_fails::", $name),
            clause: $clause,
            deadline: DEADLINE,
            needs: &[],
            run: $run,
        }
    };
}

pub(super) const CASES: &[Case] = &[
    case!(
        "killed_before_the_offer",
        "SIGKILL of the old one before the offer: the new one binds and serves everything",
        |case| killed(case, Step::Born)
    ),
    case!(
        "killed_after_the_offer",
        "SIGKILL of the old one after the offer: the new one serves what it was offered",
        |case| killed(case, Step::Offered)
    ),
    case!("killed_after_ready", "SIGKILL of the old one after READY: the new one serves", |case| {
        killed(case, Step::Ready)
    }),
    case!(
        "killed_after_commit",
        "SIGKILL of the old one right after COMMIT: the new one serves",
        |case| killed(case, Step::Committed)
    ),
    case!(
        "killed_while_draining",
        "SIGKILL of the old one while it drains: the new one notices, and nobody else",
        draining
    ),
    case!(
        "killed_again_and_again",
        "SIGKILL of the old one at any moment of a restart: exactly one process serves afterwards",
        at_any_moment
    ),
    case!(
        "wedged_before_the_offer",
        "the old one is stopped (SIGSTOP) before its offer: the new one gives up, no second owner",
        |case| wedged(case, Step::Born)
    ),
    case!(
        "wedged_after_ready",
        "the old one is stopped (SIGSTOP) after READY: the new one gives up, no second owner",
        |case| wedged(case, Step::Ready)
    ),
    case!(
        "wedged_after_commit",
        "the old one is stopped (SIGSTOP) while it drains: the new one serves, restarts and stops",
        wedged_draining
    ),
    case!(
        "its_runtime_hangs",
        "the old one's runtime hangs in the program's own code: the new one gives up",
        hangs
    ),
    case!(
        "its_driver_is_dropped_during_a_restart",
        "the old one's driver is dropped before COMMIT: no second owner, and no process is left",
        |case| driver_dropped(case, false)
    ),
    case!(
        "its_driver_is_dropped_while_draining",
        "the old one's driver is dropped after COMMIT: the new one serves, and learns it",
        |case| driver_dropped(case, true)
    ),
    case!(
        "it_breaks_the_protocol",
        "garbage, another version, a wrong count of descriptors, silence or an abort from the old \
         one: the new one ends with an error that says so, and has accepted nothing",
        breaks_the_protocol
    ),
    case!(
        "the_new_one_learns_it",
        "the successor learns when its predecessor has gone within the probation",
        learns
    ),
];

/// A deadline that only who is wedged reaches, in milliseconds: all others are within it, on a
/// machine that may be busy with something else.
const REACHED: u64 = 8_000;

#[derive(Clone, Copy, PartialEq)]
enum Step {
    /// The successor exists and has asked for nothing.
    Born,
    Offered,
    Ready,
    Committed,
}

/// Fresh connections, whose answers tell who accepts.
fn fresh(case: &Context, server: &Serving) -> Result<Running, Failure> {
    let load = case.start_load(Load::builder(server.address()?).fresh(300.0))?;
    load.wait_for_answers(50, SOON)?;
    Ok(load)
}

/// Waits until a process other than `old` waits at that place.
fn waits(case: &Context, old: u32, place: &str) -> Result<u32, Failure> {
    let event = case.timeline().wait_for(place, SOON, |event| {
        event.is("waits")
            && event.get("place") == Some(place)
            && event.pid.is_some_and(|pid| pid != old)
    })?;
    event.pid.ok_or_else(|| Failure::new("an event of nobody"))
}

/// Waits until the old process waits in its hook before the commit.
fn waits_to_commit(case: &Context, old: u32) -> Result<(), Failure> {
    case.timeline().wait_for("the hook before the commit", SOON, |event| {
        event.pid == Some(old) && event.is("waits") && event.get("place") == Some("commit")
    })?;
    Ok(())
}

/// What the new process binds if it inherits nothing: the same address.
fn at(server: &Serving) -> Result<Scenario, Failure> {
    Ok(Scenario::new().with("listen", format!("web tcp {}", server.address()?)))
}

fn killed(case: &Context, step: Step) -> Result<(), Failure> {
    let hook = match step {
        Step::Ready => "before commit wait commit",
        Step::Committed => "after commit kill",
        _ => "after commit ok",
    };
    let first = start(case, &plain().with("hooks", hook))?;
    let load = fresh(case, &first)?;
    let scenario = at(&first)?.with("hooks", "after alone ok");
    let pause = match step {
        Step::Born => "at.born",
        Step::Offered => "at.claimed",
        _ => "at.never",
    };
    case.set_scenario(&scenario.clone().with(pause, "wait here"))?;
    case.signal(first.pid, Signal::HUP)?;
    let second = match step {
        Step::Born | Step::Offered => {
            let second = waits(case, first.pid, "here")?;
            case.signal(first.pid, Signal::KILL)?;
            case.wait_exit(first.pid, SOON)?;
            case.command(second, "go", &[("at", "here")])?;
            second
        }
        Step::Ready => {
            waits_to_commit(case, first.pid)?;
            case.signal(first.pid, Signal::KILL)?;
            case.wait_for_other(&[first.pid], "born", SOON)?.pid.unwrap_or(0)
        }
        Step::Committed => case.wait_for_other(&[first.pid], "born", SOON)?.pid.unwrap_or(0),
    };
    case.wait_exit(first.pid, SOON)?;
    let server = serving(case, second)?;
    ensure!(server.address()? == first.address()?, "it serves elsewhere");
    let claimed = case.wait_for_from(second, "claimed", SOON)?;
    let origin = if step == Step::Born { "Bound" } else { "Inherited" };
    ensure!(claimed.get("origin") == Some(origin), "{claimed}");
    load.wait_for_successor(first.pid, SOON)?;
    load.wait_for_answers(100, SOON)?;
    let report = load.stop();
    let lost = report.groups[0].lost;
    // What the dead one had accepted, and in the first case what waited for it.
    ensure!(lost.timed_out == 0, "a client was left waiting:\n{report}");
    ensure!(step == Step::Born || lost.refused == 0, "clients were refused:\n{report}");
    ensure!(report.serving() == Some(second), "{report}");
    settled(case, &[second])?;
    case.set_scenario(&plain())?;
    let load = super::common::load(case, server.address()?)?;
    finish(case, load, second)
}

fn draining(case: &Context) -> Result<(), Failure> {
    let first = start(case, &plain())?;
    hold(case, first.pid)?;
    let second = restart(case, first.pid)?;
    let load = load(case, first.address()?)?;
    // Beyond its probation.
    case.wait_for_from(first.pid, "stage", SOON)?;
    case.signal(first.pid, Signal::KILL)?;
    case.wait_exit(first.pid, SOON)?;
    finish(case, load, second.pid)
}

fn at_any_moment(case: &Context) -> Result<(), Failure> {
    // The moments between the steps that can be waited for: an event of the restart, and then the
    // kill at once. Which step that meets is left to chance; that one serves is not.
    // Long enough for who was replaced to be killed, and not to have left.
    let first = start(case, &plain().with("policy.probation", 20_000))?;
    let scenario = at(&first)?.with("policy.probation", 20_000).with("state", 100_000);
    case.set_scenario(&scenario)?;
    let mut server = first.pid;
    let address = first.address()?;
    for moment in ["born", "started", "claimed", "ready", "serving"].iter().cycle().take(15) {
        let seen = case.timeline().len();
        case.signal(server, Signal::HUP)?;
        case.timeline().wait_for_after(seen, moment, SOON, |event| {
            event.is(moment) && event.pid != Some(server)
        })?;
        case.signal(server, Signal::KILL)?;
        case.wait_exit(server, SOON)?;
        let next = case.timeline().wait_for_after(seen, "a successor", SOON, |event| {
            event.is("born") && event.pid != Some(server)
        })?;
        server = next.pid.unwrap_or(0);
        serving(case, server)?;
        let said = talk::get(address, "/")?;
        ensure!(said.pid == server, "{said:?}, not {server}");
        settled(case, &[server])?;
    }
    stop(case, server)
}

/// Stops a process as a debugger or a full disk would, and waits until it is stopped.
fn freeze(case: &Context, pid: u32) -> Result<(), Failure> {
    case.signal(pid, Signal::STOP)?;
    poll_until(SOON, "a stopped process", || {
        hygiene::listed(pid).filter(|process| process.state == 'T').map(drop)
    })
}

fn wedged(case: &Context, step: Step) -> Result<(), Failure> {
    let old = plain().with("policy.hooks", REACHED).with("policy.confirm", REACHED);
    let old =
        if step == Step::Ready { old.with("hooks", "before commit wait commit") } else { old };
    let first = start(case, &old)?;
    let load = load(case, first.address()?)?;
    let new = at(&first)?.with("policy.spawn", REACHED);
    let seen = case.timeline().len();
    let second = if step == Step::Born {
        case.set_scenario(&new.with("at.born", "wait here"))?;
        case.signal(first.pid, Signal::HUP)?;
        let second = waits(case, first.pid, "here")?;
        freeze(case, first.pid)?;
        case.command(second, "go", &[("at", "here")])?;
        second
    } else {
        case.set_scenario(&new)?;
        case.signal(first.pid, Signal::HUP)?;
        waits_to_commit(case, first.pid)?;
        freeze(case, first.pid)?;
        case.wait_for_other(&[first.pid], "born", SOON)?.pid.unwrap_or(0)
    };
    // It has accepted nothing, and says why.
    let failed = case.wait_for_from(second, "failed", SOON)?;
    ensure!(failed.get("reason").is_some_and(|reason| reason.contains("take over")), "{failed}");
    case.wait_exit(second, SOON)?;
    let served = case
        .timeline()
        .events()
        .iter()
        .any(|event| event.pid == Some(second) && event.is("serving"));
    ensure!(!served, "it served");
    case.signal(first.pid, Signal::CONT)?;
    let outcome = outcome(case, first.pid, seen)?;
    ensure!(outcome.get("ok") == Some("false"), "{outcome}");
    load.wait_for_answers(50, SOON)?;
    case.set_scenario(&plain())?;
    case.command(first.pid, "go", &[("at", "commit")])?;
    finish(case, load, first.pid)
}

fn wedged_draining(case: &Context) -> Result<(), Failure> {
    let first = start(case, &plain().with("policy.probation", 20_000))?;
    let load = load(case, first.address()?)?;
    case.set_scenario(&plain())?;
    let second = restart(case, first.pid)?;
    load.wait_for_successor(first.pid, SOON)?;
    // Its kept connections would wait with it.
    let report = load.stop();
    case.nothing_lost(&report)?;
    freeze(case, first.pid)?;
    // Beside it the service goes on, with a restart.
    let load = super::common::load(case, first.address()?)?;
    let third = restart(case, second.pid)?;
    load.wait_for_successor(second.pid, SOON)?;
    let report = load.stop();
    case.nothing_lost(&report)?;
    // A stop does not wait for it for ever.
    case.signal(third.pid, Signal::TERM)?;
    case.wait_exit(third.pid, SOON)?;
    case.wait_exit(second.pid, SOON)?;
    case.signal(first.pid, Signal::CONT)?;
    case.wait_exit(first.pid, SOON)?;
    ensure!(!has_rolled_back(case, first.pid), "it came back");
    ensure!(talk::is_refused(first.address()?), "somebody listens");
    case.wait_only(&[], SOON)
}

fn hangs(case: &Context) -> Result<(), Failure> {
    let old = plain().with("policy.hooks", REACHED).with("policy.confirm", REACHED);
    let first = start(case, &old)?;
    let new = at(&first)?.with("policy.spawn", REACHED).with("at.born", "wait here");
    case.set_scenario(&new)?;
    case.signal(first.pid, Signal::HUP)?;
    let second = waits(case, first.pid, "here")?;
    case.command(first.pid, "thread-act", &[("action", "wait thread")])?;
    waits_in(case, first.pid, "thread")?;
    case.command(second, "go", &[("at", "here")])?;
    // On a runtime of several threads its driver may go on by itself.
    let end = case.timeline().wait_for("a verdict", SOON, |event| {
        event.pid == Some(second) && (event.is("failed") || event.is("serving"))
    })?;
    ensure!(end.is("failed"), "{end}");
    case.wait_exit(second, SOON)?;
    case.command(first.pid, "go", &[("at", "thread")])?;
    let seen = 0;
    let outcome = outcome(case, first.pid, seen)?;
    ensure!(outcome.get("ok") == Some("false"), "{outcome}");
    case.set_scenario(&plain())?;
    let load = load(case, first.address()?)?;
    finish(case, load, first.pid)
}

fn waits_in(case: &Context, pid: u32, place: &str) -> Result<(), Failure> {
    case.timeline().wait_for(place, SOON, |event| {
        event.pid == Some(pid) && event.is("waits") && event.get("place") == Some(place)
    })?;
    Ok(())
}

fn driver_dropped(case: &Context, draining: bool) -> Result<(), Failure> {
    let first = start(case, &plain().with("policy.probation", 20_000))?;
    if draining {
        case.set_scenario(&at(&first)?.with("hooks", "after alone ok"))?;
        let second = restart(case, first.pid)?;
        let load = fresh(case, &second)?;
        case.command(first.pid, "go", &[("at", "drop-run")])?;
        case.wait_for_from(first.pid, "dropped", SOON)?;
        learnt(case, second.pid)?;
        let report = load.stop();
        case.nothing_lost(&report)?;
        ensure!(report.serving() == Some(second.pid), "{report}");
        case.command(first.pid, "go", &[("at", "end")])?;
        case.wait_exit(first.pid, SOON)?;
        settled(case, &[second.pid])?;
        return stop(case, second.pid);
    }
    case.set_scenario(&at(&first)?.with("at.claimed", "wait here"))?;
    case.signal(first.pid, Signal::HUP)?;
    let second = waits(case, first.pid, "here")?;
    case.command(first.pid, "go", &[("at", "drop-run")])?;
    case.wait_for_from(first.pid, "dropped", SOON)?;
    // It was killed; had it lived, it would have seen the link lost and the process alive.
    case.wait_exit(second, SOON)?;
    case.wait_only(&[first.pid], SOON)?;
    ensure!(talk::is_refused(first.address()?), "somebody listens");
    case.command(first.pid, "go", &[("at", "end")])?;
    case.wait_exit(first.pid, SOON)?;
    case.wait_only(&[], SOON)
}

fn learnt(case: &Context, pid: u32) -> Result<(), Failure> {
    case.timeline().wait_for("the hook for the loss of the predecessor", SOON, |event| {
        event.pid == Some(pid) && event.is("hook") && event.get("event") == Some("alone")
    })?;
    Ok(())
}

fn learns(case: &Context) -> Result<(), Failure> {
    let scenario = plain().with("policy.probation", 20_000).with("hooks", "after alone ok");
    let first = start(case, &scenario)?;
    let load = fresh(case, &first)?;
    let outcome = ask(case, first.pid)?;
    let second = super::common::took_over(case, &outcome)?;
    load.wait_for_successor(first.pid, SOON)?;
    case.signal(first.pid, Signal::KILL)?;
    learnt(case, second.pid)?;
    let report = load.stop();
    ensure!(report.groups[0].lost.refused == 0, "{report}");
    case.set_scenario(&plain())?;
    let load = super::common::load(case, first.address()?)?;
    let next = restart(case, second.pid)?;
    load.wait_for_successor(second.pid, SOON)?;
    let report = load.stop();
    case.nothing_lost(&report)?;
    case.signal(second.pid, Signal::TERM)?;
    case.wait_exit(second.pid, SOON)?;
    settled(case, &[next.pid])?;
    stop(case, next.pid)
}

/// Starts the subject as the successor of this very process, which then speaks by hand.
fn succeed(case: &Context, instance: &str) -> Result<(u32, OwnedFd), Failure> {
    let flags = SocketFlags::CLOEXEC;
    let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
    let cookie = sockopt::socket_cookie(&theirs)?;
    let subject = case
        .subject()
        .through(["sh", "-c", "exec \"$0\" \"$@\" 3<&0 0</dev/null"])
        .env("HANDOVER", format!("{instance}:3:{cookie}"))
        .stdin(theirs)
        .start()?;
    Ok((subject.pid(), ours))
}

fn breaks_the_protocol(case: &Context) -> Result<(), Failure> {
    // OFFER: version, generation, how many descriptors, how long COMMIT may take.
    let offer = |version: u8, descriptors: u8| {
        vec![2, version, 0, 1, 0, 0, 0, descriptors, 0, 0, 200, 0, 0]
    };
    let faults: [(&str, Vec<Vec<u8>>, &str); 9] = [
        ("garbage", vec![b"HTTP/1.1 200 OK\r\n\r\n".to_vec()], "take over"),
        ("half a frame", vec![vec![2, 1]], "take over"),
        ("an oversized frame", vec![vec![2; 100_000]], "take over"),
        ("another version", vec![offer(77, 0)], "version 77"),
        (
            "no descriptor where one belongs",
            vec![offer(1, 1), vec![3, 1, 2]],
            "0 descriptors came of 1",
        ),
        ("more than was announced", vec![offer(1, 1), vec![3, 2, 2, 3]], "take over"),
        ("two offers", vec![offer(1, 1), offer(1, 1)], "a second offer"),
        ("an abort", vec![vec![10, 3, 0, b'n', b'o', b'!']], "no!"),
        ("silence", vec![], "no offer in time"),
    ];
    // Only silence is to reach a deadline.
    let (silent, patient) = (plain().with("policy.spawn", REACHED), plain());
    let failed = |pid: u32, what: &str, said: &str| -> Result<(), Failure> {
        let failed = case.wait_for_from(pid, "failed", SOON)?;
        let reason = failed.get("reason").unwrap_or_default();
        ensure!(reason.contains(said), "{what}: no `{said}` in `{reason}`");
        case.wait_exit(pid, SOON)?;
        Ok(())
    };
    for (what, frames, said) in faults {
        case.set_scenario(if frames.is_empty() { &silent } else { &patient })?;
        let (pid, socket) = succeed(case, "main")?;
        let mut hello = [0; 64];
        let (_, length) = recv(&socket, &mut hello[..], RecvFlags::empty())?;
        // The bytes of version 1: later ones must begin in the same way.
        ensure!(length == 13 && hello.starts_with(b"\x01HNDO\x01\0"), "{:?}", &hello[..length]);
        for frame in frames {
            send(&socket, &frame, SendFlags::NOSIGNAL)?;
        }
        failed(pid, what, said)?;
    }
    let (pid, socket) = succeed(case, "main")?;
    drop(socket);
    failed(pid, "a closed socket", "closed the handover socket")?;
    // An offer that is whole, and then no commit, or something else in its place.
    for (what, frame, said) in [
        ("no commit", None, "did not commit in time"),
        ("an abort after ready", Some(vec![10, 0, 0]), "aborted"),
        ("serving in place of the commit", Some(vec![6]), "broke the protocol"),
    ] {
        let (pid, socket) = succeed(case, "main")?;
        let mut offer = offer(1, 0);
        if frame.is_none() {
            // A quarter of a second instead of fifty.
            offer[10] = 1;
        }
        send(&socket, &offer, SendFlags::NOSIGNAL)?;
        case.wait_for_from(pid, "ready", SOON)?;
        if let Some(frame) = frame {
            send(&socket, &frame, SendFlags::NOSIGNAL)?;
        }
        failed(pid, what, said)?;
    }
    let served = case.timeline().events().iter().any(|event| event.is("serving"));
    ensure!(!served, "one has served");
    // What was left for another instance is not for this one.
    case.set_scenario(&patient)?;
    let (pid, socket) = succeed(case, "other")?;
    let server = serving(case, pid)?;
    drop(socket);
    ensure!(talk::get(server.address()?, "/")?.pid == pid, "another has answered");
    case.signal(pid, Signal::TERM)?;
    case.wait_exit(pid, SOON)?;
    case.wait_only(&[], SOON)
}
