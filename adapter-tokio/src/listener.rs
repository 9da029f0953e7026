use std::future::{pending, poll_fn};
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::task::{Context, Poll};

use futures::Stream;
use handover_core::{Claim, Drain, Gated, Listener, Source};
use tokio::net::{TcpStream, UnixStream, unix};

use crate::Connection;

/// The registrations with tokio's poller that a gate makes and takes back.
pub(crate) struct Tcp(tokio::net::TcpListener);
pub(crate) struct Unix(tokio::net::UnixListener);

macro_rules! source {
    ($source:ident, $runtime:ty, $std:ty) => {
        impl std::os::fd::AsFd for $source {
            fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
                self.0.as_fd()
            }
        }

        impl Source for $source {
            fn attach(descriptor: OwnedFd) -> io::Result<Self> {
                <$runtime>::from_std(<$std>::from(descriptor)).map($source)
            }

            fn detach(self) -> io::Result<OwnedFd> {
                self.0.into_std().map(OwnedFd::from)
            }
        }
    };
}

pub(crate) use source;

source!(Tcp, tokio::net::TcpListener, std::net::TcpListener);
source!(Unix, tokio::net::UnixListener, std::os::unix::net::UnixListener);

macro_rules! listener {
    ($(#[$doc:meta])* $listener:ident, $source:ident, $stream:ty, $address:ty) => {
        $(#[$doc])*
        ///
        /// While its process drains it waits rather than ends, so that a rollback can resume it.
        /// Cloning it gives another handle to the same socket, which the library owns: see
        /// [`Handle::listen_tcp`](crate::Handle).
        #[derive(Clone)]
        pub struct $listener(Gated<$source>);

        impl $listener {
            /// Accepts a connection. Waits while this process does not own the listener, and for
            /// ever once it has been given up ([`incoming`](Self::incoming) ends then).
            ///
            /// # Errors
            /// Those of the system call. Most concern one connection or a shortage of descriptors,
            /// and the next call may succeed.
            ///
            /// # Cancel safety
            /// No connection is lost when the future is dropped.
            pub async fn accept(&self) -> io::Result<(Connection<$stream>, $address)> {
                match poll_fn(|context| self.poll_accept(context)).await? {
                    Some(accepted) => Ok(accepted),
                    None => pending().await,
                }
            }

            /// The connections, until the listener is given up.
            pub fn incoming(
                &self,
            ) -> impl Stream<Item = io::Result<Connection<$stream>>> + Send + Unpin + use<> {
                let listener = self.clone();
                futures::stream::poll_fn(move |context| {
                    Listener::poll_accept(&listener, context).map(Result::transpose)
                })
            }

            /// The drain signal for its connections.
            pub fn drain(&self) -> &Drain {
                self.0.drain()
            }

            /// The address that it is bound to.
            ///
            /// # Errors
            /// The listener has been given up, or the system call's.
            pub fn local_addr(&self) -> io::Result<$address> {
                self.0.with_socket(|socket| Self::address_of(socket)).unwrap_or_else(|| {
                    Err(io::ErrorKind::NotConnected.into())
                })
            }

            /// Polls for a connection: `None` once the listener has been given up.
            ///
            /// # Errors
            /// As for [`accept`](Self::accept).
            pub fn poll_accept(
                &self,
                context: &mut Context<'_>,
            ) -> Poll<io::Result<Option<(Connection<$stream>, $address)>>> {
                let accepted =
                    self.0.poll_accept(context, |socket, context| socket.0.poll_accept(context));
                accepted.map_ok(|accepted| {
                    accepted.map(|((stream, peer), guard)| (Connection::new(stream, guard), peer))
                })
            }
        }

        impl Listener for $listener {
            type Connection = Connection<$stream>;

            fn poll_accept(
                &self,
                context: &mut Context<'_>,
            ) -> Poll<io::Result<Option<Self::Connection>>> {
                <$listener>::poll_accept(self, context)
                    .map_ok(|accepted| accepted.map(|(connection, _)| connection))
            }
        }

        impl From<Claim> for $listener {
            fn from(claim: Claim) -> Self {
                Self(claim.into())
            }
        }

        impl std::fmt::Debug for $listener {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.debug_tuple(stringify!($listener)).field(&self.local_addr().ok()).finish()
            }
        }
    };
}

listener! {
    /// A TCP listener that a successor can take over.
    TcpListener, Tcp, TcpStream, SocketAddr
}
listener! {
    /// A Unix listener that a successor can take over.
    UnixListener, Unix, UnixStream, unix::SocketAddr
}

impl TcpListener {
    fn address_of(socket: std::os::fd::BorrowedFd<'_>) -> io::Result<SocketAddr> {
        let address = socket2::SockRef::from(&socket).local_addr()?;
        address.as_socket().ok_or_else(|| io::ErrorKind::Unsupported.into())
    }
}

impl UnixListener {
    fn address_of(socket: std::os::fd::BorrowedFd<'_>) -> io::Result<unix::SocketAddr> {
        let socket = std::os::unix::net::UnixListener::from(socket.try_clone_to_owned()?);
        socket.local_addr().map(Into::into)
    }
}
