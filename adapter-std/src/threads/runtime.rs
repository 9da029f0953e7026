use std::future::Future;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use futures::Stream;
use handover_core::{Runtime, Signal, SignalPipe, Sockets};

use super::wait::{Interest, wake_at};
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
        Timer(Arc::new(at))
    }

    fn signals(&self, signals: &[Signal]) -> io::Result<Signals> {
        SignalPipe::new(signals).map(|pipe| Signals(Arc::new(pipe)))
    }

    fn watch(&self, descriptor: OwnedFd) -> io::Result<Watch> {
        Ok(Watch(Arc::new(descriptor)))
    }

    fn poll_readable<T>(
        watch: &mut Watch,
        context: &mut Context<'_>,
        mut operation: impl FnMut(BorrowedFd<'_>) -> io::Result<T>,
    ) -> Poll<io::Result<T>> {
        match operation(watch.as_fd()) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                match wake_at(Interest::Readable(watch.0.clone()), context.waker()) {
                    Ok(()) => Poll::Pending,
                    Err(error) => Poll::Ready(Err(error)),
                }
            }
            result => Poll::Ready(result),
        }
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
pub struct Timer(Arc<Instant>);

impl Future for Timer {
    type Output = ();

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let time = Interest::Time(Arc::clone(&self.0));
        if *self.0 <= Instant::now() || wake_at(time, context.waker()).is_err() {
            return Poll::Ready(());
        }
        Poll::Pending
    }
}

/// Caught signals, as a stream.
#[derive(Debug)]
pub struct Signals(Arc<SignalPipe>);

impl Stream for Signals {
    type Item = Signal;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Signal>> {
        let signal = self.0.take();
        if signal.is_none() && wake_at(Interest::Readable(self.0.clone()), context.waker()).is_ok()
        {
            return Poll::Pending;
        }
        Poll::Ready(signal)
    }
}

/// A watched descriptor.
#[derive(Debug)]
pub struct Watch(Arc<OwnedFd>);

impl AsFd for Watch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        (*self.0).as_fd()
    }
}
