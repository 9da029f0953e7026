use std::ffi::OsString;
use std::os::fd::{BorrowedFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::io::FdFlags;

use crate::{Error, ErrorKind, Result, raw};

/// What a service manager has opened for this process by the `LISTEN_FDS` protocol (systemd
/// socket activation).
pub(crate) struct Activation;

impl Activation {
    /// The descriptors that were left for this very process, in their order, each with its name
    /// and close-on-exec from now on.
    ///
    /// Nothing, if `LISTEN_PID` names another process or none, and nothing from the second call
    /// on. The variables stay, as the environment is never changed; they are inert for every
    /// child, whose pid is another.
    ///
    /// Names come from `LISTEN_FDNAMES`. systemd gives all sockets of one unit the same name, so
    /// they need not differ. Where it is missing, they are `LISTEN_FD_3` and so on, by number.
    ///
    /// The error is of the kind [`ErrorKind::Inherit`], for variables that are malformed and for
    /// a descriptor that is not open or that this process has opened itself; no descriptor has been
    /// touched then.
    pub(crate) fn from_env() -> Result<Vec<(String, OwnedFd)>> {
        static TAKEN: AtomicBool = AtomicBool::new(false);

        if TAKEN.load(Ordering::SeqCst) {
            return Ok(Vec::new());
        }
        let announced = announced(|name| std::env::var_os(name), std::process::id())?;
        if announced.is_empty() || TAKEN.swap(true, Ordering::SeqCst) {
            return Ok(Vec::new());
        }
        announced
            .into_iter()
            .map(|(name, number)| {
                let fd = raw::adopt(number).map_err(|error| not_usable(number, &name, error))?;
                Ok((name, fd))
            })
            .collect()
    }
}

const FIRST: RawFd = 3;

/// What the variables announce, once every descriptor has been seen to be open.
pub(crate) fn announced(
    var: impl Fn(&str) -> Option<OsString>,
    own_pid: u32,
) -> Result<Vec<(String, RawFd)>> {
    let (Some(pid), Some(count)) = (var("LISTEN_PID"), var("LISTEN_FDS")) else {
        return Ok(Vec::new());
    };
    if number("LISTEN_PID", &pid)? != own_pid {
        return Ok(Vec::new());
    }
    let count = number("LISTEN_FDS", &count)?;
    let end = RawFd::try_from(count)
        .ok()
        .and_then(|count| FIRST.checked_add(count))
        .ok_or_else(|| malformed("LISTEN_FDS", &count.to_string(), "too many"))?;

    let names: Option<Vec<String>> = match var("LISTEN_FDNAMES") {
        None => None,
        Some(names) => {
            let names = names.into_string().map_err(|names| {
                malformed("LISTEN_FDNAMES", &names.to_string_lossy(), "not UTF-8")
            })?;
            let list: Vec<String> = match names.as_str() {
                "" if count == 0 => Vec::new(),
                _ => names.split(':').map(str::to_owned).collect(),
            };
            if u32::try_from(list.len()) != Ok(count) {
                let why = format!("{} names for {count} descriptors", list.len());
                return Err(malformed("LISTEN_FDNAMES", &names, &why));
            }
            Some(list)
        }
    };

    // Pushed one by one: a count out of thin air ends at the first number that is not open.
    let mut announced = Vec::new();
    for (index, number) in (FIRST..end).enumerate() {
        let name = names.as_ref().and_then(|names| names.get(index).cloned());
        let name = name.unwrap_or_else(|| format!("LISTEN_FD_{number}"));
        raw::inspect(number, passed).map_err(|error| not_usable(number, &name, error))?;
        announced.push((name, number));
    }
    Ok(announced)
}

/// Refuses what this process has opened itself, which a count that is too large would reach: nothing
/// that crosses exec is close-on-exec.
fn passed(descriptor: BorrowedFd<'_>) -> std::io::Result<()> {
    if rustix::io::fcntl_getfd(descriptor)?.contains(FdFlags::CLOEXEC) {
        return Err(std::io::Error::other(
            "it was not passed to this process, which has opened it",
        ));
    }
    Ok(())
}

fn number(variable: &str, value: &OsString) -> Result<u32> {
    let value = value.to_string_lossy();
    value.parse().map_err(|_| malformed(variable, &value, "not a number"))
}

fn malformed(variable: &str, value: &str, why: &str) -> Error {
    Error::new(
        ErrorKind::Inherit,
        format!("inherit by `{variable}={}`: {why}", value.escape_debug()),
    )
}

fn not_usable(number: RawFd, name: &str, error: std::io::Error) -> Error {
    let message = format!("inherit `{name}` as descriptor {number}");
    Error::with_source(ErrorKind::Inherit, message, error)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    const PID: u32 = 77;

    fn with(vars: &[(&str, &str)]) -> Result<Vec<(String, RawFd)>> {
        let find =
            |name: &str| vars.iter().find(|(key, _)| *key == name).map(|(_, value)| value.into());
        announced(find, PID)
    }

    #[test]
    fn what_is_for_nobody_or_for_another_is_ignored() {
        assert!(with(&[]).unwrap().is_empty());
        assert!(with(&[("LISTEN_FDS", "1")]).unwrap().is_empty());
        assert!(with(&[("LISTEN_PID", "77")]).unwrap().is_empty());
        assert!(with(&[("LISTEN_PID", "78"), ("LISTEN_FDS", "garbage")]).unwrap().is_empty());
        assert!(with(&[("LISTEN_PID", "77"), ("LISTEN_FDS", "0")]).unwrap().is_empty());
    }

    #[test]
    fn what_is_malformed_is_an_error_that_names_it() {
        let huge = "4294967295";
        let names = "a:b";
        for (vars, said) in [
            (vec![("LISTEN_PID", "x"), ("LISTEN_FDS", "1")], "`LISTEN_PID=x`: not a number"),
            (vec![("LISTEN_PID", "77"), ("LISTEN_FDS", "-1")], "`LISTEN_FDS=-1`: not a number"),
            (vec![("LISTEN_PID", "77"), ("LISTEN_FDS", huge)], "too many"),
            (
                vec![("LISTEN_PID", "77"), ("LISTEN_FDS", "1"), ("LISTEN_FDNAMES", names)],
                "`LISTEN_FDNAMES=a:b`: 2 names for 1 descriptors",
            ),
            // The first of them that is not ours: closed, or opened by another test.
            (vec![("LISTEN_PID", "77"), ("LISTEN_FDS", "2147480000")], "as descriptor"),
        ] {
            let error = with(&vars).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Inherit);
            assert!(error.to_string().contains(said), "{error}");
        }
    }

    /// Runs [`in_child`] as the process that a manager has started, with `/dev/null` as 3 and
    /// `/dev/zero` as 4.
    fn activated(vars: &str) -> bool {
        let script = format!(
            r#"{vars} exec "$0" --exact activation::tests::in_child 3</dev/null 4</dev/zero"#
        );
        let own = std::env::current_exe().unwrap();
        Command::new("/bin/sh").arg("-c").arg(script).arg(own).output().unwrap().status.success()
    }

    #[test]
    fn they_are_taken_once_and_close_on_exec() {
        assert!(activated("EXPECT=a,b LISTEN_PID=$$ LISTEN_FDS=2 LISTEN_FDNAMES=a:b"));
        assert!(activated("EXPECT=LISTEN_FD_3,LISTEN_FD_4 LISTEN_PID=$$ LISTEN_FDS=2"));
        assert!(activated("EXPECT= LISTEN_PID=1 LISTEN_FDS=2"));
        assert!(activated("EXPECT=error LISTEN_PID=$$ LISTEN_FDS=1000"));
        assert!(!activated("EXPECT=b,a LISTEN_PID=$$ LISTEN_FDS=2 LISTEN_FDNAMES=a:b"));
    }

    /// The other half of `they_are_taken_once_and_close_on_exec`; without its variable nothing.
    #[test]
    fn in_child() {
        let Ok(expected) = std::env::var("EXPECT") else { return };
        let got = Activation::from_env();
        if expected == "error" {
            assert_eq!(got.unwrap_err().kind(), ErrorKind::Inherit);
            // What was open stays open, and as it was.
            assert!(raw::inspect(3, |fd| Ok(rustix::io::fcntl_getfd(fd)?)).unwrap().is_empty());
            return;
        }
        let got = got.unwrap();
        let names: Vec<&str> = got.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names.join(","), expected);
        for ((_, fd), path) in got.iter().zip(["/dev/null", "/dev/zero"]) {
            assert!(rustix::io::fcntl_getfd(fd).unwrap().contains(rustix::io::FdFlags::CLOEXEC));
            let it = rustix::fs::fstat(fd).unwrap();
            assert_eq!(it.st_rdev, rustix::fs::stat(path).unwrap().st_rdev);
        }
        assert!(Activation::from_env().unwrap().is_empty());
    }
}
