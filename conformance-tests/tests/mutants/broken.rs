//! The guide's adapter with one thing broken, which is chosen when the process starts.

use std::any::Any;
use std::io;
use std::net;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net as unix;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Wake, Waker, ready};
use std::time::{Duration, Instant};

use futures::future::BoxFuture;
use futures::io::{AsyncRead, AsyncWrite};
use futures::{FutureExt, Stream};
use handover_core::{
    Claim, Drain, Gated, Guard, Listener, Runtime, Signal, SignalPipe, Sockets, Source,
};
use rustix::io::{FdFlags, fcntl_setfd};

use crate::bare::{Side, Sleep, Watched};
use crate::catalogue::Mutation;

/// What is broken in this process.
static BROKEN: LazyLock<Option<Mutation>> = LazyLock::new(Mutation::of_this_process);

fn is(mutation: Mutation) -> bool {
    *BROKEN == Some(mutation)
}

const HOUR: Duration = Duration::from_secs(3_600);

/// Whether this process has a predecessor.
pub static INHERITS: AtomicBool = AtomicBool::new(false);

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The same context, or one whose wake-ups are lost.
fn deaf_if<'a>(mutation: Mutation, context: &'a Context<'_>) -> Context<'a> {
    Context::from_waker(if is(mutation) { Waker::noop() } else { context.waker() })
}

/// What a task that was told to wait gets besides.
fn unasked(context: &Context<'_>) {
    /// Whoever waits for anything.
    static SLEEPERS: Mutex<Vec<Waker>> = Mutex::new(Vec::new());
    static TICKS: LazyLock<io::Result<()>> = LazyLock::new(|| {
        let ticks = std::thread::Builder::new().name("ticks".into());
        let ticking = ticks.spawn(|| {
            loop {
                std::thread::sleep(Duration::from_millis(7));
                std::mem::take(&mut *lock(&SLEEPERS)).into_iter().for_each(Waker::wake);
            }
        });
        ticking.map(drop)
    });
    if is(Mutation::WakesSpuriously) && TICKS.is_ok() {
        let mut sleepers = lock(&SLEEPERS);
        if !sleepers.iter().any(|known| known.will_wake(context.waker())) {
            sleepers.push(context.waker().clone());
        }
    }
    if is(Mutation::SpuriousWakeUpsSpin) {
        context.waker().wake_by_ref();
    }
}

// What the driver needs.

#[derive(Debug, Clone, Copy)]
pub struct Broken;

impl Runtime for Broken {
    type Timer = Timer;
    type Signals = Signals;
    type Watch = Watched<OwnedFd>;

    fn now(&self) -> Instant {
        /// As in a process that has run for an hour.
        static BEGINNING: LazyLock<Instant> = LazyLock::new(|| Instant::now() - HOUR);
        match *BROKEN {
            Some(Mutation::TheClockRunsSlow) => *BEGINNING + BEGINNING.elapsed() / 2,
            // A deadline that passes while this process is not run would be seen without a timer.
            Some(Mutation::DeadlinesAreIgnored) => *BEGINNING,
            _ => Instant::now(),
        }
    }

    fn timer(&self, at: Instant) -> Timer {
        Timer(Sleep::until(match *BROKEN {
            // Later than a busy machine may be, and sooner than a case gives up.
            Some(Mutation::TimersFireLate) => at + Duration::from_secs(16),
            Some(Mutation::DeadlinesAreIgnored) => Instant::now() + HOUR,
            Some(Mutation::TimersFireEarly) => Instant::now(),
            _ => at,
        }))
    }

    fn signals(&self, signals: &[Signal]) -> io::Result<Signals> {
        static TAKEN: AtomicBool = AtomicBool::new(false);
        let pipe = Watched::new(SignalPipe::new(signals)?)?;
        let is_second = TAKEN.swap(true, Ordering::Relaxed);
        Ok(Signals {
            pipe: (!is_second || !is(Mutation::OtherHandlersAreSilenced)).then_some(pipe),
            again: None,
            has_begun: false,
        })
    }

    fn watch(&self, descriptor: OwnedFd) -> io::Result<Self::Watch> {
        if is(Mutation::TheWatchIsInherited) {
            fcntl_setfd(&descriptor, FdFlags::empty())?;
        }
        if is(Mutation::TheWatchOutlivesRun) {
            std::mem::forget(descriptor.try_clone()?);
        }
        if is(Mutation::OneDescriptorLeaksAGeneration) {
            std::mem::forget(rustix::io::dup(std::io::stdin())?);
        }
        Watched::new(descriptor)
    }

    fn poll_readable<T>(
        watch: &mut Self::Watch,
        context: &mut Context<'_>,
        mut operation: impl FnMut(BorrowedFd<'_>) -> io::Result<T>,
    ) -> Poll<io::Result<T>> {
        unasked(context);
        let context = deaf_if(Mutation::ReadinessWakesNobody, context);
        watch.poll_with(&context, Side::Read, |epoll| operation(epoll.as_fd()))
    }
}

pub struct Timer(Sleep);

impl Future for Timer {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        unasked(context);
        // Its time may have come before it is first polled, which nobody would have to wake.
        if is(Mutation::TimersNeverFire) {
            return Poll::Pending;
        }
        self.0.poll_unpin(context)
    }
}

pub struct Signals {
    /// `None`: somebody else has them.
    pipe: Option<Watched<SignalPipe>>,
    again: Option<Signal>,
    has_begun: bool,
}

impl Stream for Signals {
    type Item = Signal;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Signal>> {
        unasked(context);
        let this = &mut *self;
        let Some(pipe) = &this.pipe else { return Poll::Pending };
        if !std::mem::replace(&mut this.has_begun, true) && is(Mutation::EarlySignalsAreLost) {
            let _ = pipe.poll_with(context, Side::Read, |pipe| {
                while pipe.take().is_some() {}
                Ok(())
            });
        }
        if let Some(again) = this.again.take() {
            return Poll::Ready(Some(again));
        }
        let taken = pipe.poll_with(context, Side::Read, |pipe| {
            pipe.take().ok_or_else(|| io::ErrorKind::WouldBlock.into())
        });
        let signal = ready!(taken).ok();
        this.again = signal.filter(|_| is(Mutation::SignalsComeTwice));
        Poll::Ready(signal)
    }
}

// Sockets.

/// A socket's registration, which claims to know every task that waits.
pub struct Registered<T: AsFd> {
    watched: Watched<T>,
    tasks: Arc<Tasks>,
}

#[derive(Default)]
struct Tasks(Mutex<Vec<Waker>>);

impl Wake for Tasks {
    fn wake(self: Arc<Self>) {
        let tasks = std::mem::take(&mut *lock(&self.0));
        tasks.into_iter().for_each(Waker::wake);
    }
}

impl<T: Socket> Registered<T> {
    fn poll_with<R>(
        &self,
        context: &Context<'_>,
        operation: impl FnMut(&T) -> io::Result<R>,
    ) -> Poll<io::Result<R>> {
        unasked(context);
        let mut tasks = lock(&self.tasks.0);
        if is(Mutation::OnlyTheLastTaskIsKnown) {
            tasks.clear();
        }
        if !tasks.iter().any(|known| known.will_wake(context.waker())) {
            tasks.push(context.waker().clone());
        }
        drop(tasks);
        let waker = Waker::from(Arc::clone(&self.tasks));
        let context = Context::from_waker(&waker);
        let context = deaf_if(Mutation::AcceptWakesNobody, &context);
        self.watched.poll_with(&context, Side::Read, operation)
    }
}

impl<T: AsFd> AsFd for Registered<T> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.watched.as_fd()
    }
}

/// A socket of the standard library.
pub trait Socket: AsFd + From<OwnedFd> + Into<OwnedFd> + Send + Sync + 'static {}

impl<T: AsFd + From<OwnedFd> + Into<OwnedFd> + Send + Sync + 'static> Socket for T {}

impl<T: Socket> Source for Registered<T> {
    const KNOWS_EVERY_TASK: bool = true;

    fn attach(mut descriptor: OwnedFd) -> io::Result<Self> {
        match *BROKEN {
            Some(Mutation::NonblockIsClearedAtTheStart) => set_blocking(&descriptor)?,
            Some(Mutation::ListenersAreInherited) => {
                fcntl_setfd(&descriptor, FdFlags::empty())?;
            }
            Some(Mutation::InheritedSocketsAreBoundAnew) if INHERITS.load(Ordering::Relaxed) => {
                let fresh = net::TcpListener::bind("127.0.0.1:0")?;
                fresh.set_nonblocking(true)?;
                descriptor = fresh.into();
            }
            _ => {}
        }
        let watched = Watched::new(T::from(descriptor))?;
        Ok(Self { watched, tasks: Arc::default() })
    }

    fn detach(self) -> io::Result<OwnedFd> {
        match *BROKEN {
            Some(Mutation::DetachLeavesTheRegistration) => {
                let copy = self.watched.as_fd().try_clone_to_owned();
                std::mem::forget(self);
                copy
            }
            Some(Mutation::DrainingClosesTheListener) => {
                drop(self.watched.into_inner()?);
                Err(io::Error::other("this adapter closes its listeners when it stops to accept"))
            }
            Some(Mutation::NonblockIsClearedAtTheDrain) => {
                let socket = self.watched.into_inner()?.into();
                set_blocking(&socket)?;
                Ok(socket)
            }
            _ => self.watched.into_inner().map(Into::into),
        }
    }
}

fn set_blocking(socket: &OwnedFd) -> io::Result<()> {
    Ok(rustix::io::ioctl_fionbio(socket, false)?)
}

/// A listening socket of the standard library.
pub trait Acceptor: Socket {
    type Stream: AsFd + Send + Sync + 'static;

    fn accept(&self) -> io::Result<Self::Stream>;
}

impl Acceptor for net::TcpListener {
    type Stream = net::TcpStream;

    fn accept(&self) -> io::Result<net::TcpStream> {
        let stream = self.accept()?.0;
        stream.set_nonblocking(true)?;
        Ok(stream)
    }
}

impl Acceptor for unix::UnixListener {
    type Stream = unix::UnixStream;

    fn accept(&self) -> io::Result<unix::UnixStream> {
        let stream = self.accept()?.0;
        stream.set_nonblocking(true)?;
        Ok(stream)
    }
}

/// All listeners of this process, in the order in which they were claimed.
static LISTENERS: Mutex<Vec<Box<dyn Any + Send + Sync>>> = Mutex::new(Vec::new());

pub struct BrokenListener<T: Acceptor> {
    gate: Gated<Registered<T>>,
    number: usize,
    /// A way around the gate, through a copy of the socket.
    around: Arc<Mutex<Option<Watched<T>>>>,
    has_accepted: Arc<AtomicBool>,
}

impl<T: Acceptor> Clone for BrokenListener<T> {
    fn clone(&self) -> Self {
        Self {
            gate: self.gate.clone(),
            number: self.number,
            around: Arc::clone(&self.around),
            has_accepted: Arc::clone(&self.has_accepted),
        }
    }
}

impl<T: Acceptor> From<Claim> for BrokenListener<T> {
    fn from(claim: Claim) -> Self {
        let gate = Gated::from(claim);
        let mut all = lock(&LISTENERS);
        all.push(Box::new(gate.clone()));
        Self { gate, number: all.len() - 1, around: Arc::default(), has_accepted: Arc::default() }
    }
}

impl<T: Acceptor> BrokenListener<T> {
    /// Its own gate, or its neighbour's.
    fn gate(&self) -> Gated<Registered<T>> {
        let all = lock(&LISTENERS);
        let other = all.get(self.number ^ 1).and_then(|other| other.downcast_ref());
        let swapped = other.filter(|_| is(Mutation::NamesAreSwapped)).cloned();
        swapped.unwrap_or_else(|| self.gate.clone())
    }

    fn poll_around(&self, context: &Context<'_>) -> Poll<io::Result<T::Stream>> {
        let mut around = lock(&self.around);
        if around.is_none() {
            let copy = self.gate.with_socket(|socket| socket.try_clone_to_owned());
            let Some(Ok(copy)) = copy else { return Poll::Pending };
            *around = Some(Watched::new(T::from(copy))?);
        }
        match &*around {
            Some(around) => around.poll_with(context, Side::Read, T::accept),
            None => Poll::Pending,
        }
    }
}

impl<T: Acceptor> Listener for BrokenListener<T> {
    type Connection = Connection<T::Stream>;

    fn poll_accept(&self, context: &mut Context<'_>) -> Poll<io::Result<Option<Self::Connection>>> {
        static ACCEPTED: AtomicUsize = AtomicUsize::new(0);
        loop {
            let accepted = self
                .gate()
                .poll_accept(context, |socket, context| socket.poll_with(context, T::accept));
            let has_accepted = self.has_accepted.load(Ordering::Relaxed);
            let Poll::Ready(accepted) = accepted? else {
                let goes_around = match *BROKEN {
                    Some(Mutation::AcceptGoesOnWhileDraining) => has_accepted,
                    Some(Mutation::AcceptsBeforeTheCommit) => !has_accepted,
                    _ => false,
                };
                if !goes_around {
                    return Poll::Pending;
                }
                let stream = Watched::new(ready!(self.poll_around(context))?)?;
                return Poll::Ready(Ok(Some(Connection::new(stream, None, self.gate.drain()))));
            };
            self.has_accepted.store(true, Ordering::Relaxed);
            let Some((stream, guard)) = accepted else { return Poll::Ready(Ok(None)) };
            let number = ACCEPTED.fetch_add(1, Ordering::Relaxed);
            if is(Mutation::EveryTenthConnectionIsDropped) && number % 10 == 9 {
                continue;
            }
            let guard = match *BROKEN {
                Some(Mutation::GuardsAreDroppedEarly) => None,
                Some(Mutation::GuardsAreKept) => {
                    std::mem::forget(guard);
                    None
                }
                _ => Some(guard),
            };
            let stream = Watched::new(stream)?;
            return Poll::Ready(Ok(Some(Connection::new(stream, guard, self.gate.drain()))));
        }
    }
}

/// An accepted connection.
pub struct Connection<S: AsFd> {
    stream: Watched<S>,
    #[expect(dead_code, reason = "it counts the connection until it is dropped")]
    guard: Option<Guard>,
    drain: Drain,
    closing: BoxFuture<'static, ()>,
}

impl<S: AsFd> Connection<S> {
    fn new(stream: Watched<S>, guard: Option<Guard>, drain: &Drain) -> Self {
        Self { stream, guard, drain: drain.clone(), closing: drain.closing().boxed() }
    }
}

impl<S: AsFd> AsyncRead for Connection<S>
where
    Watched<S>: AsyncRead,
{
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        unasked(context);
        let read = Pin::new(&mut self.stream).poll_read(context, buffer);
        if read.is_pending()
            && is(Mutation::IdleConnectionsEndAtTheSwitch)
            && self.closing.poll_unpin(context).is_ready()
        {
            return Poll::Ready(Ok(0));
        }
        read
    }
}

impl<S: AsFd> AsyncWrite for Connection<S>
where
    Watched<S>: AsyncWrite,
{
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        const STATUS: &[u8] = b"HTTP/1.1 200 OK\r\n";
        if is(Mutation::EveryAnswerOfADrainSaysClose)
            && self.drain.is_closing()
            && let Some(rest) = bytes.strip_prefix(STATUS)
        {
            let other = [STATUS, b"Connection: close\r\n", rest].concat();
            // An answer is short: it goes out as a whole.
            let written = Pin::new(&mut self.stream).poll_write(context, &other);
            return written.map_ok(|_| bytes.len());
        }
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_close(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_close(context)
    }
}

impl Sockets for Broken {
    type TcpListener = BrokenListener<net::TcpListener>;
    type UnixListener = BrokenListener<unix::UnixListener>;
    type UdpSocket = UdpSocket;
    type UnixDatagram = UnixDatagram;
}

handover_core::datagrams! {
    /// A UDP socket of a broken adapter.
    UdpSocket(Registered<net::UdpSocket>);
    receive: |socket: &Registered<net::UdpSocket>, context, buffer: &mut [u8]| {
        static RECEIVED: AtomicUsize = AtomicUsize::new(0);
        socket.poll_with(context, |socket| loop {
            let received = socket.recv_from(buffer)?;
            let number = RECEIVED.fetch_add(1, Ordering::Relaxed);
            if !is(Mutation::EveryTenthDatagramIsDropped) || number % 10 != 9 {
                return Ok(received);
            }
        })
    }
}

handover_core::datagrams! {
    /// A Unix datagram socket of a broken adapter.
    UnixDatagram(Registered<unix::UnixDatagram>);
    receive: |socket: &Registered<unix::UnixDatagram>, context, buffer: &mut [u8]| {
        socket.poll_with(context, |socket| socket.recv_from(buffer))
    }
}
