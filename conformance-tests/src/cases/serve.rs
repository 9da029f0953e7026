//! A restart is not noticed, and the new process has what the old one had.

use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use super::common::{
    DEADLINE, SOON, another, ask, at_rest, carry_out, catch_up, finish, finish_without_restart,
    hold, is_refused, load, number, outcome, pid_of, plain, refused, restart, serving, start, stop,
    took_over, unchanged, wait_in_flight, wait_left, wait_state,
};
use super::talk::{self, Talk};
use crate::client::Load;
use crate::hygiene::{self, Belongings};
use crate::signal::Signal;
use crate::timeline::Event;
use crate::{Case, Context, Doing, Failure, Need, Scenario, ensure, poll_until};

const fn case(
    name: &'static str,
    clause: &'static str,
    run: fn(&Context) -> Result<(), Failure>,
) -> Case {
    Case { name, clause, deadline: DEADLINE, needs: &[], run }
}

pub(super) const CASES: &[Case] = &[
    case(
        "serve::a_fresh_start_binds_and_its_port_stays",
        "a fresh start binds and answers; port 0 works and keeps its port over restarts",
        port,
    ),
    case(
        "serve::a_restart_under_load_loses_nothing",
        "a restart under load loses nothing; the answers' pid changes; the old process is gone after",
        under_load,
    ),
    case(
        "serve::a_request_under_way_is_finished_by_the_old",
        "a 5 s request begun before the restart is finished by the old process with the old \
         answer; the next gets the new answer",
        five_seconds,
    ),
    case(
        "serve::a_connection_that_pings_survives",
        "a connection that pings survives the whole restart",
        pings,
    ),
    case(
        "serve::the_accept_queue_is_served_by_the_new",
        "what waits in the kernel's accept queue when the old stops accepting is served by the new",
        queue,
    ),
    case(
        "serve::after_the_commit_the_old_accepts_nothing",
        "after the commit the old process accepts nothing on a claimed listener, and its paused \
         listener takes no wake-ups from the successor: it is deregistered from its poller",
        paused,
    ),
    Case {
        name: "serve::fifty_restarts_leave_nothing_behind",
        clause: "fifty restarts in a row; fd numbers, fd count, memory as after the first",
        deadline: Duration::from_secs(300),
        needs: &[],
        run: fifty,
    },
    case(
        "serve::the_successor_is_started_as_its_predecessor_was",
        "the successor has the same argv, cwd, env, umask and stdio, and not the CPU affinity of \
         whichever thread happened to start it; its signal mask and dispositions are clean",
        environment,
    ),
    Case {
        name: "serve::the_priority_of_a_thread_is_not_passed_on",
        clause: "the successor does not have the priority of whichever thread started it",
        deadline: DEADLINE,
        needs: &[Need::ROOT],
        run: priority,
    },
    case(
        "serve::a_file_renamed_over_the_program_is_used",
        "the replaced binary is used: a new file renamed over the old",
        renamed,
    ),
    case(
        "serve::a_deleted_program_that_came_back_is_used",
        "the replaced binary is used: a deleted old file",
        deleted,
    ),
    case(
        "serve::a_release_link_is_followed_anew",
        "the replaced binary is used: a release symlink re-pointed",
        linked,
    ),
    case(
        "serve::another_program_can_be_named",
        "the program to start can be set, and keeps the arguments",
        another_program,
    ),
    case(
        "serve::a_restart_before_anything_connected",
        "a restart before anything connected; a restart right after `ready`",
        at_once,
    ),
    case("serve::ten_listeners_in_another_order", "ten listeners, claimed in another order", ten),
    case("serve::three_hundred_descriptors", "300 descriptors are handed over", |case| {
        many(case, 300)
    }),
    case("serve::a_thousand_descriptors", "1,000 descriptors are handed over", |case| {
        many(case, 1_000)
    }),
    case(
        "serve::listeners_are_added_dropped_and_moved",
        "the successor adds a listener, drops one, moves one to another address: what is dropped \
         drains its queue first",
        changed,
    ),
    case(
        "serve::a_group_is_handed_to_a_group_of_its_size",
        "a SO_REUSEPORT group of 8 handed to a version that claims 8: nothing lost",
        group,
    ),
    case(
        "serve::a_group_does_not_shrink",
        "a SO_REUSEPORT group of 8 handed to a version that claims 4: refused before COMMIT, typed",
        smaller_group,
    ),
    case(
        "serve::listeners_change_while_serving",
        "a listener added and one dropped while serving, then a restart",
        while_serving,
    ),
    case(
        "serve::state_is_handed_over",
        "application state of 0 B and of 1 MiB arrives, as it was at the start and at the commit",
        state,
    ),
    case(
        "serve::state_over_the_limit_is_refused",
        "application state over the limit: a typed refusal, and the old one goes on",
        too_much_state,
    ),
    case(
        "serve::a_provider_of_state_hangs",
        "a provider of state that hangs: the restart fails at its deadline, later ones are refused \
         until it comes back, and the old one goes on",
        hanging_provider,
    ),
    case(
        "serve::a_state_of_another_version_starts_cold",
        "a state version that the new one does not know starts cold",
        cold,
    ),
    case(
        "serve::an_overlapping_address_is_refused",
        "an address that overlaps an inherited one (0.0.0.0:p after 127.0.0.1:p): a typed \
         refusal, and the old one goes on",
        overlap,
    ),
];

fn port(case: &Context) -> Result<(), Failure> {
    let first = start(case, &plain())?;
    let address = first.address()?;
    ensure!(address.port() != 0, "{address}");
    let load = load(case, address)?;
    let second = restart(case, first.pid)?;
    ensure!(second.address()? == address, "{} after {address}", second.address()?);
    let third = restart(case, second.pid)?;
    ensure!(third.address()? == address, "{} after {address}", third.address()?);
    finish(case, load, third.pid)
}

fn under_load(case: &Context) -> Result<(), Failure> {
    let first = start(case, &plain())?;
    let load = load(case, first.address()?)?;
    let window = load.mark("restart");
    let outcome = ask(case, first.pid)?;
    let second = took_over(case, &outcome)?;
    ensure!(number(&outcome, "generation")? == 2, "{outcome}");
    ensure!(outcome.get("claimed") == Some("web"), "{outcome}");
    load.wait_for_successor(first.pid, SOON)?;
    drop(window);
    let exit = wait_left(case, first.pid)?;
    ensure!(number(&exit, "successor")? == u64::from(second.pid), "{exit}");
    ensure!(number(&exit, "cut")? == 0, "{exit}");
    finish(case, load, second.pid)
}

fn five_seconds(case: &Context) -> Result<(), Failure> {
    // Longer than the request: its answer tells to close before anything is closed.
    let scenario = plain().with("policy.linger", 15_000).also("hooks", "after settle ok");
    let first = start(case, &scenario)?;
    let load = load(case, first.address()?)?;
    let mut slow = Talk::to(first.address()?)?;
    slow.ask("/slow?ms=5000")?;
    // And one that lasts for as long as the restart, however slow that is.
    let mut held = Talk::to(first.address()?)?;
    held.begin()?;
    // The answer to a later request shows that the earlier one was taken up.
    let taken = talk::get(first.address()?, "/")?;
    ensure!(taken.pid == first.pid, "{taken:?}");
    let second = restart(case, first.pid)?;
    let next = talk::get(first.address()?, "/")?;
    ensure!(next.pid == second.pid, "{next:?} from {second:?}");
    let answer = slow.hear()?;
    ensure!(answer.word == "slow" && answer.pid == first.pid, "{answer:?}");
    // Nothing but the request keeps the old process any more.
    case.timeline().wait_for("the end of the probation", SOON, |event| {
        event.pid == Some(first.pid) && event.is("hook") && event.get("event") == Some("settle")
    })?;
    let answer = held.finish()?;
    ensure!(answer.word == "got" && answer.pid == first.pid, "{answer:?}");
    ensure!(answer.close, "{answer:?} keeps the connection to a process that leaves");
    wait_left(case, first.pid)?;
    finish(case, load, second.pid)
}

fn pings(case: &Context) -> Result<(), Failure> {
    let first = start(case, &plain())?;
    let load = load(case, first.address()?)?;
    let pings =
        case.start_load(Load::builder(first.address()?).ping(2, Duration::from_millis(50)))?;
    pings.wait_for_answers(4, SOON)?;
    let second = restart(case, first.pid)?;
    load.wait_for_successor(first.pid, SOON)?;
    // Probation and linger are over, and the lines still come.
    case.wait_for_from(first.pid, "stage", SOON)?;
    pings.wait_for_answers(10, SOON)?;
    let report = pings.stop();
    case.nothing_lost(&report)?;
    let pids: Vec<u32> = report.pids.iter().map(|answered| answered.pid).collect();
    ensure!(pids == [first.pid], "{pids:?} answered");
    let exit = wait_left(case, first.pid)?;
    ensure!(number(&exit, "cut")? == 0, "{exit}");
    finish(case, load, second.pid)
}

/// How many connections wait at once.
const WAITING: usize = 50;

fn queue(case: &Context) -> Result<(), Failure> {
    let first = start(case, &plain().also("hooks", "before commit wait switch"))?;
    let load = load(case, first.address()?)?;
    let seen = case.timeline().len();
    case.signal(first.pid, Signal::HUP)?;
    // The new one has said that it is ready. Stopped, it will take over and not accept.
    case.wait_for_from(first.pid, "waits", SOON)?;
    let second = pid_of(&another(case, &[first.pid], "ready")?)?;
    case.signal(second, Signal::STOP)?;
    case.command(first.pid, "go", &[("at", "switch")])?;
    wait_state(case, first.pid, "Draining")?;
    let waiting = queued(first.address()?)?;
    // The old one has had its chance before the new one has its own.
    catch_up(case, first.pid)?;
    case.signal(second, Signal::CONT)?;
    all_answered(waiting, second)?;
    case.set_scenario(&plain())?;
    took_over(case, &outcome(case, first.pid, seen)?)?;
    wait_left(case, first.pid)?;
    // The second has a hook that would wait, too.
    case.command(second, "go", &[("at", "switch")])?;
    finish(case, load, second)
}

fn paused(case: &Context) -> Result<(), Failure> {
    let long = plain()
        .with("policy.probation", 600_000)
        .with("policy.linger", 600_000)
        .with("policy.drain", 600_000);
    let first = start(case, &long)?;
    let address = first.address()?;
    // The kernel's list may miss one while others come and go.
    let own = poll_until(SOON, "an owner that watches its listener", || {
        let listening = listening().ok()?;
        let mut own = watched(first.pid).ok()?;
        own.retain(|watched| listening.contains(&watched.inode));
        (!own.is_empty()).then_some(own)
    })?;
    let load = load(case, address)?;
    hold(case, first.pid)?;
    let second = restart(case, first.pid)?;
    // The old one has its copy still, and must leave all wake-ups to the new one.
    let mut polled = watched(first.pid)?;
    polled.retain(|watched| own.contains(watched));
    ensure!(polled.is_empty(), "the old process still watches {polled:?}");
    for _ in 0..2 {
        all_answered(queued(address)?, second.pid)?;
    }
    // But for the guard: what it ends with is to cut nothing.
    wait_in_flight(case, first.pid, 1)?;
    case.command(first.pid, "unguard", &[])?;
    // It may have gone by itself.
    let _ = case.signal(first.pid, Signal::USR2);
    wait_left(case, first.pid)?;
    finish_without_restart(case, load, second.pid)
}

/// A file in an epoll instance.
#[derive(Debug, PartialEq, Eq)]
struct Watched {
    inode: u64,
    device: String,
}

/// What is in the epoll instances of a process.
fn watched(pid: u32) -> Result<Vec<Watched>, Failure> {
    let mut watched = Vec::new();
    for descriptor in hygiene::descriptors(pid)? {
        if descriptor.target != "anon_inode:[eventpoll]" {
            continue;
        }
        let path = format!("/proc/{pid}/fdinfo/{}", descriptor.number);
        let info = std::fs::read_to_string(path).unwrap_or_default();
        watched.extend(info.lines().filter(|line| line.starts_with("tfd:")).filter_map(|line| {
            let (_, identity) = line.split_once("ino:")?;
            let (inode, device) = identity.split_once(' ')?;
            let inode = u64::from_str_radix(inode, 16).ok()?;
            Some(Watched { inode, device: device.to_owned() })
        }));
    }
    Ok(watched)
}

/// The inodes of all listening TCP sockets.
fn listening() -> Result<Vec<u64>, Failure> {
    let table = std::fs::read_to_string("/proc/net/tcp").doing("listing sockets")?;
    let rows = table.lines().skip(1).map(|line| line.split_ascii_whitespace().collect::<Vec<_>>());
    let listening = rows.filter(|row| row.get(3) == Some(&"0A"));
    Ok(listening.filter_map(|row| row.get(9)?.parse().ok()).collect())
}

fn fifty(case: &Context) -> Result<(), Failure> {
    let quick = plain().with("policy.probation", 20).with("policy.linger", 10_000);
    let first = start(case, &quick)?;
    let second = restart(case, first.pid)?;
    wait_left(case, first.pid)?;
    wait_in_flight(case, second.pid, 0)?;
    let before = at_rest(case, second.pid)?;
    let load = load(case, first.address()?)?;
    let mut pid = second.pid;
    for _ in 1..50 {
        let next = restart(case, pid)?.pid;
        load.wait_for_successor(pid, SOON)?;
        wait_left(case, pid)?;
        pid = next;
    }
    let report = load.stop();
    case.nothing_lost(&report)?;
    wait_in_flight(case, pid, 0)?;
    let after = at_rest(case, pid)?;
    unchanged(&before, pid)?;
    // A leak of what a connection or a restart needs would be more.
    let (one, fifty) = (before.resident_kib, after.resident_kib);
    ensure!(fifty < one * 2 + 8_192, "{one} KiB after one restart, {fifty} KiB after fifty");
    let last = start_generation(case, pid)?;
    ensure!(number(&last, "generation")? == 51, "{last}");
    stop(case, pid)
}

fn start_generation(case: &Context, pid: u32) -> Result<Event, Failure> {
    case.wait_for_from(pid, "started", SOON)
}

fn environment(case: &Context) -> Result<(), Failure> {
    case.set_scenario(&plain().also("at.claimed", "ok"))?;
    let folder = case.folder().join("elsewhere");
    std::fs::create_dir(&folder).doing("making a folder")?;
    let input = std::fs::File::open("/dev/zero").doing("opening an input")?;
    // A disposition and a umask that only a careless start would pass on, or lose.
    let first = case
        .subject()
        .through(["sh", "-c", "umask 027; trap '' WINCH; exec \"$0\" \"$@\""])
        .arg("--config")
        .arg("an argument with blanks")
        .env("CASE_TEXT", "one = two")
        .current_dir(&folder)
        .stdin(input)
        .start()?
        .pid();
    let first = serving(case, first)?;
    let load = load(case, first.address()?)?;
    let born = case.wait_for_from(first.pid, "born", SOON)?;
    ensure!(born.get("cwd").is_some_and(|cwd| cwd.ends_with("elsewhere")), "{born}");
    ensure!(born.get("umask") == Some("0027"), "{born}");
    for action in ["pin 0", "block TERM"] {
        carry_out(case, first.pid, "thread-act", &[("action", action)])?;
    }
    let second = restart(case, first.pid)?;
    let other = case.wait_for_from(second.pid, "born", SOON)?;
    for key in ["argv", "cwd", "exe", "env", "umask", "stdio", "cpus", "nice"] {
        let (old, new) = (born.get(key), other.get(key));
        ensure!(old == new, "{key}: {old:?}, then {new:?}");
    }
    ensure!(other.get("blocked") == Some("0000000000000000"), "{other}");
    // The standard library ignores SIGPIPE in every program; glibc's posix_spawn leaves 32 and 33.
    let ignored = other.get("ignored").unwrap_or_default();
    let ignored = u64::from_str_radix(ignored, 16)?;
    ensure!(ignored & !0x1_8000_1000 == 0, "signals are ignored: {ignored:#x}");
    finish(case, load, second.pid)
}

fn priority(case: &Context) -> Result<(), Failure> {
    let first = start(case, &plain())?;
    let load = load(case, first.address()?)?;
    carry_out(case, first.pid, "thread-act", &[("action", "nice 5")])?;
    let second = restart(case, first.pid)?;
    let (old, new) = (
        case.wait_for_from(first.pid, "born", SOON)?,
        case.wait_for_from(second.pid, "born", SOON)?,
    );
    ensure!(old.get("nice") == new.get("nice"), "nice {:?}, then {:?}", old.get("nice"), new);
    finish(case, load, second.pid)
}

/// Fails unless the process runs the file at `path`.
fn runs(pid: u32, path: &Path) -> Result<(), Failure> {
    let running = std::fs::metadata(format!("/proc/{pid}/exe")).doing("looking at a program")?;
    let file = std::fs::metadata(path).doing("looking at a program")?;
    let same = (running.dev(), running.ino()) == (file.dev(), file.ino());
    ensure!(same, "process {pid} does not run {}", path.display());
    Ok(())
}

fn renamed(case: &Context) -> Result<(), Failure> {
    let first = start(case, &plain())?;
    let load = load(case, first.address()?)?;
    case.program().replace()?;
    ensure!(runs(first.pid, case.program().path()).is_err(), "the old runs the new file");
    let second = restart(case, first.pid)?;
    runs(second.pid, case.program().path())?;
    case.program().replace()?;
    let third = restart(case, second.pid)?;
    runs(third.pid, case.program().path())?;
    finish(case, load, third.pid)
}

fn deleted(case: &Context) -> Result<(), Failure> {
    let first = start(case, &plain())?;
    let load = load(case, first.address()?)?;
    case.program().remove()?;
    let outcome = ask(case, first.pid)?;
    is_refused(&outcome, "Spawn")?;
    case.program().replace()?;
    let second = restart(case, first.pid)?;
    runs(second.pid, case.program().path())?;
    finish(case, load, second.pid)
}

fn linked(case: &Context) -> Result<(), Failure> {
    let (one, two) = (case.another_program("release-1")?, case.another_program("release-2")?);
    let link = case.folder().join("current");
    one.link_at(&link)?;
    case.set_scenario(&plain())?;
    let first = case.subject().program(&link).start()?.pid();
    let first = serving(case, first)?;
    let load = load(case, first.address()?)?;
    runs(first.pid, one.path())?;
    two.link_at(&link)?;
    let second = restart(case, first.pid)?;
    runs(second.pid, two.path())?;
    one.link_at(&link)?;
    two.remove()?;
    let third = restart(case, second.pid)?;
    runs(third.pid, one.path())?;
    finish(case, load, third.pid)
}

fn another_program(case: &Context) -> Result<(), Failure> {
    let other = case.another_program("other")?;
    let named = plain().with("policy.executable", other.path().display());
    case.set_scenario(&named)?;
    let first = case.subject().arg("--flag").arg("value").start()?.pid();
    let first = serving(case, first)?;
    let load = load(case, first.address()?)?;
    let second = restart(case, first.pid)?;
    runs(second.pid, other.path())?;
    let third = restart(case, second.pid)?;
    for pid in [second.pid, third.pid] {
        let born = case.wait_for_from(pid, "born", SOON)?;
        let words = born.get("argv").unwrap_or_default();
        let expected = format!("{} --flag value", other.path().display());
        ensure!(words == expected, "started as `{words}`, not `{expected}`");
    }
    finish(case, load, third.pid)
}

fn at_once(case: &Context) -> Result<(), Failure> {
    let first = start(case, &plain().with("policy.probation", 20))?;
    let mut pid = first.pid;
    // Each is asked for in the moment in which the process says that it serves.
    for _ in 0..5 {
        pid = restart(case, pid)?.pid;
    }
    let load = load(case, first.address()?)?;
    finish(case, load, pid)
}

fn ten(case: &Context) -> Result<(), Failure> {
    let line = |number: usize| format!("listener-{number} tcp 127.0.0.1:0");
    let all = |numbers: &mut dyn Iterator<Item = usize>| {
        numbers.fold(Scenario::new(), |all, number| all.also("listen", line(number)))
    };
    let first = start(case, &all(&mut (0..10)))?;
    let load = load(case, first.address_of("listener-7")?)?;
    case.set_scenario(&all(&mut (0..10).rev()))?;
    let second = restart(case, first.pid)?;
    for number in 0..10 {
        let name = format!("listener-{number}");
        let (old, new) = (first.address_of(&name)?, second.address_of(&name)?);
        ensure!(old == new, "{name} was at {old} and is at {new}");
        let answer = talk::get(new, "/name")?;
        ensure!(answer.pid == second.pid, "{name}: {answer:?}");
        ensure!(answer.word == name, "{new} is {name}'s, and {} has accepted there", answer.word);
    }
    finish(case, load, second.pid)
}

fn many(case: &Context, count: usize) -> Result<(), Failure> {
    // Half of them sockets, half of them files, of which the program has a copy each.
    let scenario = (0..count).fold(plain().with("quiet", true), |all, number| {
        let unique = case.folder().display().to_string().replace('/', "-");
        match number % 2 {
            0 => all.also("listen", format!("socket-{number} unix @{unique}-{number}")),
            _ => all.also("listen", format!("file-{number} file log")),
        }
    });
    let first = start(case, &scenario)?;
    let load = load(case, first.address()?)?;
    let outcome = ask(case, first.pid)?;
    let second = took_over(case, &outcome)?;
    let claimed = outcome.get("claimed").unwrap_or_default().split(' ').count();
    ensure!(claimed == count + 1, "{claimed} of {} were claimed", count + 1);
    ensure!(outcome.get("bound") == Some(""), "{outcome}");
    finish(case, load, second.pid)
}

fn changed(case: &Context) -> Result<(), Failure> {
    let first = start(
        case,
        &plain().also("listen", "moved tcp 127.0.0.1:0").also("listen", "dropped tcp 127.0.0.1:0"),
    )?;
    let load = load(case, first.address()?)?;
    let (dropped, moved) = (first.address_of("dropped")?, first.address_of("moved")?);
    // 127.0.0.2 is another address of the loopback.
    let next =
        plain().also("listen", "moved tcp 127.0.0.2:0").also("listen", "added tcp 127.0.0.1:0");
    case.set_scenario(&next)?;
    // On what is dropped, every connection that comes to be is served, until none comes to be.
    let visits = Arc::new(AtomicUsize::new(0));
    let visitors: Vec<_> = [dropped, moved, dropped, moved]
        .map(|address| {
            let visits = Arc::clone(&visits);
            std::thread::spawn(move || {
                talk::get(address, "/")?;
                visits.fetch_add(1, Ordering::Relaxed);
                visit_until_refused(address)
            })
        })
        .into();
    poll_until(SOON, "all visitors to have been served", || {
        (visits.load(Ordering::Relaxed) == visitors.len()).then_some(())
    })?;
    let outcome = ask(case, first.pid)?;
    let second = took_over(case, &outcome)?;
    let sorted = |key: &str| {
        let mut names: Vec<&str> = outcome.get(key).unwrap_or_default().split(' ').collect();
        names.sort_unstable();
        names.join(" ")
    };
    ensure!(sorted("claimed") == "web", "{outcome}");
    ensure!(sorted("bound") == "added moved", "{outcome}");
    ensure!(sorted("dropped") == "dropped moved", "{outcome}");
    let ready = case.wait_for_from(second.pid, "ready", SOON)?;
    ensure!(ready.get("unclaimed") == Some("dropped"), "{ready}");
    for name in ["added", "moved"] {
        let answer = talk::get(second.address_of(name)?, "/")?;
        ensure!(answer.pid == second.pid, "{name}: {answer:?}");
    }
    for visitor in visitors {
        visitor.join().map_err(|_| Failure::new("a visitor panicked"))??;
    }
    wait_left(case, first.pid)?;
    finish(case, load, second.pid)
}

/// Connections with a request each, which wait to be accepted.
pub(super) fn queued(address: SocketAddr) -> Result<Vec<Talk>, Failure> {
    let mut waiting = Vec::new();
    for _ in 0..WAITING {
        let mut talk = Talk::to(address)?;
        talk.ask("/")?;
        waiting.push(talk);
    }
    Ok(waiting)
}

/// Fails unless each of them gets its answer, and from that process.
pub(super) fn all_answered(waiting: Vec<Talk>, pid: u32) -> Result<(), Failure> {
    for mut talk in waiting {
        let answer = talk.hear()?;
        ensure!(answer.pid == pid && answer.word == "ok", "{answer:?}, from another than {pid}");
    }
    Ok(())
}

/// Requests on new connections, one after another, until nobody listens; how many were served.
pub(super) fn visit_until_refused(address: SocketAddr) -> Result<usize, Failure> {
    let mut served = 0;
    loop {
        let mut talk = match Talk::to(address) {
            Ok(talk) => talk,
            Err(_) if talk::is_refused(address) => return Ok(served),
            Err(failure) => return Err(failure),
        };
        talk.get("/").map_err(|failure| {
            failure.while_doing(format!("request {served} on a listener that is to close"))
        })?;
        served += 1;
    }
}

fn group(case: &Context) -> Result<(), Failure> {
    let eight = Scenario::new().with("listen", "web tcp*8 127.0.0.1:0");
    let first = start(case, &eight)?;
    let load = load(case, first.address()?)?;
    let second = restart(case, first.pid)?;
    ensure!(second.address()? == first.address()?, "{} moved", first.address()?);
    load.wait_for_answers(200, SOON)?;
    finish(case, load, second.pid)
}

fn smaller_group(case: &Context) -> Result<(), Failure> {
    let first = start(case, &Scenario::new().with("listen", "web tcp*8 127.0.0.1:0"))?;
    let load = load(case, first.address()?)?;
    let address = first.address()?;
    case.set_scenario(&Scenario::new().with("listen", "web tcp*4 127.0.0.1:0"))?;
    let outcome = ask(case, first.pid)?;
    is_refused(&outcome, "GaveUp")?;
    let detail = outcome.get("detail").unwrap_or_default();
    ensure!(detail.contains("`web`") && detail.contains('8') && detail.contains('4'), "{detail}");
    let drained =
        case.timeline().events().iter().any(|event| event.get("state") == Some("Draining"));
    ensure!(!drained, "refused after the commit");
    case.set_scenario(&Scenario::new().with("listen", format!("web tcp*8 {address}")))?;
    finish(case, load, first.pid)
}

fn while_serving(case: &Context) -> Result<(), Failure> {
    let first = start(case, &plain().also("listen", "old tcp 127.0.0.1:0"))?;
    let load = load(case, first.address()?)?;
    let old = first.address_of("old")?;
    case.command(first.pid, "add", &[("entry", "new tcp 127.0.0.1:0")])?;
    let added = case.timeline().wait_for("the added listener", SOON, |event| {
        event.is("claimed") && event.get("name") == Some("new")
    })?;
    let new: SocketAddr = added.get("address").unwrap_or_default().parse()?;
    ensure!(talk::get(new, "/")?.pid == first.pid, "nobody serves what was added");
    let visitor = std::thread::spawn(move || visit_until_refused(old));
    ensure!(talk::get(old, "/")?.pid == first.pid, "nobody serves `old`");
    carry_out(case, first.pid, "ignore", &[])?;
    let waiting = queued(old)?;
    case.command(first.pid, "close", &[("name", "old")])?;
    case.wait_for_from(first.pid, "close", SOON)?;
    case.command(first.pid, "attend", &[])?;
    all_answered(waiting, first.pid)?;
    case.wait_for_from(first.pid, "closed", SOON)?;
    visitor.join().map_err(|_| Failure::new("a visitor panicked"))??;
    case.set_scenario(&plain().also("listen", "new tcp 127.0.0.1:0"))?;
    let outcome = ask(case, first.pid)?;
    let second = took_over(case, &outcome)?;
    ensure!(outcome.get("claimed") == Some("web new"), "{outcome}");
    ensure!(second.address_of("new")? == new, "`new` has moved");
    ensure!(talk::get(new, "/")?.pid == second.pid, "the old one serves `new`");
    finish(case, load, second.pid)
}

fn state(case: &Context) -> Result<(), Failure> {
    let of = |bytes: usize| plain().with("state", bytes);
    let first = start(case, &of(0))?;
    let load = load(case, first.address()?)?;
    let mut last = first;
    for (handed, next) in [(0, 1 << 20), (1 << 20, 0)] {
        case.set_scenario(&of(next))?;
        last = restart(case, last.pid)?;
        let started = case.wait_for_from(last.pid, "started", SOON)?;
        ensure!(number(&started, "state")? == handed, "{started}");
        ensure!(number(&last.event, "state")? == handed, "{}", last.event);
    }
    finish(case, load, last.pid)
}

fn too_much_state(case: &Context) -> Result<(), Failure> {
    let limited = plain().with("policy.state_limit", 1 << 20);
    let first = start(case, &limited.clone().with("state", (1 << 20) + 1))?;
    let load = load(case, first.address()?)?;
    let outcome = ask(case, first.pid)?;
    is_refused(&outcome, "State")?;
    ensure!(outcome.get("detail").is_some_and(|why| why.contains("blob")), "{outcome}");
    // It cannot be restarted as it is, but it serves and can be stopped.
    finish_without_restart(case, load, first.pid)
}

fn hanging_provider(case: &Context) -> Result<(), Failure> {
    let hanging = plain().with("state", 1_000).with("state.provider", "wait provider");
    let first = start(case, &hanging.with("policy.hooks", 500))?;
    let load = load(case, first.address()?)?;
    refused(case, first.pid, "HookDeadline")?;
    let again = refused(case, first.pid, "State")?;
    ensure!(again.get("detail").is_some_and(|why| why.contains("provider")), "{again}");
    case.set_scenario(&plain().with("state", 1_000))?;
    case.command(first.pid, "go", &[("at", "provider")])?;
    poll_until(SOON, "the provider to come back", || {
        let threads = Belongings::of(first.pid).ok()?.threads;
        (!threads.iter().any(|name| name == "handover-state")).then_some(())
    })?;
    let second = restart(case, first.pid)?;
    let started = case.wait_for_from(second.pid, "started", SOON)?;
    ensure!(number(&started, "state")? == 1_000, "{started}");
    finish(case, load, second.pid)
}

fn cold(case: &Context) -> Result<(), Failure> {
    let first = start(case, &plain().with("state", 1_000))?;
    let load = load(case, first.address()?)?;
    case.set_scenario(&plain().with("state", 1_000).with("state.version", 2))?;
    let second = restart(case, first.pid)?;
    let started = case.wait_for_from(second.pid, "started", SOON)?;
    ensure!(started.get("state") == Some("none"), "{started}");
    ensure!(second.event.get("state") == Some("none"), "{}", second.event);
    let third = restart(case, second.pid)?;
    let started = case.wait_for_from(third.pid, "started", SOON)?;
    ensure!(number(&started, "state")? == 1_000, "{started}");
    finish(case, load, third.pid)
}

fn overlap(case: &Context) -> Result<(), Failure> {
    let first = start(case, &plain())?;
    let load = load(case, first.address()?)?;
    let port = first.address()?.port();
    for line in [format!("web tcp 0.0.0.0:{port}"), format!("all tcp 0.0.0.0:{port}")] {
        case.set_scenario(&Scenario::new().with("listen", &line))?;
        let outcome = ask(case, first.pid)?;
        is_refused(&outcome, "GaveUp")?;
        let detail = outcome.get("detail").unwrap_or_default();
        ensure!(detail.contains(&format!("0.0.0.0:{port}")), "{line}: {detail}");
    }
    poll_until(SOON, "the refused ones to go", || (case.processes().len() == 1).then_some(()))?;
    case.set_scenario(&plain())?;
    finish(case, load, first.pid)
}
