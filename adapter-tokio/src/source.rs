use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use handover_core::Source;

/// A socket's registration with tokio's poller, which a gate makes and takes back.
#[derive(Debug)]
pub struct Registered<T>(pub(crate) T);

impl<T: AsFd> AsFd for Registered<T> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

macro_rules! source {
    ($runtime:ty, $std:ty) => {
        impl Source for Registered<$runtime> {
            fn attach(descriptor: OwnedFd) -> io::Result<Self> {
                <$runtime>::from_std(<$std>::from(descriptor)).map(Registered)
            }

            fn detach(self) -> io::Result<OwnedFd> {
                self.0.into_std().map(OwnedFd::from)
            }
        }
    };
}

source!(tokio::net::TcpListener, std::net::TcpListener);
source!(tokio::net::UnixListener, std::os::unix::net::UnixListener);
source!(tokio::net::UdpSocket, std::net::UdpSocket);
source!(tokio::net::UnixDatagram, std::os::unix::net::UnixDatagram);
