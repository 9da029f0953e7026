use std::error::Error;
use std::fmt;
use std::future::{Future, Ready, poll_fn, ready};
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::future::{Either, select};
use handover_core::pause_after;
use http::{Request, Response};
use http_body::Body;
use hyper::body::Incoming;
use hyper::rt::{Sleep, Timer};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use tower_service::Service;

use crate::connections::Connections;
use crate::runtime::{Accept, Adapt, Spawn, Tasks};
use crate::server::Server;
use crate::service::{Prepare, Prepared};

/// How long a client may take for the handshake below HTTP.
const HANDSHAKE: Duration = Duration::from_secs(30);

/// How many connections to accept before others have a turn: the driver, which is polled beside it,
/// must hear of a signal also in a flood. Some runtimes see to that, not all.
const TURN: usize = 64;

/// The handshake of [`Serve`] unless another is [set](Serve::handshake): none.
pub type Plain<I> = fn(I) -> Ready<io::Result<I>>;

/// The future of an adapter's `http::serve`: it accepts from a listener, and spawns a task for each
/// connection, which lives up to [`Drain::cut`](handover_core::Drain::cut). It never ends.
///
/// The listener is the library's, as ever; what `serve` was given belongs to this future, and a
/// clone of the service to each connection.
///
/// An accept that fails is not the end: what concerns one connection is passed over, and for a lack
/// of descriptors it [waits a moment](handover_core::pause_after).
///
/// # Cancel safety
/// Dropping it ends the accepting. The connections go on.
#[must_use = "nothing is served unless it is polled"]
pub struct Serve<R, L: Accept, S, H = Plain<<L as Accept>::Stream>> {
    runtime: R,
    listener: L,
    service: S,
    handshake: H,
    prepare: Option<Prepare<L::Peer>>,
    server: Server<Tasks<R>>,
    /// While there are not enough descriptors.
    shortage: Option<Pin<Box<dyn Sleep>>>,
}

impl<R: Spawn, L: Accept, S> Serve<R, L, S> {
    /// Serves `service` on every connection of `listener`. For adapters, which have an
    /// `http::serve` that knows its runtime and timer.
    pub fn new(
        runtime: R,
        timer: impl Timer + Clone + Send + Sync + 'static,
        listener: L,
        service: S,
    ) -> Self {
        let server = Server::new(Tasks(runtime.clone()), timer, listener.drain());
        let handshake: Plain<L::Stream> = |stream| ready(Ok(stream));
        Self { runtime, listener, service, handshake, prepare: None, server, shortage: None }
    }
}

impl<R: Spawn, L: Accept, S, H> Serve<R, L, S, H> {
    /// Has each connection pass through `handshake` first, in its own task: TLS, or an option on
    /// the socket. A client has 30 seconds for it; an error ends this connection only. A handshake
    /// under way at a restart is completed.
    ///
    /// The stream that comes out must own the one that went in, and so its guard.
    pub fn handshake<G, F, I>(self, handshake: G) -> Serve<R, L, S, G>
    where
        G: Fn(L::Stream) -> F,
        F: Future<Output = io::Result<I>>,
    {
        let Self { runtime, listener, service, prepare, server, shortage, .. } = self;
        Serve { runtime, listener, service, handshake, prepare, server, shortage }
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
    pub fn configure(mut self, change: impl FnOnce(&mut auto::Builder<Tasks<R>>)) -> Self {
        self.server = self.server.configure(change);
        self
    }

    /// How many connections there are, now and later. One whose handshake is under way is not
    /// counted yet ([`Handle::in_flight`](handover_core::Handle::in_flight) counts it).
    pub fn connections(&self) -> Connections {
        self.server.connections()
    }
}

impl<R, L: Accept, S, H> fmt::Debug for Serve<R, L, S, H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Serve").field("server", &self.server).finish_non_exhaustive()
    }
}

// Nothing in it is pinned in place.
impl<R, L: Accept, S, H> Unpin for Serve<R, L, S, H> {}

impl<R, L, S, H, F, I, B> Future for Serve<R, L, S, H>
where
    R: Adapt<I>,
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
    I: Send + 'static,
{
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let this = &mut *self;
        for _ in 0..TURN {
            if let Some(shortage) = &mut this.shortage {
                std::task::ready!(shortage.as_mut().poll(context));
                this.shortage = None;
            }
            match std::task::ready!(this.listener.poll_accept(context)) {
                Ok(Some((stream, peer))) => this.spawn(stream, peer),
                // Given up. The process may have other listeners, and connections of this one.
                Ok(None) => return Poll::Pending,
                Err(error) => {
                    if let Some(pause) = pause_after(&error) {
                        tracing::warn!(%error, "accepting failed");
                        this.shortage = Some(this.server.timer().sleep(pause));
                    }
                }
            }
        }
        context.waker().wake_by_ref();
        Poll::Pending
    }
}

impl<R, L: Accept, S: Clone, H> Serve<R, L, S, H> {
    fn spawn<F, I, B>(&self, stream: L::Stream, peer: L::Peer)
    where
        R: Adapt<I>,
        L::Peer: Send + Sync + 'static,
        S: Service<Request<Incoming>, Response = Response<B>> + Send + 'static,
        S::Future: Send + 'static,
        S::Error: Into<Box<dyn Error + Send + Sync>>,
        B: Body + Send + 'static,
        B::Data: Send,
        B::Error: Into<Box<dyn Error + Send + Sync>>,
        H: Fn(L::Stream) -> F,
        F: Future<Output = io::Result<I>> + Send + 'static,
        I: Send + 'static,
    {
        let handshake = (self.handshake)(stream);
        let service = Prepared {
            service: self.service.clone(),
            prepare: self.prepare.clone().map(|prepare| (prepare, Arc::new(peer))),
        };
        let server = self.server.clone();
        self.runtime.spawn(async move {
            let ended = match in_time(&server, handshake).await {
                None => return,
                Some(Err(error)) => Err(error.into()),
                Some(Ok(stream)) => {
                    let service = TowerToHyperService::new(service);
                    server.serve_connection(R::adapt(stream), service).await
                }
            };
            if let Err(error) = ended {
                tracing::debug!(error = &*error as &dyn Error, "a connection failed");
            }
        });
    }
}

/// What comes of a handshake; `None` if the drain deadline was first.
async fn in_time<E, I>(
    server: &Server<E>,
    handshake: impl Future<Output = io::Result<I>>,
) -> Option<io::Result<I>> {
    // Most are done at once, and should not pay for a timer.
    let mut timer = None;
    let late = poll_fn(|context| {
        timer.get_or_insert_with(|| server.timer().sleep(HANDSHAKE)).as_mut().poll(context)
    });
    let cut = pin!(server.drain().cut());
    match select(pin!(handshake), select(late, cut)).await {
        Either::Left((shaken, _)) => Some(shaken),
        Either::Right((Either::Left(_), _)) => {
            let message = format!("the handshake was not done within {HANDSHAKE:?}");
            Some(Err(io::Error::new(io::ErrorKind::TimedOut, message)))
        }
        Either::Right((Either::Right(_), _)) => None,
    }
}
