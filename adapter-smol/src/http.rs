//! Serving HTTP so that a restart loses no request: HTTP/1.1 and HTTP/2, for axum's routers and
//! any other tower service, on every executor. See [`serve`].

use std::fmt;
use std::future::Future;
use std::net::SocketAddr;
use std::os::unix;
use std::pin::Pin;

use async_net::TcpStream;
use async_net::unix::UnixStream;
use futures::{AsyncRead, AsyncWrite};
#[doc(no_inline)]
pub use handover_http::{
    Accept, Close, CloseFuture, CloseLayer, Connections, Counts, HyperToTower, Plain, Server,
};
use handover_http::{Adapt, Spawn};
use smol_hyper::rt::{FuturesIo, SmolTimer};

use crate::{Connection, TcpListener, UnixListener};

/// What [`serve`] has its executor run: a connection, or a stream of an HTTP/2 connection.
pub type Task = Pin<Box<dyn Future<Output = ()> + Send>>;

/// The future of [`serve`]. See [`handover_http::Serve`].
pub type Serve<L, S, F, H = Plain<<L as Accept>::Stream>> =
    handover_http::Serve<Executor<F>, L, S, H>;

/// Serves an axum router, or another tower service, on every connection of a listener. Give it to
/// [`run`](crate::Start::run).
///
/// A restart loses no request: see [`Server`]. Each connection has a task of its own, which `spawn`
/// gives to an executor. smol has no current one that could be asked for, and a program that runs
/// its own should not find a second, with its threads, beside it. So the program says which:
///
/// ```no_run
/// use handover_smol::http;
/// use hyper::body::Incoming;
/// use hyper::service::service_fn;
/// use hyper::{Request, Response};
///
/// # async fn serve() -> handover_smol::Result<()> {
/// async fn answer(_: Request<Incoming>) -> Result<Response<String>, std::convert::Infallible> {
///     Ok(Response::new("hello\n".into()))
/// }
///
/// let start = handover_smol::start()?;
/// let listener = start.listen_tcp("web", "0.0.0.0:3000")?;
/// let app = http::HyperToTower::new(service_fn(answer)); // a hyper service; axum's need no wrapper
/// start.run(http::serve(listener, app, |task| smol::spawn(task).detach())).await?;
/// # Ok(())
/// # }
/// ```
///
/// With an executor of its own, in an `Arc` or a `static`, that is
/// `move |task| executor.spawn(task).detach()`. A task that `spawn` drops is a connection that is
/// closed.
pub fn serve<L: Accept, S, F>(listener: L, service: S, spawn: F) -> Serve<L, S, F>
where
    F: Fn(Task) + Clone + Send + Sync + 'static,
{
    Serve::new(Executor(spawn), SmolTimer::new(), listener, service)
}

handover_http::accept!(TcpListener => Connection<TcpStream>, SocketAddr);
handover_http::accept!(UnixListener => Connection<UnixStream>, unix::net::SocketAddr);

/// The executor that [`serve`] was given.
#[derive(Clone, Copy)]
pub struct Executor<F>(F);

impl<F> Spawn for Executor<F>
where
    F: Fn(Task) + Clone + Send + Sync + 'static,
{
    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        (self.0)(Box::pin(task));
    }
}

impl<F, S> Adapt<S> for Executor<F>
where
    F: Fn(Task) + Clone + Send + Sync + 'static,
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    type Io = FuturesIo<S>;

    fn adapt(stream: S) -> FuturesIo<S> {
        FuturesIo::new(stream)
    }
}

impl<F> fmt::Debug for Executor<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Executor").finish_non_exhaustive()
    }
}
