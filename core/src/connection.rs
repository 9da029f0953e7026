use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::ops::{Deref, DerefMut};
use std::os::fd::{AsFd, BorrowedFd};
use std::pin::Pin;
use std::task::{Context, Poll};

use futures::{AsyncRead, AsyncWrite};
use pin_project::pin_project;

use crate::in_flight::Guard;

/// An accepted connection, which counts as in flight until it is dropped.
///
/// It reads and writes through the traits that the stream inside has (those of `futures`, or the
/// standard library's), and dereferences to it. [`into_parts`](Connection::into_parts) gives
/// stream and guard apart, for whatever needs the bare stream; the guard must then live as long as
/// the work does.
#[pin_project]
#[derive(Debug)]
pub struct Connection<S> {
    #[pin]
    stream: S,
    guard: Guard,
}

impl<S> Connection<S> {
    /// What an adapter makes of an accepted stream and the guard that came with it.
    pub fn new(stream: S, guard: Guard) -> Self {
        Self { stream, guard }
    }

    /// The stream and its guard.
    pub fn into_parts(self) -> (S, Guard) {
        (self.stream, self.guard)
    }
}

impl<S> Deref for Connection<S> {
    type Target = S;

    fn deref(&self) -> &S {
        &self.stream
    }
}

impl<S> DerefMut for Connection<S> {
    fn deref_mut(&mut self) -> &mut S {
        &mut self.stream
    }
}

impl<S: AsFd> AsFd for Connection<S> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

impl<S: AsyncRead> AsyncRead for Connection<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        self.project().stream.poll_read(context, buffer)
    }

    fn poll_read_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &mut [IoSliceMut<'_>],
    ) -> Poll<io::Result<usize>> {
        self.project().stream.poll_read_vectored(context, slices)
    }
}

impl<S: AsyncWrite> AsyncWrite for Connection<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.project().stream.poll_write(context, bytes)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.project().stream.poll_write_vectored(context, slices)
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.project().stream.poll_flush(context)
    }

    fn poll_close(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.project().stream.poll_close(context)
    }
}

macro_rules! blocking {
    ([$($life:lifetime)?], $connection:ty, $inner:ty, $stream:ident => $reach:expr) => {
        impl<$($life,)? S> Read for $connection
        where
            $inner: Read,
        {
            fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
                let $stream = self;
                $reach.read(buffer)
            }

            fn read_vectored(&mut self, slices: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
                let $stream = self;
                $reach.read_vectored(slices)
            }
        }

        impl<$($life,)? S> Write for $connection
        where
            $inner: Write,
        {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                let $stream = self;
                $reach.write(bytes)
            }

            fn write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
                let $stream = self;
                $reach.write_vectored(slices)
            }

            fn flush(&mut self) -> io::Result<()> {
                let $stream = self;
                $reach.flush()
            }
        }
    };
}

blocking!([], Connection<S>, S, this => this.stream);
blocking!(['a], &'a Connection<S>, &'a S, this => (&this.stream));
