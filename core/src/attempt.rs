//! One attempt at a restart: the successor's process, its socket, and what is known of both.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use futures::FutureExt;
use futures::channel::oneshot;
use futures::future::BoxFuture;
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::error::Error;
use crate::handle::Reply;
use crate::hooks::HookResult;
use crate::inherit::{Generation, number};
use crate::machine::{Attempt, Failure, Heard, Input};
use crate::outcome::{RestartError, Steps, Takeover};
use crate::ownership::Ownership;
use crate::poller::{Poller, Token};
use crate::protocol::channel::{Channel, Received, Sender};
use crate::protocol::frame::{self, Frame, MAX_DESCRIPTORS, MAX_FRAME, VERSIONS};
use crate::registry::Registry;
use crate::runtime::Runtime;
use crate::spawn::{Child, Ended, Launch, is_dead, kill_tree};
use crate::state::Providers;

/// The application state, as it is sealed once the hooks have agreed.
pub(crate) type Sealing = BoxFuture<'static, Result<Option<OwnedFd>, SealError>>;

/// The process that is being started, and the end of the thread that does it.
type Spawning = (oneshot::Receiver<Result<Child, Error>>, std::sync::mpsc::Receiver<()>);

pub(crate) struct Successor {
    pub(crate) number: Attempt,
    pub(crate) channel: Option<Channel>,
    pub(crate) reply: Option<Reply>,
    pub(crate) takeover: Takeover,
    pub(crate) log: Log,
    /// How many it has sent.
    pub(crate) frames: u32,
    pub(crate) child: Option<Child>,
    /// The process that said hello, if it is not the child: the child is a wrapper then.
    speaker: Option<(Pid, OwnedFd)>,
    step: Instant,
    /// Vetting waits until fewer older generations than this are alive.
    room: Option<usize>,
    vetting: Option<Sealing>,
    spawning: Option<Spawning>,
    sealing: Option<Sealing>,
    /// The state as it was at the start, and as it was last.
    state: Option<Arc<OwnedFd>>,
    final_state: Option<Arc<OwnedFd>>,
    watched: bool,
    dead: bool,
    committed: bool,
}

pub(crate) enum SealError {
    Vetoed(Box<dyn std::error::Error + Send + Sync>),
    State(io::Error),
}

/// Runs the hooks before a step, then has the state sealed, on a thread of its own: its providers
/// are the user's code.
pub(crate) fn seal(
    hooks: Option<BoxFuture<'static, HookResult>>,
    providers: Providers,
    limit: usize,
) -> Sealing {
    Box::pin(async move {
        if let Some(hooks) = hooks {
            hooks.await.map_err(SealError::Vetoed)?;
        }
        if providers.is_empty() {
            return Ok(None);
        }
        let (done, sealed) = oneshot::channel();
        let thread = std::thread::Builder::new().name("handover-state".into());
        thread.spawn(move || drop(done.send(providers.seal(limit)))).map_err(SealError::State)?;
        let panicked = || SealError::State(io::Error::other("a provider of state panicked"));
        sealed.await.map_err(|_| panicked())?.map_err(SealError::State)
    })
}

impl Successor {
    pub(crate) fn new(
        number: Attempt,
        reply: Option<Reply>,
        room: Option<usize>,
        vetting: Sealing,
        now: Instant,
    ) -> Self {
        Self {
            number,
            channel: None,
            reply,
            takeover: Takeover {
                pid: 0,
                generation: 0,
                steps: Steps::default(),
                claimed: Vec::new(),
                bound: Vec::new(),
                dropped: Vec::new(),
                in_flight: 0,
            },
            log: Log::default(),
            frames: 0,
            child: None,
            speaker: None,
            step: now,
            room,
            vetting: Some(vetting),
            spawning: None,
            sealing: None,
            state: None,
            final_state: None,
            watched: false,
            dead: false,
            committed: false,
        }
    }

    /// Ends one step and begins the next.
    pub(crate) fn step(&mut self, now: Instant, note: impl FnOnce(&mut Steps, Duration)) {
        note(&mut self.takeover.steps, now.saturating_duration_since(self.step));
        self.step = now;
    }

    /// What the steps of this process's own have come to.
    pub(crate) fn poll_steps(
        &mut self,
        context: &mut Context<'_>,
        older: &[Generation],
        now: Instant,
        inputs: &mut Vec<Input>,
    ) {
        if self.room.is_some_and(|cap| older.len() < cap) {
            self.room = None;
        }
        if self.room.is_none()
            && let Some(vetting) = &mut self.vetting
            && let Poll::Ready(sealed) = vetting.poll_unpin(context)
        {
            self.vetting = None;
            let verdict = self.sealed(sealed).map(|state| self.state = state);
            inputs.push(Input::Vetted(self.number, verdict));
        }
        if let Some((spawning, _)) = &mut self.spawning
            && let Poll::Ready(started) = spawning.poll_unpin(context)
        {
            self.spawning = None;
            self.step(now, |steps, took| steps.spawn = took);
            inputs.push(self.started(started));
        }
        if let Some(sealing) = &mut self.sealing
            && let Poll::Ready(sealed) = sealing.poll_unpin(context)
        {
            self.sealing = None;
            let verdict = self.sealed(sealed).map(|state| self.final_state = state);
            inputs.push(Input::Sealed(self.number, verdict));
        }
    }

    fn sealed(
        &mut self,
        sealed: Result<Option<OwnedFd>, SealError>,
    ) -> Result<Option<Arc<OwnedFd>>, Failure> {
        let (failure, detail) = match sealed {
            Ok(state) => return Ok(state.map(Arc::new)),
            Err(SealError::Vetoed(error)) => (Failure::Vetoed, error.to_string()),
            Err(SealError::State(error)) => (Failure::State, error.to_string()),
        };
        self.log.detail(detail);
        Err(failure)
    }

    fn started(&mut self, started: Result<Result<Child, Error>, oneshot::Canceled>) -> Input {
        match started {
            Ok(Ok(child)) => {
                self.takeover.pid = number(child.pid);
                self.child = Some(child);
                return Input::Spawned(self.number);
            }
            Ok(Err(error)) => {
                self.log.os_error = error.raw_os_error();
                self.log.detail(error.to_string());
            }
            Err(oneshot::Canceled) => self.log.detail("its thread panicked".into()),
        }
        Input::SpawnFailed(self.number)
    }

    /// Starts the process, on a thread of its own: exec can be held up by a file system.
    pub(crate) fn spawn(&mut self, launch: Launch, instance: String) -> io::Result<()> {
        let (channel, socket) = Channel::pair()?;
        let (done, spawning) = oneshot::channel();
        // Disconnected when the thread has nothing more to do.
        let (alive, finished) = std::sync::mpsc::channel::<()>();
        std::thread::Builder::new().name("handover-spawn".into()).spawn(move || {
            if let Err(Ok(child)) = done.send(launch.spawn(socket, &instance)) {
                // The driver is gone: nobody would reap the successor, or answer it.
                kill_tree(child.pidfd.as_fd(), child.pid);
                await_death(&child);
            }
            drop(alive);
        })?;
        self.channel = Some(channel);
        self.spawning = Some((spawning, finished));
        Ok(())
    }

    /// Watches the process and the socket, once the process exists.
    pub(crate) fn watch<R: Runtime>(&mut self, poller: &Poller<R>) -> io::Result<()> {
        if self.watched {
            return Ok(());
        }
        if let (Some(channel), Some(child)) = (&self.channel, &self.child) {
            self.watched = true;
            poller.add(Token::Child, child.pidfd.as_fd())?;
            poller.add(Token::Successor, channel.as_fd())?;
        }
        Ok(())
    }

    /// Watches the process that said hello, where it is not the child itself.
    pub(crate) fn watch_speaker<R: Runtime>(&mut self, poller: &Poller<R>) -> io::Result<()> {
        let Some(sender) = self.log.speaker else { return Ok(()) };
        if self.child.as_ref().is_some_and(|child| number(child.pid) == sender.pid) {
            return Ok(());
        }
        let pid = i32::try_from(sender.pid).ok().and_then(Pid::from_raw);
        let pid = pid.ok_or(io::ErrorKind::InvalidData)?;
        let pidfd = pidfd_open(pid, PidfdFlags::empty())?;
        poller.add(Token::SuccessorDeath, pidfd.as_fd())?;
        self.takeover.pid = sender.pid;
        self.speaker = Some((pid, pidfd));
        Ok(())
    }

    /// Sends the offer; whether part of it waits for room in the socket.
    pub(crate) fn offer(
        &mut self,
        generation: u32,
        patience: Duration,
        registry: &Registry,
        ownership: &Ownership,
        older: &[Generation],
    ) -> io::Result<bool> {
        let (ids, named) = registry.offer()?;
        self.log.offered = ids;
        let mut offer: Vec<(frame::Entry, Arc<OwnedFd>)> = Vec::with_capacity(named.len() + 8);
        offer.push((frame::Entry::Lock, ownership.share()));
        offer.extend(self.state.take().map(|state| (frame::Entry::State, state)));
        for Generation { pid, generation, pidfd, hurry } in older {
            let entry = frame::Entry::Generation { pid: *pid, generation: *generation };
            offer.push((entry, Arc::clone(pidfd)));
            offer.push((frame::Entry::Hurry, Arc::clone(hurry)));
        }
        offer.extend(named);
        // Lost in the same moment, which is heard next.
        let Some(channel) = &mut self.channel else { return Ok(false) };
        let total = u16::try_from(offer.len())
            .map_err(|_| io::Error::other("more than 65,535 descriptors"))?;
        let version = VERSIONS.1.min(self.log.newest);
        let patience = u32::try_from(patience.as_millis()).unwrap_or(u32::MAX);
        channel.send(&Frame::Offer { version, generation, total, patience }, Vec::new())?;
        let mut offer = offer.into_iter().peekable();
        while offer.peek().is_some() {
            let (entries, descriptors) = batch(&mut offer);
            channel.send(&Frame::Descriptors(entries), descriptors)?;
        }
        Ok(channel.is_blocked())
    }

    /// Begins what comes before the commit, see [`seal`].
    pub(crate) fn seal(&mut self, sealing: Sealing) {
        self.sealing = Some(sealing);
    }

    /// Writes COMMIT: now or not at all.
    pub(crate) fn commit(&mut self) -> bool {
        if self.is_dead_now() {
            return false;
        }
        let Some(channel) = &mut self.channel else { return false };
        let state = self.final_state.take();
        let frame = Frame::Commit { state: state.is_some() };
        let sent = channel.send(&frame, state.into_iter().collect());
        let written = sent.is_ok() && !channel.is_blocked();
        if !written {
            channel.clear();
        }
        self.committed = written;
        written
    }

    pub(crate) fn is_watched(&self) -> bool {
        self.watched
    }

    /// This process serves again: whatever the other is now, it did not take over.
    pub(crate) fn roll_back(&mut self) {
        self.committed = false;
    }

    pub(crate) fn is_committed(&self) -> bool {
        self.committed
    }

    pub(crate) fn abort(&mut self) {
        let reason = self.log.detail.clone().unwrap_or_else(|| "not wanted any more".into());
        if let Some(channel) = &mut self.channel {
            let _ = channel.send(&Frame::Abort { reason }, Vec::new());
        }
    }

    pub(crate) fn kill(&mut self) {
        if let Some((pid, pidfd)) = &self.speaker {
            kill_tree(pidfd.as_fd(), *pid);
        }
        if let Some(child) = &self.child {
            kill_tree(child.pidfd.as_fd(), child.pid);
        }
    }

    fn is_dead_now(&self) -> bool {
        match (&self.speaker, &self.child) {
            (Some((_, pidfd)), _) => is_dead(pidfd.as_fd()),
            (None, Some(child)) => is_dead(child.pidfd.as_fd()),
            (None, None) => self.dead,
        }
    }

    /// Reaps the child if it has ended, and tells if the successor is dead.
    pub(crate) fn bury<R: Runtime>(&mut self, poller: &Poller<R>, inputs: &mut Vec<Input>) {
        if let Some(child) = &self.child
            && let Some(ended) = child.reap()
        {
            poller.remove(child.pidfd.as_fd());
            self.child = None;
            self.log.ended = Some(ended);
            self.dead |= self.speaker.is_none();
            if self.dead {
                inputs.push(Input::SuccessorDied(self.number));
            }
        }
        if let Some((_, pidfd)) = &self.speaker
            && !self.dead
            && is_dead(pidfd.as_fd())
        {
            poller.remove(pidfd.as_fd());
            self.dead = true;
            inputs.push(Input::SuccessorDied(self.number));
        }
    }

    /// The child, if it has not ended yet. The rest is no longer watched.
    pub(crate) fn release_child<R: Runtime>(&mut self, poller: &Poller<R>) -> Option<Child> {
        if let Some((_, pidfd)) = &self.speaker {
            poller.remove(pidfd.as_fd());
        }
        self.child.take()
    }

    /// Ends the process when nobody will be polled any more, and waits for it: at most a second for
    /// a start that is under way, and one for a process that dies.
    pub(crate) fn end(&mut self) {
        if let Some((mut spawning, finished)) = self.spawning.take() {
            // If it starts when this process has gone, it must not take that for a crash.
            self.abort();
            spawning.close();
            if let Ok(Some(Ok(child))) = spawning.try_recv() {
                self.child = Some(child);
            } else {
                // The thread kills what it is about to start, if this process lives long enough.
                let _ = finished.recv_timeout(Duration::from_secs(1));
            }
        }
        self.kill();
        if let Some(child) = self.child.take() {
            await_death(&child);
        }
    }

    /// The error of this attempt.
    pub(crate) fn error(&self, failure: Failure) -> RestartError {
        let crowded = failure == Failure::HookDeadline && self.room.is_some();
        let failure = if crowded { Failure::TooManyGenerations } else { failure };
        RestartError {
            failure: self.log.failure.unwrap_or(failure),
            detail: self.log.detail.clone(),
            os_error: self.log.os_error,
            ended: self.log.ended,
        }
    }
}

/// What the successor said, and what went wrong: the words for the outcome.
#[derive(Default)]
pub(crate) struct Log {
    detail: Option<String>,
    os_error: Option<i32>,
    ended: Option<Ended>,
    /// A class that says more than the machine's.
    failure: Option<Failure>,
    speaker: Option<Sender>,
    newest: u16,
    offered: Vec<u64>,
    claimed: Vec<u16>,
    bound: Vec<String>,
}

impl Log {
    /// That of an attempt which has offered these.
    #[cfg(any(test, fuzzing))]
    pub(crate) fn offering(offered: Vec<u64>) -> Self {
        Self { offered, ..Self::default() }
    }

    /// The first detail is the cause; what follows are its consequences.
    pub(crate) fn detail(&mut self, detail: String) {
        self.detail.get_or_insert(detail);
    }

    /// The operating system refused something on this side.
    pub(crate) fn os_error(&mut self, error: &io::Error) {
        self.os_error = error.raw_os_error();
        self.failure.get_or_insert(Failure::Resources);
    }

    /// The registry's numbers of what the successor claimed.
    pub(crate) fn claims(&self) -> Vec<u64> {
        let place = |place: &u16| self.offered.get(usize::from(*place)).copied();
        self.claimed.iter().filter_map(place).collect()
    }

    pub(crate) fn bound(&mut self) -> Vec<String> {
        std::mem::take(&mut self.bound)
    }

    /// A frame in the machine's terms. What is not right about it goes into the log.
    pub(crate) fn understand(&mut self, received: Received) -> Heard {
        let (frame, sender) = match received {
            Received::Frame(frame, sender) => (frame, sender),
            Received::Garbage(what) => return self.garbage(what),
            Received::Lost => return Heard::Lost,
        };
        let Some(sender) = sender else {
            return self.garbage("a frame without its sender".into());
        };
        match (&frame, self.speaker) {
            (Frame::Hello { pid, .. }, None) if *pid == sender.pid => {
                // The kernel names the real user, a process may name its effective one.
                let (real, effective) = (rustix::process::getuid(), rustix::process::geteuid());
                if ![real.as_raw(), effective.as_raw()].contains(&sender.uid) {
                    return self.garbage(format!("a frame from another user ({})", sender.uid));
                }
                self.speaker = Some(sender);
            }
            (Frame::Hello { .. }, _) => return self.garbage("a HELLO out of place".into()),
            // The same process, if perhaps as another user: it may drop privileges as it starts.
            (_, Some(speaker)) if speaker.pid == sender.pid => {}
            _ => return self.garbage(format!("a frame from process {}", sender.pid)),
        }
        match frame {
            Frame::Hello { oldest, newest, .. } => {
                self.newest = newest;
                if oldest > VERSIONS.1 || newest < VERSIONS.0 {
                    return self.garbage(format!(
                        "it speaks protocol versions {oldest} to {newest}, this process {} to {}",
                        VERSIONS.0, VERSIONS.1
                    ));
                }
                Heard::Hello
            }
            Frame::Ready { claimed, bound, .. } => {
                if claimed.iter().any(|place| usize::from(*place) >= self.offered.len()) {
                    return self.garbage("it claims what was not offered".into());
                }
                self.claimed = claimed;
                self.bound = bound;
                Heard::Ready
            }
            Frame::GaveUp { reason } => {
                self.detail(reason);
                Heard::GaveUp
            }
            Frame::Serving => Heard::Serving,
            Frame::Stopping => Heard::Stopping,
            Frame::Release => Heard::Release,
            other => self.garbage(format!("{other:?} from a successor")),
        }
    }

    fn garbage(&mut self, what: String) -> Heard {
        self.detail(what);
        Heard::Garbage
    }
}

/// As many entries as fit into one frame, and at least one. A socket's file may have a long path.
fn batch(
    offer: &mut std::iter::Peekable<impl Iterator<Item = (frame::Entry, Arc<OwnedFd>)>>,
) -> (Vec<frame::Entry>, Vec<Arc<OwnedFd>>) {
    const MOST: usize = MAX_DESCRIPTORS / 2;
    const ROOM: usize = MAX_FRAME / 2;
    let (mut entries, mut descriptors) = (Vec::new(), Vec::new());
    let mut size = 0;
    while let Some((entry, _)) = offer.peek() {
        size += entry.size();
        if !entries.is_empty() && (entries.len() == MOST || size > ROOM) {
            break;
        }
        let Some((entry, descriptor)) = offer.next() else { break };
        entries.push(entry);
        descriptors.push(descriptor);
    }
    (entries, descriptors)
}

/// A process that was killed ends at once, unless it hangs in the kernel.
fn await_death(child: &Child) {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let descriptor: BorrowedFd<'_> = child.pidfd.as_fd();
    let patience = Timespec { tv_sec: 1, tv_nsec: 0 };
    let _ = poll(&mut [PollFd::new(&descriptor, PollFlags::IN)], Some(&patience));
    child.reap();
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::descriptor::{Address, Kind};

    #[test]
    fn every_frame_of_an_offer_fits() {
        let some: Arc<OwnedFd> = Arc::new(std::io::pipe().unwrap().0.into());
        let path = |length| std::path::PathBuf::from("x".repeat(length));
        for long in [10, 107 + 4096] {
            let entry = |index| frame::Entry::Named {
                name: "n".repeat(64),
                index,
                kind: Kind::UnixListener,
                address: Address::Path(path(107)),
                activated: false,
                file: Some((1, 2, path(long))),
            };
            let offer = (0..1000).map(|index| (entry(index), Arc::clone(&some)));
            let mut offer = offer.peekable();
            let mut sent = 0;
            while offer.peek().is_some() {
                let (entries, descriptors) = batch(&mut offer);
                assert_eq!(entries.len(), descriptors.len());
                assert!((1..=MAX_DESCRIPTORS).contains(&entries.len()));
                sent += entries.len();
                assert!(Frame::Descriptors(entries).encode().len() <= MAX_FRAME);
            }
            assert_eq!(sent, 1000);
        }
    }

    /// The kernel names the real user of a sender.
    #[test]
    fn a_stranger_is_not_heard_and_only_one_process_speaks() {
        let hello = |pid| Frame::Hello { oldest: 1, newest: 1, pid };
        let by = |pid, uid| Some(Sender { pid, uid });
        let own = rustix::process::getuid().as_raw();
        let mut log = Log::offering(vec![7, 8]);
        let mut hear = |frame, sender| log.understand(Received::Frame(frame, sender));
        assert_eq!(hear(hello(5), None), Heard::Garbage);
        assert_eq!(hear(hello(5), by(5, own + 1)), Heard::Garbage);
        assert_eq!(hear(hello(5), by(6, own)), Heard::Garbage);
        assert_eq!(hear(Frame::Serving, by(5, own)), Heard::Garbage);
        assert_eq!(hear(hello(5), by(5, own)), Heard::Hello);
        assert_eq!(hear(hello(5), by(5, own)), Heard::Garbage);
        assert_eq!(hear(Frame::Serving, by(6, own)), Heard::Garbage);
        let ready = |claimed| Frame::Ready { claimed, unwanted: vec![], bound: vec![] };
        assert_eq!(hear(ready(vec![2]), by(5, own)), Heard::Garbage);
        assert_eq!(hear(ready(vec![1]), by(5, own)), Heard::Ready);
        assert_eq!(log.claims(), [8]);
    }
}
