use std::io;
use std::task::{Context, Poll, ready};

use handover_core::Address;
use tokio::io::ReadBuf;
use tokio::net::unix;

use crate::Registered;

handover_core::datagrams! {
    /// A UDP socket that a successor can take over.
    UdpSocket(Registered<tokio::net::UdpSocket>);
    receive: |socket: &Registered<tokio::net::UdpSocket>, context, buffer| {
        receive(context, buffer, |context, buffer| socket.0.poll_recv_from(context, buffer))
    }
}
handover_core::receive!(UdpSocket);

handover_core::datagrams! {
    /// A Unix datagram socket that a successor can take over.
    UnixDatagram(Registered<tokio::net::UnixDatagram>);
    receive: |socket: &Registered<tokio::net::UnixDatagram>, context, buffer| {
        let received =
            receive(context, buffer, |context, buffer| socket.0.poll_recv_from(context, buffer));
        received.map_ok(|(length, from)| (length, address(&from)))
    }
}
handover_core::receive!(UnixDatagram);

fn receive<A>(
    context: &mut Context<'_>,
    buffer: &mut [u8],
    mut receive: impl FnMut(&mut Context<'_>, &mut ReadBuf<'_>) -> Poll<io::Result<A>>,
) -> Poll<io::Result<(usize, A)>> {
    let mut buffer = ReadBuf::new(buffer);
    let from = ready!(receive(context, &mut buffer))?;
    Poll::Ready(Ok((buffer.filled().len(), from)))
}

fn address(from: &unix::SocketAddr) -> Address {
    let path = from.as_pathname().map(|path| Address::Path(path.to_owned()));
    let name = || from.as_abstract_name().map(|name| Address::Abstract(name.to_vec()));
    path.or_else(name).unwrap_or(Address::None)
}
