//! Serving HTTP so that a restart loses no request: HTTP/1.1 and HTTP/2, for axum's routers and
//! any other tower service. See [`serve`].

use std::future::Future;
use std::net::SocketAddr;

#[doc(no_inline)]
pub use handover_http::{
    Accept, Close, CloseFuture, CloseLayer, Connections, Counts, HyperToTower, Plain, Server,
};
use handover_http::{Adapt, Spawn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream, unix};

use crate::{Connection, TcpListener, Tokio, UnixListener};

/// The future of [`serve`]. See [`handover_http::Serve`].
pub type Serve<L, S, H = Plain<<L as Accept>::Stream>> = handover_http::Serve<Tokio, L, S, H>;

/// Serves an axum router, or another tower service, on every connection of a listener. Give it to
/// [`run`](crate::Start::run).
///
/// A restart loses no request: see [`Server`]. Each connection has a task of its own, in the
/// runtime that polls this future.
///
/// ```no_run
/// use handover_tokio::http;
/// use hyper::body::Incoming;
/// use hyper::service::service_fn;
/// use hyper::{Request, Response};
///
/// # async fn serve() -> handover_tokio::Result<()> {
/// async fn answer(_: Request<Incoming>) -> Result<Response<String>, std::convert::Infallible> {
///     Ok(Response::new("hello\n".into()))
/// }
///
/// let start = handover_tokio::start()?;
/// let listener = start.listen_tcp("web", "0.0.0.0:3000")?;
/// let app = http::HyperToTower::new(service_fn(answer)); // a hyper service; axum's need no wrapper
/// start.run(http::serve(listener, app)).await?;
/// # Ok(())
/// # }
/// ```
pub fn serve<L: Accept, S>(listener: L, service: S) -> Serve<L, S> {
    Serve::new(Tokio, TokioTimer::new(), listener, service)
}

handover_http::accept!(TcpListener => Connection<TcpStream>, SocketAddr);
handover_http::accept!(UnixListener => Connection<UnixStream>, unix::SocketAddr);

impl Spawn for Tokio {
    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        tokio::spawn(task);
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin + Send + 'static> Adapt<S> for Tokio {
    type Io = TokioIo<S>;

    fn adapt(stream: S) -> TokioIo<S> {
        TokioIo::new(stream)
    }
}
