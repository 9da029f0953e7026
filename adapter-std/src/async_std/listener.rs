use std::io;
use std::net::SocketAddr;
use std::os::unix;
use std::task::{Context, Poll};

use async_std::net::TcpStream;
use async_std::os::unix::net::UnixStream;
use handover_core::Connection;
use handover_smol::Registered;

handover_core::listener! {
    /// A TCP listener that a successor can take over.
    TcpListener(Registered<std::net::TcpListener>) => Connection<TcpStream>, SocketAddr;
    accept: accept_tcp, address: SocketAddr::try_from
}
handover_core::accept!(TcpListener => Connection<TcpStream>, SocketAddr);

handover_core::listener! {
    /// A Unix listener that a successor can take over.
    UnixListener(Registered<unix::net::UnixListener>)
        => Connection<UnixStream>, unix::net::SocketAddr;
    accept: accept_unix, address: unix::net::SocketAddr::try_from
}
handover_core::accept!(UnixListener => Connection<UnixStream>, unix::net::SocketAddr);

fn accept_tcp(
    listener: &Registered<std::net::TcpListener>,
    context: &mut Context<'_>,
) -> Poll<io::Result<(TcpStream, SocketAddr)>> {
    listener
        .poll_with(context, std::net::TcpListener::accept)
        .map_ok(|(stream, peer)| (stream.into(), peer))
}

fn accept_unix(
    listener: &Registered<unix::net::UnixListener>,
    context: &mut Context<'_>,
) -> Poll<io::Result<(UnixStream, unix::net::SocketAddr)>> {
    listener
        .poll_with(context, unix::net::UnixListener::accept)
        .map_ok(|(stream, peer)| (stream.into(), peer))
}
