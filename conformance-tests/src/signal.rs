//! Signals to processes and the news of their ends.

use std::fmt;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{
    Pid, PidfdFlags, WaitId, WaitIdOptions, pidfd_open, pidfd_send_signal, waitid,
};

pub use rustix::process::Signal;

use crate::timeline::Event;
use crate::{Doing, Failure, Stamp};

/// A process that cannot be mistaken for a later one of the same number.
#[derive(Debug)]
pub struct Process {
    pid: u32,
    fd: OwnedFd,
}

/// How a process ended.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Exit {
    /// It left with this status.
    Status(i32),
    /// This signal ended it.
    Signal(i32),
}

impl Process {
    /// Takes hold of a living process, or of one that nobody has waited for.
    ///
    /// # Errors
    ///
    /// If there is none of that number.
    pub fn open(pid: u32) -> Result<Self, Failure> {
        let fd = raw(pid)
            .and_then(|pid| pidfd_open(pid, PidfdFlags::empty()))
            .doing(format_args!("opening process {pid}"))?;
        Ok(Self { pid, fd })
    }

    /// Its number.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Sends it a signal.
    ///
    /// # Errors
    ///
    /// If it is gone.
    pub fn signal(&self, signal: Signal) -> Result<(), Failure> {
        pidfd_send_signal(&self.fd, signal)
            .doing(format_args!("sending {signal:?} to process {}", self.pid))
    }

    /// Waits until it is dead, whosever child it is.
    ///
    /// # Errors
    ///
    /// If it lives for longer than `within`.
    pub fn wait_gone(&self, within: Duration) -> Result<(), Failure> {
        if readable(self.fd.as_fd(), within)? {
            return Ok(());
        }
        Err(Failure::new(format!("process {} is still there after {within:?}", self.pid)))
    }

    /// Whether it is dead.
    #[must_use]
    pub fn is_gone(&self) -> bool {
        readable(self.fd.as_fd(), Duration::ZERO).unwrap_or(false)
    }

    /// Takes its exit status if it is dead and a child of this process. `ECHILD`
    /// if it is somebody else's.
    pub(crate) fn reap(&self) -> Result<Option<Exit>, Errno> {
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
        let status = waitid(WaitId::PidFd(self.fd.as_fd()), options)?;
        Ok(status.map(|status| match (status.exit_status(), status.terminating_signal()) {
            (Some(code), _) => Exit::Status(code),
            (None, signal) => Exit::Signal(signal.unwrap_or(0)),
        }))
    }
}

impl AsFd for Process {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Status(code) => write!(f, "status {code}"),
            Self::Signal(number) => match Signal::from_named_raw(*number) {
                Some(signal) => write!(f, "{signal:?}"),
                None => write!(f, "signal {number}"),
            },
        }
    }
}

const ENDED: &str = "ended";

/// What the timeline says of a process's end. The status is known to its parent only.
pub(crate) fn exit_event(pid: u32, exit: Option<Exit>) -> Event {
    let detail = match exit {
        Some(Exit::Status(code)) => ("status", code.to_string()),
        Some(Exit::Signal(number)) => ("signal", number.to_string()),
        None => ("status", "known to its parent only".into()),
    };
    let fields = [(detail.0.to_owned(), detail.1)].into();
    Event { at: Stamp::now(), pid: Some(pid), name: ENDED.into(), fields }
}

/// Reads what [`exit_event`] wrote, if the event is of that kind.
pub(crate) fn exit_of(event: &Event) -> Option<Option<Exit>> {
    event.is(ENDED).then(|| {
        let number = |key| event.get(key)?.parse().ok();
        number("status").map(Exit::Status).or_else(|| number("signal").map(Exit::Signal))
    })
}

pub(crate) fn raw(pid: u32) -> Result<Pid, Errno> {
    i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or(Errno::SRCH)
}

fn readable(fd: BorrowedFd<'_>, within: Duration) -> Result<bool, Failure> {
    let deadline = Stamp::now() + within;
    loop {
        let left = deadline.since(Stamp::now());
        let timeout = Timespec {
            tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: left.subsec_nanos().into(),
        };
        match poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&timeout)) {
            Ok(ready) => return Ok(ready > 0),
            Err(Errno::INTR) => {}
            Err(errno) => return Err(Failure::from(errno).while_doing("waiting for a process")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signal_ends_a_process_and_says_so() {
        let mut child = std::process::Command::new("sleep").arg("600").spawn().unwrap();
        let process = Process::open(child.id()).unwrap();
        assert!(!process.is_gone());
        assert!(process.wait_gone(Duration::from_millis(1)).is_err());
        process.signal(Signal::TERM).unwrap();
        process.wait_gone(Duration::from_secs(60)).unwrap();
        let exit = process.reap().unwrap().unwrap();
        assert_eq!(exit, Exit::Signal(15));
        assert_eq!(process.reap(), Err(Errno::CHILD));
        assert!(process.signal(Signal::TERM).is_err());
        // Taken already, by `reap`.
        assert!(child.wait().is_err());
    }
}
