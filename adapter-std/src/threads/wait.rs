//! One thread's waiting, by poll(2), for whatever its future waits for.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::pin::pin;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Instant;

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::io::Errno;

thread_local! {
    /// What the innermost `block_on` of this thread waits for; `None` outside of any.
    static WAITS: RefCell<Option<Waits>> = const { RefCell::new(None) };
    /// So that not every wait makes a descriptor.
    static SPARE: Cell<Option<Arc<Wakeup>>> = const { Cell::new(None) };
}

/// Each is forgotten when it has come, or when nobody else holds it any more.
type Waits = Vec<(Weak<dyn Event>, Waker)>;

/// A descriptor that becomes readable, or a moment.
trait Event: Send + Sync {
    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    fn time(&self) -> Option<Instant> {
        None
    }
}

impl<T: AsFd + Send + Sync> Event for T {
    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        Some(self.as_fd())
    }
}

#[derive(Debug)]
pub(crate) struct Moment(pub(crate) Instant);

impl Event for Moment {
    fn time(&self) -> Option<Instant> {
        Some(self.0)
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
    let _outer = Outer(WAITS.replace(Some(Waits::new())));
    let mut future = pin!(future);
    loop {
        if let Poll::Ready(output) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
            SPARE.set(Some(wakeup));
            return Ok(output);
        }
        wait(&wakeup, &waker)?;
    }
}

/// What a `block_on` around this one waits for.
struct Outer(Option<Waits>);

impl Drop for Outer {
    fn drop(&mut self) {
        WAITS.replace(self.0.take());
    }
}

fn wait(wakeup: &Wakeup, own: &Waker) -> io::Result<()> {
    let waits = WAITS.replace(Some(Waits::new())).unwrap_or_default();
    let events: Vec<_> =
        waits.into_iter().filter_map(|(event, waker)| Some((event.upgrade()?, waker))).collect();
    let mut polled = vec![PollFd::new(&wakeup.0, PollFlags::IN)];
    let descriptors = events.iter().filter_map(|(event, _)| event.descriptor());
    polled.extend(descriptors.map(|it| PollFd::from_borrowed_fd(it, PollFlags::IN)));
    let until = events.iter().filter_map(|(event, _)| event.time()).min();
    let patience = until.map(|until| until.saturating_duration_since(Instant::now()));
    let patience = patience.and_then(|patience| Timespec::try_from(patience).ok());
    match poll(&mut polled, patience.as_ref()) {
        Ok(_) | Err(Errno::INTR) => {}
        Err(error) => return Err(error.into()),
    }
    let mut ready = polled.iter().map(|polled| !polled.revents().is_empty());
    let mut clear = ready.next() == Some(true);
    let now = Instant::now();
    let has_come = |(event, _): &&(Arc<dyn Event>, Waker)| match event.time() {
        Some(time) => time <= now,
        None => ready.next() == Some(true),
    };
    let (come, waiting): (Vec<_>, Vec<_>) = events.iter().partition(has_come);
    let waiting = waiting.into_iter().map(|(event, waker)| (Arc::downgrade(event), waker.clone()));
    WAITS.replace(Some(waiting.collect()));
    // The future itself is polled next anyway.
    for (_, waker) in come.into_iter().filter(|(_, waker)| !waker.will_wake(own)) {
        waker.wake_by_ref();
        clear = true;
    }
    if clear {
        // Before the poll that sees to what these wake-ups were for.
        let _ = rustix::io::read(&wakeup.0, &mut [0; 8]);
    }
    Ok(())
}

/// Wakes `waker` once, when the event has come; an error where no `block_on` is at work.
fn wait_for(event: &Arc<dyn Event>, waker: &Waker) -> io::Result<()> {
    WAITS.with_borrow_mut(|waits| {
        let waits = waits.as_mut().ok_or_else(|| {
            let message = "only `handover::threads::block_on` can wait for this";
            io::Error::new(io::ErrorKind::Unsupported, message)
        })?;
        let event = Arc::downgrade(event);
        if !waits.iter().any(|(known, who)| known.ptr_eq(&event) && who.will_wake(waker)) {
            waits.push((event, waker.clone()));
        }
        Ok(())
    })
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

/// Something that [`block_on`] can wait for, by a descriptor or until a moment.
#[derive(Debug)]
pub struct Watch<T = OwnedFd>(Arc<T>);

#[expect(private_bounds, reason = "nothing in here is public")]
impl<T: Event + 'static> Watch<T> {
    pub(crate) fn new(inner: T) -> Self {
        Self(Arc::new(inner))
    }

    /// Tries `operation`, and waits while it would block.
    pub(crate) fn poll_with<R>(
        &self,
        context: &Context<'_>,
        operation: impl FnOnce(&T) -> io::Result<R>,
    ) -> Poll<io::Result<R>> {
        match operation(&self.0) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            result => return Poll::Ready(result),
        }
        let event: Arc<dyn Event> = self.0.clone();
        wait_for(&event, context.waker())
            .map_or_else(|error| Poll::Ready(Err(error)), |()| Poll::Pending)
    }
}

impl<T: AsFd> AsFd for Watch<T> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed test is to panic")]
mod tests {
    use super::*;
    use crate::threads::Threads;
    use futures::FutureExt;
    use futures::stream::{FuturesUnordered, StreamExt};
    use handover_core::Runtime;
    use std::future::poll_fn;
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;
    use std::time::Duration;

    fn sleep(duration: Duration) -> impl Future<Output = ()> {
        Threads.timer(Instant::now() + duration)
    }

    fn watched() -> (Watch<UnixStream>, UnixStream) {
        let (near, far) = UnixStream::pair().unwrap();
        near.set_nonblocking(true).unwrap();
        (Watch::new(near), far)
    }

    fn poll_byte(watch: &Watch<UnixStream>, context: &Context<'_>) -> Poll<io::Result<()>> {
        watch.poll_with(context, |mut stream| stream.read_exact(&mut [0]))
    }

    #[test]
    fn several_wait_in_one_and_each_sees_its_own() {
        let (near, mut far) = watched();
        let began = Instant::now();
        let order = block_on(async {
            let all = FuturesUnordered::new();
            all.push(sleep(Duration::from_millis(60)).map(|()| "late").boxed_local());
            let byte = poll_fn(|context| poll_byte(&near, context));
            all.push(byte.map(|read| read.map(|()| "readable").unwrap()).boxed_local());
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
        let (near, mut far) = watched();
        let (sender, mut receiver) = futures::channel::mpsc::unbounded();
        let mut polls = 0;
        block_on(poll_fn(|context| {
            polls += 1;
            match polls {
                // It waits for a message, which comes while it waits for something else.
                1 => {
                    assert!(receiver.poll_next_unpin(context).is_pending());
                    block_on(sleep(Duration::from_millis(5))).unwrap();
                    sender.unbounded_send(7).unwrap();
                    block_on(sleep(Duration::from_millis(5))).unwrap();
                    Poll::Pending
                }
                // Then for a byte, the same way.
                2 => {
                    assert_eq!(receiver.poll_next_unpin(context), Poll::Ready(Some(7)));
                    assert!(poll_byte(&near, context).is_pending());
                    far.write_all(b"x").unwrap();
                    block_on(sleep(Duration::from_millis(5))).unwrap();
                    Poll::Pending
                }
                _ => poll_byte(&near, context),
            }
        }))
        .unwrap()
        .unwrap();
    }

    #[test]
    fn who_has_gone_is_not_waited_for() {
        let (near, mut far) = watched();
        let mut near = Some(near);
        let mut polls = 0;
        block_on(poll_fn(|context| {
            polls += 1;
            if polls == 1 {
                assert!(poll_byte(near.as_ref().unwrap(), context).is_pending());
                drop(near.take());
                let waker = context.waker().clone();
                std::thread::spawn(move || waker.wake());
                // Nothing of it is open any more, whatever the thread goes on waiting for.
                assert_eq!(far.read(&mut [0]).unwrap(), 0);
                return Poll::Pending;
            }
            Poll::Ready(())
        }))
        .unwrap();
    }

    #[test]
    fn who_wakes_itself_wakes_nobody_else() {
        let (near, _far) = watched();
        let (mut polls, mut others) = (0, 0);
        block_on(async {
            let all = FuturesUnordered::new();
            let other = poll_fn(|context| {
                others += 1;
                poll_byte(&near, context).map(drop)
            });
            all.push(other.boxed_local());
            let once_more = poll_fn(|context| {
                polls += 1;
                context.waker().wake_by_ref();
                if polls < 10 { Poll::Pending } else { Poll::Ready(()) }
            });
            all.push(once_more.boxed_local());
            pin!(all).next().await
        })
        .unwrap();
        assert_eq!(others, 1);
    }

    #[test]
    fn nothing_waits_outside() {
        let (near, _far) = watched();
        let context = Context::from_waker(Waker::noop());
        let Poll::Ready(Err(error)) = poll_byte(&near, &context) else { unreachable!() };
        assert_eq!(error.kind(), io::ErrorKind::Unsupported);
    }
}
