//! The server that every adapter's suite runs: one program, for any runtime.
//!
//! An adapter's author writes what any user of the adapter writes, and nothing else:
//!
//! ```ignore
//! fn main() -> std::process::ExitCode {
//!     handover_conformance::suite("tokio").main(|subject| {
//!         tokio::runtime::Runtime::new()?.block_on(async {
//!             let start = handover_tokio::start_with(subject.policy())?;
//!             subject.run(start).await
//!         })
//!     })
//! }
//! ```
//!
//! It spawns no task and starts no thread of its own (but one for each connection, where connections
//! block): connections are driven inside the future
//! that is given to [`Start::run`](handover_core::Start::run), so that all that waits, waits
//! through the adapter.
//!
//! # The scenario
//!
//! Each generation reads it anew. A list has one entry a line; times are in milliseconds.
//!
//! | key | what |
//! | --- | --- |
//! | `listen` | list of `NAME KIND ADDRESS`; `KIND` is `tcp`, `tcp*8` (a group), `tls` (with the feature of that name; the keys of its session tickets are application state), `unix`, `seqpacket`, `udp`, `unix-datagram`, `file`, `pipe` (claims `NAME.r` and `NAME.w`). A relative path is in the case's folder, `@name` is abstract |
//! | `policy.*` | `ready`, `spawn`, `hooks`, `abort`, `confirm`, `probation`, `linger`, `drain`, `stop_linger`, `stop_drain`, `generations`, `state_limit`, `instance`, `executable`, `unfollowed` |
//! | `signals` | `off`, or a list of `NAME VERB` (`restart`, `stop`, `quit`, `hooks`, `none`) |
//! | `hooks` | list of `before\|after EVENT ACTION`; `EVENT` as in `accept`, `roll-back`, `signal:USR1` |
//! | `state` | bytes of application state to hand over |
//! | `state.provider` | an action that its provider does first |
//! | `state.version` | its version, 1 or 2; a generation reads only the state of its own version |
//! | `at.born`, `at.claimed`, `at.serving` | list of actions: before the program's own code, before `run`, after the first accept was allowed |
//! | `own-signals` | list of signals that the program catches for itself, through the runtime |
//! | `runtime` | on which runtime, in a binary that has several |
//! | `server` | `hyper`: the adapter's own HTTP stack serves the `tcp` listeners (`Server::run_http`) |
//! | `quiet` | `true`: no event for each listener |
//! | `helped` | `true`: two tasks accept on each listener |
//!
//! Actions: `ok`, `fail WHY`, `give-up WHY` (at `claimed`), `wait NAME` (until the command `go`
//! with `at=NAME`), `pause MS`, `exit N`, `panic`, `abort`, `segv`, `kill`, `hang` (the whole
//! thread, and so the runtime), `pend` (only this future, for hooks), `watch` (a
//! descriptor, through the runtime, until it is readable; at `serving` only), `helper` (a process that
//! inherits every descriptor and outlives this one), `nofile N` (its limit of descriptors),
//! `memory [KIB]` (so much more than it has mapped, or as much as it wants), `pin CPU`, `nice N`, `block SIGNAL` (of the thread).
//!
//! Actions that speak the handover protocol by hand, at `born` in place of the library, or later
//! behind its back: `hello [OLDEST NEWEST]`, `offer` (reads it), `ready N` (claims the first N
//! places), `commit` (reads it), `death` (reads until the other end is closed), `say BYTE...` (a frame of these bytes in hexadecimal),
//! `serving`, `stopping`, `release`, `garbage`, `half`, `oversized`, `attach` (a frame with a
//! descriptor), `close`.
//!
//! # Events
//!
//! `born` (what the process is like), `started` (`generation`, `predecessor`, `inherited`: names
//! offered, `state`: bytes inherited), `claimed` (`name`, `origin`, `address`), `ready` (about to
//! run; `unclaimed`), `state` (`state`, `stage`), `serving` (`generation`, `address` of the first
//! listener, `address.NAME` of each, `state`: bytes at the commit), `stage`, `restart` (every
//! outcome: `ok`, `pid`, `generation`, `claimed`, `bound`, `dropped`, `in_flight` or `failure`,
//! `detail`, `error`), `answer` (the same with `id`, for the command `restart`), `children` and `leaked` (of `children`),
//! `dropped` (`run`), `rolled back`, `hook` (`when`,
//! `event`, `action`), `acts` (`place`, `action`),
//! `waits` (`place`), `closed` (a listener was given up), `exit`
//! (`successor`, `drained`, `cut`) or `exit` with `kind` and `error`, `served` (how many `requests` came as far as the service of an HTTP stack), `own signal` (`signal`), `caught up`.
//!
//! # Commands
//!
//! `restart id`, `stop`, `quit`, `add entry` (a line of `listen`), `close name`, `in-flight`
//! (tells it), `catch-up` (tells `caught up` when the runtime has reported something that became ready
//! after the command), `unhelp` (the second task of each listener goes), `guard` and `unguard`, `ignore` and `attend` (accepts nothing for a while), `write name text` and `read name` (files and pipes),
//! `unclaimed`, `end [error]` (the server future ends), `go at` (`at=drop-run` drops the future of
//! `run`, and this process lives on until `at=end`), `act action` (on the command
//! thread, at once), `thread-act action` (on the runtime's thread: `hang` wedges it).

mod actions;
mod answers;
mod blocking;
mod outcomes;
mod packets;
mod raw;
mod serve;
#[cfg(feature = "http")]
mod service;
mod setup;
#[cfg(feature = "tls")]
mod tls;
mod watch;

use std::ops::DerefMut;
use std::path::{Path, PathBuf};
use std::pin::pin;
#[cfg(feature = "tls")]
use std::sync::OnceLock;
#[cfg(feature = "http")]
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use futures::channel::mpsc;
#[cfg(feature = "http")]
use futures::future::FutureExt;
use futures::future::{BoxFuture, Either, select};
use handover_core::{Event, Exit, Policy, Signal, Sockets, Start};

pub use serve::{AsyncSockets, BlockingSockets, ServerSockets};
#[cfg(feature = "http")]
pub use service::HttpService;

use self::actions::{Act, Waits};
use self::outcomes::{Blob, tell_outcome};
use self::setup::{Hook, Listen, When};
use crate::generation::{Command, Generation};
use crate::{Failure, Scenario};

/// One generation of the server under test, in a program that an adapter's author writes.
#[derive(Debug)]
pub struct Server {
    generation: Generation,
    policy: Policy,
    listen: Vec<Listen>,
    hooks: Vec<Hook>,
    waits: Arc<Waits>,
    commands: Mutex<Option<mpsc::UnboundedReceiver<Command>>>,
    /// The suite has left out what only a future can do.
    blocks: bool,
    /// Set before listeners are claimed, if one of them wants it.
    #[cfg(feature = "tls")]
    tls: OnceLock<Arc<tls::Config>>,
}

impl Server {
    /// Reads the scenario, and does what it says is to happen before the program's own code runs.
    pub(crate) fn enter(generation: &Generation) -> Result<Self, Failure> {
        let generation = generation.clone();
        let scenario = generation.scenario();
        let waits = Arc::new(Waits::default());
        let (sender, receiver) = mpsc::unbounded();
        let server = Self {
            policy: setup::policy(scenario)?,
            listen: setup::list(scenario, "listen", Listen::parse)?,
            hooks: setup::list(scenario, "hooks", Hook::parse)?,
            waits: Arc::clone(&waits),
            commands: Mutex::new(Some(receiver)),
            #[cfg(feature = "tls")]
            tls: OnceLock::new(),
            generation: generation.clone(),
            blocks: false,
        };
        let actor = generation.clone();
        generation.on_command(move |command| match command.name.as_str() {
            "go" => waits.go(command.get("at").unwrap_or_default()),
            "act" => {
                let done = Act::parse(command.get("action").unwrap_or_default())
                    .and_then(|act| act.perform(&actor, &waits).map(drop));
                if let Err(failure) = done {
                    actor.tell("failed to act", &[("reason", &failure)]);
                }
            }
            _ => drop(sender.unbounded_send(command)),
        });
        setup::tell_birth(&generation);
        server.act_at("born")?;
        Ok(server)
    }

    pub(crate) fn blocking(mut self, blocks: bool) -> Self {
        self.blocks = blocks;
        self
    }

    /// What to start with. Short times unless the case says otherwise.
    #[must_use]
    pub fn policy(&self) -> Policy {
        self.policy.clone()
    }

    /// Claims, serves and drains as the case wants it, on a runtime of futures.
    ///
    /// # Errors
    ///
    /// Those of the start, which end this process as they would end any program's.
    pub async fn run<R: AsyncSockets>(&self, start: Start<R>) -> Result<(), Failure> {
        self.run_with(start, None).await
    }

    /// The same with an HTTP stack of the adapter's in place of the suite's own server, on TCP
    /// listeners: `serve` is given each of them, with a tower service for it. What it gives back
    /// serves for as long as it is polled.
    ///
    /// # Errors
    ///
    /// As for [`run`](Self::run).
    #[cfg(feature = "http")]
    pub async fn run_http<R: AsyncSockets, F>(
        &self,
        start: Start<R>,
        mut serve: impl FnMut(R::TcpListener, HttpService<R>) -> F + Send + 'static,
    ) -> Result<(), Failure>
    where
        F: Future<Output: Send> + Send + 'static,
    {
        let begun = Arc::new(AtomicU64::new(0));
        let total = Arc::clone(&begun);
        let stack: serve::Stack<R> = Box::new(move |listener, answers| {
            Box::pin(serve(listener, HttpService::new(answers, Arc::clone(&begun))).map(drop))
        });
        let result = self.run_with(start, Some(stack)).await;
        self.generation.tell("served", &[("requests", &total.load(Ordering::Relaxed))]);
        result
    }

    async fn run_with<R: AsyncSockets>(
        &self,
        mut start: Start<R>,
        stack: Option<serve::Stack<R>>,
    ) -> Result<(), Failure> {
        if self.blocks {
            return Err(Failure::new("a `run` that is a future does not block: no `.blocking()`"));
        }
        self.prepare(&mut start)?;
        let serving = serve::Serving::of_futures(self, &start, stack)?;
        if let Some(reason) = self.act_at("claimed")? {
            start.give_up(reason);
            return Err(Failure::new("gave up"));
        }
        let unclaimed = start.unclaimed().join(" ");
        self.generation.tell("ready", &[("unclaimed", &unclaimed)]);
        let run = Box::pin(start.run(serving.serve()));
        match select(run, pin!(self.waits.waited("drop-run"))).await {
            Either::Left((result, _)) => {
                outcomes::tell_exit(&self.generation, &result);
                result.map(drop).map_err(Failure::from)
            }
            // The program lives on without the library.
            Either::Right(((), run)) => {
                drop(run);
                self.generation.tell("dropped", &[]);
                self.waits.waited("end").await;
                Ok(())
            }
        }
    }

    /// The same on a runtime of threads, whose own `start` has a `run` that blocks. The server's
    /// future waits through nothing but the adapter's sockets and timers.
    ///
    /// # Errors
    ///
    /// As for [`run`](Self::run).
    pub fn run_blocking<R, S>(
        &self,
        mut start: S,
        give_up: impl FnOnce(S, String),
        run: impl FnOnce(S, BoxFuture<'static, Result<(), String>>) -> handover_core::Result<Exit>,
    ) -> Result<(), Failure>
    where
        R: BlockingSockets,
        S: DerefMut<Target = Start<R>>,
    {
        self.prepare(&mut start)?;
        let serving = serve::Serving::of_threads(self, &start)?;
        if let Some(reason) = self.act_at("claimed")? {
            give_up(start, reason);
            return Err(Failure::new("gave up"));
        }
        let unclaimed = start.unclaimed().join(" ");
        self.generation.tell("ready", &[("unclaimed", &unclaimed)]);
        let result = run(start, Box::pin(serving.serve()));
        outcomes::tell_exit(&self.generation, &result);
        result.map(drop).map_err(Failure::from)
    }

    /// What does not depend on how the runtime waits.
    fn prepare<R: Sockets>(&self, start: &mut Start<R>) -> Result<(), Failure> {
        let generation = &self.generation;
        let scenario = generation.scenario();
        let version: u32 = scenario.value("state.version", 1)?;
        let state = if version == 2 {
            start.inherited::<Blob<2>>().map(|blob| blob.0.len())
        } else {
            start.inherited::<Blob<1>>().map(|blob| blob.0.len())
        };
        generation.tell(
            "started",
            &[
                ("generation", &start.generation()),
                ("predecessor", &start.predecessor().unwrap_or(0)),
                ("inherited", &start.unclaimed().join(" ")),
                ("state", &state.map_or("none".to_owned(), |bytes| bytes.to_string())),
            ],
        );
        if scenario.get("state").is_some() {
            let bytes: usize = scenario.value("state", 0)?;
            let act = Act::parse(scenario.get("state.provider").unwrap_or("ok"))?;
            let (generation, waits) = (generation.clone(), Arc::clone(&self.waits));
            let provide = move || {
                if let Err(failure) = act.perform(&generation, &waits) {
                    generation.tell("failed to act", &[("reason", &failure)]);
                }
                vec![7; bytes]
            };
            if version == 2 {
                start.hand_over(move || Blob::<2>(provide()));
            } else {
                start.hand_over(move || Blob::<1>(provide()));
            }
        }
        #[cfg(feature = "tls")]
        if self.listen.iter().any(|listen| listen.kind == setup::Kind::Tls) {
            let _ = self.tls.set(tls::config(start)?);
        }
        let teller = generation.clone();
        start.on_restart(move |outcome| tell_outcome(&teller, "restart", None, outcome));
        let teller = generation.clone();
        start.after(Event::RollBack, move || {
            teller.tell("rolled back", &[]);
            std::future::ready(Ok(()))
        });
        for hook in &self.hooks {
            self.register(start, hook);
        }
        Ok(())
    }

    fn register<R: Sockets>(&self, start: &mut Start<R>, hook: &Hook) {
        let runtime = start.runtime().cloned();
        let (generation, waits, hook) =
            (self.generation.clone(), Arc::clone(&self.waits), hook.clone());
        let (when, event) = (hook.when, hook.event);
        let run = move || {
            let (generation, waits, hook) = (generation.clone(), Arc::clone(&waits), hook.clone());
            let runtime = runtime.clone();
            async move {
                generation.tell(
                    "hook",
                    &[("when", &hook.when), ("event", &hook.name), ("action", &hook.action)],
                );
                let done = hook.action.perform_in(&generation, &waits, runtime.as_ref()).await;
                done.map_err(|failure| failure.to_string().into())
            }
        };
        match when {
            When::Before => start.before(event, run),
            When::After => start.after(event, run),
        }
    }

    /// Does what is to happen at a point; the reason, if that is to give up.
    fn act_at(&self, at: &str) -> Result<Option<String>, Failure> {
        for act in self.acts(at)? {
            self.generation.tell("acts", &[("place", &at), ("action", &act)]);
            if let Some(reason) = act.perform(&self.generation, &self.waits)? {
                return Ok(Some(reason));
            }
        }
        Ok(None)
    }

    fn acts(&self, at: &str) -> Result<Vec<Act>, Failure> {
        setup::list(self.generation.scenario(), &format!("at.{at}"), Act::parse)
    }

    fn take_commands(&self) -> Option<mpsc::UnboundedReceiver<Command>> {
        self.commands.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// A path of the scenario.
fn resolve(generation: &Generation, address: &str) -> PathBuf {
    if address.starts_with('@') {
        return address.into();
    }
    generation.folder().join(Path::new(address))
}

/// The name of an event, as scenarios and events have it.
fn event_named(name: &str) -> Result<Event, Failure> {
    Ok(match name {
        "accept" => Event::Accept,
        "restart" => Event::Restart,
        "commit" => Event::Commit,
        "settle" => Event::Settle,
        "roll-back" => Event::RollBack,
        "alone" => Event::Alone,
        "stop" => Event::Stop,
        _ => match name.strip_prefix("signal:") {
            Some(signal) => Event::Signal(signal_named(signal)?),
            None => return Err(Failure::new(format!("no event is called `{name}`"))),
        },
    })
}

fn signal_named(name: &str) -> Result<Signal, Failure> {
    Ok(match name {
        "HUP" => Signal::HUP,
        "INT" => Signal::INT,
        "QUIT" => Signal::QUIT,
        "TERM" => Signal::TERM,
        "USR1" => Signal::USR1,
        "USR2" => Signal::USR2,
        "TSTP" => Signal::TSTP,
        "WINCH" => Signal::WINCH,
        _ => return Err(Failure::new(format!("no signal is called `{name}`"))),
    })
}

impl Scenario {
    /// Adds a line to a list of the scenario.
    #[must_use]
    pub fn also(self, key: &str, line: impl std::fmt::Display) -> Self {
        let lines = match self.get(key) {
            Some(lines) => format!("{lines}\n{line}"),
            None => line.to_string(),
        };
        self.with(key, lines)
    }
}
