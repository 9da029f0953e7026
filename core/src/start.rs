use std::future::{Future, poll_fn};
use std::ops::Deref;
use std::pin::pin;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, OnceLock};
use std::task::Poll;

use futures::channel::mpsc;

use crate::drain::Drain;
use crate::driver::{Driver, Observer, Parts};
use crate::error::{Error, ErrorKind, Result};
use crate::handle::{Handle, Shared};
use crate::hooks::{Event, HookResult, Hooks, When};
use crate::inherit::{self, Generation, Legacy};
use crate::join::Seat;
use crate::outcome::{Exit, RestartError, ServerOutput, Takeover};
use crate::ownership::Ownership;
use crate::policy::Policy;
use crate::registry::Registry;
use crate::runtime::{Runtime, Signal};
use crate::spawn::{Executable, Launch};
use crate::state::{HandedOver, Providers};
use crate::terminal::Terminal;
use crate::watch::StateWatch;

/// A process before its first accept. Take or bind the listeners, set up what needs setting up,
/// then [`run`](Start::run).
///
/// It dereferences to [`Handle`], which makes the sockets. While a `Start` exists, signals wait,
/// and the predecessor, if there is one, serves as before. Dropping it instead of running it tells
/// the predecessor that this process gave up.
#[must_use = "nothing is served before `run`"]
pub struct Start<R: Runtime> {
    handle: Handle<R>,
    /// `None` once `run` has taken it.
    parts: Option<Parts<R>>,
}

impl<R: Runtime> Start<R> {
    /// Begins: takes what a predecessor or the service manager left, and catches the policy's
    /// signals.
    ///
    /// In a successor this blocks until the predecessor's offer is read, which it sends as soon as
    /// its driver is polled, and at most as long as [`Policy::spawn`]. Call it before the program
    /// does anything that takes long, and inside the runtime's context.
    ///
    /// # Errors
    /// A policy that contradicts itself, an offer that is broken or does not come, signals that
    /// cannot be caught. The predecessor then goes on serving.
    pub fn new(runtime: R, policy: Policy) -> Result<Self> {
        policy.check()?;
        let launch = Launch::capture(match &policy.executable {
            None => Executable::of_this_process(),
            Some((path, None)) => Executable::new(path.clone(), std::env::args_os().skip(1)),
            Some((path, Some(arguments))) => Executable::named(path.clone(), arguments.clone()),
        });
        let mut legacy = inherit::take(&policy.instance, policy.timing.hello)?;
        let mut upstream = legacy.upstream.take();
        let start = Self::with(runtime, policy, launch, legacy);
        match start {
            Ok(mut start) => {
                if let Some(parts) = &mut start.parts {
                    parts.upstream = upstream;
                }
                Ok(start)
            }
            Err(error) => {
                if let Some(upstream) = &mut upstream {
                    upstream.give_up(error.to_string());
                }
                Err(error)
            }
        }
    }

    fn with(runtime: R, mut policy: Policy, launch: Launch, legacy: Legacy) -> Result<Self> {
        policy.timing.commit = legacy.patience.unwrap_or(policy.timing.commit);
        let failed = |what: &str, error| Error::with_source(ErrorKind::Os, what, error);
        let ownership = match legacy.ownership {
            Some(ownership) => ownership,
            None => Ownership::create().map_err(|error| failed("create the ownership", error))?,
        };
        let own = Generation::own(legacy.generation)
            .map_err(|error| failed("watch this process itself", error))?;
        let signals: Vec<_> = policy.signals.iter().map(|(signal, _)| *signal).collect();
        let signals = catch(&runtime, &signals)?;
        let drain = Drain::new();
        let shared = Arc::new(Shared {
            registry: Arc::new(Registry::new(legacy.sockets, drain.clone())),
            drain,
            state: StateWatch::new(),
            generation: legacy.generation,
            ready: AtomicBool::new(false),
            inherited: legacy.state,
            at_commit: OnceLock::new(),
        });
        let (sender, requests) = mpsc::unbounded();
        let handle =
            Handle { shared: Arc::clone(&shared), requests: sender, runtime: Default::default() };
        let parts = Parts {
            runtime,
            policy,
            hooks: Hooks::default(),
            providers: Providers::default(),
            signals,
            requests,
            shared,
            upstream: None,
            ownership,
            own,
            terminal: Terminal::capture(legacy.older.iter().map(|older| older.pid)),
            older: legacy.older,
            launch,
            observer: None,
        };
        Ok(Self { handle, parts: Some(parts) })
    }

    /// A handle that outlives this value.
    pub fn handle(&self) -> Handle<R> {
        self.handle.clone()
    }

    /// The runtime, for code that is generic over runtimes.
    pub fn runtime(&self) -> Option<&R> {
        self.parts.as_ref().map(|parts| &parts.runtime)
    }

    /// The drain signal for this instance's connections.
    pub fn drain(&self) -> Drain {
        self.handle.drain()
    }

    /// The process that serves at this moment and will be replaced, or `None` for the first
    /// generation.
    pub fn predecessor(&self) -> Option<u32> {
        self.parts.as_ref()?.upstream.as_ref().map(|upstream| upstream.pid)
    }

    /// Runs a hook before an event. Hooks of one event run in the order in which they were added;
    /// what an error means is said at each [`Event`]. Together they have [`Policy::hooks`] time.
    pub fn before<F, Fut>(&mut self, event: Event, hook: F)
    where
        F: FnMut() -> Fut + Send + 'static,
        Fut: Future<Output = HookResult> + Send + 'static,
    {
        self.hook(When::Before, event, hook);
    }

    /// Runs a hook after an event. Nothing waits for it, but the end of the process does for a
    /// while; its error is logged.
    pub fn after<F, Fut>(&mut self, event: Event, hook: F)
    where
        F: FnMut() -> Fut + Send + 'static,
        Fut: Future<Output = HookResult> + Send + 'static,
    {
        self.hook(When::After, event, hook);
    }

    fn hook<F, Fut>(&mut self, when: When, event: Event, hook: F)
    where
        F: FnMut() -> Fut + Send + 'static,
        Fut: Future<Output = HookResult> + Send + 'static,
    {
        if let Some(parts) = &mut self.parts {
            parts.hooks.add(when, event, hook);
        }
    }

    /// Tells of the outcome of every restart, also of one that a signal asked for.
    pub fn on_restart(
        &mut self,
        observer: impl FnMut(&std::result::Result<Takeover, RestartError>) + Send + 'static,
    ) {
        if let Some(parts) = &mut self.parts {
            let observer: Observer = Box::new(observer);
            parts.observer = Some(observer);
        }
    }

    /// Hands state of this type to every successor. `provide` is called on a thread of its own:
    /// once when the successor is started, and once more when it is ready, before the switch.
    pub fn hand_over<T: HandedOver>(&mut self, provide: impl FnMut() -> T + Send + 'static) {
        if let Some(parts) = &mut self.parts {
            parts.providers.add(provide);
        }
    }

    /// Ends this process's attempt to take over, with a reason that the predecessor's outcome will
    /// carry. For a first generation it does nothing.
    pub fn give_up(mut self, reason: impl Into<String>) {
        self.tell(reason.into());
    }

    /// Serves: says ready, waits for the predecessor's commit, opens the gates, and polls `server`
    /// until this process has been replaced or stopped and everything in flight is done or was
    /// cut. `server` is then dropped.
    ///
    /// The server's listeners wait while this process drains, so that a rollback can resume them;
    /// a loop around `accept` needs no end of its own. A server that ends by itself stops this
    /// process; its error becomes the error of `run`.
    ///
    /// # Errors
    /// This process must not serve (its predecessor goes on), the server failed, or a hook before
    /// the first accept did.
    ///
    /// # Cancel safety
    /// Dropping the future closes the listeners at once: their queues are lost, unless a successor
    /// has them. A successor that was being started is killed.
    pub async fn run<S>(mut self, server: S) -> Result<Exit>
    where
        S: Future,
        S::Output: ServerOutput,
    {
        let Some(mut parts) = self.parts.take() else {
            return Err(Error::new(ErrorKind::Runtime, "run: it has been run already"));
        };
        let caught: Vec<Signal> = parts.policy.signals.iter().map(|(signal, _)| *signal).collect();
        let hooked: Vec<Signal> =
            parts.hooks.signals().filter(|signal| !caught.contains(signal)).collect();
        parts.signals.extend(catch(&parts.runtime, &hooked)?);
        let mut driver = Driver::new(parts)?;
        let mut server = pin!(Some(server));
        let (seat, driver_seat) = (Seat::new(), Seat::new());
        poll_fn(move |context| {
            // The server first: its accept then waits at the gate when it opens.
            if let Some(running) = server.as_mut().as_pin_mut()
                && let Poll::Ready(output) = seat.poll(context, |context| running.poll(context))
            {
                server.set(None);
                driver.server_ended(output.into_error().map(|error| {
                    Error::with_source(ErrorKind::Server, "the server failed", error)
                }));
                driver_seat.wake();
            }
            driver_seat.poll(context, |context| driver.poll(context))
        })
        .await
    }

    fn tell(&mut self, reason: String) {
        if let Some(mut parts) = self.parts.take() {
            parts.shared.registry.end();
            if let Some(upstream) = &mut parts.upstream {
                upstream.give_up(reason);
            }
        }
    }
}

impl<R: Runtime> Deref for Start<R> {
    type Target = Handle<R>;

    fn deref(&self) -> &Handle<R> {
        &self.handle
    }
}

impl<R: Runtime> Drop for Start<R> {
    fn drop(&mut self) {
        let refused = self.handle.shared.registry.last_refusal();
        self.tell(refused.unwrap_or_else(|| "it ended before it was ready".into()));
    }
}

fn catch<R: Runtime>(runtime: &R, signals: &[Signal]) -> Result<Vec<R::Signals>> {
    if signals.is_empty() {
        return Ok(Vec::new());
    }
    let caught = runtime.signals(signals);
    Ok(vec![caught.map_err(|error| {
        Error::with_source(ErrorKind::Runtime, format!("catch {signals:?}"), error)
    })?])
}
