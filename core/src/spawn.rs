use std::collections::HashSet;
use std::ffi::{CString, OsStr, OsString};
use std::fmt;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::spawn::{PosixSpawnAttr, PosixSpawnFileActions, PosixSpawnFlags, posix_spawn};
use nix::sys::signal::SigSet;
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::Access;
use rustix::io::Errno;
use rustix::process::{
    Pid, PidfdFlags, Resource, Signal, WaitId, WaitIdOptions, WaitIdStatus, pidfd_open,
    pidfd_send_signal, waitid,
};
use rustix::thread::CpuSet;

use crate::{Error, ErrorKind, Result};

/// The number of the handover socket in a successor.
pub(crate) const SOCKET_NUMBER: RawFd = 3;

/// The variable that tells a successor what it is: `<instance>:3:<SO_COOKIE of the socket>`.
pub(crate) const VARIABLE: &str = "HANDOVER";

/// How a successor came to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Ended {
    /// It exited by itself, with this status (0 to 255).
    Exited(i32),
    /// A signal ended it.
    Signalled {
        /// The signal's number.
        signal: i32,
        /// Whether the kernel has written a core file.
        core: bool,
    },
    /// It has ended, and how is not known: `SIGCHLD` is ignored in this process, or another
    /// part of the program has waited for it.
    Unknown,
}

impl fmt::Display for Ended {
    /// Like "exit status 1" or "killed by SIGSEGV (core dumped)".
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Ended::Exited(status) => write!(f, "exit status {status}"),
            Ended::Signalled { signal, core } => {
                match nix::sys::signal::Signal::try_from(signal) {
                    Ok(signal) => write!(f, "killed by {}", signal.as_str())?,
                    Err(_) => write!(f, "killed by signal {signal}")?,
                }
                f.write_str(if core { " (core dumped)" } else { "" })
            }
            Ended::Unknown => f.write_str("ended in an unknown way"),
        }
    }
}

/// What to run as a successor: looked up again at each restart, so that a replaced file or a
/// link that points elsewhere now starts the new version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Executable {
    program: Program,
    /// The first one is the name that the program is given, argv[0].
    args: Vec<OsString>,
    /// The working directory when this was made: the program may have moved since.
    cwd: Option<PathBuf>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Program {
    Path(PathBuf),
    /// To be found in `PATH`.
    Name(OsString),
}

impl Executable {
    /// What this process was started as; to be called before it changes its working directory.
    ///
    /// By the name in argv[0], if what that leads to is what runs; else by the path that `exec`
    /// was given; else by the file that runs. The first two keep symbolic links.
    pub(crate) fn of_this_process() -> Executable {
        let args: Vec<OsString> = std::env::args_os().collect();
        let cwd = std::env::current_dir().ok();
        // rustix panics where it cannot read this: without /proc, or not dumpable.
        let exec_path = match std::fs::File::open("/proc/self/auxv") {
            Ok(_) => OsStr::from_bytes(rustix::param::linux_execfn().to_bytes()),
            Err(_) => OsStr::new(""),
        };
        let program = program_of(
            args.first().map(OsString::as_os_str).unwrap_or_default(),
            exec_path,
            Path::new("/proc/self/exe"),
            cwd.as_deref(),
        );
        Executable { program, args, cwd }
    }

    /// A program of the user's choice: a path, or without a `/` a name to be found in `PATH`.
    /// It is also argv[0], before `args`.
    pub(crate) fn new(
        program: impl Into<OsString>,
        args: impl IntoIterator<Item = impl Into<OsString>>,
    ) -> Executable {
        let name = program.into();
        let args = std::iter::once(name.clone()).chain(args.into_iter().map(Into::into));
        Self::named(name, args)
    }

    /// The same with an argv[0] of its own: the first of `args`.
    pub(crate) fn named(
        program: impl Into<OsString>,
        args: impl IntoIterator<Item = OsString>,
    ) -> Executable {
        let cwd = std::env::current_dir().ok();
        let program = program_named(&program.into(), cwd.as_deref());
        Executable { program, args: args.into_iter().collect(), cwd }
    }

    /// The path to run now: absolute, as far as the working directory was known, with its
    /// symbolic links. A name is looked up in `PATH` as a shell would; then the file exists.
    pub(crate) fn resolve(&self) -> io::Result<PathBuf> {
        match &self.program {
            Program::Path(path) => Ok(path.clone()),
            Program::Name(name) => search(name, self.cwd.as_deref()),
        }
    }

    /// For messages.
    fn name(&self) -> &OsStr {
        match &self.program {
            Program::Path(path) => path.as_os_str(),
            Program::Name(name) => name,
        }
    }
}

/// All that it takes to start a successor.
#[derive(Debug, Clone)]
pub(crate) struct Launch {
    executable: Executable,
    affinity: Option<CpuSet>,
    nice: Option<i32>,
}

impl Launch {
    /// Remembers the CPU affinity and the nice value of the calling thread, which is to be the
    /// one that starts the program, before anything has changed them.
    pub(crate) fn capture(executable: Executable) -> Launch {
        Launch {
            executable,
            affinity: rustix::thread::sched_getaffinity(None).ok(),
            nice: rustix::process::getpriority_process(None).ok(),
        }
    }

    /// Starts a successor with `socket` as its descriptor 3, and closes `socket` here.
    ///
    /// To be called on a thread of its own: the thread gets the affinity and the nice value that
    /// were captured, since a child inherits those of the thread that starts it.
    ///
    /// The error is of the kind [`ErrorKind::Os`], names the path, and has the OS error as its
    /// source; nothing is left behind then.
    pub(crate) fn spawn(&self, socket: OwnedFd, instance: &str) -> Result<Child> {
        let path = self.executable.resolve().map_err(|error| {
            let name = self.executable.name().display();
            Error::with_source(ErrorKind::Os, format!("start `{name}`: search in PATH"), error)
        })?;
        let failed = |doing: &str, error: io::Error| {
            let message = format!("start `{}`: {doing}", path.display());
            Error::with_source(ErrorKind::Os, message, error)
        };

        let socket = out_of_the_way(socket).map_err(|error| failed("its socket", error))?;
        let cookie = rustix::net::sockopt::socket_cookie(&socket)
            .map_err(|error| failed("its socket", error.into()))?;
        let marker = format!("{VARIABLE}={instance}:{SOCKET_NUMBER}:{cookie}");
        let env = environment(std::env::vars_os(), marker, std::process::id());
        let env = c_strings(env).map_err(|error| failed("its environment", error))?;
        let args = c_strings(self.executable.args.iter().cloned())
            .map_err(|error| failed("its arguments", error))?;

        // Held through the spawn, so that there is room for the pidfd afterwards.
        let room = rustix::io::fcntl_dupfd_cloexec(&socket, SOCKET_NUMBER)
            .map_err(|error| failed("a descriptor to watch it", error.into()))?;
        self.calm_thread();
        let pid = posix_spawn_with(&path, &socket, &args, &env)
            .map_err(|errno| explain(&path, errno as i32))?;
        drop((socket, room));
        watch(pid).map_err(|error| failed("watch it", error))
    }

    /// Failures leave the thread as it is: a successor on the wrong CPU is better than none.
    fn calm_thread(&self) {
        if let Some(affinity) = &self.affinity {
            let _ = rustix::thread::sched_setaffinity(None, affinity);
        }
        if let Some(nice) = self.nice {
            // On Linux this is the calling thread only.
            let _ = rustix::process::setpriority_process(None, nice);
        }
    }
}

/// A process that was started and has not been waited for.
#[derive(Debug)]
pub(crate) struct Child {
    pub pid: Pid,
    /// Readable once the process has ended.
    pub pidfd: OwnedFd,
}

impl Child {
    /// Waits for the process without blocking: `None` while it runs. It leaves no zombie once
    /// this has returned something.
    pub(crate) fn reap(&self) -> Option<Ended> {
        match wait(&self.pidfd, WaitIdOptions::EXITED | WaitIdOptions::NOHANG) {
            Ok(status) => status.map(|status| {
                let core = status.dumped();
                match (status.exit_status(), status.terminating_signal()) {
                    (Some(code), _) => Ended::Exited(code),
                    (_, Some(signal)) => Ended::Signalled { signal, core },
                    _ => Ended::Unknown,
                }
            }),
            // No child of ours any more: the kernel or somebody else has waited for it.
            Err(_) if is_dead(self.pidfd.as_fd()) => Some(Ended::Unknown),
            Err(_) => None,
        }
    }
}

/// Whether the process behind `pidfd` has ended, waited for or not.
pub(crate) fn is_dead(pidfd: BorrowedFd<'_>) -> bool {
    is_dead_within(pidfd, Timespec { tv_sec: 0, tv_nsec: 0 })
}

fn is_dead_within(pidfd: BorrowedFd<'_>, time: Timespec) -> bool {
    let mut fds = [PollFd::from_borrowed_fd(pidfd, PollFlags::IN)];
    matches!(rustix::io::retry_on_intr(|| rustix::event::poll(&mut fds, Some(&time))), Ok(1..))
}

/// Kills a process and all its descendants that still have their parents. What has been
/// orphaned already is nobody's and stays.
///
/// `pid` must be the number of the process behind `pidfd`. If that one has ended, nothing is
/// done.
pub(crate) fn kill_tree(pidfd: BorrowedFd<'_>, pid: Pid) {
    // Stopped first and from the top, since a running process forks while one looks, and a
    // killed one orphans its children before they are found.
    let _ = pidfd_send_signal(pidfd, Signal::STOP);
    let mut found: Vec<(Pid, OwnedFd)> = Vec::new();
    // Whatever runs this can be a descendant of what it kills only by mistake, but could not go
    // on after having stopped itself.
    let mut known = HashSet::from([pid, rustix::process::getpid()]);
    // A fork that was under way at the stop can show up after any look but one that begins when all
    // stand still: a process that forks stops at the end of its fork, and when it is run. So this
    // ends by itself. What hangs in the kernel is not forking, after a while; the limit, of a fifth
    // of a second or little more, is for a machine that does not run it.
    for round in 0..200 {
        let still: &[u8] = if round < 20 { b"TtZX" } else { b"TtZXD" };
        let all_stand = stands_still(pid, pidfd, still)
            && found.iter().all(|(pid, pidfd)| stands_still(*pid, pidfd.as_fd(), still));
        let before = found.len();
        let mut next = 0;
        collect(pid, pidfd, &mut known, &mut found);
        while let Some((pid, pidfd)) = found.get(next) {
            let (pid, pidfd) = (*pid, pidfd.try_clone());
            if let Ok(pidfd) = pidfd {
                collect(pid, pidfd.as_fd(), &mut known, &mut found);
            }
            next += 1;
        }
        if all_stand && found.len() == before {
            break;
        }
        if !all_stand {
            is_dead_within(pidfd, Timespec { tv_sec: 0, tv_nsec: 1_000_000 });
        }
    }
    let _ = pidfd_send_signal(pidfd, Signal::KILL);
    for (_, pidfd) in &found {
        let _ = pidfd_send_signal(pidfd, Signal::KILL);
    }
}

/// Whether every thread of a stopped process is in one of these states, or it is dead.
fn stands_still(pid: Pid, pidfd: BorrowedFd<'_>, still: &[u8]) -> bool {
    let Ok(tasks) = std::fs::read_dir(format!("/proc/{}/task", pid.as_raw_nonzero())) else {
        return true;
    };
    let mut states = tasks.filter_map(|task| {
        let stat = std::fs::read(task.ok()?.path().join("stat")).ok()?;
        // As in `parent_of`.
        let after_name = stat.iter().rposition(|&byte| byte == b')')? + 1;
        stat.get(after_name + 1).copied()
    });
    states.all(|state| still.contains(&state)) || is_dead(pidfd)
}

/// Adds the children of `parent` that are not known yet, stopped.
fn collect(
    parent: Pid,
    parent_fd: BorrowedFd<'_>,
    known: &mut HashSet<Pid>,
    found: &mut Vec<(Pid, OwnedFd)>,
) {
    let children = children_of(parent);
    for child in children {
        if known.contains(&child) {
            continue;
        }
        let Ok(pidfd) = pidfd_open(child, PidfdFlags::empty()) else { continue };
        // The number may have been given to another process since it was read. If it names a
        // child of the parent, and neither has ended, then it has not.
        let related = parent_of(child) == Some(parent);
        if related && !is_dead(pidfd.as_fd()) && !is_dead(parent_fd) {
            let _ = pidfd_send_signal(&pidfd, Signal::STOP);
            known.insert(child);
            found.push((child, pidfd));
        }
    }
}

fn children_of(parent: Pid) -> Vec<Pid> {
    let pids = |text: String| -> Vec<Pid> {
        text.split_whitespace().filter_map(|pid| Pid::from_raw(pid.parse().ok()?)).collect()
    };
    let tasks = format!("/proc/{}/task", parent.as_raw_nonzero());
    let per_thread: Option<Vec<Vec<Pid>>> = std::fs::read_dir(tasks).ok().and_then(|tasks| {
        tasks
            .filter_map(|task| task.ok())
            .map(|task| std::fs::read_to_string(task.path().join("children")).ok().map(pids))
            .collect()
    });
    match per_thread {
        Some(lists) => lists.concat(),
        // A kernel without CONFIG_PROC_CHILDREN, or a thread that has just ended.
        None => children_by_scan(parent),
    }
}

fn children_by_scan(parent: Pid) -> Vec<Pid> {
    let Ok(all) = std::fs::read_dir("/proc") else { return Vec::new() };
    all.filter_map(|entry| Pid::from_raw(entry.ok()?.file_name().to_str()?.parse().ok()?))
        .filter(|&pid| parent_of(pid) == Some(parent))
        .collect()
}

fn parent_of(pid: Pid) -> Option<Pid> {
    let stat = std::fs::read(format!("/proc/{}/stat", pid.as_raw_nonzero())).ok()?;
    // The name of the program is between parentheses and may contain anything.
    let after_name = stat.iter().rposition(|&byte| byte == b')')? + 1;
    let text = std::str::from_utf8(stat.get(after_name..)?).ok()?;
    Pid::from_raw(text.split_whitespace().nth(1)?.parse().ok()?)
}

fn wait(pidfd: &OwnedFd, options: WaitIdOptions) -> io::Result<Option<WaitIdStatus>> {
    Ok(rustix::io::retry_on_intr(|| waitid(WaitId::PidFd(pidfd.as_fd()), options))?)
}

/// Opens the pidfd of a child that was just started.
fn watch(pid: Pid) -> io::Result<Child> {
    let reaped = || {
        let why = "it has ended and was waited for by another part of this program, or SIGCHLD \
                   is ignored";
        io::Error::new(io::ErrorKind::NotFound, why)
    };
    match pidfd_open(pid, PidfdFlags::empty()) {
        Ok(pidfd) => {
            // If the child was reaped at once, its number may already be a stranger's.
            let look = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
            match wait(&pidfd, look) {
                Err(error) if error.raw_os_error() == Some(Errno::CHILD.raw_os_error()) => {
                    Err(reaped())
                }
                _ => Ok(Child { pid, pidfd }),
            }
        }
        Err(Errno::SRCH) => Err(reaped()),
        Err(error) => {
            // Without a pidfd nobody could watch it. While it is a child that nobody has waited
            // for, the number is its own.
            let look = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
            if waitid(WaitId::Pid(pid), look).is_ok() {
                let _ = rustix::process::kill_process(pid, Signal::KILL);
                let _ =
                    rustix::io::retry_on_intr(|| waitid(WaitId::Pid(pid), WaitIdOptions::EXITED));
            }
            Err(error.into())
        }
    }
}

/// `socket` at a number where nothing else is meant to be in the successor, and at which a file
/// action may name it.
fn out_of_the_way(socket: OwnedFd) -> io::Result<OwnedFd> {
    let number = socket.as_raw_fd();
    let limit = rustix::process::getrlimit(Resource::Nofile).current;
    // With closed stdio the socket can be at 0 to 2, which the successor would then have as its
    // stdio. glibc refuses, and nix does not see that it does, numbers above a limit that was
    // lowered after the socket was made.
    let fine = number >= SOCKET_NUMBER
        && limit.is_none_or(|limit| u64::try_from(number).is_ok_and(|number| number < limit));
    if fine {
        return Ok(socket);
    }
    Ok(rustix::io::fcntl_dupfd_cloexec(&socket, SOCKET_NUMBER)?)
}

fn posix_spawn_with(
    path: &Path,
    socket: &OwnedFd,
    args: &[CString],
    env: &[CString],
) -> nix::Result<Pid> {
    let mut actions = PosixSpawnFileActions::init()?;
    // In the child, which is the only place where a copy without close-on-exec ever exists. If
    // the number is 3 already, the action just takes that flag away.
    actions.add_dup2(socket.as_raw_fd(), SOCKET_NUMBER)?;
    let mut attr = PosixSpawnAttr::init()?;
    attr.set_flags(
        PosixSpawnFlags::POSIX_SPAWN_SETSIGMASK | PosixSpawnFlags::POSIX_SPAWN_SETSIGDEF,
    )?;
    attr.set_sigmask(&SigSet::empty())?;
    attr.set_sigdefault(&SigSet::all())?;
    // Not posix_spawnp: what is no program must not be tried as a shell script.
    let pid = posix_spawn(path, &actions, &attr, args, env)?;
    Pid::from_raw(pid.as_raw()).ok_or(nix::errno::Errno::ESRCH)
}

/// The variables of a successor: those of this process, but for what was meant for this process
/// alone.
fn environment(
    vars: impl Iterator<Item = (OsString, OsString)>,
    marker: String,
    own_pid: u32,
) -> Vec<OsString> {
    let own_pid = own_pid.to_string();
    let mut env: Vec<OsString> = vars
        .filter(|(name, value)| match name.to_str() {
            Some(VARIABLE | "LISTEN_FDS" | "LISTEN_PID" | "LISTEN_FDNAMES" | "LISTEN_PIDFDID") => {
                false
            }
            // Without a pid, the watchdog's variables are for whoever is the main process.
            Some("WATCHDOG_PID") => *value != *own_pid,
            _ => true,
        })
        .map(|(mut name, value)| {
            name.push("=");
            name.push(value);
            name
        })
        .collect();
    env.push(marker.into());
    env
}

fn c_strings(strings: impl IntoIterator<Item = OsString>) -> io::Result<Vec<CString>> {
    strings
        .into_iter()
        .map(|string| CString::new(string.into_vec()).map_err(io::Error::from))
        .collect()
}

/// What `code` means for this path, which the kernel's words often do not say.
fn explain(path: &Path, code: i32) -> Error {
    let is_dir = || std::fs::metadata(path).is_ok_and(|file| file.is_dir());
    let why = match Errno::from_raw_os_error(code) {
        Errno::ACCESS if is_dir() => Some("it is a directory".to_owned()),
        Errno::ACCESS => Some("it, or its interpreter, may not be executed".to_owned()),
        Errno::NOENT => missing(path),
        Errno::NOEXEC => Some("it is not a program for this machine".to_owned()),
        Errno::TXTBSY => Some("somebody is writing it".to_owned()),
        _ => None,
    };
    let why = why.map(|why| format!(": {why}")).unwrap_or_default();
    let message = format!("start `{}`{why}", path.display());
    Error::with_source(ErrorKind::Os, message, io::Error::from_raw_os_error(code))
}

fn missing(path: &Path) -> Option<String> {
    if std::fs::metadata(path).is_err() {
        let link = std::fs::symlink_metadata(path).is_ok_and(|file| file.is_symlink());
        return link.then(|| "it is a symbolic link that leads nowhere".to_owned());
    }
    match interpreter(path) {
        Some(interpreter) => Some(format!("its interpreter `{interpreter}` is missing")),
        None => Some("the program loader that it asks for is missing".to_owned()),
    }
}

/// What the first line of a script says.
fn interpreter(path: &Path) -> Option<String> {
    use std::io::Read;

    let mut start = Vec::new();
    std::fs::File::open(path).ok()?.take(256).read_to_end(&mut start).ok()?;
    let line = start.strip_prefix(b"#!")?.split(|&byte| byte == b'\n').next()?;
    let line = String::from_utf8_lossy(line);
    line.split_whitespace().next().map(str::to_owned)
}

fn program_of(argv0: &OsStr, exec_path: &OsStr, running: &Path, cwd: Option<&Path>) -> Program {
    let file = running_file(running);
    if file.is_none() && std::fs::metadata(running).is_err() && !argv0.is_empty() {
        // Without /proc there is nothing to compare with.
        return program_named(argv0, cwd);
    }
    for name in [argv0, exec_path] {
        if name.is_empty() {
            continue;
        }
        let program = program_named(name, cwd);
        let found = match &program {
            Program::Path(path) => Some(path.clone()),
            Program::Name(name) => search(name, cwd).ok(),
        };
        if found.is_some_and(|found| leads_to(&found, running, file.as_deref())) {
            return program;
        }
    }
    // argv[0] is a lie: `exec -a`, a login shell's dash, a title that the program gave itself.
    Program::Path(file.unwrap_or_else(|| running.to_path_buf()))
}

fn program_named(name: &OsStr, cwd: Option<&Path>) -> Program {
    if name.as_bytes().contains(&b'/') {
        Program::Path(from(cwd, Path::new(name)))
    } else {
        Program::Name(name.to_owned())
    }
}

/// Whether `path` is the file that runs, or was until that was replaced a moment ago.
fn leads_to(path: &Path, running: &Path, file: Option<&Path>) -> bool {
    let same = match (std::fs::metadata(path), std::fs::metadata(running)) {
        (Ok(a), Ok(b)) => (a.dev(), a.ino()) == (b.dev(), b.ino()),
        _ => false,
    };
    same || file.is_some_and(|file| std::fs::canonicalize(path).is_ok_and(|path| path == file))
}

/// The path of the file that runs, as it was before somebody has deleted or replaced it.
fn running_file(running: &Path) -> Option<PathBuf> {
    let link = std::fs::read_link(running).ok()?;
    // A file may really be called that.
    if std::fs::symlink_metadata(&link).is_ok() {
        return Some(link);
    }
    match link.as_os_str().as_bytes().strip_suffix(b" (deleted)") {
        Some(path) => Some(PathBuf::from(OsStr::from_bytes(path))),
        None => Some(link),
    }
}

fn search(name: &OsStr, cwd: Option<&Path>) -> io::Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_else(|| "/bin:/usr/bin".into());
    search_in(&path, name, cwd)
}

/// The first file of that name that may be executed; an empty directory is the working one.
fn search_in(path: &OsStr, name: &OsStr, cwd: Option<&Path>) -> io::Result<PathBuf> {
    let mut error = Errno::NOENT;
    for dir in std::env::split_paths(path) {
        let file = from(cwd, &dir).join(name);
        match std::fs::metadata(&file) {
            Ok(found) if found.is_file() => {}
            _ => continue,
        }
        match rustix::fs::access(&file, Access::EXEC_OK) {
            Ok(()) => return Ok(file),
            Err(errno) => error = errno,
        }
    }
    Err(error.into())
}

fn from(cwd: Option<&Path>, path: &Path) -> PathBuf {
    cwd.map_or_else(|| path.to_path_buf(), |cwd| cwd.join(path))
}

#[cfg(test)]
mod tests;
