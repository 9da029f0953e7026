//! One end of the handover socket: whole frames out and in, with descriptors, never blocking.

use std::collections::VecDeque;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags,
    SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg,
    sendmsg, socketpair, sockopt,
};

use super::frame::{Frame, MAX_DESCRIPTORS, MAX_FRAME};

/// What one look at the socket brought.
#[derive(Debug)]
pub(crate) enum Received {
    /// A frame, and who sent it where that was asked for.
    Frame(Frame, Option<Sender>),
    /// Something that is no frame, with the reason.
    Garbage(String),
    /// The other end is closed, or the socket broke.
    Lost,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Sender {
    pub(crate) pid: u32,
    pub(crate) uid: u32,
}

/// A frame that waits for room in the socket, with the descriptors that travel with it. They are
/// shared, not copied: closing a copy of the ownership's file would drop its lock.
struct Outgoing {
    bytes: Vec<u8>,
    descriptors: Vec<Arc<OwnedFd>>,
}

/// One end of the handover socket.
pub(crate) struct Channel {
    socket: OwnedFd,
    outgoing: VecDeque<Outgoing>,
    /// Kept, since new connections wait while the frames of the switch are read.
    buffer: Box<[u8]>,
}

impl Channel {
    /// A connected pair: ours, and the one that the successor inherits. Both are close-on-exec.
    pub(crate) fn pair() -> io::Result<(Channel, OwnedFd)> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
        // The kernel then names the sender of each frame, which the sender cannot forge.
        sockopt::set_socket_passcred(&ours, true)?;
        Ok((Channel::new(ours), theirs))
    }

    pub(crate) fn new(socket: OwnedFd) -> Channel {
        Channel { socket, outgoing: VecDeque::new(), buffer: vec![0; MAX_FRAME].into_boxed_slice() }
    }

    /// Sends a frame, or as much of what is queued before it as there is room for.
    ///
    /// # Errors
    /// The socket's; nothing more can be sent then.
    pub(crate) fn send(&mut self, frame: &Frame, descriptors: Vec<Arc<OwnedFd>>) -> io::Result<()> {
        self.outgoing.push_back(Outgoing { bytes: frame.encode(), descriptors });
        self.flush()
    }

    /// Sends what is queued.
    ///
    /// # Errors
    /// The socket's; nothing more can be sent then.
    pub(crate) fn flush(&mut self) -> io::Result<()> {
        while let Some(next) = self.outgoing.front() {
            let descriptors: Vec<BorrowedFd<'_>> =
                next.descriptors.iter().map(|fd| fd.as_fd()).collect();
            match send(self.socket.as_fd(), &next.bytes, &descriptors) {
                Ok(()) => {
                    self.outgoing.pop_front();
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => {
                    self.outgoing.clear();
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    /// Forgets what is queued and not yet sent.
    pub(crate) fn clear(&mut self) {
        self.outgoing.clear();
    }

    /// Whether something waits for room in the socket.
    pub(crate) fn is_blocked(&self) -> bool {
        !self.outgoing.is_empty()
    }

    /// The next frame, or `None` if there is none yet. Without room for descriptors: whatever a
    /// peer attaches is closed by the kernel, and the frame counts as garbage.
    pub(crate) fn receive(&mut self) -> Option<Received> {
        let mut control = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmCredentials(1))];
        receive(self.socket.as_fd(), &mut self.buffer, &mut control).map(|(received, _)| received)
    }

    /// The same with room for all descriptors that one frame may carry.
    pub(crate) fn receive_with_descriptors(&mut self) -> Option<(Received, Vec<OwnedFd>)> {
        const SPACE: usize = rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS));
        let mut control = [MaybeUninit::uninit(); SPACE];
        receive(self.socket.as_fd(), &mut self.buffer, &mut control)
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

fn send(socket: BorrowedFd<'_>, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
    const SPACE: usize = rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS));
    let mut space = [MaybeUninit::uninit(); SPACE];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() && !control.push(SendAncillaryMessage::ScmRights(descriptors)) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    loop {
        match sendmsg(socket, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL) {
            Err(Errno::INTR) => {}
            // A packet goes whole or not at all.
            result => return Ok(result.map(drop)?),
        }
    }
}

fn receive(
    socket: BorrowedFd<'_>,
    bytes: &mut [u8],
    space: &mut [MaybeUninit<u8>],
) -> Option<(Received, Vec<OwnedFd>)> {
    let mut control = RecvAncillaryBuffer::new(space);
    let mut was_reset = false;
    let message = loop {
        let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
        match recvmsg(socket, &mut [IoSliceMut::new(bytes)], &mut control, flags) {
            Ok(message) => break message,
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => return None,
            // A peer that has gone with unread data gives this once, before the frames that it had
            // sent: its last words are behind it.
            Err(Errno::CONNRESET) if !was_reset => was_reset = true,
            Err(_) => return Some((Received::Lost, Vec::new())),
        }
    };
    let mut sender = None;
    let mut descriptors = Vec::new();
    for message in control.drain() {
        match message {
            RecvAncillaryMessage::ScmRights(received) => descriptors.extend(received),
            RecvAncillaryMessage::ScmCredentials(who) => {
                sender = Some(Sender {
                    pid: who.pid.as_raw_nonzero().get() as u32,
                    uid: who.uid.as_raw(),
                });
            }
            _ => {}
        }
    }
    let received = if message.flags.contains(ReturnFlags::TRUNC) {
        Received::Garbage(format!("a frame of more than {MAX_FRAME} bytes"))
    } else if message.flags.contains(ReturnFlags::CTRUNC) {
        Received::Garbage(
            "descriptors were lost on the way: the receiver has no room for them".into(),
        )
    } else if message.bytes == 0 {
        Received::Lost
    } else {
        match Frame::decode(&bytes[..message.bytes]) {
            Some(frame) => Received::Frame(frame, sender),
            None => Received::Garbage(format!(
                "{} bytes that are no frame of a version that this build speaks",
                message.bytes
            )),
        }
    };
    Some((received, descriptors))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::event::{PollFd, PollFlags, Timespec, poll};

    #[test]
    fn the_last_words_of_a_peer_that_has_not_read_everything_are_heard() {
        let (mut ours, theirs) = Channel::pair().unwrap();
        let mut theirs = Channel::new(theirs);
        ours.send(&Frame::Released, Vec::new()).unwrap();
        theirs.send(&Frame::Stopping, Vec::new()).unwrap();
        drop(theirs);
        // Whatever another test starts has a copy of it until its exec.
        let mut end = [PollFd::new(&ours.socket, PollFlags::empty())];
        let minute = Timespec { tv_sec: 60, tv_nsec: 0 };
        assert_eq!(poll(&mut end, Some(&minute)), Ok(1));
        assert!(matches!(ours.receive(), Some(Received::Frame(Frame::Stopping, _))));
        assert!(matches!(ours.receive(), Some(Received::Lost)));
    }
}
