//! Starts the server under test, in a process of its own.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::PoisonError;
use std::time::Duration;

use crate::case::Context;
use crate::generation::SUBJECT;
use crate::program::{BURYING, STARTING};
use crate::signal::{Exit, Process, Signal};
use crate::{Doing, Failure};

/// A first generation that is about to be started.
#[derive(Debug)]
#[must_use = "nothing runs before `start`"]
pub struct Launch<'a> {
    context: &'a Context,
    program: PathBuf,
    through: Vec<OsString>,
    command: Vec<OsString>,
    variables: Vec<(OsString, Option<OsString>)>,
    directory: PathBuf,
    stdin: Option<Stdio>,
}

/// A first generation. Its successors are found by the events they send.
#[derive(Debug)]
pub struct Subject<'a> {
    context: &'a Context,
    process: Process,
}

impl Context {
    /// Prepares a first generation.
    pub fn subject(&self) -> Launch<'_> {
        Launch::new(self)
    }
}

impl<'a> Launch<'a> {
    fn new(context: &'a Context) -> Self {
        Self {
            context,
            program: context.program().path().to_owned(),
            through: Vec::new(),
            command: Vec::new(),
            variables: Vec::new(),
            directory: context.folder().to_owned(),
            stdin: None,
        }
    }

    /// Runs the executable at this path instead of the case's program.
    pub fn program(mut self, path: impl AsRef<Path>) -> Self {
        self.program = path.as_ref().to_owned();
        self
    }

    /// Lets this command start the program, with the program's path and arguments
    /// as its last ones: `["sh", "-c", "exec \"$0\" \"$@\""]`, or `unshare` for namespaces.
    pub fn through<S: AsRef<OsStr>>(mut self, command: impl IntoIterator<Item = S>) -> Self {
        self.through = command.into_iter().map(|word| word.as_ref().to_owned()).collect();
        self
    }

    /// Adds an argument.
    pub fn arg(mut self, argument: impl AsRef<OsStr>) -> Self {
        self.command.push(argument.as_ref().to_owned());
        self
    }

    /// Sets an environment variable.
    pub fn env(mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.variables.push((name.as_ref().to_owned(), Some(value.as_ref().to_owned())));
        self
    }

    /// Removes an environment variable.
    pub fn env_remove(mut self, name: impl AsRef<OsStr>) -> Self {
        self.variables.push((name.as_ref().to_owned(), None));
        self
    }

    /// Sets the working directory, which is the case's folder otherwise.
    pub fn current_dir(mut self, directory: impl AsRef<Path>) -> Self {
        self.directory = directory.as_ref().to_owned();
        self
    }

    /// Sets the standard input, which is `/dev/null` otherwise.
    pub fn stdin(mut self, stdin: impl Into<Stdio>) -> Self {
        self.stdin = Some(stdin.into());
        self
    }

    /// Starts the process, in a process group of its own.
    ///
    /// # Errors
    ///
    /// If it cannot be started.
    pub fn start(self) -> Result<Subject<'a>, Failure> {
        let log = |name: &str| -> Result<File, Failure> {
            let path = self.context.folder().join(name);
            // Appending: all generations share the file, each with its own idea of the end.
            File::options().create(true).append(true).open(path).doing("opening a log")
        };
        let mut words =
            self.through.iter().chain([&self.program.clone().into()]).cloned().collect::<Vec<_>>();
        words.extend(self.command.iter().cloned());
        let mut command = Command::new(&words[0]);
        command
            .args(&words[1..])
            .current_dir(&self.directory)
            .env(SUBJECT, self.context.scenario_path())
            .stdin(self.stdin.unwrap_or_else(Stdio::null))
            .stdout(log("stdout")?)
            .stderr(log("stderr")?)
            .process_group(0);
        for (name, value) in &self.variables {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        let _not_burying = BURYING.read().unwrap_or_else(PoisonError::into_inner);
        let child = {
            let _starting = STARTING.read().unwrap_or_else(PoisonError::into_inner);
            command.spawn().doing(format_args!("starting {}", words[0].display()))?
        };
        // Nobody but the collector waits for it; until then its number cannot be another's.
        let pid = child.id();
        let process = Process::open(pid)?;
        self.context.started(pid, &words)?;
        Ok(Subject { context: self.context, process })
    }
}

impl Subject<'_> {
    /// Its process number.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Its process, to signal and to wait for.
    #[must_use]
    pub fn process(&self) -> &Process {
        &self.process
    }

    /// Sends it a signal, and notes that in the timeline.
    ///
    /// # Errors
    ///
    /// If it is gone.
    pub fn signal(&self, signal: Signal) -> Result<(), Failure> {
        self.context.signal(self.pid(), signal)
    }

    /// Waits for its end and gives its status.
    ///
    /// # Errors
    ///
    /// If it lives for longer than `within`.
    pub fn wait_exit(&self, within: Duration) -> Result<Exit, Failure> {
        let exit = self.context.wait_exit(self.pid(), within)?;
        exit.ok_or_else(|| Failure::new(format!("process {} was another's child", self.pid())))
    }
}
