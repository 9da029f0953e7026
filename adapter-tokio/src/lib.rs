//! Handover for tokio: a server replaces its own process without its clients noticing.
//!
//! It is not a server, and spawns nothing: `run` is a future beside yours.
//!
//! ```no_run
//! use handover_tokio::Connection;
//! # async fn answer(_: Connection<tokio::net::TcpStream>) {}
//!
//! #[tokio::main]
//! async fn main() -> std::io::Result<()> {
//!     let start = handover_tokio::start()?;                    // inherits, if there is a predecessor
//!     let listener = start.listen_tcp("web", "0.0.0.0:3000")?; // inherited, or bound now
//!     let server = async {
//!         loop {
//!             if let Ok((connection, _)) = listener.accept().await {
//!                 tokio::spawn(answer(connection));            // in flight until it is dropped
//!             }
//!         }
//!     };
//!     start.run(server).await?;                                // SIGHUP restarts, SIGTERM stops
//!     Ok(())
//! }
//! ```
//!
//! # The contract
//!
//! That of [`handover_core`], with these types: [`TcpListener`] and [`UnixListener`] accept
//! [`Connection`]s of tokio's streams, [`UdpSocket`] and [`UnixDatagram`] receive while this
//! process owns them.
//!
//! Several tasks may accept from one listener: a connection wakes all that wait.
//!
//! # How it is built
//!
//! It runs inside a tokio runtime with I/O and time enabled, of either flavour, on tokio's poller,
//! timers (its paused clock included) and signals, which leave the handlers of others alone. A
//! listener is registered with the poller while this process owns it and somebody waits for it;
//! `O_NONBLOCK` is never changed.
//!
//! # Features
//!
//! - `http`: the module `http`, for serving HTTP over hyper so that a restart loses no request.
//! - `axum08`: `axum::serve` with these listeners.
//!
//! # Platforms
//!
//! Linux, as [`handover_core`].
//!
//! # Cancel safety
//!
//! Dropping the future of `accept` or `recv_from` loses nothing.

#[cfg(feature = "axum08")]
mod axum;
mod connection;
mod datagram;
#[cfg(feature = "http")]
pub mod http;
mod listener;
mod runtime;
mod source;

pub use connection::Connection;
pub use datagram::{UdpSocket, UnixDatagram};
pub use handover_core::*;
pub use listener::{TcpListener, UnixListener};
pub use runtime::{Signals, Tokio, Watch};
pub use source::Registered;

/// A process before its first accept. See [`handover_core::Start`].
pub type Start = handover_core::Start<Tokio>;
/// A view of a running instance. See [`handover_core::Handle`].
pub type Handle = handover_core::Handle<Tokio>;

/// Begins, with the default [`Policy`]: takes what a predecessor or the service manager left. Call
/// it inside a tokio runtime with I/O and time enabled, before anything that takes long.
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
    Start::new(Tokio, policy)
}

#[cfg(test)]
mod tests {
    /// `tokio::spawn(start.run(..))` must compile.
    #[tokio::test]
    async fn run_may_move_between_threads() -> Result<(), crate::Error> {
        fn may_move<T: Send>(value: T) -> T {
            value
        }
        let start = crate::start_with(crate::Policy::new().without_signals())?;
        let handle = start.handle();
        handle.stop();
        let exit = may_move(start.run(std::future::pending::<()>())).await?;
        assert_eq!((exit.successor, exit.cut), (None, 0));
        Ok(())
    }
}
