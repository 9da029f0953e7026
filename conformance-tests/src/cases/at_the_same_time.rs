//! Requests that come together: one successor, and a typed answer for everybody else.

use std::time::Duration;

use super::common::{
    DEADLINE, SOON, Serving, finish, load, outcome, plain, refused, restart, serving, settled,
    start, stop, took_over,
};
use super::talk::Talk;
use crate::signal::{Exit, Process, Signal};
use crate::timeline::Event;
use crate::{Case, Context, Failure, Stamp, ensure, hygiene, poll_until};

macro_rules! case {
    ($name:literal, $clause:literal, $run:expr) => {
        Case {
            name: concat!("at_the_same_time::", $name),
            clause: $clause,
            deadline: DEADLINE,
            needs: &[],
            run: $run,
        }
    };
}

pub(super) const CASES: &[Case] = &[
    case!(
        "two_restarts_one_successor",
        "two restarts asked at once, by signal and by handle: one successor, typed refusals",
        two_restarts
    ),
    case!(
        "a_burst_of_signals_is_one",
        "five signals within 10 ms count as one: one new generation",
        burst
    ),
    case!(
        "a_restart_while_an_older_generation_drains",
        "a restart while the previous generation drains: nobody waits for it",
        while_draining
    ),
    case!(
        "at_the_cap_the_oldest_ends_its_linger",
        "at the generation cap the oldest's linger ends, and the restart succeeds",
        cap_of_lingering
    ),
    case!(
        "at_the_cap_requests_are_not_cut",
        "at the cap a generation that still works is waited for, then the restart is refused: \
         nothing is cut",
        cap_of_working
    ),
    case!(
        "a_storm_of_restarts",
        "a restart every 250 ms: bounded generations, no zombie, nothing lost",
        storm
    ),
    case!(
        "a_stop_ends_the_successor_that_starts",
        "a stop during Forking ends the successor, at every step, and drains",
        stop_while_forking
    ),
    case!(
        "a_second_stop_does_not_wait_for_the_successor",
        "a second stop during Forking ends both at once",
        second_stop_while_forking
    ),
    case!(
        "a_restart_and_a_stop_together",
        "a restart and a stop at once: one of them is first, and the service ends",
        restart_and_stop
    ),
];

/// Waits until a process other than `old` waits at that place.
fn waits(case: &Context, old: u32, place: &str) -> Result<u32, Failure> {
    let event = case.timeline().wait_for(place, SOON, |event| {
        event.is("waits")
            && event.get("place") == Some(place)
            && event.pid.is_some_and(|pid| pid != old)
    })?;
    event.pid.ok_or_else(|| Failure::new("an event of nobody"))
}

/// The answer that the command `restart` with this id got.
fn answer(case: &Context, pid: u32, id: &str) -> Result<Event, Failure> {
    case.timeline().wait_for("an answer", SOON * 2, |event| {
        event.pid == Some(pid) && event.is("answer") && event.get("id") == Some(id)
    })
}

/// How many processes of the case have not ended. When the dead are buried is not theirs.
fn living(case: &Context) -> usize {
    case.processes().iter().filter(|process| !process.is_zombie()).count()
}

/// Processes of the case that have ever been.
fn born(case: &Context) -> usize {
    case.timeline().events().iter().filter(|event| event.is("born")).count()
}

fn two_restarts(case: &Context) -> Result<(), Failure> {
    // Who has been replaced is still there for the second request.
    let plain = || plain().with("policy.probation", 20_000);
    let first = start(case, &plain())?;
    let load = load(case, first.address()?)?;
    case.set_scenario(&plain().with("at.claimed", "wait here"))?;
    let seen = case.timeline().len();
    case.command(first.pid, "restart", &[("id", "one")])?;
    waits(case, first.pid, "here")?;
    case.command(first.pid, "restart", &[("id", "two")])?;
    let refused = answer(case, first.pid, "two")?;
    ensure!(refused.get("failure") == Some("InProgress"), "{refused}");
    let by_signal = super::common::refused(case, first.pid, "InProgress")?;
    let second = waits(case, first.pid, "here")?;
    case.command(second, "go", &[("at", "here")])?;
    let taken = answer(case, first.pid, "one")?;
    ensure!(taken.get("ok") == Some("true"), "{taken}");
    ensure!(taken.get("pid") == Some(&second.to_string()), "{taken}");
    ensure!(born(case) == 2, "{} processes", born(case));
    drop(by_signal);
    // Both at once, in whatever order they are seen: exactly one of them wins.
    case.set_scenario(&plain())?;
    let _ = seen;
    let mut server = serving(case, second)?;
    // It gives up its probation.
    case.signal(first.pid, Signal::TERM)?;
    for round in 0..5 {
        let old = server.pid;
        if round == 4 {
            // Nobody asks the last of them twice.
            case.set_scenario(&super::common::plain())?;
        }
        let before = born(case);
        let seen = case.timeline().len();
        let id = format!("round {round}");
        case.command(old, "restart", &[("id", &id)])?;
        case.signal(old, Signal::HUP)?;
        let by_handle = answer(case, old, &id)?;
        let mut won = 0;
        let mut taken = None;
        // The answer's own outcome is among those told.
        case.timeline().wait_for_after(seen, "both outcomes", SOON, |event| {
            if event.pid == Some(old) && event.is("restart") {
                won += 1;
                if event.get("ok") == Some("true") {
                    taken = Some(event.clone());
                } else {
                    let failure = event.get("failure").unwrap_or_default();
                    assert_refusal(failure, &mut won);
                }
            }
            won == 2
        })?;
        let taken = taken.ok_or_else(|| Failure::new(format!("nobody won: {by_handle}")))?;
        server = took_over(case, &taken)?;
        case.signal(old, Signal::TERM)?;
        ensure!(born(case) == before + 1, "{} processes more", born(case) - before);
    }
    finish(case, load, server.pid)
}

/// Makes the count impossible for a refusal of another class.
fn assert_refusal(failure: &str, won: &mut i32) {
    if !["InProgress", "Stopping"].contains(&failure) {
        *won = i32::MIN;
    }
}

fn burst(case: &Context) -> Result<(), Failure> {
    let first = start(case, &plain())?;
    let load = load(case, first.address()?)?;
    let process = Process::open(first.pid)?;
    let seen = case.timeline().len();
    let begun = Stamp::now();
    process.signal(Signal::HUP)?;
    for _ in 1..5 {
        // It may have been replaced and gone, if this thread is late.
        let _ = process.signal(Signal::HUP);
        let next = begun + Duration::from_millis(2);
        while Stamp::now() < next && born(case) < 2 {
            std::hint::spin_loop();
        }
    }
    let taken = case.timeline().wait_for_after(seen, "the outcome", SOON, |event| {
        event.pid == Some(first.pid) && event.is("restart") && event.get("ok") == Some("true")
    })?;
    let second = took_over(case, &taken)?;
    load.wait_for_successor(first.pid, SOON)?;
    case.wait_exit(first.pid, SOON)?;
    ensure!(born(case) == 2, "{} processes", born(case));
    for event in case.timeline().events() {
        let other = event.is("restart") && event.get("ok") == Some("false");
        let refusal = ["InProgress", "Stopping"].map(Some).contains(&event.get("failure"));
        ensure!(!other || refusal, "{event}");
    }
    finish(case, load, second.pid)
}

fn while_draining(case: &Context) -> Result<(), Failure> {
    let first = start(case, &plain())?;
    let load = load(case, first.address()?)?;
    let mut servers = vec![first];
    let mut talks = Vec::new();
    for _ in 0..4 {
        let server = &servers[servers.len() - 1];
        // Each generation has a client that does not go.
        let mut talk = Talk::to(server.address()?)?;
        ensure!(talk.ping()?.pid == server.pid, "another has answered");
        talks.push(talk);
        let next = restart(case, server.pid)?;
        servers.push(next);
    }
    let pids: Vec<u32> = servers.iter().map(|server| server.pid).collect();
    for (talk, pid) in talks.iter_mut().zip(&pids) {
        let said = talk.ping()?;
        ensure!(said.pid == *pid, "{said:?}, not {pid}");
    }
    case.wait_only(&pids, SOON)?;
    // The oldest, the youngest: they leave in whatever order their clients do.
    let newest = pids[pids.len() - 1];
    while let Some(talk) = talks.pop() {
        drop(talk);
        case.wait_exit(pids[talks.len()], SOON)?;
    }
    finish(case, load, newest)
}

fn cap_of_lingering(case: &Context) -> Result<(), Failure> {
    let scenario = plain().with("policy.generations", 2).with("policy.linger", 20_000);
    let mut server = start(case, &scenario)?;
    let mut idle = Vec::new();
    let mut pids = vec![server.pid];
    for number in 0..5 {
        // A connection that could be used again, and keeps its process only for its linger.
        let mut talk = Talk::to(server.address()?)?;
        ensure!(talk.get("/")?.pid == server.pid, "another has answered");
        idle.push(talk);
        server = restart(case, server.pid)?;
        pids.push(server.pid);
        let draining = living(case) - 1;
        ensure!(draining <= 3, "{draining} generations drain after {number}");
    }
    // The first ones were asked to end.
    case.wait_exit(pids[0], SOON)?;
    let load = load(case, server.address()?)?;
    drop(idle);
    let report = load.stop();
    case.nothing_lost(&report)?;
    for pid in case.processes().iter().map(|process| process.pid).filter(|pid| *pid != server.pid) {
        // It may have gone by itself.
        let _ = case.signal(pid, Signal::TERM);
    }
    settled(case, &[server.pid])?;
    stop(case, server.pid)
}

fn cap_of_working(case: &Context) -> Result<(), Failure> {
    let scenario = plain().with("policy.generations", 1).with("policy.hooks", 3_000);
    let first = start(case, &scenario)?;
    let mut talk = Talk::to(first.address()?)?;
    talk.ping()?;
    let second = restart(case, first.pid)?;
    let load = load(case, second.address()?)?;
    // Beyond its linger, which is not what keeps it.
    case.wait_for_from(first.pid, "stage", SOON)?;
    for _ in 0..2 {
        refused(case, second.pid, "TooManyGenerations")?;
        let said = talk.ping()?;
        ensure!(said.pid == first.pid, "{said:?}");
    }
    drop(talk);
    case.wait_exit(first.pid, SOON)?;
    case.set_scenario(&plain())?;
    finish(case, load, second.pid)
}

fn storm(case: &Context) -> Result<(), Failure> {
    const EVERY: Duration = Duration::from_millis(250);
    let scenario = plain().with("policy.generations", 4).with("policy.probation", 100);
    let first = start(case, &scenario)?;
    let load = load(case, first.address()?)?;
    let begun = Stamp::now();
    let mut server = first.pid;
    let mut most = 0;
    for round in 0..20 {
        // The pace is the case; whatever the last one has come to by then.
        let due = begun + EVERY * round;
        let _ = poll_until(due.since(Stamp::now()), "the next round", || None::<()>);
        let seen = case.timeline().len();
        case.signal(server, Signal::HUP)?;
        let outcome = outcome(case, server, seen)?;
        if outcome.get("ok") == Some("true") {
            server = took_over(case, &outcome)?.pid;
        } else {
            let failure = outcome.get("failure").unwrap_or_default();
            ensure!(["InProgress", "TooManyGenerations"].contains(&failure), "{outcome}");
        }
        most = most.max(living(case));
    }
    // The cap's four that drain, the one that serves, and one that is about to go.
    ensure!(most <= 6, "{most} processes at once");
    ensure!(hygiene::zombies(server).is_empty(), "{:?}", hygiene::zombies(server));
    case.set_scenario(&plain())?;
    finish(case, load, server)
}

/// Starts a server whose successor stays at a step of its start, and gives both.
fn forking(case: &Context, place: &str) -> Result<(Serving, Option<u32>), Failure> {
    let hook = match place {
        "restart" => "before restart wait restart",
        "commit" => "before commit wait commit",
        _ => "after restart ok",
    };
    let first = start(case, &plain().with("hooks", hook))?;
    let successor = match place {
        "hang" => plain().with("at.claimed", "hang").with("policy.abort", 100),
        "at.born" | "at.claimed" => plain().with(place, "wait here"),
        _ => plain(),
    };
    case.set_scenario(&successor)?;
    let seen = case.timeline().len();
    case.signal(first.pid, Signal::HUP)?;
    let second = match place {
        "restart" | "commit" => {
            case.timeline().wait_for_after(seen, "a hook", SOON, |event| {
                event.pid == Some(first.pid) && event.is("waits")
            })?;
            None
        }
        "hang" => {
            case.timeline()
                .wait_for_after(seen, "a hang", SOON, |event| {
                    event.pid != Some(first.pid) && event.is("acts")
                })?
                .pid
        }
        _ => {
            case.timeline()
                .wait_for_after(seen, "a successor", SOON, |event| {
                    event.pid != Some(first.pid) && event.is("waits")
                })?
                .pid
        }
    };
    Ok((first, second))
}

fn stop_while_forking(case: &Context) -> Result<(), Failure> {
    for place in ["restart", "at.born", "at.claimed", "commit", "hang"] {
        let (first, _) = forking(case, place)?;
        // A client whose request is under way is served to its end.
        let mut talk = Talk::to(first.address()?)?;
        talk.ping()?;
        talk.ask("/slow?ms=300")?;
        let seen = case.timeline().len();
        case.signal(first.pid, Signal::TERM)?;
        let outcome = outcome(case, first.pid, seen)?;
        super::common::is_refused(&outcome, "Stopping")
            .map_err(|failure| failure.while_doing(place))?;
        let said = talk.hear()?;
        ensure!(said.word == "slow" && said.pid == first.pid, "{place}: {said:?}");
        drop(talk);
        let exit = case.wait_exit(first.pid, SOON)?;
        ensure!(exit == Some(Exit::Status(0)), "{place}: {exit:?}");
        case.wait_only(&[], SOON).map_err(|failure| failure.while_doing(place))?;
    }
    Ok(())
}

fn second_stop_while_forking(case: &Context) -> Result<(), Failure> {
    let (first, second) = forking(case, "hang")?;
    let mut talk = Talk::to(first.address()?)?;
    talk.ping()?;
    case.signal(first.pid, Signal::TERM)?;
    // Caught as two: the first has to be seen before the second is sent.
    case.command(first.pid, "stop", &[])?;
    case.wait_exit(first.pid, SOON)?;
    if let Some(second) = second {
        case.wait_exit(second, SOON)?;
    }
    case.wait_only(&[], SOON)
}

fn restart_and_stop(case: &Context) -> Result<(), Failure> {
    for _ in 0..5 {
        // Replaced in the meantime, it is still there to be told to stop.
        let first = start(case, &plain().with("policy.probation", 20_000))?;
        case.signal(first.pid, Signal::HUP)?;
        case.signal(first.pid, Signal::TERM)?;
        case.wait_exit(first.pid, SOON)?;
        // The restart was first if there is one that serves; then the stop was the old one's own.
        let next = case.timeline().events().iter().find_map(|event| {
            let taken = event.pid == Some(first.pid) && event.get("ok") == Some("true");
            taken.then(|| event.get("pid")?.parse().ok()).flatten()
        });
        match next {
            Some(next) => stop(case, next)?,
            None => case.wait_only(&[], SOON)?,
        }
    }
    Ok(())
}
