//! What processes own, as the kernel lists it: descriptors, threads, memory, zombies.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use crate::generation::SUBJECT;
use crate::{Doing, Failure};

/// An open descriptor of a process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Descriptor {
    /// Its number.
    pub number: i32,
    /// What it refers to: a path, `socket:[inode]`, `anon_inode:[eventpoll]`, ...
    pub target: String,
    /// The status flags of its open description (`O_NONBLOCK`, `O_APPEND`, ...)
    /// together with `O_CLOEXEC`, as in `/proc/PID/fdinfo`.
    pub flags: u32,
}

/// What a process owned at one moment.
#[derive(Clone, Debug)]
pub struct Belongings {
    /// The process.
    pub pid: u32,
    /// Its descriptors, in the order of their numbers.
    pub descriptors: Vec<Descriptor>,
    /// The names of its threads, in no meaningful order.
    pub threads: Vec<String>,
    /// Its resident memory.
    pub resident_kib: u64,
}

/// A process in the kernel's list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// Its number.
    pub pid: u32,
    /// Its parent.
    pub parent: u32,
    /// Its process group.
    pub group: u32,
    /// `R`, `S`, `D`, `T`, `Z`, ...
    pub state: char,
    /// The name of its executable, cut to 15 bytes.
    pub name: String,
}

const O_NONBLOCK: u32 = 0o4000;
const O_CLOEXEC: u32 = 0o2_000_000;

impl Belongings {
    /// Looks at a living process.
    ///
    /// # Errors
    ///
    /// If there is none of that number, or it is somebody else's.
    pub fn of(pid: u32) -> Result<Self, Failure> {
        Ok(Self {
            pid,
            descriptors: descriptors(pid)?,
            threads: threads(pid)?,
            resident_kib: resident_kib(pid)?,
        })
    }

    /// Fails unless `other` owns descriptors of the same numbers and kinds and
    /// as many threads, with a list of what differs.
    ///
    /// # Errors
    ///
    /// If the two differ.
    pub fn same_as(&self, other: &Self) -> Result<(), Failure> {
        let kinds = |belongings: &Self| -> BTreeMap<i32, String> {
            let descriptors = belongings.descriptors.iter();
            descriptors.map(|one| (one.number, one.kind().to_owned())).collect()
        };
        let (ours, theirs) = (kinds(self), kinds(other));
        let mut differences = Vec::new();
        for number in ours.keys().chain(theirs.keys()).collect::<BTreeSet<_>>() {
            let (our, their) = (ours.get(number), theirs.get(number));
            if our != their {
                let text =
                    |kind: Option<&String>| kind.map_or("nothing", String::as_str).to_owned();
                differences.push(format!("{number}: {} and {}", text(our), text(their)));
            }
        }
        if self.threads.len() != other.threads.len() {
            differences.push(format!("threads: {:?} and {:?}", self.threads, other.threads));
        }
        if differences.is_empty() {
            return Ok(());
        }
        let (one, two) = (self.pid, other.pid);
        Err(Failure::new(format!("processes {one} and {two} own other things: {differences:#?}")))
    }

    /// Fails unless every descriptor but stdin, stdout and stderr is close-on-exec.
    ///
    /// # Errors
    ///
    /// With the descriptors that a child would inherit.
    pub fn nothing_is_inherited(&self) -> Result<(), Failure> {
        let open: Vec<_> =
            self.descriptors.iter().filter(|one| one.number > 2 && !one.close_on_exec()).collect();
        if open.is_empty() {
            return Ok(());
        }
        Err(Failure::new(format!("process {}: not close-on-exec: {open:#?}", self.pid)))
    }
}

impl Descriptor {
    /// Whether a child would not inherit it.
    #[must_use]
    pub fn close_on_exec(&self) -> bool {
        self.flags & O_CLOEXEC != 0
    }

    /// Whether `O_NONBLOCK` is set.
    #[must_use]
    pub fn nonblocking(&self) -> bool {
        self.flags & O_NONBLOCK != 0
    }

    /// The target without what differs from one object to the next of its kind.
    #[must_use]
    pub fn kind(&self) -> &str {
        match self.target.split_once(":[") {
            Some((kind, _)) if kind != "anon_inode" => kind,
            _ => &self.target,
        }
    }
}

/// The descriptors of a process, in the order of their numbers.
///
/// # Errors
///
/// If there is no such process, or it is somebody else's.
pub fn descriptors(pid: u32) -> Result<Vec<Descriptor>, Failure> {
    let mut found = Vec::new();
    for entry in fs::read_dir(format!("/proc/{pid}/fd")).doing(listing("descriptors", pid))? {
        let entry = entry.doing(listing("descriptors", pid))?;
        let name = entry.file_name();
        let Some(number) = name.to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        // A descriptor may be closed between being listed and being looked at.
        let (Ok(target), Ok(info)) = (
            fs::read_link(entry.path()),
            fs::read_to_string(format!("/proc/{pid}/fdinfo/{number}")),
        ) else {
            continue;
        };
        let flags = info.lines().find_map(|line| line.strip_prefix("flags:"));
        let flags = flags.and_then(|octal| u32::from_str_radix(octal.trim(), 8).ok()).unwrap_or(0);
        found.push(Descriptor { number, target: target.to_string_lossy().into_owned(), flags });
    }
    found.sort_by_key(|descriptor| descriptor.number);
    Ok(found)
}

/// The names of a process's threads.
///
/// # Errors
///
/// If there is no such process.
pub fn threads(pid: u32) -> Result<Vec<String>, Failure> {
    let entries = fs::read_dir(format!("/proc/{pid}/task")).doing(listing("threads", pid))?;
    let names =
        entries.filter_map(|entry| fs::read_to_string(entry.ok()?.path().join("comm")).ok());
    Ok(names.map(|name| name.trim_end().to_owned()).collect())
}

/// The resident memory of a process.
///
/// # Errors
///
/// If there is no such process.
pub fn resident_kib(pid: u32) -> Result<u64, Failure> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).doing(listing("memory", pid))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse().ok());
    kib.ok_or_else(|| Failure::new(format!("process {pid} has no memory: it is a zombie")))
}

/// Looks a process up in the kernel's list.
#[must_use]
pub fn listed(pid: u32) -> Option<Listed> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name is in brackets and may contain blanks and brackets itself.
    let (start, rest) = stat.rsplit_once(')')?;
    let name = start.split_once('(')?.1.to_owned();
    let mut words = rest.split_ascii_whitespace();
    let state = words.next()?.chars().next()?;
    let parent = words.next()?.parse().ok()?;
    let group = words.next()?.parse().ok()?;
    Some(Listed { pid, parent, group, state, name })
}

/// The children of a process, zombies included.
#[must_use]
pub fn children(pid: u32) -> Vec<Listed> {
    all().into_iter().filter(|process| process.parent == pid).collect()
}

/// The dead children that a process has not waited for.
#[must_use]
pub fn zombies(pid: u32) -> Vec<Listed> {
    children(pid).into_iter().filter(Listed::is_zombie).collect()
}

impl Listed {
    /// Whether it is dead and not waited for.
    #[must_use]
    pub fn is_zombie(&self) -> bool {
        self.state == 'Z'
    }
}

impl fmt::Display for Listed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({}, {}, child of {})", self.pid, self.name, self.state, self.parent)
    }
}

pub(crate) fn is_zombie(pid: u32) -> bool {
    listed(pid).is_some_and(|process| process.is_zombie())
}

/// The processes of a case: of one of its process groups, or with its scenario in
/// the environment, which a helper inherits even if it leaves the group. A zombie
/// has no environment any more and is found by its group only.
pub(crate) fn members(scenario: &Path, groups: &[u32]) -> Vec<Listed> {
    let marker = [SUBJECT.as_bytes(), b"=", scenario.as_os_str().as_bytes()].concat();
    let runner = std::process::id();
    let belongs = |process: &Listed| {
        groups.contains(&process.group)
            || fs::read(format!("/proc/{}/environ", process.pid))
                .is_ok_and(|environ| environ.split(|&byte| byte == 0).any(|var| var == marker))
    };
    all().into_iter().filter(|process| process.pid != runner && belongs(process)).collect()
}

fn all() -> Vec<Listed> {
    let pids = fs::read_dir("/proc").into_iter().flatten().flatten();
    pids.filter_map(|entry| listed(entry.file_name().to_str()?.parse().ok()?)).collect()
}

fn listing(what: &str, pid: u32) -> String {
    format!("listing the {what} of process {pid}")
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;

    use rustix::io::{FdFlags, fcntl_setfd};

    use super::*;

    #[test]
    fn this_process_owns_what_it_has_opened() {
        let (one, two) = std::os::unix::net::UnixStream::pair().unwrap();
        one.set_nonblocking(true).unwrap();
        let ours = Belongings::of(std::process::id()).unwrap();
        let find = |fd: i32| ours.descriptors.iter().find(|d| d.number == fd).unwrap();
        assert_eq!(find(one.as_raw_fd()).kind(), "socket");
        assert!(find(one.as_raw_fd()).close_on_exec() && find(one.as_raw_fd()).nonblocking());
        assert!(!find(two.as_raw_fd()).nonblocking());
        assert!(ours.resident_kib > 0 && !ours.threads.is_empty());

        fcntl_setfd(&two, FdFlags::empty()).unwrap();
        let ours = Belongings::of(std::process::id()).unwrap();
        let failure = ours.nothing_is_inherited().unwrap_err().to_string();
        assert!(failure.contains(&format!("number: {}", two.as_raw_fd())), "{failure}");
    }

    #[test]
    fn what_differs_is_named() {
        let descriptor =
            |number, target: &str| Descriptor { number, target: target.into(), flags: 0 };
        let with = |descriptors| Belongings {
            pid: 1,
            descriptors,
            threads: vec!["main".into()],
            resident_kib: 1,
        };
        let one = with(vec![descriptor(3, "socket:[1]"), descriptor(4, "pipe:[2]")]);
        let same = with(vec![descriptor(3, "socket:[9]"), descriptor(4, "pipe:[8]")]);
        one.same_as(&same).unwrap();
        let less = with(vec![descriptor(3, "socket:[9]")]);
        let failure = one.same_as(&less).unwrap_err().to_string();
        assert!(failure.contains("4: pipe and nothing"), "{failure}");
    }

    #[test]
    fn a_dead_child_is_a_zombie_until_it_is_waited_for() {
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let process = crate::signal::Process::open(child.id()).unwrap();
        process.wait_gone(std::time::Duration::from_secs(60)).unwrap();
        assert!(is_zombie(child.id()));
        assert!(zombies(std::process::id()).iter().any(|zombie| zombie.pid == child.id()));
        child.wait().unwrap();
        assert!(!is_zombie(child.id()));
    }
}
