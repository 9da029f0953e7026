use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, Mode, OFlags};
use rustix::io::Errno;
use socket2::{Domain, Protocol, SockAddr, SockFilter, SockRef, Socket, Type};

use crate::descriptor::{self, Address, Kind};
use crate::{Error, ErrorKind, Result};

/// How a socket is made, when there is none to inherit.
///
/// Whatever is set here, the socket is close-on-exec and non-blocking from its first moment, and
/// a TCP listener has `SO_REUSEADDR`, so that connections of a server that has gone do not keep
/// its address.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[must_use]
pub struct ListenOptions {
    backlog: Option<i32>,
    only_v6: Option<bool>,
    reuse_port: bool,
    nodelay: bool,
    mode: Option<u32>,
}

impl ListenOptions {
    /// How many connections may wait to be accepted: 4096 unless said otherwise. The kernel
    /// takes the smaller one of this and the sysctl `net.core.somaxconn` (4096 on most systems).
    ///
    /// During a restart nobody accepts for a moment, and this is what waits meanwhile.
    pub fn backlog(mut self, backlog: i32) -> Self {
        self.backlog = Some(backlog);
        self
    }

    /// Whether an IPv6 socket leaves IPv4 alone (`IPV6_V6ONLY`). Unless said otherwise, the
    /// system decides (sysctl `net.ipv6.bindv6only`). No effect on other sockets.
    pub fn only_v6(mut self, only: bool) -> Self {
        self.only_v6 = Some(only);
        self
    }

    /// Whether several sockets may share the address, the kernel spreading the connections or
    /// datagrams over them (`SO_REUSEPORT`). TCP and UDP only.
    pub fn reuse_port(mut self, reuse: bool) -> Self {
        self.reuse_port = reuse;
        self
    }

    /// Whether the connections of a TCP listener send small segments at once (`TCP_NODELAY`): they
    /// inherit it from the listener, so that it costs nothing for each.
    pub fn nodelay(mut self, nodelay: bool) -> Self {
        self.nodelay = nodelay;
        self
    }

    /// The permissions of a Unix socket's file, like `0o660`. Who may write to it may connect.
    /// Unless said otherwise, the umask decides. No effect on other sockets, nor on abstract
    /// addresses.
    pub fn mode(mut self, mode: u32) -> Self {
        self.mode = Some(mode & 0o7777);
        self
    }

    fn backlog_or_default(&self) -> i32 {
        self.backlog.unwrap_or(4096)
    }
}

/// A listening TCP socket.
pub(crate) fn tcp_listener(
    name: &str,
    addr: SocketAddr,
    options: &ListenOptions,
) -> Result<OwnedFd> {
    let make = || -> io::Result<Socket> {
        let socket = internet_socket(addr, Type::STREAM, Protocol::TCP, options)?;
        socket.set_reuse_address(true)?;
        socket.set_tcp_nodelay(options.nodelay)?;
        socket.bind(&addr.into())?;
        socket.listen(options.backlog_or_default())?;
        Ok(socket)
    };
    make().map(OwnedFd::from).map_err(|error| failed(name, &addr, error))
}

/// A bound UDP socket.
pub(crate) fn udp_socket(name: &str, addr: SocketAddr, options: &ListenOptions) -> Result<OwnedFd> {
    let make = || -> io::Result<Socket> {
        // Not SO_REUSEADDR, which on UDP lets anybody take the datagrams away.
        let socket = internet_socket(addr, Type::DGRAM, Protocol::UDP, options)?;
        socket.bind(&addr.into())?;
        Ok(socket)
    };
    make().map(OwnedFd::from).map_err(|error| failed(name, &addr, error))
}

/// A listening Unix socket; `kind` is [`Kind::UnixListener`] or [`Kind::SeqpacketListener`].
pub(crate) fn unix_listener(
    name: &str,
    address: &Address,
    kind: Kind,
    options: &ListenOptions,
) -> Result<OwnedFd> {
    let ty = match kind {
        Kind::UnixListener => Type::STREAM,
        Kind::SeqpacketListener => Type::SEQPACKET,
        _ => return Err(refused(name, address, format!("{kind} does not listen there"))),
    };
    unix_socket(name, address, ty, options)
}

/// A bound Unix datagram socket.
pub(crate) fn unix_datagram(
    name: &str,
    address: &Address,
    options: &ListenOptions,
) -> Result<OwnedFd> {
    unix_socket(name, address, Type::DGRAM, options)
}

/// The file of a Unix socket, so that the last owner can remove it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct SocketFile {
    /// Absolute, as far as the working directory was known. Links in it are kept.
    pub path: PathBuf,
    pub dev: u64,
    pub ino: u64,
}

impl SocketFile {
    /// The socket file that is at `path` now: to be called right after the bind.
    pub(crate) fn of(path: &Path) -> io::Result<SocketFile> {
        let path = std::path::absolute(path)?;
        let file = std::fs::symlink_metadata(&path)?;
        if !file.file_type().is_socket() {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("{} is not a socket", path.display()),
            ));
        }
        Ok(SocketFile { path, dev: file.dev(), ino: file.ino() })
    }

    /// Unlinks the file if it is still this one, and says whether it did.
    ///
    /// The socket must still be open: only an open socket keeps its inode's number from being
    /// given to whatever somebody else has bound at the same path meanwhile.
    pub(crate) fn remove(&self) -> io::Result<bool> {
        // Against somebody who replaces the file between the look and the unlink.
        let lock = PathLock::take(&self.path);
        let removed = match std::fs::symlink_metadata(&self.path) {
            Ok(file) if file.dev() == self.dev && file.ino() == self.ino => {
                std::fs::remove_file(&self.path).map(|()| true)
            }
            Ok(_) => Ok(false),
            Err(error) => Err(error),
        };
        drop(lock);
        match removed {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            other => other,
        }
    }
}

/// Makes a listening TCP socket drop every new SYN without an answer, for all processes that
/// have it; what is queued or in a handshake already still completes. A client whose SYN was
/// dropped sends it again after a second, to whoever listens on that address then.
///
/// This is what to do before the last close of a listener: accept until nothing is left, close,
/// and no connection was reset.
pub(crate) fn stop_new_connections(fd: BorrowedFd<'_>) -> io::Result<()> {
    // On other sockets the program would read something else than a TCP header, and on a
    // connected one it would be of no use.
    if descriptor::describe(fd)?.0 != Kind::TcpListener {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a TCP listener"));
    }
    // TCP runs its filter with the packet at the TCP header, whatever the version of IP.
    const LOAD_FLAGS: SockFilter = SockFilter::new(0x30, 0, 0, 13);
    const KEEP_SYN_AND_ACK: SockFilter = SockFilter::new(0x54, 0, 0, 0x12);
    const SKIP_UNLESS_SYN_ALONE: SockFilter = SockFilter::new(0x15, 0, 1, 0x02);
    const DROP: SockFilter = SockFilter::new(0x06, 0, 0, 0);
    const PASS: SockFilter = SockFilter::new(0x06, 0, 0, u32::MAX);
    SockRef::from(&fd).attach_filter(&[
        LOAD_FLAGS,
        KEEP_SYN_AND_ACK,
        SKIP_UNLESS_SYN_ALONE,
        DROP,
        PASS,
    ])
}

/// Takes [`stop_new_connections`] back. Harmless if it was not called.
pub(crate) fn allow_new_connections(fd: BorrowedFd<'_>) -> io::Result<()> {
    match SockRef::from(&fd).detach_filter() {
        Err(error) if error.raw_os_error() == Some(Errno::NOENT.raw_os_error()) => Ok(()),
        other => other,
    }
}

/// `sun_path` has room for 108 bytes, one of them for the zero that ends a path or begins an
/// abstract name.
const LONGEST_NAME: usize = 107;

fn internet_socket(
    addr: SocketAddr,
    ty: Type,
    protocol: Protocol,
    options: &ListenOptions,
) -> io::Result<Socket> {
    let domain = Domain::for_address(addr);
    let socket = Socket::new(domain, ty.nonblocking().cloexec(), Some(protocol))?;
    if let (Some(only), SocketAddr::V6(_)) = (options.only_v6, addr) {
        socket.set_only_v6(only)?;
    }
    if options.reuse_port {
        socket.set_reuse_port(true)?;
    }
    Ok(socket)
}

fn unix_socket(
    name: &str,
    address: &Address,
    ty: Type,
    options: &ListenOptions,
) -> Result<OwnedFd> {
    let bytes = match address {
        Address::Path(path) => path.as_os_str().as_bytes(),
        Address::Abstract(bytes) => bytes,
        Address::Ip(_) | Address::None => {
            return Err(refused(name, address, "a Unix socket has no such address"));
        }
    };
    if bytes.is_empty() {
        return Err(refused(name, address, "the name is empty"));
    }
    if bytes.len() > LONGEST_NAME {
        let len = bytes.len();
        let why = format!("the name has {len} bytes, a Unix socket's at most {LONGEST_NAME}");
        return Err(refused(name, address, why));
    }
    if matches!(address, Address::Path(_)) && bytes.contains(&0) {
        return Err(refused(name, address, "the path contains a zero byte"));
    }

    let make = || -> io::Result<Socket> {
        let socket = Socket::new(Domain::UNIX, ty.nonblocking().cloexec(), None)?;
        match address {
            Address::Path(path) => {
                let lock = PathLock::take(path);
                bind_path(&socket, path, options.mode)?;
                if ty != Type::DGRAM {
                    socket.listen(options.backlog_or_default())?;
                }
                drop(lock);
            }
            _ => {
                socket.bind(&address.to_socket()?)?;
                if ty != Type::DGRAM {
                    socket.listen(options.backlog_or_default())?;
                }
            }
        }
        Ok(socket)
    };
    make().map(OwnedFd::from).map_err(|error| failed(name, address, error))
}

/// Binds to a path, in the place of a socket file that nobody has open.
///
/// Two starters of this library keep each other out by a [`PathLock`]. Against a program that
/// knows nothing of it a window remains between the look at the stale file and its removal.
fn bind_path(socket: &Socket, path: &Path, mode: Option<u32>) -> io::Result<()> {
    if let Some(mode) = mode {
        // The kernel makes the file with the socket's mode less the umask, so that at no moment
        // more is allowed than was asked for.
        rustix::fs::fchmod(socket, Mode::from_raw_mode(mode))?;
    }
    let addr = SockAddr::unix(path)?;
    match socket.bind(&addr) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            remove_stale(path, &addr)?;
            socket.bind(&addr)?;
        }
        other => other?,
    }
    if let Some(mode) = mode
        && std::fs::symlink_metadata(path)?.mode() & 0o7777 != mode
    {
        // The umask took something away that was asked for.
        rustix::fs::chmod(path, Mode::from_raw_mode(mode))?;
    }
    Ok(())
}

fn remove_stale(path: &Path, addr: &SockAddr) -> io::Result<()> {
    let look = || match std::fs::symlink_metadata(path) {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    };
    let Some(before) = look()? else { return Ok(()) };
    if !before.file_type().is_socket() {
        return Err(in_use("there is something that is not a socket, which stays untouched"));
    }
    // A datagram socket asks without being noticed: at a live listener of any type it gets
    // EPROTOTYPE, where a connection would wake its accept for nothing. It also tells a socket
    // that is bound and does not listen yet from one that has gone.
    let probe = Socket::new(Domain::UNIX, Type::DGRAM.nonblocking().cloexec(), None)?;
    match probe.connect(addr) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            return Err(in_use("it may not be asked whether somebody uses the socket there"));
        }
        _ => return Err(in_use("somebody uses the socket there")),
    }
    match look()? {
        Some(now) if (now.dev(), now.ino()) == (before.dev(), before.ino()) => {
            match std::fs::remove_file(path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
                _ => Ok(()),
            }
        }
        Some(_) => Err(in_use("somebody else binds there at this moment")),
        None => Ok(()),
    }
}

/// Keeps two starters from replacing each other's socket file: of two that both found a stale
/// one, the second would unlink the first one's fresh one.
///
/// It is a file beside the socket, which is gone again afterwards. It is not the directory
/// itself, since anybody who may read that could hold its lock for ever.
struct PathLock {
    path: PathBuf,
    _file: OwnedFd,
}

impl PathLock {
    /// `None` if there can be no such file. Then the bind that follows either fails for the same
    /// reason, and says so better, or is done without the lock.
    fn take(socket: &Path) -> Option<PathLock> {
        let mut name = std::ffi::OsString::from(".");
        name.push(socket.file_name()?);
        name.push(".handover-lock");
        let path = socket.with_file_name(name);
        loop {
            let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW;
            let file = rustix::fs::open(&path, flags, Mode::RUSR | Mode::WUSR).ok()?;
            let opened = rustix::fs::fstat(&file).ok()?;
            // Somebody's own file of that name is not ours to lock and remove.
            if opened.st_size != 0 || opened.st_mode & 0o170_000 != 0o100_000 {
                return None;
            }
            rustix::io::retry_on_intr(|| rustix::fs::flock(&file, FlockOperation::LockExclusive))
                .ok()?;
            // Its last holder may have removed it while we waited; then a third starter locks
            // another file.
            match std::fs::symlink_metadata(&path) {
                Ok(now) if now.dev() == opened.st_dev && now.ino() == opened.st_ino => {
                    return Some(PathLock { path, _file: file });
                }
                _ => continue,
            }
        }
    }
}

impl Drop for PathLock {
    fn drop(&mut self) {
        // While the lock is still held: whoever waits for it looks whether the file is there.
        let _ = std::fs::remove_file(&self.path);
    }
}

fn in_use(why: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::AddrInUse, InUse(why))
}

/// `EADDRINUSE` with the reason, which the plain OS error has no room for.
#[derive(Debug)]
struct InUse(&'static str);

impl fmt::Display for InUse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

impl std::error::Error for InUse {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        None
    }
}

fn refused(name: &str, address: &Address, why: impl fmt::Display) -> Error {
    Error::new(ErrorKind::Bind, format!("bind `{name}` to {address}: {why}"))
}

fn failed(name: &str, address: &dyn fmt::Display, error: io::Error) -> Error {
    let mut message = format!("bind `{name}` to {address}");
    // The reason goes into the message, so that the source is the OS error for whoever asks for
    // its code.
    match error.get_ref().and_then(|inner| inner.downcast_ref::<InUse>()) {
        Some(InUse(why)) => {
            message.push_str(": ");
            message.push_str(why);
            let code = Errno::ADDRINUSE.raw_os_error();
            Error::with_source(ErrorKind::Bind, message, io::Error::from_raw_os_error(code))
        }
        None => Error::with_source(ErrorKind::Bind, message, error),
    }
}

#[cfg(test)]
mod tests;
