use std::sync::Arc;
use std::task::{Context, Poll};

use http::Request;
use hyper::body::Incoming;
use tower_service::Service;

/// A hyper service (of `hyper::service::service_fn`, for example) as a tower service, which is what
/// `http::serve` takes.
#[derive(Debug, Clone, Copy)]
pub struct HyperToTower<S>(S);

impl<S> HyperToTower<S> {
    /// Wraps `service`.
    pub fn new(service: S) -> Self {
        Self(service)
    }
}

impl<S, R> Service<R> for HyperToTower<S>
where
    S: hyper::service::Service<R>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        // A hyper service waits in its answer's future.
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: R) -> S::Future {
        self.0.call(request)
    }
}

pub(crate) type Prepare<P> = Arc<dyn Fn(&mut Request<Incoming>, &P) + Send + Sync>;

/// A service with what is done before it.
pub(crate) struct Prepared<S, P> {
    pub(crate) service: S,
    pub(crate) prepare: Option<(Prepare<P>, Arc<P>)>,
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
