//! From SIGHUP to the first answer of the new generation, beside a cold start of the same program.
//!
//! ```sh
//! cargo bench --bench takeover --features tokio,http      # -- --quick: 5 instead of 30
//! ```
//!
//! A client asks on new connections all the time, in both cases, and any failed request ends the
//! bench. The table of steps says where the time goes; *without us* is what the same program
//! needs in any case from its spawn to the point at which it would call `start`, measured by
//! starting it without the library. What is left of all steps without that is the library's own
//! share. (The steps *ready* and *hello* have the program's own work in them, here an axum router.)
//! The *switch* is a message and its answer, so it stands beside a byte that crosses a pipe to a
//! process that sleeps, and another one back.
#![allow(clippy::print_stdout, reason = "showing is what it is for")]

#[path = "common/server.rs"]
mod server;
#[path = "common/stats.rs"]
mod stats;

use std::io::{Read, Write};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use handover::core::Policy;
use handover::tokio::http;
use handover_conformance::signal::{Process, Signal};
use server::{Result, Server, app, first_answer, free_address};
use stats::{max, median, millis, quick};

/// In the order of the lines that the server prints.
const STEPS: [&str; 6] = ["prepare", "spawn", "hello", "ready", "seal", "switch"];

fn main() -> Result<ExitCode> {
    let arguments: Vec<String> = std::env::args().collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [_, "serve", address, ..] => runtime()?.block_on(serve(address))?,
        [_, "nothing", ..] => {
            // As far as a server is when it calls `start`.
            let _runtime = runtime()?;
            println!("here");
        }
        [_, "echo", ..] => echo()?,
        _ => bench()?,
    }
    Ok(ExitCode::SUCCESS)
}

fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build()
}

async fn serve(address: &str) -> Result<()> {
    // A short probation: the next restart does not have to wait for this process's end.
    let policy = Policy::new().probation(Duration::from_millis(100));
    let mut start = handover::tokio::start_with(policy)?;
    start.on_restart(|outcome| match outcome {
        Ok(takeover) => {
            let steps = takeover.steps;
            let steps =
                [steps.prepare, steps.spawn, steps.hello, steps.ready, steps.seal, steps.switch];
            let steps: Vec<String> = steps.map(|step| step.as_nanos().to_string()).into();
            println!("{}", steps.join(" "));
        }
        Err(error) => println!("failed: {error}"),
    });
    let listener = start.listen_tcp("web", address)?;
    start.run(http::serve(listener, app())).await?;
    Ok(())
}

fn echo() -> std::io::Result<()> {
    let mut byte = [0];
    while std::io::stdin().read(&mut byte)? > 0 {
        std::io::stdout().write_all(&byte)?;
        std::io::stdout().flush()?;
    }
    Ok(())
}

/// There and back between two processes, each asleep until it hears.
fn round_trips(runs: usize) -> Result<Vec<f64>> {
    let mut other = Command::new(std::env::current_exe()?)
        .arg("echo")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let (mut there, mut back) =
        (other.stdin.take().ok_or("no pipe")?, other.stdout.take().ok_or("no pipe")?);
    let mut took = Vec::new();
    for _ in 0..runs {
        std::thread::sleep(Duration::from_millis(5));
        let begin = Instant::now();
        there.write_all(b".")?;
        back.read_exact(&mut [0])?;
        took.push(millis(begin.elapsed()));
    }
    drop(there);
    other.wait()?;
    Ok(took)
}

fn bench() -> Result<()> {
    let runs = if quick() { 5 } else { 30 };
    let address = free_address()?;
    let mut served = Server::start("serve", address)?;
    // What the pipe's lines come from changes, the pipe does not.
    let (first, _) = first_answer(address, 0)?;
    let mut generation = Generation { pid: first };

    let (mut takeover, mut cold, mut nothing) = (Vec::new(), Vec::new(), Vec::new());
    let mut steps: [Vec<f64>; 6] = Default::default();
    let mut total = Vec::new();
    for _ in 0..runs {
        let begin = Instant::now();
        let mut other = Server::start("nothing", address)?;
        other.line()?;
        nothing.push(millis(begin.elapsed()));
        drop(other);

        let another = free_address()?;
        let begin = Instant::now();
        let other = Server::start("serve", another)?;
        let (_, answered) = first_answer(another, 0)?;
        cold.push(millis(answered - begin));
        drop(other);

        let old = Process::open(generation.pid).map_err(|failure| failure.to_string())?;
        let begin = Instant::now();
        old.signal(Signal::HUP).map_err(|failure| failure.to_string())?;
        let (new, answered) = first_answer(address, generation.pid)?;
        takeover.push(millis(answered - begin));
        generation.pid = new;
        let line = served.line()?;
        let nanos: Option<Vec<f64>> = line.split(' ').map(|word| word.parse().ok()).collect();
        let nanos = nanos.filter(|nanos| nanos.len() == steps.len()).ok_or(line)?;
        total.push(nanos.iter().sum::<f64>() / 1e6);
        steps.iter_mut().zip(nanos).for_each(|(step, nanos)| step.push(nanos / 1e6));
        old.wait_gone(Duration::from_secs(20)).map_err(|failure| failure.to_string())?;
    }

    println!("{runs} runs each, in turn; ms\n");
    println!("                                   median      max");
    let show = |what: &str, values: &[f64]| {
        println!("{what:<32} {:>8.3} {:>8.3}", median(values), max(values));
    };
    show("signal to first answer", &takeover);
    show("cold start to first answer", &cold);
    println!(
        "ratio                            {:>8.2} {:>8.2}\n",
        median(&takeover) / median(&cold),
        max(&takeover) / max(&cold),
    );
    for (name, values) in STEPS.iter().zip(&steps) {
        show(&format!("  {name}"), values);
    }
    show("all steps", &total);
    let bare = round_trips(runs)?;
    show("a byte there and back", &bare);
    println!("the switch is that times        {:>8.2}", median(&steps[5]) / median(&bare));
    show("spawn to `start`, without us", &nothing);
    let share = median(&total) - median(&nothing);
    println!("the library's own share          {share:>8.3}");
    let rest: Vec<f64> = takeover.iter().zip(&total).map(|(all, steps)| all - steps).collect();
    show("signal, first connection, answer", &rest);
    std::io::stdout().flush()?;
    Ok(())
}

/// The process that serves, which is no child of the bench's. Dropping it ends it.
struct Generation {
    pid: u32,
}

impl Drop for Generation {
    fn drop(&mut self) {
        if let Ok(process) = Process::open(self.pid) {
            let _ = process.signal(Signal::KILL);
        }
    }
}
