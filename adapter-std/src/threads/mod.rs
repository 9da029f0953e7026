//! Handover for plain threads: blocking calls, and no executor in sight.
mod datagram;
mod listener;
mod runtime;
mod source;
mod start;
mod wait;

pub use datagram::{UdpSocket, UnixDatagram};
pub use handover_core::*;
pub use listener::{TcpListener, UnixListener};
pub use runtime::{Signals, Threads, Timer, Watch};
pub use start::Start;
pub use wait::block_on;

/// A view of a running instance. See [`handover_core::Handle`].
pub type Handle = handover_core::Handle<Threads>;

/// Begins, with the default [`Policy`]: takes what a predecessor or the service manager left. Call
/// it before anything that takes long.
///
/// # Errors
/// Those of [`Start::new`](handover_core::Start::new).
pub fn start() -> Result<Start> {
    start_with(Policy::new())
}

/// The same with a policy of one's own.
///
/// # Errors
/// Those of [`Start::new`](handover_core::Start::new).
pub fn start_with(policy: Policy) -> Result<Start> {
    handover_core::Start::new(Threads, policy).map(Start::from)
}

fn given_up() -> std::io::Error {
    std::io::Error::new(std::io::ErrorKind::NotConnected, "the socket has been given up")
}
