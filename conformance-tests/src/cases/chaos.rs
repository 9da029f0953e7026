//! Everything at once, in an order that a seed gives.
//!
//! For `HANDOVER_CHAOS_SECONDS` (8 unless told otherwise) restarts, broken versions, deaths,
//! stand-stills, shortages and clients that come and go befall a server under load. The seed is
//! printed; `HANDOVER_CHAOS_SEED` gives the same order of events again, though not the same
//! moments: those are the machine's.
//!
//! # What the model allows
//!
//! - A connection is lost only if a killed process had accepted it. Which those are is not
//!   estimated: before a process is killed it is stopped, and the peers of its sockets are read.
//!   The same holds for one that its predecessor kills while it stands still.
//! - The service may be gone only where nobody was left to go on: the old one died before the new
//!   one had its whole offer, or the new one died when its probation was over; and while it is
//!   stopped on purpose, where clients may be refused and nothing else.
//! - Answers may be late while somebody stands still or is short of descriptors.
//!
//! After each event one living process serves, all others drain, none is a zombie, clients get
//! answers from that one, and whatever clients have lost by then is one of the above.

mod plan;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fmt::Write as _;
use std::io::{self, Read, Write as _};
use std::net::{SocketAddr, TcpListener};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, prlimit};

use self::plan::{Asking, Broken, Clients, Event, Place, Plan, Step, Whom};
use super::common::{SOON, at_rest, stop, unchanged, wait_in_flight};
use super::frozen::Frozen;
use crate::client::{Class, Load, Running, Sample, Target};
use crate::hygiene::{self, Belongings};
use crate::signal::{Signal, raw};
use crate::{Case, Context, Doing, Failure, Scenario, Stamp, ensure, poll_until, timeline};

const SECONDS: &str = "HANDOVER_CHAOS_SECONDS";
const SEED: &str = "HANDOVER_CHAOS_SEED";
/// How long after an outage its clients may notice it, on a machine that is busy. Those whose
/// connections have died are known by their addresses, and may be late.
const NOTICE: Duration = Duration::from_secs(3);
/// How much later than it was decided a step may be told.
const LATE: Duration = Duration::from_secs(1);
/// How much of the timeline a failure shows.
const SHOWN: Duration = Duration::from_secs(12);
/// How many losses are told in full: more than any run that is not hopeless has.
const SAMPLES: usize = 100_000;

pub(crate) fn case() -> Case {
    Case {
        name: "chaos::nothing_is_lost_but_what_a_dead_process_had_accepted",
        clause: "whatever befalls it, in whatever order, the service goes on, and clients lose \
                 only connections that a killed process had accepted",
        // The last events, a settled end, and whatever was slow on the way.
        deadline: Duration::from_secs(number(SECONDS).unwrap_or(8) * 11 / 10 + 300),
        needs: &[],
        run: chaos,
    }
}

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok()?.parse().ok()
}

#[expect(clippy::print_stderr, reason = "a seed that is only in memory reproduces nothing")]
fn chaos(case: &Context) -> Result<(), Failure> {
    let seconds = number(SECONDS).unwrap_or(8);
    let seed = number(SEED)
        .unwrap_or_else(|| Stamp::now().as_nanos() ^ u64::from(std::process::id()) << 32);
    let again = format!("{SEED}={seed} {SECONDS}={seconds}");
    eprintln!("chaos: {again}");
    let mut chaos = Chaos::begin(case, Duration::from_secs(seconds))?;
    let outcome = chaos.run(seed, Duration::from_secs(seconds));
    if let Err(failure) = outcome {
        case.timeline().tell_from(Stamp::from_nanos(
            Stamp::now().as_nanos().saturating_sub(SHOWN.as_nanos() as u64),
        ));
        return Err(Failure::new(format!(
            "{failure}\n--- again: {again}\n--- the order of events\n{}",
            chaos.history
        )));
    }
    eprintln!("chaos: {again}: {}", chaos.sum());
    Ok(())
}

struct Chaos<'a> {
    case: &'a Context,
    address: SocketAddr,
    plain: Scenario,
    good: PathBuf,
    serving: u32,
    before: Belongings,
    loads: Vec<Watched>,
    /// What each process has said of itself last.
    states: HashMap<u32, String>,
    /// How much of the timeline is in `states`.
    read: usize,
    excuses: Vec<Excuse>,
    requests: u64,
    history: String,
    counts: BTreeMap<&'static str, u64>,
}

/// A load, and how many of its losses are explained.
struct Watched {
    running: Running,
    explained: usize,
}

/// Why clients may lose something.
struct Excuse {
    from: Stamp,
    until: Stamp,
    what: Excused,
}

enum Excused {
    /// These are the other ends of the connections of a process that was killed.
    Peers(HashSet<SocketAddr>),
    /// Nobody serves.
    Outage,
    /// The service was stopped in order.
    Stopped,
}

/// What came of asking for a restart whose new process is to be met on its way.
enum Begun {
    New(u32),
    /// The outcome came first.
    Over,
}

impl<'a> Chaos<'a> {
    fn begin(case: &'a Context, time: Duration) -> Result<Self, Failure> {
        let address = free_address()?;
        let plain = Scenario::new()
            .with("quiet", true)
            .with("listen", format!("web tcp {address}\nctl unix chaos.sock"))
            .with("hooks", "after settle ok\nafter roll-back ok\nafter alone ok")
            .with("policy.spawn", 3_000)
            .with("policy.ready", 3_000)
            .with("policy.abort", 300)
            .with("policy.confirm", 3_000)
            .with("policy.probation", 400)
            .with("policy.linger", 7_000)
            .with("policy.drain", 20_000)
            .with("policy.stop_linger", 7_000)
            .with("policy.stop_drain", 20_000);
        let good = case.folder().join("good");
        std::fs::hard_link(case.program().path(), &good).doing("keeping a good version")?;
        let first = super::common::start(case, &plain)?;
        let serving = super::common::restart(case, first.pid)?.pid;
        wait_in_flight(case, serving, 0)?;
        let before = at_rest(case, serving)?;
        let load = Load::builder(Target::from(address))
            .fresh(100.0)
            .kept(3, Duration::ZERO..Duration::from_millis(60))
            .kept_post(1, Duration::ZERO..Duration::from_millis(60), 100)
            .slow(2, Duration::from_millis(300))
            .upload(1, 20_000, Duration::from_millis(250))
            .late_after(Duration::from_secs(1))
            .for_at_most(time * 2 + Duration::from_secs(60))
            .keep_samples(SAMPLES);
        let running = case.start_load(load)?;
        running.wait_for_answers(20, SOON)?;
        Ok(Self {
            case,
            address,
            plain,
            good,
            serving,
            before,
            loads: vec![Watched { running, explained: 0 }],
            states: HashMap::new(),
            read: 0,
            excuses: Vec::new(),
            requests: 0,
            history: String::new(),
            counts: BTreeMap::new(),
        })
    }

    fn run(&mut self, seed: u64, time: Duration) -> Result<(), Failure> {
        let mut plan = Plan::new(seed);
        let end = Stamp::now() + time;
        while Stamp::now() < end {
            let step = plan.step();
            self.write(&format!("{}", step.event));
            *self.counts.entry(step.event.kind()).or_default() += 1;
            self.perform(&step)?;
        }
        self.end()
    }

    /// A line of the account.
    fn write(&mut self, what: &str) {
        self.case.note(what);
        let at = Stamp::now().since(self.case.timeline().began()).as_secs_f64();
        // Writing to a string cannot fail.
        let _ = writeln!(self.history, "  +{at:9.6}  {what}");
    }

    fn result(&mut self, what: &str) {
        self.write(&format!("    {what}"));
    }

    fn perform(&mut self, step: &Step) -> Result<(), Failure> {
        match &step.event {
            Event::Restart(by) => self.restart(*by)?,
            Event::Broken { how, by } => self.broken(*how, *by)?,
            Event::Kill { whom, at } => self.kill(*whom, *at)?,
            Event::Freeze { whom, at, time } => self.freeze(*whom, *at, *time)?,
            Event::Shortage { spare, time, restart } => self.shortage(*spare, *time, *restart)?,
            Event::Clients(what) => self.clients(*what)?,
            Event::StopAndStart => self.stop_and_start()?,
        }
        self.quiet()?;
        if step.settle {
            self.case.wait_only(&[self.serving], SOON * 2)?;
        }
        std::thread::sleep(step.pause);
        Ok(())
    }

    /// Asks the serving process for restarts, and gives the calls' names.
    fn ask(&mut self, by: Asking) -> Result<Vec<String>, Failure> {
        let mut names = Vec::new();
        for turn in 0..by.signals.max(by.handles) {
            if turn < by.signals {
                self.case.signal(self.serving, Signal::HUP)?;
            }
            if turn < by.handles {
                self.requests += 1;
                let name = self.requests.to_string();
                self.case.command(self.serving, "restart", &[("id", &name)])?;
                names.push(name);
            }
        }
        Ok(names)
    }

    /// The verdict on a restart of the serving process: its outcome. Refusals of further requests
    /// are not it.
    fn verdict(&mut self, seen: usize) -> Result<timeline::Event, Failure> {
        let pid = self.serving;
        let verdict = self.case.timeline().wait_for_after(seen, "a verdict", SOON * 2, |event| {
            let further = matches!(event.get("failure"), Some("InProgress" | "Stopping"));
            event.pid == Some(pid) && event.is("restart") && !further
        });
        let verdict = verdict?;
        let ok = verdict.get("ok") == Some("true");
        let detail = if ok { verdict.get("pid") } else { verdict.get("error") };
        let detail = detail.unwrap_or_default().to_owned();
        self.result(&if ok { format!("replaced by {detail}") } else { detail });
        *self.counts.entry(if ok { "takeovers" } else { "refusals" }).or_default() += 1;
        Ok(verdict)
    }

    fn restart(&mut self, by: Asking) -> Result<(), Failure> {
        let seen = self.case.timeline().len();
        let names = self.ask(by)?;
        let verdict = self.verdict(seen)?;
        let replaced = verdict.get("failure").is_none();
        // The only reasons that a sound version on a slow machine may give.
        let slow = ["TooManyGenerations", "SpawnDeadline", "HelloDeadline", "ReadyDeadline"];
        let allowed = verdict.get("failure").is_none_or(|failure| slow.contains(&failure));
        ensure!(allowed, "no restart: {verdict}");
        for name in names {
            self.case.timeline().wait_for_after(seen, "an answer", SOON * 2, |event| {
                event.is("answer") && event.get("id") == Some(&name)
            })?;
        }
        if replaced {
            // Its first words may come after its predecessor's last ones.
            self.case
                .timeline()
                .wait_for_after(seen, "a new one", SOON, |event| event.is("entered"))?;
        }
        let born = self.born_since(seen);
        ensure!(born.len() <= 1, "one restart at a time: {by} started {born:?}");
        Ok(())
    }

    fn broken(&mut self, how: Broken, by: Asking) -> Result<(), Failure> {
        let (program, wrong) = (self.case.program(), "#!/bin/sh\n");
        let plain = self.plain.clone();
        match how {
            Broken::Missing => program.remove()?,
            Broken::NotExecutable => program.replace_with(b"", 0o644)?,
            Broken::Garbage => program.replace_with(&[0x7f; 999], 0o755)?,
            Broken::ExitsAtOnce => {
                program.replace_with(format!("{wrong}exit 3\n").as_bytes(), 0o755)?;
            }
            Broken::HangsBeforeHello => {
                program.replace_with(format!("{wrong}exec sleep 600\n").as_bytes(), 0o755)?;
            }
            Broken::SaysGarbage => self.scenario(plain.with("at.born", "garbage\npause 50"))?,
            Broken::Panics => self.scenario(plain.with("at.claimed", "panic on purpose"))?,
            Broken::GivesUp => self.scenario(plain.with("at.claimed", "give-up on purpose"))?,
            Broken::HangsBeforeReady => self.scenario(plain.with("at.claimed", "hang"))?,
        }
        let seen = self.case.timeline().len();
        self.ask(by)?;
        let verdict = self.verdict(seen)?;
        ensure!(verdict.get("failure").is_some(), "a version that is {how:?} took over");
        // A new name for the good file, moved over the wrong one. If that is the good one itself,
        // `rename` leaves both names as they are.
        let new = self.case.folder().join("good.new");
        std::fs::hard_link(&self.good, &new).doing("putting the good version back")?;
        std::fs::rename(&new, self.case.program().path()).doing("putting it back")?;
        let _ = std::fs::remove_file(&new);
        self.scenario(self.plain.clone())
    }

    fn scenario(&self, scenario: Scenario) -> Result<(), Failure> {
        self.case.set_scenario(&scenario)
    }

    /// Asks for a restart, and comes back when it has got to that place.
    fn begin_restart(&mut self, at: Place) -> Result<Begun, Failure> {
        let (seen, old) = (self.case.timeline().len(), self.serving);
        if let Some(hold) = at.hold() {
            self.scenario(self.plain.clone().with(&format!("at.{hold}"), "wait cue"))?;
        }
        self.case.signal(old, Signal::HUP)?;
        if let Place::Asked(after) = at {
            std::thread::sleep(after);
            return Ok(Begun::Over);
        }
        let wanted = if at.hold().is_some() { "waits" } else { "serving" };
        let what = format!("{wanted} of a new one");
        let event = self.case.timeline().wait_for_after(seen, &what, SOON * 2, |event| {
            let new = event.pid != Some(old) && event.is(wanted);
            new || (event.pid == Some(old)
                && event.is("restart")
                && event.get("ok") != Some("true"))
        });
        self.scenario(self.plain.clone())?;
        let event = event?;
        if event.is("restart") {
            self.result(event.get("error").unwrap_or_default());
            return Ok(Begun::Over);
        }
        let new = super::common::pid_of(&event)?;
        match at {
            Place::Switch(after) => {
                self.cue(new);
                std::thread::sleep(after);
            }
            Place::Serving(after) => std::thread::sleep(after),
            _ => {}
        }
        Ok(Begun::New(new))
    }

    /// Lets the new one go on, if it waits and lives.
    fn cue(&self, new: u32) {
        let _ = self.case.command(new, "go", &[("at", "cue")]);
    }

    fn kill(&mut self, whom: Whom, at: Place) -> Result<(), Failure> {
        let (seen, old) = (self.case.timeline().len(), self.serving);
        let begun = self.begin_restart(at)?;
        let new = match begun {
            Begun::New(new) => Some(new),
            Begun::Over => None,
        };
        let victim = match whom {
            Whom::Old => Some(old),
            Whom::New => new,
        };
        let Some(victim) = victim else {
            return Ok(());
        };
        let Some(mut frozen) = Frozen::of(self.case, victim)? else {
            self.result("it had gone");
            let now = Stamp::now();
            return self.allow_what_follows(seen, (now, now), whom, old, new);
        };
        let from = Stamp::now();
        let peers = frozen.peers()?;
        let accepted = peers.len();
        self.excuse(from, from + SOON, Excused::Peers(peers));
        frozen.kill()?;
        // The kernel may take its time over it: until then the dead one lived.
        let death = Stamp::now();
        self.result(&format!("process {victim} killed, with {accepted} connections"));
        *self.counts.entry("killed").or_default() += 1;
        if let (Whom::Old, Some(new)) = (whom, new) {
            self.cue(new);
        }
        self.allow_what_follows(seen, (from, death), whom, old, new)
    }

    /// Whether the death between these moments may have left nobody to serve.
    fn allow_what_follows(
        &mut self,
        seen: usize,
        (from, death): (Stamp, Stamp),
        whom: Whom,
        old: u32,
        new: Option<u32>,
    ) -> Result<(), Failure> {
        let lives = |pid: u32| hygiene::listed(pid).is_some_and(|process| !process.is_zombie());
        // Either all of them have gone, or somebody has settled down.
        let mut complete = false;
        let mut settled = false;
        poll_until(SOON, "somebody to serve, or all to go", || {
            let _ = self.case.timeline().wait_for_after(seen, "", Duration::ZERO, |event| {
                let whose = event.pid.unwrap_or(0);
                // It had the whole offer: whoever dies now, it can serve.
                complete |= event.is("started")
                    && whose != old
                    && event.get("inherited").is_some_and(|names| names.contains("web"));
                settled |= whose == old
                    && event.get("event") == Some("settle")
                    && event.at <= death + LATE;
                false
            });
            let processes = self.case.processes();
            self.read_states();
            let mut serves =
                processes.iter().filter(|process| !process.is_zombie()).filter(|one| {
                    matches!(self.states.get(&one.pid).map(String::as_str), Some("Serving"))
                });
            let undecided = whom == Whom::New && lives(old) && new.is_some_and(lives);
            (!undecided && (processes.is_empty() || serves.next().is_some())).then_some(())
        })?;
        let outage = match whom {
            Whom::Old => !complete,
            Whom::New => settled,
        };
        if outage {
            self.allow_outage(from)?;
        }
        Ok(())
    }

    /// Nobody may have been left. Starts a first generation if that is so.
    fn allow_outage(&mut self, from: Stamp) -> Result<(), Failure> {
        *self.counts.entry("outages that had to be").or_default() += 1;
        if self.case.processes().is_empty() {
            self.result("nobody is left: started anew");
            self.start()?;
        }
        self.excuse(from, Stamp::now() + NOTICE, Excused::Outage);
        Ok(())
    }

    fn start(&mut self) -> Result<(), Failure> {
        let seen = self.case.timeline().len();
        let pid = self.case.subject().start()?.pid();
        self.case.timeline().wait_for_after(seen, "a first generation", SOON, |event| {
            event.pid == Some(pid) && event.is("serving")
        })?;
        self.serving = pid;
        Ok(())
    }

    fn freeze(&mut self, whom: Whom, at: Place, time: Duration) -> Result<(), Failure> {
        let (seen, old) = (self.case.timeline().len(), self.serving);
        let begun = match at {
            Place::Steady => Begun::Over,
            _ => self.begin_restart(at)?,
        };
        let new = match begun {
            Begun::New(new) => Some(new),
            Begun::Over => None,
        };
        let victim = match whom {
            Whom::Old => Some(old),
            Whom::New => new,
        };
        if let Some(victim) = victim
            && let Some(mut frozen) = Frozen::of(self.case, victim)?
        {
            let from = Stamp::now();
            let peers = frozen.peers()?;
            if whom == Whom::Old
                && let Some(new) = new
            {
                self.cue(new);
            }
            // It may be killed by its predecessor, which then knows why.
            let _ = frozen.process.wait_gone(time);
            if frozen.process.is_gone() {
                self.result(&format!(
                    "process {victim} was killed, with {} connections",
                    peers.len()
                ));
                self.excuse(from, Stamp::now() + SOON, Excused::Peers(peers));
            }
            frozen.thaw();
        }
        if let Some(new) = new {
            self.cue(new);
        }
        if matches!(at, Place::Steady) {
            return Ok(());
        }
        self.verdict(seen).map(drop)
    }

    fn shortage(&mut self, spare: u64, time: Duration, restart: bool) -> Result<(), Failure> {
        let (seen, old) = (self.case.timeline().len(), self.serving);
        let used = hygiene::descriptors(old)?.last().map_or(0, |last| last.number);
        let usual = getrlimit(Resource::Nofile);
        let limit = |pid: u32, current| -> Result<(), Failure> {
            let limit = Rlimit { current, maximum: usual.maximum };
            prlimit(Some(raw(pid)?), Resource::Nofile, limit)?;
            Ok(())
        };
        limit(old, Some(u64::from(used.unsigned_abs()) + 1 + spare))?;
        if restart {
            self.case.signal(old, Signal::HUP)?;
        }
        std::thread::sleep(time);
        // The old one first: whom it starts from now on inherits the usual limit. Twice, since a
        // process may be missed that is just being born.
        let _ = limit(old, usual.current);
        for _ in 0..2 {
            for process in self.case.processes() {
                let _ = limit(process.pid, usual.current);
            }
        }
        if restart {
            self.verdict(seen)?;
        }
        Ok(())
    }

    fn clients(&mut self, what: Clients) -> Result<(), Failure> {
        match what {
            Clients::Start if self.loads.len() == 1 => {
                let load = Load::builder(Target::from(self.address))
                    .fresh(80.0)
                    .kept(4, Duration::ZERO..Duration::from_millis(30))
                    .kept_late(2, Duration::from_millis(20)..Duration::from_millis(200))
                    .slow(1, Duration::from_millis(150))
                    .ping(0, Duration::from_millis(100))
                    .keep_samples(SAMPLES);
                let running = self.case.start_load(load)?;
                self.loads.push(Watched { running, explained: 0 });
            }
            Clients::Start => {}
            Clients::Stop | Clients::Vanish => {
                if self.loads.len() == 1 {
                    return Ok(());
                }
                self.explain()?;
                let Some(Watched { running, explained }) = self.loads.pop() else {
                    return Ok(());
                };
                if what == Clients::Stop {
                    self.explain_these(&running.stop().samples[explained..])?;
                }
            }
        }
        Ok(())
    }

    fn stop_and_start(&mut self) -> Result<(), Failure> {
        let from = Stamp::now();
        self.case.signal(self.serving, Signal::TERM)?;
        self.case.wait_only(&[], SOON * 2)?;
        self.no_socket_file()?;
        self.start()?;
        self.excuse(from, Stamp::now() + NOTICE, Excused::Stopped);
        Ok(())
    }

    fn excuse(&mut self, from: Stamp, until: Stamp, what: Excused) {
        // A loss after half a minute's patience is the oldest that can still come to light.
        let old = Duration::from_secs(90);
        self.excuses.retain(|excuse| excuse.until + old > from);
        self.excuses.push(Excuse { from, until, what });
    }

    /// Takes in what processes have said since the last time.
    fn read_states(&mut self) {
        let (states, mut count) = (&mut self.states, 0);
        let _ = self.case.timeline().wait_for_after(self.read, "", Duration::ZERO, |event| {
            count += 1;
            if let (true, Some(pid), Some(state)) =
                (event.is("state"), event.pid, event.get("state"))
            {
                states.insert(pid, state.to_owned());
            }
            false
        });
        self.read += count;
    }

    fn born_since(&self, seen: usize) -> BTreeSet<u32> {
        let mut born = BTreeSet::new();
        let _ = self.case.timeline().wait_for_after(seen, "", Duration::ZERO, |event| {
            if event.is("entered") {
                born.extend(event.pid);
            }
            false
        });
        born
    }

    /// Waits until one process serves and all others drain, and then looks what clients have seen.
    fn quiet(&mut self) -> Result<(), Failure> {
        let mut last = String::new();
        let serving = poll_until(SOON, "one process to serve, and all others to drain", || {
            let processes = self.case.processes();
            self.read_states();
            let state = |pid| self.states.get(&pid).map_or("unborn", String::as_str);
            last.clear();
            for process in &processes {
                let _ = write!(last, "{process}: {}; ", state(process.pid));
            }
            if processes.is_empty() {
                return Some(None);
            }
            let count =
                |wanted: &str| processes.iter().filter(|one| state(one.pid) == wanted).count();
            let draining = count("Draining") + count("Exited");
            let one = processes.iter().find(|one| state(one.pid) == "Serving")?.pid;
            let zombies = processes.iter().any(hygiene::Listed::is_zombie);
            (!zombies && count("Serving") == 1 && draining + 1 == processes.len())
                .then_some(Some(one))
        });
        let serving = serving.map_err(|failure| Failure::new(format!("{failure}: {last}")))?;
        self.serving = serving.ok_or_else(|| Failure::new("nobody serves any more"))?;
        self.answers()?;
        self.explain()
    }

    /// Waits until clients get answers from the process that serves, on both listeners.
    fn answers(&self) -> Result<(), Failure> {
        let (from, pid) = (Stamp::now(), self.serving);
        let answer = self.loads[0].running.wait_until(SOON, |report| {
            let fresh = report.answered(pid).and_then(|answered| answered.fresh);
            fresh.is_some_and(|(_, last)| last > from)
        });
        if answer.is_err() {
            return Err(Failure::new(format!("process {pid} serves, but answers nobody")));
        }
        let said = self.ask_at_the_unix_socket().doing("asking at the Unix socket")?;
        ensure!(
            said.ends_with(&format!("ok {pid}\n")),
            "not process {pid} answers at the Unix socket: {said}"
        );
        Ok(())
    }

    fn ask_at_the_unix_socket(&self) -> io::Result<String> {
        let mut stream = UnixStream::connect(self.case.folder().join("chaos.sock"))?;
        stream.set_read_timeout(Some(SOON))?;
        stream.write_all(b"GET / HTTP/1.1\r\nHost: chaos\r\nConnection: close\r\n\r\n")?;
        let mut said = String::new();
        stream.read_to_string(&mut said)?;
        Ok(said)
    }

    /// Fails if clients have lost what the model does not allow.
    fn explain(&mut self) -> Result<(), Failure> {
        let mut new = Vec::new();
        for load in &mut self.loads {
            let report = load.running.snapshot();
            new.extend_from_slice(&report.samples[load.explained..]);
            load.explained = report.samples.len();
        }
        self.explain_these(&new)
    }

    fn explain_these(&mut self, losses: &[Sample]) -> Result<(), Failure> {
        let began = self.case.timeline().began();
        let unexplained: Vec<String> = losses
            .iter()
            .filter(|loss| !self.excuses.iter().any(|excuse| excuse.covers(loss)))
            .map(|loss| loss.relative_to(began))
            .collect();
        *self.counts.entry("losses that the model allows").or_default() +=
            (losses.len() - unexplained.len()) as u64;
        ensure!(unexplained.is_empty(), "clients lost what they should not: {unexplained:#?}");
        Ok(())
    }

    fn no_socket_file(&self) -> Result<(), Failure> {
        let socket = self.case.folder().join("chaos.sock");
        ensure!(!socket.exists(), "{} is left", socket.display());
        Ok(())
    }

    /// Everything has calmed down, and what is left is what was there at the beginning.
    fn end(&mut self) -> Result<(), Failure> {
        self.write("the end");
        self.clients(Clients::Stop)?;
        self.quiet()?;
        let Some(Watched { running, explained }) = self.loads.pop() else {
            return Ok(());
        };
        let report = running.stop();
        self.explain_these(&report.samples[explained..])?;
        self.counts.insert("answers", report.ok());
        self.counts.insert("longest gap in ms", report.longest_gap.length.as_millis() as u64);
        let lost = usize::try_from(report.lost() + report.races())?;
        ensure!(lost == report.samples.len(), "{lost} losses, {} told", report.samples.len());
        self.case.wait_only(&[self.serving], SOON * 2)?;
        // Who is born while older ones drain has gaps where it held these. The next has none.
        let seen = self.case.timeline().len();
        self.case.signal(self.serving, Signal::HUP)?;
        let verdict = self.verdict(seen)?;
        self.serving = super::common::took_over(self.case, &verdict)?.pid;
        self.case.wait_only(&[self.serving], SOON)?;
        unchanged(&self.before, self.serving)?;
        stop(self.case, self.serving)?;
        self.no_socket_file()
    }

    fn sum(&self) -> String {
        let counts: Vec<String> =
            self.counts.iter().map(|(what, count)| format!("{count} {what}")).collect();
        counts.join(", ")
    }
}

impl Excuse {
    fn covers(&self, loss: &Sample) -> bool {
        if loss.at < self.from || loss.at > self.until {
            return false;
        }
        match &self.what {
            Excused::Peers(peers) => loss.local.is_some_and(|local| peers.contains(&local)),
            Excused::Outage => {
                !matches!(loss.class, Class::Wrong | Class::Unsent | Class::TimedOut)
            }
            Excused::Stopped => loss.class == Class::Refused,
        }
    }
}

/// A port that no client is given by the kernel while the service is gone for a moment.
fn free_address() -> Result<SocketAddr, Failure> {
    let first = 12_000 + std::process::id() % 9_000;
    for port in first..first + 1_000 {
        let address = SocketAddr::from(([127, 0, 0, 1], port as u16));
        if TcpListener::bind(address).is_ok() {
            return Ok(address);
        }
    }
    Err(Failure::new("no port is free"))
}
