//! What the runner itself was born with.

use std::os::fd::BorrowedFd;

use rustix::io::{FdFlags, fcntl_setfd};

use crate::{Failure, hygiene};

/// Keeps the descriptors that a shell, cargo or an editor left open in the runner
/// (a job server's pipe, a log) from its subjects: a case that counts a subject's
/// descriptors would find them.
///
/// To be called before the first thread starts.
pub(crate) fn keep_to_ourselves() -> Result<(), Failure> {
    for descriptor in hygiene::descriptors(std::process::id())? {
        if descriptor.number > 2 && !descriptor.close_on_exec() {
            set_close_on_exec(descriptor.number)?;
        }
    }
    Ok(())
}

#[expect(unsafe_code, reason = "no safe call takes a descriptor that nobody in the process owns")]
fn set_close_on_exec(number: i32) -> Result<(), Failure> {
    // SAFETY: the number was listed a moment ago as open in this process, in which
    // no other thread runs that could have closed it; and the call only sets a flag
    // that no owner of a descriptor in Rust relies on being unset.
    let fd = unsafe { BorrowedFd::borrow_raw(number) };
    Ok(fcntl_setfd(fd, FdFlags::CLOEXEC)?)
}
