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
    let mut fds = [PollFd::from_borrowed_fd(pidfd, PollFlags::IN)];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    matches!(rustix::io::retry_on_intr(|| rustix::event::poll(&mut fds, Some(&now))), Ok(1..))
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
    // A fork that was under way at the stop can show up after the first look. What is stopped
    // makes no more, so that this ends by itself; the limit is for what cannot be stopped.
    for _ in 0..16 {
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
        if found.len() == before {
            break;
        }
    }
    let _ = pidfd_send_signal(pidfd, Signal::KILL);
    for (_, pidfd) in &found {
        let _ = pidfd_send_signal(pidfd, Signal::KILL);
    }
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
mod tests {
    use super::*;
    use rustix::event::poll;
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
    use std::io::{BufRead, BufReader, Read, Write};
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::net::UnixStream;

    struct Dir(PathBuf);

    impl Dir {
        fn new(name: &str) -> Dir {
            let dir = std::env::temp_dir().join(format!("handover-{name}-{}", std::process::id()));
            let _ = std::fs::remove_dir_all(&dir);
            std::fs::create_dir_all(&dir).unwrap();
            Dir(std::fs::canonicalize(dir).unwrap())
        }

        fn file(&self, name: &str, content: &[u8]) -> PathBuf {
            let path = self.0.join(name);
            // Written by a child: a descriptor open for writing here could be inherited for a
            // moment by whatever another test starts, and then give ETXTBSY.
            let mut cat = std::process::Command::new("/bin/sh")
                .args(["-c", r#"cat > "$0" && chmod 755 "$0""#])
                .arg(&path)
                .stdin(std::process::Stdio::piped())
                .spawn()
                .unwrap();
            cat.stdin.take().unwrap().write_all(content).unwrap();
            assert!(cat.wait().unwrap().success());
            path
        }
    }

    impl Drop for Dir {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    fn pair() -> (UnixStream, OwnedFd) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        (ours, theirs.into())
    }

    fn start(executable: Executable) -> Result<(Child, UnixStream)> {
        let (ours, theirs) = pair();
        // A thread of its own, as in the driver.
        let launch = Launch::capture(executable);
        let child = std::thread::scope(|scope| {
            scope.spawn(|| launch.spawn(theirs, "test")).join().unwrap()
        })?;
        Ok((child, ours))
    }

    fn script(script: &str) -> Executable {
        Executable::new("/bin/sh", ["-c", script])
    }

    fn wait_for(pidfd: &OwnedFd) {
        poll(&mut [PollFd::new(pidfd, PollFlags::IN)], None).unwrap();
    }

    fn end(child: &Child) -> Ended {
        wait_for(&child.pidfd);
        assert!(is_dead(child.pidfd.as_fd()));
        child.reap().unwrap()
    }

    /// What the script writes to its descriptor 3.
    fn says(text: &str) -> String {
        let (child, mut socket) = start(script(text)).unwrap();
        let mut said = String::new();
        socket.read_to_string(&mut said).unwrap();
        assert_eq!(end(&child), Ended::Exited(0));
        said
    }

    fn fails(path: &Path, code: Errno) -> String {
        let error = start(Executable::new(path, [""; 0])).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Os);
        assert_eq!(error.raw_os_error(), Some(code.raw_os_error()));
        let said = error.to_string();
        let rest = said.strip_prefix(&format!("start `{}`", path.display())).expect(&said);
        rest.to_owned()
    }

    #[test]
    fn ends_are_told_apart() {
        let ended = |text: &str| end(&start(script(text)).unwrap().0);
        assert_eq!(ended("exit 0"), Ended::Exited(0));
        assert_eq!(ended("exit 7").to_string(), "exit status 7");
        let killed = ended("kill -9 $$");
        assert_eq!(killed, Ended::Signalled { signal: 9, core: false });
        assert_eq!(killed.to_string(), "killed by SIGKILL");
        let dumped = Ended::Signalled { signal: 11, core: true };
        assert_eq!(dumped.to_string(), "killed by SIGSEGV (core dumped)");
        let real_time = Ended::Signalled { signal: 40, core: false };
        assert_eq!(real_time.to_string(), "killed by signal 40");
    }

    #[test]
    fn a_running_child_is_neither_dead_nor_reaped() {
        let (child, mut socket) = start(script("read x <&3")).unwrap();
        assert_eq!(child.reap(), None);
        assert!(!is_dead(child.pidfd.as_fd()));
        socket.write_all(b"go\n").unwrap();
        assert_eq!(end(&child), Ended::Exited(0));
        // Waited for already: dead for good, and no longer known how.
        assert!(is_dead(child.pidfd.as_fd()));
        assert_eq!(child.reap(), Some(Ended::Unknown));
    }

    #[test]
    fn the_successor_has_the_socket_and_nothing_else() {
        let null = std::fs::File::open("/dev/null").unwrap();
        let _open: Vec<OwnedFd> =
            (0..20).map(|_| rustix::io::fcntl_dupfd_cloexec(&null, 0).unwrap()).collect();
        let said = says("exec ls -l /proc/self/fd >&3");
        let above_stdio: Vec<&str> = said
            .lines()
            .filter_map(|line| Some((line, line.split_once(" -> ")?.0.rsplit(' ').next()?)))
            .filter(|(_, number)| number.parse::<i32>().unwrap() > 2)
            // What the test's own parent left open and inheritable is not ours, and the
            // directory is the one that is being listed.
            .filter(|(line, number)| !inherited(number) && !line.contains("-> /proc/"))
            .map(|(line, _)| line)
            .collect();
        assert_eq!(above_stdio.len(), 1, "{said}");
        assert!(above_stdio[0].contains(" 3 -> socket:"), "{said}");
    }

    /// Whether this process has the descriptor without close-on-exec, which none of ours is.
    fn inherited(number: &str) -> bool {
        std::fs::read_to_string(format!("/proc/self/fdinfo/{number}")).is_ok_and(|info| {
            let flags = info.lines().find_map(|line| line.strip_prefix("flags:")).unwrap();
            i64::from_str_radix(flags.trim(), 8).unwrap() & 0o2_000_000 == 0
        })
    }

    #[test]
    fn the_socket_may_be_anywhere() {
        // As number 3, which in this process may belong to somebody: in a child of its own.
        let own = std::env::current_exe().unwrap();
        for (number, close) in [(3, "3<&-"), (0, "0<&-"), (2, "2>&-"), (1, "1>&-")] {
            let script = format!(r#"exec "$0" --exact spawn::tests::at_number {close}"#);
            let status = std::process::Command::new("/bin/sh")
                .args(["-c", &script])
                .arg(&own)
                .env("AT_NUMBER", number.to_string())
                .stdout(std::process::Stdio::null())
                .stderr(std::process::Stdio::null())
                .status()
                .unwrap();
            assert!(status.success(), "{number}");
        }
    }

    /// The other half of `the_socket_may_be_anywhere`; without its variable nothing.
    #[test]
    fn at_number() {
        let Ok(wanted) = std::env::var("AT_NUMBER") else { return };
        let wanted: RawFd = wanted.parse().unwrap();
        let (mut ours, mut theirs) = UnixStream::pair().unwrap();
        if ours.as_raw_fd() == wanted {
            std::mem::swap(&mut ours, &mut theirs);
        }
        let mut theirs = OwnedFd::from(theirs);
        if wanted <= 2 {
            // Rust has filled the closed number with /dev/null at its start.
            let mut slot = crate::raw::adopt(wanted).unwrap();
            rustix::io::dup3(&theirs, &mut slot, rustix::io::DupFlags::CLOEXEC).unwrap();
            theirs = slot;
        }
        assert_eq!(theirs.as_raw_fd(), wanted);
        let launch =
            Launch::capture(script("echo here >&3; exec 3>&-; echo not here >&$AT_NUMBER"));
        let child = launch.spawn(theirs, "x").unwrap();
        let mut said = String::new();
        ours.read_to_string(&mut said).unwrap();
        assert_eq!(said, "here\n");
        wait_for(&child.pidfd);
    }

    #[test]
    fn the_marker_names_the_socket() {
        let (ours, theirs) = pair();
        let cookie = rustix::net::sockopt::socket_cookie(&theirs).unwrap();
        let launch = Launch::capture(script("echo $HANDOVER >&3"));
        let child = launch.spawn(theirs, "a b").unwrap();
        let mut said = String::new();
        BufReader::new(ours).read_line(&mut said).unwrap();
        assert_eq!(said, format!("a b:3:{cookie}\n"));
        assert_eq!(end(&child), Ended::Exited(0));
    }

    #[test]
    fn an_instance_with_a_zero_byte_is_refused() {
        let (_ours, theirs) = pair();
        let error = Launch::capture(script("")).spawn(theirs, "a\0b").unwrap_err();
        assert!(error.to_string().contains("its environment"), "{error}");
    }

    #[test]
    fn the_environment_is_kept_but_for_what_was_for_us_alone() {
        let env = |vars: &[(&str, &str)]| {
            let vars: Vec<_> = vars.iter().map(|(a, b)| (a.into(), b.into())).collect();
            environment(vars.into_iter(), "HANDOVER=new".to_owned(), 77)
        };
        let kept = env(&[
            ("HANDOVER", "old"),
            ("PATH", "/bin"),
            ("LISTEN_FDS", "1"),
            ("LISTEN_PID", "77"),
            ("LISTEN_FDNAMES", "a"),
            ("LISTEN_PIDFDID", "9"),
            ("LISTEN_ADDRESS", "x=y"),
            ("WATCHDOG_PID", "77"),
            ("WATCHDOG_USEC", "5"),
            ("NOTIFY_SOCKET", "@x"),
        ]);
        let expected = [
            "PATH=/bin",
            "LISTEN_ADDRESS=x=y",
            "WATCHDOG_USEC=5",
            "NOTIFY_SOCKET=@x",
            "HANDOVER=new",
        ];
        assert_eq!(kept, expected);
        assert_eq!(env(&[("WATCHDOG_PID", "78")]), ["WATCHDOG_PID=78", "HANDOVER=new"]);
    }

    #[test]
    fn signals_are_clean_whatever_the_thread_has() {
        // In a process of its own, whose dispositions may be changed.
        let own = std::env::current_exe().unwrap();
        let script = r#"trap "" INT HUP; exec "$0" --exact spawn::tests::with_bad_signals"#;
        let status = std::process::Command::new("/bin/sh")
            .args(["-c", script])
            .arg(own)
            .env("BAD_SIGNALS", "1")
            .stdout(std::process::Stdio::null())
            .status();
        assert!(status.unwrap().success());
    }

    /// The other half of `signals_are_clean_whatever_the_thread_has`; without its variable
    /// nothing.
    #[test]
    fn with_bad_signals() {
        if std::env::var_os("BAD_SIGNALS").is_none() {
            return;
        }
        let mut mask = SigSet::empty();
        mask.add(nix::sys::signal::Signal::SIGTERM);
        mask.thread_block().unwrap();
        let find = |text: &str, name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap();
            u64::from_str_radix(line.trim_start_matches(':').trim(), 16).unwrap()
        };
        let own = std::fs::read_to_string("/proc/thread-self/status").unwrap();
        assert_ne!(find(&own, "SigBlk") & 1 << 14, 0);
        assert_ne!(find(&own, "SigIgn") & 1 << 1, 0);

        let (mut ours, theirs) = pair();
        // Not a shell, which changes its own.
        let cat = script("exec cat /proc/self/status >&3");
        let child = Launch::capture(cat).spawn(theirs, "x").unwrap();
        let mut said = String::new();
        ours.read_to_string(&mut said).unwrap();
        let internal = 1 << 31 | 1 << 32;
        assert_eq!(find(&said, "SigBlk") & !internal, 0, "{said}");
        assert_eq!(find(&said, "SigIgn") & !internal, 0, "{said}");
        assert_eq!(end(&child), Ended::Exited(0));
    }

    #[test]
    fn an_ignored_sigchld_hides_the_status_and_nothing_else() {
        let own = std::env::current_exe().unwrap();
        // Not by the shell's `trap`, which some shells do not do for this signal.
        let status = std::process::Command::new("env")
            .arg("--ignore-signal=CHLD")
            .arg(own)
            .args(["--exact", "spawn::tests::with_ignored_sigchld"])
            .env("IGNORED_SIGCHLD", "1")
            .stdout(std::process::Stdio::null())
            .status();
        assert!(status.unwrap().success());
    }

    /// The other half of `an_ignored_sigchld_hides_the_status_and_nothing_else`; without its
    /// variable nothing.
    #[test]
    fn with_ignored_sigchld() {
        if std::env::var_os("IGNORED_SIGCHLD").is_none() {
            return;
        }
        let (child, mut socket) = start(script("read x <&3; exit 1")).unwrap();
        assert_eq!(child.reap(), None);
        socket.write_all(b"go\n").unwrap();
        assert_eq!(end(&child), Ended::Unknown);
        // One that may be gone before anybody can look.
        for _ in 0..50 {
            match start(script("exit 1")) {
                Ok((child, _)) => assert_eq!(end(&child), Ended::Unknown),
                Err(error) => assert!(error.to_string().contains("SIGCHLD is ignored"), "{error}"),
            }
        }
    }

    #[test]
    fn what_cannot_be_started_says_why() {
        let dir = Dir::new("spawn-fails");
        let garbage = dir.file("garbage", b"echo this is no script\n");
        assert!(fails(&garbage, Errno::NOEXEC).starts_with(": it is not a program"));
        let empty = dir.file("empty", b"");
        fails(&empty, Errno::NOEXEC);
        let half = dir.file("half", b"\x7fELF\x02\x01\x01");
        fails(&half, Errno::NOEXEC);
        assert!(fails(&dir.0, Errno::ACCESS).starts_with(": it is a directory: "));
        fails(&dir.0.join("missing"), Errno::NOENT);
        let script = dir.file("script", b"#! /no/such/shell -x\n");
        assert!(
            fails(&script, Errno::NOENT).contains("its interpreter `/no/such/shell` is missing")
        );
        std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o644)).unwrap();
        assert!(fails(&script, Errno::ACCESS).contains("may not be executed"));
        let dangling = dir.0.join("dangling");
        std::os::unix::fs::symlink("nowhere", &dangling).unwrap();
        assert!(fails(&dangling, Errno::NOENT).contains("leads nowhere"));
        assert_eq!(fails(&garbage.join("x"), Errno::NOTDIR), ": Not a directory (os error 20)");

        let busy = dir.file("busy", &std::fs::read("/bin/true").unwrap());
        let writer = std::fs::OpenOptions::new().append(true).open(&busy).unwrap();
        assert!(fails(&busy, Errno::TXTBSY).starts_with(": somebody is writing it: "));
        drop(writer);

        let error = start(Executable::new("handover-no-such-program", [""; 0])).unwrap_err();
        assert!(error.to_string().starts_with("start `handover-no-such-program`: search in PATH"));
    }

    #[test]
    fn a_failure_leaves_nothing_behind() {
        let (mut ours, theirs) = pair();
        let launch = Launch::capture(Executable::new("/no/such/program", [""; 0]));
        assert!(launch.spawn(theirs, "x").is_err());
        assert_eq!(ours.read(&mut [0]).unwrap(), 0);
    }

    #[test]
    fn a_link_that_was_re_pointed_starts_the_new_one() {
        let dir = Dir::new("spawn-link");
        dir.file("old", b"#!/bin/sh\necho old >&3\n");
        dir.file("new", b"#!/bin/sh\necho new >&3\n");
        let current = dir.0.join("current");
        let executable = Executable::new(&current, [""; 0]);
        for version in ["old", "new"] {
            let _ = std::fs::remove_file(&current);
            std::os::unix::fs::symlink(version, &current).unwrap();
            assert_eq!(executable.resolve().unwrap(), current);
            let (child, socket) = start(executable.clone()).unwrap();
            let mut said = String::new();
            BufReader::new(socket).read_line(&mut said).unwrap();
            assert_eq!(said.trim(), version);
            end(&child);
        }
    }

    #[test]
    fn a_program_is_what_it_was_started_as() {
        let dir = Dir::new("spawn-argv");
        let real = dir.file("real", b"x");
        let other = dir.file("other", b"y");
        let link = dir.0.join("link");
        std::os::unix::fs::symlink(&real, &link).unwrap();
        // In the place of /proc/self/exe.
        let exe = dir.0.join("exe");
        std::os::unix::fs::symlink(&real, &exe).unwrap();
        let of =
            |argv0: &OsStr, exec_path: &OsStr| program_of(argv0, exec_path, &exe, Some(&dir.0));
        let nothing = OsStr::new("");
        assert_eq!(of(link.as_os_str(), nothing), Program::Path(link.clone()));
        assert_eq!(of(OsStr::new("./link"), nothing), Program::Path(dir.0.join("./link")));
        for lie in [other.as_os_str(), OsStr::new("-sh"), OsStr::new("sh"), nothing] {
            assert_eq!(of(lie, link.as_os_str()), Program::Path(link.clone()));
            assert_eq!(of(lie, other.as_os_str()), Program::Path(real.clone()));
            assert_eq!(of(lie, nothing), Program::Path(real.clone()));
        }

        // Replaced between its exec and its start.
        std::fs::remove_file(&exe).unwrap();
        std::os::unix::fs::symlink(format!("{} (deleted)", real.display()), &exe).unwrap();
        assert_eq!(of(link.as_os_str(), nothing), Program::Path(link.clone()));
        assert_eq!(of(nothing, nothing), Program::Path(real));

        // No /proc.
        std::fs::remove_file(&exe).unwrap();
        assert_eq!(of(other.as_os_str(), nothing), Program::Path(other));
        assert_eq!(of(OsStr::new("sh"), nothing), Program::Name("sh".into()));
    }

    #[test]
    fn this_process_is_known() {
        let executable = Executable::of_this_process();
        assert_eq!(executable.args, std::env::args_os().collect::<Vec<_>>());
        let path = executable.resolve().unwrap();
        assert_eq!(std::fs::canonicalize(path).unwrap(), std::env::current_exe().unwrap());
    }

    #[test]
    fn names_are_searched_as_a_shell_does() {
        let dir = Dir::new("spawn-path");
        std::fs::create_dir(dir.0.join("a")).unwrap();
        std::fs::create_dir(dir.0.join("a/tool")).unwrap();
        std::fs::create_dir(dir.0.join("b")).unwrap();
        std::fs::write(dir.0.join("b/tool"), "").unwrap();
        let find = |path: &str| search_in(OsStr::new(path), OsStr::new("tool"), Some(&dir.0));
        assert_eq!(find("a:b").unwrap_err().kind(), io::ErrorKind::PermissionDenied);
        assert_eq!(find("a").unwrap_err().kind(), io::ErrorKind::NotFound);
        let tool = dir.file("tool", b"");
        assert_eq!(find("a:b:").unwrap(), tool);
        assert!(search(OsStr::new("sh"), None).unwrap().is_absolute());
        assert!(matches!(Executable::new("sh", [""; 0]).program, Program::Name(_)));
    }

    #[test]
    fn a_child_has_the_captured_affinity_and_nice_value() {
        let all = rustix::thread::sched_getaffinity(None).unwrap();
        let launch = Launch::capture(script("grep Cpus_allowed: /proc/self/status >&3; nice >&3"));
        let nice = rustix::process::getpriority_process(None).unwrap();
        let said = std::thread::scope(|scope| {
            let pinned = scope.spawn(|| {
                let mut one = CpuSet::new();
                one.set((0..1024).find(|&cpu| all.is_set(cpu)).unwrap());
                rustix::thread::sched_setaffinity(None, &one).unwrap();
                rustix::process::setpriority_process(None, nice + 1).unwrap();
                let (mut ours, theirs) = pair();
                let child = launch.spawn(theirs, "x").unwrap();
                let mut said = String::new();
                ours.read_to_string(&mut said).unwrap();
                end(&child);
                said
            });
            pinned.join().unwrap()
        });
        let own = std::fs::read_to_string("/proc/thread-self/status").unwrap();
        let own = own.lines().find(|line| line.starts_with("Cpus_allowed:")).unwrap();
        let mut lines = said.lines();
        assert_eq!(lines.next(), Some(own));
        // Without a right to be nicer the child stays where its thread was.
        let nices = [nice.to_string(), (nice + 1).to_string()];
        assert!(nices.contains(&lines.next().unwrap().to_owned()), "{said}");
    }

    #[test]
    fn kill_tree_takes_what_is_below_too() {
        // A shell, a shell below it, and its sleeping child; one line for each.
        let tree = "sh -c 'sleep 1000 & echo $! >&3; echo $$ >&3; wait' & echo $! >&3; wait";
        let (child, socket) = start(script(tree)).unwrap();
        let mut lines = BufReader::new(socket);
        let below: Vec<OwnedFd> = (0..3)
            .map(|_| {
                let mut line = String::new();
                lines.read_line(&mut line).unwrap();
                let pid = Pid::from_raw(line.trim().parse().unwrap()).unwrap();
                pidfd_open(pid, PidfdFlags::empty()).unwrap()
            })
            .collect();
        kill_tree(child.pidfd.as_fd(), child.pid);
        assert_eq!(end(&child), Ended::Signalled { signal: 9, core: false });
        below.iter().for_each(wait_for);
        // All of them had the socket.
        assert_eq!(lines.read(&mut [0]).unwrap(), 0);
        kill_tree(child.pidfd.as_fd(), child.pid);
    }

    #[test]
    fn kill_tree_takes_what_forks_all_the_time() {
        let tree = "echo ready >&3; while :; do sh -c 'sleep 1000 & sleep 1000' & /bin/true; done";
        let (child, socket) = start(script(tree)).unwrap();
        let mut lines = BufReader::new(socket);
        let mut line = String::new();
        lines.read_line(&mut line).unwrap();
        kill_tree(child.pidfd.as_fd(), child.pid);
        assert_eq!(end(&child), Ended::Signalled { signal: 9, core: false });
        assert_eq!(lines.read(&mut [0]).unwrap(), 0, "somebody lives and has the socket");
    }

    #[test]
    fn children_are_found_either_way() {
        let (child, mut socket) = start(script("sleep 1000 & echo $! >&3; read x <&3")).unwrap();
        let mut line = String::new();
        BufReader::new(socket.try_clone().unwrap()).read_line(&mut line).unwrap();
        let sleep = Pid::from_raw(line.trim().parse().unwrap()).unwrap();
        assert_eq!(children_of(child.pid), [sleep]);
        assert_eq!(children_by_scan(child.pid), [sleep]);
        assert_eq!(parent_of(sleep), Some(child.pid));
        kill_tree(child.pidfd.as_fd(), child.pid);
        end(&child);
        let _ = socket.write_all(b"x");
    }

    #[test]
    fn a_descriptor_that_is_not_a_socket_is_refused() {
        let (reader, _writer) = rustix::pipe::pipe().unwrap();
        let error = Launch::capture(script("")).spawn(reader, "x").unwrap_err();
        assert!(error.to_string().contains("its socket"), "{error}");
        let (a, _b) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
                .unwrap();
        let child = Launch::capture(script("exit 3")).spawn(a, "x").unwrap();
        assert_eq!(end(&child), Ended::Exited(3));
    }
}
