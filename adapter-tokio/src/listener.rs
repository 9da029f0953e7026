use std::io;
use std::net::SocketAddr;

use handover_core::Address;
use tokio::net::{TcpStream, UnixStream, unix};

use crate::{Connection, Registered};

handover_core::listener! {
    /// A TCP listener that a successor can take over.
    TcpListener(Registered<tokio::net::TcpListener>) => Connection<TcpStream>, SocketAddr;
    accept: |socket, context| socket.0.poll_accept(context), address: SocketAddr::try_from
}
handover_core::accept!(TcpListener => Connection<TcpStream>, SocketAddr);

handover_core::listener! {
    /// A Unix listener that a successor can take over.
    UnixListener(Registered<tokio::net::UnixListener>)
        => Connection<UnixStream>, unix::SocketAddr;
    accept: |socket, context| socket.0.poll_accept(context), address: unix_address
}
handover_core::accept!(UnixListener => Connection<UnixStream>, unix::SocketAddr);

fn unix_address(address: Address) -> io::Result<unix::SocketAddr> {
    std::os::unix::net::SocketAddr::try_from(address).map(Into::into)
}
