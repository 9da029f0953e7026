use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use handover_core::Drain;
use hyper::rt::{Read, ReadBuf, ReadBufCursor, Sleep, Timer, Write};

use crate::goaway::Farewell;
use crate::seen::Seen;

const HTTP2_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// How long to wait for the client to close after the last answer.
const CLOSING: Duration = Duration::from_secs(1);

/// A connection's input and output, observed.
pub(crate) struct Observed<I> {
    io: I,
    seen: Arc<Seen>,
    drain: Drain,
    timer: Arc<dyn Timer + Send + Sync>,
    /// How much of HTTP/2's preface has come; `None` once that is decided.
    preface: Option<usize>,
    farewell: Farewell,
    closing: Closing,
}

/// How far the end has come.
enum Closing {
    No,
    /// Our side is closed; until then the client may close its own.
    Until(Pin<Box<dyn Sleep>>),
    Done,
}

impl<I> Observed<I> {
    pub(crate) fn new(
        io: I,
        seen: Arc<Seen>,
        drain: Drain,
        timer: Arc<dyn Timer + Send + Sync>,
    ) -> Self {
        Self {
            io,
            seen,
            drain,
            timer,
            preface: Some(0),
            farewell: Farewell::default(),
            closing: Closing::No,
        }
    }
}

impl<I: Read + Unpin> Observed<I> {
    /// Reads at most as much as the preface has left. So does hyper-util, which has to tell the
    /// protocols apart too: no call is made that would not have been made.
    fn read_preface(
        &mut self,
        context: &mut Context<'_>,
        cursor: &mut ReadBufCursor<'_>,
        matched: usize,
    ) -> Poll<io::Result<()>> {
        let mut storage = [0; HTTP2_PREFACE.len()];
        let rest = &HTTP2_PREFACE[matched..];
        let length = rest.len().min(cursor.remaining());
        let mut buffer = ReadBuf::new(&mut storage[..length]);
        ready!(Pin::new(&mut self.io).poll_read(context, buffer.unfilled()))?;
        let bytes = buffer.filled();
        if bytes.is_empty() || !rest.starts_with(bytes) {
            self.preface = None;
        } else if bytes.len() == rest.len() {
            self.preface = None;
            self.seen.speaks_http2();
        } else {
            self.preface = Some(matched + bytes.len());
        }
        cursor.put_slice(bytes);
        Poll::Ready(Ok(()))
    }

    /// Reads what still comes and throws it away. To close a socket with something unread, or to
    /// receive something on a closed one, is answered with a reset, and that may overtake the last
    /// answer on its way through the client.
    fn poll_client_closed(
        &mut self,
        context: &mut Context<'_>,
        deadline: &mut Pin<Box<dyn Sleep>>,
    ) -> Poll<()> {
        let mut storage = [0; 1024];
        while deadline.as_mut().poll(context).is_pending() {
            let mut buffer = ReadBuf::new(&mut storage);
            match ready!(Pin::new(&mut self.io).poll_read(context, buffer.unfilled())) {
                Ok(()) if !buffer.filled().is_empty() => {}
                _ => break,
            }
        }
        Poll::Ready(())
    }
}

impl<I: Read + Unpin> Read for Observed<I> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        mut cursor: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        this.seen.reads();
        let read = match this.preface {
            None => this.farewell.poll_read(&mut this.io, context, cursor),
            Some(matched) => this.read_preface(context, &mut cursor, matched),
        };
        if let Poll::Ready(Ok(())) = &read {
            this.seen.got_bytes();
        }
        read
    }
}

impl<I: Read + Write + Unpin> Write for Observed<I> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        if this.seen.is_http2() {
            return this.farewell.poll_write(&mut this.io, context, bytes, &*this.timer);
        }
        Pin::new(&mut this.io).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        ready!(this.farewell.poll_due(&mut this.io, context))?;
        Pin::new(&mut this.io).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        loop {
            match std::mem::replace(&mut this.closing, Closing::Done) {
                Closing::No => {
                    this.closing = Closing::No;
                    ready!(Pin::new(&mut this.io).poll_shutdown(context))?;
                    // Otherwise it is the client who closes, or an error, and nobody is hurt.
                    this.closing = if this.drain.is_closing() {
                        Closing::Until(this.timer.sleep(CLOSING))
                    } else {
                        Closing::Done
                    };
                }
                Closing::Until(mut deadline) => {
                    if this.poll_client_closed(context, &mut deadline).is_pending() {
                        this.closing = Closing::Until(deadline);
                        return Poll::Pending;
                    }
                }
                Closing::Done => return Poll::Ready(Ok(())),
            }
        }
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        if this.seen.is_http2() {
            let (io, timer) = (&mut this.io, &*this.timer);
            let is_near = this.drain.is_closing();
            return this.farewell.poll_write_vectored(io, context, slices, timer, is_near);
        }
        Pin::new(&mut this.io).poll_write_vectored(context, slices)
    }
}
