//! What the runner itself was born with.

use std::os::fd::{BorrowedFd, FromRawFd, OwnedFd};

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

fn set_close_on_exec(number: i32) -> Result<(), Failure> {
    with(number, |fd| Ok(fcntl_setfd(fd, FdFlags::CLOEXEC)?))
}

/// Lets every process that is started from now on inherit all descriptors: a helper as only a
/// program that knows nothing of close-on-exec has one.
pub(crate) fn share_everything() -> Result<(), Failure> {
    for descriptor in hygiene::descriptors(std::process::id())? {
        if descriptor.number > 2 {
            // The listing's own is gone by now.
            let _ = with(descriptor.number, |fd| Ok(fcntl_setfd(fd, FdFlags::empty())?));
        }
    }
    Ok(())
}

/// Closes a descriptor behind the back of whoever owns it, by putting `/dev/null` in its place.
pub(crate) fn close_behind_its_owner(number: i32) -> Result<(), Failure> {
    let null = std::fs::File::open("/dev/null")?;
    replace(&null, number)
}

/// Shows the descriptor of that number, which nobody in this process need own.
pub(crate) fn with<T>(
    number: i32,
    look: impl FnOnce(BorrowedFd<'_>) -> Result<T, Failure>,
) -> Result<T, Failure> {
    if number < 0 {
        return Err(rustix::io::Errno::BADF.into());
    }
    look(borrow(number))
}

#[expect(unsafe_code, reason = "no safe call takes a descriptor that nobody in the process owns")]
fn borrow<'a>(number: i32) -> BorrowedFd<'a> {
    // SAFETY: it is not negative. If nothing is open there, system calls say so; all that is done
    // with it is to look, to send, and to set flags.
    unsafe { BorrowedFd::borrow_raw(number) }
}

#[expect(unsafe_code, reason = "what is to break is somebody else's descriptor")]
fn replace(by: &std::fs::File, number: i32) -> Result<(), Failure> {
    // SAFETY: the number goes on to be open, as `/dev/null`, and is not closed here: the value is
    // forgotten. That its owner finds another file is what the case is about.
    let mut place = std::mem::ManuallyDrop::new(unsafe { OwnedFd::from_raw_fd(number) });
    Ok(rustix::io::dup3(by, &mut place, rustix::io::DupFlags::CLOEXEC)?)
}
