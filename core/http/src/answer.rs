use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use handover_core::Drain;
use http::{Request, Response, StatusCode};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use hyper::service::Service;
use pin_project::pin_project;

use crate::close::{may_close, say_close};
use crate::seen::{Answering, Seen};

/// A connection's service, observed.
pub(crate) struct Observing<S> {
    pub(crate) service: S,
    pub(crate) seen: Arc<Seen>,
    pub(crate) drain: Drain,
}

impl<S, B> Service<Request<Incoming>> for Observing<S>
where
    S: Service<Request<Incoming>, Response = Response<B>>,
{
    type Response = Response<AnswerBody<B>>;
    type Error = S::Error;
    type Future = Answer<S::Future>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        let answering = Some(self.seen.request());
        let drain = may_close(&request).then(|| self.drain.clone());
        Answer { answer: self.service.call(request), drain, answering }
    }
}

/// The future of an answer. It is public only because it occurs in bounds.
#[pin_project]
pub struct Answer<F> {
    #[pin]
    answer: F,
    /// `None` if the answer has no business with the connection.
    drain: Option<Drain>,
    answering: Option<Answering>,
}

impl<F, B, E> Future for Answer<F>
where
    F: Future<Output = Result<Response<B>, E>>,
{
    type Output = Result<Response<AnswerBody<B>>, E>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let mut answer = ready!(this.answer.poll(context))?;
        let answering = this.answering.take();
        if let Some(seen) = answering.as_ref().map(Answering::seen) {
            if answer.status() == StatusCode::SWITCHING_PROTOCOLS {
                seen.upgrades();
            }
            // hyper closes after an answer that says so, even if it has read another request: only
            // the last may.
            if this.drain.as_ref().is_some_and(Drain::is_closing) && !seen.has_unparsed() {
                say_close(&mut answer);
            }
        }
        Poll::Ready(Ok(answer.map(|body| AnswerBody { body, _answering: answering })))
    }
}

/// The body of an answer. It is public only because it occurs in bounds.
#[pin_project]
pub struct AnswerBody<B> {
    #[pin]
    body: B,
    _answering: Option<Answering>,
}

impl<B: Body> Body for AnswerBody<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        self.project().body.poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
