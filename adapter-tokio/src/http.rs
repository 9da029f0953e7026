//! Serving HTTP so that a restart loses no request: HTTP/1.1 and HTTP/2, for axum's routers and
//! any other tower service. See [`serve`].

use std::error::Error;
use std::fmt;
use std::future::{Future, Ready, ready};
use std::io;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::future::{Either, select};
use handover_core::Drain;
#[doc(no_inline)]
pub use handover_http::{Close, CloseFuture, CloseLayer, Connections, Server};
use hyper::body::{Body, Incoming};
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream, unix};
use tokio::time::{Sleep, sleep, timeout};
use tower_service::Service;

use crate::shortage::{SHORTAGE, concerns_one_connection};
use crate::{Connection, TcpListener, UnixListener};

/// How long a client may take for the handshake below HTTP.
const HANDSHAKE: Duration = Duration::from_secs(30);

/// What [`serve`] accepts from.
pub trait Accept {
    /// A connection. It should carry its guard, as [`Connection`] does.
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

macro_rules! accept {
    ($listener:ty, $stream:ty, $address:ty) => {
        impl Accept for $listener {
            type Stream = Connection<$stream>;
            type Peer = $address;

            fn poll_accept(
                &mut self,
                context: &mut Context<'_>,
            ) -> Poll<io::Result<Option<(Self::Stream, Self::Peer)>>> {
                <$listener>::poll_accept(self, context)
            }

            fn drain(&self) -> Drain {
                <$listener>::drain(self).clone()
            }
        }
    };
}

accept!(TcpListener, TcpStream, SocketAddr);
accept!(UnixListener, UnixStream, unix::SocketAddr);

/// The handshake of [`serve`] unless another is [set](Serve::handshake): none.
pub type Plain<I> = fn(I) -> Ready<io::Result<I>>;

/// Serves an axum router, or another tower service, on every connection of a listener. Give it to
/// [`run`](crate::Start::run).
///
/// A restart loses no request: see [`Server`]. An accept that fails is not the end: what concerns
/// one connection is passed over, and for a lack of descriptors it waits a moment.
pub fn serve<L: Accept, S>(listener: L, service: S) -> Serve<L, S, Plain<L::Stream>> {
    let server = Server::new(TokioExecutor::new(), TokioTimer::new(), listener.drain());
    let handshake: Plain<L::Stream> = |stream| ready(Ok(stream));
    Serve { listener, service, handshake, prepare: None, server, shortage: None }
}

type Prepare<P> = Arc<dyn Fn(&mut Request<Incoming>, &P) + Send + Sync>;

/// The future of [`serve`]: it accepts, and spawns a task for each connection. It never ends.
///
/// # Cancel safety
/// Dropping it ends the accepting. The connections go on, up to [`Drain::cut`].
#[must_use = "nothing is served unless it is polled"]
pub struct Serve<L: Accept, S, H> {
    listener: L,
    service: S,
    handshake: H,
    prepare: Option<Prepare<L::Peer>>,
    server: Server<TokioExecutor>,
    /// While there are not enough descriptors.
    shortage: Option<Pin<Box<Sleep>>>,
}

impl<L: Accept, S, H> Serve<L, S, H> {
    /// Has each connection pass through `handshake` first, in its own task: TLS, or an option on
    /// the socket. A client has 30 seconds for it. A handshake under way at a restart is completed.
    ///
    /// The stream that comes out must own the one that went in, and so its guard.
    pub fn handshake<G, F, I>(self, handshake: G) -> Serve<L, S, G>
    where
        G: Fn(L::Stream) -> F,
        F: Future<Output = io::Result<I>>,
    {
        let Self { listener, service, prepare, server, shortage, .. } = self;
        Serve { listener, service, handshake, prepare, server, shortage }
    }

    /// Calls `prepare` with each request and the address that it came from, before the service:
    ///
    /// ```ignore
    /// http::serve(listener, app).prepare(|request, peer| {
    ///     request.extensions_mut().insert(axum::extract::ConnectInfo(*peer));
    /// })
    /// ```
    pub fn prepare(
        mut self,
        prepare: impl Fn(&mut Request<Incoming>, &L::Peer) + Send + Sync + 'static,
    ) -> Self {
        self.prepare = Some(Arc::new(prepare));
        self
    }

    /// Changes hyper's settings. See [`Server::configure`].
    pub fn configure(mut self, change: impl FnOnce(&mut auto::Builder<TokioExecutor>)) -> Self {
        self.server = self.server.configure(change);
        self
    }

    /// How many connections there are, now and later.
    pub fn connections(&self) -> Connections {
        self.server.connections()
    }
}

impl<L: Accept, S, H> fmt::Debug for Serve<L, S, H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Serve").field("server", &self.server).finish_non_exhaustive()
    }
}

// Nothing in it is pinned in place.
impl<L: Accept, S, H> Unpin for Serve<L, S, H> {}

impl<L, S, H, F, I, B> Future for Serve<L, S, H>
where
    L: Accept,
    L::Stream: Send + 'static,
    L::Peer: Send + Sync + 'static,
    S: Service<Request<Incoming>, Response = Response<B>> + Clone + Send + 'static,
    S::Future: Send + 'static,
    S::Error: Into<Box<dyn Error + Send + Sync>>,
    B: Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<Box<dyn Error + Send + Sync>>,
    H: Fn(L::Stream) -> F,
    F: Future<Output = io::Result<I>> + Send + 'static,
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let this = &mut *self;
        loop {
            if let Some(shortage) = &mut this.shortage {
                std::task::ready!(shortage.as_mut().poll(context));
                this.shortage = None;
            }
            match std::task::ready!(this.listener.poll_accept(context)) {
                Ok(Some((stream, peer))) => this.spawn(stream, peer),
                // Given up. The process may have other listeners, and connections of this one.
                Ok(None) => return Poll::Pending,
                Err(error) if concerns_one_connection(&error) => {}
                Err(error) => {
                    tracing::warn!(%error, "accepting failed");
                    this.shortage = Some(Box::pin(sleep(SHORTAGE)));
                }
            }
        }
    }
}

impl<L: Accept, S: Clone, H> Serve<L, S, H> {
    fn spawn<F, I, B>(&self, stream: L::Stream, peer: L::Peer)
    where
        L::Peer: Send + Sync + 'static,
        S: Service<Request<Incoming>, Response = Response<B>> + Send + 'static,
        S::Future: Send + 'static,
        S::Error: Into<Box<dyn Error + Send + Sync>>,
        B: Body + Send + 'static,
        B::Data: Send,
        B::Error: Into<Box<dyn Error + Send + Sync>>,
        H: Fn(L::Stream) -> F,
        F: Future<Output = io::Result<I>> + Send + 'static,
        I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let handshake = (self.handshake)(stream);
        let service = Prepared {
            service: self.service.clone(),
            prepare: self.prepare.clone().map(|prepare| (prepare, Arc::new(peer))),
        };
        let server = self.server.clone();
        tokio::spawn(async move {
            let handshake = pin!(timeout(HANDSHAKE, handshake));
            let ended = match select(handshake, pin!(server.drain().cut())).await {
                Either::Right(_) => return,
                Either::Left((Err(elapsed), _)) => Err(elapsed.into()),
                Either::Left((Ok(Err(error)), _)) => Err(error.into()),
                Either::Left((Ok(Ok(stream)), _)) => {
                    let service = TowerToHyperService::new(service);
                    server.serve_connection(TokioIo::new(stream), service).await
                }
            };
            if let Err(error) = ended {
                tracing::debug!(error = &*error as &dyn Error, "a connection failed");
            }
        });
    }
}

/// A service with what is done before it.
struct Prepared<S, P> {
    service: S,
    prepare: Option<(Prepare<P>, Arc<P>)>,
}

impl<S: Clone, P> Clone for Prepared<S, P> {
    fn clone(&self) -> Self {
        Self { service: self.service.clone(), prepare: self.prepare.clone() }
    }
}

impl<S, P> Service<Request<Incoming>> for Prepared<S, P>
where
    S: Service<Request<Incoming>>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.service.poll_ready(context)
    }

    fn call(&mut self, mut request: Request<Incoming>) -> S::Future {
        if let Some((prepare, peer)) = &self.prepare {
            prepare(&mut request, peer);
        }
        self.service.call(request)
    }
}
