use std::future::{pending, poll_fn};
use std::io;
use std::os::fd::OwnedFd;
use std::task::{Context, Poll, ready};

use handover_core::{Address, Claim, Datagrams, Gated, Source};
use tokio::io::ReadBuf;

use crate::listener::source;

pub(crate) struct Udp(tokio::net::UdpSocket);
pub(crate) struct Datagram(tokio::net::UnixDatagram);

source!(Udp, tokio::net::UdpSocket, std::net::UdpSocket);
source!(Datagram, tokio::net::UnixDatagram, std::os::unix::net::UnixDatagram);

macro_rules! datagrams {
    ($(#[$doc:meta])* $socket:ident, $source:ident, $address:expr) => {
        $(#[$doc])*
        ///
        /// One process reads at a time: this one stops at the commit, and what arrives waits in
        /// the socket's buffer for the successor. Cloning it gives another handle to the same
        /// socket, which the library owns.
        #[derive(Clone)]
        pub struct $socket(Gated<$source>);

        impl $socket {
            /// Receives a datagram. Waits while this process does not own the socket, and for ever
            /// once it has been given up.
            ///
            /// # Errors
            /// Those of the system call.
            ///
            /// # Cancel safety
            /// No datagram is lost when the future is dropped.
            pub async fn recv_from(&self, buffer: &mut [u8]) -> io::Result<(usize, Address)> {
                match poll_fn(|context| self.poll_receive(context, buffer)).await? {
                    Some(received) => Ok(received),
                    None => pending().await,
                }
            }

            /// Sends a datagram without waiting, also while this process drains: the answers to
            /// what it has received are its own to give.
            ///
            /// # Errors
            /// Those of the system call; `WouldBlock` if a buffer is full, and nothing was sent.
            pub fn try_send_to(&self, datagram: &[u8], to: &Address) -> io::Result<usize> {
                self.0.send(datagram, to)
            }
        }

        impl Datagrams for $socket {
            fn poll_receive(
                &self,
                context: &mut Context<'_>,
                buffer: &mut [u8],
            ) -> Poll<io::Result<Option<(usize, Address)>>> {
                self.0.poll_io(context, |socket, context| {
                    let mut buffer = ReadBuf::new(buffer);
                    let from = ready!(socket.0.poll_recv_from(context, &mut buffer))?;
                    Poll::Ready(Ok((buffer.filled().len(), $address(from))))
                })
            }

            fn try_send(&self, datagram: &[u8], to: &Address) -> io::Result<usize> {
                self.0.send(datagram, to)
            }
        }

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

datagrams! {
    /// A UDP socket that a successor can take over.
    UdpSocket, Udp, Address::Ip
}
datagrams! {
    /// A Unix datagram socket that a successor can take over.
    UnixDatagram, Datagram, unix_address
}

fn unix_address(from: tokio::net::unix::SocketAddr) -> Address {
    let path = from.as_pathname().map(|path| Address::Path(path.to_owned()));
    let name = || from.as_abstract_name().map(|name| Address::Abstract(name.to_vec()));
    path.or_else(name).unwrap_or(Address::None)
}
