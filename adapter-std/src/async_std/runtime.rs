use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::task::{Context, Poll};
use std::time::Instant;

use handover_core::{Runtime, Signal, Sockets};
use handover_smol::{Signals, Smol, Timer, UdpSocket, UnixDatagram, Watch};

use super::{TcpListener, UnixListener};

/// The async-std runtime, as the driver sees it: it runs on smol's poller and timers.
#[derive(Debug, Clone, Copy, Default)]
pub struct AsyncStd(Smol);

impl AsyncStd {
    /// As [`Smol::new`].
    pub fn new() -> Self {
        Self::default()
    }
}

impl Runtime for AsyncStd {
    type Timer = Timer;
    type Signals = Signals;
    type Watch = Watch;

    fn now(&self) -> Instant {
        self.0.now()
    }

    fn timer(&self, at: Instant) -> Timer {
        self.0.timer(at)
    }

    fn signals(&self, signals: &[Signal]) -> io::Result<Signals> {
        self.0.signals(signals)
    }

    fn watch(&self, descriptor: OwnedFd) -> io::Result<Watch> {
        self.0.watch(descriptor)
    }

    fn poll_readable<T>(
        watch: &mut Watch,
        context: &mut Context<'_>,
        operation: impl FnMut(BorrowedFd<'_>) -> io::Result<T>,
    ) -> Poll<io::Result<T>> {
        Smol::poll_readable(watch, context, operation)
    }
}

impl Sockets for AsyncStd {
    type TcpListener = TcpListener;
    type UnixListener = UnixListener;
    type UdpSocket = UdpSocket;
    type UnixDatagram = UnixDatagram;
}
