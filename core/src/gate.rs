//! The gate through which every accept goes.
//!
//! A gate is a lock around the socket. Accepting holds it for reading, for the length of one
//! non-blocking system call; closing it takes it for writing, and so waits for accepts in
//! progress, not for the user's loops. A closed gate has given its socket back from the runtime's
//! poller: a poller that does not accept must not take the wake-ups of the process that does.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::task::{Context, Poll, Waker, ready};

use socket2::SockRef;

use crate::bind;
use crate::descriptor::{Address, Kind, describe};
use crate::drain::Drain;
use crate::in_flight::{Guard, InFlight};
use crate::waiters::Waiters;

/// A runtime's socket: something that a descriptor can be attached to and detached from.
pub trait Source: AsFd + Sized + Send + Sync + 'static {
    /// Whether the runtime wakes every task that waits for the socket. Most remember only the one
    /// that asked last: the gate then gives them a waker that wakes all.
    const KNOWS_EVERY_TASK: bool = false;

    /// Registers the (non-blocking) descriptor with the runtime's poller. Called inside the
    /// runtime's context, from a poll of the user's.
    ///
    /// # Errors
    /// Those of the registration. The descriptor is closed then; the gate keeps a copy for the
    /// next attempt.
    fn attach(descriptor: OwnedFd) -> io::Result<Self>;

    /// Deregisters it and gives the descriptor back. Called from the driver.
    ///
    /// # Errors
    /// Those of the deregistration.
    fn detach(self) -> io::Result<OwnedFd>;
}

enum Slot<S> {
    /// The gate is closed.
    Closed(OwnedFd),
    /// Open; registered at the next poll, inside the runtime's context.
    Open { socket: OwnedFd, last: bool },
    /// Open and registered. `last`: it takes what is queued and is closed then.
    Attached { socket: S, last: bool },
    /// Given up; or, for an instant under the lock, between two of the others.
    Ended,
}

struct Shared<S> {
    slot: RwLock<Slot<S>>,
    waiters: Arc<Waiters>,
    /// Wakes all that wait. A runtime that remembers one task for each socket remembers this.
    waker: Waker,
    in_flight: Arc<InFlight>,
    drain: Drain,
    kind: Kind,
}

/// A runtime's socket behind its gate. What an adapter wraps in its listener type.
///
/// The descriptor belongs to the gate: it stays open when this value is dropped, since a successor
/// may inherit it, and is closed when the instance ends, lets go of it, or
/// [`Handle::close`](crate::Handle::close) was called.
pub struct Gated<S> {
    shared: Arc<Shared<S>>,
}

impl<S> Clone for Gated<S> {
    fn clone(&self) -> Self {
        Self { shared: Arc::clone(&self.shared) }
    }
}

impl<S: Source> Gated<S> {
    pub(crate) fn new(
        socket: OwnedFd,
        kind: Kind,
        in_flight: Arc<InFlight>,
        drain: Drain,
        open: bool,
    ) -> Self {
        let slot = if open { Slot::Open { socket, last: false } } else { Slot::Closed(socket) };
        let waiters = Arc::new(Waiters::default());
        let waker = Waker::from(Arc::clone(&waiters));
        let shared = Shared { slot: RwLock::new(slot), waiters, waker, in_flight, drain, kind };
        Self { shared: Arc::new(shared) }
    }

    /// Tries `accept` through the gate. Pending while the gate is closed, `Ok(None)` once the
    /// socket has been given up for good.
    ///
    /// The context that `accept` gets is the gate's, which is the same for all tasks that wait
    /// here and wakes them all, unless the [source knows every task](Source::KNOWS_EVERY_TASK).
    ///
    /// The guard that comes with the result was taken before the accept.
    ///
    /// # Errors
    /// Those of `accept`, and of the registration with the runtime's poller.
    pub fn poll_accept<T>(
        &self,
        context: &mut Context<'_>,
        mut accept: impl FnMut(&S, &mut Context<'_>) -> Poll<io::Result<T>>,
    ) -> Poll<io::Result<Option<(T, Guard)>>> {
        let in_flight = &self.shared.in_flight;
        self.poll_io(context, |socket, context| {
            let guard = in_flight.guard();
            accept(socket, context).map_ok(|connection| (connection, guard))
        })
    }

    /// The same without a guard, for sockets without connections.
    ///
    /// # Errors
    /// As for [`poll_accept`](Self::poll_accept).
    pub fn poll_io<T>(
        &self,
        context: &mut Context<'_>,
        mut operation: impl FnMut(&S, &mut Context<'_>) -> Poll<io::Result<T>>,
    ) -> Poll<io::Result<Option<T>>> {
        loop {
            let slot = self.read();
            // Under the lock, so that whoever changes the slot wakes us afterwards; and before the
            // operation, since the socket may be ready as soon as that has seen that it is not.
            self.shared.waiters.register(context.waker());
            match &*slot {
                Slot::Attached { socket, .. } => {
                    let all = &self.shared.waker;
                    let waker = if S::KNOWS_EVERY_TASK { context.waker() } else { all };
                    return operation(socket, &mut Context::from_waker(waker))
                        .map(|result| result.map(Some));
                }
                Slot::Closed(_) => {}
                Slot::Ended => return Poll::Ready(Ok(None)),
                Slot::Open { .. } => {
                    drop(slot);
                    ready!(self.attach())?;
                    continue;
                }
            }
            return Poll::Pending;
        }
    }

    /// Looks at the socket, whether the gate is open or closed. `None` once it has been given up.
    pub fn with_socket<T>(&self, operation: impl FnOnce(BorrowedFd<'_>) -> T) -> Option<T> {
        match &*self.read() {
            Slot::Closed(socket) | Slot::Open { socket, .. } => Some(operation(socket.as_fd())),
            Slot::Attached { socket, .. } => Some(operation(socket.as_fd())),
            Slot::Ended => None,
        }
    }

    /// The address that the socket is bound to.
    ///
    /// # Errors
    /// Those of the system call; `NotConnected` once the socket has been given up.
    pub fn local_address(&self) -> io::Result<Address> {
        let described = self.with_socket(describe).unwrap_or_else(given_up)?;
        Ok(described.1)
    }

    /// The drain signal for the connections that come through this gate.
    pub fn drain(&self) -> &Drain {
        &self.shared.drain
    }

    /// Sends a datagram without waiting, whether the gate is open or closed: answers to what this
    /// process has received are its own to give.
    ///
    /// # Errors
    /// Those of the system call; `WouldBlock` if a buffer is full; `NotConnected` once the socket
    /// has been given up; `InvalidInput` for an address to which nothing can be sent.
    pub fn send(&self, datagram: &[u8], to: &Address) -> io::Result<usize> {
        let to = to.to_socket()?;
        self.with_socket(|socket| SockRef::from(&socket).send_to(datagram, &to))
            .unwrap_or_else(given_up)
    }

    fn attach(&self) -> Poll<io::Result<()>> {
        let mut slot = self.write();
        if let Slot::Open { .. } = &*slot
            && let Slot::Open { socket, last } = std::mem::replace(&mut *slot, Slot::Ended)
        {
            // Out of descriptors the registration may fail, and must not take the socket along.
            let attached = match socket.try_clone() {
                Ok(spare) => S::attach(socket).map_err(|error| (error, spare)),
                Err(error) => Err((error, socket)),
            };
            match attached {
                Ok(socket) => *slot = Slot::Attached { socket, last },
                Err((error, socket)) => {
                    *slot = Slot::Open { socket, last };
                    return Poll::Ready(Err(error));
                }
            }
        }
        Poll::Ready(Ok(()))
    }

    fn read(&self) -> RwLockReadGuard<'_, Slot<S>> {
        self.shared.slot.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Slot<S>> {
        self.shared.slot.write().unwrap_or_else(PoisonError::into_inner)
    }
}

fn given_up<T>() -> io::Result<T> {
    Err(io::Error::new(io::ErrorKind::NotConnected, "the socket has been given up"))
}

/// A gate, whatever socket is behind it.
pub(crate) trait Gate: Send + Sync {
    /// Opens it: the first accept, or the first after a rollback.
    fn open(&self);
    /// Closes it. When this returns no accept is in progress and none will begin.
    fn close(&self);
    /// Closes the socket of a closed gate; lets one that is open serve what is queued first.
    fn let_go(&self);
    /// Ends it if it serves its last connections and no more wait; whether it does so no longer.
    fn settle(&self) -> bool;
    /// Whether the socket has been given up.
    fn has_ended(&self) -> bool;
    /// Whether a successor may have the socket: neither given up nor about to be.
    fn is_kept(&self) -> bool;
    /// Closes the socket at once.
    fn end(&self);
    /// A copy of the descriptor, for a successor.
    fn duplicate(&self) -> io::Result<OwnedFd>;
}

impl<S: Source> Gate for Gated<S> {
    fn open(&self) {
        let mut slot = self.write();
        if let Slot::Closed(_) = &*slot
            && let Slot::Closed(socket) = std::mem::replace(&mut *slot, Slot::Ended)
        {
            if self.shared.kind == Kind::TcpListener {
                // A successor that closed it for good, and died, has left its filter behind.
                let _ = bind::allow_new_connections(socket.as_fd());
            }
            *slot = Slot::Open { socket, last: false };
        }
        drop(slot);
        self.shared.waiters.wake_all();
    }

    fn close(&self) {
        let mut slot = self.write();
        *slot = match std::mem::replace(&mut *slot, Slot::Ended) {
            Slot::Attached { socket, .. } => match socket.detach() {
                Ok(socket) => Slot::Closed(socket),
                Err(error) => {
                    tracing::error!(%error, "a listener was lost when it left the poller");
                    Slot::Ended
                }
            },
            Slot::Open { socket, .. } => Slot::Closed(socket),
            other => other,
        };
        let is_lost = matches!(&*slot, Slot::Ended);
        drop(slot);
        if is_lost {
            self.shared.waiters.wake_all();
        }
    }

    fn let_go(&self) {
        let mut slot = self.write();
        match &mut *slot {
            Slot::Closed(_) => *slot = Slot::Ended,
            Slot::Open { last, .. } | Slot::Attached { last, .. } => *last = true,
            Slot::Ended => {}
        }
        drop(slot);
        if self.shared.kind == Kind::TcpListener {
            // Best effort: without it a connection may arrive between the last look and the close.
            self.with_socket(bind::stop_new_connections);
        }
        self.shared.waiters.wake_all();
    }

    fn settle(&self) -> bool {
        let mut slot = self.write();
        let waits = match &*slot {
            Slot::Open { socket, last: true } => is_readable(socket.as_fd()),
            Slot::Attached { socket, last: true } => is_readable(socket.as_fd()),
            _ => return true,
        };
        if !waits {
            *slot = Slot::Ended;
            drop(slot);
            self.shared.waiters.wake_all();
        }
        !waits
    }

    fn has_ended(&self) -> bool {
        matches!(&*self.read(), Slot::Ended)
    }

    fn is_kept(&self) -> bool {
        match &*self.read() {
            Slot::Closed(_) => true,
            Slot::Open { last, .. } | Slot::Attached { last, .. } => !last,
            Slot::Ended => false,
        }
    }

    fn end(&self) {
        *self.write() = Slot::Ended;
        self.shared.waiters.wake_all();
    }

    fn duplicate(&self) -> io::Result<OwnedFd> {
        self.with_socket(|socket| socket.try_clone_to_owned())
            .unwrap_or_else(|| Err(io::ErrorKind::NotConnected.into()))
    }
}

/// Whether a connection or a datagram waits.
pub(crate) fn is_readable(socket: BorrowedFd<'_>) -> bool {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let mut fds = [PollFd::new(&socket, PollFlags::IN)];
    let zero = Timespec { tv_sec: 0, tv_nsec: 0 };
    loop {
        match poll(&mut fds, Some(&zero)) {
            Err(rustix::io::Errno::INTR) => {}
            result => return result.is_ok_and(|ready| ready > 0),
        }
    }
}
