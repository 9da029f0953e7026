//! Any server at all: the few promises that need only sockets and signals, put to the test of a
//! program that knows nothing of this suite.
//!
//! ```sh
//! cargo run --release -p handover-conformance --bin handover-smoke -- \
//!     --restart signal:HUP --address-env ADDR -- target/release/examples/axum
//! cargo run --release -p handover-conformance --bin handover-smoke -- \
//!     --restart signal:HUP --stop signal:QUIT --address 127.0.0.1:8080 -- \
//!     nginx -c "$PWD/nginx.conf"
//! ```
//!
//! # The program
//!
//! It stays in the foreground, listens on the one address, and answers `GET /` with 200 and a
//! `Content-Length`. If the body is `ok <pid>`, that is who has answered; if not, the processes
//! tell whether there is a new generation. `GET /slow?ms=N`, where there is one, is answered after
//! that time. In its arguments `{address}`, `{port}` and `{folder}` (of the case) are replaced.
//!
//! # Options
//!
//! | option | |
//! | --- | --- |
//! | `--restart signal:NAME` | restarts by a signal to the process that answers, or to the one that was started if others answer for it |
//! | `--restart-command CMD` | restarts by a shell command, with `PID` (the same process) and `ADDRESS` in its environment |
//! | `--stop signal:NAME` | stops in order; `TERM` unless told otherwise |
//! | `--address-env NAME` | the program is told its address, another for each case, in this variable |
//! | `--address IP:PORT` | the program has this address |
//! | `--patience SECONDS` | how long an old generation may take to go; 70 unless told otherwise |
//! | `--keep-program` | the program does not run from a copy, and no broken one is put in its place |
//!
//! All others are libtest's; `--report FILE` writes a JSON account. What does not fit the program
//! is found out by starting it once before the first case, and skipped with the reason.

use std::ffi::OsString;
use std::fs::{self, Permissions};
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::{OnceLock, PoisonError};
use std::time::Duration;

use crate::client::{Load, Report, Running};
use crate::hygiene::{self, Listed};
use crate::program::STARTING;
use crate::runner::Suite;
use crate::signal::{Process, Signal};
use crate::{Case, Context, Doing, Failure, ensure, poll_until};

/// For what happens at once, on a machine that may be busy.
const SOON: Duration = Duration::from_secs(10);
/// How often the cases under load restart.
const RESTARTS: usize = 3;
/// Beyond the patience for each generation that has to go.
const CASE: Duration = Duration::from_secs(120);

/// The program under test. The cases are functions without an environment.
static FOREIGN: OnceLock<Foreign> = OnceLock::new();

#[derive(Debug)]
struct Foreign {
    options: Options,
    found: Found,
}

#[derive(Clone, Debug)]
struct Options {
    restart: Restart,
    stop: Signal,
    address: Address,
    patience: Duration,
    keep_program: bool,
    command: Vec<OsString>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Restart {
    Signal(Signal),
    Command(String),
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Address {
    Variable(String),
    Fixed(SocketAddr),
}

/// What the program turned out to be like.
#[derive(Clone, Copy, Debug, Default)]
struct Found {
    /// Its answers name the process.
    tells_pid: bool,
    /// That process is the one that was started, and not a worker of it.
    answers_itself: bool,
    /// It knows `/slow`.
    has_slow: bool,
}

const ANSWERS: &str = "smoke::it_answers";
const UNDER_LOAD: &str = "smoke::a_restart_under_load_loses_nothing_and_another_process_answers";
const SLOW: &str = "smoke::a_slow_request_is_finished_by_the_process_that_began_it";
const KEPT: &str = "smoke::kept_connections_lose_nothing";
const MANY: &str = "smoke::ten_restarts_leave_as_many_processes_and_descriptors";
const BROKEN: &str = "smoke::a_broken_program_leaves_the_old_one_serving";
const STOPS: &str = "smoke::a_stop_leaves_no_process";
const STOPS_UNDER_LOAD: &str = "smoke::a_stop_under_load_finishes_what_is_in_flight";

fn cases(patience: Duration) -> [Case; 8] {
    let case = |name, clause, generations: u32, run| Case {
        name,
        clause,
        deadline: CASE + patience * generations,
        needs: &[],
        run,
    };
    [
        case(ANSWERS, "a start binds and answers", 1, it_answers),
        case(UNDER_LOAD, "no new connection is refused, reset or lost by a restart", 4, under_load),
        case(SLOW, "a request that has begun is finished by the old process", 2, slow),
        case(KEPT, "no kept connection is closed under a request that is on its way", 4, kept),
        case(MANY, "restarts leave neither processes nor descriptors", 4, many),
        case(BROKEN, "a new version that cannot start leaves the old one serving", 3, broken),
        case(STOPS, "a stop leaves no process, and nobody listens", 1, stops),
        case(
            STOPS_UNDER_LOAD,
            "a stop refuses new connections, and loses none that it has taken",
            1,
            stops_under_load,
        ),
    ]
}

/// The program `handover-smoke`.
#[expect(clippy::print_stderr, reason = "whoever has called it reads that")]
pub fn main() -> ExitCode {
    let (options, others) = match Options::parse(std::env::args_os()) {
        Ok(parsed) => parsed,
        Err(failure) => {
            eprintln!("handover-smoke: {failure}\nIts documentation tells the options.");
            return ExitCode::FAILURE;
        }
    };
    let mut suite = Suite::new("smoke", cases(options.patience));
    let mut found = Found::default();
    if !others.iter().any(|argument| argument == "--list") {
        found = match probe(&options) {
            Ok(found) => found,
            Err(failure) => {
                eprintln!("handover-smoke: trying the program: {failure}");
                return ExitCode::FAILURE;
            }
        };
        if !found.has_slow {
            suite = suite.skip(SLOW, "there is no /slow");
        }
        if options.keep_program {
            suite = suite.skip(BROKEN, "the program is not to be replaced");
        }
    }
    let _ = FOREIGN.set(Foreign { options, found });
    // One after another: they share the address, and the machine.
    let threads = others.iter().any(|argument| argument.starts_with("--test-threads"));
    let threads = if threads { None } else { Some("--test-threads=1".to_owned()) };
    suite.run_with(others.into_iter().chain(threads))
}

fn foreign() -> Result<&'static Foreign, Failure> {
    FOREIGN.get().ok_or_else(|| Failure::new("there is no program to test"))
}

impl Options {
    /// Ours, and those that are libtest's.
    fn parse(
        mut arguments: impl Iterator<Item = OsString>,
    ) -> Result<(Self, Vec<String>), Failure> {
        let (mut restart, mut stop, mut address) = (None, Signal::TERM, None);
        let (mut patience, mut keep_program) = (Duration::from_secs(70), false);
        let mut others = Vec::new();
        while let Some(argument) = arguments.next() {
            let argument = text(argument)?;
            if argument == "--" {
                break;
            }
            let (name, value) = match argument.split_once('=') {
                Some((name, value)) => (name.to_owned(), Some(value.to_owned())),
                None => (argument.clone(), None),
            };
            let mut value = || match value.clone() {
                Some(value) => Ok(value),
                None => {
                    let next = arguments.next();
                    text(next.ok_or_else(|| Failure::new(format!("{name} needs a value")))?)
                }
            };
            match name.as_str() {
                "--restart" => restart = Some(Restart::Signal(signal(&value()?)?)),
                "--restart-command" => restart = Some(Restart::Command(value()?)),
                "--stop" => stop = signal(&value()?)?,
                "--address-env" => address = Some(Address::Variable(value()?)),
                "--address" => address = Some(Address::Fixed(value()?.parse()?)),
                "--patience" => patience = Duration::from_secs(value()?.parse()?),
                "--keep-program" => keep_program = true,
                _ => others.push(argument),
            }
        }
        let command: Vec<OsString> = arguments.collect();
        let missing = |what: &str| Failure::new(format!("{what} is missing"));
        ensure!(!command.is_empty(), "the program is missing: -- CMD ARGS...");
        let options = Self {
            restart: restart.ok_or_else(|| missing("--restart or --restart-command"))?,
            stop,
            address: address.ok_or_else(|| missing("--address or --address-env"))?,
            patience,
            keep_program,
            command,
        };
        Ok((options, others))
    }
}

fn text(argument: OsString) -> Result<String, Failure> {
    argument.into_string().map_err(|other| Failure::new(format!("{} is no text", other.display())))
}

fn signal(text: &str) -> Result<Signal, Failure> {
    let name = text.strip_prefix("signal:").unwrap_or(text).to_ascii_uppercase();
    Ok(match name.strip_prefix("SIG").unwrap_or(&name) {
        "HUP" => Signal::HUP,
        "INT" => Signal::INT,
        "QUIT" => Signal::QUIT,
        "TERM" => Signal::TERM,
        "USR1" => Signal::USR1,
        "USR2" => Signal::USR2,
        "WINCH" => Signal::WINCH,
        _ => return Err(Failure::new(format!("`{text}` is no signal, such as signal:HUP"))),
    })
}

/// Starts the program once to learn what it is like.
fn probe(options: &Options) -> Result<Found, Failure> {
    crate::runner::prepare()?;
    let case = Context::new()?;
    let site = Site::start(&case, options, Found::default())?;
    let pid = site.answering()?;
    let slow = get(site.address, "/slow?ms=1")?;
    let found = Found {
        tells_pid: pid.is_some(),
        answers_itself: pid == Some(site.first),
        has_slow: slow.status == 200 && slow.pid("slow ").is_some(),
    };
    case.end()?;
    Ok(found)
}

/// The program, started for a case.
struct Site<'a> {
    case: &'a Context,
    options: &'a Options,
    found: Found,
    address: SocketAddr,
    first: u32,
    program: PathBuf,
}

/// Who is there, to be told from those that come later.
struct Before {
    answering: Option<u32>,
    processes: Vec<u32>,
    head: u32,
}

struct Answer {
    status: u16,
    body: String,
}

impl<'a> Site<'a> {
    fn new(case: &'a Context) -> Result<Self, Failure> {
        let foreign: &'static Foreign = foreign()?;
        Self::start(case, &foreign.options, foreign.found)
    }

    /// Starts the program, which answers when this returns.
    fn start(case: &'a Context, options: &'a Options, found: Found) -> Result<Self, Failure> {
        let address = match &options.address {
            Address::Fixed(address) => *address,
            // Free a moment ago, and from now on the program's.
            Address::Variable(_) => TcpListener::bind("127.0.0.1:0")?.local_addr()?,
        };
        let original = resolve(&options.command[0])?;
        let mut program = original.clone();
        if !options.keep_program {
            let name = original.file_name().unwrap_or("program".as_ref());
            program = case.folder().join(Path::new("bin")).join(name);
            fs::create_dir(case.folder().join("bin")).doing("making a folder")?;
            install(&program, || fs::copy(&original, &program).map(drop))?;
        }
        let mut launch = case.subject().program(&program).current_dir(std::env::current_dir()?);
        for argument in &options.command[1..] {
            launch = launch.arg(fill(argument, address, case.folder()));
        }
        if let Address::Variable(name) = &options.address {
            launch = launch.env(name, address.to_string());
        }
        let first = launch.start()?.pid();
        poll_until(SOON, "an answer", || get(address, "/").ok()).map_err(|failure| {
            let stderr = case.stderr().unwrap_or_default();
            Failure::new(format!("{failure}; the program says: {stderr}"))
        })?;
        let site = Self { case, options, found, address, first, program };
        // Workers that are still being started are not to be taken for a new generation.
        let mut last = 0;
        poll_until(SOON, "all processes to have started", || {
            std::thread::sleep(Duration::from_millis(100));
            let now = site.processes().len();
            (std::mem::replace(&mut last, now) == now).then_some(())
        })?;
        Ok(site)
    }

    fn processes(&self) -> Vec<Listed> {
        let mut processes = self.case.processes();
        let ours = std::process::id();
        processes.retain(|one| {
            // Its parent has gone, and nobody else here knows it to wait for it.
            let is_orphan = one.is_zombie() && one.parent == ours && one.pid != self.first;
            if is_orphan && let Ok(process) = Process::open(one.pid) {
                let _ = process.reap();
            }
            !one.is_zombie()
        });
        processes
    }

    fn answering(&self) -> Result<Option<u32>, Failure> {
        let answer = get(self.address, "/")?;
        ensure!(answer.status == 200, "GET / is answered with status {}", answer.status);
        Ok(answer.pid("ok "))
    }

    /// The process that takes orders.
    fn head(&self) -> Result<u32, Failure> {
        if self.found.answers_itself
            && let Some(pid) = self.answering()?
        {
            return Ok(pid);
        }
        let processes = self.processes();
        let is_there = |pid| processes.iter().any(|process| process.pid == pid);
        if is_there(self.first) {
            return Ok(self.first);
        }
        let mut roots = processes.iter().filter(|process| !is_there(process.parent));
        let root = roots.next().ok_or_else(|| Failure::new("no process is left"))?;
        Ok(root.pid)
    }

    fn before(&self) -> Result<Before, Failure> {
        Ok(Before {
            answering: self.answering()?,
            processes: self.processes().iter().map(|process| process.pid).collect(),
            head: self.head()?,
        })
    }

    fn ask_for_restart(&self, head: u32) -> Result<(), Failure> {
        match &self.options.restart {
            Restart::Signal(signal) => self.case.signal(head, *signal),
            Restart::Command(command) => {
                self.case.note(&format!("runs {command}"));
                let status = Command::new("sh")
                    .args(["-c", command])
                    .env("PID", head.to_string())
                    .env("ADDRESS", self.address.to_string())
                    .status()
                    .doing("running the restart command")?;
                ensure!(status.success(), "the restart command ends with {status}");
                Ok(())
            }
        }
    }

    /// Restarts, and waits until another process answers than before.
    fn restart(&self) -> Result<(), Failure> {
        let before = self.before()?;
        self.ask_for_restart(before.head)?;
        if self.found.tells_pid {
            let mut failed = None;
            let answers =
                poll_until(SOON * 3, "another process to answer", || match self.answering() {
                    Ok(pid) => pid.filter(|pid| !before.processes.contains(pid)),
                    Err(failure) => {
                        failed = Some(failure);
                        Some(0)
                    }
                });
            if let Some(failure) = failed {
                return Err(failure.while_doing("asking during a restart"));
            }
            answers.map_err(|failure| {
                Failure::new(format!("{failure} than {:?}", before.answering))
            })?;
            return Ok(());
        }
        self.wait_gone(&before)
    }

    /// Waits until a generation has gone: the process that took orders, or all that it had.
    fn wait_gone(&self, before: &Before) -> Result<(), Failure> {
        poll_until(self.options.patience, "the old generation to go", || {
            let processes: Vec<u32> = self.processes().iter().map(|one| one.pid).collect();
            let old = before.processes.iter().filter(|pid| processes.contains(pid));
            let old: Vec<u32> = old.copied().collect();
            let new = processes.iter().any(|pid| !before.processes.contains(pid));
            let replaced = old.is_empty()
                || (old == [before.head]
                    && before.processes.len() > 1
                    && !self.found.answers_itself);
            (new && replaced).then_some(())
        })
        .map_err(|failure| {
            let left: Vec<String> = self.processes().iter().map(ToString::to_string).collect();
            Failure::new(format!("{failure}: there are {left:?}"))
        })
    }

    /// How many processes there are, and how many descriptors they have, when nothing changes.
    fn size(&self) -> Result<(usize, usize), Failure> {
        let look = || -> Option<(usize, usize)> {
            let processes = self.processes();
            let descriptors = processes.iter().map(|one| hygiene::descriptors(one.pid));
            let descriptors: Result<Vec<_>, _> = descriptors.collect();
            Some((processes.len(), descriptors.ok()?.iter().map(Vec::len).sum()))
        };
        let mut last = None;
        poll_until(SOON, "processes at rest", || {
            std::thread::sleep(Duration::from_millis(50));
            let now = look();
            (std::mem::replace(&mut last, now) == now).then_some(now).flatten()
        })
    }

    fn load(&self, load: Load) -> Result<Running, Failure> {
        let load = if self.found.tells_pid { load } else { load.any_answer() };
        let running = self.case.start_load(load)?;
        running.wait_for_answers(20, SOON)?;
        Ok(running)
    }

    /// Stops in order. No process is left then.
    fn stop(self) -> Result<(), Failure> {
        self.case.signal(self.head()?, self.options.stop)?;
        // What is left then is told by the second wait.
        let gone =
            poll_until(self.options.patience, "", || self.processes().is_empty().then_some(()));
        self.case.wait_only(&[], if gone.is_ok() { SOON } else { Duration::ZERO })?;
        let refused = TcpStream::connect_timeout(&self.address, SOON);
        ensure!(refused.is_err(), "somebody listens on {} after the stop", self.address);
        Ok(())
    }
}

impl Answer {
    /// The process in the body, after that word.
    fn pid(&self, word: &str) -> Option<u32> {
        self.body.strip_prefix(word)?.trim_end().parse().ok()
    }
}

fn get(address: SocketAddr, path: &str) -> io::Result<Answer> {
    let mut stream = TcpStream::connect_timeout(&address, SOON)?;
    stream.set_read_timeout(Some(SOON))?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: smoke\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes())?;
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes)?;
    let said = String::from_utf8_lossy(&bytes);
    let (head, body) = said.split_once("\r\n\r\n").unwrap_or((&said, ""));
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
    let status = status.ok_or_else(|| io::Error::other(format!("no HTTP answer: {head:?}")))?;
    Ok(Answer { status, body: body.to_owned() })
}

/// The program's file, as a shell would find it.
fn resolve(command: &OsString) -> Result<PathBuf, Failure> {
    if command.as_bytes().contains(&b'/') {
        return Ok(PathBuf::from(command));
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain([PathBuf::from("/usr/sbin"), PathBuf::from("/sbin")])
        .map(|folder| folder.join(command))
        .find(|program| program.is_file())
        .ok_or_else(|| Failure::new(format!("there is no program `{}`", command.display())))
}

/// Writes a program while none is being started, see [`STARTING`].
fn install(program: &Path, write: impl FnOnce() -> io::Result<()>) -> Result<(), Failure> {
    let _starting = STARTING.write().unwrap_or_else(PoisonError::into_inner);
    write().doing(format_args!("writing {}", program.display()))
}

/// Puts another program in the place of one that runs.
fn replace(program: &Path, content: &[u8]) -> Result<(), Failure> {
    let new = program.with_extension("new");
    install(&new, || {
        fs::write(&new, content)?;
        fs::set_permissions(&new, Permissions::from_mode(0o755))?;
        fs::rename(&new, program)
    })
}

fn fill(argument: &OsString, address: SocketAddr, folder: &Path) -> OsString {
    let Some(text) = argument.to_str() else {
        return argument.clone();
    };
    let filled = text
        .replace("{address}", &address.to_string())
        .replace("{port}", &address.port().to_string());
    match filled.split_once("{folder}") {
        None => filled.into(),
        Some((start, end)) => {
            let mut bytes = start.as_bytes().to_vec();
            bytes.extend_from_slice(folder.as_os_str().as_bytes());
            bytes.extend_from_slice(end.as_bytes());
            OsString::from_vec(bytes)
        }
    }
}

fn it_answers(case: &Context) -> Result<(), Failure> {
    let site = Site::new(case)?;
    site.answering()?;
    site.stop()
}

fn under_load(case: &Context) -> Result<(), Failure> {
    let site = Site::new(case)?;
    let load = site.load(Load::builder(site.address).fresh(300.0))?;
    for _ in 0..RESTARTS {
        site.restart()?;
        load.wait_for_answers(100, SOON)?;
    }
    nothing_lost(case, load)?;
    site.stop()
}

fn slow(case: &Context) -> Result<(), Failure> {
    let site = Site::new(case)?;
    let (address, before) = (site.address, site.answering()?);
    let request = std::thread::spawn(move || get(address, "/slow?ms=3000"));
    // It is there when the process has one connection more; most are by then.
    std::thread::sleep(Duration::from_millis(200));
    site.restart()?;
    let answer = request.join().map_err(|_| Failure::new("the client panicked"))?;
    let answer = answer.doing("the request that began before the restart")?;
    let by = answer.pid("slow ");
    ensure!(answer.status == 200, "it was answered with status {}", answer.status);
    ensure!(by == before, "it was begun by process {before:?} and answered by {by:?}");
    site.stop()
}

fn kept(case: &Context) -> Result<(), Failure> {
    let site = Site::new(case)?;
    let load = Load::builder(site.address)
        .kept(8, Duration::ZERO..Duration::from_millis(5))
        .kept(8, Duration::from_millis(5)..Duration::from_millis(455))
        .kept_late(4, Duration::from_millis(20)..Duration::from_millis(300));
    let load = site.load(load)?;
    for _ in 0..RESTARTS {
        site.restart()?;
        load.wait_for_answers(200, SOON)?;
    }
    nothing_lost(case, load)?;
    site.stop()
}

fn many(case: &Context) -> Result<(), Failure> {
    let site = Site::new(case)?;
    let once = || -> Result<(), Failure> {
        let before = site.before()?;
        site.restart()?;
        site.wait_gone(&before)
    };
    once()?;
    let (processes, descriptors) = site.size()?;
    for _ in 0..10 {
        once()?;
    }
    let (now, open) = site.size()?;
    ensure!(now == processes, "{processes} processes after one restart, {now} after eleven");
    ensure!(
        open <= descriptors,
        "{descriptors} descriptors after one restart, {open} after eleven"
    );
    site.stop()
}

fn broken(case: &Context) -> Result<(), Failure> {
    let site = Site::new(case)?;
    let load = site.load(Load::builder(site.address).fresh(200.0))?;
    let before = site.before()?;
    let good = case.folder().join("good");
    fs::hard_link(&site.program, &good).doing("keeping the good program")?;
    for (what, content) in [
        ("missing", None),
        ("garbage", Some(b"\x7fELF and no more".as_slice())),
        ("ends at once", Some(b"#!/bin/sh\nexit 1\n")),
    ] {
        case.note(&format!("the program is now broken: {what}"));
        match content {
            None => fs::remove_file(&site.program).doing("removing the program")?,
            Some(content) => replace(&site.program, content)?,
        }
        // A command that says that it has failed is right to do so.
        if let (Err(failure), Restart::Signal(_)) =
            (site.ask_for_restart(before.head), &site.options.restart)
        {
            return Err(failure);
        }
        // No event tells that a program which is not ours has given up trying.
        let tried = load.wait_for_answers(400, SOON);
        tried.map_err(|failure| Failure::from(failure).while_doing(what))?;
        site.answering().map_err(|failure| failure.while_doing(what))?;
        let _ = fs::remove_file(&site.program);
        fs::hard_link(&good, &site.program).doing("putting the good program back")?;
    }
    site.restart().map_err(|failure| failure.while_doing("after the program was sound again"))?;
    nothing_lost(case, load)?;
    site.stop()
}

fn stops(case: &Context) -> Result<(), Failure> {
    let site = Site::new(case)?;
    site.restart()?;
    site.stop()
}

fn stops_under_load(case: &Context) -> Result<(), Failure> {
    let site = Site::new(case)?;
    let mut load = Load::builder(site.address).fresh(200.0);
    if site.found.has_slow {
        load = load.slow(4, Duration::from_millis(500));
    }
    let load = site.load(load)?;
    site.stop()?;
    let report = load.stop();
    let refused: u64 = report.groups.iter().map(|group| group.lost.refused).sum();
    let lost = report.lost() + report.races() - refused;
    ensure!(lost == 0, "{lost} requests were lost that had not been refused");
    Ok(())
}

fn nothing_lost(case: &Context, load: Running) -> Result<(), Failure> {
    let report: Report = load.stop();
    case.nothing_lost(&report)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<(Options, Vec<String>), Failure> {
        Options::parse(line.split(' ').map(OsString::from))
    }

    #[test]
    fn ours_are_told_from_libtests() {
        let line = "x --report out --restart signal:HUP kept --address=127.0.0.1:80 -- server --x";
        let (options, others) = parse(line).unwrap();
        assert_eq!(options.restart, Restart::Signal(Signal::HUP));
        assert_eq!(options.address, Address::Fixed("127.0.0.1:80".parse().unwrap()));
        assert_eq!(options.command, ["server", "--x"]);
        assert_eq!(others, ["x", "--report", "out", "kept"]);
    }

    #[test]
    fn what_is_missing_is_said() {
        for (line, what) in [
            ("x --address 127.0.0.1:80 -- server", "--restart"),
            ("x --restart signal:HUP -- server", "--address"),
            ("x --restart signal:HUP --address-env ADDR", "CMD"),
            ("x --restart signal:NIX -- server", "NIX"),
        ] {
            let failure = parse(line).unwrap_err().to_string();
            assert!(failure.contains(what), "{line}: {failure}");
        }
    }

    #[test]
    fn places_in_arguments_are_filled() {
        let address = "127.0.0.1:80".parse().unwrap();
        let fill = |text: &str| fill(&text.into(), address, Path::new("/f"));
        assert_eq!(fill("--listen={address}"), "--listen=127.0.0.1:80");
        assert_eq!(fill("{folder}/{port}"), "/f/80");
    }
}
