use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FileType, Mode, OFlags, fstat, open};
use rustix::io::Errno;

/// Whether this process has a controlling terminal. Closing one sends SIGHUP to everything that
/// was started in it, and that must not look like a request to restart.
pub(crate) struct Terminal {
    had_one: bool,
    /// The leader of the session, if that is an older generation, which leaves because it was
    /// replaced.
    leaving_leader: Option<i32>,
}

/// What a SIGHUP has to do with the terminal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Hangup {
    /// Nothing.
    Unrelated,
    /// It was closed.
    Closed,
    /// It is still there, but the session's leader, an older generation, has left and taken it
    /// from the session. The kernel tells whoever was in its foreground.
    LeaderLeft,
}

impl Terminal {
    /// As it is at the start. `older`: the processes before this one that are still there.
    pub(crate) fn capture(older: impl IntoIterator<Item = u32>) -> Self {
        // 0 if it is outside of this pid namespace, as for PID 1 of a container. rustix's call takes
        // that for impossible.
        let leader = nix::unistd::getsid(None).map_or(0, nix::unistd::Pid::as_raw);
        let leader_leaves = older.into_iter().any(|pid| i32::try_from(pid) == Ok(leader));
        Self { had_one: look().is_ok(), leaving_leader: leader_leaves.then_some(leader) }
    }

    /// For each SIGHUP.
    pub(crate) fn hangup(&mut self) -> Hangup {
        // Anything else (no descriptor left, a changed root) says nothing about the terminal.
        let has_gone = || matches!(look(), Err(Errno::NXIO | Errno::IO));
        // A leader that ends sends the signal before it takes the terminal away.
        if !self.had_one || !(has_gone() || self.leaving_leader.is_some_and(is_exiting)) {
            return Hangup::Unrelated;
        }
        if self.leaving_leader.is_some() && !is_stdio_hung_up() {
            // Once: from now on there is no terminal that could be closed.
            self.had_one = false;
            return Hangup::LeaderLeft;
        }
        Hangup::Closed
    }
}

/// Whether a process has begun to end: the kernel's `PF_EXITING` among the flags of
/// `/proc/PID/stat`, which are the seventh word after its name.
fn is_exiting(pid: i32) -> bool {
    const PF_EXITING: u32 = 4;
    let Ok(stat) = std::fs::read_to_string(format!("/proc/{pid}/stat")) else {
        return false;
    };
    let flags = stat.rsplit_once(')').and_then(|(_, rest)| rest.split_ascii_whitespace().nth(6));
    flags.and_then(|flags| flags.parse::<u32>().ok()).is_some_and(|flags| flags & PF_EXITING != 0)
}

/// Whether a terminal that this process reads or writes was closed.
fn is_stdio_hung_up() -> bool {
    let hung_up = |stream: BorrowedFd<'_>| {
        let is_device = fstat(stream)
            .is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice);
        let mut fds = [PollFd::new(&stream, PollFlags::empty())];
        let zero = Timespec { tv_sec: 0, tv_nsec: 0 };
        is_device
            && poll(&mut fds, Some(&zero)).is_ok()
            && fds[0].revents().contains(PollFlags::HUP)
    };
    hung_up(io::stdin().as_fd()) || hung_up(io::stdout().as_fd()) || hung_up(io::stderr().as_fd())
}

/// The file is there for everybody; it can be opened by whoever has a terminal.
fn look() -> Result<OwnedFd, Errno> {
    open(
        "/dev/tty",
        OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC | OFlags::NONBLOCK,
        Mode::empty(),
    )
}
