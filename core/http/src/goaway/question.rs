//! A PING of our own, and its answer among what the client sends.

use std::hash::{BuildHasher, RandomState};
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use hyper::rt::{Read, ReadBuf, ReadBufCursor};

const LENGTH: usize = 17;

/// How much is read at once.
const PIECE: usize = 4096;

/// The answer is taken out of the input, since hyper has not asked. It is known by its eight bytes,
/// which nobody can guess: no upload is taken for it.
pub(super) struct Question {
    payload: [u8; 8],
    is_answered: bool,
    /// What was read and not passed on.
    read: Vec<u8>,
    /// How much of that is no beginning of the answer.
    clear: usize,
}

impl Question {
    pub(super) fn new() -> Self {
        let payload = RandomState::new().hash_one(()).to_be_bytes();
        Self { payload, is_answered: false, read: Vec::new(), clear: 0 }
    }

    pub(super) fn frame(&self) -> [u8; LENGTH] {
        self.ping(0)
    }

    fn answer(&self) -> [u8; LENGTH] {
        self.ping(1)
    }

    fn ping(&self, flags: u8) -> [u8; LENGTH] {
        let mut frame = [0, 0, 8, 6, flags, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        frame[9..].copy_from_slice(&self.payload);
        frame
    }

    pub(super) fn is_answered(&self) -> bool {
        self.is_answered
    }

    /// Whether the input needs no look any more.
    pub(super) fn is_over(&self) -> bool {
        self.is_answered && self.read.is_empty()
    }

    /// Reads, in place of `io`, but for the answer.
    pub(super) fn poll_read<I: Read + Unpin>(
        &mut self,
        io: &mut I,
        context: &mut Context<'_>,
        mut cursor: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            if self.clear > 0 || cursor.remaining() == 0 {
                let passed = self.clear.min(cursor.remaining());
                cursor.put_slice(&self.read[..passed]);
                self.read.drain(..passed);
                self.clear -= passed;
                return Poll::Ready(Ok(()));
            }
            if self.is_over() {
                return Pin::new(io).poll_read(context, cursor);
            }
            let mut storage = [0; PIECE];
            let mut buffer = ReadBuf::new(&mut storage);
            ready!(Pin::new(&mut *io).poll_read(context, buffer.unfilled()))?;
            let bytes = buffer.filled();
            if bytes.is_empty() && self.read.is_empty() {
                return Poll::Ready(Ok(()));
            }
            self.read.extend_from_slice(bytes);
            // At the end of the input nothing completes a beginning.
            self.look(bytes.is_empty());
            if self.is_answered {
                // The output waits for that, in the same task.
                context.waker().wake_by_ref();
            }
        }
    }

    fn look(&mut self, is_all: bool) {
        let answer = self.answer();
        if let Some(place) = self.read.windows(LENGTH).position(|bytes| bytes == answer) {
            self.read.drain(place..place + LENGTH);
            self.is_answered = true;
        }
        let begun = (1..LENGTH).rev().find(|length| self.read.ends_with(&answer[..*length]));
        let withheld = if self.is_answered || is_all { 0 } else { begun.unwrap_or(0) };
        self.clear = self.read.len() - withheld;
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use super::*;

    /// An input that comes in pieces, and ends.
    struct Pieces(VecDeque<Vec<u8>>);

    impl Read for Pieces {
        fn poll_read(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            mut cursor: ReadBufCursor<'_>,
        ) -> Poll<io::Result<()>> {
            let mut piece = self.0.pop_front().unwrap_or_default();
            let rest = piece.split_off(piece.len().min(cursor.remaining()));
            cursor.put_slice(&piece);
            if !rest.is_empty() {
                self.0.push_front(rest);
            }
            Poll::Ready(Ok(()))
        }
    }

    /// What passes of this input, read in such pieces into such a buffer.
    fn passed(question: &mut Question, input: &[u8], piece: usize, buffer: usize) -> Vec<u8> {
        let mut io = Pieces(input.chunks(piece).map(<[u8]>::to_vec).collect());
        let mut context = Context::from_waker(std::task::Waker::noop());
        let mut all = Vec::new();
        loop {
            let mut storage = vec![0; buffer];
            let mut buffer = ReadBuf::new(&mut storage);
            let read = question.poll_read(&mut io, &mut context, buffer.unfilled());
            assert!(matches!(read, Poll::Ready(Ok(()))), "{read:?}");
            if buffer.filled().is_empty() {
                return all;
            }
            all.extend_from_slice(buffer.filled());
        }
    }

    #[test]
    fn the_answer_alone_is_taken_out_however_it_comes() {
        for piece in 1..=40 {
            for buffer in [1, 7, 1000] {
                let mut question = Question::new();
                let input = [b"before", &question.answer()[..], b"after"].concat();
                assert_eq!(passed(&mut question, &input, piece, buffer), b"beforeafter");
                assert!(question.is_over());
            }
        }
    }

    #[test]
    fn without_an_answer_everything_passes() {
        for piece in 1..=40 {
            let mut question = Question::new();
            // Twice the beginning of an answer, once in the middle and once at the end.
            let begun = &question.answer()[..12];
            let input = [b"one", begun, b"two", begun].concat();
            assert_eq!(passed(&mut question, &input, piece, 5), input);
            assert!(!question.is_answered());
        }
    }
}
