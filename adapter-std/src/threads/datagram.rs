use std::future::poll_fn;
use std::io;
use std::os::unix::net as unix;

use handover_core::{Address, Datagrams};

use super::source::Polled;
use super::wait::block_on;

handover_core::datagrams! {
    /// A UDP socket that a successor can take over.
    UdpSocket(Polled<std::net::UdpSocket>);
    receive: |socket: &Polled<std::net::UdpSocket>, context, buffer: &mut [u8]| {
        socket.poll_with(context, |socket| socket.recv_from(buffer))
    }
}

handover_core::datagrams! {
    /// A Unix datagram socket that a successor can take over.
    UnixDatagram(Polled<unix::UnixDatagram>);
    receive: |socket: &Polled<unix::UnixDatagram>, context, buffer: &mut [u8]| {
        socket.poll_with(context, |socket| socket.recv_from(buffer))
    }
}

macro_rules! receive {
    ($socket:ident) => {
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
        }
    };
}

receive!(UdpSocket);
receive!(UnixDatagram);
