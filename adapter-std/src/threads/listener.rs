use std::future::poll_fn;
use std::io;
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::{self as unix, UnixStream};
use std::task::{Context, Poll};

use handover_core::{Connection, Drain, Gated, Listener};

use super::source::Polled;
use super::wait::block_on;

macro_rules! listener {
    ($(#[$doc:meta])* $listener:ident, $socket:ty, $stream:ty, $address:ty) => {
        $(#[$doc])*
        ///
        /// While its process drains it waits rather than ends, so that a rollback can resume it.
        /// Cloning it gives another handle to the same socket, which the library owns: see
        /// [`Handle::listen_tcp`](handover_core::Handle::listen_tcp).
        ///
        /// Every thread that waits for it is woken by every connection: let one accept, or a few.
        #[derive(Clone)]
        pub struct $listener(Gated<Polled<$socket>>);

        impl $listener {
            /// Accepts a connection, whose stream blocks. Waits while this process does not own
            /// the listener.
            ///
            /// # Errors
            /// Those of the system call. Most concern one connection or a shortage of descriptors,
            /// and the next call may succeed. [`NotConnected`](io::ErrorKind::NotConnected) once
            /// the listener has been given up: nothing else could end a thread that waits
            /// ([`incoming`](Self::incoming) ends then).
            pub fn accept(&self) -> io::Result<(Connection<$stream>, $address)> {
                block_on(poll_fn(|context| self.poll_accept(context)))??
                    .ok_or_else(super::given_up)
            }

            /// The connections, until the listener is given up.
            pub fn incoming(
                &self,
            ) -> impl Iterator<Item = io::Result<Connection<$stream>>> + Send + Unpin + use<> {
                let listener = self.clone();
                std::iter::from_fn(move || {
                    block_on(poll_fn(|context| Listener::poll_accept(&listener, context)))
                        .and_then(|accepted| accepted)
                        .transpose()
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
                self.0.local_address()?.try_into()
            }

            /// Polls for a connection: `None` once the listener has been given up. Only inside
            /// [`block_on`](crate::threads::block_on).
            ///
            /// # Errors
            /// As for [`accept`](Self::accept); and that it was called elsewhere.
            pub fn poll_accept(
                &self,
                context: &mut Context<'_>,
            ) -> Poll<io::Result<Option<(Connection<$stream>, $address)>>> {
                let waker = context.waker().clone();
                // Not the gate's waker: each thread waits for itself.
                let accepted = self
                    .0
                    .poll_accept(context, |source, _| source.poll_with(&waker, <$socket>::accept));
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

        handover_core::claimed!($listener);
    };
}

listener! {
    /// A TCP listener that a successor can take over.
    TcpListener, std::net::TcpListener, TcpStream, SocketAddr
}
listener! {
    /// A Unix listener that a successor can take over.
    UnixListener, unix::UnixListener, UnixStream, unix::SocketAddr
}
