//! Where a load goes, and how a connection to there begins.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::atomic::{AtomicU32, Ordering};

use nix::sys::socket::{setsockopt, sockopt::IpBindAddressNoPort};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, connect, socket_with, sockopt,
};

/// The address of the server under test.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// TCP, version 4 or 6.
    Tcp(SocketAddr),
    /// A Unix stream socket by path.
    Unix(PathBuf),
    /// A Unix stream socket by abstract name.
    Abstract(Vec<u8>),
}

/// What became of the first step of a connection.
pub(super) enum Dialled {
    /// Connected at once, as Unix sockets do.
    Connected,
    /// The socket will become writable.
    InProgress,
    /// The queue of a Unix listener is full. A blocking client would wait here;
    /// the kernel gives a non-blocking one nothing to wait for.
    QueueFull,
}

impl Target {
    pub(super) fn socket(&self) -> Result<OwnedFd, Errno> {
        let family = match self {
            Self::Tcp(SocketAddr::V4(_)) => AddressFamily::INET,
            Self::Tcp(SocketAddr::V6(_)) => AddressFamily::INET6,
            Self::Unix(_) | Self::Abstract(_) => AddressFamily::UNIX,
        };
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let socket = socket_with(family, SocketType::STREAM, flags, None)?;
        if let Self::Tcp(address) = self {
            // What is measured is the server, not Nagle's wait for an acknowledgement.
            sockopt::set_tcp_nodelay(&socket, true)?;
            if let Some(source) = source_for(address) {
                // Without this option the kernel picks the port at `bind`, knowing
                // nothing of the destination, and treats it as taken for all of them.
                setsockopt(&socket, IpBindAddressNoPort, &true)
                    .map_err(|errno| Errno::from_raw_os_error(errno as i32))?;
                bind(&socket, &source)?;
            }
        }
        Ok(socket)
    }

    pub(super) fn dial(&self, socket: &OwnedFd) -> Result<Dialled, Errno> {
        let result = match self {
            Self::Tcp(address) => connect(socket, address),
            Self::Unix(path) => connect(socket, &SocketAddrUnix::new(path)?),
            Self::Abstract(name) => connect(socket, &SocketAddrUnix::new_abstract_name(name)?),
        };
        match result {
            Ok(()) => Ok(Dialled::Connected),
            Err(Errno::INPROGRESS) => Ok(Dialled::InProgress),
            Err(Errno::AGAIN) if !matches!(self, Self::Tcp(_)) => Ok(Dialled::QueueFull),
            Err(errno) => Err(errno),
        }
    }
}

/// Another loopback address for every connection to the loopback.
///
/// One pair of addresses has 28,000 ports, and a port rests for a minute after
/// its connection: at 1,500 connections a second they are gone in 19 seconds.
fn source_for(target: &SocketAddr) -> Option<SocketAddrV4> {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let IpAddr::V4(ip) = target.ip() else {
        return None;
    };
    ip.is_loopback().then(|| {
        let host = 2 + NEXT.fetch_add(1, Ordering::Relaxed) % 249;
        SocketAddrV4::new(Ipv4Addr::new(127, 0, 0, host as u8), 0)
    })
}

impl From<SocketAddr> for Target {
    fn from(address: SocketAddr) -> Self {
        Self::Tcp(address)
    }
}

impl From<PathBuf> for Target {
    fn from(path: PathBuf) -> Self {
        Self::Unix(path)
    }
}

/// Reads `127.0.0.1:80`, `[::1]:80`, `unix:/run/server.sock` or `unix:@name`.
impl FromStr for Target {
    type Err = std::net::AddrParseError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.strip_prefix("unix:") {
            Some(path) => Ok(match path.strip_prefix('@') {
                Some(name) => Self::Abstract(name.into()),
                None => Self::Unix(path.into()),
            }),
            None => text.parse().map(Self::Tcp),
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Abstract(name) => write!(f, "unix:@{}", name.escape_ascii()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_it_writes() {
        for text in ["127.0.0.1:80", "[::1]:80", "unix:/run/x.sock", "unix:@name"] {
            assert_eq!(text.parse::<Target>().unwrap().to_string(), text);
        }
        assert!("nowhere".parse::<Target>().is_err());
    }

    #[test]
    fn only_the_loopback_has_many_sources() {
        let loopback = "127.0.0.1:80".parse().unwrap();
        let (one, other) = (source_for(&loopback), source_for(&loopback));
        assert!(one.is_some() && one != other);
        assert_eq!(source_for(&"[::1]:80".parse().unwrap()), None);
        assert_eq!(source_for(&"192.0.2.1:80".parse().unwrap()), None);
    }
}
