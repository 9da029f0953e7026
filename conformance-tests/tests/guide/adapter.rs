//! An adapter for the runtime in `bare.rs`, made by following `handover_core::manual::adapter`.

use std::io;
use std::net;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net as unix;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Instant;

use futures::Stream;
use handover_core::{Connection, Policy, Runtime, Signal, SignalPipe, Sockets, Source};

use crate::bare::{Side, Sleep, Watched};

/// The loop around `polling`, as the driver sees it.
#[derive(Debug, Clone, Copy, Default)]
pub struct Bare;

impl Runtime for Bare {
    type Timer = Sleep;
    type Signals = Signals;
    type Watch = Watched<OwnedFd>;

    fn now(&self) -> Instant {
        Instant::now()
    }

    fn timer(&self, at: Instant) -> Sleep {
        Sleep::until(at)
    }

    fn signals(&self, signals: &[Signal]) -> io::Result<Signals> {
        Watched::new(SignalPipe::new(signals)?).map(Signals)
    }

    fn watch(&self, descriptor: OwnedFd) -> io::Result<Self::Watch> {
        Watched::new(descriptor)
    }

    fn poll_readable<T>(
        watch: &mut Self::Watch,
        context: &mut Context<'_>,
        mut operation: impl FnMut(BorrowedFd<'_>) -> io::Result<T>,
    ) -> Poll<io::Result<T>> {
        watch.poll_with(context, Side::Read, |epoll| operation(epoll.as_fd()))
    }
}

/// Caught signals, as a stream.
pub struct Signals(Watched<SignalPipe>);

impl Stream for Signals {
    type Item = Signal;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Signal>> {
        let taken = self.0.poll_with(context, Side::Read, |pipe| {
            pipe.take().ok_or_else(|| io::ErrorKind::WouldBlock.into())
        });
        taken.map(Result::ok)
    }
}

/// A socket's registration with the loop, which a gate makes and takes back.
pub struct Registered<T: AsFd>(Watched<T>);

impl<T> Source for Registered<T>
where
    T: AsFd + From<OwnedFd> + Into<OwnedFd> + Send + Sync + 'static,
{
    fn attach(descriptor: OwnedFd) -> io::Result<Self> {
        Watched::new(T::from(descriptor)).map(Registered)
    }

    fn detach(self) -> io::Result<OwnedFd> {
        self.0.into_inner().map(Into::into)
    }
}

impl<T: AsFd> AsFd for Registered<T> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Sockets for Bare {
    type TcpListener = TcpListener;
    type UnixListener = UnixListener;
    type UdpSocket = UdpSocket;
    type UnixDatagram = UnixDatagram;
}

pub type TcpStream = Watched<net::TcpStream>;
pub type UnixStream = Watched<unix::UnixStream>;

handover_core::listener! {
    /// A TCP listener that a successor can take over.
    TcpListener(Registered<net::TcpListener>) => Connection<TcpStream>, net::SocketAddr;
    accept: accept_tcp, address: net::SocketAddr::try_from
}
handover_core::accept!(TcpListener => Connection<TcpStream>, net::SocketAddr);

handover_core::listener! {
    /// A Unix listener that a successor can take over.
    UnixListener(Registered<unix::UnixListener>) => Connection<UnixStream>, unix::SocketAddr;
    accept: accept_unix, address: unix::SocketAddr::try_from
}
handover_core::accept!(UnixListener => Connection<UnixStream>, unix::SocketAddr);

pub fn accept_tcp(
    listener: &Registered<net::TcpListener>,
    context: &mut Context<'_>,
) -> Poll<io::Result<(TcpStream, net::SocketAddr)>> {
    let (stream, peer) =
        ready!(listener.0.poll_with(context, Side::Read, net::TcpListener::accept))?;
    stream.set_nonblocking(true)?;
    Poll::Ready(Ok((Watched::new(stream)?, peer)))
}

pub fn accept_unix(
    listener: &Registered<unix::UnixListener>,
    context: &mut Context<'_>,
) -> Poll<io::Result<(UnixStream, unix::SocketAddr)>> {
    let (stream, peer) =
        ready!(listener.0.poll_with(context, Side::Read, unix::UnixListener::accept))?;
    stream.set_nonblocking(true)?;
    Poll::Ready(Ok((Watched::new(stream)?, peer)))
}

handover_core::datagrams! {
    /// A UDP socket that a successor can take over.
    UdpSocket(Registered<net::UdpSocket>);
    receive: |socket: &Registered<net::UdpSocket>, context, buffer: &mut [u8]| {
        socket.0.poll_with(context, Side::Read, |socket| socket.recv_from(buffer))
    }
}
handover_core::receive!(UdpSocket);

handover_core::datagrams! {
    /// A Unix datagram socket that a successor can take over.
    UnixDatagram(Registered<unix::UnixDatagram>);
    receive: |socket: &Registered<unix::UnixDatagram>, context, buffer: &mut [u8]| {
        socket.0.poll_with(context, Side::Read, |socket| socket.recv_from(buffer))
    }
}
handover_core::receive!(UnixDatagram);

/// A process before its first accept. See [`handover_core::Start`].
pub type Start = handover_core::Start<Bare>;
/// A view of a running instance. See [`handover_core::Handle`].
pub type Handle = handover_core::Handle<Bare>;

/// Begins, with the default [`Policy`]. Call it inside [`block_on`](crate::bare::block_on).
///
/// # Errors
/// Those of [`Start::new`](handover_core::Start::new).
pub fn start() -> handover_core::Result<Start> {
    start_with(Policy::new())
}

/// The same with a policy of one's own.
///
/// # Errors
/// Those of [`Start::new`](handover_core::Start::new).
pub fn start_with(policy: Policy) -> handover_core::Result<Start> {
    Start::new(Bare, policy)
}
