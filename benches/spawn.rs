//! What starting a successor costs beside a large heap, and what other threads notice of it.
//!
//! ```sh
//! cargo bench --bench spawn --features tokio      # -- --quick: fewer runs, up to 1 GiB
//! ```
//!
//! Three ways to start this same program, in turn and in one process: the library's, as in any
//! restart; `Command`, which uses `posix_spawn`; and `Command` with `pre_exec`, which has to fork
//! and so copies the page tables. The library's successor takes over and dies at once, so that
//! this process serves again and can do it once more.
//!
//! Meanwhile a thread writes to a page of the heap every millisecond. *Write*: the longest that
//! one such write took. *Tick*: the longest that it came too late, which has the scheduler's noise
//! in it too.
#![allow(clippy::print_stdout, reason = "showing is what it is for")]

#[path = "common/stats.rs"]
mod stats;

use std::error::Error;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use futures::StreamExt;
use handover::core::{Policy, State};
use handover::tokio::{Handle, start_with};
use stats::{max, median, millis, quick};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

const GIB: usize = 1 << 30;
const PAGE: usize = 4096;
/// The role of the programs that `Command` starts.
const NOTHING: &str = "nothing";

fn main() -> Result<ExitCode> {
    if std::env::args().nth(1).as_deref() == Some(NOTHING) {
        return Ok(ExitCode::SUCCESS);
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let start = start_with(Policy::new().without_signals())?;
        let handle = start.handle();
        if start.predecessor().is_some() {
            start.run(die_when_serving(handle)).await?;
        } else {
            let bench = async { bench(&handle).await.map_err(|error| error.to_string()) };
            start.run(bench).await?;
        }
        Ok(ExitCode::SUCCESS)
    })
}

/// The successor: has the other process serve again.
#[allow(clippy::exit, reason = "a death without a word")]
async fn die_when_serving(handle: Handle) {
    until_serving(&handle).await;
    // By then the confirmation is on its way.
    tokio::time::sleep(Duration::from_millis(1)).await;
    std::process::exit(1)
}

async fn until_serving(handle: &Handle) {
    let mut states = std::pin::pin!(handle.states());
    while let Some(state) = states.next().await {
        if state == State::Serving {
            return;
        }
    }
}

/// A way to start a program: how long it took.
#[derive(Clone, Copy)]
enum Way {
    Handover,
    Command,
    PreExec,
}

#[derive(Default)]
struct Figures {
    spawn: Vec<f64>,
    write: Vec<f64>,
    tick: Vec<f64>,
}

async fn bench(handle: &Handle) -> Result<()> {
    let runs = if quick() { 3 } else { 15 };
    let heaps: &[usize] = if quick() { &[0, 1] } else { &[0, 1, 4] };
    let huge = std::fs::read_to_string("/sys/kernel/mm/transparent_hugepage/enabled");
    println!(
        "{runs} runs each, in turn; transparent huge pages: {}",
        huge.unwrap_or_default().trim()
    );
    println!();
    println!(
        "                                     spawn, ms              write, ms         tick, ms"
    );
    println!(
        "heap    way                    median     max   x heap 0   median     max   median     max"
    );
    let ways = [Way::Handover, Way::Command, Way::PreExec];
    let mut at_no_heap = [0.0; 3];
    for &gib in heaps {
        let available = available()?;
        if available < gib * GIB / 4 * 5 {
            println!("{gib} GiB   skipped: only {} MiB are available", available >> 20);
            continue;
        }
        let ticker = Ticker::start((gib * GIB).max(PAGE))?;
        let mut figures: [Figures; 3] = Default::default();
        for _ in 0..runs {
            for (way, figures) in ways.into_iter().zip(&mut figures) {
                ticker.quiet();
                figures.spawn.push(millis(way.start(handle).await?));
                let (write, tick) = ticker.worst();
                figures.write.push(millis(write));
                figures.tick.push(millis(tick));
            }
        }
        ticker.stop();
        for ((way, figures), base) in ways.into_iter().zip(&figures).zip(&mut at_no_heap) {
            let spawn = median(&figures.spawn);
            if gib == 0 {
                *base = spawn;
            }
            println!(
                "{gib} GiB   {:<20} {spawn:>8.3} {:>7.2} {:>10.1} {:>8.3} {:>7.2} {:>8.3} {:>7.2}",
                way.name(),
                max(&figures.spawn),
                spawn / *base,
                median(&figures.write),
                max(&figures.write),
                median(&figures.tick),
                max(&figures.tick),
            );
        }
    }
    Ok(())
}

impl Way {
    fn name(self) -> &'static str {
        match self {
            Self::Handover => "handover",
            Self::Command => "Command",
            Self::PreExec => "Command + pre_exec",
        }
    }

    async fn start(self, handle: &Handle) -> Result<Duration> {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg(NOTHING).stdin(Stdio::null());
        match self {
            Self::Handover => {
                let takeover = handle.restart().await?;
                // Its death is noticed, and this process serves again.
                while handle.state() == Some(State::Serving) {
                    tokio::task::yield_now().await;
                }
                until_serving(handle).await;
                return Ok(takeover.steps.spawn);
            }
            Self::Command => {}
            Self::PreExec => {
                #[allow(unsafe_code, reason = "what others do is what is measured")]
                // SAFETY: between fork and exec it does nothing.
                unsafe {
                    command.pre_exec(|| Ok(()));
                }
            }
        }
        let begin = Instant::now();
        let mut child = command.spawn()?;
        let took = begin.elapsed();
        child.wait()?;
        Ok(took)
    }
}

/// The thread beside, which owns the heap.
struct Ticker {
    shared: Arc<Ticks>,
    thread: JoinHandle<()>,
}

#[derive(Default)]
struct Ticks {
    end: AtomicBool,
    ticks: AtomicU64,
    write: AtomicU64,
    tick: AtomicU64,
}

impl Ticker {
    fn start(heap: usize) -> Result<Self> {
        let shared = Arc::new(Ticks::default());
        let ticks = Arc::clone(&shared);
        let thread = std::thread::Builder::new().name("ticker".into()).spawn(move || {
            let mut heap = vec![0u8; heap];
            heap.iter_mut().step_by(PAGE).for_each(|byte| *byte = 1);
            // Afterwards, so that `start` returns when the heap is touched.
            ticks.run(&mut heap);
        })?;
        while shared.ticks.load(Ordering::Acquire) == 0 {
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(Self { shared, thread })
    }

    /// Waits for a few ticks, and forgets what was.
    fn quiet(&self) {
        self.wait_for_ticks(5);
        self.shared.write.store(0, Ordering::Relaxed);
        self.shared.tick.store(0, Ordering::Relaxed);
    }

    /// The longest since then of a write and of a delay.
    fn worst(&self) -> (Duration, Duration) {
        // The one that is under way belongs to it.
        self.wait_for_ticks(2);
        let nanos = |value: &AtomicU64| Duration::from_nanos(value.load(Ordering::Relaxed));
        (nanos(&self.shared.write), nanos(&self.shared.tick))
    }

    fn wait_for_ticks(&self, more: u64) {
        let end = self.shared.ticks.load(Ordering::Acquire) + more;
        while self.shared.ticks.load(Ordering::Acquire) < end {
            std::thread::sleep(Duration::from_micros(200));
        }
    }

    fn stop(self) {
        self.shared.end.store(true, Ordering::Relaxed);
        let _ = self.thread.join();
    }
}

impl Ticks {
    fn run(&self, heap: &mut [u8]) {
        let tick = Duration::from_millis(1);
        let mut place = 0;
        let mut due = Instant::now() + tick;
        while !self.end.load(Ordering::Relaxed) {
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
            let late = due.elapsed();
            // Another page table each time.
            place = (place + 1237 * PAGE) % heap.len();
            let begin = Instant::now();
            if let Some(byte) = heap.get_mut(place) {
                *byte = std::hint::black_box(byte.wrapping_add(1));
            }
            let write = begin.elapsed();
            self.write.fetch_max(write.as_nanos() as u64, Ordering::Relaxed);
            self.tick.fetch_max(late.as_nanos() as u64, Ordering::Relaxed);
            self.ticks.fetch_add(1, Ordering::Release);
            due = Instant::now().max(due) + tick;
        }
    }
}

/// Memory that can be used without swapping.
fn available() -> Result<usize> {
    let meminfo = std::fs::read_to_string("/proc/meminfo")?;
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    let kib = line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<usize>().ok());
    Ok(kib.ok_or("no MemAvailable")? * 1024)
}
