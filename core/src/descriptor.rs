use std::fmt;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::BorrowedFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

use rustix::fs::FileType;
use socket2::{Domain, Protocol, SockAddr, SockRef, Type};

/// What a descriptor is, as far as it matters to whoever takes it over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Kind {
    /// A listening TCP socket, IPv4 or IPv6 (also one that speaks Multipath TCP).
    TcpListener,
    /// A listening Unix stream socket.
    UnixListener,
    /// A listening Unix socket of sequenced packets.
    SeqpacketListener,
    /// A UDP socket.
    UdpSocket,
    /// A Unix datagram socket.
    UnixDatagram,
    /// A connected Unix stream socket.
    Stream,
    /// One end of a pipe, or a FIFO.
    Pipe,
    /// A regular file.
    File,
    /// Anything else: a device, a directory, a TCP connection, a socket that is neither
    /// connected nor listening.
    Other,
}

impl Kind {
    /// The number by which this kind crosses from one version of the library to another. A
    /// number is never given to another kind.
    pub fn code(self) -> u8 {
        match self {
            Kind::Other => 0,
            Kind::TcpListener => 1,
            Kind::UnixListener => 2,
            Kind::SeqpacketListener => 3,
            Kind::UdpSocket => 4,
            Kind::UnixDatagram => 5,
            Kind::Stream => 6,
            Kind::Pipe => 7,
            Kind::File => 8,
        }
    }

    /// The kind with this [`code`](Kind::code), or `None` if this version knows none.
    pub fn from_code(code: u8) -> Option<Kind> {
        Some(match code {
            0 => Kind::Other,
            1 => Kind::TcpListener,
            2 => Kind::UnixListener,
            3 => Kind::SeqpacketListener,
            4 => Kind::UdpSocket,
            5 => Kind::UnixDatagram,
            6 => Kind::Stream,
            7 => Kind::Pipe,
            8 => Kind::File,
            _ => return None,
        })
    }
}

impl fmt::Display for Kind {
    /// Words that fit after "is": "a TCP listener".
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Kind::TcpListener => "a TCP listener",
            Kind::UnixListener => "a Unix listener",
            Kind::SeqpacketListener => "a Unix seqpacket listener",
            Kind::UdpSocket => "a UDP socket",
            Kind::UnixDatagram => "a Unix datagram socket",
            Kind::Stream => "a connected Unix stream",
            Kind::Pipe => "a pipe",
            Kind::File => "a file",
            Kind::Other => "another descriptor",
        })
    }
}

/// The address that a descriptor is bound to.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Address {
    /// Of a TCP or UDP socket.
    Ip(SocketAddr),
    /// Of a Unix socket in the file system, exactly as it was given to `bind`: relative to the
    /// working directory of whoever bound it, if it does not start with `/`.
    Path(PathBuf),
    /// Of a Unix socket in the abstract namespace, without the leading zero byte. May contain
    /// any bytes.
    Abstract(Vec<u8>),
    /// An unnamed Unix socket, or no socket.
    None,
}

impl Address {
    /// The address for a system call.
    pub(crate) fn to_socket(&self) -> io::Result<SockAddr> {
        match self {
            Address::Ip(address) => Ok((*address).into()),
            Address::Path(path) => SockAddr::unix(path),
            Address::Abstract(name) => {
                SockAddr::unix(std::ffi::OsStr::from_bytes(&[b"\0", name.as_slice()].concat()))
            }
            Address::None => Err(io::Error::new(io::ErrorKind::InvalidInput, "no address")),
        }
    }

    /// Appends a form that [`decode`](Address::decode) understands, on this machine or another.
    pub fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Address::None => out.push(0),
            Address::Ip(SocketAddr::V4(v4)) => {
                out.push(1);
                out.extend_from_slice(&v4.ip().octets());
                out.extend_from_slice(&v4.port().to_le_bytes());
            }
            Address::Ip(SocketAddr::V6(v6)) => {
                out.push(2);
                out.extend_from_slice(&v6.ip().octets());
                out.extend_from_slice(&v6.port().to_le_bytes());
                out.extend_from_slice(&v6.flowinfo().to_le_bytes());
                out.extend_from_slice(&v6.scope_id().to_le_bytes());
            }
            Address::Path(path) => {
                out.push(3);
                encode_bytes(path.as_os_str().as_bytes(), out);
            }
            Address::Abstract(name) => {
                out.push(4);
                encode_bytes(name, out);
            }
        }
    }

    /// Takes one address off the front of `bytes`. `None` for anything that
    /// [`encode`](Address::encode) does not write; `bytes` is then as it was.
    pub fn decode(bytes: &mut &[u8]) -> Option<Address> {
        let mut rest = *bytes;
        let [tag] = take(&mut rest)?;
        let address = match tag {
            0 => Address::None,
            1 => {
                let ip = Ipv4Addr::from(take::<4>(&mut rest)?);
                let port = u16::from_le_bytes(take(&mut rest)?);
                Address::Ip(SocketAddrV4::new(ip, port).into())
            }
            2 => {
                let ip = Ipv6Addr::from(take::<16>(&mut rest)?);
                let port = u16::from_le_bytes(take(&mut rest)?);
                let flowinfo = u32::from_le_bytes(take(&mut rest)?);
                let scope_id = u32::from_le_bytes(take(&mut rest)?);
                Address::Ip(SocketAddrV6::new(ip, port, flowinfo, scope_id).into())
            }
            3 => Address::Path(std::ffi::OsString::from_vec(decode_bytes(&mut rest)?).into()),
            4 => Address::Abstract(decode_bytes(&mut rest)?),
            _ => return None,
        };
        *bytes = rest;
        Some(address)
    }
}

impl From<SocketAddr> for Address {
    fn from(address: SocketAddr) -> Self {
        Address::Ip(address)
    }
}

impl From<unix::net::SocketAddr> for Address {
    fn from(address: unix::net::SocketAddr) -> Self {
        let path = address.as_pathname().map(|path| Address::Path(path.to_owned()));
        let name = || address.as_abstract_name().map(|name| Address::Abstract(name.to_owned()));
        path.or_else(name).unwrap_or(Address::None)
    }
}

impl TryFrom<Address> for SocketAddr {
    type Error = io::Error;

    fn try_from(address: Address) -> io::Result<Self> {
        match address {
            Address::Ip(address) => Ok(address),
            _ => Err(io::ErrorKind::Unsupported.into()),
        }
    }
}

impl TryFrom<Address> for unix::net::SocketAddr {
    type Error = io::Error;

    fn try_from(address: Address) -> io::Result<Self> {
        match address {
            Address::Path(path) => unix::net::SocketAddr::from_pathname(path),
            Address::Abstract(name) => unix::net::SocketAddr::from_abstract_name(name),
            _ => Err(io::ErrorKind::Unsupported.into()),
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Ip(addr) => addr.fmt(f),
            Address::Path(path) => path.display().fmt(f),
            Address::Abstract(name) => write!(f, "@{}", name.escape_ascii()),
            Address::None => f.write_str("no address"),
        }
    }
}

/// What `fd` is and what it is bound to, asked of the kernel and not of whoever sent it.
pub(crate) fn describe(fd: BorrowedFd<'_>) -> io::Result<(Kind, Address)> {
    match FileType::from_raw_mode(rustix::fs::fstat(fd)?.st_mode) {
        FileType::Socket => describe_socket(fd),
        FileType::Fifo => Ok((Kind::Pipe, Address::None)),
        FileType::RegularFile => Ok((Kind::File, Address::None)),
        _ => Ok((Kind::Other, Address::None)),
    }
}

/// What `fd` really is, if that is not what its sender said; `None` if the two agree.
pub(crate) fn differs(
    fd: BorrowedFd<'_>,
    kind: Kind,
    address: &Address,
) -> io::Result<Option<(Kind, Address)>> {
    let found = describe(fd)?;
    Ok((found.0 != kind || found.1 != *address).then_some(found))
}

fn describe_socket(fd: BorrowedFd<'_>) -> io::Result<(Kind, Address)> {
    let socket = SockRef::from(&fd);
    let domain = socket.domain()?;
    let ty = socket.r#type()?;
    let kind = if domain == Domain::UNIX {
        let listens = socket.is_listener()?;
        match ty {
            Type::STREAM if listens => Kind::UnixListener,
            Type::SEQPACKET if listens => Kind::SeqpacketListener,
            // A stream keeps its peer's name when the peer has gone, so that both sides of a
            // handover see the same kind.
            Type::STREAM if socket.peer_addr().is_ok() => Kind::Stream,
            Type::DGRAM => Kind::UnixDatagram,
            _ => Kind::Other,
        }
    } else if domain == Domain::IPV4 || domain == Domain::IPV6 {
        // SCTP and ICMP sockets share their types with TCP and UDP.
        match (ty, socket.protocol()?) {
            (Type::STREAM, Some(Protocol::TCP | Protocol::MPTCP)) if socket.is_listener()? => {
                Kind::TcpListener
            }
            (Type::DGRAM, Some(Protocol::UDP | Protocol::UDPLITE)) => Kind::UdpSocket,
            _ => Kind::Other,
        }
    } else {
        // The kernel's other families have addresses that we could not name.
        return Ok((Kind::Other, Address::None));
    };
    Ok((kind, address_of(&socket.local_addr()?)))
}

fn address_of(addr: &SockAddr) -> Address {
    if let Some(ip) = addr.as_socket() {
        Address::Ip(ip)
    } else if let Some(name) = addr.as_abstract_namespace() {
        Address::Abstract(name.to_vec())
    } else if let Some(path) = addr.as_pathname() {
        Address::Path(path.to_path_buf())
    } else {
        Address::None
    }
}

fn encode_bytes(bytes: &[u8], out: &mut Vec<u8>) {
    // The kernel's longest is 108 bytes. Cut rather than write a length that does not fit.
    let len = u16::try_from(bytes.len()).unwrap_or(u16::MAX);
    out.extend_from_slice(&len.to_le_bytes());
    out.extend_from_slice(&bytes[..usize::from(len)]);
}

fn decode_bytes(bytes: &mut &[u8]) -> Option<Vec<u8>> {
    let len = u16::from_le_bytes(take(bytes)?);
    let (head, tail) = bytes.split_at_checked(usize::from(len))?;
    *bytes = tail;
    Some(head.to_vec())
}

fn take<const N: usize>(bytes: &mut &[u8]) -> Option<[u8; N]> {
    let (head, tail) = bytes.split_first_chunk()?;
    *bytes = tail;
    Some(*head)
}

#[cfg(test)]
mod tests {
    use super::*;
    use socket2::Socket;
    use std::net::{TcpListener, TcpStream, UdpSocket};
    use std::os::fd::AsFd;
    use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};

    fn of(fd: impl AsFd) -> (Kind, Address) {
        describe(fd.as_fd()).unwrap()
    }

    #[test]
    fn every_code_leads_back_and_no_other_does() {
        let known: Vec<Kind> = (0..=255).filter_map(Kind::from_code).collect();
        assert_eq!(known.len(), 9);
        for (code, kind) in known.into_iter().enumerate() {
            assert_eq!(usize::from(kind.code()), code);
        }
    }

    #[test]
    fn addresses_cross_and_garbage_does_not() {
        let all = [
            Address::None,
            Address::Ip("1.2.3.4:80".parse().unwrap()),
            Address::Ip("[::1]:65535".parse().unwrap()),
            Address::Ip(SocketAddrV6::new(Ipv6Addr::LOCALHOST, 1, 2, 3).into()),
            Address::Path("some/where".into()),
            Address::Path("".into()),
            Address::Abstract(b"\0\xffname".to_vec()),
        ];
        let mut bytes = Vec::new();
        all.iter().for_each(|address| address.encode(&mut bytes));
        let mut rest = &bytes[..];
        for address in &all {
            assert_eq!(Address::decode(&mut rest).as_ref(), Some(address));
        }
        assert!(rest.is_empty());

        for address in &all {
            let mut bytes = Vec::new();
            address.encode(&mut bytes);
            for cut in 0..bytes.len() {
                let mut short = &bytes[..cut];
                assert_eq!(Address::decode(&mut short), None);
                assert_eq!(short.len(), cut);
            }
        }
        for tag in 5..=255u8 {
            assert_eq!(Address::decode(&mut &[tag, 0, 0, 0, 0][..]), None);
        }
        assert_eq!(Address::decode(&mut &[3, 255, 255, b'x'][..]), None);

        let mut long = Vec::new();
        Address::Abstract(vec![7; 70_000]).encode(&mut long);
        let Some(Address::Abstract(cut)) = Address::decode(&mut &long[..]) else { panic!() };
        assert_eq!(cut.len(), 65_535);
    }

    #[test]
    fn addresses_and_kinds_read_well() {
        assert_eq!(Address::Abstract(b"a\0b".to_vec()).to_string(), "@a\\x00b");
        assert_eq!(Address::Path("/run/x".into()).to_string(), "/run/x");
        assert_eq!(Kind::TcpListener.to_string(), "a TCP listener");
    }

    #[test]
    fn internet_sockets() {
        for ip in ["127.0.0.1:0", "[::1]:0"] {
            let listener = TcpListener::bind(ip).unwrap();
            let addr = listener.local_addr().unwrap();
            assert_eq!(of(&listener), (Kind::TcpListener, Address::Ip(addr)));
            let stream = TcpStream::connect(addr).unwrap();
            assert_eq!(of(&stream).0, Kind::Other);
            let udp = UdpSocket::bind(ip).unwrap();
            let addr = udp.local_addr().unwrap();
            assert_eq!(of(&udp), (Kind::UdpSocket, Address::Ip(addr)));
        }
        let bound = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        bound.bind(&"127.0.0.1:0".parse::<SocketAddr>().unwrap().into()).unwrap();
        assert_eq!(of(&bound).0, Kind::Other);
        if let Ok(mptcp) = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::MPTCP)) {
            mptcp.listen(1).unwrap();
            assert_eq!(of(&mptcp).0, Kind::TcpListener);
        }
    }

    #[test]
    fn unix_sockets() {
        let dir = std::env::temp_dir().join(format!("handover-descriptor-{}", std::process::id()));
        // Left over by a process of the same number.
        let _ = std::fs::remove_dir_all(&dir);
        std::fs::create_dir_all(&dir).unwrap();
        let path = dir.join("socket");
        let listener = UnixListener::bind(&path).unwrap();
        assert_eq!(of(&listener), (Kind::UnixListener, Address::Path(path.clone())));
        let (a, b) = UnixStream::pair().unwrap();
        drop(b);
        assert_eq!(of(&a), (Kind::Stream, Address::None));
        std::fs::remove_file(&path).unwrap();
        let datagram = UnixDatagram::bind(&path).unwrap();
        assert_eq!(of(&datagram), (Kind::UnixDatagram, Address::Path(path)));
        std::fs::remove_dir_all(&dir).unwrap();

        let name = format!("handover-descriptor-{}", std::process::id()).into_bytes();
        let addr = SockAddr::unix(std::ffi::OsStr::from_bytes(&[b"\0", &name[..]].concat()));
        let packets = Socket::new(Domain::UNIX, Type::SEQPACKET, None).unwrap();
        packets.bind(&addr.unwrap()).unwrap();
        assert_eq!(of(&packets), (Kind::Other, Address::Abstract(name.clone())));
        packets.listen(1).unwrap();
        assert_eq!(of(&packets), (Kind::SeqpacketListener, Address::Abstract(name)));

        let idle = Socket::new(Domain::UNIX, Type::STREAM, None).unwrap();
        assert_eq!(of(&idle), (Kind::Other, Address::None));
    }

    #[test]
    fn what_is_no_socket() {
        // Close-on-exec: another test looks at what its child has inherited.
        let (reader, writer) = std::io::pipe().unwrap();
        assert_eq!(of(&reader), (Kind::Pipe, Address::None));
        assert_eq!(of(&writer), (Kind::Pipe, Address::None));
        let file = std::fs::File::open("/proc/self/exe").unwrap();
        assert_eq!(of(&file), (Kind::File, Address::None));
        let null = std::fs::File::open("/dev/null").unwrap();
        assert_eq!(of(&null), (Kind::Other, Address::None));
    }

    #[test]
    fn a_wrong_label_is_seen() {
        let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
        let addr = Address::Ip(udp.local_addr().unwrap());
        assert_eq!(differs(udp.as_fd(), Kind::UdpSocket, &addr).unwrap(), None);
        let truth = Some((Kind::UdpSocket, addr.clone()));
        assert_eq!(differs(udp.as_fd(), Kind::TcpListener, &addr).unwrap(), truth);
        assert_eq!(differs(udp.as_fd(), Kind::UdpSocket, &Address::None).unwrap(), truth);
    }
}
