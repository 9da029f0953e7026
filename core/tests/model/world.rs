//! Several real machines with what the kernel puts between them: processes, links, one lock.
//!
//! What is abstract: time (any deadline may fire whenever it exists; one machine's fire in their
//! order), the listeners (one, claimed by everybody) and what the user's code does (it may take
//! any time). One step is one input of one process, or one action that others can notice, so that
//! a crash can fall between any two of them.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use handover_core::machine::{Action, Failure, GiveUp, Heard, Input, Machine, State, Timing, Told};

pub(crate) const SLOTS: usize = 4;
const NOBODY: u8 = u8::MAX;

/// What an exploration may spend.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Budget {
    /// Processes, the first one included.
    pub(crate) processes: u8,
    pub(crate) restarts: u8,
    pub(crate) crashes: u8,
    /// Drivers dropped in a process that lives on.
    pub(crate) drops: u8,
    /// Stops, or servers that end by themselves.
    pub(crate) stops: u8,
    pub(crate) quits: u8,
    pub(crate) spawn_failures: u8,
    pub(crate) vetoes: u8,
}

/// A mistake of the driver, or of the protocol, that the model must find.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Bug {
    None,
    EndOfFileBeforeFrames,
    CommitBeforeGate,
    OrphanWithoutLock,
    ReleaseAtFork,
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Rules {
    pub(crate) bug: Bug,
    /// Without it only the harm itself counts (two open gates), not the broken rule before it.
    pub(crate) strict: bool,
}

/// Frames under way in one direction, at most eight.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
struct Queue(u32);

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u32)]
enum Frame {
    Hello = 1,
    Ready,
    Serving,
    Stopping,
    Release,
    GaveUp,
    Offer,
    Commit,
    Abort,
    Released,
}

const FRAMES: [Frame; 10] = [
    Frame::Hello,
    Frame::Ready,
    Frame::Serving,
    Frame::Stopping,
    Frame::Release,
    Frame::GaveUp,
    Frame::Offer,
    Frame::Commit,
    Frame::Abort,
    Frame::Released,
];

impl Queue {
    fn push(&mut self, frame: Frame) {
        let used = (32 - self.0.leading_zeros()).div_ceil(4);
        assert!(used < 8, "the model's queue is too short");
        self.0 |= (frame as u32) << (4 * used);
    }

    fn front(self) -> Option<Frame> {
        (self.0 & 15).checked_sub(1).map(|at| FRAMES[at as usize])
    }

    fn pop(&mut self) {
        self.0 >>= 4;
    }

    fn is_empty(self) -> bool {
        self.0 == 0
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Stage {
    /// Not started yet.
    Absent,
    /// Started, without a whole OFFER.
    Starting {
        hello: bool,
    },
    /// Under its machine's rule.
    Ruled,
    /// `run` was dropped, the process lives on.
    Dropped,
    /// It gave up or exited; its death follows.
    Ending,
    /// Killed, and not dead after five seconds: it runs no more, but holds what it holds.
    Hanging,
    Dead,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Process {
    stage: Stage,
    machine: u32,
    gate: bool,
    /// It has the listeners open.
    holds: bool,
    killed: bool,
    begun: bool,
    vet: bool,
    seal: bool,
    /// The answer to a spawn that is under way.
    spawn: Option<bool>,
    attempts: u8,
    /// The successor that is not forgotten yet.
    child: u8,

    // The link to the parent, which belongs to the child's record.
    parent: u8,
    attempt: u8,
    up: Queue,
    down: Queue,
    child_end: bool,
    parent_end: bool,
    child_read_loss: bool,
    parent_read_loss: bool,
    child_saw_death: bool,
    parent_saw_death: bool,

    // What the invariants remember.
    opened: bool,
    commit_written: bool,
    commit_failed: bool,
    commit_read: bool,
    said_ready: bool,
    said_serving: bool,
    stop_under_way: bool,
    stopped: bool,
    /// An owner, or an heir that nobody and nothing has released from its duty.
    bound: bool,
    /// For [`Bug::CommitBeforeGate`].
    late: bool,
}

const ABSENT: Process = Process {
    stage: Stage::Absent,
    machine: 0,
    gate: false,
    holds: false,
    killed: false,
    begun: false,
    vet: false,
    seal: false,
    spawn: None,
    attempts: 0,
    child: NOBODY,
    parent: NOBODY,
    attempt: 0,
    up: Queue(0),
    down: Queue(0),
    child_end: false,
    parent_end: false,
    child_read_loss: false,
    parent_read_loss: false,
    child_saw_death: false,
    parent_saw_death: false,
    opened: false,
    commit_written: false,
    commit_failed: false,
    commit_read: false,
    said_ready: false,
    said_serving: false,
    stop_under_way: false,
    stopped: false,
    bound: false,
    late: false,
};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct World {
    processes: [Process; SLOTS],
    lock: u8,
    left: Budget,
    /// A driver was dropped: its process can neither serve nor be succeeded.
    dropped: bool,
}

/// One step of one process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Move {
    pub(crate) process: u8,
    pub(crate) what: What,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum What {
    Act,
    ActFail,
    Give(Input),
    Timeout,
    /// Before the whole OFFER: say HELLO, read what came, notice the loss, lose patience.
    Hello,
    ReadOffer,
    ReadAbort,
    Loss,
    Impatient,
    Crash,
    Drop,
    Die,
    /// [`Bug::CommitBeforeGate`] closes the gate.
    CloseLate,
}

impl Move {
    /// Neither crash nor wish, nor a matter of time: it happens sooner or later.
    pub(crate) fn is_certain(self) -> bool {
        match self.what {
            What::Timeout | What::Impatient | What::Give(Input::Idle) => false,
            _ => self.is_fair(),
        }
    }

    /// It happens sooner or later if time passes.
    pub(crate) fn is_fair(self) -> bool {
        match self.what {
            What::Crash | What::Drop | What::ActFail => false,
            What::Give(input) => {
                !matches!(input, Input::Stop | Input::Quit | Input::Restart | Input::ServerEnded)
            }
            _ => true,
        }
    }
}

/// The machines by number, and what each does, computed once: they are pure.
pub(crate) struct Machines {
    start: Instant,
    known: Vec<Known>,
    numbers: HashMap<Machine, u32>,
    given: HashMap<(u32, Option<Input>), u32>,
}

struct Known {
    machine: Machine,
    action: Option<(Action, u32)>,
    times_out: bool,
}

impl Machines {
    pub(crate) fn new() -> Self {
        Self {
            start: Instant::now(),
            known: Vec::new(),
            numbers: HashMap::new(),
            given: HashMap::new(),
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.known.len()
    }

    fn number(&mut self, machine: Machine) -> u32 {
        if let Some(number) = self.numbers.get(&machine) {
            return *number;
        }
        let mut rest = machine.clone();
        let action = rest.poll_action();
        let action = action.map(|action| (action, self.number(rest)));
        let number = u32::try_from(self.known.len()).unwrap();
        let times_out = machine.poll_timeout().is_some();
        self.known.push(Known { machine: machine.clone(), action, times_out });
        self.numbers.insert(machine, number);
        number
    }

    /// `None` is the timeout, at exactly the earliest deadline.
    fn give(&mut self, number: u32, input: Option<Input>) -> u32 {
        if let Some(next) = self.given.get(&(number, input)) {
            return *next;
        }
        let mut machine = self.known[number as usize].machine.clone();
        match input {
            Some(input) => machine.handle(input, self.start),
            None => machine.handle_timeout(machine.poll_timeout().unwrap()),
        }
        let next = self.number(machine);
        self.given.insert((number, input), next);
        next
    }

    fn get(&self, number: u32) -> &Known {
        &self.known[number as usize]
    }
}

/// Long enough after each other that one timeout is one deadline.
fn timing() -> Timing {
    let s = Duration::from_secs;
    Timing {
        hooks: s(1),
        commit: s(2),
        lame_duck: s(0),
        spawn: s(1),
        hello: s(1),
        ready: s(1),
        abort: s(1),
        confirm: s(1),
        probation: s(1),
        linger: s(1_000),
        drain: s(2_000),
        stop_linger: s(100),
        stop_drain: s(200),
    }
}

pub(crate) type Broken = String;

macro_rules! ensure {
    ($rules:expr, $what:expr, $why:literal) => {
        if $rules.strict && !$what {
            return Err($why.into());
        }
    };
}

impl World {
    pub(crate) fn new(budget: Budget, machines: &mut Machines) -> Self {
        assert!(usize::from(budget.processes) <= SLOTS);
        let mut processes = [ABSENT; SLOTS];
        let machine = machines.number(Machine::new(timing(), false));
        processes[0] = Process { stage: Stage::Ruled, machine, ..ABSENT };
        Self { processes, lock: NOBODY, left: budget, dropped: false }
    }

    fn at(&self, index: u8) -> Option<&Process> {
        self.processes.get(usize::from(index))
    }

    /// The successor whose end this machine's timeout gives up to wait for.
    fn hanging(&self, me: usize, machine: &Machine) -> Option<usize> {
        let child = self.processes[me].child;
        let waits = machine.state() == Some(State::Forking)
            || machine.state() == Some(State::Draining) && !machine.is_leaving();
        let killed = self.at(child).is_some_and(|child| child.killed);
        (waits && killed).then_some(usize::from(child))
    }

    fn absent(&self) -> Option<usize> {
        let limit = usize::from(self.left.processes);
        self.processes[..limit].iter().position(|process| process.stage == Stage::Absent)
    }

    /// Every step that can be taken.
    pub(crate) fn moves(&self, machines: &Machines, rules: Rules) -> Vec<Move> {
        let mut moves = Vec::with_capacity(16);
        for (index, process) in self.processes.iter().enumerate() {
            let mut can = |what| moves.push(Move { process: index as u8, what });
            match process.stage {
                Stage::Absent | Stage::Dead => continue,
                Stage::Starting { hello } => {
                    if !hello {
                        can(What::Hello);
                    }
                    can(What::Impatient);
                    match process.down.front() {
                        Some(Frame::Offer) => can(What::ReadOffer),
                        Some(_) => can(What::ReadAbort),
                        None if !process.parent_end => can(What::Loss),
                        None => {}
                    }
                }
                Stage::Ruled => self.inputs(index, machines, rules, &mut can),
                Stage::Dropped | Stage::Ending | Stage::Hanging => {}
            }
            if process.late {
                can(What::CloseLate);
            }
            if process.killed || process.stage == Stage::Ending {
                can(What::Die);
            }
            if self.left.crashes > 0 && !process.killed && process.stage != Stage::Ending {
                can(What::Crash);
            }
            if self.left.drops > 0 && process.stage == Stage::Ruled {
                can(What::Drop);
            }
        }
        moves
    }

    fn inputs(&self, index: usize, machines: &Machines, rules: Rules, can: &mut impl FnMut(What)) {
        let process = &self.processes[index];
        let known = machines.get(process.machine);
        if let Some((action, _)) = known.action {
            let spawn = matches!(action, Action::Spawn(_));
            // The restart was only asked for with a slot left.
            can(What::Act);
            if spawn && self.left.spawn_failures > 0 {
                can(What::ActFail);
            }
            return;
        }
        let machine = &known.machine;
        let state = machine.state();
        // What the ranks say about one wake-up that brings both.
        let frame = Input::Successor(0, Heard::Stopping).rank();
        let hasty = rules.bug == Bug::EndOfFileBeforeFrames
            || Input::SuccessorDied(0).rank() < frame
            || Input::PredecessorDied.rank() < Input::Predecessor(Told::Commit).rank();
        // Five seconds after its SIGKILL a process that still exists hangs in the kernel: it does
        // nothing more, and what it said before was read long ago.
        let hangs = self.hanging(index, machine).map(|child| &self.processes[child]);
        if known.times_out && hangs.is_none_or(|child| child.up.is_empty()) {
            can(What::Timeout);
        }
        let mut give = |input| can(What::Give(input));

        // From the successor.
        let attempt = machine.attempt();
        if let Some(spawned) = process.spawn {
            let attempt = u32::from(process.attempts);
            give(if spawned { Input::Spawned(attempt) } else { Input::SpawnFailed(attempt) });
        } else if let Some(child) = self.at(process.child) {
            let attempt = u32::from(child.attempt);
            if let Some(frame) = child.up.front() {
                give(Input::Successor(attempt, heard(frame)));
            }
            if child.up.is_empty() || hasty {
                if !child.child_end && !child.parent_read_loss {
                    give(Input::Successor(attempt, Heard::Lost));
                }
                if child.stage == Stage::Dead && !child.parent_saw_death {
                    give(Input::SuccessorDied(attempt));
                }
            }
        }

        // From the predecessor.
        if let Some(parent) = self.at(process.parent) {
            if let Some(frame) = process.down.front() {
                give(Input::Predecessor(told(frame)));
            }
            if process.down.is_empty() || hasty {
                if !process.parent_end && !process.child_read_loss {
                    give(Input::Predecessor(Told::Lost));
                }
                if parent.stage == Stage::Dead && !process.child_saw_death {
                    give(Input::PredecessorDied);
                }
            }
        }

        // From the program.
        if process.vet {
            give(Input::Vetted(attempt, Ok(())));
            if self.left.vetoes > 0 {
                give(Input::Vetted(attempt, Err(Failure::Vetoed)));
            }
        }
        if process.seal {
            give(Input::Sealed(attempt, Ok(())));
            if self.left.vetoes > 0 {
                give(Input::Sealed(attempt, Err(Failure::Vetoed)));
            }
        }
        if state.is_none() && !process.begun {
            give(Input::Begin);
        }
        if machine.is_leaving() {
            give(Input::Idle);
        }

        // From users.
        if self.left.stops > 0 {
            give(Input::Stop);
            if state == Some(State::Draining) && !machine.is_leaving() {
                give(Input::ServerEnded);
            }
        }
        if self.left.quits > 0 && (state == Some(State::Draining) || machine.is_stopping()) {
            give(Input::Quit);
        }
        if self.left.restarts > 0
            && state == Some(State::Serving)
            && !machine.is_stopping()
            && self.absent().is_some()
            && !self.processes.iter().any(|other| other.vet)
        {
            give(Input::Restart);
        }
    }

    /// The world after a step, or the invariant that it breaks.
    pub(crate) fn step(
        &self,
        Move { process: index, what }: Move,
        machines: &mut Machines,
        rules: Rules,
    ) -> Result<Self, Broken> {
        let mut world = *self;
        let me = usize::from(index);
        match what {
            What::Act => world.act(me, false, machines, rules)?,
            What::ActFail => {
                world.left.spawn_failures -= 1;
                world.act(me, true, machines, rules)?;
            }
            What::Give(input) => world.give(me, Some(input), machines, rules)?,
            What::Timeout => {
                let machine = &machines.get(self.processes[me].machine).machine;
                if let Some(child) = self.hanging(me, machine) {
                    let stage = &mut world.processes[child].stage;
                    if *stage != Stage::Dead {
                        *stage = Stage::Hanging;
                    }
                }
                world.give(me, None, machines, rules)?;
            }
            What::Hello => {
                world.processes[me].stage = Stage::Starting { hello: true };
                world.say_up(me, Frame::Hello);
            }
            What::ReadOffer => {
                let process = &mut world.processes[me];
                process.down.pop();
                process.stage = Stage::Ruled;
                process.machine = machines.number(Machine::new(timing(), true));
            }
            What::ReadAbort | What::Impatient => world.give_up(me),
            What::Loss => {
                let parent = world.processes[usize::from(world.processes[me].parent)];
                if parent.stage == Stage::Dead {
                    // It binds what it did not get. Nobody will offer, or die, any more.
                    let process = &mut world.processes[me];
                    process.stage = Stage::Ruled;
                    process.child_read_loss = true;
                    process.child_saw_death = true;
                    process.machine = machines.number(Machine::new(timing(), false));
                } else {
                    world.give_up(me);
                }
            }
            What::Crash => {
                world.left.crashes -= 1;
                world.die(me);
            }
            What::Die => world.die(me),
            What::CloseLate => {
                world.processes[me].gate = false;
                world.processes[me].late = false;
            }
            What::Drop => {
                world.left.drops -= 1;
                world.dropped = true;
                world.close(me);
                world.processes[me].stage = Stage::Dropped;
            }
        }
        world.judge(rules)?;
        Ok(world)
    }

    /// An input, and then every action that nobody else can notice.
    fn give(
        &mut self,
        me: usize,
        input: Option<Input>,
        machines: &mut Machines,
        rules: Rules,
    ) -> Result<(), Broken> {
        let child = usize::from(self.processes[me].child);
        match input {
            Some(Input::Successor(_, Heard::Lost)) => {
                self.processes[child].parent_read_loss = true;
                self.processes[child].up = Queue(0);
            }
            Some(Input::Successor(..)) => self.processes[child].up.pop(),
            Some(Input::SuccessorDied(_)) => {
                self.processes[child].parent_saw_death = true;
                // Also without an end of file (a helper may hold the other end).
                self.processes[child].up = Queue(0);
            }
            Some(Input::Predecessor(Told::Lost)) => {
                self.processes[me].child_read_loss = true;
                self.processes[me].down = Queue(0);
            }
            Some(Input::Predecessor(told)) => {
                self.processes[me].down.pop();
                self.processes[me].commit_read |= told == Told::Commit;
            }
            Some(Input::PredecessorDied) => {
                self.processes[me].child_saw_death = true;
                self.processes[me].down = Queue(0);
            }
            Some(Input::Spawned(_) | Input::SpawnFailed(_)) => self.processes[me].spawn = None,
            Some(Input::Vetted(_, verdict)) => {
                self.processes[me].vet = false;
                self.left.vetoes -= u8::from(verdict.is_err());
            }
            Some(Input::Sealed(_, verdict)) => {
                self.processes[me].seal = false;
                self.left.vetoes -= u8::from(verdict.is_err());
            }
            Some(Input::Begin) => self.processes[me].begun = true,
            Some(Input::Stop | Input::ServerEnded) => {
                self.left.stops -= 1;
                self.processes[me].stop_under_way = true;
            }
            Some(Input::Restart) => self.left.restarts -= 1,
            Some(Input::Quit) => {
                self.left.quits -= 1;
                self.processes[me].stop_under_way = true;
            }
            _ => {}
        }
        let before = self.processes[me].machine;
        self.processes[me].machine = machines.give(before, input);
        if input.is_none() && self.processes[me].machine == before {
            return Err("9: a deadline that passes without effect".into());
        }

        // Whoever leaves for no good reason stays bound.
        let leaves = machines.get(self.processes[me].machine).machine.is_leaving();
        if leaves && self.processes[me].bound {
            let released = match input {
                Some(Input::Successor(_, Heard::Release)) => {
                    let stopped = self.processes[child].stopped;
                    let served =
                        |other: &Process| usize::from(other.parent) == child && other.said_serving;
                    stopped
                        || self.processes[child].stop_under_way
                        || self.processes.iter().any(served)
                }
                None
                | Some(
                    Input::Successor(_, Heard::Stopping)
                    | Input::Stop
                    | Input::Quit
                    | Input::ServerEnded
                    | Input::Locked(false),
                ) => true,
                _ => self.processes[me].stopped,
            };
            self.processes[me].bound = !released;
        }
        self.settle(me, machines, rules)
    }

    /// Carries out what nobody else can notice.
    fn settle(&mut self, me: usize, machines: &mut Machines, rules: Rules) -> Result<(), Broken> {
        while let Some((action, rest)) = machines.get(self.processes[me].machine).action {
            match action {
                Action::Vet(attempt) => {
                    let process = &mut self.processes[me];
                    if process.child != NOBODY || process.spawn.is_some() {
                        ensure!(rules, false, "5: a restart before the last one is reaped");
                    }
                    process.vet = true;
                    process.attempts = attempt as u8;
                }
                Action::Seal(_) => self.processes[me].seal = true,
                Action::Report(..)
                | Action::Refuse(_)
                | Action::Closing
                | Action::Settled
                | Action::RolledBack(_)
                | Action::Over
                | Action::Cut
                | Action::Alone => {}
                _ => return Ok(()),
            }
            self.processes[me].machine = rest;
        }
        // Verdicts that came too late for anybody.
        let process = &mut self.processes[me];
        if machines.get(process.machine).machine.state() != Some(State::Forking) {
            process.vet = false;
            process.seal = false;
        }
        if process.stop_under_way {
            process.stop_under_way = false;
            process.stopped |= process.opened;
        }
        Ok(())
    }

    fn act(
        &mut self,
        me: usize,
        fails: bool,
        machines: &mut Machines,
        rules: Rules,
    ) -> Result<(), Broken> {
        let (action, rest) = machines.get(self.processes[me].machine).action.unwrap();
        self.processes[me].machine = rest;
        let index = me as u8;
        let child = usize::from(self.processes[me].child);
        let has_child = self.processes[me].child != NOBODY;
        match action {
            Action::Spawn(attempt) => {
                self.processes[me].spawn = Some(!fails);
                if !fails {
                    let slot = self.absent().expect("a slot");
                    self.processes[slot] = Process {
                        stage: Stage::Starting { hello: false },
                        parent: index,
                        attempt: attempt as u8,
                        child_end: true,
                        parent_end: true,
                        ..ABSENT
                    };
                    self.processes[me].child = slot as u8;
                }
                if rules.bug == Bug::ReleaseAtFork && self.processes[me].commit_read {
                    self.say_up(me, Frame::Release);
                }
            }
            Action::Offer(_) => _ = self.say_down(child, Frame::Offer),
            Action::Abort(_) => {
                if has_child {
                    self.say_down(child, Frame::Abort);
                }
            }
            Action::CloseGates(_) if rules.bug == Bug::CommitBeforeGate => {
                self.processes[me].late = true;
            }
            Action::CloseGates(_) => self.processes[me].gate = false,
            Action::Unlock => {
                ensure!(rules, !self.processes[me].gate, "2: unlocked with an open gate");
                ensure!(rules, self.lock == index, "2: unlocked what it does not own");
                if self.lock == index {
                    self.lock = NOBODY;
                }
            }
            Action::Commit(_) => {
                let process = &self.processes[me];
                ensure!(rules, !process.gate, "2: COMMIT with an open gate");
                ensure!(rules, self.lock != index, "2: COMMIT with the lock");
                ensure!(rules, !self.processes[child].commit_written, "8: COMMIT twice");
                let written = self.say_down(child, Frame::Commit);
                self.processes[child].commit_written |= written;
                self.processes[child].commit_failed |= !written;
                return self.give(me, Some(Input::Committed(written)), machines, rules);
            }
            Action::Lock => {
                let process = self.processes[me];
                if process.opened {
                    let gone = self.processes[child];
                    let gone = gone.stage == Stage::Dead || gone.killed || gone.commit_failed;
                    ensure!(rules, gone, "2: the lock is tried beside a living successor");
                } else if let Some(parent) = self.at(process.parent) {
                    let may = process.commit_read || parent.stage == Stage::Dead;
                    ensure!(rules, may, "2: the lock is tried without COMMIT or death");
                }
                let mut won = self.lock == NOBODY || self.lock == index;
                if won {
                    self.lock = index;
                }
                if rules.bug == Bug::OrphanWithoutLock && !process.opened {
                    won |= !process.commit_read;
                }
                return self.give(me, Some(Input::Locked(won)), machines, rules);
            }
            Action::OpenGates => {
                ensure!(rules, self.lock == index, "1: a gate is opened without the lock");
                let process = self.processes[me];
                if process.opened && has_child && self.processes[child].stopped {
                    return Err("7: called back by the end of one that stopped".into());
                }
                let process = &mut self.processes[me];
                process.gate = true;
                process.holds = true;
                process.opened = true;
                process.bound = true;
            }
            Action::Kill(_) => {
                if has_child {
                    self.processes[child].killed = true;
                }
            }
            Action::Forget(_) => {
                if has_child {
                    let dead = self.processes[child].stage == Stage::Dead;
                    ensure!(rules, dead, "5: forgotten alive");
                    self.close_parent_end(child);
                    self.processes[me].child = NOBODY;
                }
            }
            Action::SayReady => {
                ensure!(rules, !self.processes[me].said_ready, "8: READY twice");
                self.processes[me].said_ready = true;
                self.say_up(me, Frame::Ready);
            }
            Action::SayServing => {
                let process = &self.processes[me];
                ensure!(rules, !process.said_serving && process.commit_read, "8: SERVING");
                self.processes[me].said_serving = true;
                self.say_up(me, Frame::Serving);
            }
            Action::SayStopping => {
                self.processes[me].stopped |= self.say_up(me, Frame::Stopping);
            }
            Action::SayRelease => {
                let said = self.say_up(me, Frame::Release);
                let process = &mut self.processes[me];
                process.stopped |= said && process.stop_under_way;
            }
            Action::SayReleased(_) => _ = self.say_down(child, Frame::Released),
            Action::LetGo => {
                ensure!(rules, self.lock != index, "it lets go of what it owns");
                self.processes[me].holds = false;
            }
            Action::CloseListeners => {
                self.processes[me].gate = false;
                self.processes[me].holds = false;
            }
            Action::GiveUp(why) => {
                let process = &self.processes[me];
                ensure!(rules, !process.opened, "an owner gives up");
                // Once the death is known, only the lock may say no.
                let waited = matches!(why, GiveUp::LinkLost | GiveUp::Deadline);
                ensure!(rules, !(waited && process.child_saw_death), "3: an orphan gives up");
                self.give_up(me);
                return Ok(());
            }
            Action::Exit => {
                ensure!(rules, !self.processes[me].gate, "an exit with an open gate");
                self.end(me);
                return Ok(());
            }
            action => unreachable!("{action:?} is nobody else's business"),
        }
        self.settle(me, machines, rules)
    }

    /// The kernel's answer: whether the other end was there.
    fn say_up(&mut self, me: usize, frame: Frame) -> bool {
        let process = &mut self.processes[me];
        let open = process.parent_end && process.child_end;
        if open {
            process.up.push(frame);
        }
        open
    }

    fn say_down(&mut self, child: usize, frame: Frame) -> bool {
        let child = &mut self.processes[child];
        let open = child.child_end && child.parent_end;
        if open {
            child.down.push(frame);
        }
        open
    }

    fn give_up(&mut self, me: usize) {
        self.say_up(me, Frame::GaveUp);
        self.end(me);
    }

    /// Nothing but its death is left to happen; what it holds the kernel takes then.
    fn end(&mut self, me: usize) {
        let process = &mut self.processes[me];
        process.stage = Stage::Ending;
        process.stopped |= process.stop_under_way && process.opened;
        process.stop_under_way = false;
        process.machine = 0;
        process.bound = false;
        process.vet = false;
        process.seal = false;
    }

    fn die(&mut self, me: usize) {
        self.close(me);
        let process = &mut self.processes[me];
        *process = Process {
            stage: Stage::Dead,
            parent: process.parent,
            attempt: process.attempt,
            up: process.up,
            parent_end: process.parent_end,
            parent_read_loss: process.parent_read_loss,
            killed: process.killed,
            said_serving: process.said_serving,
            stopped: process.stopped,
            ..ABSENT
        };
    }

    /// What the kernel closes at a death, and a dropped driver by itself.
    fn close(&mut self, me: usize) {
        if self.lock == me as u8 {
            self.lock = NOBODY;
        }
        let process = &mut self.processes[me];
        process.machine = 0;
        process.gate = false;
        process.holds = false;
        process.vet = false;
        process.seal = false;
        process.spawn = None;
        process.bound = false;
        process.stop_under_way = false;
        process.late = false;
        process.child_end = false;
        process.down = Queue(0);
        let child = process.child;
        process.child = NOBODY;
        if child != NOBODY {
            self.close_parent_end(usize::from(child));
        }
    }

    fn close_parent_end(&mut self, child: usize) {
        let child = &mut self.processes[child];
        child.parent_end = false;
        child.up = Queue(0);
    }

    /// What must hold in every state.
    fn judge(&self, rules: Rules) -> Result<(), Broken> {
        let open = self.processes.iter().filter(|process| process.gate).count();
        if open > 1 {
            return Err("1: two gates are open".into());
        }
        if rules.strict {
            for (index, process) in self.processes.iter().enumerate() {
                if process.gate && self.lock != index as u8 {
                    return Err("1: an open gate without the lock".into());
                }
                if process.gate && !process.holds {
                    return Err("4: an open gate without the listener".into());
                }
            }
        }
        let bound = rules.strict && self.processes.iter().any(|process| process.bound);
        if bound && !self.dropped && !self.processes.iter().any(|process| process.holds) {
            return Err("4: nobody holds the listener any more".into());
        }
        Ok(())
    }

    /// What must hold where nothing more happens by itself, without and with the passing of time.
    pub(crate) fn judge_end(&self, moves: &[Move], machines: &Machines) -> Result<(), Broken> {
        let bound = self.processes.iter().any(|process| process.bound);
        if bound && !self.dropped && !moves.iter().any(|step| step.is_certain()) {
            let open = self.processes.iter().any(|process| process.gate);
            if !open {
                return Err("3: an heir lives and nobody accepts".into());
            }
        }
        if !moves.iter().any(|step| step.is_certain()) {
            for process in &self.processes {
                let waits = process.stage == Stage::Ruled
                    && machines.get(process.machine).machine.state().is_none();
                if waits && process.begun && process.child_saw_death {
                    return Err("3: an orphan waits for the dead".into());
                }
            }
        }
        if !moves.iter().any(|step| step.is_fair()) {
            for process in &self.processes {
                let ended = match process.stage {
                    Stage::Absent | Stage::Dead | Stage::Dropped => true,
                    Stage::Starting { .. } | Stage::Ending | Stage::Hanging => false,
                    Stage::Ruled => {
                        let machine = &machines.get(process.machine).machine;
                        machine.state() == Some(State::Serving) && process.gate
                    }
                };
                if !ended {
                    return Err("9: somebody waits for ever".into());
                }
            }
        }
        Ok(())
    }

    /// One line for a trace.
    pub(crate) fn describe(&self, step: Move, machines: &Machines) -> String {
        let process = &self.processes[usize::from(step.process)];
        let what = match step.what {
            What::Act | What::ActFail => {
                let action = machines.get(process.machine).action;
                let action = action.map(|(action, _)| format!("{action:?}"));
                let fails = if step.what == What::ActFail { " fails" } else { "" };
                format!("-> {}{fails}", action.unwrap_or_default())
            }
            What::Give(input) => format!("<- {input:?}"),
            what => format!("{what:?}"),
        };
        let open = self.processes.iter().enumerate().filter(|(_, process)| process.gate);
        let open: Vec<_> = open.map(|(index, _)| index).collect();
        let lock = if self.lock == NOBODY { "-".into() } else { self.lock.to_string() };
        format!("process {}: {what:<44} (before: open {open:?}, lock {lock})", step.process)
    }
}

fn heard(frame: Frame) -> Heard {
    match frame {
        Frame::Hello => Heard::Hello,
        Frame::Ready => Heard::Ready,
        Frame::Serving => Heard::Serving,
        Frame::Stopping => Heard::Stopping,
        Frame::Release => Heard::Release,
        Frame::GaveUp => Heard::GaveUp,
        _ => unreachable!(),
    }
}

fn told(frame: Frame) -> Told {
    match frame {
        Frame::Commit => Told::Commit,
        Frame::Abort => Told::Abort,
        Frame::Released => Told::Released,
        _ => unreachable!(),
    }
}
