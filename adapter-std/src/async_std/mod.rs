//! Handover for async-std. **Legacy:** async-std was discontinued in March 2025, and its authors
//! point to smol. This module stays for the programs that are there; new ones should take smol,
//! on whose poller async-std runs anyway.
//!
//! ```no_run
//! use async_std::net::TcpStream;
//! use async_std::task;
//! use handover_std::async_std::Connection;
//! # async fn answer(_: Connection<TcpStream>) {}
//!
//! # fn main() -> std::io::Result<()> {
//! task::block_on(async {
//!     let start = handover_std::async_std::start()?;           // inherits, if there is a predecessor
//!     let listener = start.listen_tcp("web", "0.0.0.0:3000")?; // inherited, or bound now
//!     let server = async {
//!         loop {
//!             if let Ok((connection, _)) = listener.accept().await {
//!                 task::spawn(answer(connection));             // in flight until it is dropped
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
//! [`Connection`]s of async-std's streams, [`UdpSocket`] and [`UnixDatagram`] receive while this
//! process owns them.
//!
//! async-std panics if the kernel lets it register no more sockets with its poller (which can
//! happen at `fs.epoll.max_user_watches`): so does `accept` then.
//!
//! # How it is built
//!
//! It is [`handover_smol`] with async-std's streams.
//!
//! # Platforms
//!
//! Linux, as [`handover_core`].
//!
//! # Cancel safety
//!
//! Dropping the future of `accept` or `recv_from` loses nothing.

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
    Start::new(AsyncStd::new(), policy)
}
