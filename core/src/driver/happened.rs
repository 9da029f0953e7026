//! What happened since the last poll, as the machine's inputs.

use super::*;

impl<R: Runtime> Driver<R> {
    pub(super) fn collect(&mut self, context: &mut Context<'_>) {
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

    pub(super) fn settle_from_now(&mut self) {
        self.settle_at = (!self.parts.shared.registry.is_settled())
            .then(|| self.parts.runtime.now() + HANDSHAKE);
    }

    pub(super) fn poll_settle(&mut self) {
        let now = self.parts.runtime.now();
        if self.settle_at.is_some_and(|at| at <= now) {
            self.settle_at = (!self.parts.shared.registry.settle()).then(|| now + RECHECK);
        }
    }

    /// Reads what is there until nothing is: only then will the runtime wake us for more.
    pub(super) fn poll_descriptors(&mut self, context: &mut Context<'_>) {
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

    pub(super) fn ready(&mut self, tokens: &[Token]) {
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

    pub(super) fn read_predecessor(&mut self) {
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

    pub(super) fn read_successor(&mut self) {
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

    pub(super) fn flush_successor(&mut self) {
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
    pub(super) fn bury(&mut self) {
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

    pub(super) fn forget_older(&mut self) {
        let poller = &self.poller;
        self.parts.older.retain(|older| {
            let alive = older.is_alive();
            if !alive {
                poller.remove(older.pidfd.as_fd());
            }
            alive
        });
    }

    pub(super) fn poll_begin(&mut self, context: &mut Context<'_>) {
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

    pub(super) fn poll_signals(&mut self, context: &mut Context<'_>) {
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

    pub(super) fn considered(&mut self, considered: Considered) {
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

    pub(super) fn ask_restart(&mut self, reply: Option<Reply>) {
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

    pub(super) fn ask_stop(&mut self) {
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
