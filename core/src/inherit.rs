//! What a predecessor or the service manager left for this process.

use std::io;
use std::os::fd::{AsFd, OwnedFd, RawFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use nix::sys::socket::getsockopt;
use nix::sys::socket::sockopt::PeerCredentials;
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::net::sockopt;
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::activation;
use crate::bind::SocketFile;
use crate::descriptor::{describe, differs};
use crate::error::{Error, ErrorKind, Result};
use crate::ownership::Ownership;
use crate::protocol::channel::{Channel, Received};
use crate::protocol::frame::{Entry, Frame, VERSIONS};
use crate::raw;
use crate::registry::{Fate, Inherited};
use crate::spawn::{VARIABLE, is_dead};
use crate::state;

/// A dying process closes its sockets before its pidfd becomes readable.
const DYING: Duration = Duration::from_secs(1);

/// The connection to the predecessor.
pub(crate) struct Upstream {
    pub(crate) channel: Channel,
    pub(crate) pid: u32,
    pub(crate) pidfd: OwnedFd,
}

impl Upstream {
    /// Says why this process will not serve. If the predecessor is gone, nobody needs to know.
    pub(crate) fn give_up(&mut self, reason: String) {
        let _ = self.channel.send(&Frame::GaveUp { reason }, Vec::new());
    }
}

/// A process of an older generation, which may still be draining.
#[derive(Clone)]
pub(crate) struct Generation {
    pub(crate) pid: u32,
    pub(crate) generation: u32,
    pub(crate) pidfd: Arc<OwnedFd>,
    /// Written to, it asks that process to end its linger.
    pub(crate) hurry: Arc<OwnedFd>,
}

impl Generation {
    /// That of this process.
    pub(crate) fn own(generation: u32) -> io::Result<Self> {
        let own = rustix::process::getpid();
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        Ok(Self {
            pid: number(own),
            generation,
            pidfd: Arc::new(pidfd_open(own, PidfdFlags::empty())?),
            hurry: Arc::new(eventfd(0, flags)?),
        })
    }

    pub(crate) fn is_alive(&self) -> bool {
        !is_dead(self.pidfd.as_fd())
    }
}

/// All that was left.
pub(crate) struct Legacy {
    /// `None` for a first generation, or if the predecessor died during its offer.
    pub(crate) upstream: Option<Upstream>,
    pub(crate) ownership: Option<Ownership>,
    pub(crate) state: state::Inherited,
    pub(crate) older: Vec<Generation>,
    pub(crate) sockets: Vec<Inherited>,
    /// That of this process.
    pub(crate) generation: u32,
    /// How long after READY the predecessor may take for its COMMIT.
    pub(crate) patience: Option<Duration>,
}

/// What this process was left, if anything: from a predecessor, else from the service manager.
///
/// Blocks until the whole offer is read, at most until `patience` has passed; the predecessor
/// answers as soon as its driver is polled.
pub(crate) fn take(instance: &str, patience: Duration) -> Result<Legacy> {
    match handover_socket(instance) {
        Some(socket) => receive_offer(socket, patience),
        None => {
            let sockets = activation::Activation::from_env()?;
            let sockets: Result<Vec<_>> = sockets.into_iter().map(activated).collect();
            Ok(Legacy {
                upstream: None,
                ownership: None,
                state: state::Inherited::default(),
                older: Vec::new(),
                sockets: sockets?,
                generation: 1,
                patience: None,
            })
        }
    }
}

fn activated((name, descriptor): (String, OwnedFd)) -> Result<Inherited> {
    let (kind, address) = describe(descriptor.as_fd()).map_err(|error| {
        let message = format!("look at `{name}` from the service manager");
        Error::with_source(ErrorKind::Inherit, message, error)
    })?;
    // Anything that waits must be non-blocking for every runtime. Shared with the manager, which
    // does not read it.
    if !matches!(kind, crate::Kind::File | crate::Kind::Other | crate::Kind::Pipe) {
        let _ = rustix::io::ioctl_fionbio(&descriptor, true);
    }
    Ok(Inherited {
        name,
        index: 0,
        kind,
        address,
        activated: true,
        file: None,
        descriptor: Some(descriptor),
        fate: Fate::Unasked,
    })
}

/// The socket that a predecessor left, if the variable names one that is really there, for this
/// instance, and not taken yet.
fn handover_socket(instance: &str) -> Option<OwnedFd> {
    /// Sockets that another instance of this process, or an earlier start, has taken.
    static TAKEN: Mutex<Vec<u64>> = Mutex::new(Vec::new());

    let value = std::env::var(VARIABLE).ok()?;
    let (descriptor, cookie) = marker(&value, instance)?;
    let mut taken = TAKEN.lock().unwrap_or_else(PoisonError::into_inner);
    if taken.contains(&cookie) {
        return None;
    }
    let found = raw::inspect(descriptor, |socket| Ok(sockopt::socket_cookie(socket)?));
    if found.ok()? != cookie {
        return None;
    }
    let socket = raw::adopt(descriptor).ok()?;
    taken.push(cookie);
    Some(socket)
}

/// The number and the cookie of the socket that the variable names, if it is for this instance.
pub(crate) fn marker(value: &str, instance: &str) -> Option<(RawFd, u64)> {
    let mut parts = value.rsplitn(3, ':');
    let cookie = parts.next()?.parse().ok()?;
    let descriptor = parts.next()?.parse().ok()?;
    (parts.next()? == instance).then_some((descriptor, cookie))
}

fn receive_offer(socket: OwnedFd, patience: Duration) -> Result<Legacy> {
    let failed = |what: &str, error: io::Error| {
        Error::with_source(ErrorKind::Inherit, format!("take over: {what}"), error)
    };
    let peer = getsockopt(&socket, PeerCredentials)
        .map_err(|error| failed("ask who is at the handover socket", error.into()))?;
    // 0 if it cannot be seen from here.
    let Some(pid) = Pid::from_raw(peer.pid()) else {
        let message = "take over: the predecessor is in another pid namespace";
        return Err(Error::new(ErrorKind::Inherit, message));
    };
    let pidfd = match pidfd_open(pid, PidfdFlags::empty()) {
        Ok(pidfd) => Some(pidfd),
        // It is gone already, and what it offered with it.
        Err(rustix::io::Errno::SRCH) => None,
        Err(error) => return Err(failed("watch the predecessor", error.into())),
    };
    let mut channel = Channel::new(socket);
    let (oldest, newest) = VERSIONS;
    let hello = Frame::Hello { oldest, newest, pid: number(rustix::process::getpid()) };
    // If the other end is gone, reading says so.
    let _ = channel.send(&hello, Vec::new());

    let mut offer = Offer::default();
    let complete = match offer.read(&mut channel, pidfd.as_ref(), now() + patience) {
        Ok(complete) => complete,
        Err(error) => {
            let _ = channel.send(&Frame::GaveUp { reason: error.to_string() }, Vec::new());
            return Err(error);
        }
    };
    let upstream = match pidfd {
        Some(pidfd) if complete => Some(Upstream { channel, pid: number(pid), pidfd }),
        _ => None,
    };
    if upstream.is_none() {
        tracing::warn!(pid = number(pid), "the predecessor died before its offer was complete");
    }
    Ok(Legacy {
        upstream,
        ownership: offer.ownership,
        state: offer.state,
        older: offer.older,
        sockets: offer.sockets,
        generation: offer.generation.unwrap_or(0).saturating_add(1),
        patience: offer.patience,
    })
}

/// An offer as far as it has been read.
#[derive(Default)]
pub(crate) struct Offer {
    generation: Option<u32>,
    missing: usize,
    patience: Option<Duration>,
    ownership: Option<Ownership>,
    state: state::Inherited,
    older: Vec<Generation>,
    /// A generation whose event has not come yet.
    half: Option<(u32, u32, OwnedFd)>,
    sockets: Vec<Inherited>,
}

impl Offer {
    /// Reads until it is complete (true) or the predecessor is dead (false).
    fn read(
        &mut self,
        channel: &mut Channel,
        pidfd: Option<&OwnedFd>,
        mut deadline: Instant,
    ) -> Result<bool> {
        let gave_up = |why: String| Error::new(ErrorKind::GaveUp, format!("take over: {why}"));
        let mut lost = false;
        loop {
            // Frames first, then the death: what came whole is kept.
            while !lost && let Some((received, descriptors)) = channel.receive_with_descriptors() {
                match received {
                    Received::Frame(frame, _) => {
                        self.frame(frame, descriptors)?;
                        if self.is_complete() {
                            return Ok(true);
                        }
                    }
                    Received::Garbage(what) => {
                        return Err(Error::new(ErrorKind::Protocol, format!("take over: {what}")));
                    }
                    Received::Lost => {
                        lost = true;
                        deadline = deadline.min(now() + DYING);
                    }
                }
            }
            if pidfd.is_none_or(|pidfd| is_dead(pidfd.as_fd())) {
                return Ok(false);
            }
            let left = deadline.saturating_duration_since(now());
            if left.is_zero() {
                return Err(gave_up(if lost {
                    "the predecessor closed the handover socket".into()
                } else {
                    "the predecessor made no offer in time".into()
                }));
            }
            wait(channel, pidfd, !lost, left)
                .map_err(|error| Error::with_source(ErrorKind::Os, "take over: wait", error))?;
        }
    }

    pub(crate) fn is_complete(&self) -> bool {
        self.generation.is_some() && self.missing == 0
    }

    pub(crate) fn frame(&mut self, frame: Frame, descriptors: Vec<OwnedFd>) -> Result<()> {
        let broken =
            |what: &str| Err(Error::new(ErrorKind::Protocol, format!("take over: {what}")));
        match frame {
            Frame::Offer { version, generation, total, patience } => {
                if !(VERSIONS.0..=VERSIONS.1).contains(&version) {
                    return broken(&format!("the predecessor chose protocol version {version}"));
                }
                if self.generation.is_some() {
                    return broken("a second offer");
                }
                self.generation = Some(generation);
                self.missing = usize::from(total);
                self.patience = Some(Duration::from_millis(patience.into()));
                Ok(())
            }
            Frame::Descriptors(entries) => {
                if entries.len() != descriptors.len() {
                    return broken(&format!(
                        "{} descriptors came of {}",
                        descriptors.len(),
                        entries.len()
                    ));
                }
                let Some(missing) = self.missing.checked_sub(entries.len()) else {
                    return broken("more descriptors than were announced");
                };
                for (entry, descriptor) in entries.into_iter().zip(descriptors) {
                    self.entry(entry, descriptor)?;
                }
                self.missing = missing;
                Ok(())
            }
            Frame::Abort { reason } => Err(Error::new(
                ErrorKind::GaveUp,
                format!("take over: the predecessor aborted: {reason}"),
            )),
            other => broken(&format!("{other:?} in place of an offer")),
        }
    }

    fn entry(&mut self, entry: Entry, descriptor: OwnedFd) -> Result<()> {
        let failed = |what: &str, error| {
            Error::with_source(ErrorKind::Inherit, format!("take over: {what}"), error)
        };
        match entry {
            Entry::Lock => self.ownership = Some(Ownership::from(descriptor)),
            Entry::State => {
                self.state = state::Inherited::read(descriptor)
                    .map_err(|error| failed("read the application state", error))?;
            }
            Entry::Generation { pid, generation } => {
                self.half = Some((pid, generation, descriptor));
            }
            Entry::Hurry => {
                if let Some((pid, generation, pidfd)) = self.half.take() {
                    let (pidfd, hurry) = (Arc::new(pidfd), Arc::new(descriptor));
                    self.older.push(Generation { pid, generation, pidfd, hurry });
                }
            }
            Entry::Named { name, index, kind, address, activated, file } => {
                let differs = differs(descriptor.as_fd(), kind, &address)
                    .map_err(|error| failed(&format!("look at `{name}`"), error))?;
                if let Some((have, at)) = differs {
                    return Err(Error::new(
                        ErrorKind::Inherit,
                        format!(
                            "take over `{name}`: it was announced as {kind} at {address} and is \
                             {have} at {at}"
                        ),
                    ));
                }
                self.sockets.push(Inherited {
                    name,
                    index,
                    kind,
                    address,
                    activated,
                    file: file.map(|(dev, ino, path)| SocketFile { path, dev, ino }),
                    descriptor: Some(descriptor),
                    fate: Fate::Unasked,
                });
            }
        }
        Ok(())
    }
}

/// Waits for the socket (unless its end was seen) or the predecessor's death.
fn wait(
    channel: &Channel,
    pidfd: Option<&OwnedFd>,
    socket: bool,
    patience: Duration,
) -> io::Result<()> {
    let mut fds = Vec::with_capacity(2);
    if socket {
        fds.push(PollFd::new(channel, PollFlags::IN));
    }
    if let Some(pidfd) = pidfd {
        fds.push(PollFd::new(pidfd, PollFlags::IN));
    }
    let patience = Timespec {
        tv_sec: i64::try_from(patience.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: patience.subsec_nanos().into(),
    };
    match poll(&mut fds, Some(&patience)) {
        Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

#[allow(clippy::disallowed_methods, reason = "this blocks, so no runtime's clock is running")]
fn now() -> Instant {
    Instant::now()
}

/// A pid as the protocol and the public types carry it.
pub(crate) fn number(pid: Pid) -> u32 {
    pid.as_raw_nonzero().get().unsigned_abs()
}
