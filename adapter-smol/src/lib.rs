//! Handover for smol.
mod datagram;
#[cfg(feature = "http")]
pub mod http;
mod listener;
mod runtime;
mod source;

pub use datagram::{UdpSocket, UnixDatagram};
pub use handover_core::*;
pub use listener::{TcpListener, UnixListener};
pub use runtime::{Signals, Smol, Timer, Watch};
pub use source::Registered;

/// A process before its first accept. See [`handover_core::Start`].
pub type Start = handover_core::Start<Smol>;
/// A view of a running instance. See [`handover_core::Handle`].
pub type Handle = handover_core::Handle<Smol>;

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
    Start::new(Smol, policy)
}
