//! How connections are answered, whatever they come from.

#[cfg(feature = "tls")]
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use futures::io::{AsyncRead, AsyncWrite};
use handover_core::{Drain, Runtime};

#[cfg(feature = "tls")]
use super::tls;
use crate::http::{self, Service};

/// A connection that is being served.
pub(super) type Task = BoxFuture<'static, ()>;

/// What a connection's answers need.
#[derive(Clone)]
pub(super) struct Answers<R> {
    pub(super) drain: Drain,
    pub(super) runtime: R,
    pub(super) name: String,
    /// If there is to be a handshake first.
    #[cfg(feature = "tls")]
    pub(super) tls: Option<Arc<tls::Config>>,
}

/// Serves a connection of a runtime of futures.
pub(super) fn answer<C, R>(connection: C, service: Answers<R>) -> Task
where
    C: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    R: Runtime,
{
    Box::pin(async move {
        // A client that goes away is no news for a server.
        #[cfg(feature = "tls")]
        if let Some(tls) = &service.tls {
            if let Ok(connection) = tls::accept(tls, connection).await {
                let _ = http::serve_connection(connection, &service).await;
            }
            return;
        }
        let _ = http::serve_connection(connection, &service).await;
    })
}

impl<R> Answers<R> {
    pub(super) fn drain(&self) -> Drain {
        self.drain.clone()
    }

    #[cfg(feature = "tls")]
    pub(super) fn tls(&self) -> Option<Arc<tls::Config>> {
        self.tls.clone()
    }
}

impl<R: Runtime> Service for Answers<R> {
    async fn sleep(&self, time: Duration) {
        self.runtime.timer(self.runtime.now() + time).await;
    }

    fn closing(&self) -> bool {
        self.drain.is_closing()
    }

    fn name(&self) -> &str {
        &self.name
    }

    fn over(&self) -> impl Future<Output = ()> + Send {
        self.drain.over()
    }
}
