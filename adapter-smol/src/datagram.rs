use std::io;
use std::os::unix;
use std::task::{Context, Poll};

use handover_core::Address;

use crate::Registered;

handover_core::datagrams! {
    /// A UDP socket that a successor can take over.
    UdpSocket(Registered<std::net::UdpSocket>); receive: receive_udp
}
handover_core::receive!(UdpSocket);

handover_core::datagrams! {
    /// A Unix datagram socket that a successor can take over.
    UnixDatagram(Registered<unix::net::UnixDatagram>); receive: receive_unix
}
handover_core::receive!(UnixDatagram);

fn receive_udp(
    socket: &Registered<std::net::UdpSocket>,
    context: &mut Context<'_>,
    buffer: &mut [u8],
) -> Poll<io::Result<(usize, Address)>> {
    socket
        .poll_with(context, |socket| socket.recv_from(buffer))
        .map_ok(|(length, from)| (length, from.into()))
}

fn receive_unix(
    socket: &Registered<unix::net::UnixDatagram>,
    context: &mut Context<'_>,
    buffer: &mut [u8],
) -> Poll<io::Result<(usize, Address)>> {
    socket
        .poll_with(context, |socket| socket.recv_from(buffer))
        .map_ok(|(length, from)| (length, from.into()))
}
