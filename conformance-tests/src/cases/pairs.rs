//! One version on one runtime, the next on another.

use super::common::{
    DEADLINE, SOON, Serving, carry_out, finish, load, restart, serving, settled, start,
};
use super::descriptors::ask_datagram;
use crate::client::Load;
use crate::signal::Signal;
use crate::{Case, Context, Failure, Scenario, ensure, hygiene};

/// A pair's case, and the two runtimes that it needs.
pub(crate) struct Pair {
    pub(crate) case: Case,
    pub(crate) old: &'static str,
    pub(crate) new: &'static str,
}

macro_rules! pair {
    ($old:literal, $new:literal) => {
        Pair {
            case: Case {
                name: concat!("pairs::from_", $old, "_to_", $new),
                clause: concat!(
                    "a server on ",
                    $old,
                    " is replaced by one on ",
                    $new,
                    ", under load: sockets of every kind cross, a rollback leads back, and the \
                     way back is no different"
                ),
                deadline: DEADLINE,
                needs: &[],
                run: |case| replaced(case, $old, $new),
            },
            old: $old,
            new: $new,
        }
    };
}

pub(crate) const PAIRS: &[Pair] = &[
    pair!("tokio", "smol"),
    pair!("tokio", "threads"),
    pair!("smol", "tokio"),
    pair!("smol", "threads"),
    pair!("threads", "tokio"),
    pair!("threads", "smol"),
    pair!("tokio", "async-std"),
    pair!("async-std", "tokio"),
];

const LISTEN: &str = "web tcp 127.0.0.1:0\nu unix web.sock\nd udp 127.0.0.1:0\n\
                      q unix-datagram d.sock\nlog file server.log\np pipe -\ng tcp*2 127.0.0.1:0";

fn replaced(case: &Context, old: &str, new: &str) -> Result<(), Failure> {
    let on = |runtime: &str| {
        Scenario::new().with("listen", LISTEN).with("state", 1_000).with("runtime", runtime)
    };
    let first = start(case, &on(old).with("policy.probation", 20_000))?;
    let by_tcp = load(case, first.address()?)?;
    let by_path = load(case, case.folder().join("web.sock"))?;
    let by_group = load(case, first.address_of("g")?)?;
    case.command(first.pid, "write", &[("name", "p.w"), ("text", "across")])?;
    case.wait_for_from(first.pid, "write", SOON)?;

    // It gives up, and then it dies on probation: the old runtime accepts again.
    case.set_scenario(&on(new).with("at.claimed", "give-up not yet"))?;
    super::common::refused(case, first.pid, "GaveUp")?;
    for load in [&by_tcp, &by_path, &by_group] {
        load.wait_for_answers(20, SOON)?;
    }
    let reports = [by_tcp.stop(), by_path.stop(), by_group.stop()];
    reports.iter().try_for_each(|report| case.nothing_lost(report))?;
    let fresh = case.start_load(Load::builder(first.address()?).fresh(200.0))?;
    case.set_scenario(&on(new))?;
    let second = restart(case, first.pid)?;
    fresh.wait_for_successor(first.pid, SOON)?;
    case.signal(second.pid, Signal::KILL)?;
    fresh.wait_for_successor(second.pid, SOON)?;
    let report = fresh.stop();
    let lost = report.groups[0].lost;
    ensure!(lost.refused + lost.timed_out == 0, "clients were left alone:\n{report}");
    settled(case, &[first.pid])?;

    // There and back again, and nothing is lost.
    let by_tcp = load(case, first.address()?)?;
    let by_path = load(case, case.folder().join("web.sock"))?;
    let by_group = load(case, first.address_of("g")?)?;
    let datagrams = first.address_of("d")?;
    ensure!(ask_datagram(datagrams)? == first.pid, "another process has answered");
    let mut server: Serving = first;
    let mut texts = vec!["across"];
    for (runtime, text) in [(new, "and back"), (old, "home")] {
        case.set_scenario(&on(runtime))?;
        let nonblocking = |pid| -> Result<usize, Failure> {
            let all = hygiene::descriptors(pid)?;
            Ok(all.iter().filter(|one| one.kind() == "socket" && one.nonblocking()).count())
        };
        ensure!(nonblocking(server.pid)? >= 6, "a listener blocks");
        let next = restart(case, server.pid)?;
        for load in [&by_tcp, &by_path, &by_group] {
            load.wait_for_successor(server.pid, SOON)?;
        }
        ensure!(nonblocking(next.pid)? >= 6, "a listener blocks");
        ensure!(next.event.get("state") == Some("1000"), "{}", next.event);
        ensure!(ask_datagram(datagrams)? == next.pid, "another process has answered");
        // It may have gone by itself.
        let _ = case.signal(server.pid, Signal::TERM);
        case.wait_exit(server.pid, SOON)?;
        // What the one wrote, the other reads.
        let seen = case.timeline().len();
        case.command(next.pid, "read", &[("name", "p.r")])?;
        let read = case.timeline().wait_for_after(seen, "a read", SOON, |event| {
            event.pid == Some(next.pid) && event.is("read")
        })?;
        ensure!(read.get("text") == texts.pop(), "{read}");
        carry_out(case, next.pid, "write", &[("name", "p.w"), ("text", text)])?;
        texts.push(text);
        server = serving(case, next.pid)?;
    }
    for load in [by_path, by_group] {
        case.nothing_lost(&load.stop())?;
    }
    finish(case, by_tcp, server.pid)
}
