//! How a driver ends: giving up, leaving, being dropped.

use super::*;

impl<R: Runtime> Driver<R> {
    pub(super) fn give_up(&mut self, why: GiveUp) {
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

    pub(super) fn exit(&mut self, now: Instant) {
        let successor = self.successor.as_ref().filter(|known| known.is_committed());
        let exit = Exit {
            successor: successor.map(|known| known.takeover.pid),
            drained: self.draining_since.map_or(Duration::ZERO, |since| now - since),
            cut: self.cut,
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

    pub(super) fn poll_end(&mut self, context: &mut Context<'_>) -> Option<Result<Exit>> {
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

    pub(super) fn poll_timer(&mut self, context: &mut Context<'_>) -> Poll<()> {
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
        if self.parts.shared.drain.stage() < Stage::Cut {
            self.parts.shared.drain.set(Stage::Cut);
        }
        if let Some(successor) = &mut self.successor
            && !successor.is_committed()
        {
            successor.end();
        }
    }
}
