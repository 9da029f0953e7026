//! The rules of the traits themselves, where no other case would name the one that is broken.

use std::time::Duration;

use super::common::{
    DEADLINE, SOON, another, at_rest, carry_out, catch_up, finish, hold, load, outcome, pid_of,
    plain, restart, start, stop, took_over, unchanged, wait_left,
};
use super::frozen::Frozen;
use super::serve::queued;
use super::talk::{self, Talk};
use crate::signal::Signal;
use crate::{Case, Context, Doing, Failure, Stamp, ensure, poll_until};

const fn case(
    name: &'static str,
    clause: &'static str,
    run: fn(&Context) -> Result<(), Failure>,
) -> Case {
    Case { name, clause, deadline: DEADLINE, needs: &[], run }
}

pub(super) const CASES: &[Case] = &[
    case(
        "adapter::timers_fire_when_their_time_has_come",
        "a timer fires at its time or soon after, never before, by the runtime's own clock",
        timers,
    ),
    case(
        "adapter::a_watched_descriptor_wakes_and_leaves_nothing",
        "a descriptor that is watched wakes the task when it becomes readable, and is gone with the \
         watch",
        watched,
    ),
    case(
        "adapter::a_connection_wakes_whoever_waits_for_it",
        "a task that waits for a listener is woken by a connection, and by nothing else",
        connection,
    ),
    case(
        "adapter::waiting_takes_no_processor_time",
        "steady state costs nothing: a process that waits, with its listeners open or paused, \
         takes no processor time",
        waiting,
    ),
    case(
        "adapter::nothing_is_accepted_before_the_commit",
        "at most one process accepts at a time: until the commit the old one serves, however long \
         the new one has been ready",
        before_the_commit,
    ),
    case(
        "adapter::an_accept_that_is_dropped_takes_no_wake_up_along",
        "when one of two tasks that wait for a listener gives up, the other is woken",
        dropped_accept,
    ),
];

/// A busy machine may be that late.
const LATE: Duration = Duration::from_secs(15);

fn timers(case: &Context) -> Result<(), Failure> {
    const TIMES: [u64; 3] = [20, 600, 150];
    // Where a thread is not run for long enough, the others are late even if they are early.
    const BEYOND: u64 = 600_000;
    let all = TIMES.into_iter().chain([BEYOND]);
    let scenario = all.fold(plain(), |all, ms| all.also("at.serving", Pause(ms)));
    let server = start(case, &scenario.also("at.serving", "ok"))?;
    // Each action is told of before it begins, and so after the one before it.
    let begins = |action: &str, what: &str| {
        case.timeline().wait_for(what, SOON, |event| {
            event.is("acts") && event.get("action").map(str::trim) == Some(action)
        })
    };
    for (number, ms) in TIMES.into_iter().enumerate() {
        let next = Pause(TIMES.get(number + 1).copied().unwrap_or(BEYOND));
        let begun = begins(&Pause(ms).to_string(), "the first timer")?;
        let ended = begins(&next.to_string(), &format!("the end of a timer of {ms} ms"))?;
        let took = ended.at.since(begun.at);
        let wanted = Duration::from_millis(ms);
        ensure!(took >= wanted, "a timer of {ms} ms has fired after {took:?}: too early");
        ensure!(took < wanted + LATE, "a timer of {ms} ms has fired after {took:?}: too late");
    }
    catch_up(case, server.pid)?;
    let events = case.timeline().events();
    let fired = events.iter().any(|event| event.get("action").map(str::trim) == Some("ok"));
    ensure!(!fired, "a timer of {BEYOND} ms has fired within the case: too early");
    stop(case, server.pid)
}

/// The action that waits for a timer of so many milliseconds.
struct Pause(u64);

impl std::fmt::Display for Pause {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "pause {}", self.0)
    }
}

fn watched(case: &Context) -> Result<(), Failure> {
    let once = plain().also("at.serving", "watch").also("at.serving", "wait more");
    let scenario = (0..20).fold(once, |all, _| all.also("at.serving", "watch"));
    let server = start(case, &scenario.also("at.serving", "wait done"))?;
    let done = |place: &str| {
        let what = "the wake-up of a task whose descriptor became readable";
        case.timeline()
            .wait_for(what, SOON, |event| event.is("waits") && event.get("place") == Some(place))
    };
    done("more")?;
    let before = at_rest(case, server.pid)?;
    case.command(server.pid, "go", &[("at", "more")])?;
    done("done")?;
    unchanged(&before, server.pid)
        .map_err(|failure| failure.while_doing("dropping 20 watches, which leaves something"))?;
    stop(case, server.pid)
}

fn connection(case: &Context) -> Result<(), Failure> {
    let server = start(case, &plain())?;
    for _ in 0..20 {
        // Without a load: nothing but this connection wakes the server.
        talk::get(server.address()?, "/").map_err(|failure| {
            failure.while_doing("waiting for the wake-up of a task that accepts")
        })?;
    }
    stop(case, server.pid)
}

/// How long a process is watched, and how much of that it may work.
const WATCHED: Duration = Duration::from_secs(1);
const IDLE: Duration = Duration::from_millis(200);

fn waiting(case: &Context) -> Result<(), Failure> {
    let long = plain()
        .with("policy.probation", 600_000)
        .with("policy.linger", 600_000)
        .with("policy.drain", 600_000);
    let first = start(case, &long)?;
    talk::get(first.address()?, "/")?;
    works_little(first.pid, "serves")?;
    // A connection that says nothing, too.
    let silent = Talk::to(first.address()?)?;
    hold(case, first.pid)?;
    let second = restart(case, first.pid)?;
    talk::get(first.address()?, "/")?;
    works_little(first.pid, "drains")?;
    works_little(second.pid, "serves after a takeover")?;
    drop(silent);
    case.signal(first.pid, Signal::TERM)?;
    case.command(first.pid, "unguard", &[])?;
    wait_left(case, first.pid)?;
    stop(case, second.pid)
}

fn works_little(pid: u32, doing: &str) -> Result<(), Failure> {
    let began = (Stamp::now(), processor_time(pid)?);
    // Where others take the processor away, who wants it all the time gets little of it: then it is
    // watched until it has had some, or has been seen asleep.
    let (mut asleep, mut worked) = (0, Duration::ZERO);
    let _ = poll_until(SOON, "a process that sleeps", || {
        asleep += u32::from(sleeps(pid));
        worked = processor_time(pid).ok()?.saturating_sub(began.1);
        let is_over = Stamp::now().since(began.0) >= WATCHED;
        (is_over && (asleep > 1 || worked >= IDLE)).then_some(())
    });
    ensure!(
        worked < IDLE && asleep > 1,
        "process {pid} {doing}, has nothing to do, and took {worked:?} of processor time within \
         {WATCHED:?} or little more: its task is woken again and again"
    );
    Ok(())
}

/// Whether no thread of the process runs or waits for a processor.
fn sleeps(pid: u32) -> bool {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let stats = tasks.filter_map(|task| std::fs::read_to_string(task.path().join("stat")).ok());
    stats.into_iter().all(|stat| stat.rsplit_once(") ").is_some_and(|(_, it)| it.starts_with('S')))
}

/// The processor time of all threads of a process.
fn processor_time(pid: u32) -> Result<Duration, Failure> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).doing("reading its times")?;
    // After the name, which may contain blanks: the state, ten numbers, then user and system time.
    let rest = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    let ticks = rest.split_ascii_whitespace().skip(11).take(2).map(str::parse::<u64>);
    let ticks: u64 = ticks.collect::<Result<Vec<_>, _>>()?.into_iter().sum();
    // The kernel's unit for user space is a hundredth of a second, whatever its own is.
    Ok(Duration::from_millis(ticks * 10))
}

fn before_the_commit(case: &Context) -> Result<(), Failure> {
    let first = start(case, &plain().also("hooks", "before commit wait switch"))?;
    let load = load(case, first.address()?)?;
    let seen = case.timeline().len();
    case.signal(first.pid, Signal::HUP)?;
    // The new one is ready, and has told the old one so.
    case.wait_for_from(first.pid, "waits", SOON)?;
    let second = pid_of(&another(case, &[first.pid], "ready")?)?;
    // While nobody else can take them.
    let Some(frozen) = Frozen::of(case, first.pid)? else {
        return Err(Failure::new("the old one has gone by itself"));
    };
    let waiting = queued(first.address()?)?;
    catch_up(case, second)?;
    frozen.thaw();
    for mut talk in waiting {
        let answer = talk.hear()?;
        ensure!(
            answer.pid == first.pid,
            "process {} has accepted a connection before the commit",
            answer.pid
        );
    }
    case.set_scenario(&plain())?;
    case.command(first.pid, "go", &[("at", "switch")])?;
    took_over(case, &outcome(case, first.pid, seen)?)?;
    wait_left(case, first.pid)?;
    // The second has a hook that would wait, too.
    case.command(second, "go", &[("at", "switch")])?;
    finish(case, load, second)
}

fn dropped_accept(case: &Context) -> Result<(), Failure> {
    let server = start(case, &plain().with("helped", true))?;
    talk::get(server.address()?, "/")?;
    carry_out(case, server.pid, "unhelp", &[])?;
    // The helper was the last to ask for a connection.
    talk::get(server.address()?, "/").map_err(|failure| {
        failure.while_doing("connecting after one of two tasks that accept has gone")
    })?;
    case.set_scenario(&plain())?;
    let load = load(case, server.address()?)?;
    finish(case, load, server.pid)
}
