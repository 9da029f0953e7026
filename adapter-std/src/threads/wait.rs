//! One thread's waiting, by poll(2), for whatever its future waits for.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::time::Instant;

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::io::Errno;

thread_local! {
    /// What each `block_on` of this thread waits for; the innermost last.
    static WAITS: RefCell<Vec<Interests>> = const { RefCell::new(Vec::new()) };
    /// So that not every wait makes a descriptor.
    static SPARE: Cell<Option<Arc<Wakeup>>> = const { Cell::new(None) };
}

/// Each is forgotten when it has come true.
type Interests = Vec<(Interest, Waker)>;

/// What somebody waits for. Whoever asked holds it too: when nobody else does any more, it is of
/// no interest.
pub(crate) enum Interest {
    Readable(Arc<dyn AsFd + Send + Sync>),
    Time(Arc<Instant>),
}

impl Interest {
    fn is(&self, other: &Interest) -> bool {
        match (self, other) {
            (Interest::Readable(one), Interest::Readable(other)) => Arc::ptr_eq(one, other),
            (Interest::Time(one), Interest::Time(other)) => Arc::ptr_eq(one, other),
            _ => false,
        }
    }

    fn has_somebody(&self) -> bool {
        match self {
            Interest::Readable(descriptor) => Arc::strong_count(descriptor) > 1,
            Interest::Time(time) => Arc::strong_count(time) > 1,
        }
    }
}

/// Waits for a future on this thread: for [`Handle::restart`](crate::threads::Handle), a drain
/// signal, or a poll of one of this module's sockets, which only this function can wait for.
///
/// # Errors
/// Those of the system calls, for example that no descriptor is left for the wake-ups.
pub fn block_on<F: Future>(future: F) -> io::Result<F::Output> {
    let wakeup = match SPARE.take() {
        Some(wakeup) => wakeup,
        None => Arc::new(Wakeup(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?)),
    };
    let waker = Waker::from(Arc::clone(&wakeup));
    let _level = Level::enter();
    let mut future = pin!(future);
    loop {
        if let Poll::Ready(output) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
            SPARE.set(Some(wakeup));
            return Ok(output);
        }
        wait(&wakeup, &waker)?;
    }
}

/// Wakes `waker` once, when this has come true.
///
/// # Errors
/// No [`block_on`] is at work on this thread.
pub(crate) fn wake_at(interest: Interest, waker: &Waker) -> io::Result<()> {
    WAITS.with_borrow_mut(|waits| {
        let interests = waits.last_mut().ok_or_else(|| {
            let message = "only `handover::threads::block_on` can wait for this";
            io::Error::new(io::ErrorKind::Unsupported, message)
        })?;
        if !interests.iter().any(|(known, who)| known.is(&interest) && who.will_wake(waker)) {
            interests.push((interest, waker.clone()));
        }
        Ok(())
    })
}

/// One `block_on`, for as long as it lasts.
struct Level;

impl Level {
    fn enter() -> Self {
        WAITS.with_borrow_mut(|waits| waits.push(Interests::new()));
        Level
    }
}

impl Drop for Level {
    fn drop(&mut self) {
        let interests = WAITS.with_borrow_mut(Vec::pop);
        // Not while it is borrowed: what is dropped here may be anything.
        drop(interests);
    }
}

fn wait(wakeup: &Wakeup, own: &Waker) -> io::Result<()> {
    let mut interests =
        WAITS.with_borrow_mut(|waits| waits.last_mut().map(std::mem::take)).unwrap_or_default();
    interests.retain(|(interest, _)| interest.has_somebody());

    let mut polled = vec![PollFd::new(&wakeup.0, PollFlags::IN)];
    let mut until: Option<Instant> = None;
    for (interest, _) in &interests {
        match interest {
            Interest::Readable(descriptor) => {
                polled.push(PollFd::from_borrowed_fd(descriptor.as_fd(), PollFlags::IN));
            }
            Interest::Time(time) => until = Some(until.map_or(**time, |until| until.min(**time))),
        }
    }
    let patience = until.map(|until| until.saturating_duration_since(Instant::now()));
    let patience = patience.and_then(|patience| Timespec::try_from(patience).ok());
    match poll(&mut polled, patience.as_ref()) {
        Ok(_) | Err(Errno::INTR) => {}
        Err(error) => return Err(error.into()),
    }
    let ready: Vec<_> = polled.iter().map(|polled| !polled.revents().is_empty()).collect();

    let mut ready = ready.into_iter();
    let mut clear = ready.next() == Some(true);
    let now = Instant::now();
    let has_come = |(interest, _): &mut (Interest, Waker)| match interest {
        Interest::Readable(_) => ready.next() == Some(true),
        Interest::Time(time) => **time <= now,
    };
    let come: Vec<_> = interests.extract_if(.., has_come).collect();
    WAITS.with_borrow_mut(|waits| waits.last_mut().map(|waits| *waits = interests));
    for (_, waker) in come {
        // The future itself is polled next anyway.
        if !waker.will_wake(own) {
            waker.wake();
            clear = true;
        }
    }
    if clear {
        // Before the poll that sees to what these wake-ups were for.
        let _ = rustix::io::read(&wakeup.0, &mut [0; 8]);
    }
    Ok(())
}

/// Ends a wait, from any thread.
struct Wakeup(OwnedFd);

impl Wake for Wakeup {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        // It fails only when it is full, and so readable.
        let _ = rustix::io::write(&self.0, &1u64.to_ne_bytes());
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed test is to panic")]
mod tests {
    use super::*;
    use futures::FutureExt;
    use futures::stream::{FuturesUnordered, StreamExt};
    use std::future::poll_fn;
    use std::io::Write;
    use std::os::unix::net::UnixStream;
    use std::time::Duration;

    fn sleep(duration: Duration) -> impl Future<Output = ()> {
        let time = Arc::new(Instant::now() + duration);
        poll_fn(move |context| {
            if *time <= Instant::now() {
                return Poll::Ready(());
            }
            wake_at(Interest::Time(Arc::clone(&time)), context.waker()).unwrap();
            Poll::Pending
        })
    }

    fn readable(descriptor: Arc<UnixStream>) -> impl Future<Output = ()> {
        let mut asked = false;
        poll_fn(move |context| {
            if std::mem::replace(&mut asked, true) {
                return Poll::Ready(());
            }
            wake_at(Interest::Readable(descriptor.clone()), context.waker()).unwrap();
            Poll::Pending
        })
    }

    #[test]
    fn futures_in_one_wait_are_woken_each_by_its_own() {
        let (near, mut far) = UnixStream::pair().unwrap();
        let began = Instant::now();
        let order = block_on(async {
            let all = FuturesUnordered::new();
            all.push(sleep(Duration::from_millis(60)).map(|()| "late").boxed_local());
            all.push(readable(Arc::new(near)).map(|()| "readable").boxed_local());
            all.push(
                sleep(Duration::from_millis(20))
                    .map(|()| far.write_all(b"x").map(|()| "early").unwrap())
                    .boxed_local(),
            );
            all.collect::<Vec<_>>().await
        });
        // Both timers have fired at once, if this thread was not run for so long.
        let order = order.unwrap();
        let place = |of| order.iter().position(|name| *name == of).unwrap();
        assert!(order.len() == 3 && place("early") < place("readable"), "{order:?}");
        assert!(place("late") < 3 && began.elapsed() >= Duration::from_millis(60));
    }

    #[test]
    fn a_wait_inside_a_wait_takes_nobodys_wakeup() {
        let (sender, mut receiver) = futures::channel::mpsc::unbounded();
        let outer = block_on(poll_fn(|context| {
            if let Poll::Ready(got) = receiver.poll_next_unpin(context) {
                return Poll::Ready(got);
            }
            block_on(sleep(Duration::from_millis(5))).unwrap();
            sender.unbounded_send(7).unwrap();
            block_on(sleep(Duration::from_millis(5))).unwrap();
            Poll::Pending
        }));
        assert_eq!(outer.unwrap(), Some(7));
    }

    #[test]
    fn who_has_gone_is_not_waited_for() {
        let (near, _far) = UnixStream::pair().unwrap();
        let near = Arc::new(near);
        let mut polls = 0;
        block_on(poll_fn(|context| {
            polls += 1;
            if polls == 1 {
                wake_at(Interest::Readable(near.clone()), context.waker()).unwrap();
                drop(sleep(Duration::from_secs(600)));
                let waker = context.waker().clone();
                std::thread::spawn(move || waker.wake());
                return Poll::Pending;
            }
            Poll::Ready(())
        }))
        .unwrap();
        assert!(wake_at(Interest::Readable(near.clone()), Waker::noop()).is_err());
        assert_eq!(Arc::strong_count(&near), 1);
    }
}
