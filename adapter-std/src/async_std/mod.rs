//! Handover for async-std. Legacy.
mod listener;
mod runtime;

pub use handover_core::*;
#[doc(inline)]
pub use handover_smol::{UdpSocket, UnixDatagram};
pub use listener::{TcpListener, UnixListener};
pub use runtime::AsyncStd;

/// A process before its first accept. See [`handover_core::Start`].
pub type Start = handover_core::Start<AsyncStd>;
/// A view of a running instance. See [`handover_core::Handle`].
pub type Handle = handover_core::Handle<AsyncStd>;

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
    Start::new(AsyncStd, policy)
}
