//! Handover for smol: a server replaces its own process without its clients noticing.
//!
//! It is not an executor and does not need smol's: it works wherever async-io does, and spawns
//! nothing (the module `http` gives its tasks to an executor of the program's).
//!
//! ```no_run
//! use handover_smol::Connection;
//! # async fn answer(_: Connection<async_net::TcpStream>) {}
//!
//! # fn main() -> std::io::Result<()> {
//! smol::block_on(async {
//!     let start = handover_smol::start()?;                     // inherits, if there is a predecessor
//!     let listener = start.listen_tcp("web", "0.0.0.0:3000")?; // inherited, or bound now
//!     let server = async {
//!         loop {
//!             if let Ok((connection, _)) = listener.accept().await {
//!                 smol::spawn(answer(connection)).detach();    // in flight until it is dropped
//!             }
//!         }
//!     };
//!     start.run(server).await?;                                // SIGHUP restarts, SIGTERM stops
//!     Ok(())
//! })
//! # }
//! ```
//!
//! # The contract
//!
//! That of [`handover_core`], with these types: [`TcpListener`] and [`UnixListener`] accept
//! [`Connection`]s of async-net's streams (`smol::net`), [`UdpSocket`] and [`UnixDatagram`] receive
//! while this process owns them.
//!
//! Several tasks may accept from one listener: a connection wakes all that wait.
//!
//! # How it is built
//!
//! It runs on async-io's poller and timers, and so with its thread `async-io`, and has none of its
//! own. Signals are caught by `signal-hook`, which leaves the handlers of others alone: those of
//! async-signal and tokio go on working in the same program. A listener is registered with
//! the poller while this process owns it and somebody waits for it; `O_NONBLOCK` is never changed.
//!
//! # Features
//!
//! - `http`: the module `http`, for serving HTTP over hyper so that a restart loses no request.
//!
//! # Platforms
//!
//! Linux, as [`handover_core`].
//!
//! # Cancel safety
//!
//! Dropping the future of `accept` or `recv_from` loses nothing.

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
    Start::new(Smol::new(), policy)
}
