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
    let child =
        std::thread::scope(|scope| scope.spawn(|| launch.spawn(theirs, "test")).join().unwrap())?;
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
        .filter(|(line, number)| {
            *number == "3" || !(inherited(number) || line.contains("-> /proc/"))
        })
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
    let launch = Launch::capture(script("echo here >&3; exec 3>&-; echo not here >&$AT_NUMBER"));
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
    let expected =
        ["PATH=/bin", "LISTEN_ADDRESS=x=y", "WATCHDOG_USEC=5", "NOTIFY_SOCKET=@x", "HANDOVER=new"];
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
    assert!(fails(&script, Errno::NOENT).contains("its interpreter `/no/such/shell` is missing"));
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
    let of = |argv0: &OsStr, exec_path: &OsStr| program_of(argv0, exec_path, &exe, Some(&dir.0));
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
    let (reader, _writer) = io::pipe().unwrap();
    let error = Launch::capture(script("")).spawn(reader.into(), "x").unwrap_err();
    assert!(error.to_string().contains("its socket"), "{error}");
    let (a, _b) =
        socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
    let child = Launch::capture(script("exit 3")).spawn(a, "x").unwrap();
    assert_eq!(end(&child), Ended::Exited(3));
}
