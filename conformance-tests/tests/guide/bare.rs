//! A runtime that has never heard of handover: one thread, one future, and a loop around `polling`.
//!
//! Nothing here belongs to an adapter; a real runtime has all of it already.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::future::Future;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Instant;

use futures::io::{AsyncRead, AsyncWrite};
use polling::{Event, Events, Poller};

thread_local! {
    static CURRENT: RefCell<Option<Arc<Reactor>>> = const { RefCell::new(None) };
}

struct Reactor {
    poller: Poller,
    woken: AtomicBool,
    next: AtomicUsize,
    waiting: Mutex<Waiting>,
}

#[derive(Default)]
struct Waiting {
    /// Who wants to read and who to write, for each source. It remembers one task for each.
    sources: HashMap<usize, [Option<Waker>; 2]>,
    timers: BTreeMap<(Instant, usize), Waker>,
}

/// Drives a future on this thread.
pub fn block_on<F: Future>(future: F) -> io::Result<F::Output> {
    let reactor = Arc::new(Reactor {
        poller: Poller::new()?,
        woken: AtomicBool::new(true),
        next: AtomicUsize::new(0),
        waiting: Mutex::default(),
    });
    CURRENT.set(Some(Arc::clone(&reactor)));
    let waker = Waker::from(Arc::clone(&reactor));
    let mut future = pin!(future);
    let mut events = Events::new();
    let output = loop {
        if reactor.woken.swap(false, Ordering::AcqRel) {
            let mut context = Context::from_waker(&waker);
            if let Poll::Ready(output) = future.as_mut().poll(&mut context) {
                break Ok(output);
            }
        }
        if let Err(error) = reactor.turn(&mut events) {
            break Err(error);
        }
    };
    CURRENT.set(None);
    output
}

impl Reactor {
    fn current() -> io::Result<Arc<Self>> {
        CURRENT
            .with_borrow(Clone::clone)
            .ok_or_else(|| io::Error::other("only inside `block_on` is anything watched"))
    }

    fn turn(&self, events: &mut Events) -> io::Result<()> {
        let first = self.waiting().timers.keys().next().map(|(at, _)| *at);
        let until = match self.woken.load(Ordering::Acquire) {
            true => Some(Instant::now()),
            false => first,
        };
        events.clear();
        match until {
            Some(until) => self.poller.wait_deadline(events, until)?,
            None => self.poller.wait(events, None)?,
        };
        let mut waiting = self.waiting();
        let mut woken = Vec::new();
        for event in events.iter() {
            // An event takes back the interest in both sides, so both ask again.
            if let Some(wakers) = waiting.sources.get_mut(&event.key) {
                woken.extend(wakers.iter_mut().filter_map(Option::take));
            }
        }
        let later = waiting.timers.split_off(&(Instant::now(), usize::MAX));
        woken.extend(std::mem::replace(&mut waiting.timers, later).into_values());
        drop(waiting);
        woken.into_iter().for_each(Waker::wake);
        Ok(())
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Wake for Reactor {
    fn wake(self: Arc<Self>) {
        if !self.woken.swap(true, Ordering::AcqRel) {
            // It fails only when it is full, and then the loop turns anyway.
            let _ = self.poller.notify();
        }
    }
}

/// Something with a descriptor, registered with the loop of the thread that made it.
pub struct Watched<T: AsFd> {
    /// `None` only once it has been taken out.
    inner: Option<T>,
    key: usize,
    reactor: Arc<Reactor>,
}

/// Which side of a descriptor to wait for.
#[derive(Clone, Copy)]
pub enum Side {
    Read,
    Write,
}

impl<T: AsFd> Watched<T> {
    /// Registers it.
    pub fn new(inner: T) -> io::Result<Self> {
        let reactor = Reactor::current()?;
        let key = reactor.next.fetch_add(1, Ordering::Relaxed);
        let source = inner.as_fd().as_raw_fd();
        #[expect(unsafe_code, reason = "`polling` cannot see how long a descriptor lives")]
        // SAFETY: the value owns its descriptor, and is deregistered before that is closed.
        unsafe {
            reactor.poller.add(source, Event::none(key))?;
        }
        reactor.waiting().sources.insert(key, [None, None]);
        Ok(Self { inner: Some(inner), key, reactor })
    }

    /// Deregisters it and gives it back.
    pub fn into_inner(mut self) -> io::Result<T> {
        let inner = self.inner.take().ok_or(io::ErrorKind::NotConnected)?;
        self.forget(&inner)?;
        Ok(inner)
    }

    /// Tries `operation`; while that would block, waits for the descriptor.
    pub fn poll_with<R>(
        &self,
        context: &Context<'_>,
        side: Side,
        mut operation: impl FnMut(&T) -> io::Result<R>,
    ) -> Poll<io::Result<R>> {
        match operation(self.inner()) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            result => return Poll::Ready(result),
        }
        // If it has become ready since, the poller will say so: it reports levels.
        let mut waiting = self.reactor.waiting();
        let wakers = waiting.sources.entry(self.key).or_default();
        wakers[side as usize] = Some(context.waker().clone());
        let [read, write] = [wakers[0].is_some(), wakers[1].is_some()];
        match self.reactor.poller.modify(self.inner(), Event::new(self.key, read, write)) {
            Ok(()) => Poll::Pending,
            Err(error) => Poll::Ready(Err(error)),
        }
    }

    #[expect(clippy::expect_used, reason = "only `into_inner` takes it, and that takes the value")]
    fn inner(&self) -> &T {
        self.inner.as_ref().expect("it has not been taken out")
    }

    fn forget(&self, inner: &T) -> io::Result<()> {
        self.reactor.waiting().sources.remove(&self.key);
        self.reactor.poller.delete(inner)
    }
}

impl<T: AsFd> Drop for Watched<T> {
    fn drop(&mut self) {
        if let Some(inner) = &self.inner {
            let _ = self.forget(inner);
        }
    }
}

impl<T: AsFd> AsFd for Watched<T> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.inner().as_fd()
    }
}

impl<T: AsFd> AsyncRead for Watched<T>
where
    for<'a> &'a T: io::Read,
{
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_with(context, Side::Read, |mut stream| io::Read::read(&mut stream, buffer))
    }
}

impl<T: AsFd> AsyncWrite for Watched<T>
where
    for<'a> &'a T: io::Write,
{
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_with(context, Side::Write, |mut stream| io::Write::write(&mut stream, bytes))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_close(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        use rustix::net::Shutdown;
        match rustix::net::shutdown(self.as_fd(), Shutdown::Write) {
            // The peer has closed first.
            Ok(()) | Err(rustix::io::Errno::NOTCONN) => Poll::Ready(Ok(())),
            Err(errno) => Poll::Ready(Err(errno.into())),
        }
    }
}

// A stream that it holds never moves in memory on its own account.
impl<T: AsFd> Unpin for Watched<T> {}

/// Resolves when its time has come.
pub struct Sleep {
    at: Instant,
    key: Option<(usize, Arc<Reactor>)>,
}

impl Sleep {
    pub fn until(at: Instant) -> Self {
        Self { at, key: None }
    }
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        if self.at <= Instant::now() {
            return Poll::Ready(());
        }
        if self.key.is_none() {
            let Ok(reactor) = Reactor::current() else { return Poll::Pending };
            self.key = Some((reactor.next.fetch_add(1, Ordering::Relaxed), reactor));
        }
        if let Some((key, reactor)) = &self.key {
            reactor.waiting().timers.insert((self.at, *key), context.waker().clone());
        }
        Poll::Pending
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        if let Some((key, reactor)) = &self.key {
            reactor.waiting().timers.remove(&(self.at, *key));
        }
    }
}
