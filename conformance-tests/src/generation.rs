//! The subject's side of a case: each generation of the server under test.

use std::collections::BTreeMap;
use std::fmt::{self, Display};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::process::{Signal, getpid, kill_process};

use crate::lines::{read_line, write_line};
use crate::scenario::Scenario;
use crate::{Doing, Failure, Stamp};

/// The variable that makes the test binary a subject. Its value is the scenario's path.
pub(crate) const SUBJECT: &str = "HANDOVER_SUBJECT";
/// The socket for events, commands and the lifeline, beside the scenario.
pub(crate) const EVENTS: &str = "events";
/// How a case's folder begins: nothing else is ever removed.
pub(crate) const FOLDER: &str = "handover-";

/// A process of the server under test, as it sees the case that it is part of.
///
/// It has one thread and one descriptor (close-on-exec) of its own, from
/// [`enter`](Self::enter) on. When the runner is gone, however it ended, that
/// thread kills the process: no subject survives its case.
#[derive(Clone)]
pub struct Generation {
    scenario: Scenario,
    folder: PathBuf,
    link: Arc<Link>,
}

/// Something that the case wants of a generation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Command {
    /// What to do.
    pub name: String,
    /// With what.
    pub fields: BTreeMap<String, String>,
}

struct Link {
    stream: UnixStream,
    commands: Mutex<Commands>,
}

/// Commands may come before there is somebody to carry them out.
enum Commands {
    Waiting(Vec<Command>),
    Handled(Box<dyn FnMut(Command) + Send>),
}

impl Generation {
    /// Whether this process is a subject, and if so, its part in the case.
    ///
    /// # Errors
    ///
    /// If the case is over, or its scenario cannot be read.
    pub fn enter() -> Result<Option<Self>, Failure> {
        let Some(path) = std::env::var_os(SUBJECT).map(PathBuf::from) else {
            return Ok(None);
        };
        let folder = path.parent().unwrap_or(Path::new("/")).to_owned();
        let stream = UnixStream::connect(folder.join(EVENTS)).doing("connecting to the case")?;
        let link = Arc::new(Link { stream, commands: Mutex::new(Commands::Waiting(Vec::new())) });
        let generation = Self { scenario: Scenario::load(&path)?, folder, link };
        let thread = std::thread::Builder::new().name("lifeline".into());
        let listener = generation.clone();
        thread.spawn(move || listener.listen()).doing("starting the lifeline")?;
        generation.tell("entered", &[]);
        Ok(Some(generation))
    }

    /// Whether this process was started as a subject.
    pub(crate) fn is_entered() -> bool {
        std::env::var_os(SUBJECT).is_some()
    }

    /// What the case wants this process to be like.
    #[must_use]
    pub fn scenario(&self) -> &Scenario {
        &self.scenario
    }

    /// The case's folder, for sockets, logs and whatever else has a path.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Notes something in the case's timeline.
    pub fn tell(&self, name: &str, fields: &[(&str, &dyn Display)]) {
        let at = Stamp::now().as_nanos().to_string();
        let fields = fields.iter().map(|(key, value)| (*key, value.to_string()));
        let mut line = write_line(name, [("at", at)].into_iter().chain(fields));
        line.push('\n');
        // One write, which threads cannot tear apart. Without a case there is
        // nobody to tell, and the lifeline is about to end this process.
        let _ = (&self.link.stream).write_all(line.as_bytes());
    }

    /// Lets `handler` carry out the case's commands, on a thread of the harness,
    /// one after another, those included that have come before.
    pub fn on_command(&self, mut handler: impl FnMut(Command) + Send + 'static) {
        let mut commands = self.link.lock();
        if let Commands::Waiting(waiting) = &mut *commands {
            for command in waiting.drain(..) {
                handler(command);
            }
        }
        *commands = Commands::Handled(Box::new(handler));
    }

    fn listen(&self) {
        for line in BufReader::new(&self.link.stream).lines() {
            let Ok(line) = line else {
                break;
            };
            let (name, fields) = read_line(&line);
            let command = Command { name, fields };
            match &mut *self.link.lock() {
                Commands::Waiting(waiting) => waiting.push(command),
                Commands::Handled(handler) => handler(command),
            }
        }
        // The runner would have removed the folder, had it been able to.
        let name = self.folder.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if name.starts_with(FOLDER) {
            let _ = std::fs::remove_dir_all(&self.folder);
        }
        // Not exit: that runs the subject's own code, which may be what hangs.
        let _ = kill_process(getpid(), Signal::KILL);
    }
}

impl Command {
    /// A detail's text.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&str> {
        self.fields.get(key).map(String::as_str)
    }
}

impl fmt::Debug for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Generation").field("scenario", &self.scenario).finish_non_exhaustive()
    }
}

impl Link {
    fn lock(&self) -> std::sync::MutexGuard<'_, Commands> {
        self.commands.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
