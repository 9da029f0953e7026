use std::error::Error;
use std::fmt;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;

use handover_core::{Drain, Stage};
use http::{Request, Response};
use http_body::Body;
use hyper::body::Incoming;
use hyper::rt::bounds::Http2ServerConnExec;
use hyper::rt::{Read, Timer, Write};
use hyper::service::Service;
use hyper_util::server::conn::auto;

use crate::answer::{Answer, AnswerBody, Observing};
use crate::connections::Connections;
use crate::io::Observed;
use crate::seen::Seen;

/// Serves connections so that a restart loses no request: HTTP/1.1 and HTTP/2, with upgrades, over
/// hyper-util.
///
/// One is made for a server, and [`serve_connection`](Server::serve_connection) called for each
/// connection that it accepts. Cheap to clone. It knows no runtime: the executor (for HTTP/2's
/// streams) and the timer are hyper's traits.
///
/// | stage | HTTP/1 | HTTP/2 |
/// | --- | --- | --- |
/// | *closing* | answers say `close`; idle connections stay open | GOAWAY in two steps |
/// | *over* | idle connections are closed | the same |
/// | *cut* | dropped | dropped |
pub struct Server<E> {
    builder: Arc<auto::Builder<E>>,
    timer: Arc<dyn Timer + Send + Sync>,
    drain: Drain,
    connections: Connections,
}

impl<E> Clone for Server<E> {
    fn clone(&self) -> Self {
        Self {
            builder: Arc::clone(&self.builder),
            timer: Arc::clone(&self.timer),
            drain: self.drain.clone(),
            connections: self.connections.clone(),
        }
    }
}

impl<E> fmt::Debug for Server<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server")
            .field("drain", &self.drain)
            .field("connections", &self.connections)
            .finish_non_exhaustive()
    }
}

impl<E: Clone> Server<E> {
    /// A server for the connections of the instance that `drain` belongs to.
    ///
    /// hyper's settings are its own but two. Connections may wait for their next request as long
    /// as the client wants: hyper would count its 30 seconds for reading a request's head from the
    /// end of the last answer, and so close a connection under a request that is on its way, at
    /// any time. And HTTP/2 clients may send CONNECT with a protocol, for WebSocket.
    pub fn new(
        executor: E,
        timer: impl Timer + Clone + Send + Sync + 'static,
        drain: Drain,
    ) -> Self {
        let mut builder = auto::Builder::new(executor);
        builder.http1().timer(timer.clone()).header_read_timeout(None);
        builder.http2().timer(timer.clone()).enable_connect_protocol();
        let connections = Connections::default();
        Self { builder: Arc::new(builder), timer: Arc::new(timer), drain, connections }
    }

    /// Changes hyper's settings, for connections from now on.
    ///
    /// Leave `half_close` of HTTP/1 off: with it hyper does not look whether another request has
    /// come, so no answer says `close`, and connections stay until the linger is over.
    pub fn configure(mut self, change: impl FnOnce(&mut auto::Builder<E>)) -> Self {
        change(Arc::make_mut(&mut self.builder));
        self
    }
}

impl<E> Server<E> {
    /// How many connections there are.
    pub fn connections(&self) -> Connections {
        self.connections.clone()
    }

    /// The drain signal that the connections follow.
    pub fn drain(&self) -> &Drain {
        &self.drain
    }

    pub(crate) fn timer(&self) -> &(dyn Timer + Send + Sync) {
        &*self.timer
    }

    /// Serves one connection to its end, or to the drain deadline.
    ///
    /// After an upgrade the future ends, and `io` lives on inside hyper's `Upgraded`, wrapped: it
    /// cannot be downcast to. A guard inside `io` counts it all the time.
    ///
    /// # Errors
    /// hyper's: what the client sent is no HTTP, or it went away. At the drain deadline the
    /// connection is dropped, which is no error.
    ///
    /// # Cancel safety
    /// Dropping the future drops the connection, with the requests on it.
    pub fn serve_connection<I, S, B>(
        &self,
        io: I,
        service: S,
    ) -> impl Future<Output = Result<(), Box<dyn Error + Send + Sync>>> + use<E, I, S, B>
    where
        I: Read + Write + Unpin + Send + 'static,
        S: Service<Request<Incoming>, Response = Response<B>>,
        S::Future: 'static,
        S::Error: Into<Box<dyn Error + Send + Sync>>,
        B: Body + 'static,
        B::Error: Into<Box<dyn Error + Send + Sync>>,
        E: Http2ServerConnExec<Answer<S::Future>, AnswerBody<B>>,
    {
        let builder = Arc::clone(&self.builder);
        let drain = self.drain.clone();
        let seen = Seen::new(self.connections.clone());
        let io = Observed::new(io, Arc::clone(&seen), drain.clone(), Arc::clone(&self.timer));
        let service = Observing { service, seen: Arc::clone(&seen), drain: drain.clone() };
        async move {
            let mut connection = pin!(builder.serve_connection_with_upgrades(io, service));
            let mut told = false;
            loop {
                let stage = drain.stage();
                let mut next = pin!(after(&drain, stage));
                let ended = poll_fn(|context| {
                    loop {
                        // First, so that what has arrived is served.
                        if let Poll::Ready(ended) = connection.as_mut().poll(context) {
                            return Poll::Ready(Some(ended));
                        }
                        let leaves = if seen.is_http2() {
                            stage >= Stage::Closing
                        } else {
                            // hyper closes at once if it is between requests, also if it has read
                            // a part of the next.
                            stage >= Stage::Over && seen.is_idle()
                        };
                        if leaves && !told {
                            told = true;
                            connection.as_mut().graceful_shutdown();
                            continue;
                        }
                        // After a rollback nothing wakes us, but `next` is the wrong one.
                        if next.as_mut().poll(context).is_ready() || drain.stage() != stage {
                            return Poll::Ready(None);
                        }
                        return Poll::Pending;
                    }
                });
                if let Some(ended) = ended.await {
                    return ended;
                }
                if drain.stage() == Stage::Cut {
                    return Ok(());
                }
            }
        }
    }
}

/// Resolves at the stage after this one.
async fn after(drain: &Drain, stage: Stage) {
    match stage {
        Stage::Open => drain.closing().await,
        Stage::Closing => drain.over().await,
        Stage::Over | Stage::Cut => drain.cut().await,
    }
}
