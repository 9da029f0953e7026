//! HTTP: a restart fails no request, on connections that are kept, streamed on, or pipelined.
//!
//! Group `http` is about the adapter, under a server of this suite's own; group `hyper` is the
//! same about the HTTP stack that the adapter offers to its users.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::time::Duration;

use super::common::{
    DEADLINE, SOON, catch_up, load, number, plain, restart, start, stop, wait_left,
    wait_rolled_back,
};
use super::frozen::Frozen;
use super::talk::{self, Talk};
use crate::client::{Load, Report, Running};
use crate::signal::Signal;
use crate::{Case, Context, Failure, Scenario, ensure};

/// So many clients of each kind.
const CLIENTS: usize = 16;

pub(super) const fn case(
    name: &'static str,
    clause: &'static str,
    run: fn(&Context) -> Result<(), Failure>,
) -> Case {
    Case { name, clause, deadline: DEADLINE, needs: &[], run }
}

macro_rules! cases {
    ($($name:literal, $clause:literal, $run:ident;)*) => {
        pub(super) const CASES: &[Case] =
            &[$(case(concat!("http::", $name), $clause, |case| $run(case, &plain()))),*];
        #[cfg(feature = "http")]
        pub(super) const OF_A_STACK: &[Case] =
            &[$(case(concat!("hyper::", $name), $clause, |case| $run(case, &over_a_stack()))),*];
    };
}

cases! {
    "kept_connections_survive_twelve_restarts",
        "16 keep-alive clients that POST without pause, 16 that think 5-455 ms, 16 that send their \
         first request late, 12 restarts: 0 failed requests",
        storm;
    "kept_connections_survive_a_rollback",
        "the same with a rollback in the middle: only what the dead process held is lost, and \
         connections after it are kept alive again",
        rollback;
    "idle_connections_are_told_before_they_are_closed",
        "an idle connection, or one whose first request has not come yet, is not closed under \
         a request that is on its way: its next answer says `close`",
        idle;
    "an_upload_and_a_download_cross_a_restart",
        "a streaming upload and a streaming download across a restart",
        streams;
    "a_body_that_waits_to_be_asked_for_crosses_a_restart",
        "`Expect: 100-continue` across a restart",
        expectations;
    "only_the_last_pipelined_answer_says_close",
        "pipelined requests: `close` only on the last answer",
        pipelined;
}

/// The adapter's own HTTP stack serves.
#[cfg(feature = "http")]
pub(super) fn over_a_stack() -> Scenario {
    plain().with("server", "hyper")
}

/// Times that a client may think for, with room for a machine that is busy.
fn patient(scenario: &Scenario) -> Scenario {
    scenario.clone().with("policy.linger", 10_000).with("policy.stop_linger", 10_000)
}

fn everybody(case: &Context, address: SocketAddr) -> Result<Running, Failure> {
    let (none, pause) = (Duration::ZERO, Duration::from_millis(5)..Duration::from_millis(455));
    let load = Load::builder(address)
        // They tell who accepts.
        .fresh(50.0)
        .kept_post(CLIENTS, none..none, 100)
        .kept(CLIENTS, pause.clone())
        .kept_late(CLIENTS, pause)
        .keep_samples(100_000);
    case.start_load(load)
}

/// Waits until clients of each kind have had answers, about one for each client.
fn round(load: &Running) -> Result<(), Failure> {
    let before: Vec<u64> = load.snapshot().groups.iter().map(|group| group.ok).collect();
    load.wait_until(SOON, |report| {
        report.groups.iter().zip(&before).all(|(group, ok)| group.ok >= ok + CLIENTS as u64)
    })?;
    Ok(())
}

/// Waits for the ends of processes that were replaced. They have cut nobody.
pub(super) fn all_left(case: &Context, pids: &[u32]) -> Result<(), Failure> {
    for &pid in pids {
        let exit = wait_left(case, pid)?;
        ensure!(number(&exit, "cut")? == 0, "process {pid}: {exit}");
    }
    Ok(())
}

fn storm(case: &Context, scenario: &Scenario) -> Result<(), Failure> {
    // None of them is to be hurried.
    let first = start(case, &patient(scenario).with("policy.generations", 16))?;
    let load = everybody(case, first.address()?)?;
    let (mut pid, mut old) = (first.pid, Vec::new());
    for _ in 0..12 {
        round(&load)?;
        old.push(pid);
        pid = restart(case, pid)?.pid;
        load.wait_for_successor(old[old.len() - 1], SOON)?;
    }
    round(&load)?;
    case.nothing_lost(&load.stop())?;
    all_left(case, &old)?;
    stop(case, pid)
}

fn rollback(case: &Context, scenario: &Scenario) -> Result<(), Failure> {
    let usual = patient(scenario).with("policy.generations", 16);
    let first = start(case, &usual)?;
    let address = first.address()?;
    let load = everybody(case, address)?;
    round(&load)?;
    // Long enough for its successor to be looked at.
    case.set_scenario(&usual.clone().with("policy.probation", 20_000))?;
    let second = restart(case, first.pid)?.pid;
    load.wait_for_successor(first.pid, SOON)?;
    case.set_scenario(&usual)?;
    let mut kept = Talk::to(address)?;
    is_kept_by(&mut kept, second)?;
    round(&load)?;

    let seen = case.timeline().len();
    let third = restart(case, second)?.pid;
    load.wait_for_successor(second, SOON)?;
    round(&load)?;
    let Some(mut frozen) = Frozen::of(case, third)? else {
        return Err(Failure::new("a successor has gone by itself"));
    };
    let held = frozen.peers()?;
    frozen.kill()?;
    wait_rolled_back(case, seen, second)?;
    load.wait_for_successor(third, SOON)?;
    // It was idle all the time, and so not told to close.
    is_kept_by(&mut kept, second)?;
    let mut other = Talk::to(address)?;
    for _ in 0..2 {
        is_kept_by(&mut other, second)?;
    }
    round(&load)?;

    // The next drain is heard as the first was, and nothing more is lost.
    let fourth = restart(case, second)?.pid;
    load.wait_for_successor(second, SOON)?;
    for mut talk in [kept, other] {
        is_told_by(&mut talk, second)?;
    }
    round(&load)?;
    let fifth = restart(case, fourth)?.pid;
    load.wait_for_successor(fourth, SOON)?;
    round(&load)?;
    only_these_are_lost(&load.stop(), &held)?;
    // The second does not wait for its probation to end: its successor has been replaced as well.
    all_left(case, &[first.pid, second, fourth])?;
    stop(case, fifth)
}

fn is_kept_by<S: std::io::Read + std::io::Write>(
    talk: &mut Talk<S>,
    pid: u32,
) -> Result<(), Failure> {
    let said = talk.get("/")?;
    ensure!(said.pid == pid, "process {pid} was to answer: {said:?}");
    ensure!(!said.close, "an answer says `close`, and its process goes on: {said:?}");
    Ok(())
}

/// The connection's next answer is its last, and it then ends in order.
fn is_told_by(talk: &mut Talk, pid: u32) -> Result<(), Failure> {
    talk.ask("/")?;
    ends_with(talk, "ok", pid).map(drop)
}

/// The next answer is the last.
fn ends_with(talk: &mut Talk, word: &str, pid: u32) -> Result<talk::Said, Failure> {
    let said = talk.hear()?;
    ensure!(said.pid == pid && said.word == word, "{word} of process {pid} was due: {said:?}");
    ensure!(said.close, "{said:?} keeps the connection to a process that leaves");
    ensure!(!talk.wait_closed()?, "a connection was reset after its last answer");
    Ok(said)
}

fn only_these_are_lost(report: &Report, held: &HashSet<SocketAddr>) -> Result<(), Failure> {
    let (lost, told) = (report.lost() + report.races(), report.samples.len());
    ensure!(lost == told as u64, "{lost} were lost, and {told} of them are told");
    for sample in &report.samples {
        ensure!(
            sample.local.is_some_and(|local| held.contains(&local)),
            "lost, and not because of the process that died: {}",
            sample.relative_to(report.started)
        );
    }
    Ok(())
}

/// A generation whose connections, once it is replaced, stay what they are until the case ends.
fn unhurried(case: &Context, scenario: &Scenario) -> Result<(Old, Running), Failure> {
    let first = start(case, &scenario.clone().with("policy.probation", 20_000))?;
    let load = load(case, first.address()?)?;
    Ok((Old { pid: first.pid, address: first.address()? }, load))
}

struct Old {
    pid: u32,
    address: SocketAddr,
}

impl Old {
    /// A connection that has been used once.
    fn connect(&self) -> Result<Talk, Failure> {
        let mut talk = Talk::to(self.address)?;
        is_kept_by(&mut talk, self.pid)?;
        Ok(talk)
    }

    /// The generation after it, which serves by then.
    fn replace(&self, case: &Context, load: &Running) -> Result<u32, Failure> {
        let new = restart(case, self.pid)?.pid;
        load.wait_for_successor(self.pid, SOON)?;
        Ok(new)
    }

    /// The end: nobody has lost anything.
    fn leave(&self, case: &Context, load: Running, new: u32) -> Result<(), Failure> {
        load.wait_for_answers(50, SOON)?;
        case.nothing_lost(&load.stop())?;
        // It gives up its probation.
        case.signal(self.pid, Signal::TERM)?;
        all_left(case, &[self.pid])?;
        stop(case, new)
    }
}

fn idle(case: &Context, scenario: &Scenario) -> Result<(), Failure> {
    let (old, load) = unhurried(case, scenario)?;
    let mut used = old.connect()?;
    let (mut late, mut silent) = (Talk::to(old.address)?, Talk::to(old.address)?);
    // It is accepted after those two.
    let mut unused = old.connect()?;
    let new = old.replace(case, &load)?;
    // It has learnt that it drains, and has not closed anything.
    catch_up(case, old.pid)?;
    is_told_by(&mut used, old.pid)?;
    is_told_by(&mut late, old.pid)?;
    // Nobody waits for these for ever.
    case.signal(old.pid, Signal::TERM)?;
    for talk in [&mut silent, &mut unused] {
        ensure!(!talk.wait_closed()?, "an idle connection was reset");
    }
    load.wait_for_answers(50, SOON)?;
    case.nothing_lost(&load.stop())?;
    all_left(case, &[old.pid])?;
    stop(case, new)
}

/// More than all buffers on the way hold.
const DOWNLOAD: usize = 12 << 20;
const UPLOAD: usize = 1 << 20;

fn streams(case: &Context, scenario: &Scenario) -> Result<(), Failure> {
    let (old, load) = unhurried(case, scenario)?;
    let (mut up, mut down) = (old.connect()?, old.connect()?);
    up.send(&post(UPLOAD, ""))?;
    up.send(&"x".repeat(UPLOAD / 3))?;
    down.ask(&format!("/download?bytes={DOWNLOAD}"))?;
    let said = down.hear_download()?;
    ensure!(said.pid == old.pid && said.word == "down" && !said.close, "{said:?}");
    down.hear_filling(0, DOWNLOAD / 16)?;

    let new = old.replace(case, &load)?;
    up.send(&"x".repeat(UPLOAD - UPLOAD / 3))?;
    let said = ends_with(&mut up, "got", old.pid)?;
    ensure!(said.bytes == Some(UPLOAD), "{said:?} of {UPLOAD}");
    down.hear_filling(DOWNLOAD / 16, DOWNLOAD)?;
    // Its head was sent before there was anything to tell.
    is_told_by(&mut down, old.pid)?;
    old.leave(case, load, new)
}

fn post(bytes: usize, header: &str) -> String {
    format!("POST /upload HTTP/1.1\r\nHost: test\r\nContent-Length: {bytes}\r\n{header}\r\n")
}

fn expectations(case: &Context, scenario: &Scenario) -> Result<(), Failure> {
    let (old, load) = unhurried(case, scenario)?;
    let head = post(4, "Expect: 100-continue\r\n");
    let (begun, rest) = head.split_at(head.len() / 2);
    let (mut asked, mut half, mut waiting) = (old.connect()?, old.connect()?, old.connect()?);
    asked.send(&head)?;
    asked.hear_continue()?;
    half.send(begun)?;

    let new = old.replace(case, &load)?;
    half.send(rest)?;
    half.hear_continue()?;
    waiting.send(&head)?;
    waiting.hear_continue()?;
    for mut talk in [asked, half, waiting] {
        talk.send("body")?;
        let said = ends_with(&mut talk, "got", old.pid)?;
        ensure!(said.bytes == Some(4), "{said:?} of 4");
    }
    let mut other = Talk::to(old.address)?;
    other.send(&head)?;
    other.hear_continue()?;
    other.send("body")?;
    let said = other.hear()?;
    ensure!(said.pid == new && !said.close, "{said:?}");
    old.leave(case, load, new)
}

fn pipelined(case: &Context, scenario: &Scenario) -> Result<(), Failure> {
    let (old, load) = unhurried(case, scenario)?;
    let (mut begun, mut waiting) = (old.connect()?, old.connect()?);
    begun.send(&post(4, ""))?;
    begun.send("bo")?;

    let new = old.replace(case, &load)?;
    let three = "GET / HTTP/1.1\r\nHost: test\r\n\r\n".repeat(3);
    begun.send(&format!("dy{three}"))?;
    waiting.send(&format!("{}body{three}", post(4, "")))?;
    for mut talk in [begun, waiting] {
        for (number, word) in ["got", "ok", "ok"].into_iter().enumerate() {
            let said = talk.hear()?;
            ensure!(said.pid == old.pid && said.word == word, "{word} was due: {said:?}");
            ensure!(!said.close, "answer {} of 4 says `close`: {said:?}", number + 1);
        }
        ends_with(&mut talk, "ok", old.pid)?;
    }
    old.leave(case, load, new)
}
