//! A case: one promise, and everything needed to put it to the test.

use std::fmt::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use std::{fs, io};

use crate::client::{Load, Observer, Report, Running};
use crate::clock::poll_until;
use crate::collector::Collector;
use crate::generation::{EVENTS, FOLDER};
use crate::hygiene::{self, Listed};
use crate::program::Program;
use crate::scenario::Scenario;
use crate::signal::{Exit, Process, Signal, exit_of};
use crate::timeline::{Event, Timeline};
use crate::{Doing, Failure};

/// One test of one promise.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    /// Like a test function's path: `serve::a_restart_under_load_loses_nothing`.
    pub name: &'static str,
    /// What is promised, in words.
    pub clause: &'static str,
    /// How long it may take. Beyond that it has failed, and all its processes are killed.
    pub deadline: Duration,
    /// What the machine must have for it.
    pub needs: &'static [Need],
    /// Puts the promise to the test.
    pub run: fn(&Context) -> Result<(), Failure>,
}

/// Something that not every machine has.
#[derive(Clone, Copy, Debug)]
pub struct Need {
    /// Its name, as the reason for which a case is skipped.
    pub what: &'static str,
    /// Whether this machine has it. Quick: it is asked whenever cases are listed.
    pub is_met: fn() -> bool,
}

/// What a running case has: a folder, a timeline, and hands on its processes.
///
/// When it is dropped, all processes of the case are killed and the folder is
/// removed (unless `HANDOVER_KEEP` is set, for a look at what is left).
pub struct Context {
    folder: PathBuf,
    timeline: Arc<Timeline>,
    /// None when the case is over.
    collector: Mutex<Option<Collector>>,
    program: Program,
    groups: Mutex<Vec<u32>>,
    loads: Mutex<Vec<Observer>>,
}

/// How long killed processes may take to be gone.
const BURIAL: Duration = Duration::from_secs(60);
/// How much of each log is shown when a case has failed.
const TAIL_LINES: usize = 40;

impl Need {
    /// A loopback that speaks IPv6.
    pub const IPV6: Self =
        Self { what: "IPv6", is_met: || std::net::TcpListener::bind("[::1]:0").is_ok() };
    /// The rights of the superuser.
    pub const ROOT: Self = Self { what: "root", is_met: || rustix::process::geteuid().is_root() };
}

impl Context {
    pub(crate) fn new() -> Result<Self, Failure> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        // Short: the path of a Unix socket has room for 107 bytes.
        let folder = std::env::temp_dir().join(format!("{FOLDER}{}-{number}", std::process::id()));
        match fs::remove_dir_all(&folder) {
            // Left over by a runner of the same number that was killed.
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error).doing("removing an old folder"),
        }
        fs::create_dir(&folder).doing("creating the case's folder")?;
        let timeline = Arc::new(Timeline::new());
        let collector = Collector::start(&folder.join(EVENTS), Arc::clone(&timeline))?;
        let program = Program::install(folder.join("subject"))?;
        let context = Self {
            folder,
            timeline,
            collector: Mutex::new(Some(collector)),
            program,
            groups: Mutex::default(),
            loads: Mutex::default(),
        };
        context.set_scenario(&Scenario::new())?;
        Ok(context)
    }

    /// The case's folder.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// What has happened so far.
    #[must_use]
    pub fn timeline(&self) -> &Timeline {
        &self.timeline
    }

    /// The subject's executable.
    #[must_use]
    pub fn program(&self) -> &Program {
        &self.program
    }

    /// Another executable of the same content in the case's folder: a second release.
    ///
    /// # Errors
    ///
    /// If the file system refuses.
    pub fn another_program(&self, name: &str) -> Result<Program, Failure> {
        Program::install(self.folder.join(name))
    }

    /// Sets what generations that start from now on are to be like.
    ///
    /// # Errors
    ///
    /// If the file system refuses.
    pub fn set_scenario(&self, scenario: &Scenario) -> Result<(), Failure> {
        scenario.save(&self.scenario_path())
    }

    /// Puts a load on the subject. What its clients see is part of a failure's account.
    ///
    /// # Errors
    ///
    /// If this process is out of descriptors or threads.
    pub fn start_load(&self, load: Load) -> Result<Running, Failure> {
        let running = load.start().doing("starting the load")?;
        lock(&self.loads).push(running.observer());
        Ok(running)
    }

    /// Notes something in the timeline.
    pub fn note(&self, what: &str) {
        self.timeline.note(None, what, &[]);
    }

    /// Waits for an event of that name, from any generation. One that has come already counts.
    ///
    /// # Errors
    ///
    /// If none comes `within` that time.
    pub fn wait_for(&self, name: &str, within: Duration) -> Result<Event, Failure> {
        self.timeline.wait_for(name, within, |event| event.is(name))
    }

    /// Waits for an event of that name from that process.
    ///
    /// # Errors
    ///
    /// If none comes `within` that time.
    pub fn wait_for_from(&self, pid: u32, name: &str, within: Duration) -> Result<Event, Failure> {
        let what = format!("{name} from process {pid}");
        self.timeline.wait_for(&what, within, |event| event.pid == Some(pid) && event.is(name))
    }

    /// Waits for an event of that name from a process that is none of `known`.
    ///
    /// # Errors
    ///
    /// If none comes `within` that time.
    pub fn wait_for_other(
        &self,
        known: &[u32],
        name: &str,
        within: Duration,
    ) -> Result<Event, Failure> {
        let what = format!("{name} from another process than {known:?}");
        self.timeline.wait_for(&what, within, |event| {
            event.is(name) && event.pid.is_some_and(|pid| !known.contains(&pid))
        })
    }

    /// Waits for the end of a process that is or was the runner's child or has
    /// entered the case. The status is known only of the runner's own children,
    /// first generations and those whose parent was gone by then.
    ///
    /// # Errors
    ///
    /// If it lives for longer than `within`.
    pub fn wait_exit(&self, pid: u32, within: Duration) -> Result<Option<Exit>, Failure> {
        let what = format!("the end of process {pid}");
        let event = self
            .timeline
            .wait_for(&what, within, |event| event.pid == Some(pid) && exit_of(event).is_some())?;
        Ok(exit_of(&event).flatten())
    }

    /// Sends a signal, and notes that in the timeline.
    ///
    /// # Errors
    ///
    /// If there is no such process.
    pub fn signal(&self, pid: u32, signal: Signal) -> Result<(), Failure> {
        self.timeline.note(Some(pid), "is sent", &[("signal", &format_args!("{signal:?}"))]);
        Process::open(pid)?.signal(signal)
    }

    /// Sends a command to a generation, see [`Generation::on_command`](crate::Generation::on_command).
    ///
    /// # Errors
    ///
    /// If that process is none, or is gone.
    pub fn command(&self, pid: u32, name: &str, fields: &[(&str, &str)]) -> Result<(), Failure> {
        self.timeline.note(Some(pid), "is told", &[("command", &name)]);
        match &*lock(&self.collector) {
            Some(collector) => collector.command(pid, name, fields),
            None => Err(Failure::new("the case is over")),
        }
    }

    /// All processes of the case that the kernel lists, zombies included.
    #[must_use]
    pub fn processes(&self) -> Vec<Listed> {
        hygiene::members(&self.scenario_path(), &lock(&self.groups))
    }

    /// Waits until exactly these processes of the case are left.
    ///
    /// # Errors
    ///
    /// If there are others after `within`, or one of these has gone.
    pub fn wait_only(&self, pids: &[u32], within: Duration) -> Result<(), Failure> {
        let mut wanted = pids.to_vec();
        wanted.sort_unstable();
        let mut left = Vec::new();
        let only = poll_until(within, "the other processes to go", || {
            left = self.processes();
            self.bury_strays(&left);
            let mut found: Vec<u32> = left.iter().map(|process| process.pid).collect();
            found.sort_unstable();
            (found == wanted).then_some(())
        });
        only.map_err(|failure| {
            let left: Vec<String> = left.iter().map(ToString::to_string).collect();
            Failure::new(format!("{failure}: wanted {wanted:?}, there are {left:?}"))
        })
    }

    /// Reaps helpers whose parents have gone: nobody watches those, and they are the runner's.
    fn bury_strays(&self, processes: &[Listed]) {
        let stray = |process: &&Listed| process.is_zombie() && process.parent == std::process::id();
        for process in processes.iter().filter(stray) {
            let events = self.timeline.events();
            let mut own = events.iter().filter(|event| event.pid == Some(process.pid)).peekable();
            // The collector takes the status of those that it watches, if it can.
            let watched = own.peek().is_some() && !own.any(|event| exit_of(event).is_some());
            if !watched && let Ok(process) = Process::open(process.pid) {
                // Whoever is not ours after all stays.
                let _ = process.reap();
            }
        }
    }

    /// What the subjects have written to their standard error.
    ///
    /// # Errors
    ///
    /// If none was started.
    pub fn stderr(&self) -> Result<String, Failure> {
        let bytes = fs::read(self.folder.join("stderr")).doing("reading the subject's stderr")?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// Fails unless no request was lost, and no kept connection was closed under one.
    ///
    /// # Errors
    ///
    /// With the report's first line; all of it is in the failure's account anyway.
    pub fn nothing_lost(&self, report: &Report) -> Result<(), Failure> {
        if report.lost() == 0 && report.races() == 0 {
            return Ok(());
        }
        let (lost, races) = (report.lost(), report.races());
        Err(Failure::new(format!("clients noticed: {lost} requests lost, {races} races")))
    }

    pub(crate) fn scenario_path(&self) -> PathBuf {
        self.folder.join("scenario")
    }

    pub(crate) fn started(&self, pid: u32, words: &[impl fmt::Debug]) -> Result<(), Failure> {
        lock(&self.groups).push(pid);
        self.timeline.note(Some(pid), "started", &[("command", &format_args!("{words:?}"))]);
        if let Some(collector) = &*lock(&self.collector) {
            collector.watch(Process::open(pid)?);
        }
        Ok(())
    }

    /// Ends the case: no process and no folder is left of it. Once is enough.
    pub(crate) fn end(&self) -> Result<(), Failure> {
        let Some(collector) = lock(&self.collector).take() else {
            return Ok(());
        };
        let killed = self.kill_all();
        // Before the folder goes: whoever has lost the collector removes it, too.
        drop(collector);
        if std::env::var_os("HANDOVER_KEEP").is_none() {
            fs::remove_dir_all(&self.folder).doing("removing the case's folder")?;
        }
        killed
    }

    /// Kills all processes of the case and waits until they are gone.
    fn kill_all(&self) -> Result<(), Failure> {
        poll_until(BURIAL, "the end of killed processes", || {
            let left = self.processes();
            for process in &left {
                let Ok(process) = Process::open(process.pid) else {
                    continue;
                };
                // Gone between being listed and being killed: so much the better.
                let _ = process.signal(Signal::KILL);
                // Another's child is left to its parent, which dies as well, and then
                // comes to us.
                let _ = process.reap();
            }
            left.is_empty().then_some(())
        })
    }

    /// Everything that may explain a failure.
    pub(crate) fn account(&self) -> String {
        let mut text = String::new();
        let mut clients = Vec::new();
        for load in lock(&self.loads).iter() {
            let report = load.snapshot();
            let _ = writeln!(text, "--- what the clients saw\n{report}");
            clients.extend(report.samples.iter().map(|sample| {
                (sample.at, format!(" clients  {}", sample.relative_to(self.timeline.began())))
            }));
        }
        let _ = writeln!(text, "--- timeline, in seconds\n{}", self.timeline.told_with(clients));
        for name in ["stdout", "stderr"] {
            let bytes = fs::read(self.folder.join(name)).unwrap_or_default();
            let log = String::from_utf8_lossy(&bytes);
            let lines: Vec<&str> = log.lines().collect();
            if !lines.is_empty() {
                let first = lines.len().saturating_sub(TAIL_LINES);
                let _ = writeln!(text, "--- the end of {name}\n{}", lines[first..].join("\n"));
            }
        }
        text
    }
}

impl Drop for Context {
    #[expect(clippy::print_stderr, reason = "a drop has nobody else to tell")]
    fn drop(&mut self) {
        if let Err(failure) = self.end() {
            eprintln!("{}: {failure}", self.folder.display());
        }
    }
}

impl fmt::Debug for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Context").field("folder", &self.folder).finish_non_exhaustive()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
