use std::future::poll_fn;
use std::io;
use std::os::unix::net as unix;
use std::task::{Context, Poll};

use handover_core::{Address, Datagrams, Gated};

use super::source::Polled;
use super::wait::block_on;

macro_rules! datagrams {
    ($(#[$doc:meta])* $socket:ident, $inner:ty) => {
        $(#[$doc])*
        ///
        /// One process reads at a time: this one stops at the commit, and what arrives waits in
        /// the socket's buffer for the successor. Cloning it gives another handle to the same
        /// socket, which the library owns.
        #[derive(Clone)]
        pub struct $socket(Gated<Polled<$inner>>);

        impl $socket {
            /// Receives a datagram. Waits while this process does not own the socket.
            ///
            /// # Errors
            /// Those of the system call; [`NotConnected`](io::ErrorKind::NotConnected) once it has
            /// been given up.
            pub fn recv_from(&self, buffer: &mut [u8]) -> io::Result<(usize, Address)> {
                block_on(poll_fn(|context| self.poll_receive(context, buffer)))??
                    .ok_or_else(super::given_up)
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
                let waker = context.waker().clone();
                self.0.poll_io(context, |source, _| {
                    source
                        .poll_with(&waker, |socket| socket.recv_from(buffer))
                        .map_ok(|(length, from)| (length, from.into()))
                })
            }

            fn try_send(&self, datagram: &[u8], to: &Address) -> io::Result<usize> {
                self.0.send(datagram, to)
            }
        }

        handover_core::claimed!($socket);
    };
}

datagrams! {
    /// A UDP socket that a successor can take over.
    UdpSocket, std::net::UdpSocket
}
datagrams! {
    /// A Unix datagram socket that a successor can take over.
    UnixDatagram, unix::UnixDatagram
}
