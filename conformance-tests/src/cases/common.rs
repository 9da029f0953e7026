//! What all cases begin and end with.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use crate::client::{Load, Running, Target};
use crate::hygiene::{self, Belongings};
use crate::signal::{Exit, Signal};
use crate::timeline::Event;
use crate::{Context, Failure, Scenario, Stamp, ensure, poll_until};

/// For what happens at once, on a machine that may be so busy that it does nothing of ours for
/// seconds: only what hangs reaches it.
pub(crate) const SOON: Duration = Duration::from_secs(30);
/// For a whole case.
pub(crate) const DEADLINE: Duration = Duration::from_secs(180);

/// Does a thing again that was interrupted, for a while. A socket with a time limit is: where this
/// process is stopped and goes on, the kernel takes up a wait again by itself only without one.
pub(crate) fn uninterrupted<T>(mut act: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    let until = Stamp::now() + SOON;
    loop {
        match act() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted && Stamp::now() < until => {}
            other => return other,
        }
    }
}

/// A TCP listener on a port of its own, and nothing else.
pub(crate) fn plain() -> Scenario {
    Scenario::new().with("listen", "web tcp 127.0.0.1:0")
}

/// A generation that serves.
#[derive(Debug, Clone)]
pub(crate) struct Serving {
    pub(crate) pid: u32,
    /// Its `serving` event.
    pub(crate) event: Event,
}

impl Serving {
    /// The address of its first listener.
    pub(crate) fn address(&self) -> Result<SocketAddr, Failure> {
        Ok(self.event.get("address").unwrap_or_default().parse()?)
    }

    /// The address of a listener by name.
    pub(crate) fn address_of(&self, name: &str) -> Result<SocketAddr, Failure> {
        Ok(self.event.get(&format!("address.{name}")).unwrap_or_default().parse()?)
    }
}

/// Starts a first generation, which serves when this returns.
pub(crate) fn start(case: &Context, scenario: &Scenario) -> Result<Serving, Failure> {
    case.set_scenario(scenario)?;
    let pid = case.subject().start()?.pid();
    serving(case, pid)
}

/// Waits until that process serves.
pub(crate) fn serving(case: &Context, pid: u32) -> Result<Serving, Failure> {
    let event = case.wait_for_from(pid, "serving", SOON)?;
    Ok(Serving { pid, event })
}

/// What every case puts on its subject: short, kept and slow connections.
pub(crate) fn load(case: &Context, target: impl Into<Target>) -> Result<Running, Failure> {
    let load = Load::builder(target)
        .fresh(200.0)
        .kept(3, Duration::ZERO..Duration::from_millis(5))
        .kept_post(1, Duration::ZERO..Duration::from_millis(5), 100)
        .slow(1, Duration::from_millis(100));
    let running = case.start_load(load)?;
    running.wait_for_answers(50, SOON)?;
    Ok(running)
}

/// Asks for a restart by a signal and gives what comes of it.
pub(crate) fn ask(case: &Context, pid: u32) -> Result<Event, Failure> {
    let seen = case.timeline().len();
    case.signal(pid, Signal::HUP)?;
    outcome(case, pid, seen)
}

/// The next outcome of a restart, after the first `seen` events.
pub(crate) fn outcome(case: &Context, pid: u32, seen: usize) -> Result<Event, Failure> {
    case.timeline().wait_for_after(seen, "the outcome of a restart", SOON * 3, |event| {
        event.pid == Some(pid) && event.is("restart")
    })
}

/// Restarts, and gives the generation that serves now.
pub(crate) fn restart(case: &Context, pid: u32) -> Result<Serving, Failure> {
    let outcome = ask(case, pid)?;
    took_over(case, &outcome)
}

/// The generation that an outcome names.
pub(crate) fn took_over(case: &Context, outcome: &Event) -> Result<Serving, Failure> {
    ensure!(outcome.get("ok") == Some("true"), "no restart: {outcome}");
    serving(case, outcome.get("pid").unwrap_or_default().parse()?)
}

/// Asks for a restart that must fail, and in this way.
pub(crate) fn refused(case: &Context, pid: u32, failure: &str) -> Result<Event, Failure> {
    let outcome = ask(case, pid)?;
    is_refused(&outcome, failure)?;
    Ok(outcome)
}

/// Fails unless an outcome is a failure of that class.
pub(crate) fn is_refused(outcome: &Event, failure: &str) -> Result<(), Failure> {
    ensure!(outcome.get("failure") == Some(failure), "wanted {failure}, got {outcome}");
    Ok(())
}

/// Waits until these processes are all that is left, and each owns what a generation owns: nothing
/// that a child would inherit, no dead child, no thread or descriptor of a restart.
pub(crate) fn settled(case: &Context, pids: &[u32]) -> Result<(), Failure> {
    case.wait_only(pids, SOON)?;
    for &pid in pids {
        ensure!(hygiene::zombies(pid).is_empty(), "zombies: {:?}", hygiene::zombies(pid));
    }
    Ok(())
}

/// Waits until a process owns what `before` did, by number and kind.
pub(crate) fn unchanged(before: &Belongings, pid: u32) -> Result<(), Failure> {
    // Connections and threads of a restart are gone soon, but not at once.
    let mut last = Failure::new("nothing was seen");
    let same = poll_until(SOON, "what it owned before", || {
        match Belongings::of(pid).and_then(|now| before.same_as(&now)) {
            Ok(()) => Some(()),
            Err(failure) => {
                last = failure;
                None
            }
        }
    });
    same.map_err(|_| last)
}

/// What a process that serves owns when it has no connections.
pub(crate) fn at_rest(case: &Context, pid: u32) -> Result<Belongings, Failure> {
    case.wait_only(&[pid], SOON)?;
    let mut last = Belongings::of(pid)?;
    // Whatever is still closing has closed when looks agree, several times.
    let mut same = 0;
    poll_until(SOON, "a process at rest", || {
        let now = Belongings::of(pid).ok()?;
        let agrees = last.same_as(&now).is_ok() && !watches_the_dead(pid);
        same = if agrees { same + 1 } else { 0 };
        last = now;
        (same == 3).then_some(())
    })?;
    Ok(last)
}

/// What every case ends with: no client has noticed anything, only `pid` is left, without a
/// zombie and without a descriptor that a child would inherit; it can be restarted once more,
/// under the same load, owns no more than its successor then does, and that stops when it is told
/// to.
pub(crate) fn finish(case: &Context, load: Running, pid: u32) -> Result<(), Failure> {
    load.wait_for_answers(50, SOON)?;
    case.wait_only(&[pid], SOON)?;
    let before = lasting(case, pid)?;
    let next = restart(case, pid)?.pid;
    load.wait_for_successor(pid, SOON)?;
    case.wait_only(&[next], SOON)?;
    let mut after = before.clone();
    let same = poll_until(SOON, "a successor that owns what its predecessor did", || {
        after = lasting(case, next).ok()?;
        (after == before).then_some(())
    });
    same.map_err(|failure| {
        Failure::new(format!("{failure}: {pid} owned {before:?}, {next} owns {after:?}"))
    })?;
    finish_without_restart(case, load, next)
}

/// Whether a process has a pidfd of one that has ended: it has not heard of that yet, and still owns
/// what belongs to it.
fn watches_the_dead(pid: u32) -> bool {
    let Ok(infos) = std::fs::read_dir(format!("/proc/{pid}/fdinfo")) else { return false };
    let texts = infos.filter_map(|info| std::fs::read_to_string(info.ok()?.path()).ok());
    let is_dead = |line: &str| line.strip_prefix("Pid:").is_some_and(|pid| pid.trim() == "-1");
    texts.into_iter().any(|text| text.lines().any(is_dead))
}

/// How many descriptors of each kind a process owns, but for its connections.
fn lasting(case: &Context, pid: u32) -> Result<BTreeMap<String, usize>, Failure> {
    let look = || -> Result<BTreeMap<String, usize>, Failure> {
        let sockets = lasting_sockets();
        let mut kinds = BTreeMap::new();
        for descriptor in hygiene::descriptors(pid)? {
            let kind = match descriptor.target.strip_prefix("socket:[") {
                Some(inode) => sockets.get(inode.trim_end_matches(']')).copied(),
                None => Some(descriptor.kind()),
            };
            if let Some(kind) = kind {
                *kinds.entry(kind.to_owned()).or_default() += 1;
            }
        }
        Ok(kinds)
    };
    // What belongs to a generation that has just gone is given back soon, but not at once.
    let mut last = look()?;
    let mut same = 0;
    poll_until(SOON, "a process at rest", || {
        // It has had its turn since the last look, however late that is.
        turn(case, pid).ok()?;
        let now = look().ok()?;
        same = if now == last && !watches_the_dead(pid) { same + 1 } else { 0 };
        last = now;
        (same == 3).then_some(())
    })?;
    Ok(last)
}

/// The Unix sockets of this machine that are no connections of clients, by their inodes. The
/// handover's own are among them. Not those of TCP: the kernel takes too long to list them, with
/// all the connections that have been closed.
fn lasting_sockets() -> HashMap<String, &'static str> {
    let table = std::fs::read_to_string("/proc/net/unix").unwrap_or_default();
    let rows = table.lines().skip(1).map(|line| line.split_ascii_whitespace().collect::<Vec<_>>());
    rows.filter_map(|row| {
        let kind = match (*row.get(3)?, *row.get(4)?) {
            (_, "0002") => "Unix datagram socket",
            (_, "0005") => "Unix seqpacket socket",
            ("00010000", _) => "Unix listener",
            _ => return None,
        };
        Some(((*row.get(6)?).to_owned(), kind))
    })
    .collect()
}

/// The same, for a case in which restarts are over.
pub(crate) fn finish_without_restart(
    case: &Context,
    load: Running,
    pid: u32,
) -> Result<(), Failure> {
    load.wait_for_answers(50, SOON)?;
    let report = load.stop();
    case.nothing_lost(&report)?;
    ensure!(report.serving() == Some(pid), "{:?} serves, not {pid}", report.serving());
    settled(case, &[pid])?;
    stop(case, pid)
}

/// Stops the last generation; nothing is left then.
pub(crate) fn stop(case: &Context, pid: u32) -> Result<(), Failure> {
    Belongings::of(pid)?.nothing_is_inherited()?;
    case.signal(pid, Signal::TERM)?;
    let exit = case.wait_exit(pid, SOON)?;
    ensure!(matches!(exit, None | Some(Exit::Status(0))), "it stopped with {exit:?}");
    let told = case.wait_for_from(pid, "exit", SOON)?;
    ensure!(told.get("error").is_none(), "{told}");
    case.wait_only(&[], SOON)
}

/// The number in an event.
pub(crate) fn number(event: &Event, key: &str) -> Result<u64, Failure> {
    let text = event.get(key).ok_or_else(|| Failure::new(format!("no {key} in {event}")))?;
    Ok(text.parse()?)
}

/// A generation that was started by another than the ones known, as soon as it has told `name`.
pub(crate) fn another(case: &Context, known: &[u32], name: &str) -> Result<Event, Failure> {
    case.wait_for_other(known, name, SOON)
}

/// The process of an event.
pub(crate) fn pid_of(event: &Event) -> Result<u32, Failure> {
    event.pid.ok_or_else(|| Failure::new(format!("{event} has no process")))
}

/// Waits for the state or the end of a drain's stage of a process.
pub(crate) fn wait_state(case: &Context, pid: u32, state: &str) -> Result<Event, Failure> {
    let what = format!("{state} of process {pid}");
    case.timeline().wait_for(&what, SOON, |event| {
        event.pid == Some(pid) && event.is("state") && event.get("state") == Some(state)
    })
}

/// Waits for the end of a process that was replaced or stopped in order.
pub(crate) fn wait_left(case: &Context, pid: u32) -> Result<Event, Failure> {
    let exit = case.wait_exit(pid, SOON * 2)?;
    ensure!(matches!(exit, None | Some(Exit::Status(0))), "process {pid} left with {exit:?}");
    let told = case.wait_for_from(pid, "exit", SOON)?;
    ensure!(told.get("error").is_none(), "{told}");
    Ok(told)
}

/// Waits until that process has so much in flight.
pub(crate) fn wait_in_flight(case: &Context, pid: u32, count: u64) -> Result<(), Failure> {
    poll_until(SOON, &format!("{count} in flight in process {pid}"), || {
        (turn(case, pid).ok()? == count).then_some(())
    })
}

/// Tells a process that serves or drains something, which it has carried out when this returns: a
/// signal or a connection would overtake a command.
pub(crate) fn carry_out(
    case: &Context,
    pid: u32,
    command: &str,
    fields: &[(&str, &str)],
) -> Result<(), Failure> {
    case.command(pid, command, fields)?;
    turn(case, pid).map(drop)
}

/// Keeps a process from leaving, until it is told `unguard`.
pub(crate) fn hold(case: &Context, pid: u32) -> Result<(), Failure> {
    carry_out(case, pid, "guard", &[])
}

/// Lets a process that serves or drains take its turn, and gives how much it has in flight.
fn turn(case: &Context, pid: u32) -> Result<u64, Failure> {
    let seen = case.timeline().len();
    case.command(pid, "in-flight", &[])?;
    let told = case.timeline().wait_for_after(seen, "a number", SOON, |event| {
        event.pid == Some(pid) && event.is("in flight")
    })?;
    number(&told, "count")
}

/// Lets a process deal with all that is ready by now: its runtime has reported what became ready
/// after that, and a task has been polled, when this returns. Its listeners may be open or closed.
pub(crate) fn catch_up(case: &Context, pid: u32) -> Result<(), Failure> {
    let seen = case.timeline().len();
    case.command(pid, "catch-up", &[])?;
    let what = format!("process {pid} to catch up");
    let caught_up = |event: &Event| event.pid == Some(pid) && event.is("caught up");
    case.timeline().wait_for_after(seen, &what, SOON, caught_up).map(drop)
}

/// Waits until a process serves again.
pub(crate) fn wait_rolled_back(case: &Context, seen: usize, pid: u32) -> Result<(), Failure> {
    // Not by its states: a task that has no turn between two of them sees the last only.
    case.timeline().wait_for_after(seen, "a rollback", SOON, |event| {
        event.pid == Some(pid) && event.is("rolled back")
    })?;
    Ok(())
}

/// Whether a process has ever served again.
pub(crate) fn has_rolled_back(case: &Context, pid: u32) -> bool {
    let events = case.timeline().events();
    events.iter().any(|event| event.pid == Some(pid) && event.is("rolled back"))
}
