//! Restarts any server program of the contract again and again, under load, and checks that
//! nothing was lost and nothing is left over. Exits with 1 if something was.
//!
//! ```text
//! storm --restarts 50 --fresh 1500 --kept 16 --slow 2 -- target/release/examples/axum
//! ```
//!
//! The program is given its address in `ADDR`. SIGHUP goes to whichever process answers, which the
//! answers tell; another one answers after it. At the end SIGTERM stops the last one.
//!
//! The last table is what a restart costs: the latency of requests that touch a window of one,
//! beside that of all others. A window is from the signal to a quarter of a second after the
//! successor's first answer (less if `--every` leaves less), in which clients move over.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a program for the command line")]

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use handover_conformance::client::{Load, Report};
use handover_conformance::hygiene::{self, Belongings, Listed};
use handover_conformance::signal::{Process, Signal};
use handover_conformance::{Doing, Failure, ensure, poll_until};
use rustix::process::{WaitOptions, getpid, set_child_subreaper, wait};

const USAGE: &str = "storm [--restarts N] [--every MS] [--fresh RATE] [--kept N] [--post N] \
    [--think N] [--late N] [--slow N] [--upload N] [--ping N] [--patience S] -- PROGRAM [ARGUMENT...]";

/// How long after the successor's first answer a request still counts as touched by the restart.
const MOVING: Duration = Duration::from_millis(250);

struct Options {
    restarts: u32,
    every: Duration,
    patience: Duration,
    load: Vec<(String, u32)>,
    command: Vec<String>,
}

fn main() -> ExitCode {
    match options().and_then(|options| storm(&options)) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(failure) => {
            eprintln!("{failure}");
            ExitCode::from(2)
        }
    }
}

fn options() -> Result<Options, Failure> {
    let mut options = Options {
        restarts: 50,
        every: Duration::ZERO,
        patience: Duration::from_secs(60),
        load: Vec::new(),
        command: Vec::new(),
    };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        if word == "--" {
            options.command = words.collect();
            break;
        }
        let number = words.next().and_then(|number| number.parse::<u32>().ok());
        let (Some(name), Some(number)) = (word.strip_prefix("--"), number) else {
            return Err(Failure::new(USAGE));
        };
        match name {
            "restarts" => options.restarts = number,
            "every" => options.every = Duration::from_millis(number.into()),
            "patience" => options.patience = Duration::from_secs(number.into()),
            _ => options.load.push((name.to_owned(), number)),
        }
    }
    ensure!(!options.command.is_empty(), "{USAGE}");
    if options.load.is_empty() {
        options.load = vec![("fresh".into(), 500), ("kept".into(), 8), ("slow".into(), 1)];
    }
    Ok(options)
}

fn load(options: &Options, address: SocketAddr) -> Result<Load, Failure> {
    let mut load = Load::builder(address).for_at_most(Duration::from_secs(24 * 3600));
    let think = Duration::ZERO..Duration::from_millis(5);
    for (kind, number) in &options.load {
        let clients = *number as usize;
        load = match kind.as_str() {
            "fresh" => load.fresh((*number).into()),
            "kept" => load.kept(clients, think.clone()),
            "think" => load.kept(clients, Duration::from_millis(5)..Duration::from_millis(455)),
            "post" => load.kept_post(clients, Duration::ZERO..Duration::ZERO, 16),
            "late" => load.kept_late(clients, Duration::ZERO..Duration::from_millis(500)),
            "slow" => load.slow(clients, Duration::from_millis(800)),
            "upload" => load.upload(clients, 1 << 20, Duration::from_millis(500)),
            "ping" => load.ping(clients, Duration::from_secs(1)),
            other => return Err(Failure::new(format!("no load is called `{other}`\n{USAGE}"))),
        };
    }
    Ok(load)
}

/// Whether nothing was lost and nothing is left.
fn storm(options: &Options) -> Result<bool, Failure> {
    // Generations whose parent has left become our children, so that none is overlooked.
    set_child_subreaper(Some(getpid())).doing("becoming a subreaper")?;
    let address = free_address()?;
    let mut command = Command::new(&options.command[0]);
    command.args(&options.command[1..]).env("ADDR", address.to_string());
    command.stdin(Stdio::null()).process_group(0);
    command.spawn().doing(format_args!("starting {}", options.command[0]))?;
    let result = run(options, address);
    for process in descendants() {
        if let Ok(process) = Process::open(process.pid) {
            let _ = process.signal(Signal::KILL);
            let _ = process.wait_gone(Duration::from_secs(5));
        }
    }
    reap();
    result
}

fn run(options: &Options, address: SocketAddr) -> Result<bool, Failure> {
    let patience = options.patience;
    poll_until(patience, "the program to listen", || TcpStream::connect(address).ok())?;
    // What a generation owns that was started by another, without load: the measure for the last.
    let mut complaints = Vec::new();
    let mut pid = restart_at_rest(address, patience, &mut complaints)?;
    let before = at_rest(pid, patience)?;
    let processes = descendants().len();
    println!("after the first restart: {}", told(&before, processes));

    let load = load(options, address)?.start().doing("starting the load")?;
    load.wait_for_answers(100, patience)?;
    let (mut most, mut longest) = (0, Duration::ZERO);
    let began = Instant::now();
    let mut done = 0;
    for restart in 1..=options.restarts {
        let asked = Instant::now();
        let window = load.mark(format!("restart {restart}"));
        Process::open(pid)?.signal(Signal::HUP)?;
        match load.wait_for_successor(pid, patience) {
            Ok(next) => pid = next,
            Err(_) => {
                println!("restart {restart}: nobody has taken over within {patience:?}");
                break;
            }
        }
        done = restart;
        longest = longest.max(asked.elapsed());
        reap();
        most = most.max(descendants().len());
        let left = options.every.saturating_sub(asked.elapsed());
        std::thread::sleep(left.min(MOVING));
        drop(window);
        std::thread::sleep(left.saturating_sub(MOVING));
    }
    let took = began.elapsed();
    let mut report = load.stop();
    if done < options.restarts {
        complaints.push(format!("{done} restarts of {}", options.restarts));
    }
    let count = |belongings: &Belongings| belongings.descriptors.len();
    let after = at_rest(pid, patience)?;
    println!("after the last under load: {}", told(&after, descendants().len()));
    if count(&after) != count(&before) {
        complaints.push(format!("{} descriptors, {} before", count(&after), count(&before)));
    }
    // The numbers of those depend on how many older generations there were at the time.
    pid = restart_at_rest(address, patience, &mut complaints)?;
    let after = at_rest(pid, patience)?;
    let left = descendants().len();
    println!("after another without load: {}", told(&after, left));
    complaints.extend(before.same_as(&after).err().map(|failure| failure.to_string()));
    if left != processes {
        complaints.push(format!("{left} processes, {processes} before"));
    }
    let zombies: Vec<_> = descendants().into_iter().filter(Listed::is_zombie).collect();
    if !zombies.is_empty() {
        complaints.push(format!("zombies: {zombies:?}"));
    }
    Process::open(pid)?.signal(Signal::TERM)?;
    let stopped = poll_until(patience, "the end after SIGTERM", || {
        reap();
        descendants().is_empty().then_some(())
    });
    complaints.extend(stopped.err().map(|failure| failure.to_string()));

    println!("{done} restarts in {took:.1?}, the longest {longest:.1?}, {most} processes at most");
    // A line for each process and each restart would be all that one sees.
    report.pids.clear();
    report.windows.clear();
    println!("{report}");
    table(&report);
    latencies(&report);
    if report.races() > 0 {
        complaints.push(format!("{} requests met the close of an idle connection", report.races()));
    }
    if report.lost() > 0 {
        complaints.push(format!("{} requests were lost", report.lost()));
    }
    for complaint in &complaints {
        println!("FAILED: {complaint}");
    }
    if complaints.is_empty() {
        println!("nothing was lost, and nothing is left");
    }
    Ok(complaints.is_empty())
}

fn table(report: &Report) {
    let sum = |of: fn(&handover_conformance::client::Group) -> u64| {
        report.groups.iter().map(of).sum::<u64>()
    };
    for (class, count) in [
        ("refused", sum(|group| group.lost.refused)),
        ("reset", sum(|group| group.lost.reset)),
        ("closed without an answer", sum(|group| group.lost.closed)),
        ("truncated", sum(|group| group.lost.truncated)),
        ("wrong", sum(|group| group.lost.wrong)),
        ("hung", sum(|group| group.lost.timed_out)),
        ("not sent", sum(|group| group.lost.unsent)),
        ("idle keep-alive races", sum(|group| group.races)),
    ] {
        println!("  {class:<36} {count:>8}");
    }
}

/// Latencies of the requests that touch a restart, beside all others.
fn latencies(report: &Report) {
    let millis = |time: Duration| time.as_secs_f64() * 1e3;
    println!("\n  {:<23} {:>8} {:>10} {:>10} {:>10}", "", "requests", "p50 ms", "p99 ms", "max ms");
    for group in &report.groups {
        for (place, seen) in [("in a restart", &group.inside), ("outside", &group.outside)] {
            println!(
                "  {:<10} {place:<12} {:>8} {:>8.2} {:>10.2} {:>10.2}",
                group.name,
                seen.count(),
                millis(seen.quantile(0.5)),
                millis(seen.quantile(0.99)),
                millis(seen.max()),
            );
        }
    }
}

fn told(belongings: &Belongings, processes: usize) -> String {
    let numbers: Vec<String> =
        belongings.descriptors.iter().map(|one| one.number.to_string()).collect();
    format!(
        "process {}, {} descriptors ({}), {} threads, {} KiB, {processes} processes",
        belongings.pid,
        belongings.descriptors.len(),
        numbers.join(" "),
        belongings.threads.len(),
        belongings.resident_kib,
    )
}

/// Restarts whoever serves, with hardly any load; the process that serves then.
fn restart_at_rest(
    address: SocketAddr,
    patience: Duration,
    complaints: &mut Vec<String>,
) -> Result<u32, Failure> {
    let load = Load::builder(address).fresh(100.0).start().doing("starting the load")?;
    let report = load.wait_until(patience, |report| report.serving().is_some())?;
    let old = report.serving().ok_or_else(|| Failure::new("nobody says who it is"))?;
    Process::open(old)?.signal(Signal::HUP)?;
    let next = load.wait_for_successor(old, patience)?;
    let report = load.stop();
    if report.lost() > 0 {
        complaints.push(format!("in a restart without load:\n{report}"));
    }
    Ok(next)
}

/// What a process owns when it is the last one and has no connections.
fn at_rest(pid: u32, patience: Duration) -> Result<Belongings, Failure> {
    poll_until(patience, "the older generations to leave", || {
        reap();
        let alive = descendants();
        // A helper of that process is no older generation.
        let lives = |process: &Listed| process.pid == pid || process.parent == pid;
        alive.iter().all(lives).then_some(())
    })?;
    let mut last = Belongings::of(pid)?;
    // Connections that are closing have closed when several looks agree.
    let mut same = 0;
    poll_until(patience, "a process at rest", || {
        let now = Belongings::of(pid).ok()?;
        same = if last.same_as(&now).is_ok() { same + 1 } else { 0 };
        last = now;
        (same == 5).then_some(())
    })?;
    Ok(last)
}

/// All processes below this one.
fn descendants() -> Vec<Listed> {
    let mut found = hygiene::children(std::process::id());
    let mut next = 0;
    while let Some(process) = found.get(next) {
        let below = hygiene::children(process.pid);
        found.extend(below);
        next += 1;
    }
    found
}

/// Waits for every child that is dead.
fn reap() {
    while let Ok(Some(_)) = wait(WaitOptions::NOHANG) {}
}

fn free_address() -> Result<SocketAddr, Failure> {
    let listener = TcpListener::bind("127.0.0.1:0").doing("looking for a port")?;
    listener.local_addr().doing("looking for a port")
}
