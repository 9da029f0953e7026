use std::fmt;
use std::future::Future;
use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use futures::channel::{mpsc, oneshot};
use futures::{Stream, StreamExt};

use crate::bind::{self, ListenOptions, SocketFile};
use crate::descriptor::{Address, Kind, describe};
use crate::drain::Drain;
use crate::error::{Error, ErrorKind, Result};
use crate::in_flight::Guard;
use crate::machine::{Failure, State};
use crate::outcome::{RestartError, Takeover};
use crate::registry::{Claim, Made, Origin, Registry, Wanted};
use crate::runtime::{Runtime, Sockets};
use crate::state::{HandedOver, Inherited};
use crate::watch::StateWatch;

/// What a request to the driver is answered with.
pub(crate) type Reply = oneshot::Sender<std::result::Result<Takeover, RestartError>>;

/// A request to the driver.
pub(crate) enum Request {
    Restart(Reply),
    Stop,
    Quit,
    /// A listener was given up and is to be closed when its queue is empty.
    Settle,
}

/// What a process and its driver share.
pub(crate) struct Shared {
    pub(crate) registry: Arc<Registry>,
    pub(crate) drain: Drain,
    pub(crate) state: StateWatch,
    pub(crate) generation: u32,
    /// Whether new clients should come here.
    pub(crate) ready: AtomicBool,
    /// State from the predecessor, as it was when it offered.
    pub(crate) inherited: Inherited,
    /// The same as it was at the commit, unread.
    pub(crate) at_commit: OnceLock<OwnedFd>,
}

/// A view of a running instance, and the means to steer it. Cheap to clone, usable from any thread.
///
/// Every method that makes a socket does the same before and after
/// [`run`](crate::Start::run): before, an inherited socket of that name is taken; after, a new one
/// is bound and accepts at once.
pub struct Handle<R> {
    pub(crate) shared: Arc<Shared>,
    pub(crate) requests: mpsc::UnboundedSender<Request>,
    pub(crate) runtime: std::marker::PhantomData<fn() -> R>,
}

impl<R> Clone for Handle<R> {
    fn clone(&self) -> Self {
        Self {
            shared: Arc::clone(&self.shared),
            requests: self.requests.clone(),
            runtime: std::marker::PhantomData,
        }
    }
}

impl<R: Runtime> fmt::Debug for Handle<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Handle")
            .field("state", &self.state())
            .field("generation", &self.generation())
            .field("in_flight", &self.in_flight())
            .finish_non_exhaustive()
    }
}

impl<R: Runtime> Handle<R> {
    /// Starts a successor. The future resolves when it serves, or when it is certain that it will
    /// not; this process then goes on as before.
    ///
    /// A restart that is asked for before [`run`](crate::Start::run) waits for it.
    ///
    /// # Errors
    /// Why there is no new generation; [`RestartError::failure`] tells the class.
    ///
    /// # Cancel safety
    /// The request is made by this call, not by the first poll; dropping the future does not take
    /// it back.
    pub fn restart(
        &self,
    ) -> impl Future<Output = std::result::Result<Takeover, RestartError>> + Send + use<R> {
        let (reply, outcome) = oneshot::channel();
        // Without a driver the reply is dropped, and so is the other end.
        let _ = self.requests.unbounded_send(Request::Restart(reply));
        async move { outcome.await.unwrap_or_else(|_| Err(RestartError::new(Failure::Stopping))) }
    }

    /// Drains and stops, as SIGTERM does. A second call while it drains ends it at once.
    pub fn stop(&self) {
        let _ = self.requests.unbounded_send(Request::Stop);
    }

    /// While draining: ends at once and cuts what is in flight. Otherwise nothing.
    pub fn quit(&self) {
        let _ = self.requests.unbounded_send(Request::Quit);
    }

    /// Whether new clients should come here: from the first accept until a stop begins, also across
    /// restarts. What a health endpoint shows to a load balancer.
    pub fn is_ready(&self) -> bool {
        self.shared.ready.load(Ordering::Acquire)
    }

    /// The present state, or `None` before the first accept.
    pub fn state(&self) -> Option<State> {
        self.shared.state.get()
    }

    /// The states from now on: the present one first, then each change. Several changes between
    /// two polls show as one. Ends after [`State::Exited`].
    pub fn states(&self) -> impl Stream<Item = State> + Send + use<R> {
        let watch = self.shared.state.clone();
        futures::stream::unfold((watch, None), |(watch, known)| async move {
            if known == Some(State::Exited) {
                return None;
            }
            let state = watch.changed(known).await;
            state.map(|state| (state, (watch, Some(state))))
        })
        .fuse()
    }

    /// The generation of this process: 1 for the first.
    pub fn generation(&self) -> u32 {
        self.shared.generation
    }

    /// How many connections and other guards are in flight.
    pub fn in_flight(&self) -> u64 {
        self.shared.registry.in_flight.count()
    }

    /// Counts a piece of work of the program's own (a job, an upgraded connection): the process
    /// does not leave before the guard is dropped, or before the drain deadline.
    pub fn guard(&self) -> Guard {
        self.shared.registry.in_flight.guard()
    }

    /// The drain signal for this instance's connections.
    pub fn drain(&self) -> Drain {
        self.shared.drain.clone()
    }

    /// Where the socket or file of this name came from; `None` for an unknown name.
    pub fn origin(&self, name: &str) -> Option<Origin> {
        self.shared.registry.origin(name)
    }

    /// The address that the socket of this name is bound to; `None` for an unknown name.
    pub fn address(&self, name: &str) -> Option<Address> {
        self.shared.registry.address(name)
    }

    /// What was inherited and not asked for yet. The predecessor serves it until probation is over
    /// and then closes it.
    pub fn unclaimed(&self) -> Vec<String> {
        self.shared.registry.unclaimed()
    }

    /// Gives the sockets of a name up while serving: what is queued is still accepted, then the
    /// listener's stream ends and the socket is closed. Returns whether there was such a name.
    pub fn close(&self, name: &str) -> bool {
        let found = self.shared.registry.close_one(name);
        let _ = self.requests.unbounded_send(Request::Settle);
        found
    }

    /// State of this type that the predecessor handed over, as it was when this process was
    /// started; `None` if there is none, or none of a version that the type knows.
    pub fn inherited<T: HandedOver>(&self) -> Option<T> {
        self.shared.inherited.get()
    }

    /// The same as it was at the commit, the last moment at which the predecessor accepted.
    /// Available from the first accept on.
    pub fn inherited_at_commit<T: HandedOver>(&self) -> Option<T> {
        let file = self.shared.at_commit.get()?.try_clone().ok()?;
        Inherited::read(file).ok()?.get()
    }

    /// Any other open file or socket that a successor should have: a log, one end of a pipe. It
    /// is inherited under its name, or made by `make`.
    ///
    /// The library keeps one descriptor for a successor; the one returned is a copy of the
    /// caller's own (of the same open file: offset and flags are shared). No gate guards it: a
    /// socket that only one process may read must be left alone from
    /// [`Drain::closing`] on.
    ///
    /// # Errors
    /// The name is in use, what was inherited is of another kind than what `make` would make
    /// cannot be known (check the result), `make` failed, or no descriptor is left.
    pub fn descriptor<F: Into<OwnedFd>>(
        &self,
        name: &str,
        kind: Kind,
        mut make: impl FnMut() -> io::Result<F>,
    ) -> Result<OwnedFd> {
        let wanted = Wanted { name, count: 1, kind, addresses: &[] };
        self.shared.registry.share(&wanted, || {
            let failed = |error| Error::with_source(ErrorKind::Os, format!("open `{name}`"), error);
            let made: OwnedFd = make().map_err(failed)?.into();
            let (have, _) = describe(std::os::fd::AsFd::as_fd(&made)).map_err(failed)?;
            if have != kind {
                let message = format!("open `{name}`: what was made is {have}, not {kind}");
                return Err(Error::new(ErrorKind::Claim, message));
            }
            Ok((made, None))
        })
    }

    /// A listening Unix socket of sequenced packets, for which no runtime has a type. See
    /// [`descriptor`](Self::descriptor) for who owns what, and for what no gate does.
    ///
    /// # Errors
    /// As for [`listen_unix`](Self::listen_unix).
    pub fn listen_seqpacket(&self, name: &str, path: impl AsRef<Path>) -> Result<OwnedFd> {
        let address = unix_address(path.as_ref());
        let kind = Kind::SeqpacketListener;
        let addresses = [address];
        let wanted = Wanted { name, count: 1, kind, addresses: &addresses };
        self.shared.registry.share(&wanted, || {
            made_at(&addresses[0], |address| {
                bind::unix_listener(name, address, kind, &ListenOptions::default())
            })
        })
    }
}

impl<R: Sockets> Handle<R> {
    /// A TCP listener: the inherited one of this name and address, or a new one.
    ///
    /// Port 0 takes an inherited socket's port, whatever it is. Close-on-exec and `O_NONBLOCK` are
    /// set from the start. The socket belongs to the library: dropping the listener does not close
    /// it, [`close`](Self::close) does.
    ///
    /// # Errors
    /// The address cannot be resolved or bound, the name is in use, or what was inherited under it
    /// is something else.
    pub fn listen_tcp(&self, name: &str, address: impl ToSocketAddrs) -> Result<R::TcpListener> {
        self.listen_tcp_with(name, address, &ListenOptions::default())
    }

    /// The same with options, which apply to a socket that is bound now; an inherited one keeps
    /// its own.
    ///
    /// # Errors
    /// As for [`listen_tcp`](Self::listen_tcp).
    pub fn listen_tcp_with(
        &self,
        name: &str,
        address: impl ToSocketAddrs,
        options: &ListenOptions,
    ) -> Result<R::TcpListener> {
        let mut group = self.tcp(name, address, 1, options)?;
        group.pop().map(Into::into).ok_or_else(|| nothing(name))
    }

    /// A group of `count` TCP listeners on one address (`SO_REUSEPORT`), among which the kernel
    /// spreads the connections. All of a group are handed over.
    ///
    /// # Errors
    /// As for [`listen_tcp`](Self::listen_tcp); and an inherited group of another size, since
    /// closing one of its sockets would reset what waits in its queue.
    pub fn listen_tcp_group(
        &self,
        name: &str,
        address: impl ToSocketAddrs,
        count: usize,
    ) -> Result<Vec<R::TcpListener>> {
        let options = ListenOptions::default().reuse_port(true);
        let group = self.tcp(name, address, count, &options)?;
        Ok(group.into_iter().map(Into::into).collect())
    }

    fn tcp(
        &self,
        name: &str,
        address: impl ToSocketAddrs,
        count: usize,
        options: &ListenOptions,
    ) -> Result<Vec<Claim>> {
        let resolved = resolve(name, address)?;
        let addresses: Vec<_> = resolved.iter().copied().map(Address::Ip).collect();
        let kind = Kind::TcpListener;
        let wanted = Wanted { name, count, kind, addresses: &addresses };
        // The first of a group on port 0 chooses the port for all.
        let mut chosen: Option<SocketAddr> = None;
        self.shared.registry.claim(&wanted, || {
            let candidates = chosen.as_ref().map_or(resolved.as_slice(), std::slice::from_ref);
            let socket =
                first_of(name, candidates, |address| bind::tcp_listener(name, address, options))?;
            if let Ok((_, Address::Ip(address))) = describe(std::os::fd::AsFd::as_fd(&socket)) {
                chosen = Some(address);
            }
            Ok((socket, None))
        })
    }

    /// A Unix stream listener: the inherited one of this name and path, or a new one. A path that
    /// begins with `@` is in the abstract namespace.
    ///
    /// The file of a socket that nobody listens on any more is replaced; it is removed at the
    /// final stop only, and only if it is still this socket's own.
    ///
    /// # Errors
    /// As for [`listen_tcp`](Self::listen_tcp); and a path on which somebody listens, or that is
    /// no socket.
    pub fn listen_unix(&self, name: &str, path: impl AsRef<Path>) -> Result<R::UnixListener> {
        self.listen_unix_with(name, path, &ListenOptions::default())
    }

    /// The same with options, which apply to a socket that is bound now.
    ///
    /// # Errors
    /// As for [`listen_unix`](Self::listen_unix).
    pub fn listen_unix_with(
        &self,
        name: &str,
        path: impl AsRef<Path>,
        options: &ListenOptions,
    ) -> Result<R::UnixListener> {
        let kind = Kind::UnixListener;
        self.unix(name, path.as_ref(), kind, |address| {
            bind::unix_listener(name, address, kind, options)
        })
        .map(Into::into)
    }

    /// A UDP socket: the inherited one of this name and address, or a new one.
    ///
    /// One process reads at a time: this one stops at the commit, and datagrams wait in the
    /// socket's buffer for the successor.
    ///
    /// # Errors
    /// As for [`listen_tcp`](Self::listen_tcp).
    pub fn udp(&self, name: &str, address: impl ToSocketAddrs) -> Result<R::UdpSocket> {
        let resolved = resolve(name, address)?;
        let addresses: Vec<_> = resolved.iter().copied().map(Address::Ip).collect();
        let kind = Kind::UdpSocket;
        let wanted = Wanted { name, count: 1, kind, addresses: &addresses };
        let options = ListenOptions::default();
        let mut claims = self.shared.registry.claim(&wanted, || {
            let make = |address| bind::udp_socket(name, address, &options);
            Ok((first_of(name, &resolved, make)?, None))
        })?;
        claims.pop().map(Into::into).ok_or_else(|| nothing(name))
    }

    /// A Unix datagram socket: as [`udp`](Self::udp), with a path as for
    /// [`listen_unix`](Self::listen_unix).
    ///
    /// # Errors
    /// As for [`listen_unix`](Self::listen_unix).
    pub fn unix_datagram(&self, name: &str, path: impl AsRef<Path>) -> Result<R::UnixDatagram> {
        let make =
            |address: &Address| bind::unix_datagram(name, address, &ListenOptions::default());
        self.unix(name, path.as_ref(), Kind::UnixDatagram, make).map(Into::into)
    }

    fn unix(
        &self,
        name: &str,
        path: &Path,
        kind: Kind,
        make: impl Fn(&Address) -> Result<OwnedFd>,
    ) -> Result<Claim> {
        let addresses = [unix_address(path)];
        let wanted = Wanted { name, count: 1, kind, addresses: &addresses };
        let mut claims = self.shared.registry.claim(&wanted, || made_at(&addresses[0], &make))?;
        claims.pop().ok_or_else(|| nothing(name))
    }
}

fn nothing(name: &str) -> Error {
    Error::new(ErrorKind::Claim, format!("claim `{name}`: nothing was asked for"))
}

fn resolve(name: &str, address: impl ToSocketAddrs) -> Result<Vec<SocketAddr>> {
    let failed = |error: io::Error| {
        Error::with_source(ErrorKind::Bind, format!("resolve the address of `{name}`"), error)
    };
    let resolved: Vec<_> = address.to_socket_addrs().map_err(failed)?.collect();
    if resolved.is_empty() {
        return Err(failed(io::ErrorKind::NotFound.into()));
    }
    Ok(resolved)
}

/// The first address that can be bound; the last error if none can.
fn first_of(
    name: &str,
    addresses: &[SocketAddr],
    mut make: impl FnMut(SocketAddr) -> Result<OwnedFd>,
) -> Result<OwnedFd> {
    let mut failed = Error::new(ErrorKind::Bind, format!("bind `{name}`: no address"));
    for address in addresses {
        match make(*address) {
            Ok(socket) => return Ok(socket),
            Err(error) => failed = error,
        }
    }
    Err(failed)
}

fn unix_address(path: &Path) -> Address {
    match path.as_os_str().as_bytes() {
        [b'@', name @ ..] => Address::Abstract(name.to_vec()),
        _ => Address::Path(path.to_owned()),
    }
}

fn made_at(address: &Address, make: impl Fn(&Address) -> Result<OwnedFd>) -> Result<Made> {
    let socket = make(address)?;
    let file = match address {
        Address::Path(path) => Some(SocketFile::of(path).map_err(|error| {
            let message = format!("look at the socket's file {}", path.display());
            Error::with_source(ErrorKind::Bind, message, error)
        })?),
        _ => None,
    };
    Ok((socket, file))
}
