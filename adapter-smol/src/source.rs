use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::task::{Context, Poll, ready};

use async_io::Async;
use handover_core::Source;

/// A socket's registration with async-io's poller, which a gate makes and takes back.
#[derive(Debug)]
pub struct Registered<T>(Async<T>);

impl<T> Registered<T> {
    /// Tries `operation`, and waits while it would block.
    ///
    /// # Errors
    /// Those of `operation`, and of the poller.
    pub fn poll_with<R>(
        &self,
        context: &mut Context<'_>,
        mut operation: impl FnMut(&T) -> io::Result<R>,
    ) -> Poll<io::Result<R>> {
        loop {
            match operation(self.0.get_ref()) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                result => return Poll::Ready(result),
            }
            ready!(self.0.poll_readable(context))?;
        }
    }
}

impl<T: AsFd> AsFd for Registered<T> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl<T> Source for Registered<T>
where
    T: AsFd + From<OwnedFd> + Into<OwnedFd> + Send + Sync + 'static,
{
    fn attach(descriptor: OwnedFd) -> io::Result<Self> {
        Async::new_nonblocking(T::from(descriptor)).map(Registered)
    }

    fn detach(self) -> io::Result<OwnedFd> {
        self.0.into_inner().map(Into::into)
    }
}
