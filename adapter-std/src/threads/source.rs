use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::task::{Context, Poll};

use handover_core::Source;
use rustix::event::epoll;

use super::wait::Watch;

/// A socket with an epoll instance around it.
///
/// Threads wait for the instance, and never for the socket: the gate takes the socket out when it
/// closes, while they go on waiting, and no copy of its descriptor stays behind with them.
pub(crate) struct Polled<T> {
    socket: T,
    epoll: Watch,
}

impl<T> Polled<T> {
    /// Tries `operation`, and waits while it would block.
    pub(crate) fn poll_with<R>(
        &self,
        context: &Context<'_>,
        operation: impl FnOnce(&T) -> io::Result<R>,
    ) -> Poll<io::Result<R>> {
        self.epoll.poll_with(context, |_| operation(&self.socket))
    }
}

impl<T: AsFd> AsFd for Polled<T> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl<T> Source for Polled<T>
where
    T: AsFd + From<OwnedFd> + Into<OwnedFd> + Send + Sync + 'static,
{
    const KNOWS_EVERY_TASK: bool = true;

    fn attach(descriptor: OwnedFd) -> io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let data = epoll::EventData::new_u64(0);
        epoll::add(&epoll, &descriptor, data, epoll::EventFlags::IN)?;
        Ok(Self { socket: descriptor.into(), epoll: Watch::new(epoll) })
    }

    fn detach(self) -> io::Result<OwnedFd> {
        epoll::delete(&self.epoll, &self.socket)?;
        Ok(self.socket.into())
    }
}
