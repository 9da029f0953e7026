//! The event loop behind a load: connections, their timers, and what becomes of each request.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use rustix::buffer::spare_capacity;
use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, getsockname, recv, send, sockopt};
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, timerfd_create, timerfd_settime,
};

use super::answer::{Answer, Expect, Verdict};
use super::report::{Answered, Class, Sample};
use super::target::{Dialled, Target};
use super::{Kind, Load, Phase, Shared};
use crate::Stamp;

/// Keys of the descriptors that are no connections.
const WAKE: u64 = u64::MAX;
const TIMER: u64 = u64::MAX - 1;

/// How many overdue requests are sent before answers are looked at again.
const BURST: usize = 64;
/// How long the server may take to close a connection that it said it would close.
const LINGER: Duration = Duration::from_secs(1);
/// How long a closed-loop client waits after a loss, so that it does not spin on a dead server.
const AFTER_LOSS: Duration = Duration::from_millis(20);
/// How long until a full queue of a Unix listener is tried again.
const QUEUE_RETRY: Duration = Duration::from_millis(1);
/// Into how many pieces an upload is cut.
const PIECES: u32 = 16;

pub(super) struct Engine {
    target: Target,
    patience: Duration,
    late_after: Duration,
    samples: usize,
    ends: Stamp,
    shared: Arc<Shared>,
    phase: Phase,
    groups: Vec<Plan>,
    schedules: Vec<Schedule>,
    clients: Vec<Client>,
    conns: Vec<Slot>,
    free: Vec<usize>,
    timers: BinaryHeap<Reverse<(Stamp, Timer)>>,
    in_flight: usize,
    last_fresh_ok: Stamp,
    random: u64,
    epoll: OwnedFd,
    timerfd: OwnedFd,
    buffer: Box<[u8]>,
    zeros: Box<[u8]>,
}

/// What a group sends.
struct Plan {
    kind: Kind,
    head: Box<[u8]>,
    body: usize,
    expect: Expect,
    /// How long a request is meant to take.
    takes: Duration,
    /// Over what time the body is sent.
    over: Duration,
}

/// The due times of a group of fresh requests.
struct Schedule {
    group: usize,
    interval: Duration,
    next: Stamp,
}

/// A closed loop.
struct Client {
    group: usize,
    conn: Option<Key>,
}

/// A connection's place, and how often it has been used: an event or a timer of
/// a connection that is gone must not reach its heir.
#[derive(Copy, Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    index: u32,
    serial: u32,
}

struct Slot {
    serial: u32,
    conn: Option<Conn>,
}

#[derive(Copy, Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Timer {
    Conn(Key),
    Client(usize),
}

struct Conn {
    key: Key,
    socket: OwnedFd,
    group: usize,
    client: Option<usize>,
    stage: Stage,
    answer: Answer,
    /// Answers that this connection has brought.
    served: u32,
    /// Who gave the last of them.
    pid: Option<u32>,
    /// The one timer that counts; others in the heap are leftovers.
    armed: Stamp,
}

enum Stage {
    /// Not connected yet. `registered` is false while a Unix queue is full.
    Connecting {
        due: Stamp,
        deadline: Stamp,
        registered: bool,
    },
    /// Connected, and nothing is sent before this moment.
    Holding {
        until: Stamp,
    },
    Exchange(Exchange),
    /// Between two requests.
    Idle,
    /// Answered; the server is to close.
    Lingering,
}

struct Exchange {
    due: Stamp,
    deadline: Stamp,
    head_sent: usize,
    body_sent: usize,
    /// How much of the body may be sent by now.
    body_due: usize,
    next_piece: Option<Stamp>,
    /// Sending failed. What the server had said before may still be there to read.
    broken: Option<Errno>,
}

/// What becomes of a connection after a step.
#[derive(PartialEq, Eq)]
enum Fate {
    Keep,
    Close,
}

impl Engine {
    pub(super) fn new(load: Load, shared: Arc<Shared>, now: Stamp) -> std::io::Result<Self> {
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        // A timer descriptor and not epoll's own timeout: that one counts in
        // milliseconds, and at 1,500 requests a second they are due every 0.67.
        let timerfd = timerfd_create(
            TimerfdClockId::Monotonic,
            TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK,
        )?;
        // Edge-triggered: neither has to be read to be quiet again.
        let edge = EventFlags::IN | EventFlags::ET;
        epoll::add(&epoll, &timerfd, EventData::new_u64(TIMER), edge)?;
        epoll::add(&epoll, &shared.wake, EventData::new_u64(WAKE), edge)?;

        let mut engine = Self {
            target: load.target,
            patience: load.patience,
            late_after: load.late_after,
            samples: load.samples,
            ends: now + load.at_most,
            shared,
            phase: Phase::Sending,
            groups: Vec::new(),
            schedules: Vec::new(),
            clients: Vec::new(),
            conns: Vec::new(),
            free: Vec::new(),
            timers: BinaryHeap::new(),
            in_flight: 0,
            last_fresh_ok: now,
            // Any odd number will do; the moment makes two runs differ.
            random: now.as_nanos() | 1,
            epoll,
            timerfd,
            buffer: vec![0; 16 * 1024].into(),
            zeros: vec![0; 64 * 1024].into(),
        };
        for (group, (_, kind)) in load.groups.into_iter().enumerate() {
            match &kind {
                Kind::Fresh { rate } if *rate > 0.0 => engine.schedules.push(Schedule {
                    group,
                    interval: Duration::from_secs_f64(1.0 / rate),
                    next: now,
                }),
                Kind::Fresh { .. } => {}
                Kind::Kept { clients, .. }
                | Kind::Slow { clients, .. }
                | Kind::Upload { clients, .. }
                | Kind::Ping { clients, .. } => {
                    for _ in 0..*clients {
                        engine.timers.push(Reverse((now, Timer::Client(engine.clients.len()))));
                        engine.clients.push(Client { group, conn: None });
                    }
                }
            }
            engine.groups.push(Plan::new(kind, load.any_answer));
        }
        Ok(engine)
    }

    pub(super) fn run(mut self) {
        let mut events = Vec::with_capacity(256);
        loop {
            self.follow_phase();
            let more_is_due = self.send_due();
            self.fire_timers();
            // After the timers: one of them may have ended the last request, and
            // then nothing would come to wait for.
            if self.phase == Phase::Aborting
                || (self.phase == Phase::Stopping && self.in_flight == 0)
            {
                break;
            }
            if !self.wait(&mut events, more_is_due) {
                break;
            }
            for event in events.drain(..) {
                let data = event.data.u64();
                if data < TIMER {
                    let key = Key { index: data as u32, serial: (data >> 32) as u32 };
                    self.step(key, |engine, conn| engine.on_event(conn, event.flags));
                }
            }
        }
        let mut state = self.shared.lock();
        state.phase = Phase::Over;
        state.report.taken = Stamp::now();
        state.report.in_flight = self.in_flight;
        drop(state);
        self.shared.changed.notify_all();
    }

    /// Learns that the load is to end, from its owner or from the clock.
    fn follow_phase(&mut self) {
        let mut state = self.shared.lock();
        if state.phase == Phase::Sending && Stamp::now() >= self.ends {
            state.phase = Phase::Stopping;
        }
        let before = std::mem::replace(&mut self.phase, state.phase);
        drop(state);
        if before == Phase::Sending && self.phase == Phase::Stopping {
            self.timers.retain(|Reverse((_, timer))| matches!(timer, Timer::Conn(_)));
            for slot in &mut self.conns {
                let idle = slot.conn.as_ref().is_some_and(|conn| {
                    matches!(conn.stage, Stage::Idle | Stage::Holding { .. } | Stage::Lingering)
                });
                if idle {
                    // Dropped, and its place not given to another: nothing new begins.
                    slot.conn = None;
                }
            }
        }
    }

    /// Sends the fresh requests that are due. Says whether there are more.
    fn send_due(&mut self) -> bool {
        if self.phase != Phase::Sending {
            return false;
        }
        for index in 0..self.schedules.len() {
            for _ in 0..BURST {
                let now = Stamp::now();
                let Schedule { group, interval, next: due } = self.schedules[index];
                if due > now {
                    break;
                }
                self.schedules[index].next = due + interval;
                self.shared.lock().report.generator_lag.record(now.since(due));
                self.connect(group, None, due);
            }
        }
        let now = Stamp::now();
        self.schedules.iter().any(|schedule| schedule.next <= now)
    }

    fn fire_timers(&mut self) {
        let now = Stamp::now();
        while let Some(&Reverse((at, timer))) = self.timers.peek() {
            if at > now {
                break;
            }
            self.timers.pop();
            match timer {
                Timer::Client(client) => self.next_request(client, at),
                Timer::Conn(key) => self.step(key, |engine, conn| {
                    if conn.armed == at { engine.on_timer(conn, now) } else { Fate::Keep }
                }),
            }
        }
    }

    /// Waits for something to happen. Says false if it cannot.
    fn wait(&mut self, events: &mut Vec<epoll::Event>, at_once: bool) -> bool {
        let no_time = Timespec { tv_sec: 0, tv_nsec: 0 };
        let mut next = self.timers.peek().map(|&Reverse((at, _))| at);
        if self.phase == Phase::Sending {
            let due = self.schedules.iter().map(|schedule| schedule.next);
            next = next.into_iter().chain(due).chain([self.ends]).min();
        }
        let timeout = match next {
            Some(next) if at_once || next <= Stamp::now() => Some(&no_time),
            Some(next) => {
                let when = Itimerspec { it_interval: no_time, it_value: next.timespec() };
                if timerfd_settime(&self.timerfd, TimerfdTimerFlags::ABSTIME, &when).is_err() {
                    return false;
                }
                None
            }
            None => None,
        };
        loop {
            match epoll::wait(&self.epoll, spare_capacity(events), timeout) {
                Ok(_) => return true,
                Err(Errno::INTR) => {}
                Err(_) => return false,
            }
        }
    }

    /// The moment of a closed-loop client's next request has come.
    fn next_request(&mut self, client: usize, due: Stamp) {
        if self.phase != Phase::Sending {
            return;
        }
        if let Some(key) = self.clients[client].conn {
            // The server may have closed while the client was idle, without this
            // loop having come to see it: a client that looks sees it, and this is
            // then no race.
            self.step(key, Self::read);
        }
        match self.clients[client].conn {
            Some(key) => self.step(key, |engine, conn| {
                engine.begin(conn, due);
                engine.flush(conn)
            }),
            None => self.connect(self.clients[client].group, Some(client), due),
        }
    }

    fn connect(&mut self, group: usize, client: Option<usize>, due: Stamp) {
        let now = Stamp::now();
        let deadline = due.max(now) + self.patience + self.groups[group].takes;
        self.in_flight += 1;
        let socket = match self.target.socket() {
            Ok(socket) => socket,
            Err(errno) => {
                let detail = errno.to_string();
                let phase = "opening a socket";
                self.lose(Sample::new(due, Class::Unsent, phase, detail), group, client);
                return;
            }
        };
        let index = self.free.pop().unwrap_or_else(|| {
            self.conns.push(Slot { serial: 0, conn: None });
            self.conns.len() - 1
        });
        let key = Key { index: index as u32, serial: self.conns[index].serial };
        self.conns[index].conn = Some(Conn {
            key,
            socket,
            group,
            client,
            stage: Stage::Connecting { due, deadline, registered: false },
            answer: Answer::default(),
            served: 0,
            pid: None,
            armed: Stamp::default(),
        });
        if let Some(client) = client {
            self.clients[client].conn = Some(key);
        }
        self.step(key, |engine, conn| engine.dial(conn, due, deadline));
    }

    /// Does something with a connection, and closes it if that is the outcome.
    fn step(&mut self, key: Key, action: impl FnOnce(&mut Self, &mut Conn) -> Fate) {
        let Some(slot) = self.conns.get_mut(key.index as usize) else {
            return;
        };
        if slot.serial != key.serial {
            return;
        }
        let Some(mut conn) = slot.conn.take() else {
            return;
        };
        let fate = action(self, &mut conn);
        let slot = &mut self.conns[key.index as usize];
        match fate {
            Fate::Keep => slot.conn = Some(conn),
            Fate::Close => {
                slot.serial = slot.serial.wrapping_add(1);
                self.free.push(key.index as usize);
                if let Some(client) = conn.client
                    && self.clients[client].conn == Some(key)
                {
                    self.clients[client].conn = None;
                }
            }
        }
    }

    fn dial(&mut self, conn: &mut Conn, due: Stamp, deadline: Stamp) -> Fate {
        let dialled = match self.target.dial(&conn.socket) {
            Ok(dialled) => dialled,
            Err(errno) => return self.connect_failed(conn, due, errno),
        };
        if let Dialled::QueueFull = dialled {
            self.arm(conn, deadline.min(Stamp::now() + QUEUE_RETRY));
            return Fate::Keep;
        }
        // Registered after connect: an unconnected socket reports a hang-up.
        let interest = EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP | EventFlags::ET;
        let data = u64::from(conn.key.serial) << 32 | u64::from(conn.key.index);
        if let Err(errno) =
            epoll::add(&self.epoll, &conn.socket, EventData::new_u64(data), interest)
        {
            return self.connect_failed(conn, due, errno);
        }
        conn.stage = Stage::Connecting { due, deadline, registered: true };
        match dialled {
            Dialled::Connected => self.connected(conn, due),
            Dialled::InProgress | Dialled::QueueFull => {
                self.arm(conn, deadline);
                Fate::Keep
            }
        }
    }

    fn connected(&mut self, conn: &mut Conn, due: Stamp) -> Fate {
        let first = match &self.groups[conn.group].kind {
            Kind::Kept { first, .. } if !first.is_empty() => Some(first.clone()),
            _ => None,
        };
        // What was counted as on its way is the request; `begin` counts it again.
        self.in_flight -= 1;
        if let Some(first) = first {
            let until = Stamp::now() + self.between(&first);
            if self.phase != Phase::Sending {
                return Fate::Close;
            }
            conn.stage = Stage::Holding { until };
            self.arm(conn, until);
            return Fate::Keep;
        }
        self.begin(conn, due);
        self.flush(conn)
    }

    /// Starts a request on a connection.
    fn begin(&mut self, conn: &mut Conn, due: Stamp) {
        let now = Stamp::now();
        let plan = &self.groups[conn.group];
        let paced = !plan.over.is_zero() && plan.body > 0;
        let exchange = Exchange {
            due,
            deadline: due.max(now) + self.patience + plan.takes,
            head_sent: 0,
            body_sent: 0,
            body_due: if paced { 0 } else { plan.body },
            next_piece: paced.then(|| now + plan.over / PIECES),
            broken: None,
        };
        self.in_flight += 1;
        let mut state = self.shared.lock();
        state.report.in_flight = self.in_flight;
        state.report.groups[conn.group].sent += 1;
        drop(state);
        self.arm(conn, exchange.wakes());
        conn.answer.clear();
        conn.stage = Stage::Exchange(exchange);
    }

    fn on_timer(&mut self, conn: &mut Conn, now: Stamp) -> Fate {
        match &mut conn.stage {
            Stage::Connecting { due, deadline, registered } => {
                let (due, deadline) = (*due, *deadline);
                if now >= deadline {
                    return self.fail(conn, due, Class::TimedOut, "connecting", "");
                }
                if *registered { Fate::Keep } else { self.dial(conn, due, deadline) }
            }
            Stage::Holding { until } => {
                let due = *until;
                let fate = self.read(conn);
                if fate == Fate::Close || self.phase != Phase::Sending {
                    return Fate::Close;
                }
                self.begin(conn, due);
                self.flush(conn)
            }
            Stage::Exchange(exchange) => {
                let due = exchange.due;
                if now >= exchange.deadline {
                    let phase = self.phase_of(conn);
                    return self.fail(conn, due, Class::TimedOut, phase, "");
                }
                if exchange.next_piece.is_some_and(|at| at <= now) {
                    let plan = &self.groups[conn.group];
                    let piece = plan.body.div_ceil(PIECES as usize);
                    exchange.body_due = plan.body.min(exchange.body_due + piece);
                    exchange.next_piece =
                        (exchange.body_due < plan.body).then(|| now + plan.over / PIECES);
                }
                let wakes = exchange.wakes();
                self.arm(conn, wakes);
                self.flush(conn)
            }
            Stage::Idle => Fate::Keep,
            Stage::Lingering => Fate::Close,
        }
    }

    fn on_event(&mut self, conn: &mut Conn, flags: EventFlags) -> Fate {
        if let Stage::Connecting { due, .. } = conn.stage {
            match sockopt::socket_error(&conn.socket) {
                Ok(Err(errno)) | Err(errno) => return self.connect_failed(conn, due, errno),
                Ok(Ok(())) if !flags.contains(EventFlags::OUT) => return Fate::Keep,
                Ok(Ok(())) => {
                    if self.connected(conn, due) == Fate::Close {
                        return Fate::Close;
                    }
                }
            }
        } else if flags.contains(EventFlags::OUT)
            && matches!(conn.stage, Stage::Exchange(_))
            && self.flush(conn) == Fate::Close
        {
            return Fate::Close;
        }
        let readable = EventFlags::IN | EventFlags::RDHUP | EventFlags::HUP | EventFlags::ERR;
        if flags.intersects(readable) { self.read(conn) } else { Fate::Keep }
    }

    /// Sends what may be sent by now.
    fn flush(&mut self, conn: &mut Conn) -> Fate {
        let Stage::Exchange(exchange) = &mut conn.stage else {
            return Fate::Keep;
        };
        let plan = &self.groups[conn.group];
        while exchange.broken.is_none() {
            let chunk = if exchange.head_sent < plan.head.len() {
                &plan.head[exchange.head_sent..]
            } else {
                let left = exchange.body_due - exchange.body_sent;
                &self.zeros[..left.min(self.zeros.len())]
            };
            if chunk.is_empty() {
                break;
            }
            match send(&conn.socket, chunk, SendFlags::NOSIGNAL | SendFlags::DONTWAIT) {
                Ok(sent) if exchange.head_sent < plan.head.len() => exchange.head_sent += sent,
                Ok(sent) => exchange.body_sent += sent,
                Err(Errno::AGAIN) => break,
                Err(Errno::INTR) => {}
                Err(errno) => {
                    exchange.broken = Some(errno);
                    return self.read(conn);
                }
            }
        }
        Fate::Keep
    }

    /// Reads what there is.
    fn read(&mut self, conn: &mut Conn) -> Fate {
        loop {
            let received = recv(&conn.socket, &mut *self.buffer, RecvFlags::DONTWAIT);
            let now = Stamp::now();
            match received.map(|(_, len)| len) {
                Err(Errno::AGAIN) => {
                    // The send has failed, and nothing more will come that explains it.
                    if let Stage::Exchange(Exchange { broken: Some(errno), due, .. }) = conn.stage {
                        return self.cut(conn, due, Err(errno));
                    }
                    return Fate::Keep;
                }
                Err(Errno::INTR) => {}
                Ok(0) => return self.ended(conn, Ok(())),
                Err(errno) => return self.ended(conn, Err(errno)),
                Ok(len) => {
                    if let Some(fate) = self.received(conn, len, now) {
                        return fate;
                    }
                }
            }
        }
    }

    /// Bytes have come, into the buffer. None: go on reading.
    fn received(&mut self, conn: &mut Conn, len: usize, now: Stamp) -> Option<Fate> {
        let due = match &conn.stage {
            Stage::Exchange(exchange) => exchange.due,
            // Something that nobody asked for. It is no answer to a request on its
            // way, so none ends with it.
            Stage::Connecting { .. } | Stage::Holding { .. } | Stage::Idle | Stage::Lingering => {
                self.abandon(conn);
                let text = format!("unasked: \"{}\"", self.buffer[..len.min(80)].escape_ascii());
                return Some(self.fail(conn, now, Class::Wrong, "idle", &text));
            }
        };
        let expect = &self.groups[conn.group].expect;
        match conn.answer.feed(&self.buffer[..len], expect) {
            Verdict::Partial => None,
            Verdict::Wrong(reason) => Some(self.fail(conn, due, Class::Wrong, "reading", &reason)),
            Verdict::Complete { pid, close } => {
                let fate = self.succeed(conn, due, now, pid, close);
                (fate == Fate::Close).then_some(fate)
            }
        }
    }

    /// The connection is over, in order or by an error.
    fn ended(&mut self, conn: &mut Conn, how: Result<(), Errno>) -> Fate {
        match &conn.stage {
            Stage::Connecting { due, .. } => {
                let due = *due;
                self.connect_failed(conn, due, how.err().unwrap_or(Errno::CONNRESET))
            }
            Stage::Exchange(exchange) => {
                let due = exchange.due;
                if how.is_ok() {
                    let expect = &self.groups[conn.group].expect;
                    match conn.answer.end(expect) {
                        Verdict::Complete { pid, .. } => {
                            self.succeed(conn, due, Stamp::now(), pid, true);
                            return Fate::Close;
                        }
                        Verdict::Wrong(reason) => {
                            return self.fail(conn, due, Class::Wrong, "reading", &reason);
                        }
                        Verdict::Partial => {}
                    }
                }
                self.cut(conn, due, how)
            }
            Stage::Idle | Stage::Holding { .. } => {
                if let Kind::Ping { .. } = self.groups[conn.group].kind {
                    self.abandon(conn);
                    let (class, detail) = match how {
                        Ok(()) => (Class::Closed, String::new()),
                        Err(errno) => (Class::Reset, errno.to_string()),
                    };
                    return self.fail(conn, Stamp::now(), class, "idle", &detail);
                }
                let group = &mut self.shared.lock().report.groups[conn.group];
                match how {
                    Ok(()) => group.idle_closes += 1,
                    Err(_) => group.idle_resets += 1,
                }
                if let (Stage::Holding { .. }, Some(client)) = (&conn.stage, conn.client) {
                    self.timers.push(Reverse((Stamp::now(), Timer::Client(client))));
                }
                Fate::Close
            }
            Stage::Lingering => Fate::Close,
        }
    }

    /// A request lost its connection before the whole answer.
    fn cut(&mut self, conn: &mut Conn, due: Stamp, how: Result<(), Errno>) -> Fate {
        let before_answer = conn.answer.is_empty();
        let kept = matches!(self.groups[conn.group].kind, Kind::Kept { .. });
        let class = match how {
            _ if kept && conn.served > 0 && before_answer => Class::Race,
            Ok(()) if before_answer => Class::Closed,
            Ok(()) => Class::Truncated,
            Err(Errno::TIMEDOUT) => Class::TimedOut,
            Err(_) => Class::Reset,
        };
        let detail = how.err().map_or("closed".into(), |errno| errno.to_string());
        let phase = self.phase_of(conn);
        self.fail(conn, due, class, phase, &detail)
    }

    fn connect_failed(&mut self, conn: &mut Conn, due: Stamp, errno: Errno) -> Fate {
        let class = match errno {
            Errno::CONNRESET | Errno::PIPE => Class::Reset,
            Errno::TIMEDOUT => Class::TimedOut,
            Errno::ADDRNOTAVAIL | Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM => {
                Class::Unsent
            }
            _ => Class::Refused,
        };
        self.fail(conn, due, class, "connecting", &errno.to_string())
    }

    fn succeed(
        &mut self,
        conn: &mut Conn,
        due: Stamp,
        now: Stamp,
        pid: Option<u32>,
        close: bool,
    ) -> Fate {
        let plan = &self.groups[conn.group];
        let fresh = matches!(plan.kind, Kind::Fresh { .. });
        let took = now.since(due);
        let late = took > plan.takes + self.late_after;
        self.in_flight -= 1;
        conn.served += 1;
        conn.pid = pid;

        let mut state = self.shared.lock();
        let report = &mut state.report;
        report.in_flight = self.in_flight;
        let mut inside = false;
        for window in report.windows.iter_mut().rev().take_while(|w| w.end.is_none_or(|e| e >= due))
        {
            if window.touches(due, now) {
                inside = true;
                window.ok += 1;
                window.max = window.max.max(took);
            }
        }
        let group = &mut report.groups[conn.group];
        group.ok += 1;
        group.late += u64::from(late);
        if inside { &mut group.inside } else { &mut group.outside }.record(took);
        if fresh {
            let gap = now.since(self.last_fresh_ok);
            if gap > report.longest_gap.length {
                report.longest_gap = super::Gap { from: self.last_fresh_ok, length: gap };
            }
            self.last_fresh_ok = now;
        }
        if let Some(pid) = pid {
            note_pid(&mut report.pids, pid, now, fresh);
        }
        drop(state);
        self.shared.changed.notify_all();

        let kept = !close
            && match &plan.kind {
                Kind::Fresh { .. } | Kind::Slow { .. } | Kind::Upload { .. } => false,
                Kind::Kept { first, .. } => first.is_empty(),
                Kind::Ping { .. } => true,
            };
        let ours = matches!(&plan.kind, Kind::Kept { first, .. } if !first.is_empty()) && !close;
        let pause = match &plan.kind {
            Kind::Kept { think, .. } => self.between(&think.clone()),
            Kind::Ping { every, .. } => *every,
            _ => Duration::ZERO,
        };
        if let Some(client) = conn.client
            && self.phase == Phase::Sending
        {
            self.timers.push(Reverse((now + pause, Timer::Client(client))));
        }
        if self.phase != Phase::Sending || ours {
            return Fate::Close;
        }
        if kept {
            conn.stage = Stage::Idle;
            conn.armed = Stamp::default();
        } else {
            // The server closes first, since it was asked to or said so: the port
            // then rests on its side. The client goes on without this connection.
            self.detach(conn);
            conn.stage = Stage::Lingering;
            self.arm(conn, now + LINGER);
        }
        Fate::Keep
    }

    fn fail(
        &mut self,
        conn: &mut Conn,
        due: Stamp,
        class: Class,
        phase: &'static str,
        detail: &str,
    ) -> Fate {
        let detail = if detail.is_empty() { class.to_string() } else { detail.into() };
        let mut sample = Sample::new(due, class, phase, detail);
        sample.pid = conn.pid;
        sample.local = getsockname(&conn.socket).ok().and_then(|local| local.try_into().ok());
        self.lose(sample, conn.group, conn.client);
        Fate::Close
    }

    /// Counts a lost request, and lets its client go on.
    fn lose(&mut self, mut sample: Sample, group: usize, client: Option<usize>) {
        self.in_flight -= 1;
        let mut state = self.shared.lock();
        let report = &mut state.report;
        report.in_flight = self.in_flight;
        for window in report
            .windows
            .iter_mut()
            .rev()
            .take_while(|window| window.end.is_none_or(|end| end >= sample.due))
        {
            window.failed += u64::from(window.touches(sample.due, sample.at));
        }
        let counters = &mut report.groups[group];
        let lost = &mut counters.lost;
        *match sample.class {
            Class::Refused => &mut lost.refused,
            Class::Reset => &mut lost.reset,
            Class::Closed => &mut lost.closed,
            Class::Truncated => &mut lost.truncated,
            Class::Wrong => &mut lost.wrong,
            Class::TimedOut => &mut lost.timed_out,
            Class::Unsent => &mut lost.unsent,
            Class::Race => &mut counters.races,
        } += 1;
        sample.group.clone_from(&counters.name);
        if report.samples.iter().filter(|other| other.class == sample.class).count() < self.samples
        {
            report.samples.push(sample);
        }
        drop(state);
        self.shared.changed.notify_all();
        if let Some(client) = client
            && self.phase == Phase::Sending
        {
            let next = Stamp::now() + AFTER_LOSS;
            self.timers.push(Reverse((next, Timer::Client(client))));
        }
    }

    /// Counts a connection between two requests as one, because it is about to be lost.
    fn abandon(&mut self, conn: &mut Conn) {
        self.in_flight += 1;
        if let Stage::Idle = conn.stage {
            // Its client's next request is scheduled already; a loss would do so again.
            self.detach(conn);
        }
    }

    /// Takes the connection away from its client, which goes on with another.
    fn detach(&mut self, conn: &mut Conn) {
        if let Some(client) = conn.client.take()
            && self.clients[client].conn == Some(conn.key)
        {
            self.clients[client].conn = None;
        }
    }

    fn arm(&mut self, conn: &mut Conn, at: Stamp) {
        conn.armed = at;
        self.timers.push(Reverse((at, Timer::Conn(conn.key))));
    }

    fn phase_of(&self, conn: &Conn) -> &'static str {
        let plan = &self.groups[conn.group];
        match &conn.stage {
            Stage::Connecting { .. } => "connecting",
            Stage::Exchange(exchange)
                if exchange.head_sent < plan.head.len() || exchange.body_sent < plan.body =>
            {
                "sending"
            }
            Stage::Exchange(_) if conn.answer.is_empty() => "waiting",
            Stage::Exchange(_) => "reading",
            Stage::Holding { .. } | Stage::Idle | Stage::Lingering => "idle",
        }
    }

    /// A random duration out of a range (xorshift: any spread will do).
    fn between(&mut self, range: &Range<Duration>) -> Duration {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        let width = range.end.saturating_sub(range.start);
        range.start + width.mul_f64((self.random >> 11) as f64 / (1u64 << 53) as f64)
    }
}

impl Plan {
    fn new(kind: Kind, any_answer: bool) -> Self {
        let get = |path: &str, connection: &str| {
            format!("GET {path} HTTP/1.1\r\nHost: handover\r\n{connection}\r\n")
        };
        let post = |bytes: usize, connection: &str| {
            format!(
                "POST /upload HTTP/1.1\r\nHost: handover\r\nContent-Length: {bytes}\r\n{connection}\r\n"
            )
        };
        let close = "Connection: close\r\n";
        let none = Duration::ZERO;
        let (head, body, expect, takes, over) = match &kind {
            Kind::Fresh { .. } => (get("/", close), 0, Expect::Ok, none, none),
            Kind::Kept { body: None, .. } => (get("/", ""), 0, Expect::Ok, none, none),
            Kind::Kept { body: Some(bytes), .. } => {
                (post(*bytes, ""), *bytes, Expect::Got(*bytes), none, none)
            }
            Kind::Slow { takes, .. } => {
                let path = format!("/slow?ms={}", takes.as_millis());
                (get(&path, close), 0, Expect::Slow, *takes, none)
            }
            Kind::Upload { bytes, over, .. } => {
                (post(*bytes, close), *bytes, Expect::Got(*bytes), *over, *over)
            }
            Kind::Ping { .. } => ("PING\n".into(), 0, Expect::Pong, none, none),
        };
        let expect = if any_answer && expect != Expect::Pong { Expect::Any } else { expect };
        Self { kind, head: head.into_bytes().into(), body, expect, takes, over }
    }
}

impl Exchange {
    /// The next moment at which something is to be done.
    fn wakes(&self) -> Stamp {
        self.next_piece.map_or(self.deadline, |piece| piece.min(self.deadline))
    }
}

fn note_pid(pids: &mut Vec<Answered>, pid: u32, now: Stamp, fresh: bool) {
    // From the end: the newest process answers most.
    let index = pids.iter().rposition(|answered| answered.pid == pid).unwrap_or_else(|| {
        pids.push(Answered { pid, answers: 0, first: now, last: now, fresh: None });
        pids.len() - 1
    });
    let answered = &mut pids[index];
    answered.answers += 1;
    answered.last = now;
    if fresh {
        let first = answered.fresh.map_or(now, |(first, _)| first);
        answered.fresh = Some((first, now));
    }
}
