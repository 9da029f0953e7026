//! Descriptors that are known by number only: those that another process left at an agreed place.
//!
//! Safe Rust has no door for them, so this is the one module that may use `unsafe`.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::sync::{Mutex, PoisonError};

use rustix::io::FdFlags;

/// Shows the descriptor with this number to `look`, without taking it.
///
/// Fails with `EBADF` if the number is not open.
pub(crate) fn inspect<T>(
    number: RawFd,
    look: impl FnOnce(BorrowedFd<'_>) -> io::Result<T>,
) -> io::Result<T> {
    if number < 0 {
        return Err(rustix::io::Errno::BADF.into());
    }
    // SAFETY: the number is not -1, which is all that memory safety asks for. If nothing is open
    // there, the system call says EBADF.
    let fd = unsafe { BorrowedFd::borrow_raw(number) };
    rustix::io::fcntl_getfd(fd)?;
    look(fd)
}

/// Takes the descriptor with this number and makes it close-on-exec.
///
/// Only for a number at which the environment says that another process has left a descriptor
/// for this one, after [`inspect`] has confirmed what can be confirmed. Each number can be taken
/// once in the life of the process: the second time it is `AlreadyExists`, since by then the
/// number may have been given to somebody else.
pub(crate) fn adopt(number: RawFd) -> io::Result<OwnedFd> {
    static TAKEN: Mutex<Vec<RawFd>> = Mutex::new(Vec::new());

    let mut taken = TAKEN.lock().unwrap_or_else(PoisonError::into_inner);
    if taken.contains(&number) {
        return Err(io::ErrorKind::AlreadyExists.into());
    }
    inspect(number, |fd| {
        let flags = rustix::io::fcntl_getfd(fd)?;
        Ok(rustix::io::fcntl_setfd(fd, flags | FdFlags::CLOEXEC)?)
    })?;
    taken.push(number);
    // SAFETY: the number is open, and was opened by another process for this one, which has no
    // other owner for it: it was there at exec, and `taken` lets nobody take it twice.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::{AsRawFd, IntoRawFd};

    #[test]
    fn what_is_not_open_is_not_taken() {
        for number in [-1, -2, RawFd::MAX] {
            let bad = Some(rustix::io::Errno::BADF.raw_os_error());
            assert_eq!(adopt(number).unwrap_err().raw_os_error(), bad);
            assert_eq!(inspect(number, |_| Ok(())).unwrap_err().raw_os_error(), bad);
        }
    }

    #[test]
    fn a_number_is_taken_once() {
        let file = std::fs::File::open("/dev/null").unwrap();
        // A number of its own, which no other test can be given meanwhile.
        let fd = rustix::io::fcntl_dupfd_cloexec(&file, 700).unwrap();
        let number = fd.into_raw_fd();
        assert_eq!(inspect(number, |fd| Ok(fd.as_raw_fd())).unwrap(), number);
        let owned = adopt(number).unwrap();
        assert!(rustix::io::fcntl_getfd(&owned).unwrap().contains(FdFlags::CLOEXEC));
        assert_eq!(adopt(number).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
    }
}
