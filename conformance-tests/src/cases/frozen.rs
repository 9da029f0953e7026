//! A process that stands still, so that what it has accepted is known when it is killed.

use std::collections::HashSet;
use std::net::SocketAddr;

use rustix::net::getpeername;
use rustix::process::{PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};

use super::common::SOON;
use crate::signal::{Process, Signal, raw};
use crate::{Context, Failure, hygiene, poll_until};

/// A process that stands still, until this is dropped.
pub(super) struct Frozen<'a> {
    case: &'a Context,
    pub(super) process: Process,
}

impl<'a> Frozen<'a> {
    /// Stops a process. None if it has gone.
    pub(super) fn of(case: &'a Context, pid: u32) -> Result<Option<Self>, Failure> {
        let Ok(process) = Process::open(pid) else {
            return Ok(None);
        };
        if process.signal(Signal::STOP).is_err() {
            return Ok(None);
        }
        let frozen = Self { case, process };
        case.timeline().note(Some(pid), "is stopped", &[]);
        poll_until(SOON, "a process to stand still", || {
            if frozen.process.is_gone() {
                return Some(false);
            }
            stands_still(pid).then_some(true)
        })
        .map(|still| still.then_some(frozen))
    }

    /// The other ends of its connections.
    pub(super) fn peers(&mut self) -> Result<HashSet<SocketAddr>, Failure> {
        let pid = self.process.pid();
        let Ok(pidfd) = pidfd_open(raw(pid)?, PidfdFlags::empty()) else {
            return Ok(HashSet::new());
        };
        let mut peers = HashSet::new();
        for descriptor in hygiene::descriptors(pid).unwrap_or_default() {
            if descriptor.kind() != "socket" {
                continue;
            }
            // It may be killed at any moment, by its predecessor.
            let Ok(socket) = pidfd_getfd(&pidfd, descriptor.number, PidfdGetfdFlags::empty())
            else {
                continue;
            };
            if let Ok(Some(peer)) = getpeername(&socket) {
                peers.extend(SocketAddr::try_from(peer));
            }
        }
        Ok(peers)
    }

    pub(super) fn kill(self) -> Result<(), Failure> {
        let pid = self.process.pid();
        self.case.timeline().note(Some(pid), "is killed", &[]);
        self.process.signal(Signal::KILL)?;
        self.process.wait_gone(SOON)
    }

    pub(super) fn thaw(self) {
        self.case.timeline().note(Some(self.process.pid()), "goes on", &[]);
    }
}

impl Drop for Frozen<'_> {
    fn drop(&mut self) {
        // If it is dead, nothing is lost.
        let _ = self.process.signal(Signal::CONT);
    }
}

/// Whether all threads of a process are stopped.
fn stands_still(pid: u32) -> bool {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let mut states = tasks.filter_map(|task| {
        let stat = std::fs::read_to_string(task.path().join("stat")).ok()?;
        stat.rsplit_once(") ")?.1.chars().next()
    });
    states.all(|state| state == 'T')
}
