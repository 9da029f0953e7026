//! A stop, and the end of a process that was replaced, lose nothing.

use std::process::{Command, Stdio};
use std::time::Duration;

use super::common::{
    DEADLINE, SOON, another, ask, carry_out, finish, finish_without_restart, hold, is_refused,
    load, number, outcome, pid_of, plain, restart, serving, settled, start, stop, took_over,
    wait_in_flight, wait_left, wait_state,
};
use super::serve::{all_answered, queued, visit_until_refused};
use super::talk::{self, Talk};
use super::terminal::Terminal;
use crate::client::Load;
use crate::signal::{Process, Signal};
use crate::{Case, Context, Failure, Need, ensure, hygiene, poll_until};

const fn case(
    name: &'static str,
    clause: &'static str,
    run: fn(&Context) -> Result<(), Failure>,
) -> Case {
    Case { name, clause, deadline: DEADLINE, needs: &[], run }
}

const fn with_needs(
    needs: &'static [Need],
    name: &'static str,
    clause: &'static str,
    run: fn(&Context) -> Result<(), Failure>,
) -> Case {
    Case { name, clause, deadline: DEADLINE, needs, run }
}

/// A pid namespace, in which a process is PID 1.
const PID_NAMESPACE: Need = Need {
    what: "the right to make a pid namespace (root) and `unshare`",
    is_met: || succeeds("unshare", &["-pf", "--mount-proc", "true"]),
};

/// `setsid` of util-linux, which gives its program a terminal.
const SETSID: Need =
    Need { what: "`setsid` of util-linux", is_met: || succeeds("setsid", &["--version"]) };

fn succeeds(program: &str, arguments: &[&str]) -> bool {
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

pub(super) const CASES: &[Case] = &[
    case(
        "drain::sigterm_finishes_what_is_in_flight",
        "SIGTERM: accepts nothing more, finishes what is in flight, exits 0; what waits in the \
         queue at a final stop is served, not reset",
        |case| stops(case, Signal::TERM),
    ),
    case("drain::sigint_does_the_same", "SIGINT does the same as SIGTERM", |case| {
        stops(case, Signal::INT)
    }),
    case(
        "drain::a_stop_by_handle_does_the_same",
        "a stop that the program asks for does the same as SIGTERM",
        by_handle,
    ),
    case(
        "drain::what_waits_at_the_final_stop_is_served",
        "what waits in the queue at a final stop is served, not reset",
        queue,
    ),
    case(
        "drain::the_deadline_of_a_stop_cuts",
        "the drain deadline ends it: connections are told, then cut; the outcome counts them",
        stop_deadline,
    ),
    case(
        "drain::the_deadline_after_a_restart_cuts",
        "the drain deadline ends a replaced process: connections are told, then cut; the outcome \
         counts them",
        restart_deadline,
    ),
    case(
        "drain::a_second_stop_ends_at_once",
        "a second SIGTERM or SIGINT, and SIGUSR2 while draining: ends at once; SIGUSR2 while \
         serving: ignored",
        twice,
    ),
    case(
        "drain::a_stop_of_a_replaced_process_goes_on_draining",
        "the first SIGTERM to a process that drains because it was replaced: it goes on draining, \
         gives up its probation, and keeps to the stop's deadline",
        stop_of_replaced,
    ),
    case(
        "drain::a_stop_of_a_whole_group_loses_nothing",
        "Ctrl-C in a terminal reaches all generations: none loses a request to it",
        group,
    ),
    case(
        "drain::an_old_process_without_connections_leaves_after_the_probation",
        "an old process without any connection exits at once when the probation is over",
        idle,
    ),
    case(
        "drain::a_connection_in_the_instant_of_the_drain_counts",
        "a connection accepted in the instant that draining starts is neither lost nor uncounted",
        instant,
    ),
    case(
        "drain::silent_half_and_upgraded_connections_at_a_stop",
        "a silent connection, half a request, an upgraded (WebSocket-like) connection",
        odd_connections_at_a_stop,
    ),
    case(
        "drain::silent_half_and_upgraded_connections_at_a_restart",
        "a silent connection, half a request, an upgraded connection in a process that is replaced",
        odd_connections_at_a_restart,
    ),
    with_needs(
        &[SETSID],
        "drain::closing_a_terminal_stops",
        "closing a terminal stops a server that was started in it rather than restarting it; \
         with the terminal there, SIGHUP restarts",
        terminal,
    ),
    with_needs(
        &[SETSID],
        "drain::a_session_leader_can_be_replaced",
        "a server that is the leader of its terminal's session is replaced like any other: the \
         SIGHUP that its end sends to the new one means nothing",
        session_leader,
    ),
    case(
        "drain::sigtstp_without_a_hook_suspends",
        "SIGTSTP without a hook suspends as ever; with one, the hook runs",
        suspend,
    ),
    case("drain::hooks_run_in_order", "hooks run in order: before, action, after", hooks),
    case(
        "drain::a_failing_hook_vetoes_a_restart",
        "a failing `before` hook vetoes a restart and nothing has happened",
        veto,
    ),
    case(
        "drain::a_stop_between_start_and_run_waits",
        "signals between `start` and `run` wait: SIGTERM then makes the start give up",
        early_stop,
    ),
    case(
        "drain::a_restart_between_start_and_run_waits",
        "signals between `start` and `run` wait: SIGHUP in a successor is this very restart, in a \
         first generation it restarts once that serves",
        early_restart,
    ),
    case(
        "drain::the_programs_own_handlers_still_run",
        "the program's own handlers of a signal still run",
        own_handlers,
    ),
    with_needs(
        &[PID_NAMESPACE],
        "drain::pid_1_refuses_a_restart",
        "as PID 1 (a pid namespace): a restart is a typed refusal, the service goes on",
        pid_1,
    ),
];

fn stops(case: &Context, signal: Signal) -> Result<(), Failure> {
    let first = start(case, &plain().with("policy.stop_linger", 10_000))?;
    let address = first.address()?;
    let load = load(case, address)?;
    let second = restart(case, first.pid)?;
    load.wait_for_successor(first.pid, SOON)?;
    let report = load.stop();
    case.nothing_lost(&report)?;
    wait_left(case, first.pid)?;
    let mut slow = Talk::to(address)?;
    slow.begin()?;
    hold(case, second.pid)?;
    wait_in_flight(case, second.pid, 2)?;
    let visitors: Vec<_> =
        (0..4).map(|_| std::thread::spawn(move || visit_until_refused(address))).collect();
    case.signal(second.pid, signal)?;
    // Who had got in was served, and at the end nobody gets in, although the process is there.
    for visitor in visitors {
        visitor.join().map_err(|_| Failure::new("a visitor panicked"))??;
    }
    wait_state(case, second.pid, "Draining")?;
    ensure!(hygiene::listed(second.pid).is_some(), "it left with work in flight");
    let answer = slow.finish()?;
    ensure!(answer.word == "got" && answer.pid == second.pid, "{answer:?}");
    ensure!(answer.close, "{answer:?} keeps the connection to a process that leaves");
    case.command(second.pid, "unguard", &[])?;
    let exit = wait_left(case, second.pid)?;
    ensure!(number(&exit, "successor")? == 0 && number(&exit, "cut")? == 0, "{exit}");
    case.wait_only(&[], SOON)
}

fn by_handle(case: &Context) -> Result<(), Failure> {
    let first = start(case, &plain().with("signals", "off"))?;
    let load = load(case, first.address()?)?;
    let seen = case.timeline().len();
    case.command(first.pid, "restart", &[("id", "1")])?;
    let second = took_over(case, &outcome(case, first.pid, seen)?)?;
    load.wait_for_successor(first.pid, SOON)?;
    let answer = case.wait_for_from(first.pid, "answer", SOON)?;
    ensure!(answer.get("id") == Some("1") && answer.get("ok") == Some("true"), "{answer}");
    wait_left(case, first.pid)?;
    let report = load.stop();
    case.nothing_lost(&report)?;
    let mut slow = Talk::to(first.address()?)?;
    slow.ask("/slow?ms=300")?;
    talk::get(first.address()?, "/")?;
    case.command(second.pid, "stop", &[])?;
    let answer = slow.hear()?;
    ensure!(answer.word == "slow" && answer.pid == second.pid, "{answer:?}");
    let exit = wait_left(case, second.pid)?;
    ensure!(number(&exit, "successor")? == 0 && number(&exit, "cut")? == 0, "{exit}");
    case.wait_only(&[], SOON)
}

fn queue(case: &Context) -> Result<(), Failure> {
    let first = start(case, &plain())?;
    carry_out(case, first.pid, "ignore", &[])?;
    let waiting = queued(first.address()?)?;
    case.signal(first.pid, Signal::TERM)?;
    wait_state(case, first.pid, "Draining")?;
    case.command(first.pid, "attend", &[])?;
    all_answered(waiting, first.pid)?;
    wait_left(case, first.pid)?;
    case.wait_only(&[], SOON)
}

fn stop_deadline(case: &Context) -> Result<(), Failure> {
    // A process that is not run between the two has nobody to tell any more.
    let quick = plain().with("policy.stop_linger", 200).with("policy.stop_drain", 8_000);
    let first = start(case, &quick)?;
    let mut slow = [Talk::to(first.address()?)?, Talk::to(first.address()?)?];
    for talk in &mut slow {
        talk.ask("/slow?ms=60000")?;
    }
    wait_in_flight(case, first.pid, 2)?;
    case.signal(first.pid, Signal::TERM)?;
    // Told.
    let told = case.wait_for_from(first.pid, "stage", SOON)?;
    ensure!(told.get("stage") == Some("Over"), "{told}");
    // Then cut.
    for talk in &mut slow {
        talk.wait_closed()?;
    }
    let exit = wait_left(case, first.pid)?;
    ensure!(number(&exit, "cut")? == 2, "{exit}");
    case.wait_only(&[], SOON)
}

fn restart_deadline(case: &Context) -> Result<(), Failure> {
    // The deadline is the promise, and the load must have got away long before it.
    let quick = plain().with("policy.linger", 3_000).with("policy.drain", 8_000);
    let first = start(case, &quick)?;
    let mut slow = Talk::to(first.address()?)?;
    slow.ask("/slow?ms=60000")?;
    wait_in_flight(case, first.pid, 1)?;
    let load = load(case, first.address()?)?;
    let second = restart(case, first.pid)?;
    let told = case.wait_for_from(first.pid, "stage", SOON)?;
    ensure!(told.get("stage") == Some("Over"), "{told}");
    slow.wait_closed()?;
    let exit = wait_left(case, first.pid)?;
    ensure!(number(&exit, "cut")? == 1, "{exit}");
    ensure!(number(&exit, "successor")? == u64::from(second.pid), "{exit}");
    finish(case, load, second.pid)
}

fn twice(case: &Context) -> Result<(), Failure> {
    // Nothing but the second signal can end it within the case's time.
    let slow = plain().with("policy.stop_drain", 600_000).with("policy.drain", 600_000);
    for again in [Signal::TERM, Signal::INT, Signal::USR2] {
        let first = start(case, &slow)?;
        case.signal(first.pid, Signal::USR2)?;
        hold(case, first.pid)?;
        let answer = talk::get(first.address()?, "/")?;
        ensure!(answer.pid == first.pid, "{answer:?}");
        wait_in_flight(case, first.pid, 1)?;
        case.signal(first.pid, Signal::TERM)?;
        wait_state(case, first.pid, "Draining")?;
        case.signal(first.pid, again)?;
        let exit = wait_left(case, first.pid)?;
        ensure!(number(&exit, "cut")? == 1, "{again:?}: {exit}");
        case.wait_only(&[], SOON)?;
    }
    // The same to a process that was replaced.
    let first = start(case, &slow)?;
    let load = load(case, first.address()?)?;
    hold(case, first.pid)?;
    let second = restart(case, first.pid)?;
    load.wait_for_successor(first.pid, SOON)?;
    // By then the connections of the load are with the second.
    wait_in_flight(case, first.pid, 1)?;
    case.signal(first.pid, Signal::USR2)?;
    let exit = wait_left(case, first.pid)?;
    ensure!(number(&exit, "cut")? == 1, "{exit}");
    finish(case, load, second.pid)
}

fn stop_of_replaced(case: &Context) -> Result<(), Failure> {
    let long = plain()
        .with("policy.probation", 600_000)
        .with("policy.linger", 600_000)
        .with("policy.drain", 600_000);
    // Without anything in flight: the probation is given up.
    let first = start(case, &long)?;
    let load = load(case, first.address()?)?;
    let second = restart(case, first.pid)?;
    load.wait_for_successor(first.pid, SOON)?;
    wait_in_flight(case, first.pid, 0)?;
    case.signal(first.pid, Signal::TERM)?;
    let exit = wait_left(case, first.pid)?;
    ensure!(number(&exit, "successor")? == u64::from(second.pid), "{exit}");

    // With a request: that is finished.
    let mut slow = Talk::to(first.address()?)?;
    slow.ask("/slow?ms=1500")?;
    talk::get(first.address()?, "/")?;
    let third = restart(case, second.pid)?;
    case.signal(second.pid, Signal::TERM)?;
    let answer = slow.hear()?;
    ensure!(answer.word == "slow" && answer.pid == second.pid, "{answer:?}");
    let exit = wait_left(case, second.pid)?;
    ensure!(number(&exit, "cut")? == 0, "{exit}");

    // With something that does not end: the stop's deadline holds.
    case.set_scenario(&long.with("policy.stop_linger", 500).with("policy.stop_drain", 1_000))?;
    let fourth = restart(case, third.pid)?;
    case.signal(third.pid, Signal::TERM)?;
    wait_left(case, third.pid)?;
    hold(case, fourth.pid)?;
    let fifth = restart(case, fourth.pid)?;
    load.wait_for_successor(fourth.pid, SOON)?;
    wait_in_flight(case, fourth.pid, 1)?;
    case.signal(fourth.pid, Signal::TERM)?;
    let exit = wait_left(case, fourth.pid)?;
    ensure!(number(&exit, "cut")? == 1, "{exit}");
    finish_without_restart(case, load, fifth.pid)
}

fn group(case: &Context) -> Result<(), Failure> {
    let first = start(
        case,
        &plain()
            .with("policy.probation", 600_000)
            .with("policy.linger", 600_000)
            .with("policy.drain", 600_000),
    )?;
    let address = first.address()?;
    let load = load(case, address)?;
    let mut old = Talk::to(address)?;
    old.ask("/slow?ms=2000")?;
    talk::get(address, "/")?;
    let second = restart(case, first.pid)?;
    load.wait_for_successor(first.pid, SOON)?;
    let report = load.stop();
    case.nothing_lost(&report)?;
    let mut new = Talk::to(address)?;
    new.ask("/slow?ms=1000")?;
    let taken = talk::get(address, "/")?;
    ensure!(taken.pid == second.pid, "{taken:?}");
    let visitors: Vec<_> =
        (0..2).map(|_| std::thread::spawn(move || visit_until_refused(address))).collect();
    case.note("Ctrl-C");
    let group = hygiene::listed(first.pid).map_or(0, |process| process.group.cast_signed());
    let group = rustix::process::Pid::from_raw(group);
    let group = group.ok_or_else(|| Failure::new("no process group"))?;
    rustix::process::kill_process_group(group, Signal::INT)?;
    for (talk, pid) in [(&mut old, first.pid), (&mut new, second.pid)] {
        let answer = talk.hear()?;
        ensure!(answer.word == "slow" && answer.pid == pid, "{answer:?}");
    }
    for visitor in visitors {
        visitor.join().map_err(|_| Failure::new("a visitor panicked"))??;
    }
    for pid in [first.pid, second.pid] {
        let exit = wait_left(case, pid)?;
        ensure!(number(&exit, "cut")? == 0, "{exit}");
    }
    case.wait_only(&[], SOON)
}

fn idle(case: &Context) -> Result<(), Failure> {
    let long = plain()
        .with("policy.probation", 300)
        .with("policy.linger", 600_000)
        .with("policy.drain", 600_000);
    let first = start(case, &long)?;
    let second = restart(case, first.pid)?;
    let exit = wait_left(case, first.pid)?;
    ensure!(number(&exit, "successor")? == u64::from(second.pid), "{exit}");
    // Not before the probation was over, during which it may be needed.
    ensure!(number(&exit, "drained")? >= 300, "{exit}");
    let load = load(case, first.address()?)?;
    finish(case, load, second.pid)
}

fn instant(case: &Context) -> Result<(), Failure> {
    // Nothing but its count keeps an old process alive once it was replaced.
    let hasty = plain().with("policy.probation", 0).with("policy.linger", 20_000);
    let first = start(case, &hasty)?;
    let load = Load::builder(first.address()?).fresh(500.0).slow(4, Duration::from_millis(30));
    let load = case.start_load(load)?;
    load.wait_for_answers(100, SOON)?;
    let mut pid = first.pid;
    for _ in 0..20 {
        let next = restart(case, pid)?.pid;
        load.wait_for_successor(pid, SOON)?;
        let exit = wait_left(case, pid)?;
        ensure!(number(&exit, "cut")? == 0, "{exit}");
        pid = next;
    }
    load.wait_for_answers(100, SOON)?;
    let report = load.stop();
    case.nothing_lost(&report)?;
    settled(case, &[pid])?;
    stop(case, pid)
}

/// Connections that are not between two requests and not within one.
struct Odd {
    silent: Talk,
    half: Talk,
    upgraded: Talk,
}

impl Odd {
    fn open(case: &Context, pid: u32, address: std::net::SocketAddr) -> Result<Self, Failure> {
        let mut odd = Self {
            silent: Talk::to(address)?,
            half: Talk::to(address)?,
            upgraded: Talk::to(address)?,
        };
        odd.half.send("GET / HTTP/1.1\r\nHo")?;
        let pong = odd.upgraded.ping()?;
        ensure!(pong.pid == pid, "{pong:?}");
        wait_in_flight(case, pid, 3)?;
        Ok(odd)
    }

    /// While the process drains: the silent one is told to go, the others are not.
    fn drained(mut self, case: &Context, pid: u32) -> Result<Talk, Failure> {
        let pong = self.upgraded.ping()?;
        ensure!(pong.pid == pid, "{pong:?}");
        case.wait_for_from(pid, "stage", SOON)?;
        let reset = self.silent.wait_closed()?;
        ensure!(!reset, "a silent connection was reset");
        self.half.send("st: x\r\n\r\n")?;
        let answer = self.half.hear()?;
        ensure!(answer.word == "ok" && answer.pid == pid && answer.close, "{answer:?}");
        let pong = self.upgraded.ping()?;
        ensure!(pong.pid == pid, "{pong:?}");
        Ok(self.upgraded)
    }
}

fn odd_connections_at_a_stop(case: &Context) -> Result<(), Failure> {
    let first =
        start(case, &plain().with("policy.stop_linger", 300).with("policy.stop_drain", 20_000))?;
    let odd = Odd::open(case, first.pid, first.address()?)?;
    case.signal(first.pid, Signal::TERM)?;
    let mut upgraded = odd.drained(case, first.pid)?;
    upgraded.wait_closed()?;
    let exit = wait_left(case, first.pid)?;
    ensure!(number(&exit, "cut")? == 1, "{exit}");
    case.wait_only(&[], SOON)
}

fn odd_connections_at_a_restart(case: &Context) -> Result<(), Failure> {
    let first = start(case, &plain())?;
    let odd = Odd::open(case, first.pid, first.address()?)?;
    let load = load(case, first.address()?)?;
    let second = restart(case, first.pid)?;
    let upgraded = odd.drained(case, first.pid)?;
    // Its client ends it, and so the process.
    drop(upgraded);
    let exit = wait_left(case, first.pid)?;
    ensure!(number(&exit, "cut")? == 0, "{exit}");
    finish(case, load, second.pid)
}

fn terminal(case: &Context) -> Result<(), Failure> {
    let (terminal, input) = Terminal::open()?;
    case.set_scenario(&plain())?;
    // A shell as the session's leader, as in a terminal's window; it lives on when the first
    // generation has gone. It must not have learnt from whoever started us to ignore the signal.
    let shell = "\"$0\" \"$@\"; exec sleep 600";
    let shell = ["setsid", "-c", "env", "--default-signal=HUP", "sh", "-c", shell];
    let started = case.subject().through(shell).stdin(input).start()?.pid();
    let first = pid_of(&another(case, &[started], "serving")?)?;
    let first = serving(case, first)?;
    let shell = hygiene::listed(first.pid).map_or(0, |process| process.parent);
    let load = load(case, first.address()?)?;
    let second = restart(case, first.pid)?;
    load.wait_for_successor(first.pid, SOON)?;
    wait_left(case, first.pid)?;
    let report = load.stop();
    case.nothing_lost(&report)?;
    case.wait_only(&[shell, second.pid], SOON)?;
    case.note("the terminal is closed");
    drop(terminal);
    let exit = wait_left(case, second.pid)?;
    ensure!(number(&exit, "successor")? == 0, "it restarted: {exit}");
    case.wait_only(&[], SOON)
}

fn session_leader(case: &Context) -> Result<(), Failure> {
    let (terminal, input) = Terminal::open()?;
    case.set_scenario(&plain())?;
    let started = case.subject().through(["setsid", "-c"]).stdin(input).start()?.pid();
    let first = pid_of(&another(case, &[started], "serving")?)?;
    let first = serving(case, first)?;
    let load = load(case, first.address()?)?;
    let second = restart(case, first.pid)?;
    load.wait_for_successor(first.pid, SOON)?;
    // With it the session has lost its terminal, and the kernel has said so to the second.
    wait_left(case, first.pid)?;
    load.wait_for_answers(100, SOON)?;
    case.wait_only(&[second.pid], SOON)?;
    finish(case, load, second.pid)?;
    drop(terminal);
    Ok(())
}

fn suspend(case: &Context) -> Result<(), Failure> {
    let first = start(case, &plain())?;
    let state = |state: char| {
        poll_until(SOON, &format!("the state {state}"), || {
            hygiene::listed(first.pid).filter(|process| process.state == state).map(drop)
        })
    };
    case.signal(first.pid, Signal::TSTP)?;
    state('T')?;
    case.signal(first.pid, Signal::CONT)?;
    let load = load(case, first.address()?)?;
    case.set_scenario(&plain().also("hooks", "before signal:TSTP ok"))?;
    let second = restart(case, first.pid)?;
    case.signal(second.pid, Signal::TSTP)?;
    let hook = case.wait_for_from(second.pid, "hook", SOON)?;
    ensure!(hook.get("event") == Some("signal:TSTP"), "{hook}");
    let listed = hygiene::listed(second.pid);
    ensure!(listed.is_some_and(|process| process.state != 'T'), "it is suspended");
    finish(case, load, second.pid)
}

const EVENTS: [&str; 8] =
    ["signal:HUP", "restart", "commit", "settle", "accept", "stop", "signal:TERM", "roll-back"];

/// What a process told of hooks and outcomes, in order.
fn told(case: &Context, pid: u32) -> Vec<String> {
    let events = case.timeline().events();
    let own = events.iter().filter(|event| event.pid == Some(pid));
    own.filter_map(|event| match event.name.as_str() {
        "hook" => {
            let get = |key| event.get(key).unwrap_or_default();
            Some(format!("{} {}", get("when"), get("event")))
        }
        "restart" | "exit" => Some(event.name.clone()),
        _ => None,
    })
    .collect()
}

/// Fails unless `wanted` are in `told`, in this order.
fn in_order(told: &[String], wanted: &[&str]) -> Result<(), Failure> {
    let mut places = Vec::new();
    for word in wanted {
        match told.iter().position(|told| told == word) {
            Some(place) => places.push(place),
            None => return Err(Failure::new(format!("no `{word}` in {told:?}"))),
        }
    }
    ensure!(places.is_sorted(), "wanted {wanted:?}, was {told:?}");
    Ok(())
}

fn hooks(case: &Context) -> Result<(), Failure> {
    let all = EVENTS.iter().fold(plain(), |all, event| {
        all.also("hooks", format!("before {event} ok")).also("hooks", format!("after {event} ok"))
    });
    let first = start(case, &all)?;
    let load = load(case, first.address()?)?;
    let second = restart(case, first.pid)?;
    load.wait_for_successor(first.pid, SOON)?;
    let report = load.stop();
    case.nothing_lost(&report)?;
    wait_left(case, first.pid)?;
    let old = told(case, first.pid);
    in_order(&old, &["before accept", "after accept", "before signal:HUP"])?;
    in_order(&old, &["before signal:HUP", "before restart", "before commit", "after commit"])?;
    in_order(&old, &["before signal:HUP", "after signal:HUP"])?;
    in_order(&old, &["after commit", "restart", "after restart", "after settle", "exit"])?;
    for absent in ["before stop", "after stop", "after roll-back", "before signal:TERM"] {
        ensure!(!old.iter().any(|told| told == absent), "{absent} in {old:?}");
    }
    // What the old does before the commit comes before, what the new one accepts after it.
    let events = case.timeline().events();
    let at = |pid: u32, when: &str, what: &str| {
        events.iter().position(|event| {
            event.pid == Some(pid)
                && event.is("hook")
                && event.get("when") == Some(when)
                && event.get("event") == Some(what)
        })
    };
    let order = [
        at(second.pid, "before", "accept"),
        at(first.pid, "before", "commit"),
        at(second.pid, "after", "accept"),
    ];
    ensure!(order.iter().all(Option::is_some) && order.is_sorted(), "{order:?}");
    case.signal(second.pid, Signal::TERM)?;
    wait_left(case, second.pid)?;
    let new = told(case, second.pid);
    let wanted = ["before accept", "after accept", "before signal:TERM", "before stop"];
    in_order(&new, &wanted)?;
    in_order(&new, &["before signal:TERM", "after signal:TERM"])?;
    in_order(&new, &["before stop", "after stop", "exit"])?;
    case.wait_only(&[], SOON)
}

fn veto(case: &Context) -> Result<(), Failure> {
    for (hook, reason) in [
        ("before restart fail the disk is full", "the disk is full"),
        ("before signal:HUP fail not now", "not now"),
    ] {
        let first = start(case, &plain().also("hooks", hook))?;
        let load = load(case, first.address()?)?;
        // Those of connections come and go; the others are what a restart would have left.
        let threads = || -> Result<Vec<String>, Failure> {
            let mut names = crate::hygiene::threads(first.pid)?;
            names.retain(|name| name != "connection");
            Ok(names)
        };
        let before = threads()?;
        let entered = || case.timeline().events().iter().filter(|e| e.is("entered")).count();
        let processes = entered();
        let outcome = ask(case, first.pid)?;
        is_refused(&outcome, "Vetoed")?;
        ensure!(outcome.get("detail").is_some_and(|why| why.contains(reason)), "{outcome}");
        ensure!(entered() == processes, "a process was started");
        // A connection's thread has its creator's name at first.
        poll_until(SOON, &format!("no more threads than {before:?}"), || {
            threads().is_ok_and(|after| after.len() <= before.len()).then_some(())
        })?;
        case.wait_only(&[first.pid], SOON)?;
        finish_without_restart(case, load, first.pid)?;
    }
    // A hook before the commit: the successor is there, and goes.
    let first = start(case, &plain().also("hooks", "before commit fail the lock is taken"))?;
    let load = load(case, first.address()?)?;
    let outcome = ask(case, first.pid)?;
    is_refused(&outcome, "Vetoed")?;
    case.wait_only(&[first.pid], SOON)?;
    finish_without_restart(case, load, first.pid)
}

fn early_stop(case: &Context) -> Result<(), Failure> {
    // The hook gives the runtime a turn, in which it learns of the signal, and no way on.
    let early = plain().also("at.claimed", "wait early").also("hooks", "before accept pend");
    // A first generation: it never serves, and that is no failure.
    case.set_scenario(&early)?;
    let pid = case.subject().start()?.pid();
    case.wait_for_from(pid, "waits", SOON)?;
    case.signal(pid, Signal::TERM)?;
    case.command(pid, "go", &[("at", "early")])?;
    let exit = wait_left(case, pid)?;
    ensure!(number(&exit, "successor")? == 0, "{exit}");
    let served = |pid| {
        let events = case.timeline().events();
        events.iter().any(|event| event.pid == Some(pid) && event.is("serving"))
    };
    ensure!(!served(pid), "it served");
    case.wait_only(&[], SOON)?;

    let first = start(case, &plain())?;
    let load = load(case, first.address()?)?;
    case.set_scenario(&early)?;
    let seen = case.timeline().len();
    case.signal(first.pid, Signal::HUP)?;
    let second = pid_of(&another(case, &[first.pid, pid], "waits")?)?;
    case.signal(second, Signal::TERM)?;
    case.command(second, "go", &[("at", "early")])?;
    is_refused(&outcome(case, first.pid, seen)?, "GaveUp")?;
    ensure!(!served(second), "it served");
    case.wait_only(&[first.pid], SOON)?;
    case.set_scenario(&plain())?;
    finish(case, load, first.pid)
}

fn early_restart(case: &Context) -> Result<(), Failure> {
    case.set_scenario(&plain().also("at.claimed", "wait early"))?;
    let first = case.subject().start()?.pid();
    case.wait_for_from(first, "waits", SOON)?;
    case.signal(first, Signal::HUP)?;
    case.set_scenario(&plain())?;
    case.command(first, "go", &[("at", "early")])?;
    let second = took_over(case, &outcome(case, first, 0)?)?;
    let load = load(case, second.address()?)?;
    wait_left(case, first)?;

    case.set_scenario(&plain().also("at.claimed", "wait early"))?;
    let seen = case.timeline().len();
    case.signal(second.pid, Signal::HUP)?;
    let third = pid_of(&another(case, &[first, second.pid], "waits")?)?;
    case.signal(third, Signal::HUP)?;
    case.set_scenario(&plain())?;
    case.command(third, "go", &[("at", "early")])?;
    let third = took_over(case, &outcome(case, second.pid, seen)?)?;
    wait_left(case, second.pid)?;
    load.wait_for_answers(50, SOON)?;
    case.wait_only(&[third.pid], SOON)?;
    let events = case.timeline().events();
    let again = events.iter().any(|event| event.pid == Some(third.pid) && event.is("restart"));
    ensure!(!again, "it restarted again");
    finish(case, load, third.pid)
}

fn own_handlers(case: &Context) -> Result<(), Failure> {
    let own =
        plain().also("own-signals", "HUP").also("own-signals", "TERM").also("own-signals", "WINCH");
    let first = start(case, &own)?;
    let load = load(case, first.address()?)?;
    let second = restart(case, first.pid)?;
    case.wait_for_from(first.pid, "own signal", SOON)?;
    load.wait_for_successor(first.pid, SOON)?;
    let report = load.stop();
    case.nothing_lost(&report)?;
    wait_left(case, first.pid)?;
    for signal in [Signal::WINCH, Signal::TERM] {
        let seen = case.timeline().len();
        // So that the process is there to tell of the stop.
        hold(case, second.pid)?;
        case.signal(second.pid, signal)?;
        case.timeline().wait_for_after(seen, "the program's own handler", SOON, |event| {
            event.pid == Some(second.pid) && event.is("own signal")
        })?;
    }
    case.command(second.pid, "unguard", &[])?;
    wait_left(case, second.pid)?;
    case.wait_only(&[], SOON)
}

fn pid_1(case: &Context) -> Result<(), Failure> {
    case.set_scenario(&plain())?;
    let outer = case.subject().through(["unshare", "-pf", "--mount-proc"]).start()?;
    let first = pid_of(&another(case, &[outer.pid()], "serving")?)?;
    let first = serving(case, first)?;
    let load = load(case, first.address()?)?;
    let outcome = ask(case, first.pid)?;
    is_refused(&outcome, "Unfollowed")?;
    ensure!(outcome.get("detail").is_some_and(|why| why.contains("PID 1")), "{outcome}");
    load.wait_for_answers(50, SOON)?;
    let report = load.stop();
    case.nothing_lost(&report)?;
    ensure!(report.serving() == Some(1), "{report}");
    case.wait_only(&[outer.pid(), first.pid], SOON)?;
    Process::open(first.pid)?.signal(Signal::TERM)?;
    wait_left(case, first.pid)?;
    outer.wait_exit(SOON)?;
    case.wait_only(&[], SOON)
}
