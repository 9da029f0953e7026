//! What a service manager is told, and what it cannot be told.

use std::os::unix::net::UnixDatagram;

use super::common::{
    DEADLINE, SOON, finish, load, plain, refused, restart, serving, stop, uninterrupted,
};
use crate::{Case, Context, Failure, ensure};

pub(super) const CASES: &[Case] = &[
    Case {
        name: "manager::it_is_told_in_time",
        clause: "under NOTIFY_SOCKET: READY, RELOADING with its time, MAINPID before the old one \
                 leaves, STOPPING only at a real stop",
        deadline: DEADLINE,
        needs: &[],
        run: told_in_time,
    },
    Case {
        name: "manager::one_that_cannot_be_told",
        clause: "as the main process of a manager that cannot be told of another, a restart is a \
                 typed refusal",
        deadline: DEADLINE,
        needs: &[],
        run: cannot_be_told,
    },
];

/// A service manager's end of the notify socket. It takes no descriptors, which the kernel then
/// closes: that is the answer to a barrier.
struct Manager(UnixDatagram);

impl Manager {
    fn message(&self) -> Result<String, Failure> {
        let mut buffer = [0; 4096];
        let length = uninterrupted(|| self.0.recv(&mut buffer))?;
        Ok(String::from_utf8_lossy(&buffer[..length]).into_owned())
    }

    /// The messages up to one with this line, which is the last of them.
    fn until(&self, line: &str) -> Result<Vec<String>, Failure> {
        let mut heard = Vec::new();
        loop {
            let message = self.message().map_err(|failure| {
                Failure::new(format!("no `{line}` after {heard:?}: {failure}"))
            })?;
            let last = message.lines().any(|heard| heard == line);
            heard.push(message);
            if last {
                return Ok(heard);
            }
        }
    }
}

fn told_in_time(case: &Context) -> Result<(), Failure> {
    let path = case.folder().join("notify");
    let manager = Manager(UnixDatagram::bind(&path)?);
    manager.0.set_read_timeout(Some(SOON))?;
    case.set_scenario(&plain())?;
    let pid = case.subject().env("NOTIFY_SOCKET", &path).start()?.pid();
    let first = serving(case, pid)?;
    ensure!(manager.until("READY=1")?.len() == 1, "READY is the first that is said");
    let load = load(case, first.address()?)?;

    // A restart that fails is a reload that is over.
    let binary = std::fs::read(case.program().path())?;
    case.program().replace_with(b"no program", 0o755)?;
    refused(case, pid, "Spawn")?;
    let heard = manager.until("READY=1")?;
    ensure!(heard.iter().any(|message| is_reload(message)), "{heard:?}");
    ensure!(!heard.concat().contains("MAINPID"), "{heard:?}");
    case.program().replace_with(&binary, 0o755)?;

    let second = restart(case, pid)?.pid;
    let heard = manager.until(&format!("MAINPID={second}"))?;
    ensure!(heard.iter().any(|message| is_reload(message)), "{heard:?}");
    case.wait_only(&[second], SOON)?;

    // One more restart and the stop are part of it.
    finish(case, load, second)?;
    let heard = manager.until("STOPPING=1")?;
    let main = heard.iter().rposition(|message| message.contains("MAINPID="));
    ensure!(main.is_some(), "the last restart was told: {heard:?}");
    Ok(())
}

fn is_reload(message: &str) -> bool {
    let mut lines = message.lines();
    let time = |line: &str| {
        line.strip_prefix("MONOTONIC_USEC=").is_some_and(|time| time.parse::<u64>().is_ok())
    };
    lines.clone().any(|line| line == "RELOADING=1") && lines.any(time)
}

fn cannot_be_told(case: &Context) -> Result<(), Failure> {
    case.set_scenario(&plain())?;
    let main = r#"SYSTEMD_EXEC_PID=$$ exec "$0" "$@""#;
    let subject = case.subject().env_remove("NOTIFY_SOCKET").through(["/bin/sh", "-c", main]);
    let pid = subject.start()?.pid();
    let first = serving(case, pid)?;
    let load = load(case, first.address()?)?;
    refused(case, pid, "Unfollowed")?;
    load.wait_for_answers(50, SOON)?;
    case.nothing_lost(&load.stop())?;
    stop(case, pid)
}
