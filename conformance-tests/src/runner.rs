//! Runs cases as tests: named, filtered, each with a watchdog.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a test runner is read there")]

use std::any::Any;
use std::fmt::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::available_parallelism;
use std::time::{Duration, Instant};

use libtest_mimic::{Arguments, Failed, Trial};
use rustix::process::{Resource, Rlimit, getrlimit, set_child_subreaper, setrlimit};

use crate::case::{Case, Context};
use crate::generation::Generation;
use crate::{Doing, Failure, faults, inherited};

/// The cases of one test binary.
#[derive(Debug)]
pub struct Suite {
    name: &'static str,
    cases: Vec<Case>,
    skipped: Vec<(&'static str, &'static str)>,
}

impl Suite {
    /// A suite; its name says what is tested: `tokio`.
    #[must_use]
    pub fn new(name: &'static str, cases: impl IntoIterator<Item = Case>) -> Self {
        Self { name, cases: cases.into_iter().collect(), skipped: Vec::new() }
    }

    /// The same with more cases.
    #[cfg(feature = "http")]
    pub(crate) fn and(mut self, cases: impl IntoIterator<Item = Case>) -> Self {
        self.cases.extend(cases);
        self
    }

    /// Skips a case that this subject cannot pass, and says why.
    #[must_use]
    pub(crate) fn skip(mut self, case: &'static str, reason: &'static str) -> Self {
        self.skipped.push((case, reason));
        self
    }

    /// The test binary's `main`: is `subject` where a case has started this
    /// process as one, and runs the cases otherwise.
    ///
    /// A subject that fails tells so to its case and exits with 1.
    pub fn main(self, subject: impl FnOnce(&Generation) -> Result<(), Failure>) -> ExitCode {
        match Generation::enter() {
            Ok(Some(generation)) => match subject(&generation) {
                Ok(()) => ExitCode::SUCCESS,
                Err(failure) => {
                    eprintln!("{failure}");
                    generation.tell("failed", &[("reason", &failure)]);
                    ExitCode::FAILURE
                }
            },
            Ok(None) => self.run(),
            Err(failure) => {
                eprintln!("{failure}");
                ExitCode::FAILURE
            }
        }
    }

    /// Measures faults, where the command line asks for that instead of cases.
    pub(crate) fn faults(&self) -> Option<ExitCode> {
        let mut arguments = std::env::args().skip_while(|argument| argument != "--faults");
        if Generation::is_entered() || arguments.next().is_none() {
            return None;
        }
        let written = match arguments.next() {
            None => Err(Failure::new("--faults needs a file")),
            Some(file) => prepare().and_then(|()| faults::write(self.name, file.as_ref())),
        };
        Some(match written {
            Ok(()) => ExitCode::SUCCESS,
            Err(failure) => refuse(&failure),
        })
    }

    fn run(self) -> ExitCode {
        self.run_with(std::env::args())
    }

    /// Runs the cases with another command line than this process's own.
    pub(crate) fn run_with(self, arguments: impl Iterator<Item = String>) -> ExitCode {
        let (report, arguments) = match take_report(arguments) {
            Ok(taken) => taken,
            Err(failure) => return refuse(&failure),
        };
        let mut arguments = Arguments::from_iter(arguments);
        if arguments.test_threads.is_none() {
            // A case mostly waits for something.
            arguments.test_threads = available_parallelism().ok().map(|cores| 3 * cores.get());
        }
        for (name, _) in &self.skipped {
            if !self.cases.iter().any(|case| case.name == *name) {
                return refuse(&Failure::new(format!("there is no case `{name}` to skip")));
            }
        }
        // `--list` has to work everywhere, and starts nothing.
        if !arguments.list
            && let Err(failure) = prepare()
        {
            return refuse(&failure);
        }
        let rows = Arc::new(Mutex::new(Vec::new()));
        let trials = self.cases.iter().map(|case| self.trial(*case, &rows)).collect();
        let conclusion = libtest_mimic::run(&arguments, trials);
        if arguments.list {
            return ExitCode::SUCCESS;
        }
        println!(
            "{}: {} passed, {} failed, {} skipped",
            self.name, conclusion.num_passed, conclusion.num_failed, conclusion.num_ignored
        );
        if let Some(path) = report {
            let rows = rows.lock().unwrap_or_else(PoisonError::into_inner);
            let json = to_json(self.name, &rows);
            if let Err(failure) = std::fs::write(path, json).doing("writing the report") {
                return refuse(&failure);
            }
        }
        conclusion.exit_code()
    }

    fn trial(&self, case: Case, rows: &Arc<Mutex<Vec<Row>>>) -> Trial {
        let told = self.skipped.iter().find(|(name, _)| *name == case.name);
        let reason = told.map(|(_, reason)| (*reason).to_owned()).or_else(|| {
            let missing = case.needs.iter().find(|need| !(need.is_met)())?;
            Some(format!("needs {}", missing.what))
        });
        if let Some(reason) = &reason {
            lock(rows).push(Row { case, outcome: format!("skipped: {reason}"), took: None });
        }
        let kind = reason.as_ref().map_or(String::new(), |reason| format!("skipped: {reason}"));
        let skipped = reason.is_some();
        let rows = Arc::clone(rows);
        let run = move || -> Result<(), Failed> {
            let start = Instant::now();
            let result = match reason {
                // Only with --include-ignored.
                Some(reason) => Err(format!("cannot run here: {reason}")),
                None => run(case),
            };
            let outcome = if result.is_ok() { "passed" } else { "failed" };
            let mut rows = lock(&rows);
            rows.retain(|row| row.case.name != case.name);
            rows.push(Row { case, outcome: outcome.into(), took: Some(start.elapsed()) });
            result.map_err(Failed::from)
        };
        Trial::test(case.name, run).with_kind(kind).with_ignored_flag(skipped)
    }
}

/// How many descriptors the cases that run at once may need together, on a busy machine.
const DESCRIPTORS: u64 = 65_536;

/// Makes this process one that others can be started from and watched by.
pub(crate) fn prepare() -> Result<(), Failure> {
    inherited::keep_to_ourselves()?;
    // A load goes on to connect while its server is not run, some hundred times a second.
    let limit = getrlimit(Resource::Nofile);
    let enough = limit.maximum.map_or(DESCRIPTORS, |maximum| maximum.min(DESCRIPTORS));
    if limit.current.is_some_and(|current| current < enough) {
        let limit = Rlimit { current: Some(enough), maximum: limit.maximum };
        setrlimit(Resource::Nofile, limit).doing("asking for more descriptors")?;
    }
    // Generations whose parent has gone become children of the runner, which
    // can then see and bury them, instead of init's.
    set_child_subreaper(Some(rustix::process::getpid())).doing("becoming a subreaper")
}

/// A case's line in the report.
struct Row {
    case: Case,
    outcome: String,
    took: Option<Duration>,
}

/// Runs a case on a thread of its own, so that one that hangs can be left behind.
fn run(case: Case) -> Result<(), String> {
    let context = Context::new().map_err(|failure| format!("preparing the case: {failure}"))?;
    let context = Arc::new(context);
    let (sender, receiver) = mpsc::channel();
    let theirs = Arc::clone(&context);
    let body = move || {
        let result = catch_unwind(AssertUnwindSafe(|| (case.run)(&theirs)));
        drop(theirs);
        // Nobody listens if the watchdog was faster.
        let _ = sender.send(result);
    };
    let thread = std::thread::Builder::new().name(case.name.into());
    thread.spawn(body).map_err(|error| format!("starting the case's thread: {error}"))?;
    let message = match receiver.recv_timeout(case.deadline) {
        Ok(Ok(Ok(()))) => return Ok(()),
        Ok(Ok(Err(failure))) => failure.to_string(),
        Ok(Err(panic)) => format!("panicked: {}", panic_text(&*panic)),
        Err(RecvTimeoutError::Timeout) => format!("hung: not over after {:?}", case.deadline),
        Err(RecvTimeoutError::Disconnected) => "the case's thread is gone".into(),
    };
    // The account first: it tells of the processes as the failure found them.
    let mut text = format!("promised: {}\nfound: {message}\n{}", case.clause, context.account());
    let left: Vec<String> = context.processes().iter().map(ToString::to_string).collect();
    let _ = writeln!(text, "--- processes left: {left:?}");
    // A case that hangs may hold its context for ever, so that no drop does this.
    if let Err(failure) = context.end() {
        let _ = writeln!(text, "--- {failure}");
    }
    Err(text)
}

/// Takes `--report FILE` out of the arguments, which libtest does not know.
fn take_report(
    mut arguments: impl Iterator<Item = String>,
) -> Result<(Option<PathBuf>, Vec<String>), Failure> {
    let (mut report, mut others) = (None, Vec::new());
    while let Some(argument) = arguments.next() {
        if argument == "--report" {
            let file = arguments.next().ok_or_else(|| Failure::new("--report needs a file"))?;
            report = Some(file.into());
        } else if let Some(file) = argument.strip_prefix("--report=") {
            report = Some(file.into());
        } else {
            others.push(argument);
        }
    }
    Ok((report, others))
}

fn to_json(suite: &str, rows: &[Row]) -> String {
    let mut text = format!("{{\"suite\": {}, \"cases\": [", json_string(suite));
    for (index, row) in rows.iter().enumerate() {
        let millis = row.took.map_or("null".into(), |took| took.as_millis().to_string());
        // Writing to a string cannot fail.
        let _ = write!(
            text,
            "{}\n  {{\"case\": {}, \"clause\": {}, \"outcome\": {}, \"milliseconds\": {millis}}}",
            if index == 0 { "" } else { "," },
            json_string(row.case.name),
            json_string(row.case.clause),
            json_string(&row.outcome),
        );
    }
    text.push_str("\n]}\n");
    text
}

fn json_string(text: &str) -> String {
    let mut json = String::from('"');
    for character in text.chars() {
        match character {
            '"' | '\\' => json.extend(['\\', character]),
            control if control < ' ' => {
                let _ = write!(json, "\\u{:04x}", control as u32);
            }
            other => json.push(other),
        }
    }
    json.push('"');
    json
}

fn panic_text(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no message")
}

fn refuse(failure: &Failure) -> ExitCode {
    eprintln!("{failure}");
    ExitCode::FAILURE
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_report_is_taken_out_of_the_arguments() {
        let words = |line: &str| line.split(' ').map(String::from).collect::<Vec<_>>().into_iter();
        let (report, others) = take_report(words("x --exact --report out.json name")).unwrap();
        assert_eq!(report, Some("out.json".into()));
        assert_eq!(others, ["x", "--exact", "name"]);
        assert_eq!(take_report(words("x --report=y")).unwrap().0, Some("y".into()));
        assert!(take_report(words("x --report")).is_err());
    }

    #[test]
    fn the_report_is_json() {
        assert_eq!(json_string("a\"b\\c\nd"), "\"a\\\"b\\\\c\\u000ad\"");
    }
}
