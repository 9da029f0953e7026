use std::future::Future;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::pin::Pin;
use std::task::{Context, Poll, Waker, ready};
use std::time::{Duration, Instant};

use async_io::Async;
use futures::Stream;
use handover_core::{Runtime, Signal, SignalPipe, Sockets};

use crate::{TcpListener, UdpSocket, UnixDatagram, UnixListener};

/// smol, as the driver sees it: async-io, and whatever executor polls.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct Smol;

impl Smol {
    /// Starts async-io's poller if it does not run yet: its descriptors then have the same numbers
    /// in every generation, and do not race for them with those that are inherited.
    pub fn new() -> Self {
        let mut timer = async_io::Timer::after(Duration::from_secs(1));
        let _ = Pin::new(&mut timer).poll(&mut Context::from_waker(Waker::noop()));
        Smol
    }
}

impl Default for Smol {
    fn default() -> Self {
        Self::new()
    }
}

impl Runtime for Smol {
    type Timer = Timer;
    type Signals = Signals;
    type Watch = Watch;

    fn now(&self) -> Instant {
        Instant::now()
    }

    fn timer(&self, at: Instant) -> Timer {
        Timer(async_io::Timer::at(at))
    }

    fn signals(&self, signals: &[Signal]) -> io::Result<Signals> {
        Async::new_nonblocking(SignalPipe::new(signals)?).map(Signals)
    }

    fn watch(&self, descriptor: OwnedFd) -> io::Result<Watch> {
        // The flag means nothing to an epoll instance.
        Async::new_nonblocking(descriptor).map(Watch)
    }

    fn poll_readable<T>(
        watch: &mut Watch,
        context: &mut Context<'_>,
        mut operation: impl FnMut(BorrowedFd<'_>) -> io::Result<T>,
    ) -> Poll<io::Result<T>> {
        loop {
            // First the poller, then the descriptor: a poll without cause costs no system call.
            ready!(watch.0.poll_readable(context))?;
            match operation(watch.0.get_ref().as_fd()) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                result => return Poll::Ready(result),
            }
        }
    }
}

impl Sockets for Smol {
    type TcpListener = TcpListener;
    type UnixListener = UnixListener;
    type UdpSocket = UdpSocket;
    type UnixDatagram = UnixDatagram;
}

/// A timer.
#[derive(Debug)]
pub struct Timer(async_io::Timer);

impl Future for Timer {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        Pin::new(&mut self.0).poll(context).map(drop)
    }
}

/// Caught signals, as a stream.
#[derive(Debug)]
pub struct Signals(Async<SignalPipe>);

impl Stream for Signals {
    type Item = Signal;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Signal>> {
        loop {
            if let Some(signal) = self.0.get_ref().take() {
                return Poll::Ready(Some(signal));
            }
            if ready!(self.0.poll_readable(context)).is_err() {
                return Poll::Pending;
            }
        }
    }
}

/// A watched descriptor.
#[derive(Debug)]
pub struct Watch(Async<OwnedFd>);

impl AsFd for Watch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
