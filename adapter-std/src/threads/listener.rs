use std::future::poll_fn;
use std::io;
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::{self as unix, UnixStream};

use handover_core::{Connection, Listener};

use super::source::Polled;
use super::wait::block_on;

handover_core::listener! {
    /// A TCP listener that a successor can take over.
    ///
    /// Every thread that waits for it is woken by every connection: let one accept, or a few.
    TcpListener(Polled<std::net::TcpListener>) => Connection<TcpStream>, SocketAddr;
    accept: |socket: &Polled<_>, context| socket.poll_with(context, std::net::TcpListener::accept),
    address: SocketAddr::try_from
}

handover_core::listener! {
    /// A Unix listener that a successor can take over.
    ///
    /// Every thread that waits for it is woken by every connection: let one accept, or a few.
    UnixListener(Polled<unix::UnixListener>) => Connection<UnixStream>, unix::SocketAddr;
    accept: |socket: &Polled<_>, context| socket.poll_with(context, unix::UnixListener::accept),
    address: unix::SocketAddr::try_from
}

macro_rules! accept {
    ($listener:ident => $connection:ty, $address:ty) => {
        impl $listener {
            /// Accepts a connection, whose stream blocks. Waits while this process does not own
            /// the listener.
            ///
            /// # Errors
            /// Those of the system call. Most concern one connection or a shortage of descriptors,
            /// and the next call may succeed. [`NotConnected`](io::ErrorKind::NotConnected) once
            /// the listener has been given up: nothing else could end a thread that waits
            /// ([`incoming`](Self::incoming) ends then).
            pub fn accept(&self) -> io::Result<($connection, $address)> {
                block_on(poll_fn(|context| self.poll_accept(context)))??.ok_or_else(super::given_up)
            }

            /// The connections, until the listener is given up.
            pub fn incoming(
                &self,
            ) -> impl Iterator<Item = io::Result<$connection>> + Send + Unpin + use<> {
                let listener = self.clone();
                std::iter::from_fn(move || {
                    block_on(poll_fn(|context| Listener::poll_accept(&listener, context)))
                        .and_then(|accepted| accepted)
                        .transpose()
                })
            }
        }
    };
}

accept!(TcpListener => Connection<TcpStream>, SocketAddr);
accept!(UnixListener => Connection<UnixStream>, unix::SocketAddr);
