//! What the library costs a server while nothing is restarted.
//!
//! ```sh
//! cargo bench --bench steady --features tokio,http      # -- --quick: a look, in seconds
//! ```
//!
//! First the same axum server with and without it, each in a process of its own, under the same
//! load by turns: answers a second, and processor time of the server for each (which shows what a
//! client that is the bottleneck hides). Then single parts in this process: a guard; an accept; and
//! what a thousand accepts allocate, spawn and start.
#![allow(clippy::print_stdout, reason = "showing is what it is for")]

#[path = "common/server.rs"]
mod server;
#[path = "common/stats.rs"]
mod stats;

use std::alloc::{GlobalAlloc, Layout, System};
use std::future::Future;
use std::hint::black_box;
use std::io;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Barrier;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use handover::core::Policy;
use handover::tokio::{Handle, http, start_with};
use server::{Result, Server, app, first_answer, free_address};
use stats::{max, median, quick};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

#[global_allocator]
static COUNTING: Counting = Counting;
static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

/// The system's allocator, counted.
struct Counting;

#[allow(unsafe_code, reason = "there is no other way to count allocations")]
// SAFETY: it is the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's promises are the same.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's promises are the same.
        unsafe { System.dealloc(pointer, layout) }
    }
}

/// How many clients are at it.
const CLIENTS: usize = 16;

fn main() -> Result<ExitCode> {
    let arguments: Vec<String> = std::env::args().collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [_, "with", address, ..] => many_threads()?.block_on(serve_with(address))?,
        [_, "without", address, ..] => many_threads()?.block_on(serve_without(address))?,
        _ => {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(bench())?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn many_threads() -> io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build()
}

/// examples/axum.rs, in short.
async fn serve_with(address: &str) -> Result<()> {
    let start = handover::tokio::start()?;
    let listener = start.listen_tcp("web", address)?;
    start.run(http::serve(listener, app())).await?;
    Ok(())
}

/// The same without the library.
async fn serve_without(address: &str) -> Result<()> {
    let listener = tokio::net::TcpListener::bind(address).await?;
    let forever = std::future::pending::<()>();
    axum::serve(listener, app()).with_graceful_shutdown(forever).await?;
    Ok(())
}

async fn bench() -> Result<()> {
    throughput().await?;
    let start = start_with(Policy::new().without_signals())?;
    let listener = start.listen_tcp("bench", "127.0.0.1:0")?;
    let handle = start.handle();
    let parts = async {
        let parts = async {
            guards(&handle)?;
            accepts(&listener).await
        };
        parts.await.map_err(|error: Box<dyn std::error::Error>| error.to_string())
    };
    start.run(parts).await?;
    Ok(())
}

// With and without, under load.

struct Turn {
    /// Answers a second.
    rate: f64,
    /// Microseconds of the server's processor time for each.
    processor: f64,
}

async fn throughput() -> Result<()> {
    let (pairs, length) = if quick() { (2, 0.3) } else { (8, 3.0) };
    let length = Duration::from_secs_f64(length);
    let addresses = [free_address()?, free_address()?];
    let with = Server::start("with", addresses[0])?;
    let without = Server::start("without", addresses[1])?;
    for address in addresses {
        tokio::task::spawn_blocking(move || {
            first_answer(address, 0).map_err(|error| error.to_string())
        })
        .await??;
    }
    let pids = [with.child.id(), without.child.id()];
    println!(
        "axum with handover beside the same without: {pairs} pairs of {length:?}, {CLIENTS} clients\n"
    );
    println!(
        "                        answers/s             ratio                 us processor/answer   ratio"
    );
    println!(
        "load               with  without    median  (least .. most)        with  without   median  (least .. most)"
    );
    for (name, kept) in [("keep-alive", true), ("new connections", false)] {
        // Warm caches, and both servers' worker threads started.
        for address in addresses {
            load(address, kept, length / 4).await?;
        }
        let mut turns: [Vec<Turn>; 2] = Default::default();
        for pair in 0..pairs {
            for turn in [pair % 2, 1 - pair % 2] {
                turns[turn].push(measure(addresses[turn], pids[turn], kept, length).await?);
            }
        }
        show_pairs(name, &turns);
    }
    println!();
    Ok(())
}

fn show_pairs(name: &str, turns: &[Vec<Turn>; 2]) {
    let of = |what: fn(&Turn) -> f64| {
        let [with, without] =
            turns.each_ref().map(|turns| turns.iter().map(what).collect::<Vec<_>>());
        let mut ratios: Vec<f64> =
            with.iter().zip(&without).map(|(one, other)| one / other).collect();
        ratios.sort_by(f64::total_cmp);
        let spread =
            (ratios.first().copied().unwrap_or(0.0), ratios.last().copied().unwrap_or(0.0));
        (median(&with), median(&without), median(&ratios), spread)
    };
    let (with, without, ratio, (least, most)) = of(|turn| turn.rate);
    print!("{name:<16} {with:>6.0} {without:>8.0} {ratio:>9.3}  ({least:.3} .. {most:.3})");
    let (with, without, ratio, (least, most)) = of(|turn| turn.processor);
    println!("  {with:>10.2} {without:>8.2} {ratio:>8.3}  ({least:.3} .. {most:.3})");
}

async fn measure(address: SocketAddr, pid: u32, kept: bool, length: Duration) -> Result<Turn> {
    let before = processor_time(pid)?;
    let (answers, took) = load(address, kept, length).await?;
    let processor = processor_time(pid)? - before;
    Ok(Turn {
        rate: answers as f64 / took.as_secs_f64(),
        processor: processor.as_secs_f64() * 1e6 / answers as f64,
    })
}

/// Has the clients ask one thing after another, and counts the answers.
async fn load(address: SocketAddr, kept: bool, length: Duration) -> Result<(u64, Duration)> {
    let begin = Instant::now();
    let mut clients = Vec::with_capacity(CLIENTS);
    for number in 0..CLIENTS {
        clients.push(tokio::spawn(client(address, number, kept, begin + length)));
    }
    let mut answers = 0;
    for client in clients {
        answers += client.await??;
    }
    Ok((answers, begin.elapsed()))
}

async fn client(address: SocketAddr, number: usize, kept: bool, end: Instant) -> io::Result<u64> {
    let request: &[u8] = if kept {
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
    } else {
        b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    };
    let mut answers = 0;
    let mut buffer = Vec::with_capacity(1024);
    let mut connection = connect(address, number).await?;
    while Instant::now() < end {
        if !kept && answers > 0 {
            // From other addresses: the ports of one would be used up.
            connection = connect(address, number + answers as usize).await?;
        }
        connection.write_all(request).await?;
        buffer.clear();
        while !is_complete(&buffer) {
            if connection.read_buf(&mut buffer).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        answers += 1;
    }
    Ok(answers)
}

async fn connect(address: SocketAddr, number: usize) -> io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.bind(([127, 0, 0, (2 + number % 250) as u8], 0).into())?;
    let connection = socket.connect(address).await?;
    connection.set_nodelay(true)?;
    Ok(connection)
}

/// A head, and behind it a line.
fn is_complete(answer: &[u8]) -> bool {
    let head = answer.windows(4).position(|bytes| bytes == b"\r\n\r\n");
    head.is_some_and(|head| head + 4 < answer.len()) && answer.ends_with(b"\n")
}

/// What all threads of a process have had, to the nanosecond.
fn processor_time(pid: u32) -> Result<Duration> {
    let mut nanos = 0;
    for thread in std::fs::read_dir(format!("/proc/{pid}/task"))? {
        let stat = std::fs::read_to_string(thread?.path().join("schedstat"))?;
        nanos += stat.split(' ').next().ok_or("an empty schedstat")?.parse::<u64>()?;
    }
    Ok(Duration::from_nanos(nanos))
}

// The parts.

fn guards(handle: &Handle) -> Result<()> {
    let rounds: u64 = if quick() { 1_000_000 } else { 5_000_000 };
    let threads = std::thread::available_parallelism()?.get();
    let arc = std::sync::Arc::new(0u64);
    println!("ns, median of 7                alone  on all {threads} cores at once");
    for (name, what) in [
        ("a guard, taken and dropped", &(|| drop(black_box(handle.guard()))) as &(dyn Fn() + Sync)),
        ("an Arc, cloned and dropped", &|| drop(black_box(std::sync::Arc::clone(&arc)))),
    ] {
        let [alone, all] = [1, threads].map(|threads| {
            let times: Vec<f64> = (0..7).map(|_| nanos_each(threads, rounds, what)).collect();
            median(&times)
        });
        println!("{name:<28} {alone:>7.1} {all:>7.1}");
    }
    println!();
    Ok(())
}

/// How long one takes on a thread, while all do it.
fn nanos_each(threads: usize, rounds: u64, what: &(dyn Fn() + Sync)) -> f64 {
    let barrier = Barrier::new(threads);
    let run = || {
        barrier.wait();
        let begin = Instant::now();
        for _ in 0..rounds {
            what();
        }
        begin.elapsed().as_nanos() as f64 / rounds as f64
    };
    let times: Vec<f64> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..threads).map(|_| scope.spawn(run)).collect();
        threads.into_iter().filter_map(|thread| thread.join().ok()).collect()
    });
    max(&times)
}

async fn accepts(ours: &handover::tokio::TcpListener) -> Result<()> {
    const QUEUED: usize = 400;
    let rounds = if quick() { 3 } else { 31 };
    let theirs = TcpSocket::new_v4()?;
    theirs.bind(([127, 0, 0, 1], 0).into())?;
    let theirs = theirs.listen(4096)?;
    let addresses = [ours.local_addr()?, theirs.local_addr()?];
    let mut nanos: [Vec<f64>; 2] = Default::default();
    let mut allocations = [0; 2];
    let mut beside = [(0, 0); 2];
    // One more, which is not counted: the first accept registers the listener.
    for round in 0..=rounds {
        for which in [round % 2, 1 - round % 2] {
            let address = addresses[which];
            let accepted = if which == 0 {
                let accept = async || ours.accept().await.map(|(connection, _)| connection);
                queue_and_accept(QUEUED, address, accept).await?
            } else {
                let accept = async || theirs.accept().await.map(|(connection, _)| connection);
                queue_and_accept(QUEUED, address, accept).await?
            };
            if round > 0 {
                nanos[which].push(accepted.took.as_nanos() as f64 / QUEUED as f64);
                allocations[which] += accepted.allocations;
            }
            beside[which] = (accepted.tasks, accepted.threads);
        }
    }
    println!("{QUEUED} connections that wait are accepted, {rounds} times\n");
    println!(
        "                        ns/accept, median   allocations/accept   tasks  threads meanwhile"
    );
    let accepts = (rounds * QUEUED) as f64;
    for (which, name) in ["handover's listener", "tokio's listener"].into_iter().enumerate() {
        let (nanos, allocations) = (median(&nanos[which]), allocations[which] as f64 / accepts);
        let (tasks, threads) = beside[which];
        println!("{name:<22} {nanos:>18.0} {allocations:>20.3} {tasks:>7} {threads:>8}");
    }
    Ok(())
}

struct Accepted {
    took: Duration,
    allocations: u64,
    tasks: usize,
    threads: usize,
}

async fn queue_and_accept<T, F: Future<Output = io::Result<T>>>(
    count: usize,
    address: SocketAddr,
    accept: impl Fn() -> F,
) -> Result<Accepted> {
    let clients: io::Result<Vec<_>> =
        (0..count).map(|_| std::net::TcpStream::connect(address)).collect();
    let clients = clients?;
    let mut connections = Vec::with_capacity(count);
    // Lets the poller see that connections wait.
    tokio::time::sleep(Duration::from_millis(1)).await;
    let allocated = ALLOCATIONS.load(Ordering::Relaxed);
    let begin = Instant::now();
    for _ in 0..count {
        connections.push(accept().await?);
    }
    let took = begin.elapsed();
    let allocations = ALLOCATIONS.load(Ordering::Relaxed) - allocated;
    let tasks = tokio::runtime::Handle::current().metrics().num_alive_tasks();
    let threads = std::fs::read_dir("/proc/self/task")?.count();
    drop(connections);
    drop(clients);
    Ok(Accepted { took, allocations, tasks, threads })
}
