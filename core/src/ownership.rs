use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::fs::{FlockOperation, MemfdFlags, fcntl_lock, memfd_create};
use rustix::io::Errno;

/// The ownership of the listeners: a lock that the kernel keeps on a memory file that every
/// generation holds.
///
/// A record lock belongs to the process, does not cross fork or exec, and falls when the process
/// dies or closes *any* descriptor of the file: so there is exactly one per process, and it never
/// leaves this type.
#[derive(Clone)]
pub(crate) struct Ownership(Arc<OwnedFd>);

impl Ownership {
    /// That of the first generation. Nobody owns it yet.
    pub(crate) fn create() -> io::Result<Self> {
        Ok(Self::from(memfd_create("handover", MemfdFlags::CLOEXEC)?))
    }

    /// Tries to become the owner, without waiting.
    pub(crate) fn try_lock(&self) -> io::Result<bool> {
        match fcntl_lock(&self.0, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(true),
            Err(Errno::AGAIN | Errno::ACCESS) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// For an offer: the descriptor itself, not a copy.
    pub(crate) fn share(&self) -> Arc<OwnedFd> {
        Arc::clone(&self.0)
    }

    pub(crate) fn unlock(&self) -> io::Result<()> {
        Ok(fcntl_lock(&self.0, FlockOperation::NonBlockingUnlock)?)
    }
}

impl From<OwnedFd> for Ownership {
    fn from(file: OwnedFd) -> Self {
        Self(Arc::new(file))
    }
}
