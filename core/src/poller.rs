use std::io;
use std::mem::MaybeUninit;
use std::os::fd::BorrowedFd;
use std::task::{Context, Poll};

use rustix::event::{Timespec, epoll};

use crate::error::{Error, ErrorKind, Result};
use crate::runtime::Runtime;

/// Whose descriptor became ready.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Token {
    /// The socket to the predecessor.
    Predecessor,
    /// The predecessor's pidfd.
    PredecessorDeath,
    /// The socket to the successor.
    Successor,
    /// The pidfd of the process that speaks on that socket.
    SuccessorDeath,
    /// The pidfd of a child: the successor, or what it was wrapped in.
    Child,
    /// The pidfd of an older generation.
    Older,
    /// A younger generation asks this one to end its linger.
    Hurry,
    /// The service manager has read what it was told.
    Barrier,
}

const TOKENS: [Token; 8] = [
    Token::Predecessor,
    Token::PredecessorDeath,
    Token::Successor,
    Token::SuccessorDeath,
    Token::Child,
    Token::Older,
    Token::Hurry,
    Token::Barrier,
];

/// All descriptors that the driver waits for, behind the one that the runtime watches: an epoll
/// instance inside the runtime's own. So a runtime needs to know nothing of sockets or pidfds, and
/// what one wake-up brought is seen all at once.
pub(crate) struct Poller<R: Runtime> {
    watch: R::Watch,
}

impl<R: Runtime> Poller<R> {
    pub(crate) fn new(runtime: &R) -> Result<Self> {
        let failed = |error| {
            Error::with_source(ErrorKind::Runtime, "watch the handover's descriptors", error)
        };
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).map_err(io::Error::from);
        let watch = epoll.and_then(|epoll| runtime.watch(epoll)).map_err(failed)?;
        Ok(Self { watch })
    }

    pub(crate) fn add(&self, token: Token, descriptor: BorrowedFd<'_>) -> io::Result<()> {
        let data = epoll::EventData::new_u64(token as u64);
        Ok(epoll::add(&self.watch, descriptor, data, epoll::EventFlags::IN)?)
    }

    /// Waits for room to write too, or no longer.
    pub(crate) fn want_write(
        &self,
        token: Token,
        descriptor: BorrowedFd<'_>,
        want: bool,
    ) -> io::Result<()> {
        let data = epoll::EventData::new_u64(token as u64);
        let mut flags = epoll::EventFlags::IN;
        flags.set(epoll::EventFlags::OUT, want);
        Ok(epoll::modify(&self.watch, descriptor, data, flags)?)
    }

    /// Must come before the descriptor is closed: a registration outlives the close while another
    /// process holds the same socket.
    pub(crate) fn remove(&self, descriptor: BorrowedFd<'_>) {
        let _ = epoll::delete(&self.watch, descriptor);
    }

    /// What is ready now; pending when nothing is.
    pub(crate) fn poll(&mut self, context: &mut Context<'_>) -> Poll<io::Result<Vec<Token>>> {
        R::poll_readable(&mut self.watch, context, |epoll| {
            // On the stack: the kernel's event type may not be sent to another thread.
            let mut events = [const { MaybeUninit::uninit() }; TOKENS.len()];
            let now = Timespec { tv_sec: 0, tv_nsec: 0 };
            match epoll::wait(epoll, &mut events, Some(&now)) {
                Ok(([], _)) | Err(rustix::io::Errno::INTR) => Err(io::ErrorKind::WouldBlock.into()),
                Ok((events, _)) => {
                    let token =
                        |event: &epoll::Event| TOKENS.get(event.data.u64() as usize).copied();
                    Ok(events.iter().filter_map(token).collect())
                }
                Err(error) => Err(error.into()),
            }
        })
    }
}
