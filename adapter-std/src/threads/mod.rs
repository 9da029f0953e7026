//! Handover for plain threads: blocking calls, and no executor in sight.
//!
//! ```no_run
//! use std::net::TcpStream;
//! use std::thread;
//! use handover_std::threads::{self, Connection};
//! # fn answer(_: Connection<TcpStream>) {}
//!
//! # fn main() -> std::io::Result<()> {
//! let start = threads::start()?;                           // inherits, if there is a predecessor
//! let listener = start.listen_tcp("web", "0.0.0.0:3000")?; // inherited, or bound now
//! start.run(move || {                                      // SIGHUP restarts, SIGTERM stops
//!     for connection in listener.incoming().flatten() {
//!         thread::spawn(|| answer(connection));            // in flight until it is dropped
//!     }
//! })?;
//! # Ok(())
//! # }
//! ```
//!
//! # The contract
//!
//! That of [`handover_core`], with these types: [`TcpListener`] and [`UnixListener`] accept
//! [`Connection`]s of the standard library's streams, [`UdpSocket`] and [`UnixDatagram`] receive
//! while this process owns them. What threads force to be different from the other runtimes:
//!
//! - What is async there blocks here: `accept`, `recv_from`, and [`Start::run`], which takes a
//!   closure. What returns a future everywhere ([`Handle::restart`], [`Drain::closing`]) does so
//!   here too: [`block_on`] waits for it. A [hook](handover_core::Start::before) is an async block
//!   that may block.
//! - A thread that waits cannot be dropped. While this process drains, `accept` and `incoming` wait
//!   as everywhere; once the listener has been given up, `accept` fails with
//!   [`NotConnected`](std::io::ErrorKind::NotConnected) (elsewhere it waits for ever) and
//!   `incoming` ends.
//! - A thread that serves a connection when the drain deadline comes is not waited for, and ends
//!   with the process.
//! - A thread in a read cannot be told that the process drains. Between two requests
//!   [`wait_readable`] waits for either, for servers that keep connections alive; [`close`] ends one
//!   after its last answer without a reset.
//!
//! # How it is built
//!
//! [`Start::run`] starts one thread, `server`, for the closure, and waits on its own. Waiting is
//! always poll(2) on the thread that waits, with a descriptor for wake-ups for each of them;
//! [`wait_readable`] needs none of its own, and waits for one that all share. Every listener that
//! somebody accepts from has an epoll instance around it, from which the socket can be taken while
//! threads wait. Signals are caught by `signal-hook`, which leaves the handlers of others alone.
//! `O_NONBLOCK` of shared sockets is never changed; accepted streams block.
//!
//! # Platforms
//!
//! Linux, as [`handover_core`].

mod datagram;
mod idle;
mod listener;
mod runtime;
mod source;
mod start;
mod wait;

pub use datagram::{UdpSocket, UnixDatagram};
pub use handover_core::*;
pub use idle::{Next, close, wait_readable};
pub use listener::{TcpListener, UnixListener};
pub use runtime::{Signals, Threads, Timer};
pub use start::Start;
pub use wait::{Watch, block_on};

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
    let start = handover_core::Start::new(Threads, policy)?;
    // Before connections race for numbers: it then has the same in every generation. Without it,
    // the first wait tries again.
    let _ = start.drain().over_descriptor();
    Ok(start.into())
}

fn given_up() -> std::io::Error {
    std::io::Error::new(std::io::ErrorKind::NotConnected, "the socket has been given up")
}
