//! Whatever is open crosses, and nothing leaks on its way.

use std::io::Write;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket};
use std::os::fd::OwnedFd;
use std::os::linux::fs::MetadataExt;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketAddrUnix, SocketFlags, SocketType, connect, recv,
    send, socket_with,
};

use super::common::{
    DEADLINE, SOON, Serving, at_rest, finish, hold, load, outcome, plain, restart, serving,
    settled, start, stop, unchanged, uninterrupted, wait_left,
};
use super::talk;
use crate::client::Target;
use crate::hygiene::{Belongings, Descriptor};
use crate::program::close_for_all;
use crate::signal::Signal;
use crate::{Case, Context, Doing, Failure, Need, Scenario, ensure, poll_until};

pub(super) const CASES: &[Case] = &[
    Case {
        name: "descriptors::tcp_of_both_versions_and_of_both_at_once",
        clause: "TCP v4, v6 and dual-stack are served after the old process has gone",
        deadline: DEADLINE,
        needs: &[Need::IPV6],
        run: tcp,
    },
    Case {
        name: "descriptors::udp_loses_no_datagram",
        clause: "UDP: one process reads at a time, and what waits in the buffer is answered",
        deadline: DEADLINE,
        needs: &[Need::IPV6],
        run: udp,
    },
    Case {
        name: "descriptors::unix_streams",
        clause: "Unix stream sockets, by path and abstract, under load",
        deadline: DEADLINE,
        needs: &[],
        run: unix_streams,
    },
    Case {
        name: "descriptors::unix_datagrams",
        clause: "Unix datagram sockets, by path and abstract",
        deadline: DEADLINE,
        needs: &[],
        run: unix_datagrams,
    },
    Case {
        name: "descriptors::unix_packets",
        clause: "Unix seqpacket sockets, by path and abstract",
        deadline: DEADLINE,
        needs: &[],
        run: unix_packets,
    },
    Case {
        name: "descriptors::a_log_is_appended_to",
        clause: "a log file opened for append is written by both generations, and by one alone",
        deadline: DEADLINE,
        needs: &[],
        run: log,
    },
    Case {
        name: "descriptors::both_ends_of_a_pipe",
        clause: "what the old process wrote into a pipe is read by the new one after it has gone",
        deadline: DEADLINE,
        needs: &[],
        run: pipe,
    },
    Case {
        name: "descriptors::a_path_survives_until_the_final_stop",
        clause: "a Unix socket's path survives each handover and is removed at the final stop only",
        deadline: DEADLINE,
        needs: &[],
        run: path_survives,
    },
    Case {
        name: "descriptors::a_stale_path_is_replaced",
        clause: "the file of a socket on which nobody listens is replaced",
        deadline: DEADLINE,
        needs: &[],
        run: stale_path,
    },
    Case {
        name: "descriptors::somebody_elses_path_is_left_alone",
        clause: "a path on which somebody listens, or that is no socket, is refused and kept; one \
                 that has become somebody else's is not removed",
        deadline: DEADLINE,
        needs: &[],
        run: foreign_path,
    },
    Case {
        name: "descriptors::the_wrong_kind_is_refused",
        clause: "asking for an inherited name as another kind is a typed error that names it, and \
                 the old process goes on",
        deadline: DEADLINE,
        needs: &[],
        run: |case| refused_claim(case, "web udp 127.0.0.1:0", "is a TCP listener, not a UDP"),
    },
    Case {
        name: "descriptors::the_same_name_twice_is_refused",
        clause: "asking for a name twice is a typed error that names it, and the old process goes \
                 on",
        deadline: DEADLINE,
        needs: &[],
        run: |case| {
            let twice = "web tcp 127.0.0.1:0\nweb tcp 127.0.0.1:0";
            refused_claim(case, twice, "the name is in use already")
        },
    },
    Case {
        name: "descriptors::flags_stay",
        clause: "O_NONBLOCK is set on sockets once, and unchanged by a spawn, a failed spawn and a \
                 takeover; stdio, pipes and files keep their flags",
        deadline: DEADLINE,
        needs: &[],
        run: flags,
    },
    Case {
        name: "descriptors::everything_is_close_on_exec",
        clause: "every descriptor is close-on-exec in every process, at every step",
        deadline: DEADLINE,
        needs: &[],
        run: close_on_exec,
    },
    Case {
        name: "descriptors::helpers_hold_none",
        clause: "a helper that either generation starts at any moment holds none of its descriptors",
        deadline: DEADLINE,
        needs: &[],
        run: helpers,
    },
    Case {
        name: "descriptors::a_grandchild_starts_fresh",
        clause: "a grandchild that uses the library is no successor, whenever it is started",
        deadline: DEADLINE,
        needs: &[],
        run: grandchild,
    },
    Case {
        name: "descriptors::a_service_managers_sockets_are_taken",
        clause: "LISTEN_FDS is taken at a first start, by name or by address, and handed over; the \
                 successor has no LISTEN_ variables, and the stop leaves the manager's socket alone",
        deadline: DEADLINE,
        needs: &[],
        run: activated,
    },
    Case {
        name: "descriptors::sockets_for_another_process_are_ignored",
        clause: "LISTEN_FDS for another pid is ignored",
        deadline: DEADLINE,
        needs: &[],
        run: activated_for_another,
    },
    Case {
        name: "descriptors::malformed_activation_is_an_error",
        clause: "malformed LISTEN_FDS, LISTEN_PID or LISTEN_FDNAMES is a typed error",
        deadline: DEADLINE,
        needs: &[],
        run: activated_badly,
    },
    Case {
        name: "descriptors::nothing_is_left_of_a_run_that_is_dropped",
        clause: "descriptors, threads and the successor being started are gone when `run` is \
                 dropped before the first accept, while serving, starting, sealing and draining",
        deadline: DEADLINE,
        needs: &[],
        run: dropped,
    },
];

/// Restarts once, and waits until the old process has gone.
fn replaced(case: &Context, old: u32) -> Result<Serving, Failure> {
    let next = restart(case, old)?;
    case.wait_exit(old, SOON)?;
    Ok(next)
}

fn tcp(case: &Context) -> Result<(), Failure> {
    let listen = "web tcp 127.0.0.1:0\nsix tcp [::1]:0\ndual tcp [::]:0";
    let first = start(case, &Scenario::new().with("listen", listen))?;
    let load = load(case, first.address()?)?;
    let dual = first.address_of("dual")?.port();
    let targets: [SocketAddr; 3] = [
        first.address_of("six")?,
        (Ipv6Addr::LOCALHOST, dual).into(),
        (Ipv4Addr::LOCALHOST, dual).into(),
    ];
    let answers = |pid| -> Result<(), Failure> {
        for target in targets {
            let said = talk::get(target, "/")?;
            ensure!(said.pid == pid, "{target}: {said:?}, not {pid}");
        }
        Ok(())
    };
    answers(first.pid)?;
    let second = replaced(case, first.pid)?;
    answers(second.pid)?;
    finish(case, load, second.pid)
}

fn udp(case: &Context) -> Result<(), Failure> {
    let listen = "web tcp 127.0.0.1:0\nfour udp 127.0.0.1:0\nsix udp [::1]:0";
    let first = start(case, &Scenario::new().with("listen", listen))?;
    let load = load(case, first.address()?)?;
    let over = Arc::new(AtomicBool::new(false));
    let clients: Result<Vec<_>, Failure> = ["four", "six"]
        .into_iter()
        .map(|name| {
            let mut client = Client::of(first.address_of(name)?)?;
            // When its thread is first run is not known.
            for _ in 0..20 {
                let by = client.ask()?;
                ensure!(by == first.pid, "process {by} has answered, not {}", first.pid);
            }
            let over = Arc::clone(&over);
            Ok(std::thread::spawn(move || client.ask_until(&over)))
        })
        .collect();
    let second = replaced(case, first.pid)?;
    let third = replaced(case, second.pid)?;
    over.store(true, Ordering::Relaxed);
    for client in clients? {
        let answered = client.join().map_err(|_| Failure::new("a client panicked"))??;
        ensure!(answered.last() == Some(&third.pid), "{answered:?}");
    }
    finish(case, load, third.pid)
}

/// Sends datagrams one after another: more could overflow the buffer, and UDP loses those.
struct Client {
    socket: UdpSocket,
    target: SocketAddr,
    asked: usize,
}

impl Client {
    fn of(target: SocketAddr) -> Result<Self, Failure> {
        let local: SocketAddr = match target {
            SocketAddr::V4(_) => (Ipv4Addr::LOCALHOST, 0).into(),
            SocketAddr::V6(_) => (Ipv6Addr::LOCALHOST, 0).into(),
        };
        let socket = UdpSocket::bind(local)?;
        socket.set_read_timeout(Some(SOON))?;
        Ok(Self { socket, target, asked: 0 })
    }

    /// Asks once; gives who answered.
    fn ask(&mut self) -> Result<u32, Failure> {
        self.asked += 1;
        let text = self.asked.to_string();
        self.socket.send_to(text.as_bytes(), self.target).doing("sending a datagram")?;
        let mut buffer = [0; 64];
        let heard = uninterrupted(|| self.socket.recv_from(&mut buffer));
        let (length, _) = heard.doing("waiting for a datagram")?;
        answered_by(&buffer[..length], &text)
    }

    /// Asks until `over`, and once more; gives who answered, without repetitions.
    fn ask_until(&mut self, over: &AtomicBool) -> Result<Vec<u32>, Failure> {
        let mut answered = Vec::new();
        loop {
            let last = over.load(Ordering::Relaxed);
            answered.push(self.ask()?);
            answered.dedup();
            if last {
                return Ok(answered);
            }
        }
    }
}

/// Asks once; gives who answered.
pub(super) fn ask_datagram(target: SocketAddr) -> Result<u32, Failure> {
    Client::of(target)?.ask()
}

/// The process that has answered `text`.
fn answered_by(answer: &[u8], text: &str) -> Result<u32, Failure> {
    let answer = String::from_utf8_lossy(answer);
    match answer.split_once(' ') {
        Some((pid, said)) if said == text => Ok(pid.parse()?),
        _ => Err(Failure::new(format!("`{answer}` is no answer to `{text}`"))),
    }
}

fn unix_streams(case: &Context) -> Result<(), Failure> {
    let name = format!("handover-{}-stream", case.folder().display());
    let listen = format!("web unix web.sock\nhidden unix @{name}");
    let first = start(case, &Scenario::new().with("listen", listen))?;
    let by_path = load(case, case.folder().join("web.sock"))?;
    let by_name = load(case, Target::Abstract(name.into_bytes()))?;
    let second = replaced(case, first.pid)?;
    by_name.wait_for_successor(first.pid, SOON)?;
    let report = by_name.stop();
    case.nothing_lost(&report)?;
    ensure!(report.serving() == Some(second.pid), "{report}");
    finish(case, by_path, second.pid)
}

fn unix_datagrams(case: &Context) -> Result<(), Failure> {
    let name = format!("handover-{}-datagram", case.folder().display());
    let listen =
        format!("web tcp 127.0.0.1:0\npath unix-datagram in.sock\nhidden unix-datagram @{name}");
    let first = start(case, &Scenario::new().with("listen", listen))?;
    let load = load(case, first.address()?)?;
    let socket = UnixDatagram::bind(case.folder().join("client.sock"))?;
    socket.set_read_timeout(Some(SOON))?;
    let hidden = SocketAddrUnix::new_abstract_name(name.as_bytes())?;
    let path = SocketAddrUnix::new(case.folder().join("in.sock"))?;
    let answers = |pid| -> Result<(), Failure> {
        for target in [&path, &hidden] {
            rustix::net::sendto(&socket, b"hello", SendFlags::NOSIGNAL, target)?;
            let mut buffer = [0; 64];
            let heard = uninterrupted(|| socket.recv(&mut buffer));
            let length = heard.doing("waiting for a datagram")?;
            let by = answered_by(&buffer[..length], "hello")?;
            ensure!(by == pid, "{target:?}: {by} has answered, not {pid}");
        }
        Ok(())
    };
    answers(first.pid)?;
    let second = replaced(case, first.pid)?;
    answers(second.pid)?;
    finish(case, load, second.pid)
}

fn unix_packets(case: &Context) -> Result<(), Failure> {
    let name = format!("handover-{}-packets", case.folder().display());
    let listen = format!("web tcp 127.0.0.1:0\npath seqpacket in.sock\nhidden seqpacket @{name}");
    let first = start(case, &Scenario::new().with("listen", listen))?;
    let load = load(case, first.address()?)?;
    let hidden = SocketAddrUnix::new_abstract_name(name.as_bytes())?;
    let path = SocketAddrUnix::new(case.folder().join("in.sock"))?;
    let ask = |connection: &OwnedFd, pid: u32| -> Result<(), Failure> {
        send(connection, b"hello", SendFlags::NOSIGNAL).doing("sending a packet")?;
        let mut buffer = [0; 64];
        let (_, length) =
            uninterrupted(|| Ok(recv(connection, &mut buffer[..], RecvFlags::empty())?))?;
        let by = answered_by(&buffer[..length], "hello")?;
        ensure!(by == pid, "{by} has answered, not {pid}");
        Ok(())
    };
    let mut kept = Vec::new();
    for target in [&path, &hidden] {
        let connection = packets_to(target)?;
        ask(&connection, first.pid)?;
        kept.push(connection);
    }
    let second = restart(case, first.pid)?;
    for target in [&path, &hidden] {
        ask(&packets_to(target)?, second.pid)?;
    }
    // What was connected before stays with the old process, which waits for it.
    for connection in kept {
        ask(&connection, first.pid)?;
    }
    case.wait_exit(first.pid, SOON)?;
    for target in [&path, &hidden] {
        ask(&packets_to(target)?, second.pid)?;
    }
    finish(case, load, second.pid)
}

fn packets_to(target: &SocketAddrUnix) -> Result<OwnedFd, Failure> {
    let flags = SocketFlags::CLOEXEC;
    let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
    rustix::net::sockopt::set_socket_timeout(
        &socket,
        rustix::net::sockopt::Timeout::Recv,
        Some(SOON),
    )?;
    connect(&socket, target).doing("connecting for packets")?;
    Ok(socket)
}

fn log(case: &Context) -> Result<(), Failure> {
    let listen = "web tcp 127.0.0.1:0\nlog file server.log";
    let first = start(case, &Scenario::new().with("listen", listen))?;
    let load = load(case, first.address()?)?;
    let write = |pid: u32, text: &str| -> Result<(), Failure> {
        let seen = case.timeline().len();
        case.command(pid, "write", &[("name", "log"), ("text", text)])?;
        let event = case.timeline().wait_for_after(seen, "a write", SOON, |event| {
            event.pid == Some(pid) && event.is("write")
        })?;
        ensure!(event.get("text") == Some(text), "{event}");
        Ok(())
    };
    write(first.pid, "one\n")?;
    // Held, so that both are there.
    hold(case, first.pid)?;
    let path = case.folder().join("server.log");
    let second = restart(case, first.pid)?;
    // A file of that name is not opened again: the descriptor has crossed.
    std::fs::rename(&path, case.folder().join("server.log.1")).doing("rotating the log")?;
    write(second.pid, "two\n")?;
    write(first.pid, "three\n")?;
    case.command(first.pid, "unguard", &[])?;
    case.wait_exit(first.pid, SOON)?;
    write(second.pid, "four\n")?;
    ensure!(!path.exists(), "the log was opened anew");
    let text = std::fs::read_to_string(case.folder().join("server.log.1"))?;
    ensure!(text == "one\ntwo\nthree\nfour\n", "{text:?}");
    finish(case, load, second.pid)
}

fn pipe(case: &Context) -> Result<(), Failure> {
    let listen = "web tcp 127.0.0.1:0\np pipe -";
    let first = start(case, &Scenario::new().with("listen", listen))?;
    let load = load(case, first.address()?)?;
    let transfer = |pid: u32, what: &str, text: &str| -> Result<(), Failure> {
        let seen = case.timeline().len();
        let name = if what == "write" { "p.w" } else { "p.r" };
        case.command(pid, what, &[("name", name), ("text", text)])?;
        let event = case.timeline().wait_for_after(seen, "a transfer", SOON, |event| {
            event.pid == Some(pid) && event.is(what)
        })?;
        ensure!(event.get("text") == Some(text), "{event}");
        Ok(())
    };
    transfer(first.pid, "write", "from the first")?;
    let second = replaced(case, first.pid)?;
    transfer(second.pid, "read", "from the first")?;
    transfer(second.pid, "write", "from the second")?;
    transfer(second.pid, "read", "from the second")?;
    finish(case, load, second.pid)
}

/// Which file it is.
fn identity(path: &Path) -> Result<(u64, u64), Failure> {
    let found = std::fs::symlink_metadata(path).doing(path.display())?;
    ensure!(found.file_type().is_socket(), "{} is no socket", path.display());
    Ok((found.st_dev(), found.st_ino()))
}

const PATHS: &str = "web unix a.sock\nd unix-datagram b.sock\np seqpacket c.sock";

fn paths(case: &Context) -> [PathBuf; 3] {
    ["a.sock", "b.sock", "c.sock"].map(|name| case.folder().join(name))
}

fn path_survives(case: &Context) -> Result<(), Failure> {
    let paths = paths(case);
    let identities = || paths.iter().map(|path| identity(path)).collect::<Result<Vec<_>, _>>();
    let mut server = start(case, &Scenario::new().with("listen", PATHS))?;
    let load = load(case, paths[0].clone())?;
    let before = identities()?;
    for _ in 0..2 {
        server = replaced(case, server.pid)?;
        ensure!(identities()? == before, "another file");
    }
    // A failed restart is no final stop either.
    case.program().remove()?;
    super::common::refused(case, server.pid, "Spawn")?;
    case.program().replace()?;
    ensure!(identities()? == before, "another file");
    finish(case, load, server.pid)?;
    for path in &paths {
        ensure!(!path.exists(), "{} was left", path.display());
    }
    Ok(())
}

fn stale_path(case: &Context) -> Result<(), Failure> {
    let paths = paths(case);
    close_for_all(UnixListener::bind(&paths[0])?);
    close_for_all(UnixDatagram::bind(&paths[1])?);
    close_for_all(UnixListener::bind(&paths[2])?);
    // Also what a server that was killed has left itself.
    for round in 0..2 {
        let server = start(case, &Scenario::new().with("listen", PATHS))?;
        let load = load(case, paths[0].clone())?;
        if round == 0 {
            let report = load.stop();
            case.nothing_lost(&report)?;
            case.signal(server.pid, Signal::KILL)?;
            case.wait_exit(server.pid, SOON)?;
            identity(&paths[0])?;
        } else {
            finish(case, load, server.pid)?;
        }
    }
    Ok(())
}

fn foreign_path(case: &Context) -> Result<(), Failure> {
    let path = case.folder().join("a.sock");
    let refused = |what: &str| -> Result<(), Failure> {
        let subject = case.subject().start()?;
        let failed = case.wait_for_from(subject.pid(), "failed", SOON)?;
        let reason = failed.get("reason").unwrap_or_default();
        ensure!(reason.contains("`web`") && reason.contains("a.sock"), "{what}: {reason}");
        subject.wait_exit(SOON)?;
        Ok(())
    };
    for listen in ["web unix a.sock", "web seqpacket a.sock", "web unix-datagram a.sock"] {
        case.set_scenario(&Scenario::new().with("listen", listen))?;
        std::fs::write(&path, "text")?;
        refused("a file")?;
        ensure!(std::fs::read_to_string(&path)? == "text", "the file has changed");
        std::fs::remove_file(&path)?;
        let datagram = listen.contains("datagram");
        let (stream, packets);
        if datagram {
            packets = Some(UnixDatagram::bind(&path)?);
            stream = None;
        } else {
            packets = None;
            stream = Some(UnixListener::bind(&path)?);
        }
        let before = identity(&path)?;
        refused("a live socket")?;
        ensure!(identity(&path)? == before, "{listen}: somebody else's file was replaced");
        if stream.is_some() {
            UnixStream::connect(&path).doing("connecting to somebody else")?;
        }
        drop((stream, packets));
        std::fs::remove_file(&path)?;
    }
    // One that has become somebody else's in the meantime.
    let server = start(case, &Scenario::new().with("listen", PATHS))?;
    std::fs::remove_file(&path)?;
    let theirs = UnixListener::bind(&path)?;
    let before = identity(&path)?;
    let next = replaced(case, server.pid)?;
    stop(case, next.pid)?;
    ensure!(identity(&path)? == before, "somebody else's file was removed");
    drop(theirs);
    Ok(())
}

fn refused_claim(case: &Context, listen: &str, why: &str) -> Result<(), Failure> {
    let first = start(case, &plain())?;
    let load = load(case, first.address()?)?;
    case.set_scenario(&Scenario::new().with("listen", listen))?;
    let refused = super::common::refused(case, first.pid, "GaveUp")?;
    let detail = refused.get("detail").unwrap_or_default();
    ensure!(detail.contains("`web`") && detail.contains(why), "{refused}");
    case.set_scenario(&plain())?;
    finish(case, load, first.pid)
}

/// Status flags without close-on-exec.
fn status_flags<'a>(owner: &'a Belongings, kind: &str) -> Vec<(&'a str, u32)> {
    const O_CLOEXEC: u32 = 0o2_000_000;
    let of_kind = owner.descriptors.iter().filter(|one| one.target.contains(kind));
    of_kind.map(|one: &Descriptor| (one.target.as_str(), one.flags & !O_CLOEXEC)).collect()
}

fn flags(case: &Context) -> Result<(), Failure> {
    let listen = "web tcp 127.0.0.1:0\nlog file server.log\np pipe -\nu udp 127.0.0.1:0\n\
                  d unix-datagram d.sock\ns unix s.sock\nq seqpacket q.sock";
    let (stdin, keep) = std::io::pipe()?;
    let usual = Scenario::new().with("listen", listen);
    // With the probation it gives up what is looked at.
    case.set_scenario(&usual.clone().with("policy.probation", 60_000))?;
    let pid = case.subject().stdin(stdin).start()?.pid();
    let first = serving(case, pid)?;
    let load = load(case, first.address()?)?;
    // The kernel's lists may miss one while others come and go.
    let inodes = poll_until(SOON, "five sockets", || {
        listeners(&Belongings::of(pid).ok()?).ok().filter(|inodes| inodes.len() == 5)
    })?;
    let look = |pid: u32| -> Result<Vec<(String, u32)>, Failure> {
        let now = Belongings::of(pid)?;
        let of = |kind| status_flags(&now, kind);
        let mut found: Vec<_> = ["server.log", "pipe:", "stdout", "stderr"]
            .into_iter()
            .flat_map(of)
            .chain(inodes.iter().flat_map(|inode| of(inode)))
            .map(|(target, flags)| (target.to_owned(), flags))
            .collect();
        found.sort();
        // The poller of a runtime may have a copy of its own.
        found.dedup();
        Ok(found)
    };
    let before = look(pid)?;
    for inode in &inodes {
        let blocking = before.iter().any(|(target, flags)| target == inode && flags & 0o4000 == 0);
        // This one is a runtime's own business: no type of it is behind a gate.
        ensure!(!blocking, "{inode} blocks: {before:#?}");
    }
    for (target, flags) in before.iter().filter(|(target, _)| !target.starts_with("socket:")) {
        ensure!(flags & 0o4000 == 0, "{target} has become non-blocking: {flags:o}");
    }
    case.program().remove()?;
    super::common::refused(case, pid, "Spawn")?;
    case.program().replace()?;
    let after = look(pid)?;
    ensure!(after == before, "a failed spawn has changed {before:#?} to {after:#?}");
    case.set_scenario(&usual)?;
    let next = restart(case, pid)?;
    for pid in [pid, next.pid] {
        let after = look(pid)?;
        let after: Vec<_> = after.iter().filter(|one| before.contains(one)).collect();
        let all = before.iter().all(|one| after.contains(&one));
        ensure!(all, "process {pid}: {before:#?} has become {after:#?}");
    }
    case.signal(pid, Signal::TERM)?;
    wait_left(case, pid)?;
    drop(keep);
    finish(case, load, next.pid)
}

/// The sockets on which a process can be reached: by inode, out of the kernel's lists.
fn listeners(owner: &Belongings) -> Result<Vec<String>, Failure> {
    let mut known = Vec::new();
    for (table, column, listening) in [("tcp", 9, "0A"), ("udp", 9, "07"), ("unix", 6, "")] {
        let text = std::fs::read_to_string(format!("/proc/{}/net/{table}", owner.pid))
            .doing("reading the kernel's list of sockets")?;
        for line in text.lines().skip(1) {
            let words: Vec<_> = line.split_ascii_whitespace().collect();
            let bound = match table {
                // Bound to a path or a name.
                "unix" => words.len() > 7,
                _ => words.get(3) == Some(&listening),
            };
            if bound && let Some(inode) = words.get(column) {
                known.push(format!("socket:[{inode}]"));
            }
        }
    }
    let mut own: Vec<String> = owner
        .descriptors
        .iter()
        .filter(|one| known.contains(&one.target))
        .map(|one| one.target.clone())
        .collect();
    own.sort();
    own.dedup();
    Ok(own)
}

fn close_on_exec(case: &Context) -> Result<(), Failure> {
    let listen = "web tcp 127.0.0.1:0\nlog file server.log\np pipe -\nu udp 127.0.0.1:0\n\
                  d unix-datagram d.sock\ns unix s.sock\nq seqpacket q.sock\ng tcp*4 127.0.0.1:0";
    let scenario = Scenario::new()
        .with("listen", listen)
        .with("state", 1000)
        .also("hooks", "before restart wait restart")
        .also("hooks", "before commit wait commit")
        .also("hooks", "before accept wait accept")
        .with("at.claimed", "wait claimed");
    case.set_scenario(&scenario)?;
    let first = case.subject().start()?.pid();
    let at = |pids: &[u32], place: &str| -> Result<(), Failure> {
        let pid = pids[pids.len() - 1];
        let what = format!("{pid} at {place}");
        case.timeline().wait_for(&what, SOON, |event| {
            event.pid == Some(pid) && event.is("waits") && event.get("place") == Some(place)
        })?;
        for pid in pids {
            let owns = Belongings::of(*pid)?;
            owns.nothing_is_inherited().map_err(|failure| failure.while_doing(place))?;
        }
        case.command(pid, "go", &[("at", place)])
    };
    at(&[first], "claimed")?;
    at(&[first], "accept")?;
    let address = serving(case, first)?.address()?;
    let load = load(case, address)?;
    hold(case, first)?;
    let seen = case.timeline().len();
    case.signal(first, Signal::HUP)?;
    at(&[first], "restart")?;
    let second = case.wait_for_other(&[first], "born", SOON)?.pid.unwrap_or(0);
    at(&[first, second], "claimed")?;
    at(&[first, second], "accept")?;
    at(&[second, first], "commit")?;
    let taken = outcome(case, first, seen)?;
    ensure!(taken.get("ok") == Some("true"), "{taken}");
    for pid in [first, second] {
        Belongings::of(pid)?.nothing_is_inherited()?;
    }
    case.command(first, "unguard", &[])?;
    case.wait_exit(first, SOON)?;
    case.set_scenario(&Scenario::new().with("listen", listen))?;
    for place in ["restart", "commit"] {
        case.command(second, "go", &[("at", place)])?;
    }
    finish(case, load, second)
}

fn helpers(case: &Context) -> Result<(), Failure> {
    let listen = "web tcp 127.0.0.1:0\nlog file server.log\np pipe -\nu udp 127.0.0.1:0";
    let scenario = Scenario::new().with("listen", listen).with("state", 1000);
    let first = start(case, &scenario.clone().with("at.claimed", "children"))?;
    let load = load(case, first.address()?)?;
    let mut server = first;
    for _ in 0..3 {
        case.wait_for_from(server.pid, "children", SOON)?;
        server = restart(case, server.pid)?;
        case.wait_for_from(server.pid, "children", SOON)?;
    }
    case.set_scenario(&scenario)?;
    let server = replaced(case, server.pid)?;
    let folder = case.folder().display().to_string();
    // A file that is none of ours is one that the helper has opened itself.
    let ours = |target: &str| {
        !target.starts_with('/') || target.starts_with("/memfd") || target.starts_with(&folder)
    };
    let mut leaked = case.timeline().events();
    leaked.retain(|event| event.is("leaked") && event.get("target").is_some_and(ours));
    ensure!(leaked.is_empty(), "{leaked:#?}");
    finish(case, load, server.pid)
}

fn grandchild(case: &Context) -> Result<(), Failure> {
    let first = start(case, &plain())?;
    let load = load(case, first.address()?)?;
    // In the successor, whose environment has the variable: before and after its first accept.
    case.set_scenario(&plain().with("at.claimed", "wait claimed"))?;
    let seen = case.timeline().len();
    case.signal(first.pid, Signal::HUP)?;
    let second = case.wait_for_from_other(first.pid, "waits")?;
    case.set_scenario(&Scenario::new().with("listen", "web tcp 127.0.0.1:0"))?;
    let mut known = vec![first.pid, second];
    let offspring = |known: &mut Vec<u32>| -> Result<(), Failure> {
        case.command(second, "act", &[("action", "offspring")])?;
        let started = case.wait_for_other(known, "started", SOON)?;
        let pid = started.pid.unwrap_or(0);
        known.push(pid);
        ensure!(started.get("generation") == Some("1"), "{started}");
        ensure!(started.get("predecessor") == Some("0"), "{started}");
        ensure!(started.get("inherited") == Some(""), "{started}");
        let server = serving(case, pid)?;
        ensure!(server.address()? != first.address()?, "it has taken the address");
        case.signal(pid, Signal::TERM)?;
        case.wait_exit(pid, SOON)?;
        Ok(())
    };
    offspring(&mut known)?;
    case.command(second, "go", &[("at", "claimed")])?;
    let taken = outcome(case, first.pid, seen)?;
    ensure!(taken.get("ok") == Some("true"), "{taken}");
    offspring(&mut known)?;
    case.wait_exit(first.pid, SOON)?;
    finish(case, load, second)
}

impl Context {
    /// The process, another than `known`, from which an event of that name comes.
    fn wait_for_from_other(&self, known: u32, name: &str) -> Result<u32, Failure> {
        let event = self.wait_for_other(&[known], name, SOON)?;
        event.pid.ok_or_else(|| Failure::new("an event of nobody"))
    }
}

/// Starts the subject as a service manager does, with `listener` as its descriptor 3.
fn activate(case: &Context, listener: &TcpListener, variables: &str) -> Result<u32, Failure> {
    let script = format!("{variables} exec \"$0\" \"$@\" 3<&0 0</dev/null");
    let stdin = OwnedFd::from(listener.try_clone()?);
    Ok(case.subject().through(["sh", "-c", &script]).stdin(stdin).start()?.pid())
}

fn activated(case: &Context) -> Result<(), Failure> {
    for names in ["LISTEN_FDNAMES=web", ""] {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?;
        // By its name, whatever the program would have bound; by its address without one.
        let wanted = if names.is_empty() { address.to_string() } else { "127.0.0.1:0".into() };
        case.set_scenario(&Scenario::new().with("listen", format!("web tcp {wanted}")))?;
        let pid = activate(case, &listener, &format!("LISTEN_PID=$$ LISTEN_FDS=1 {names}"))?;
        let first = serving(case, pid)?;
        let claimed = case.wait_for_from(pid, "claimed", SOON)?;
        ensure!(claimed.get("origin") == Some("Activated"), "{claimed}");
        ensure!(first.address()? == address, "{} is not {address}", first.address()?);
        let load = load(case, address)?;
        let second = replaced(case, pid)?;
        ensure!(second.address()? == address, "{} is not {address}", second.address()?);
        let born = case.wait_for_from(second.pid, "born", SOON)?;
        let env = born.get("env").unwrap_or_default();
        ensure!(!env.contains("LISTEN_"), "{env}");
        finish(case, load, second.pid)?;
        // The manager goes on to listen: for the next process, which it starts on demand.
        let mut client = std::net::TcpStream::connect_timeout(&address, SOON)
            .doing("connecting to the manager's socket")?;
        client.write_all(b"hello").doing("sending to the manager's socket")?;
        listener.set_nonblocking(true)?;
        poll_until(SOON, "a connection at the manager's socket", || listener.accept().ok())?;
    }
    Ok(())
}

fn activated_for_another(case: &Context) -> Result<(), Failure> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    case.set_scenario(&plain())?;
    let pid = activate(case, &listener, "LISTEN_PID=1 LISTEN_FDS=1 LISTEN_FDNAMES=web")?;
    let server = serving(case, pid)?;
    let claimed = case.wait_for_from(pid, "claimed", SOON)?;
    ensure!(claimed.get("origin") == Some("Bound"), "{claimed}");
    ensure!(server.address()? != listener.local_addr()?, "it has taken the socket");
    let load = load(case, server.address()?)?;
    // What was left at 3 is not ours to close; its successor must not have it, though.
    let next = replaced(case, pid)?;
    let inherited = Belongings::of(next.pid)?;
    inherited.nothing_is_inherited()?;
    finish(case, load, next.pid)
}

fn activated_badly(case: &Context) -> Result<(), Failure> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    case.set_scenario(&plain())?;
    for (variables, said) in [
        ("LISTEN_PID=$$ LISTEN_FDS=x", "LISTEN_FDS=x"),
        ("LISTEN_PID=x LISTEN_FDS=1", "LISTEN_PID=x"),
        ("LISTEN_PID=$$ LISTEN_FDS=1 LISTEN_FDNAMES=a:b", "LISTEN_FDNAMES=a:b"),
        ("LISTEN_PID=$$ LISTEN_FDS=7", "as descriptor"),
    ] {
        let pid = activate(case, &listener, variables)?;
        let failed = case.wait_for_from(pid, "failed", SOON)?;
        let reason = failed.get("reason").unwrap_or_default();
        ensure!(reason.contains(said) && reason.contains("inherit"), "{variables}: {failed}");
        case.wait_exit(pid, SOON)?;
    }
    case.wait_only(&[], SOON)
}

/// What the library has of its own: nothing of it may be left.
fn library(owner: &Belongings) -> Vec<String> {
    let ours = |one: &&Descriptor| {
        ["memfd:handover", "pidfd", "eventpoll", "eventfd"]
            .iter()
            .any(|kind| one.target.contains(kind))
    };
    owner.descriptors.iter().filter(ours).map(|one| one.kind().to_owned()).collect()
}

fn dropped(case: &Context) -> Result<(), Failure> {
    // What the runtime itself has, and the harness, when the library is done.
    let drop_run = |pid: u32| -> Result<Belongings, Failure> {
        case.command(pid, "go", &[("at", "drop-run")])?;
        case.wait_for_from(pid, "dropped", SOON)?;
        case.wait_only(&[pid], SOON)?;
        let left = at_rest(case, pid)?;
        let sockets = listeners(&left)?;
        ensure!(sockets.is_empty(), "it still listens: {sockets:?}");
        let threads: Vec<_> =
            left.threads.iter().filter(|name| name.contains("handover")).collect();
        ensure!(threads.is_empty(), "{threads:?}");
        let kinds = library(&left);
        let owned = |kind: &str| kinds.iter().filter(|one| one.contains(kind)).count();
        ensure!(owned("memfd") == 0 && owned("pidfd") == 0, "{kinds:?}");
        Ok(left)
    };
    let end = |pid: u32| -> Result<(), Failure> {
        case.command(pid, "go", &[("at", "end")])?;
        case.wait_exit(pid, SOON)?;
        case.wait_only(&[], SOON)
    };
    let waits = |pid: u32, place: &str| {
        case.timeline().wait_for(place, SOON, |event| {
            event.pid == Some(pid) && event.is("waits") && event.get("place") == Some(place)
        })
    };
    // Before the first accept.
    case.set_scenario(&plain().with("hooks", "before accept wait accept"))?;
    let pid = case.subject().start()?.pid();
    waits(pid, "accept")?;
    let least = drop_run(pid)?;
    end(pid)?;

    // While it serves.
    let server = start(case, &plain())?;
    talk::get(server.address()?, "/")?;
    let served = library(&at_rest(case, server.pid)?).len();
    let left = drop_run(server.pid)?;
    unchanged(&least, server.pid)?;
    ensure!(library(&left).len() + 2 <= served, "of {served} are left {:?}", library(&left));
    ensure!(talk::is_refused(server.address()?), "somebody still listens");
    end(server.pid)?;

    // While it starts a successor, which must not survive.
    for hook in ["before restart wait here", "before commit wait here"] {
        let server = start(case, &plain().with("hooks", hook).with("state", 10))?;
        case.signal(server.pid, Signal::HUP)?;
        waits(server.pid, "here")?;
        drop_run(server.pid)?;
        unchanged(&least, server.pid)?;
        end(server.pid)?;
    }
    let server = start(case, &plain())?;
    case.set_scenario(&plain().with("at.claimed", "hang"))?;
    case.signal(server.pid, Signal::HUP)?;
    case.wait_for_other(&[server.pid], "acts", SOON)?;
    drop_run(server.pid)?;
    unchanged(&least, server.pid)?;
    end(server.pid)?;

    // While it drains: the successor goes on.
    let server = start(case, &plain().with("policy.probation", 20_000))?;
    let load = load(case, server.address()?)?;
    case.set_scenario(&plain())?;
    let next = restart(case, server.pid)?;
    load.wait_for_successor(server.pid, SOON)?;
    // A connection that the old one has would be cut, and rightly so.
    let report = load.stop();
    case.nothing_lost(&report)?;
    case.command(server.pid, "go", &[("at", "drop-run")])?;
    case.wait_for_from(server.pid, "dropped", SOON)?;
    let again = super::common::load(case, server.address()?)?;
    unchanged(&least, server.pid)?;
    case.command(server.pid, "go", &[("at", "end")])?;
    case.wait_exit(server.pid, SOON)?;
    settled(case, &[next.pid])?;
    finish(case, again, next.pid)
}
