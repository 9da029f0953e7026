use std::future::Future;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Instant;

use futures::Stream;
use handover_core::{Runtime, Signal, SignalPipe, Sockets};

use super::wait::{Moment, Watch};
use super::{TcpListener, UdpSocket, UnixDatagram, UnixListener};

/// Plain threads, as the driver sees them: whatever [`block_on`](super::block_on) can wait for.
#[derive(Debug, Clone, Copy, Default)]
pub struct Threads;

impl Runtime for Threads {
    type Timer = Timer;
    type Signals = Signals;
    type Watch = Watch;

    fn now(&self) -> Instant {
        Instant::now()
    }

    fn timer(&self, at: Instant) -> Timer {
        Timer(Watch::new(Moment(at)))
    }

    fn signals(&self, signals: &[Signal]) -> io::Result<Signals> {
        SignalPipe::new(signals).map(Watch::new)
    }

    fn watch(&self, descriptor: OwnedFd) -> io::Result<Watch> {
        Ok(Watch::new(descriptor))
    }

    fn poll_readable<T>(
        watch: &mut Watch,
        context: &mut Context<'_>,
        mut operation: impl FnMut(BorrowedFd<'_>) -> io::Result<T>,
    ) -> Poll<io::Result<T>> {
        watch.poll_with(context, |descriptor| operation(descriptor.as_fd()))
    }
}

impl Sockets for Threads {
    type TcpListener = TcpListener;
    type UnixListener = UnixListener;
    type UdpSocket = UdpSocket;
    type UnixDatagram = UnixDatagram;
}

/// A timer.
#[derive(Debug)]
pub struct Timer(Watch<Moment>);

impl Future for Timer {
    type Output = ();

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let waited = self.0.poll_with(context, |moment| match moment.0 <= Instant::now() {
            true => Ok(()),
            false => Err(io::ErrorKind::WouldBlock.into()),
        });
        waited.map(drop)
    }
}

/// Caught signals, as a stream.
pub type Signals = Watch<SignalPipe>;

impl Stream for Signals {
    type Item = Signal;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Signal>> {
        let taken = self
            .poll_with(context, |pipe| pipe.take().ok_or_else(|| io::ErrorKind::WouldBlock.into()));
        taken.map(Result::ok)
    }
}
