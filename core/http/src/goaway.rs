//! The second word of HTTP/2's farewell, held back for a moment.
//!
//! The farewell has two: first a GOAWAY that asks for no new streams, with a PING behind it, and when
//! the client has answered that, a GOAWAY with the number of the last stream that is served. What
//! was on its way when the client heard the first word comes before its answer, so that it is
//! served, if the client keeps that order. Those built on h2 (hyper, tonic, reqwest) do not: they
//! answer a PING before they send the requests that they have queued, which then come too late, are
//! not served, and fail in a way that does not tell that they may be sent again. So the PING waits
//! until such a client has emptied its queue. Nothing else waits.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use hyper::rt::{Sleep, Timer, Write};

/// How long the PING is held back. It only makes a drain longer.
const HOLD: Duration = Duration::from_millis(250);

/// h2's PING between the two GOAWAYs.
const PING: [u8; 17] = [0, 0, 8, 6, 0, 0, 0, 0, 0, 0x0b, 0x7b, 0xa2, 0xf0, 0x8b, 0x9b, 0xfe, 0x54];

/// The output of an HTTP/2 connection, all of it.
#[derive(Default)]
pub(crate) struct Farewell(Step);

enum Step {
    /// The PING has not come yet.
    Before(Frames),
    /// It was taken out, and is due then, between two frames.
    Held(Frames, Pin<Box<dyn Sleep>>),
    /// So much of it has been sent.
    Sending(usize),
    Said,
}

impl Default for Step {
    fn default() -> Self {
        Step::Before(Frames::default())
    }
}

impl Farewell {
    /// Writes, in place of `io`, but for the PING.
    pub(crate) fn poll_write<I: Write + Unpin>(
        &mut self,
        io: &mut I,
        context: &mut Context<'_>,
        bytes: &[u8],
        timer: &dyn Timer,
    ) -> Poll<io::Result<usize>> {
        ready!(self.poll_due(io, context))?;
        let io = Pin::new(io);
        match &mut self.0 {
            Step::Before(frames) => match frames.find_ping(bytes) {
                Some(0) => {
                    // After it hyper flushes, and the timer is polled there.
                    self.0 = Step::Held(Frames::default(), timer.sleep(HOLD));
                    Poll::Ready(Ok(PING.len()))
                }
                place => {
                    let bytes = &bytes[..place.unwrap_or(bytes.len())];
                    let written = ready!(io.poll_write(context, bytes))?;
                    frames.pass(&bytes[..written]);
                    Poll::Ready(Ok(written))
                }
            },
            Step::Held(frames, _) => {
                let written = ready!(io.poll_write(context, bytes))?;
                frames.pass(&bytes[..written]);
                Poll::Ready(Ok(written))
            }
            Step::Sending(_) | Step::Said => io.poll_write(context, bytes),
        }
    }

    /// The same for several pieces. `is_near` says that the PING may be among them.
    pub(crate) fn poll_write_vectored<I: Write + Unpin>(
        &mut self,
        io: &mut I,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
        timer: &dyn Timer,
        is_near: bool,
    ) -> Poll<io::Result<usize>> {
        match &mut self.0 {
            Step::Before(frames) if !is_near => {
                let written = ready!(Pin::new(io).poll_write_vectored(context, slices))?;
                let mut left = written;
                for slice in slices {
                    let passed = left.min(slice.len());
                    frames.pass(&slice[..passed]);
                    left -= passed;
                }
                Poll::Ready(Ok(written))
            }
            Step::Said => Pin::new(io).poll_write_vectored(context, slices),
            _ => {
                let first = slices.iter().find(|slice| !slice.is_empty());
                self.poll_write(io, context, first.map_or(&[], |slice| slice), timer)
            }
        }
    }

    /// Sends the PING if it is due. Pending only while it is half sent.
    pub(crate) fn poll_due<I: Write + Unpin>(
        &mut self,
        io: &mut I,
        context: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        if let Step::Held(frames, due) = &mut self.0
            && due.as_mut().poll(context).is_ready()
            && frames.is_between()
        {
            self.0 = Step::Sending(0);
        }
        while let Step::Sending(sent) = &mut self.0 {
            match ready!(Pin::new(&mut *io).poll_write(context, &PING[*sent..]))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                written => *sent += written,
            }
            if *sent == PING.len() {
                self.0 = Step::Said;
            }
        }
        Poll::Ready(Ok(()))
    }
}

/// Where in its frames the output is.
#[derive(Clone, Copy, Default)]
struct Frames {
    /// The beginning of a header whose rest has not passed.
    header: [u8; 9],
    known: usize,
    /// What is left of the present frame after its header.
    left: usize,
}

impl Frames {
    fn is_between(&self) -> bool {
        self.known == 0 && self.left == 0
    }

    fn pass(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            bytes = &bytes[self.step(bytes)..];
        }
    }

    /// Where the PING begins.
    fn find_ping(mut self, bytes: &[u8]) -> Option<usize> {
        let mut place = 0;
        while place < bytes.len() {
            if self.is_between() && bytes[place..].starts_with(&PING) {
                return Some(place);
            }
            place += self.step(&bytes[place..]);
        }
        None
    }

    /// Passes the rest of a header or of a frame; how much that was.
    fn step(&mut self, bytes: &[u8]) -> usize {
        if self.left > 0 {
            let passed = self.left.min(bytes.len());
            self.left -= passed;
            return passed;
        }
        let passed = (self.header.len() - self.known).min(bytes.len());
        self.header[self.known..][..passed].copy_from_slice(&bytes[..passed]);
        self.known += passed;
        if self.known == self.header.len() {
            let [a, b, c, ..] = self.header.map(usize::from);
            self.left = a << 16 | b << 8 | c;
            self.known = 0;
        }
        passed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(length: u8) -> Vec<u8> {
        [&[0, 0, length, 0, 0, 0, 0, 0, 1][..], &vec![7; length.into()]].concat()
    }

    #[test]
    fn the_ping_is_found_between_frames_only() {
        let mut bytes = frame(30);
        bytes[12..29].copy_from_slice(&PING);
        assert_eq!(Frames::default().find_ping(&bytes), None);
        let place = bytes.len();
        bytes.extend(PING);
        bytes.extend(frame(0));
        // However much has passed before.
        for passed in 0..=place {
            let mut frames = Frames::default();
            frames.pass(&bytes[..passed]);
            assert_eq!(frames.find_ping(&bytes[passed..]), Some(place - passed));
        }
    }

    #[test]
    fn frames_pass_in_any_pieces() {
        let bytes = [frame(3), frame(0), frame(200)].concat();
        let ends = [0, 12, 21, bytes.len()];
        for piece in 1..bytes.len() {
            let mut frames = Frames::default();
            let mut place = 0;
            for bytes in bytes.chunks(piece) {
                frames.pass(bytes);
                place += bytes.len();
                assert_eq!(frames.is_between(), ends.contains(&place), "{place}");
            }
        }
    }
}
