use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Instant;

use futures::Stream;
use handover_core::{Runtime, Signal, Sockets};
use tokio::io::Interest;
use tokio::net::UnixStream;
use tokio::signal::unix::{self, SignalKind};

use crate::{TcpListener, UdpSocket, UnixDatagram, UnixListener};

/// The tokio runtime, as the driver sees it. Its clock is tokio's, also when that is paused.
#[derive(Debug, Clone, Copy, Default)]
pub struct Tokio;

impl Runtime for Tokio {
    type Timer = tokio::time::Sleep;
    type Signals = Signals;
    type Watch = Watch;

    fn now(&self) -> Instant {
        tokio::time::Instant::now().into_std()
    }

    fn timer(&self, at: Instant) -> Self::Timer {
        tokio::time::sleep_until(at.into())
    }

    fn signals(&self, signals: &[Signal]) -> io::Result<Signals> {
        let catch =
            |signal: &Signal| Ok((*signal, unix::signal(SignalKind::from_raw(signal.as_raw()))?));
        Ok(Signals(signals.iter().map(catch).collect::<io::Result<_>>()?))
    }

    fn watch(&self, descriptor: OwnedFd) -> io::Result<Watch> {
        let stream = std::os::unix::net::UnixStream::from(descriptor);
        stream.set_nonblocking(true)?;
        Ok(Watch(UnixStream::from_std(stream)?))
    }

    fn poll_readable<T>(
        watch: &mut Watch,
        context: &mut Context<'_>,
        mut operation: impl FnMut(BorrowedFd<'_>) -> io::Result<T>,
    ) -> Poll<io::Result<T>> {
        use std::os::fd::AsFd;
        loop {
            ready!(watch.0.poll_read_ready(context))?;
            match watch.0.try_io(Interest::READABLE, || operation(watch.0.as_fd())) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                result => return Poll::Ready(result),
            }
        }
    }
}

impl Sockets for Tokio {
    type TcpListener = TcpListener;
    type UnixListener = UnixListener;
    type UdpSocket = UdpSocket;
    type UnixDatagram = UnixDatagram;
}

/// Caught signals, as a stream.
#[derive(Debug)]
pub struct Signals(Vec<(Signal, unix::Signal)>);

impl Stream for Signals {
    type Item = Signal;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Signal>> {
        for (signal, arrived) in &mut self.0 {
            if let Poll::Ready(Some(())) = arrived.poll_recv(context) {
                return Poll::Ready(Some(*signal));
            }
        }
        Poll::Pending
    }
}

/// A watched descriptor.
///
/// It is an epoll instance inside a type for sockets, which is never read or written as one:
/// tokio's own type for any descriptor cannot be made without `unsafe`.
#[derive(Debug)]
pub struct Watch(UnixStream);

impl std::os::fd::AsFd for Watch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
