use std::ffi::{OsStr, OsString};
use std::io;
use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix,
    SocketFlags, SocketType,
};
use rustix::pipe::PipeFlags;
use rustix::time::ClockId;

/// The service manager's ear (the `sd_notify` protocol of systemd).
///
/// Every message is sent at once or fails: a manager that does not read must not stop the
/// server, and whether it heard is what [`barrier`](Notifier::barrier) is for.
#[derive(Debug)]
pub(crate) struct Notifier {
    socket: OwnedFd,
    manager: SocketAddrUnix,
}

impl Notifier {
    /// The manager that `NOTIFY_SOCKET` names: a path, or an abstract address that starts with
    /// `@`. `None` if there is none, or one that this protocol cannot reach.
    pub(crate) fn from_env() -> Option<Notifier> {
        Notifier::to(&std::env::var_os("NOTIFY_SOCKET")?)
    }

    /// Sends assignments, one per line.
    pub(crate) fn send(&self, state: &str) -> io::Result<()> {
        self.send_with(state, &[])
    }

    /// This process has started.
    pub(crate) fn ready(&self) -> io::Result<()> {
        self.send("READY=1")
    }

    /// This process begins to reload itself: until somebody is ready, nothing is wrong.
    pub(crate) fn reloading(&self) -> io::Result<()> {
        // systemd takes only a READY for an answer whose reload began after its own request, and
        // compares by this clock.
        let now = rustix::time::clock_gettime(ClockId::Monotonic);
        let usec = i128::from(now.tv_sec) * 1_000_000 + i128::from(now.tv_nsec) / 1000;
        self.send(&format!("RELOADING=1\nMONOTONIC_USEC={usec}"))
    }

    /// From now on the service is `pid`, which is ready already, or is not. In one message, so
    /// that the manager never sees the one without the other.
    pub(crate) fn main_pid(&self, pid: u32, ready: bool) -> io::Result<()> {
        self.send(&format!("MAINPID={pid}{}", if ready { "\nREADY=1" } else { "" }))
    }

    /// The service ends. Never to be sent by a process that another one has taken over from.
    pub(crate) fn stopping(&self) -> io::Result<()> {
        self.send("STOPPING=1")
    }

    /// A line for people who look at the service's status.
    pub(crate) fn status(&self, status: &str) -> io::Result<()> {
        // A line feed would begin another assignment.
        self.send(&format!("STATUS={}", status.replace(['\n', '\r', '\0'], " ")))
    }

    /// A descriptor that is at its end (readable, end-of-file) as soon as the manager has
    /// processed everything that this process has sent before. It is non-blocking, and is at its
    /// end as well if the manager drops the message or dies.
    pub(crate) fn barrier(&self) -> io::Result<OwnedFd> {
        let (reader, writer) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        // systemd accepts a barrier only alone in its message and with one descriptor.
        self.send_with("BARRIER=1", &[writer.as_fd()])?;
        Ok(reader)
    }

    fn to(address: &OsStr) -> Option<Notifier> {
        let manager = match address.as_bytes() {
            [b'@', name @ ..] if !name.is_empty() => SocketAddrUnix::new_abstract_name(name),
            [b'/', ..] => SocketAddrUnix::new(address),
            _ => return None,
        };
        let socket = rustix::net::socket_with(
            AddressFamily::UNIX,
            SocketType::DGRAM,
            SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
            None,
        );
        Some(Notifier { socket: socket.ok()?, manager: manager.ok()? })
    }

    /// By address and not connected: a manager that restarts itself binds anew.
    fn send_with(&self, state: &str, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "too many descriptors"));
        }
        let bytes = [IoSlice::new(state.as_bytes())];
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        rustix::io::retry_on_intr(|| {
            rustix::net::sendmsg_addr(&self.socket, &self.manager, &bytes, &mut control, flags)
        })?;
        Ok(())
    }
}

/// Whether a service manager follows this very process and cannot be told another one: systemd
/// has executed it, and listens to no messages. If this process ended, the service would.
pub(crate) fn main_process_of_manager_without_notify() -> bool {
    follows_only_us(|name| std::env::var_os(name), std::process::id())
}

fn follows_only_us(var: impl Fn(&str) -> Option<OsString>, own_pid: u32) -> bool {
    let executed = var("SYSTEMD_EXEC_PID").is_some_and(|pid| pid == *own_pid.to_string());
    executed && var("NOTIFY_SOCKET").is_none_or(|socket| socket.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};
    use std::io::IoSliceMut;
    use std::os::linux::net::SocketAddrExt;
    use std::os::unix::net::{SocketAddr, UnixDatagram};
    use std::path::PathBuf;

    struct Manager {
        socket: UnixDatagram,
        path: Option<PathBuf>,
    }

    impl Manager {
        fn at_path(name: &str) -> (Manager, Notifier) {
            let path = std::env::temp_dir().join(format!("handover-{name}-{}", std::process::id()));
            let _ = std::fs::remove_file(&path);
            let socket = UnixDatagram::bind(&path).unwrap();
            let notifier = Notifier::to(path.as_os_str()).unwrap();
            (Manager { socket, path: Some(path) }, notifier)
        }

        fn heard(&self) -> String {
            let mut bytes = [0; 512];
            let len = self.socket.recv(&mut bytes).unwrap();
            String::from_utf8(bytes[..len].to_vec()).unwrap()
        }
    }

    impl Drop for Manager {
        fn drop(&mut self) {
            if let Some(path) = &self.path {
                let _ = std::fs::remove_file(path);
            }
        }
    }

    #[test]
    fn the_manager_hears_every_message() {
        let (manager, notifier) = Manager::at_path("notify-all");
        notifier.ready().unwrap();
        assert_eq!(manager.heard(), "READY=1");
        notifier.main_pid(7, false).unwrap();
        assert_eq!(manager.heard(), "MAINPID=7");
        notifier.main_pid(7, true).unwrap();
        assert_eq!(manager.heard(), "MAINPID=7\nREADY=1");
        notifier.stopping().unwrap();
        assert_eq!(manager.heard(), "STOPPING=1");
        notifier.status("one\nREADY=1").unwrap();
        assert_eq!(manager.heard(), "STATUS=one READY=1");

        let before = rustix::time::clock_gettime(ClockId::Monotonic).tv_sec as u128 * 1_000_000;
        notifier.reloading().unwrap();
        let heard = manager.heard();
        let usec: u128 =
            heard.strip_prefix("RELOADING=1\nMONOTONIC_USEC=").unwrap().parse().unwrap();
        assert!((before..before + 60_000_000).contains(&usec));
    }

    #[test]
    fn an_abstract_manager_hears_too() {
        let name = format!("handover-notify-{}", std::process::id());
        let socket = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap());
        let manager = Manager { socket: socket.unwrap(), path: None };
        let notifier = Notifier::to(OsStr::new(&format!("@{name}"))).unwrap();
        let flags = rustix::io::fcntl_getfd(&notifier.socket).unwrap();
        assert!(flags.contains(rustix::io::FdFlags::CLOEXEC));
        notifier.ready().unwrap();
        assert_eq!(manager.heard(), "READY=1");
    }

    #[test]
    fn addresses_that_cannot_be() {
        for address in ["", "@", "relative", "vsock:2:1", &"/x".repeat(100)] {
            assert!(Notifier::to(OsStr::new(address)).is_none(), "{address}");
        }
    }

    #[test]
    fn a_manager_that_does_not_listen_stops_nobody() {
        let (manager, notifier) = Manager::at_path("notify-full");
        let full = (0..100_000).find_map(|_| notifier.ready().err()).unwrap();
        assert_eq!(full.kind(), io::ErrorKind::WouldBlock);
        drop(manager);
        assert!(notifier.ready().is_err());
    }

    #[test]
    fn the_barrier_falls_when_the_manager_has_closed_its_end() {
        let (manager, notifier) = Manager::at_path("notify-barrier");
        notifier.ready().unwrap();
        let barrier = notifier.barrier().unwrap();
        let falls_within = |seconds| {
            let mut fds = [PollFd::new(&barrier, PollFlags::IN)];
            poll(&mut fds, Some(&Timespec { tv_sec: seconds, tv_nsec: 0 })).unwrap() == 1
        };
        assert_eq!(manager.heard(), "READY=1");
        assert!(!falls_within(0));

        let mut bytes = [0; 64];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let got = rustix::net::recvmsg(
            &manager.socket,
            &mut [IoSliceMut::new(&mut bytes)],
            &mut control,
            RecvFlags::CMSG_CLOEXEC,
        );
        assert_eq!(&bytes[..got.unwrap().bytes], b"BARRIER=1");
        assert!(!falls_within(0));
        let received: Vec<OwnedFd> = control
            .drain()
            .flat_map(|message| match message {
                RecvAncillaryMessage::ScmRights(fds) => fds.collect::<Vec<_>>(),
                _ => Vec::new(),
            })
            .collect();
        assert_eq!(received.len(), 1);
        drop(received);
        // Whatever another test starts has a copy of it until its exec.
        assert!(falls_within(60));
    }

    #[test]
    fn a_manager_that_follows_one_pid() {
        let with = |vars: &'static [(&str, &str)]| {
            follows_only_us(
                move |name| {
                    vars.iter().find(|(key, _)| *key == name).map(|(_, value)| value.into())
                },
                77,
            )
        };
        assert!(with(&[("SYSTEMD_EXEC_PID", "77")]));
        assert!(!with(&[("SYSTEMD_EXEC_PID", "77"), ("NOTIFY_SOCKET", "/run/x")]));
        assert!(!with(&[("SYSTEMD_EXEC_PID", "78")]));
        assert!(!with(&[]));
    }
}
