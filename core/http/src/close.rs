use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use handover_core::Drain;
use http::header::{CONNECTION, Entry};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Version};
use pin_project::pin_project;
use tower_layer::Layer;
use tower_service::Service;

/// A tower layer for servers that are not ours: while draining, answers to HTTP/1 requests say
/// `Connection: close`.
///
/// Together with [`Drain::over`] as the server's own graceful shutdown signal it makes such a
/// server lossless for HTTP/1.1 clients that do not pipeline:
///
/// ```ignore
/// let drain = start.drain();
/// let app = app.layer(CloseLayer::new(drain.clone()));
/// let server = axum::serve(listener, app).with_graceful_shutdown(drain.over());
/// ```
///
/// A layer does not see the connection. It cannot know that another request has come already
/// ([`Server`](crate::Server) does), so a client that pipelines must send again whatever is after
/// the answer that says `close`, as RFC 9112 asks of it; and HTTP/2 clients hear of the drain only
/// when it is over.
#[derive(Debug, Clone)]
pub struct CloseLayer {
    drain: Drain,
}

impl CloseLayer {
    /// A layer for the connections of the instance that `drain` belongs to.
    pub fn new(drain: Drain) -> Self {
        Self { drain }
    }
}

impl<S> Layer<S> for CloseLayer {
    type Service = Close<S>;

    fn layer(&self, inner: S) -> Close<S> {
        Close { inner, drain: self.drain.clone() }
    }
}

/// The service that [`CloseLayer`] makes.
#[derive(Debug, Clone)]
pub struct Close<S> {
    inner: S,
    drain: Drain,
}

impl<S, R, B> Service<Request<R>> for Close<S>
where
    S: Service<Request<R>, Response = Response<B>>,
{
    type Response = Response<B>;
    type Error = S::Error;
    type Future = CloseFuture<S::Future>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<R>) -> Self::Future {
        let drain = may_close(&request).then(|| self.drain.clone());
        CloseFuture { answer: self.inner.call(request), drain }
    }
}

/// The future of [`Close`].
#[pin_project]
#[derive(Debug)]
pub struct CloseFuture<F> {
    #[pin]
    answer: F,
    /// `None` if the answer has no business with the connection.
    drain: Option<Drain>,
}

impl<F, B, E> Future for CloseFuture<F>
where
    F: Future<Output = Result<Response<B>, E>>,
{
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let mut answer = ready!(this.answer.poll(context))?;
        // Looked at as late as possible: the drain may have started while the request was served.
        if this.drain.as_ref().is_some_and(Drain::is_closing) {
            say_close(&mut answer);
        }
        Poll::Ready(Ok(answer))
    }
}

/// Whether the answer to this request may say that the connection closes. In HTTP/2 the header is
/// an error, and what answers CONNECT is no connection of HTTP's any more.
pub(crate) fn may_close<B>(request: &Request<B>) -> bool {
    request.version() <= Version::HTTP_11 && request.method() != Method::CONNECT
}

/// Has an answer say that it is the last on its connection.
pub(crate) fn say_close<B>(answer: &mut Response<B>) {
    // There the header says what the connection is upgraded to.
    if answer.status() != StatusCode::SWITCHING_PROTOCOLS {
        add_close(answer.headers_mut());
    }
}

fn add_close(headers: &mut HeaderMap) {
    let close = HeaderValue::from_static("close");
    match headers.entry(CONNECTION) {
        Entry::Occupied(mut entry) if entry.iter().any(|value| !keeps_alive(value)) => {
            // It may name headers that a proxy must not pass on.
            if !entry.iter().any(|value| has_token(value, "close")) {
                entry.append(close);
            }
        }
        Entry::Occupied(mut entry) => {
            entry.insert(close);
        }
        Entry::Vacant(entry) => {
            entry.insert(close);
        }
    }
}

fn keeps_alive(value: &HeaderValue) -> bool {
    has_token(value, "keep-alive")
}

fn has_token(value: &HeaderValue, token: &str) -> bool {
    let text = value.to_str().unwrap_or_default();
    text.split(',').any(|known| known.trim().eq_ignore_ascii_case(token))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_tokens_stay_and_keep_alive_goes() {
        for (before, after) in [
            (&[][..], &["close"][..]),
            (&["keep-alive"], &["close"]),
            (&["close"], &["close"]),
            (&["x-hop"], &["x-hop", "close"]),
            (&["x-hop, close"], &["x-hop, close"]),
        ] {
            let mut answer = Response::new(());
            for value in before {
                answer.headers_mut().append(CONNECTION, HeaderValue::from_static(value));
            }
            say_close(&mut answer);
            let have: Vec<_> = answer.headers().get_all(CONNECTION).iter().collect();
            assert_eq!(have, after, "{before:?}");
        }
    }

    #[test]
    fn an_upgrade_is_left_alone() {
        let mut answer = Response::new(());
        *answer.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        answer.headers_mut().insert(CONNECTION, HeaderValue::from_static("upgrade"));
        say_close(&mut answer);
        assert_eq!(answer.headers()[CONNECTION], "upgrade");
    }
}
