//! What an adapter adds to have a `serve`: where tasks run, how hyper reads and writes, and what is
//! accepted from.

use std::future::Future;
use std::io;
use std::task::{Context, Poll};

use handover_core::Drain;
use hyper::rt::{Executor, Read, Write};

/// Where the tasks of a [`Serve`](crate::Serve) run: one for each connection, and one for each
/// stream of an HTTP/2 connection.
pub trait Spawn: Clone + Send + Sync + 'static {
    /// Runs `task` to its end, beside whoever calls.
    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static);
}

/// How hyper reads and writes a runtime's streams of type `S`.
pub trait Adapt<S>: Spawn {
    /// The stream with hyper's traits. It owns `S`.
    type Io: Read + Write + Unpin + Send + 'static;

    /// Gives the stream these traits.
    fn adapt(stream: S) -> Self::Io;
}

/// A runtime as hyper's executor.
#[derive(Debug, Clone, Copy)]
pub struct Tasks<R>(pub(crate) R);

impl<R, F> Executor<F> for Tasks<R>
where
    R: Spawn,
    F: Future<Output = ()> + Send + 'static,
{
    fn execute(&self, task: F) {
        self.0.spawn(task);
    }
}

/// What `http::serve` accepts from.
pub trait Accept {
    /// A connection. It should carry its guard, as an adapter's `Connection` does.
    type Stream;
    /// The address of the other end.
    type Peer;

    /// Polls for a connection: `None` once the listener has been given up.
    ///
    /// # Errors
    /// Those of the system call.
    #[allow(clippy::type_complexity, reason = "nothing would be clearer for a name")]
    fn poll_accept(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<io::Result<Option<(Self::Stream, Self::Peer)>>>;

    /// The drain signal for its connections.
    fn drain(&self) -> Drain;
}

/// Implements [`Accept`] for a listener type made by
/// [`handover_core::listener!`](handover_core::listener).
///
/// ```ignore
/// handover_http::accept!(TcpListener => Connection<TcpStream>, SocketAddr);
/// ```
#[macro_export]
macro_rules! accept {
    ($listener:ty => $connection:ty, $address:ty) => {
        impl $crate::Accept for $listener {
            type Stream = $connection;
            type Peer = $address;

            fn poll_accept(
                &mut self,
                context: &mut ::std::task::Context<'_>,
            ) -> ::std::task::Poll<::std::io::Result<Option<(Self::Stream, Self::Peer)>>> {
                <$listener>::poll_accept(self, context)
            }

            fn drain(&self) -> $crate::Drain {
                <$listener>::drain(self).clone()
            }
        }
    };
}
