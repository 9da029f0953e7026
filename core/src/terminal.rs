use rustix::fs::{Mode, OFlags, open};

/// Whether this process has a controlling terminal. Closing one sends SIGHUP to everything that
/// was started in it, and that must not look like a request to restart.
pub(crate) struct Terminal {
    had_one: bool,
}

impl Terminal {
    /// As it is at the start.
    pub(crate) fn capture() -> Self {
        Self { had_one: has_one() }
    }

    pub(crate) fn has_gone(&self) -> bool {
        self.had_one && !has_one()
    }
}

fn has_one() -> bool {
    // The file is there for everybody; it can be opened by whoever has a terminal.
    open(
        "/dev/tty",
        OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC | OFlags::NONBLOCK,
        Mode::empty(),
    )
    .is_ok()
}
