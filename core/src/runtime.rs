use std::fmt;
use std::future::Future;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::task::{Context, Poll};
use std::time::Instant;

use futures::Stream;

use crate::descriptor::Address;
use crate::registry::Claim;

/// A signal, by its number on this platform.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Signal(i32);

impl Signal {
    /// SIGHUP.
    pub const HUP: Signal = Signal(nix::sys::signal::SIGHUP as i32);
    /// SIGINT.
    pub const INT: Signal = Signal(nix::sys::signal::SIGINT as i32);
    /// SIGQUIT.
    pub const QUIT: Signal = Signal(nix::sys::signal::SIGQUIT as i32);
    /// SIGTERM.
    pub const TERM: Signal = Signal(nix::sys::signal::SIGTERM as i32);
    /// SIGUSR1.
    pub const USR1: Signal = Signal(nix::sys::signal::SIGUSR1 as i32);
    /// SIGUSR2.
    pub const USR2: Signal = Signal(nix::sys::signal::SIGUSR2 as i32);
    /// SIGTSTP.
    pub const TSTP: Signal = Signal(nix::sys::signal::SIGTSTP as i32);
    /// SIGWINCH.
    pub const WINCH: Signal = Signal(nix::sys::signal::SIGWINCH as i32);

    /// A signal that has no constant here. SIGKILL and SIGSTOP cannot be caught: registering them
    /// is an error of the runtime.
    pub const fn from_raw(number: i32) -> Self {
        Signal(number)
    }

    /// The signal's number.
    pub const fn as_raw(self) -> i32 {
        self.0
    }
}

impl fmt::Display for Signal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match nix::sys::signal::Signal::try_from(self.0) {
            Ok(signal) => f.write_str(signal.as_str()),
            Err(_) => write!(f, "signal {}", self.0),
        }
    }
}

/// What the driver needs of an async runtime: time, signals, and to be told when one descriptor
/// is readable.
///
/// The driver spawns nothing and starts no thread for waiting: it is polled inside
/// [`Start::run`](crate::Start::run), and these four are its only sources of wake-ups.
/// Everything that is created here is created inside the runtime's context, and dropped when
/// `run` ends or is dropped.
pub trait Runtime: Clone + Send + Sync + Unpin + 'static {
    /// Resolves once at or after its time. Dropping it cancels it.
    type Timer: Future<Output = ()> + Send;

    /// Yields each signal that arrived, in any order; several of one kind may be merged into one.
    ///
    /// From the moment [`signals`](Runtime::signals) returns, none may be lost: one that arrives
    /// before the first poll waits. Other handlers of the program must go on running.
    type Signals: Stream<Item = Signal> + Send + Unpin;

    /// A descriptor that the runtime's poller watches for being readable.
    type Watch: AsFd + Send + Unpin;

    /// The present time of the runtime's clock (a paused test clock included).
    fn now(&self) -> Instant;

    /// A timer for `at`; at once ready if that is in the past.
    fn timer(&self, at: Instant) -> Self::Timer;

    /// Catches `signals` from now on.
    ///
    /// # Errors
    /// Those of the system call, for example for a signal that cannot be caught.
    fn signals(&self, signals: &[Signal]) -> io::Result<Self::Signals>;

    /// Watches `descriptor`, an epoll instance, for being readable. The watch owns it, and closes
    /// it when it is dropped, after it has been deregistered.
    ///
    /// # Errors
    /// Those of the registration, for example that no more descriptors can be had.
    fn watch(&self, descriptor: OwnedFd) -> io::Result<Self::Watch>;

    /// Runs `operation` on the watched descriptor when it may be readable. If it returns
    /// [`WouldBlock`](io::ErrorKind::WouldBlock), the readiness was used up: wait for the next and
    /// wake the task then. Being called without cause is harmless.
    fn poll_readable<T>(
        watch: &mut Self::Watch,
        context: &mut Context<'_>,
        operation: impl FnMut(BorrowedFd<'_>) -> io::Result<T>,
    ) -> Poll<io::Result<T>>;
}

/// What every runtime's listener can do, for code that is generic over runtimes: an HTTP server, the
/// conformance suite.
pub trait Listener: Clone + Send + Sync + Unpin + 'static {
    /// An accepted connection, which carries its in-flight guard.
    type Connection: Send + Unpin + 'static;

    /// Polls for a connection: `None` once the listener has been given up, pending while another
    /// process owns it.
    ///
    /// # Errors
    /// Those of the system call. Most concern one connection or a shortage of descriptors.
    fn poll_accept(&self, context: &mut Context<'_>) -> Poll<io::Result<Option<Self::Connection>>>;
}

/// What every runtime's datagram socket can do, for code that is generic over runtimes.
pub trait Datagrams: Clone + Send + Sync + Unpin + 'static {
    /// Polls for a datagram: its length and its sender; `None` once the socket has been given up,
    /// pending while another process owns it.
    ///
    /// # Errors
    /// Those of the system call.
    fn poll_receive(
        &self,
        context: &mut Context<'_>,
        buffer: &mut [u8],
    ) -> Poll<io::Result<Option<(usize, Address)>>>;

    /// Sends a datagram without waiting, also while this process drains.
    ///
    /// # Errors
    /// Those of the system call; `WouldBlock` if a buffer is full and nothing was sent.
    fn try_send(&self, datagram: &[u8], to: &Address) -> io::Result<usize>;
}

/// The socket types of a runtime, by which [`Handle`](crate::Handle) has the same methods on each.
///
/// Each is made of a [`Claim`]: a socket with its name, which the type wraps in a
/// [`Gated`](crate::Gated).
pub trait Sockets: Runtime {
    /// A TCP listener whose connections carry their in-flight guard.
    type TcpListener: From<Claim>;
    /// The same for Unix stream sockets.
    type UnixListener: From<Claim>;
    /// A UDP socket that reads only while this process owns it.
    type UdpSocket: From<Claim>;
    /// The same for Unix datagram sockets.
    type UnixDatagram: From<Claim>;
}
