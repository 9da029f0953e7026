//! A terminal that a subject is started in, and that a case closes.

use std::os::fd::OwnedFd;

use rustix::fs::{Mode, OFlags};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};

use crate::{Doing, Failure};

/// The side of a terminal at which a person would sit. Dropping it closes the terminal.
#[derive(Debug)]
pub(crate) struct Terminal {
    _master: OwnedFd,
}

impl Terminal {
    /// A new terminal, and a standard input in it.
    pub(crate) fn open() -> Result<(Self, OwnedFd), Failure> {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let master = openpt(flags).doing("opening a terminal")?;
        grantpt(&master).doing("opening a terminal")?;
        unlockpt(&master).doing("opening a terminal")?;
        let name = ptsname(&master, Vec::new()).doing("naming a terminal")?;
        // Not ours: a terminal would become the runner's own.
        let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
        let input = rustix::fs::open(name, flags, Mode::empty()).doing("opening a terminal")?;
        Ok((Self { _master: master }, input))
    }
}
