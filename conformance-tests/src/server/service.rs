//! The contract of [`client`](crate::client) as a tower service, for somebody else's HTTP.

use std::convert::Infallible;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream;
use handover_core::Runtime;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::header::CONTENT_LENGTH;
use hyper::{Request, Response};
use tower_service::Service;

use super::answers::Answers;
use crate::http::{Ask, Service as _, filling};

/// What each TCP listener of a server with an HTTP stack serves. See
/// [`Server::run_http`](super::Server::run_http).
#[derive(Clone)]
pub struct HttpService<R> {
    answers: Answers<R>,
    /// How many requests have come this far, on all listeners.
    begun: Arc<AtomicU64>,
}

type Body = UnsyncBoxBody<Bytes, Infallible>;

impl<R> HttpService<R> {
    pub(super) fn new(answers: Answers<R>, begun: Arc<AtomicU64>) -> Self {
        Self { answers, begun }
    }
}

impl<R> fmt::Debug for HttpService<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HttpService").finish_non_exhaustive()
    }
}

impl<R: Runtime> Service<Request<Incoming>> for HttpService<R> {
    type Response = Response<Body>;
    /// The client has gone within a request's body.
    type Error = hyper::Error;
    type Future = BoxFuture<'static, Result<Response<Body>, hyper::Error>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), hyper::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Incoming>) -> Self::Future {
        self.begun.fetch_add(1, Ordering::Relaxed);
        let answers = self.answers.clone();
        Box::pin(async move { answer(request, &answers).await })
    }
}

async fn answer<R: Runtime>(
    request: Request<Incoming>,
    answers: &Answers<R>,
) -> Result<Response<Body>, hyper::Error> {
    let pid = answers.pid();
    let path = request.uri().path_and_query().map_or("", |path| path.as_str());
    Ok(match Ask::of(request.method().as_str(), path) {
        Ask::Root => full(format!("ok {pid}\n")),
        Ask::Name => full(format!("{} {pid}\n", answers.name())),
        Ask::Slow(time) => {
            answers.sleep(time).await;
            full(format!("slow {pid}\n"))
        }
        Ask::Upload => {
            let (mut body, mut length) = (request.into_body(), 0);
            while let Some(frame) = body.frame().await {
                length += frame?.data_ref().map_or(0, Bytes::len);
            }
            full(format!("got {pid} {length}\n"))
        }
        Ask::Download(bytes) => download(pid, bytes),
        Ask::Ping | Ask::Unknown => {
            let mut answer = full("not found\n".to_owned());
            *answer.status_mut() = hyper::StatusCode::NOT_FOUND;
            answer
        }
    })
}

fn full(body: String) -> Response<Body> {
    Response::new(Full::from(body).boxed_unsync())
}

fn download(pid: u32, bytes: usize) -> Response<Body> {
    let line = format!("down {pid}\n");
    let length = line.len() + bytes;
    let pieces = [line.into_bytes()].into_iter().chain(filling(0, bytes));
    let frames = pieces.map(|piece| Ok(Frame::data(Bytes::from(piece))));
    let mut answer = Response::new(StreamBody::new(stream::iter(frames)).boxed_unsync());
    answer.headers_mut().insert(CONTENT_LENGTH, length.into());
    answer
}
