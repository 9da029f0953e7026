//! The one driver: gives the machine what happened, and does what it says.
//!
//! It is polled inside [`Start::run`](crate::Start::run), beside the user's server. Everything
//! that takes time and could block (starting a process, calling the providers of application
//! state) happens on a short-lived thread.

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

    // What happened.

    fn collect(&mut self, context: &mut Context<'_>) {
        self.poll_descriptors(context);
        self.poll_begin(context);
        self.poll_signals(context);
        while let Poll::Ready(Some(considered)) = self.considering.poll_next_unpin(context) {
            self.considered(considered);
        }
        while let Poll::Ready(Some(request)) = self.parts.requests.poll_next_unpin(context) {
            match request {
                Request::Restart(reply) => self.ask_restart(Some(reply)),
                Request::Stop => self.ask_stop(),
                Request::Quit => self.inputs.push(Input::Quit),
                Request::Settle => self.settle_from_now(),
            }
        }
        while let Poll::Ready(Some(())) = self.afterwards.poll_next_unpin(context) {}
        if let Some(successor) = &mut self.successor {
            let now = self.parts.runtime.now();
            successor.poll_steps(context, &self.parts.older, now, &mut self.inputs);
            self.adopt_spawned();
        }
        self.poll_settle();
        if self.machine.is_leaving() && self.machine.state() != Some(State::Exited) {
            let in_flight = &self.parts.shared.registry.in_flight;
            in_flight.await_zero(context.waker());
            if in_flight.count() == 0 && self.settle_at.is_none() {
                self.inputs.push(Input::Idle);
            }
        }
    }

    fn settle_from_now(&mut self) {
        self.settle_at = (!self.parts.shared.registry.is_settled())
            .then(|| self.parts.runtime.now() + HANDSHAKE);
    }

    fn poll_settle(&mut self) {
        let now = self.parts.runtime.now();
        if self.settle_at.is_some_and(|at| at <= now) {
            self.settle_at = (!self.parts.shared.registry.settle()).then(|| now + RECHECK);
        }
    }

    /// Reads what is there until nothing is: only then will the runtime wake us for more.
    fn poll_descriptors(&mut self, context: &mut Context<'_>) {
        for _ in 0..ROUNDS {
            match self.poller.poll(context) {
                Poll::Pending => return,
                Poll::Ready(Ok(tokens)) => self.ready(&tokens),
                Poll::Ready(Err(error)) => {
                    tracing::error!(%error, "the handover's descriptors cannot be watched");
                    return;
                }
            }
        }
        // A peer that never stops talking must not keep the server from running.
        context.waker().wake_by_ref();
    }

    fn ready(&mut self, tokens: &[Token]) {
        // Deaths are looked at before the links are read to their end, and handled after: what a
        // process said before it died must not be overtaken by its death.
        let upstream = self.parts.upstream.as_ref();
        let predecessor_died = upstream.is_some_and(|known| is_dead(known.pidfd.as_fd()));
        if tokens.iter().any(|token| matches!(token, Token::SuccessorDeath | Token::Child)) {
            self.bury();
        }
        self.read_predecessor();
        self.read_successor();
        if predecessor_died {
            self.drop_upstream();
            self.inputs.push(Input::PredecessorDied);
        }
        for token in tokens {
            match token {
                Token::Predecessor
                | Token::PredecessorDeath
                | Token::SuccessorDeath
                | Token::Child => {}
                Token::Successor => self.flush_successor(),
                Token::Older => self.forget_older(),
                Token::Hurry => {
                    let mut count = [0; 8];
                    let _ = rustix::io::read(&self.parts.own.hurry, &mut count);
                    self.inputs.push(Input::Hurry);
                }
                Token::Barrier => {
                    if let Some(barrier) = self.barrier.take() {
                        self.poller.remove(barrier.as_fd());
                    }
                }
            }
        }
    }

    fn read_predecessor(&mut self) {
        let Some(upstream) = &mut self.parts.upstream else { return };
        while let Some((received, mut descriptors)) = upstream.channel.receive_with_descriptors() {
            let told = match received {
                Received::Frame(Frame::Commit { state }, _) => {
                    if let (true, Some(file)) = (state, descriptors.pop()) {
                        // Only moved here; it is parsed after the first accept.
                        let _ = self.parts.shared.at_commit.set(file);
                    }
                    Told::Commit
                }
                Received::Frame(Frame::Abort { reason }, _) => {
                    tracing::warn!(reason, "the predecessor does not want this process");
                    Told::Abort
                }
                Received::Frame(Frame::Released, _) => Told::Released,
                Received::Frame(frame, _) => {
                    tracing::warn!(?frame, "unexpected from the predecessor");
                    Told::Garbage
                }
                Received::Garbage(what) => {
                    tracing::warn!(what, "the predecessor broke the protocol");
                    Told::Garbage
                }
                Received::Lost => {
                    self.poller.remove(upstream.channel.as_fd());
                    self.inputs.push(Input::Predecessor(Told::Lost));
                    break;
                }
            };
            self.inputs.push(Input::Predecessor(told));
        }
    }

    fn read_successor(&mut self) {
        // What it said before its process was known to exist waits for that.
        let watched = |known: &&mut Successor| known.is_watched();
        let Some(successor) = self.successor.as_mut().filter(watched) else { return };
        let attempt = successor.number;
        let Some(channel) = &mut successor.channel else { return };
        let mut lost = false;
        let mut heard = Vec::new();
        while let Some(received) = channel.receive() {
            // A peer that never stops talking must not keep the server from running.
            successor.frames += 1;
            if matches!(received, Received::Lost) || successor.frames > FRAMES {
                self.poller.remove(channel.as_fd());
                lost = true;
                heard.push(Heard::Lost);
                break;
            }
            heard.push(successor.log.understand(received));
        }
        if lost {
            successor.channel = None;
        }
        if heard.contains(&Heard::Hello)
            && let Err(error) = successor.watch_speaker(&self.poller)
        {
            successor.log.detail(format!("watch the successor: {error}"));
            heard = vec![Heard::Garbage];
        }
        let heard = heard.into_iter().map(|heard| Input::Successor(attempt, heard));
        self.inputs.extend(heard);
    }

    fn flush_successor(&mut self) {
        let Some(successor) = &mut self.successor else { return };
        let attempt = successor.number;
        if let Some(channel) = &mut successor.channel
            && channel.is_blocked()
        {
            let flushed = channel.flush();
            if !channel.is_blocked() {
                let _ = self.poller.want_write(Token::Successor, channel.as_fd(), false);
            }
            if let Err(error) = flushed {
                self.offer_failed(attempt, &error);
            }
        }
    }

    /// Reaps children that have ended, and notices the successor's death.
    fn bury(&mut self) {
        if let Some(successor) = &mut self.successor {
            successor.bury(&self.poller, &mut self.inputs);
        }
        self.children.retain(|child| {
            let ended = child.reap().is_some();
            if ended {
                self.poller.remove(child.pidfd.as_fd());
            }
            !ended
        });
    }

    fn forget_older(&mut self) {
        let poller = &self.poller;
        self.parts.older.retain(|older| {
            let alive = older.is_alive();
            if !alive {
                poller.remove(older.pidfd.as_fd());
            }
            alive
        });
    }

    fn poll_begin(&mut self, context: &mut Context<'_>) {
        let result = match &mut self.begun {
            Begun::Yes => return,
            Begun::No => match self.parts.hooks.run(When::Before, Event::Accept) {
                None => Ok(()),
                Some(hooks) => {
                    self.begun = Begun::Running(hooks);
                    return self.poll_begin(context);
                }
            },
            Begun::Running(hooks) => match hooks.poll_unpin(context) {
                Poll::Pending => return,
                Poll::Ready(result) => result,
            },
        };
        self.begun = Begun::Yes;
        match result {
            Ok(()) => self.inputs.push(Input::Begin),
            Err(error) => {
                let message = "hook before the first accept";
                self.server_ended(Some(Error::with_source(ErrorKind::Hook, message, error)));
            }
        }
    }

    fn poll_signals(&mut self, context: &mut Context<'_>) {
        let mut arrived = Vec::new();
        for signals in &mut self.parts.signals {
            while let Poll::Ready(Some(signal)) = Pin::new(&mut *signals).poll_next(context) {
                arrived.push(signal);
            }
        }
        for signal in arrived {
            let known = self.parts.policy.signals.iter().find(|(known, _)| *known == signal);
            let mut verb = known.map_or(Verb::Hooks, |(_, verb)| *verb);
            if signal == Signal::HUP && verb == Verb::Restart {
                match self.parts.terminal.hangup() {
                    Hangup::Unrelated => {}
                    Hangup::Closed => {
                        tracing::info!("the controlling terminal has gone: stopping");
                        verb = Verb::Stop;
                    }
                    Hangup::LeaderLeft => {
                        tracing::debug!("the session's leader, an older generation, has left");
                        continue;
                    }
                }
            }
            tracing::debug!(%signal, ?verb, "signal");
            match self.parts.hooks.run(When::Before, Event::Signal(signal)) {
                Some(hooks) => self
                    .considering
                    .push(Box::pin(async move { Considered::Signal(signal, verb, hooks.await) })),
                None => self.considered(Considered::Signal(signal, verb, Ok(()))),
            }
        }
    }

    fn considered(&mut self, considered: Considered) {
        match considered {
            Considered::Signal(signal, verb, result) => {
                match (verb, result) {
                    (Verb::Restart, Err(error)) => {
                        let mut refused = RestartError::new(Failure::Vetoed);
                        refused.detail = Some(format!("before {signal}: {error}"));
                        self.answer(None, Err(refused));
                    }
                    (verb, result) => {
                        if let Err(error) = result {
                            tracing::warn!(%signal, %error, "hook before a signal");
                        }
                        match verb {
                            Verb::Restart => self.ask_restart(None),
                            Verb::Stop => self.ask_stop(),
                            Verb::Quit => self.inputs.push(Input::Quit),
                            Verb::Hooks => {}
                        }
                    }
                }
                self.run_after(Event::Signal(signal));
            }
            Considered::Stop(result) => {
                if let Err(error) = result {
                    tracing::warn!(%error, "hook before the stop");
                }
                self.inputs.push(Input::Stop);
            }
        }
    }

    fn ask_restart(&mut self, reply: Option<Reply>) {
        if !self.parts.policy.even_if_unfollowed
            && let Some(why) = unfollowed()
        {
            let mut refused = RestartError::new(Failure::Unfollowed);
            refused.detail = Some(why.into());
            return self.answer(reply, Err(refused));
        }
        if self.machine.state().is_none() {
            // A signal to a successor is a signal to its whole group: it is this very restart.
            if reply.is_some() || self.parts.upstream.is_none() {
                self.early.push(reply);
            }
            return;
        }
        self.replies.push_back(reply);
        self.inputs.push(Input::Restart);
    }

    fn ask_stop(&mut self) {
        // Only a serving process considers: a second stop, or one while draining, must not wait.
        let first = !std::mem::replace(&mut self.stop_considered, true);
        let serving = matches!(self.machine.state(), Some(State::Serving | State::Forking));
        match self.parts.hooks.run(When::Before, Event::Stop).filter(|_| first && serving) {
            Some(hooks) => {
                let patience = self.parts.runtime.now() + self.parts.policy.timing.hooks;
                let timer = self.parts.runtime.timer(patience);
                self.considering.push(Box::pin(async move {
                    let late = async move {
                        timer.await;
                        Err("took too long".into())
                    };
                    futures::pin_mut!(late);
                    let (result, _) = futures::future::select(hooks, late).await.factor_first();
                    Considered::Stop(result)
                }));
            }
            None => self.inputs.push(Input::Stop),
        }
    }

    // What is to be done.

    /// Carries out what the machine says; whether that was anything.
    fn act(&mut self) -> bool {
        let mut acted = false;
        while let Some(action) = self.machine.poll_action() {
            tracing::trace!(?action);
            self.perform(action);
            acted = true;
        }
        acted
    }

    fn perform(&mut self, action: Action) {
        let now = self.parts.runtime.now();
        match action {
            Action::Vet(number) => self.vet(number, now),
            Action::Spawn(_) => self.spawn(),
            Action::Offer(number) => self.offer(number),
            Action::Seal(_) => self.seal(now),
            Action::CloseGates(_) => {
                self.closing = Some(now);
                if let Some(successor) = &mut self.successor {
                    let (claimed, dropped) =
                        self.parts.shared.registry.claimed(&successor.log.claims());
                    successor.takeover.bound = successor.log.bound();
                    successor.takeover.claimed = claimed;
                    successor.takeover.dropped = dropped;
                    successor.takeover.in_flight = self.parts.shared.registry.in_flight.count();
                    successor.step(now, |steps, took| steps.seal = took);
                }
                self.parts.shared.registry.close_claimed();
            }
            Action::Unlock => {
                if let Err(error) = self.parts.ownership.unlock() {
                    tracing::error!(%error, "the ownership could not be given up");
                }
            }
            Action::Commit(_) => {
                let written = self.successor.as_mut().is_some_and(Successor::commit);
                if written {
                    self.draining_since = self.closing;
                    self.run_after(Event::Commit);
                }
                self.machine.handle(Input::Committed(written), now);
            }
            Action::Lock => {
                let won = self.parts.ownership.try_lock().unwrap_or_else(|error| {
                    tracing::error!(%error, "the ownership could not be tried");
                    false
                });
                self.machine.handle(Input::Locked(won), now);
            }
            Action::OpenGates => self.open(),
            Action::Abort(_) => {
                if let Some(successor) = &mut self.successor {
                    successor.abort();
                }
            }
            Action::Kill(_) => {
                if let Some(successor) = &mut self.successor {
                    successor.kill();
                }
            }
            Action::Forget(number) => self.forget(number),
            Action::Report(number, outcome) => self.report(number, outcome, now),
            Action::Refuse(failure) => {
                let reply = self.asking.take();
                self.answer(reply, Err(RestartError::new(failure)));
            }
            Action::SayReady => {
                let (claimed, unwanted, bound) = self.parts.shared.registry.claims();
                self.say(&Frame::Ready { claimed, unwanted, bound });
            }
            Action::SayServing => self.say(&Frame::Serving),
            Action::SayStopping => self.say(&Frame::Stopping),
            Action::SayRelease => self.say(&Frame::Release),
            Action::SayReleased(_) => {
                if let Some(channel) =
                    self.successor.as_mut().and_then(|known| known.channel.as_mut())
                {
                    let _ = channel.send(&Frame::Released, Vec::new());
                }
            }
            Action::LetGo => {
                self.parts.shared.registry.let_go();
                self.settle_from_now();
            }
            Action::NotReady => self.lame_duck(),
            Action::CloseListeners => {
                self.parts.shared.ready.store(false, Ordering::Release);
                tracing::info!("stopping");
                self.draining_since.get_or_insert(now);
                self.notify(Notifier::stopping);
                self.parts.shared.registry.close();
                self.settle_from_now();
            }
            Action::Closing => self.parts.shared.drain.set(Stage::Closing),
            Action::Settled => {
                let pid = self.successor.as_ref().map(|known| known.takeover.pid);
                tracing::info!(successor = pid, "the successor has settled");
                if let Some(pid) = pid {
                    self.notify(|notifier| notifier.main_pid(pid, true));
                    self.raise_barrier();
                }
                self.run_after(Event::Settle);
            }
            Action::RolledBack(failure) => {
                tracing::error!(?failure, "rolled back: this process serves again");
                self.draining_since = None;
                if let Some(successor) = &mut self.successor {
                    successor.roll_back();
                }
                self.parts.shared.drain.set(Stage::Open);
                self.parts.shared.registry.in_flight.stop_awaiting();
                self.notify(Notifier::ready);
                self.run_after(Event::RollBack);
            }
            Action::Over => self.parts.shared.drain.set(Stage::Over),
            Action::Cut => self.parts.shared.drain.set(Stage::Cut),
            Action::Alone => {
                tracing::info!("the predecessor is gone");
                self.run_after(Event::Alone);
            }
            Action::GiveUp(why) => self.give_up(why),
            Action::Exit => self.exit(now),
        }
    }

    fn vet(&mut self, number: Attempt, now: Instant) {
        tracing::info!(attempt = number, "restart");
        self.forget_older();
        let cap = self.parts.policy.generations;
        let crowded = self.parts.older.len() >= cap.max(1);
        if crowded && let Some(oldest) = self.parts.older.first() {
            tracing::info!(pid = oldest.pid, "asking the oldest generation to end its linger");
            let _ = rustix::io::write(&oldest.hurry, &1u64.to_ne_bytes());
        }
        let room = crowded.then_some(cap.max(1));
        let hooks = self.parts.hooks.run(When::Before, Event::Restart);
        let reply = self.asking.take();
        self.successor = Some(Successor::new(number, reply, room, hooks, now));
    }

    fn spawn(&mut self) {
        let Some(successor) = &mut self.successor else { return };
        let now = self.parts.runtime.now();
        successor.step(now, |steps, took| steps.prepare = took);
        self.notify(Notifier::reloading);
        let Some(successor) = &mut self.successor else { return };
        let parts = &self.parts;
        let job = attempt::Job {
            launch: parts.launch.clone(),
            instance: parts.policy.instance.clone(),
            providers: parts.providers.clone(),
            limit: parts.policy.state_limit,
        };
        if let Err(error) = successor.spawn(job) {
            successor.log.os_error(&error);
            successor.log.detail(format!("prepare the start: {error}"));
            self.inputs.push(Input::SpawnFailed(successor.number));
        }
    }

    /// Watches the process and the socket of an attempt that has just been started.
    fn adopt_spawned(&mut self) {
        let Some(successor) = &mut self.successor else { return };
        if let Err(error) = successor.watch(&self.poller) {
            successor.log.os_error(&error);
            successor.log.detail(format!("watch the successor: {error}"));
            self.inputs.push(Input::Successor(successor.number, Heard::Garbage));
        }
    }

    fn offer(&mut self, number: Attempt) {
        let parts = &self.parts;
        let older: Vec<_> = parts
            .older
            .iter()
            .filter(|older| older.is_alive())
            .chain([&parts.own])
            .cloned()
            .collect();
        let now = parts.runtime.now();
        let Some(successor) = &mut self.successor else { return };
        successor.step(now, |steps, took| steps.hello = took);
        let offered = successor.offer(
            parts.shared.generation,
            parts.policy.timing.hooks + parts.policy.timing.confirm,
            &parts.shared.registry,
            &parts.ownership,
            &older,
        );
        match offered {
            Ok(true) => {
                if let Some(channel) = &successor.channel {
                    let _ = self.poller.want_write(Token::Successor, channel.as_fd(), true);
                }
            }
            Ok(false) => {}
            Err(error) => self.offer_failed(number, &error),
        }
    }

    fn offer_failed(&mut self, number: Attempt, error: &io::Error) {
        use io::ErrorKind::{BrokenPipe, ConnectionReset};
        let Some(successor) = &mut self.successor else { return };
        // If it has closed its end, what it said before that is read next.
        if !matches!(error.kind(), BrokenPipe | ConnectionReset) {
            successor.log.os_error(error);
            successor.log.detail(format!("offer the descriptors: {error}"));
            self.inputs.push(Input::Successor(number, Heard::Garbage));
        }
    }

    fn seal(&mut self, now: Instant) {
        let hooks = self.parts.hooks.run(When::Before, Event::Commit);
        let (providers, limit) = (self.parts.providers.clone(), self.parts.policy.state_limit);
        if let Some(successor) = &mut self.successor {
            successor.step(now, |steps, took| steps.ready = took);
            successor.seal(hooks, providers, limit);
        }
    }

    fn open(&mut self) {
        self.parts.shared.registry.open();
        self.parts.shared.ready.store(true, Ordering::Release);
        self.parts.shared.state.set(self.machine.state());
        let generation = self.parts.shared.generation;
        tracing::info!(generation, pid = std::process::id(), "serving");
        if self.machine.state() == Some(State::Serving) {
            if self.parts.upstream.is_none() {
                self.notify(Notifier::ready);
            }
            self.run_after(Event::Accept);
            for reply in std::mem::take(&mut self.early) {
                self.ask_restart(reply);
            }
        }
    }

    fn lame_duck(&mut self) {
        tracing::info!("not ready any more");
        self.parts.shared.ready.store(false, Ordering::Release);
        self.notify(Notifier::stopping);
    }

    fn forget(&mut self, number: Attempt) {
        let Some(mut successor) = self.successor.take_if(|known| known.number == number) else {
            return;
        };
        if let Some(channel) = &successor.channel {
            self.poller.remove(channel.as_fd());
        }
        // A wrapper may outlive its successor for a moment: it must still be reaped.
        self.children.extend(successor.release_child(&self.poller));
    }

    fn report(&mut self, number: Attempt, outcome: std::result::Result<(), Failure>, now: Instant) {
        let Some(successor) = self.successor.as_mut().filter(|known| known.number == number) else {
            return;
        };
        let reply = successor.reply.take();
        let outcome = match outcome {
            Ok(()) => {
                successor.step(now, |steps, took| steps.switch = took);
                successor.takeover.generation = self.parts.shared.generation + 1;
                Ok(successor.takeover.clone())
            }
            Err(failure) => Err(successor.error(failure)),
        };
        if outcome.is_err() && self.machine.state() != Some(State::Draining) {
            self.notify(Notifier::ready);
        }
        self.answer(reply, outcome);
        self.run_after(Event::Restart);
    }

    fn answer(
        &mut self,
        reply: Option<Reply>,
        outcome: std::result::Result<Takeover, RestartError>,
    ) {
        match &outcome {
            Ok(takeover) => tracing::info!(
                pid = takeover.pid,
                generation = takeover.generation,
                took = ?takeover.steps.total(),
                "the successor serves"
            ),
            Err(error) => {
                tracing::error!(%error, "no new generation");
                self.notify(|notifier| notifier.status(&error.to_string()));
            }
        }
        if let Some(observer) = &mut self.parts.observer {
            observer(&outcome);
        }
        if let Some(reply) = reply {
            // Whoever asked may have lost interest.
            let _ = reply.send(outcome);
        }
    }

    fn say(&mut self, frame: &Frame) {
        if let Some(upstream) = &mut self.parts.upstream {
            // If the predecessor is gone, its end of the socket says so.
            let _ = upstream.channel.send(frame, Vec::new());
        }
    }

    fn drop_upstream(&mut self) {
        if let Some(upstream) = self.parts.upstream.take() {
            self.poller.remove(upstream.channel.as_fd());
            self.poller.remove(upstream.pidfd.as_fd());
        }
    }

    fn run_after(&mut self, event: Event) {
        if let Some(hooks) = self.parts.hooks.run(When::After, event) {
            self.afterwards.push(Box::pin(async move {
                if let Err(error) = hooks.await {
                    tracing::warn!(?event, %error, "hook after");
                }
            }));
        }
    }

    fn notify(&self, tell: impl FnOnce(&Notifier) -> io::Result<()>) {
        if let Some(notifier) = &self.notifier
            && let Err(error) = tell(notifier)
        {
            tracing::warn!(%error, "the service manager could not be told");
        }
    }

    /// Asks the service manager to say when it has read everything so far.
    fn raise_barrier(&mut self) {
        let Some(notifier) = &self.notifier else { return };
        self.barrier = notifier.barrier().ok();
        if let Some(barrier) = &self.barrier
            && self.poller.add(Token::Barrier, barrier.as_fd()).is_err()
        {
            self.barrier = None;
        }
    }

    // The end.

    fn give_up(&mut self, why: GiveUp) {
        let reason = match why {
            GiveUp::Aborted => "the predecessor aborted",
            GiveUp::Protocol => "the predecessor broke the protocol",
            GiveUp::LinkLost => "the predecessor closed the handover socket",
            GiveUp::Deadline => "the predecessor did not commit in time",
            GiveUp::NotOwner => "another process owns the listeners",
            GiveUp::Stopped => "told to stop before the first accept",
            GiveUp::ServerEnded => "the server ended before the first accept",
        };
        if why == GiveUp::Stopped && self.parts.upstream.is_none() {
            // Nobody waits for this process to take over: a stop like any other.
            self.end = Some(Ok(Exit { successor: None, drained: Duration::ZERO, cut: 0 }));
            return;
        }
        let error = self.server_error.take();
        let error =
            error.unwrap_or_else(|| Error::new(ErrorKind::GaveUp, format!("take over: {reason}")));
        self.say(&Frame::GaveUp { reason: error.to_string() });
        self.end = Some(Err(error));
    }

    fn exit(&mut self, now: Instant) {
        let successor = self.successor.as_ref().filter(|known| known.is_committed());
        let exit = Exit {
            successor: successor.map(|known| known.takeover.pid),
            drained: self.draining_since.map_or(Duration::ZERO, |since| now - since),
            cut: self.parts.shared.registry.in_flight.count(),
        };
        tracing::info!(cut = exit.cut, drained = ?exit.drained, "leaving");
        if exit.successor.is_none() {
            self.run_after(Event::Stop);
        }
        self.end = Some(match self.server_error.take() {
            Some(error) => Err(error),
            None => Ok(exit),
        });
        // Hooks after the stop, and the service manager, have this long.
        let patience =
            if self.barrier.is_some() { LAST_WORDS } else { self.parts.policy.timing.hooks };
        self.closing = Some(now + patience);
    }

    fn poll_end(&mut self, context: &mut Context<'_>) -> Option<Result<Exit>> {
        self.end.as_ref()?;
        while let Poll::Ready(Some(())) = self.afterwards.poll_next_unpin(context) {}
        let late = self.closing.is_none_or(|until| until <= self.parts.runtime.now());
        let busy = !self.afterwards.is_empty() || self.barrier.is_some();
        if busy && !late {
            return None;
        }
        self.parts.shared.state.set(Some(State::Exited));
        self.end.take()
    }

    fn poll_timer(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let at = match self.end {
            Some(_) => self.closing,
            None => [self.machine.poll_timeout(), self.settle_at].into_iter().flatten().min(),
        };
        let Some(at) = at else {
            self.timer = None;
            return Poll::Pending;
        };
        if self.timer.as_ref().is_none_or(|(set, _)| *set != at) {
            self.timer = Some((at, Box::pin(self.parts.runtime.timer(at))));
        }
        match &mut self.timer {
            Some((_, timer)) => match timer.as_mut().poll(context) {
                Poll::Ready(()) => {
                    self.timer = None;
                    if at > self.parts.runtime.now() {
                        // A timer that is early must not turn this in circles: the server would
                        // stand still meanwhile.
                        context.waker().wake_by_ref();
                        return Poll::Pending;
                    }
                    Poll::Ready(())
                }
                Poll::Pending => Poll::Pending,
            },
            None => Poll::Pending,
        }
    }
}

impl<R: Runtime> Drop for Driver<R> {
    fn drop(&mut self) {
        // Nobody steers the gates any more. If the process lives on, it must not be in the way.
        self.parts.shared.registry.end();
        self.parts.shared.state.set(Some(State::Exited));
        if self.parts.shared.drain.stage() < Stage::Cut && self.end.is_none() {
            self.parts.shared.drain.set(Stage::Cut);
        }
        if let Some(successor) = &mut self.successor
            && !successor.is_committed()
        {
            successor.kill();
            successor.reap_soon();
        }
    }
}

/// Why the service would end with this process, if it would.
fn unfollowed() -> Option<&'static str> {
    if std::process::id() == 1 {
        return Some(
            "this process is PID 1 and the container ends with it; run it below an init \
             (`docker run --init`) that forwards signals to the newest generation, or let the \
             orchestrator roll the container",
        );
    }
    crate::notify::main_process_of_manager_without_notify().then_some(
        "systemd follows only this process; give the unit `Type=notify` and `NotifyAccess=all`, \
         so that it can be told who took over",
    )
}
