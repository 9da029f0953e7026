//! Sockets of sequenced packets, for which no runtime has a type: one epoll instance, watched by
//! the runtime, for a listener and its connections.

use std::collections::HashMap;
use std::future::poll_fn;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::pin::pin;
use std::task::{Context, Poll};

use futures::Stream;
use handover_core::{Guard, Handle, Runtime, State};
use rustix::event::{Timespec, epoll};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, SocketFlags, accept_with, recv, send};

use crate::Failure;

struct Packets {
    listener: OwnedFd,
    accepting: bool,
    connections: HashMap<u64, (OwnedFd, Guard)>,
}

/// Answers each packet with the process and the packet, until the process ends.
pub(super) async fn serve<R: Runtime>(
    listener: OwnedFd,
    handle: Handle<R>,
    runtime: R,
) -> Result<(), Failure> {
    let set = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    let mut watch = runtime.watch(set.try_clone()?)?;
    let mut packets = Packets { listener, accepting: false, connections: HashMap::new() };
    let mut states = pin!(handle.states());
    poll_fn(move |context: &mut Context<'_>| {
        // No gate guards this listener: whoever does not own it must leave it alone.
        while let Poll::Ready(Some(state)) = states.as_mut().poll_next(context) {
            let accepts = matches!(state, State::Serving | State::Forking);
            if packets.set_accepting(&set, accepts).is_err() {
                return Poll::Ready(());
            }
        }
        // Until there is nothing more: only then will the runtime wake us for more.
        while let Poll::Ready(result) =
            R::poll_readable(&mut watch, context, |_| packets.turn(&set, &handle))
        {
            if result.is_err() {
                return Poll::Ready(());
            }
        }
        Poll::Pending
    })
    .await;
    Ok(())
}

impl Packets {
    fn set_accepting(&mut self, set: &OwnedFd, accepting: bool) -> Result<(), Errno> {
        if self.accepting == accepting {
            return Ok(());
        }
        self.accepting = accepting;
        if accepting { add(set, self.listener.as_fd()) } else { epoll::delete(set, &self.listener) }
    }

    /// Sees to what is ready; `WouldBlock` if nothing is.
    fn turn<R: Runtime>(&mut self, set: &OwnedFd, handle: &Handle<R>) -> io::Result<()> {
        let mut events = [const { std::mem::MaybeUninit::uninit() }; 16];
        let zero = Timespec { tv_sec: 0, tv_nsec: 0 };
        let (ready, _) = epoll::wait(set, &mut events, Some(&zero))?;
        let ready: Vec<u64> = ready.iter().map(|event| event.data.u64()).collect();
        if ready.is_empty() {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        for token in ready {
            if token == number(self.listener.as_fd()) {
                self.accept(set, handle)?;
            } else {
                self.answer(token);
            }
        }
        Ok(())
    }

    fn accept<R: Runtime>(&mut self, set: &OwnedFd, handle: &Handle<R>) -> io::Result<()> {
        let guard = handle.guard();
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        match accept_with(&self.listener, flags) {
            Ok(connection) => {
                add(set, connection.as_fd())?;
                self.connections.insert(number(connection.as_fd()), (connection, guard));
                Ok(())
            }
            Err(Errno::AGAIN | Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    fn answer(&mut self, token: u64) {
        let Some((connection, _)) = self.connections.get(&token) else { return };
        let mut packet = [0; 4096];
        let answered = match recv(connection, &mut packet[..], RecvFlags::empty()) {
            Ok((1.., length)) => {
                let mut answer = format!("{} ", std::process::id()).into_bytes();
                answer.extend_from_slice(&packet[..length]);
                send(connection, &answer, SendFlags::NOSIGNAL).is_ok()
            }
            Err(Errno::AGAIN | Errno::INTR) => true,
            Ok(_) | Err(_) => false,
        };
        if !answered {
            // Closing it takes it out of the set.
            self.connections.remove(&token);
        }
    }
}

fn add(set: &OwnedFd, descriptor: BorrowedFd<'_>) -> Result<(), Errno> {
    let data = epoll::EventData::new_u64(number(descriptor));
    epoll::add(set, descriptor, data, epoll::EventFlags::IN)
}

fn number(descriptor: BorrowedFd<'_>) -> u64 {
    // The numbers of open descriptors are not negative.
    descriptor.as_raw_fd().unsigned_abs().into()
}
