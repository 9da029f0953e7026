use std::os::unix;

use crate::Registered;

handover_core::datagrams! {
    /// A UDP socket that a successor can take over.
    UdpSocket(Registered<std::net::UdpSocket>);
    receive: |socket: &Registered<std::net::UdpSocket>, context, buffer: &mut [u8]| {
        socket.poll_with(context, |socket| socket.recv_from(buffer))
    }
}
handover_core::receive!(UdpSocket);

handover_core::datagrams! {
    /// A Unix datagram socket that a successor can take over.
    UnixDatagram(Registered<unix::net::UnixDatagram>);
    receive: |socket: &Registered<unix::net::UnixDatagram>, context, buffer: &mut [u8]| {
        socket.poll_with(context, |socket| socket.recv_from(buffer))
    }
}
handover_core::receive!(UnixDatagram);
