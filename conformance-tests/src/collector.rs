//! The runner's end of a case: takes in events, sees processes die, and reaps them.

use std::collections::HashMap;
use std::io::{ErrorKind, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::io::Errno;
use rustix::net::sockopt::socket_peercred;

use crate::hygiene;
use crate::lines::{read_line, write_line};
use crate::program::BURYING;
use crate::signal::{Process, exit_event};
use crate::timeline::{Event, Timeline};
use crate::{Doing, Failure, Stamp};

/// One thread that waits for all descriptors of a case. It ends with this value.
pub(crate) struct Collector {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    timeline: Arc<Timeline>,
    wake: OwnedFd,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    over: bool,
    /// Processes that the thread does not watch yet.
    new: Vec<Process>,
    /// Where commands go: each generation's latest connection.
    links: HashMap<u32, UnixStream>,
}

struct Link {
    pid: u32,
    stream: UnixStream,
    bytes: Vec<u8>,
}

impl Collector {
    pub(crate) fn start(socket: &Path, timeline: Arc<Timeline>) -> Result<Self, Failure> {
        let listener = UnixListener::bind(socket).doing("binding the case's socket")?;
        listener.set_nonblocking(true).doing("binding the case's socket")?;
        let shared = Arc::new(Shared {
            timeline,
            wake: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
                .doing("making an eventfd")?,
            inner: Mutex::default(),
        });
        let thread = std::thread::Builder::new().name("collector".into());
        let collector = Work {
            shared: Arc::clone(&shared),
            listener,
            links: Vec::new(),
            living: Vec::new(),
            unreaped: Vec::new(),
        };
        let thread = thread.spawn(|| collector.run()).doing("starting the collector")?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Notes that process's end in the timeline, with its status if it can be known.
    pub(crate) fn watch(&self, process: Process) {
        self.shared.lock().new.push(process);
        self.shared.wake();
    }

    /// Sends a command to a generation.
    pub(crate) fn command(
        &self,
        pid: u32,
        name: &str,
        fields: &[(&str, &str)],
    ) -> Result<(), Failure> {
        let fields = fields.iter().map(|&(key, value)| (key, value.to_owned()));
        let line = write_line(name, fields) + "\n";
        let inner = self.shared.lock();
        let mut link: &UnixStream = inner
            .links
            .get(&pid)
            .ok_or_else(|| Failure::new(format!("process {pid} has no link to take commands")))?;
        link.write_all(line.as_bytes()).doing(format_args!("sending {name} to process {pid}"))
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        self.shared.lock().over = true;
        self.shared.wake();
        if let Some(thread) = self.thread.take() {
            // A panic of it was printed; the case's outcome is decided without it.
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wake(&self) {
        // Full only after 2^64 wake-ups.
        let _ = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
    }
}

/// What only the thread has.
struct Work {
    shared: Arc<Shared>,
    listener: UnixListener,
    links: Vec<Link>,
    living: Vec<Process>,
    /// Dead, and the child of a process that has not waited for it: it becomes
    /// ours to reap when that one dies, because the runner is a subreaper.
    unreaped: Vec<Process>,
}

impl Work {
    fn run(mut self) {
        loop {
            let Some(ready) = self.wait() else {
                return;
            };
            let mut counter = [0; 8];
            let _ = rustix::io::read(&self.shared.wake, &mut counter);
            // Events before deaths: a dying process's last words come first.
            self.accept();
            self.links.retain_mut(|link| link.read(&self.shared.timeline));
            self.bury(&ready);
            let mut inner = self.shared.lock();
            if inner.over {
                return;
            }
            self.living.append(&mut inner.new);
        }
    }

    /// Waits until something is ready; gives the processes that have died.
    fn wait(&self) -> Option<Vec<u32>> {
        let mut fds = vec![
            PollFd::new(&self.shared.wake, PollFlags::IN),
            PollFd::new(&self.listener, PollFlags::IN),
        ];
        fds.extend(self.links.iter().map(|link| PollFd::new(&link.stream, PollFlags::IN)));
        let first = fds.len();
        fds.extend(
            self.living
                .iter()
                .map(|process| PollFd::from_borrowed_fd(process.as_fd(), PollFlags::IN)),
        );
        match poll(&mut fds, None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(_) => return None,
        }
        let dead = fds[first..].iter().zip(&self.living);
        let dead = dead.filter(|(fd, _)| fd.revents().contains(PollFlags::IN));
        Some(dead.map(|(_, process)| process.pid()).collect())
    }

    fn accept(&mut self) {
        while let Ok((stream, _)) = self.listener.accept() {
            let Ok(peer) = socket_peercred(&stream) else {
                continue;
            };
            let pid = peer.pid.as_raw_pid().cast_unsigned();
            let Ok(writer) = stream.try_clone() else {
                continue;
            };
            self.shared.lock().links.insert(pid, writer);
            self.links.push(Link { pid, stream, bytes: Vec::new() });
            let known = self.living.iter().chain(&self.unreaped).any(|other| other.pid() == pid)
                || self.shared.lock().new.iter().any(|other| other.pid() == pid);
            if !known && let Ok(process) = Process::open(pid) {
                self.living.push(process);
            }
        }
    }

    fn bury(&mut self, dead: &[u32]) {
        if dead.is_empty() {
            return;
        }
        let _burying = BURYING.write().unwrap_or_else(PoisonError::into_inner);
        let timeline = &self.shared.timeline;
        // Those of earlier: with their parent's death they may have become ours.
        self.unreaped.retain(|process| match process.reap() {
            Ok(Some(exit)) => {
                timeline.note(Some(process.pid()), "inherited by the runner", &[("end", &exit)]);
                false
            }
            Ok(None) | Err(_) => hygiene::is_zombie(process.pid()),
        });
        let (dead, living): (Vec<_>, _) =
            self.living.drain(..).partition(|process| dead.contains(&process.pid()));
        self.living = living;
        for process in dead {
            let pid = process.pid();
            self.shared.lock().links.remove(&pid);
            let exit = process.reap().ok().flatten();
            timeline.push(exit_event(pid, exit));
            if exit.is_none() {
                self.unreaped.push(process);
            }
        }
    }
}

impl Link {
    /// Takes in what has come. False at the connection's end.
    fn read(&mut self, timeline: &Timeline) -> bool {
        let mut buffer = [0; 4096];
        loop {
            // Not the socket's own flag: the writer's clone shares it, and
            // commands are to be written whole.
            let received =
                rustix::net::recv(&self.stream, &mut buffer, rustix::net::RecvFlags::DONTWAIT);
            match received.map_err(std::io::Error::from) {
                Ok((_, 0)) => return false,
                Ok((_, len)) => self.bytes.extend_from_slice(&buffer[..len]),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return true,
                Err(_) => return false,
            }
            while let Some(end) = self.bytes.iter().position(|&byte| byte == b'\n') {
                let line: Vec<u8> = self.bytes.drain(..=end).collect();
                let (name, mut fields) = read_line(&String::from_utf8_lossy(&line));
                let at = fields.remove("at").and_then(|nanos| nanos.parse().ok());
                let at = at.map_or_else(Stamp::now, Stamp::from_nanos);
                timeline.push(Event { at, pid: Some(self.pid), name, fields });
            }
        }
    }
}
