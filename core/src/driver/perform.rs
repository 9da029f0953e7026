//! What the machine says, done.

use super::*;

impl<R: Runtime> Driver<R> {
    /// Carries out what the machine says; whether that was anything.
    pub(super) fn act(&mut self) -> bool {
        let mut acted = false;
        while let Some(action) = self.machine.poll_action() {
            tracing::trace!(?action);
            self.perform(action);
            acted = true;
        }
        acted
    }

    pub(super) fn perform(&mut self, action: Action) {
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
                    // Instead of what an earlier attempt may have left there.
                    let next = self.parts.shared.generation + 1;
                    self.notify(|notifier| notifier.status(&format!("generation {next} serves")));
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
            Action::Cut => {
                // Counted when nothing accepts any more, and before those that are cut hear of it.
                self.parts.shared.registry.end();
                self.cut = self.parts.shared.registry.in_flight.count();
                self.parts.shared.drain.set(Stage::Cut);
            }
            Action::Alone => {
                tracing::info!("the predecessor is gone");
                self.run_after(Event::Alone);
            }
            Action::GiveUp(why) => self.give_up(why),
            Action::Exit => self.exit(now),
        }
    }

    pub(super) fn vet(&mut self, number: Attempt, now: Instant) {
        tracing::info!(attempt = number, "restart");
        self.forget_older();
        let cap = self.parts.policy.generations;
        let crowded = self.parts.older.len() >= cap.max(1);
        if crowded && let Some(oldest) = self.parts.older.first() {
            tracing::info!(pid = oldest.pid, "asking the oldest generation to end its linger");
            let _ = rustix::io::write(&oldest.hurry, &1u64.to_ne_bytes());
        }
        let room = crowded.then_some(cap.max(1));
        let vetting = self.sealing(Event::Restart);
        let reply = self.asking.take();
        self.successor = Some(Successor::new(number, reply, room, vetting, now));
    }

    pub(super) fn spawn(&mut self) {
        let Some(successor) = &mut self.successor else { return };
        let now = self.parts.runtime.now();
        successor.step(now, |steps, took| steps.prepare = took);
        self.notify(Notifier::reloading);
        let Some(successor) = &mut self.successor else { return };
        let parts = &self.parts;
        if let Err(error) = successor.spawn(parts.launch.clone(), parts.policy.instance.clone()) {
            successor.log.os_error(&error);
            successor.log.detail(format!("prepare the start: {error}"));
            self.inputs.push(Input::SpawnFailed(successor.number));
        }
    }

    /// Watches the process and the socket of an attempt that has just been started.
    pub(super) fn adopt_spawned(&mut self) {
        let Some(successor) = &mut self.successor else { return };
        if let Err(error) = successor.watch(&self.poller) {
            successor.log.os_error(&error);
            successor.log.detail(format!("watch the successor: {error}"));
            self.inputs.push(Input::Successor(successor.number, Heard::Garbage));
        }
    }

    pub(super) fn offer(&mut self, number: Attempt) {
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

    pub(super) fn offer_failed(&mut self, number: Attempt, error: &io::Error) {
        use io::ErrorKind::{BrokenPipe, ConnectionReset};
        let Some(successor) = &mut self.successor else { return };
        // If it has closed its end, what it said before that is read next.
        if !matches!(error.kind(), BrokenPipe | ConnectionReset) {
            successor.log.os_error(error);
            successor.log.detail(format!("offer the descriptors: {error}"));
            self.inputs.push(Input::Successor(number, Heard::Garbage));
        }
    }

    pub(super) fn seal(&mut self, now: Instant) {
        let sealing = self.sealing(Event::Commit);
        if let Some(successor) = &mut self.successor {
            successor.step(now, |steps, took| steps.ready = took);
            successor.seal(sealing);
        }
    }

    /// The hooks before this event, and the state after them.
    fn sealing(&mut self, event: Event) -> attempt::Sealing {
        let hooks = self.parts.hooks.run(When::Before, event);
        attempt::seal(hooks, self.parts.providers.clone(), self.parts.policy.state_limit)
    }

    pub(super) fn open(&mut self) {
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

    pub(super) fn lame_duck(&mut self) {
        tracing::info!("not ready any more");
        self.parts.shared.ready.store(false, Ordering::Release);
        self.notify(Notifier::stopping);
    }

    pub(super) fn forget(&mut self, number: Attempt) {
        let Some(mut successor) = self.successor.take_if(|known| known.number == number) else {
            return;
        };
        if let Some(channel) = &successor.channel {
            self.poller.remove(channel.as_fd());
        }
        // A wrapper may outlive its successor for a moment: it must still be reaped.
        self.children.extend(successor.release_child(&self.poller));
    }

    pub(super) fn report(
        &mut self,
        number: Attempt,
        outcome: std::result::Result<(), Failure>,
        now: Instant,
    ) {
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

    pub(super) fn answer(
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

    pub(super) fn say(&mut self, frame: &Frame) {
        if let Some(upstream) = &mut self.parts.upstream {
            // If the predecessor is gone, its end of the socket says so.
            let _ = upstream.channel.send(frame, Vec::new());
        }
    }

    pub(super) fn drop_upstream(&mut self) {
        if let Some(upstream) = self.parts.upstream.take() {
            self.poller.remove(upstream.channel.as_fd());
            self.poller.remove(upstream.pidfd.as_fd());
        }
    }

    pub(super) fn run_after(&mut self, event: Event) {
        if let Some(hooks) = self.parts.hooks.run(When::After, event) {
            self.afterwards.push(Box::pin(async move {
                if let Err(error) = hooks.await {
                    tracing::warn!(?event, %error, "hook after");
                }
            }));
        }
    }

    pub(super) fn notify(&self, tell: impl FnOnce(&Notifier) -> io::Result<()>) {
        if let Some(notifier) = &self.notifier
            && let Err(error) = tell(notifier)
        {
            tracing::warn!(%error, "the service manager could not be told");
        }
    }

    /// Asks the service manager to say when it has read everything so far.
    pub(super) fn raise_barrier(&mut self) {
        let Some(notifier) = &self.notifier else { return };
        self.barrier = notifier.barrier().ok();
        if let Some(barrier) = &self.barrier
            && self.poller.add(Token::Barrier, barrier.as_fd()).is_err()
        {
            self.barrier = None;
        }
    }
}
