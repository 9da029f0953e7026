//! What a scenario has a generation do: wait, fail, break.

use std::collections::BTreeSet;
use std::fmt;
use std::future::pending;
use std::io;
use std::process::{Command, Stdio};
use std::sync::mpsc::{self, Sender};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::task::{Poll, Waker};
use std::thread::JoinHandle;
use std::time::Duration;

use handover_core::Runtime;
use rustix::process::{Resource, Rlimit, Signal, getpid, getrlimit, kill_process, setrlimit};

use super::{raw, signal_named, watch};
use crate::generation::Generation;
use crate::{Failure, hygiene, inherited};

/// One action, by its words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Act {
    verb: String,
    rest: String,
}

/// Where generations wait for the case.
#[derive(Debug, Default)]
pub(crate) struct Waits {
    inner: Mutex<Inner>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Inner {
    gone: BTreeSet<String>,
    wakers: Vec<Waker>,
}

const VERBS: [&str; 35] = [
    "ok",
    "fail",
    "give-up",
    "wait",
    "pause",
    "exit",
    "panic",
    "abort",
    "segv",
    "kill",
    "hang",
    "pend",
    "watch",
    "helper",
    "children",
    "offspring",
    "nofile",
    "memory",
    "pin",
    "nice",
    "block",
    "hello",
    "offer",
    "ready",
    "commit",
    "say",
    "garbage",
    "half",
    "oversized",
    "attach",
    "close",
    "serving",
    "stopping",
    "release",
    "death",
];

impl Act {
    pub(crate) fn parse(line: &str) -> Result<Self, Failure> {
        let (verb, rest) = line.split_once(' ').unwrap_or((line, ""));
        if !VERBS.contains(&verb) {
            return Err(Failure::new(format!("`{verb}` is no action")));
        }
        Ok(Self { verb: verb.to_owned(), rest: rest.to_owned() })
    }

    /// On this thread, which may not come back. A reason to give up, if it is that.
    pub(crate) fn perform(
        &self,
        generation: &Generation,
        waits: &Waits,
    ) -> Result<Option<String>, Failure> {
        match self.verb.as_str() {
            "ok" => {}
            "fail" => return Err(Failure::new(self.rest.clone())),
            "give-up" => return Ok(Some(self.rest.clone())),
            "wait" => {
                generation.tell("waits", &[("place", &self.rest)]);
                waits.wait(&self.rest);
            }
            // A program whose initialisation takes that long.
            "pause" => std::thread::sleep(self.time()?),
            "hang" | "pend" => loop {
                std::thread::park();
            },
            "helper" => helper(generation)?,
            "children" => children(generation)?,
            "offspring" => offspring(generation)?,
            "nofile" => {
                let maximum = getrlimit(Resource::Nofile).maximum;
                setrlimit(Resource::Nofile, Rlimit { current: Some(self.rest.parse()?), maximum })?;
            }
            "memory" => limit_memory(self.rest.parse().ok())?,
            "pin" => {
                let mut one = rustix::thread::CpuSet::new();
                one.set(self.rest.parse()?);
                rustix::thread::sched_setaffinity(None, &one)?;
            }
            // On Linux this is the calling thread only.
            "nice" => rustix::process::setpriority_process(None, self.rest.parse()?)?,
            "block" => {
                let mut set = nix::sys::signal::SigSet::empty();
                set.add(nix::sys::signal::Signal::try_from(signal_named(&self.rest)?.as_raw())?);
                set.thread_block()?;
            }
            "exit" | "panic" | "abort" | "segv" | "kill" => die(&self.verb, &self.rest),
            _ => raw::speak(generation, &self.verb, &self.rest)?,
        }
        Ok(None)
    }

    /// The same inside a runtime: what only waits does so for itself alone.
    pub(crate) async fn perform_in<R: Runtime>(
        &self,
        generation: &Generation,
        waits: &Waits,
        runtime: Option<&R>,
    ) -> Result<(), Failure> {
        match (self.verb.as_str(), runtime) {
            ("wait", _) => {
                generation.tell("waits", &[("place", &self.rest)]);
                waits.waited(&self.rest).await;
            }
            ("pause", Some(runtime)) => runtime.timer(runtime.now() + self.time()?).await,
            ("pend", _) => pending().await,
            ("watch", Some(runtime)) => watch::once(runtime).await?,
            _ => drop(self.perform(generation, waits)?),
        }
        Ok(())
    }

    fn time(&self) -> Result<Duration, Failure> {
        Ok(Duration::from_millis(self.rest.parse()?))
    }
}

impl fmt::Display for Act {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.verb, self.rest)
    }
}

impl Waits {
    /// Whoever waits at that place, now or later, goes on.
    pub(crate) fn go(&self, at: &str) {
        let mut inner = self.lock();
        inner.gone.insert(at.to_owned());
        inner.wakers.drain(..).for_each(Waker::wake);
        self.changed.notify_all();
    }

    fn wait(&self, at: &str) {
        let mut inner = self.lock();
        while !inner.gone.contains(at) {
            inner = self.changed.wait(inner).unwrap_or_else(PoisonError::into_inner);
        }
    }

    pub(crate) async fn waited(&self, at: &str) {
        std::future::poll_fn(|context| {
            let mut inner = self.lock();
            if inner.gone.contains(at) {
                return Poll::Ready(());
            }
            // It is polled with every wake-up of its task, and waits for as long as a server runs.
            if !inner.wakers.iter().any(|waker| waker.will_wake(context.waker())) {
                inner.wakers.push(context.waker().clone());
            }
            Poll::Pending
        })
        .await;
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[expect(clippy::exit, clippy::panic, reason = "it is what a bad version does")]
fn die(how: &str, detail: &str) -> ! {
    // A core file of a death on purpose is of no use to anybody.
    let maximum = getrlimit(Resource::Core).maximum;
    let _ = setrlimit(Resource::Core, Rlimit { current: Some(0), maximum });
    match how {
        "exit" => std::process::exit(detail.parse().unwrap_or(1)),
        "panic" => panic!("{detail}"),
        "abort" => std::process::abort(),
        // The standard library's handler takes the first for an overflow, and itself away.
        "segv" => (0..100).for_each(|_| {
            let _ = kill_process(getpid(), Signal::SEGV);
        }),
        _ => drop(kill_process(getpid(), Signal::KILL)),
    }
    // A signal to itself arrives before the call returns, unless it is blocked.
    std::process::abort()
}

fn helper(generation: &Generation) -> Result<(), Failure> {
    inherited::share_everything()?;
    let mut helper = Command::new("sleep");
    helper.arg("600").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    // Nobody waits for it: it outlives this process, on purpose.
    let helper = helper.spawn()?;
    generation.tell("helper", &[("pid", &helper.id())]);
    Ok(())
}

/// Starts one short-lived process after another, and tells of every descriptor that one of them
/// was born with and should not have.
fn children(generation: &Generation) -> Result<(), Failure> {
    let generation = generation.clone();
    std::thread::Builder::new().name("children".into()).spawn(move || -> Result<(), Failure> {
        for count in 1.. {
            // It ends with its input, and so with this process.
            let mut child = Command::new("cat");
            let child = child.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
            let mut child = child.spawn()?;
            let born_with = hygiene::descriptors(child.id());
            drop(child.stdin.take());
            child.wait()?;
            for descriptor in born_with?.iter().filter(|descriptor| descriptor.number > 2) {
                let target = &descriptor.target;
                generation.tell("leaked", &[("number", &descriptor.number), ("target", target)]);
            }
            if count % 10 == 0 {
                generation.tell("children", &[("count", &count)]);
            }
        }
        Ok(())
    })?;
    Ok(())
}

/// Starts this program once more, as a program that knows nothing of handovers might.
fn offspring(generation: &Generation) -> Result<(), Failure> {
    let program = std::env::current_exe()?;
    let mut child = Command::new(program).stdin(Stdio::null()).spawn()?;
    generation.tell("offspring", &[("pid", &child.id())]);
    std::thread::Builder::new().name("offspring".into()).spawn(move || child.wait())?;
    Ok(())
}

/// Leaves this process so many KiB beyond what it has mapped, and no thread's stack; or as much as
/// it wants.
fn limit_memory(more: Option<u64>) -> Result<(), Failure> {
    /// They have the stacks of threads that have ended, which the C library keeps for the next.
    static KEEPERS: Mutex<Vec<(Sender<()>, JoinHandle<()>)>> = Mutex::new(Vec::new());

    let mut keepers = KEEPERS.lock().unwrap_or_else(PoisonError::into_inner);
    let maximum = getrlimit(Resource::As).maximum;
    let Some(more) = more else {
        setrlimit(Resource::As, Rlimit { current: maximum, maximum })?;
        for (end, keeper) in keepers.drain(..) {
            drop(end);
            keeper.join().map_err(|_| Failure::new("a thread that waits has panicked"))?;
        }
        return Ok(());
    };
    let current = Some((mapped()? + more) * 1024);
    setrlimit(Resource::As, Rlimit { current, maximum })?;
    let keep = || {
        let (end, ended) = mpsc::channel::<()>();
        let keeper = std::thread::Builder::new().spawn(move || _ = ended.recv())?;
        Ok::<_, io::Error>((end, keeper))
    };
    for _ in 0..1_000 {
        match keep() {
            Ok(keeper) => keepers.push(keeper),
            Err(_) => return Ok(()),
        }
    }
    Err(Failure::new("a thousand threads were started beyond a limit of the memory"))
}

/// How much memory this process has mapped, in KiB.
fn mapped() -> Result<u64, Failure> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let mapped = status.lines().find_map(|line| line.strip_prefix("VmSize:"));
    Ok(mapped.unwrap_or_default().trim().trim_end_matches(" kB").parse()?)
}
