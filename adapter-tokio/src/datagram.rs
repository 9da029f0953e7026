use std::future::{pending, poll_fn};
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::task::{Poll, ready};

use handover_core::{Claim, Gated, Source};
use socket2::{SockAddr, SockRef};
use tokio::io::ReadBuf;
use tokio::net::unix;

use crate::listener::source;

pub(crate) struct Udp(tokio::net::UdpSocket);
pub(crate) struct Datagram(tokio::net::UnixDatagram);

source!(Udp, tokio::net::UdpSocket, std::net::UdpSocket);
source!(Datagram, tokio::net::UnixDatagram, std::os::unix::net::UnixDatagram);

/// A UDP socket that a successor can take over. One process reads at a time.
#[derive(Clone)]
pub struct UdpSocket(Gated<Udp>);

/// A Unix datagram socket that a successor can take over. One process reads at a time.
#[derive(Clone)]
pub struct UnixDatagram(Gated<Datagram>);

impl UdpSocket {
    /// Receives a datagram. Waits while this process does not own the socket, and for ever once it
    /// has been given up.
    ///
    /// # Errors
    /// Those of the system call.
    ///
    /// # Cancel safety
    /// No datagram is lost when the future is dropped.
    pub async fn recv_from(&self, buffer: &mut [u8]) -> io::Result<(usize, SocketAddr)> {
        let received = poll_fn(|context| {
            self.0.poll_io(context, |socket, context| {
                let mut buffer = ReadBuf::new(buffer);
                let from = ready!(socket.0.poll_recv_from(context, &mut buffer))?;
                Poll::Ready(Ok((buffer.filled().len(), from)))
            })
        });
        match received.await? {
            Some(received) => Ok(received),
            None => pending().await,
        }
    }

    /// Sends a datagram, also while this process drains: the answers to what it has received are
    /// its own to give. Never waits.
    ///
    /// # Errors
    /// Those of the system call; `WouldBlock` if the socket's buffer is full, and the datagram was
    /// not sent.
    pub async fn send_to(&self, datagram: &[u8], to: SocketAddr) -> io::Result<usize> {
        send(&self.0, datagram, &to.into())
    }

    /// The address that it is bound to.
    ///
    /// # Errors
    /// The socket has been given up, or the system call's.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        let address = self.0.with_socket(|socket| SockRef::from(&socket).local_addr());
        let address = address.unwrap_or_else(given_up)?;
        address.as_socket().ok_or_else(|| io::ErrorKind::Unsupported.into())
    }
}

impl UnixDatagram {
    /// As [`UdpSocket::recv_from`].
    ///
    /// # Errors
    /// Those of the system call.
    ///
    /// # Cancel safety
    /// No datagram is lost when the future is dropped.
    pub async fn recv_from(&self, buffer: &mut [u8]) -> io::Result<(usize, unix::SocketAddr)> {
        let received = poll_fn(|context| {
            self.0.poll_io(context, |socket, context| {
                let mut buffer = ReadBuf::new(buffer);
                let from = ready!(socket.0.poll_recv_from(context, &mut buffer))?;
                Poll::Ready(Ok((buffer.filled().len(), from)))
            })
        });
        match received.await? {
            Some(received) => Ok(received),
            None => pending().await,
        }
    }

    /// As [`UdpSocket::send_to`].
    ///
    /// # Errors
    /// Those of the system call; `WouldBlock` if the receiver's buffer is full.
    pub async fn send_to(&self, datagram: &[u8], to: impl AsRef<Path>) -> io::Result<usize> {
        send(&self.0, datagram, &SockAddr::unix(to)?)
    }
}

fn send<S: Source>(socket: &Gated<S>, datagram: &[u8], to: &SockAddr) -> io::Result<usize> {
    let sent = socket.with_socket(|socket| SockRef::from(&socket).send_to(datagram, to));
    sent.unwrap_or_else(given_up)
}

fn given_up<T>() -> io::Result<T> {
    Err(io::Error::new(io::ErrorKind::NotConnected, "the socket has been given up"))
}

macro_rules! claimed {
    ($socket:ident) => {
        impl From<Claim> for $socket {
            fn from(claim: Claim) -> Self {
                Self(claim.into())
            }
        }

        impl std::fmt::Debug for $socket {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.debug_struct(stringify!($socket)).finish_non_exhaustive()
            }
        }
    };
}

claimed!(UdpSocket);
claimed!(UnixDatagram);
