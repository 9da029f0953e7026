//! The one driver: gives the machine what happened, and does what it says.
//!
//! It is polled inside [`Start::run`](crate::Start::run), beside the user's server. Everything
//! that takes time and could block (starting a process, calling the providers of application
//! state) happens on a short-lived thread.

mod end;
mod happened;
mod perform;

use std::collections::VecDeque;
use std::future::Future;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use futures::channel::mpsc;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use futures::{FutureExt, Stream, StreamExt};

use crate::attempt::{self, Successor};
use crate::drain::Stage;
use crate::error::{Error, ErrorKind, Result};
use crate::handle::{Reply, Request, Shared};
use crate::hooks::{Event, HookResult, Hooks, When};
use crate::inherit::{Generation, Upstream};
use crate::machine::{Action, Attempt, Failure, GiveUp, Heard, Input, Machine, State, Told};
use crate::notify::Notifier;
use crate::outcome::{Exit, RestartError, Takeover};
use crate::ownership::Ownership;
use crate::policy::{Policy, Verb};
use crate::poller::{Poller, Token};
use crate::protocol::channel::Received;
use crate::protocol::frame::Frame;
use crate::runtime::{Runtime, Signal};
use crate::spawn::{Child, Launch, is_dead};
use crate::state::Providers;
use crate::terminal::{Hangup, Terminal};

/// How long a TCP listener that takes no new connections waits for handshakes that are under way:
/// a round trip, or a retransmission on a good line. Closed earlier, it would reset them.
const HANDSHAKE: Duration = Duration::from_millis(250);
/// How often it is looked whether the program has accepted the rest of a queue.
const RECHECK: Duration = Duration::from_millis(20);
/// How often the descriptors are looked at in one poll.
const ROUNDS: usize = 16;
/// A successor has five things to say. After this many its link counts as lost.
const FRAMES: u32 = 16;
/// How long the end of this process waits for the service manager to have read its last words.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// All that a driver is made of.
pub(crate) struct Parts<R: Runtime> {
    pub(crate) runtime: R,
    pub(crate) policy: Policy,
    pub(crate) hooks: Hooks,
    pub(crate) providers: Providers,
    pub(crate) signals: Vec<R::Signals>,
    pub(crate) requests: mpsc::UnboundedReceiver<Request>,
    pub(crate) shared: Arc<Shared>,
    pub(crate) upstream: Option<Upstream>,
    pub(crate) ownership: Ownership,
    pub(crate) own: Generation,
    pub(crate) older: Vec<Generation>,
    pub(crate) launch: Launch,
    pub(crate) terminal: Terminal,
    pub(crate) observer: Option<Observer>,
}

/// Is told of the outcome of every restart, whoever asked for it.
pub(crate) type Observer = Box<dyn FnMut(&std::result::Result<Takeover, RestartError>) + Send>;

pub(crate) struct Driver<R: Runtime> {
    parts: Parts<R>,
    machine: Machine,
    poller: Poller<R>,
    notifier: Option<Notifier>,
    timer: Option<(Instant, Pin<Box<R::Timer>>)>,
    inputs: Vec<Input>,
    successor: Option<Successor>,
    /// Children that are not, or no longer, anybody's successor: wrappers.
    children: Vec<Child>,
    /// Who asked for the restarts among the inputs, in their order.
    replies: VecDeque<Option<Reply>>,
    /// Who asked for the one that is being handled.
    asking: Option<Reply>,
    /// Signals and stops whose hooks before them run.
    considering: FuturesUnordered<BoxFuture<'static, Considered>>,
    /// Hooks after something, which nothing waits for.
    afterwards: FuturesUnordered<BoxFuture<'static, ()>>,
    begun: Begun,
    stop_considered: bool,
    barrier: Option<OwnedFd>,
    draining_since: Option<Instant>,
    /// What was in flight at the drain deadline.
    cut: u64,
    /// How `run` ends.
    end: Option<Result<Exit>>,
    server_error: Option<Error>,
    closing: Option<Instant>,
    /// When to look whether listeners that are given up have served what was queued.
    settle_at: Option<Instant>,
    /// Restarts that were asked for before the first accept.
    early: Vec<Option<Reply>>,
}

/// The hooks before the first accept.
enum Begun {
    No,
    Running(BoxFuture<'static, HookResult>),
    Yes,
}

/// What was considered by the hooks before it.
enum Considered {
    Signal(Signal, Verb, HookResult),
    Stop(HookResult),
}

impl<R: Runtime> Driver<R> {
    pub(crate) fn new(mut parts: Parts<R>) -> Result<Self> {
        let poller = Self::watch(&parts).inspect_err(|error| {
            if let Some(upstream) = &mut parts.upstream {
                upstream.give_up(error.to_string());
            }
        })?;
        let inherits = parts.upstream.is_some();
        Ok(Self {
            machine: Machine::new(parts.policy.timing, inherits),
            poller,
            notifier: Notifier::from_env(),
            parts,
            timer: None,
            inputs: Vec::new(),
            successor: None,
            children: Vec::new(),
            replies: VecDeque::new(),
            asking: None,
            considering: FuturesUnordered::new(),
            afterwards: FuturesUnordered::new(),
            begun: Begun::No,
            stop_considered: false,
            barrier: None,
            draining_since: None,
            cut: 0,
            end: None,
            server_error: None,
            closing: None,
            settle_at: None,
            early: Vec::new(),
        })
    }

    /// The poller, with everything in it that there is from the start.
    fn watch(parts: &Parts<R>) -> Result<Poller<R>> {
        let poller = Poller::new(&parts.runtime)?;
        let watch = |token, descriptor: std::os::fd::BorrowedFd<'_>| {
            poller.add(token, descriptor).map_err(|error| {
                Error::with_source(ErrorKind::Runtime, "watch the predecessor", error)
            })
        };
        if let Some(upstream) = &parts.upstream {
            watch(Token::Predecessor, upstream.channel.as_fd())?;
            watch(Token::PredecessorDeath, upstream.pidfd.as_fd())?;
        }
        watch(Token::Hurry, parts.own.hurry.as_fd())?;
        for older in &parts.older {
            watch(Token::Older, older.pidfd.as_fd())?;
        }
        Ok(poller)
    }

    /// The user's server has ended.
    pub(crate) fn server_ended(&mut self, error: Option<Error>) {
        self.server_error = error;
        self.inputs.push(Input::ServerEnded);
    }

    pub(crate) fn poll(&mut self, context: &mut Context<'_>) -> Poll<Result<Exit>> {
        loop {
            self.collect(context);
            self.inputs.sort_by_key(Input::rank);
            let mut progress = !self.inputs.is_empty();
            for input in std::mem::take(&mut self.inputs) {
                if input == Input::Restart {
                    self.asking = self.replies.pop_front().flatten();
                }
                let now = self.parts.runtime.now();
                self.machine.handle(input, now);
                self.act();
            }
            let now = self.parts.runtime.now();
            self.machine.handle_timeout(now);
            // An action may have begun something that is to be polled.
            progress |= self.act();
            self.parts.shared.state.set(self.machine.state());
            if let Some(end) = self.poll_end(context) {
                return Poll::Ready(end);
            }
            if !progress && self.inputs.is_empty() && self.poll_timer(context).is_pending() {
                return Poll::Pending;
            }
        }
    }
}
