//! HTTP/2's farewell, each word of it at a time when its client can take it.
//!
//! The farewell has two: first a GOAWAY that asks for no new streams, with a PING behind it, and when
//! the client has answered that, a GOAWAY with the number of the last stream that is served.
//!
//! A client built on nghttp2 (curl, Node.js, h2load) makes its next requests while it reads answers,
//! sends them after it has read everything, and cancels those that it has not sent when it reads a
//! GOAWAY. So the first word must not be read together with an answer: a PING of ours goes ahead,
//! and nothing more until the client has answered it, and so has read all that came before; then the
//! first word.
//!
//! What was on its way when the client heard the first word comes before its answer to the second
//! PING, so that it is served, if the client keeps that order. Those built on h2 (hyper, tonic,
//! reqwest) do not: they answer a PING before they send the requests that they have queued, which
//! then come too late, are not served, and fail in a way that does not tell that they may be sent
//! again. So the second PING waits until such a client has emptied its queue. Nothing else waits.

mod frames;
mod question;

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use hyper::rt::{Read, ReadBufCursor, Sleep, Timer, Write};

use self::frames::Frames;
use self::question::Question;

/// How long the first word waits for a client that does not answer, and all output with it.
const ANSWER: Duration = Duration::from_millis(100);

/// How long the PING between the words is held back. It only makes a drain longer.
const HOLD: Duration = Duration::from_millis(250);

/// A frame of eight bytes.
type Short = [u8; 17];

/// The first word, as h2 says it.
const GOAWAY: Short = [0, 0, 8, 7, 0, 0, 0, 0, 0, 0x7f, 0xff, 0xff, 0xff, 0, 0, 0, 0];

/// h2's PING between the two words.
const PING: Short = [0, 0, 8, 6, 0, 0, 0, 0, 0, 0x0b, 0x7b, 0xa2, 0xf0, 0x8b, 0x9b, 0xfe, 0x54];

type Timed = Pin<Box<dyn Sleep>>;

/// An HTTP/2 connection's input and output, from its first frame on.
#[derive(Default)]
pub(crate) struct Farewell {
    step: Step,
    frames: Frames,
    /// A frame that is being sent, and how much of it has been. Nothing else is meanwhile.
    sending: Option<(Short, usize)>,
    question: Option<Question>,
}

#[derive(Default)]
enum Step {
    #[default]
    Before,
    /// The first word was taken out, and waits for the answer to the question, or until then.
    Asked(Timed),
    /// The PING has not come yet.
    Between,
    /// It was taken out, and is due then, between two frames.
    Held(Timed),
    Said,
}

impl Farewell {
    /// Reads, in place of `io`, but for answers to what hyper has not asked.
    pub(crate) fn poll_read<I: Read + Unpin>(
        &mut self,
        io: &mut I,
        context: &mut Context<'_>,
        cursor: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        match &mut self.question {
            Some(question) => question.poll_read(io, context, cursor),
            None => Pin::new(io).poll_read(context, cursor),
        }
    }

    /// Writes, in place of `io`, but for the words that wait.
    pub(crate) fn poll_write<I: Write + Unpin>(
        &mut self,
        io: &mut I,
        context: &mut Context<'_>,
        mut bytes: &[u8],
        timer: &dyn Timer,
    ) -> Poll<io::Result<usize>> {
        ready!(self.poll_due(io, context))?;
        let word = match self.step {
            Step::Before => Some(GOAWAY),
            Step::Between => Some(PING),
            Step::Asked(_) | Step::Held(_) | Step::Said => None,
        };
        match word.and_then(|word| self.frames.find(&word, bytes)) {
            // After it hyper flushes, and what is due is looked after there.
            Some(0) => {
                self.take_out(timer);
                return Poll::Ready(Ok(GOAWAY.len()));
            }
            Some(place) => bytes = &bytes[..place],
            None => {}
        }
        let written = ready!(Pin::new(io).poll_write(context, bytes))?;
        if !matches!(self.step, Step::Said) {
            self.frames.pass(&bytes[..written]);
        }
        Poll::Ready(Ok(written))
    }

    /// The same for several pieces. `is_near` says that a word may be among them.
    pub(crate) fn poll_write_vectored<I: Write + Unpin>(
        &mut self,
        io: &mut I,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
        timer: &dyn Timer,
        is_near: bool,
    ) -> Poll<io::Result<usize>> {
        match &mut self.step {
            Step::Before if !is_near => {
                let written = ready!(Pin::new(io).poll_write_vectored(context, slices))?;
                let mut left = written;
                for slice in slices {
                    let passed = left.min(slice.len());
                    self.frames.pass(&slice[..passed]);
                    left -= passed;
                }
                Poll::Ready(Ok(written))
            }
            Step::Said if self.sending.is_none() => {
                Pin::new(io).poll_write_vectored(context, slices)
            }
            _ => {
                let first = slices.iter().find(|slice| !slice.is_empty());
                self.poll_write(io, context, first.map_or(&[], |slice| slice), timer)
            }
        }
    }

    /// Sends the word that is due. Pending while it is half sent, and while everything waits.
    pub(crate) fn poll_due<I: Write + Unpin>(
        &mut self,
        io: &mut I,
        context: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            ready!(self.poll_send(io, context))?;
            match &mut self.step {
                Step::Asked(until) => {
                    ready!(Pin::new(&mut *io).poll_flush(context))?;
                    if !self.question.as_ref().is_some_and(Question::is_answered) {
                        ready!(until.as_mut().poll(context));
                    }
                    self.sending = Some((GOAWAY, 0));
                    self.step = Step::Between;
                }
                Step::Held(due) => {
                    if due.as_mut().poll(context).is_pending() || !self.frames.is_between() {
                        return Poll::Ready(Ok(()));
                    }
                    self.sending = Some((PING, 0));
                    self.step = Step::Said;
                }
                Step::Before | Step::Between | Step::Said => return Poll::Ready(Ok(())),
            }
        }
    }

    /// hyper says the word that comes next.
    fn take_out(&mut self, timer: &dyn Timer) {
        if let Step::Between = self.step {
            self.step = Step::Held(timer.sleep(HOLD));
        } else {
            self.step = Step::Asked(timer.sleep(ANSWER));
            let question = self.question.insert(Question::new());
            self.sending = Some((question.frame(), 0));
        }
    }

    fn poll_send<I: Write + Unpin>(
        &mut self,
        io: &mut I,
        context: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        while let Some((frame, sent)) = &mut self.sending {
            match ready!(Pin::new(&mut *io).poll_write(context, &frame[*sent..]))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                written => *sent += written,
            }
            if *sent == frame.len() {
                self.sending = None;
            }
        }
        Poll::Ready(Ok(()))
    }
}
