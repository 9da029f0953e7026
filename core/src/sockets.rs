//! The listener and socket types of every runtime, written once.
//!
//! What is a type of its own in each adapter (so that it can have the traits of that runtime's
//! libraries) and still the same, is made by macros.

#[doc(hidden)]
pub mod __private {
    pub use futures::stream::{Stream, poll_fn};
}

/// Makes a runtime's listener type around a [`Gated`](crate::Gated) source: how it is polled,
/// cloned, made of a [`Claim`](crate::Claim) and looked at. [`accept!`](crate::accept) adds what
/// async runtimes have besides.
///
/// ```
/// # use std::{io, net, os::fd::*, task::*};
/// # use handover_core::*;
/// # pub struct Registered(net::TcpListener);
/// # impl AsFd for Registered {
/// #     fn as_fd(&self) -> BorrowedFd<'_> { self.0.as_fd() }
/// # }
/// # impl Source for Registered {
/// #     fn attach(descriptor: OwnedFd) -> io::Result<Self> { Ok(Self(descriptor.into())) }
/// #     fn detach(self) -> io::Result<OwnedFd> { Ok(self.0.into()) }
/// # }
/// # impl Registered {
/// #     fn poll_accept(&self, _: &mut Context<'_>) -> Poll<io::Result<(net::TcpStream, net::SocketAddr)>> {
/// #         Poll::Ready(self.0.accept())
/// #     }
/// # }
/// handover_core::listener! {
///     /// A TCP listener that a successor can take over.
///     TcpListener(Registered) => Connection<net::TcpStream>, net::SocketAddr;
///     accept: Registered::poll_accept, address: net::SocketAddr::try_from
/// }
/// handover_core::accept!(TcpListener => Connection<net::TcpStream>, net::SocketAddr);
/// ```
#[macro_export]
macro_rules! listener {
    (
        $(#[$doc:meta])*
        $listener:ident($source:ty) => $connection:ty, $address:ty;
        accept: $accept:expr, address: $to_address:expr
    ) => {
        $(#[$doc])*
        ///
        /// While its process drains it waits rather than ends, so that a rollback can resume it.
        /// Cloning it gives another handle to the same socket, which the library owns: see
        /// [`Handle::listen_tcp`](handover_core::Handle::listen_tcp).
        #[derive(Clone)]
        pub struct $listener($crate::Gated<$source>);

        impl $listener {
            /// Polls for a connection: `None` once the listener has been given up.
            ///
            /// # Errors
            /// As for [`accept`](Self::accept).
            pub fn poll_accept(
                &self,
                context: &mut ::std::task::Context<'_>,
            ) -> ::std::task::Poll<::std::io::Result<Option<($connection, $address)>>> {
                self.0.poll_accept(context, $accept).map_ok(|accepted| {
                    accepted.map(|((stream, peer), guard)| (<$connection>::new(stream, guard), peer))
                })
            }

            /// The drain signal for its connections.
            pub fn drain(&self) -> &$crate::Drain {
                self.0.drain()
            }

            /// The address that it is bound to.
            ///
            /// # Errors
            /// The listener has been given up, or the system call's.
            pub fn local_addr(&self) -> ::std::io::Result<$address> {
                self.0.local_address().and_then($to_address)
            }
        }

        impl $crate::Listener for $listener {
            type Connection = $connection;

            fn poll_accept(
                &self,
                context: &mut ::std::task::Context<'_>,
            ) -> ::std::task::Poll<::std::io::Result<Option<Self::Connection>>> {
                <$listener>::poll_accept(self, context)
                    .map_ok(|accepted| accepted.map(|(connection, _)| connection))
            }
        }

        $crate::claimed!($listener);
    };
}

/// Adds `accept` and `incoming` for async runtimes to a type made by
/// [`listener!`](crate::listener).
#[macro_export]
macro_rules! accept {
    ($listener:ident => $connection:ty, $address:ty) => {
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
            pub async fn accept(&self) -> ::std::io::Result<($connection, $address)> {
                match ::std::future::poll_fn(|context| self.poll_accept(context)).await? {
                    Some(accepted) => Ok(accepted),
                    None => ::std::future::pending().await,
                }
            }

            /// The connections, until the listener is given up.
            pub fn incoming(
                &self,
            ) -> impl $crate::__private::Stream<Item = ::std::io::Result<$connection>>
            + Send
            + Unpin
            + use<> {
                let listener = self.clone();
                $crate::__private::poll_fn(move |context| {
                    $crate::Listener::poll_accept(&listener, context)
                        .map(::std::result::Result::transpose)
                })
            }
        }
    };
}

/// Makes a runtime's datagram socket type around a [`Gated`](crate::Gated) source, as
/// [`listener!`](crate::listener) does. [`receive!`](crate::receive) adds what async runtimes have
/// besides.
#[macro_export]
macro_rules! datagrams {
    ($(#[$doc:meta])* $socket:ident($source:ty); receive: $receive:expr) => {
        $(#[$doc])*
        ///
        /// One process reads at a time: this one stops at the commit, and what arrives waits in
        /// the socket's buffer for the successor. Cloning it gives another handle to the same
        /// socket, which the library owns.
        #[derive(Clone)]
        pub struct $socket($crate::Gated<$source>);

        impl $socket {
            /// Sends a datagram without waiting, also while this process drains: the answers to
            /// what it has received are its own to give.
            ///
            /// # Errors
            /// Those of the system call; `WouldBlock` if a buffer is full, and nothing was sent.
            pub fn try_send_to(
                &self,
                datagram: &[u8],
                to: &$crate::Address,
            ) -> ::std::io::Result<usize> {
                self.0.send(datagram, to)
            }
        }

        impl $crate::Datagrams for $socket {
            fn poll_receive(
                &self,
                context: &mut ::std::task::Context<'_>,
                buffer: &mut [u8],
            ) -> ::std::task::Poll<::std::io::Result<Option<(usize, $crate::Address)>>> {
                self.0.poll_io(context, |socket, context| {
                    let receive = $receive;
                    receive(socket, context, &mut *buffer)
                        .map_ok(|(length, from)| (length, $crate::Address::from(from)))
                })
            }

            fn try_send(&self, datagram: &[u8], to: &$crate::Address) -> ::std::io::Result<usize> {
                self.0.send(datagram, to)
            }
        }

        $crate::claimed!($socket);
    };
}

/// Adds `recv_from` for async runtimes to a type made by [`datagrams!`](crate::datagrams).
#[macro_export]
macro_rules! receive {
    ($socket:ident) => {
        impl $socket {
            /// Receives a datagram. Waits while this process does not own the socket, and for ever
            /// once it has been given up.
            ///
            /// # Errors
            /// Those of the system call.
            ///
            /// # Cancel safety
            /// No datagram is lost when the future is dropped.
            pub async fn recv_from(
                &self,
                buffer: &mut [u8],
            ) -> ::std::io::Result<(usize, $crate::Address)> {
                use $crate::Datagrams;
                match ::std::future::poll_fn(|context| self.poll_receive(context, buffer)).await? {
                    Some(received) => Ok(received),
                    None => ::std::future::pending().await,
                }
            }
        }
    };
}

#[doc(hidden)]
#[macro_export]
macro_rules! claimed {
    ($socket:ident) => {
        impl From<$crate::Claim> for $socket {
            fn from(claim: $crate::Claim) -> Self {
                Self(claim.into())
            }
        }

        impl ::std::fmt::Debug for $socket {
            fn fmt(&self, f: &mut ::std::fmt::Formatter<'_>) -> ::std::fmt::Result {
                let address = self.0.local_address().ok();
                f.debug_tuple(stringify!($socket)).field(&address).finish()
            }
        }
    };
}
