use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use crate::error::{Error, ErrorKind, Result};
use crate::machine::Timing;
use crate::runtime::Signal;

/// What a signal does. See [`Policy::signal`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Verb {
    /// Start a successor.
    Restart,
    /// Drain and stop; a second one, while draining because of a stop, ends it at once.
    Stop,
    /// While draining: end at once, cutting what is in flight. Otherwise nothing.
    Quit,
    /// Only run the hooks.
    Hooks,
}

/// How an instance behaves: deadlines, signals, limits. [The manual](crate::manual::defaults)
/// gives a reason for each default.
///
/// ```
/// use std::time::Duration;
/// use handover_core::{Policy, Signal, Verb};
///
/// let policy = Policy::new()
///     .drain(Duration::from_secs(300))
///     .signal(Signal::USR2, Some(Verb::Restart))
///     .signal(Signal::HUP, None);
/// ```
#[derive(Debug, Clone)]
pub struct Policy {
    pub(crate) timing: Timing,
    pub(crate) signals: Vec<(Signal, Verb)>,
    pub(crate) instance: String,
    pub(crate) generations: usize,
    pub(crate) state_limit: usize,
    pub(crate) executable: Option<(PathBuf, Option<Vec<OsString>>)>,
    pub(crate) even_if_unfollowed: bool,
}

impl Default for Policy {
    fn default() -> Self {
        Self::new()
    }
}

impl Policy {
    /// The defaults.
    pub fn new() -> Self {
        let seconds = Duration::from_secs;
        Self {
            timing: Timing {
                hooks: seconds(10),
                spawn: seconds(10),
                hello: seconds(10),
                ready: seconds(60),
                commit: seconds(15),
                abort: seconds(1),
                confirm: seconds(5),
                probation: seconds(2),
                linger: seconds(45),
                drain: seconds(60),
                lame_duck: Duration::ZERO,
                stop_linger: seconds(1),
                stop_drain: seconds(25),
            },
            signals: vec![
                (Signal::HUP, Verb::Restart),
                (Signal::TERM, Verb::Stop),
                (Signal::INT, Verb::Stop),
                (Signal::USR2, Verb::Quit),
                (Signal::USR1, Verb::Hooks),
            ],
            instance: "main".into(),
            generations: 8,
            state_limit: 64 * 1024 * 1024,
            executable: None,
            even_if_unfollowed: false,
        }
    }

    /// For an embedding framework, or a test: no signal is touched; restarts and stops come
    /// through the [`Handle`](crate::Handle).
    pub fn without_signals(mut self) -> Self {
        self.signals.clear();
        self
    }

    /// What a signal does from now on; `None` leaves it as the program has it. Whether or not it
    /// has a verb, a signal with [hooks](crate::Start::before) runs them.
    pub fn signal(mut self, signal: Signal, verb: Option<Verb>) -> Self {
        self.signals.retain(|(known, _)| *known != signal);
        self.signals.extend(verb.map(|verb| (signal, verb)));
        self
    }

    /// How long a successor may take from its start until it is ready to serve: everything that
    /// the program does before [`run`](crate::Start::run). Default: 60 seconds.
    pub fn ready(mut self, deadline: Duration) -> Self {
        self.timing.ready = deadline;
        self
    }

    /// How long the executable may take to be started, and then again until the library's `start`
    /// is called in it. Default: 10 seconds each.
    pub fn spawn(mut self, deadline: Duration) -> Self {
        self.timing.spawn = deadline;
        self.timing.hello = deadline;
        self
    }

    /// How long the hooks before a step may take, together with sealing the application state.
    /// Default: 10 seconds.
    pub fn hooks(mut self, deadline: Duration) -> Self {
        self.timing.hooks = deadline;
        self
    }

    /// How long a successor that is not wanted may take to end by itself before it is killed.
    /// Default: 1 second.
    pub fn abort(mut self, deadline: Duration) -> Self {
        self.timing.abort = deadline;
        self
    }

    /// How long a successor may take from the commit to its confirmation that it serves. New
    /// connections wait in the accept queue meanwhile. Default: 5 seconds.
    pub fn confirm(mut self, deadline: Duration) -> Self {
        self.timing.confirm = deadline;
        self
    }

    /// How long a successor must live after its confirmation before this process gives its own
    /// copies of the listeners up. If it dies within this time, this process serves again.
    /// Default: 2 seconds.
    pub fn probation(mut self, duration: Duration) -> Self {
        self.timing.probation = duration;
        self
    }

    /// How long idle connections stay open after a restart, so that none is closed under a request
    /// that is on its way; longer than the clients' think time. Counted from the commit.
    /// Default: 45 seconds.
    pub fn linger(mut self, duration: Duration) -> Self {
        self.timing.linger = duration;
        self
    }

    /// How long after a restart connections in flight may go on before they are cut, counted from
    /// the commit. Default: 60 seconds.
    pub fn drain(mut self, deadline: Duration) -> Self {
        self.timing.drain = deadline;
        self
    }

    /// How long a process that is told to stop goes on accepting, while
    /// [`Handle::is_ready`](crate::Handle::is_ready) is false already: the time that load balancers
    /// need to learn it. A second stop ends it. Default: none.
    pub fn lame_duck(mut self, duration: Duration) -> Self {
        self.timing.lame_duck = duration;
        self
    }

    /// The same as [`linger`](Self::linger), at a stop. Default: 1 second.
    pub fn stop_linger(mut self, duration: Duration) -> Self {
        self.timing.stop_linger = duration;
        self
    }

    /// The same as [`drain`](Self::drain), at a stop. Default: 25 seconds, since service managers
    /// and orchestrators kill after 30 or more.
    pub fn stop_drain(mut self, deadline: Duration) -> Self {
        self.timing.stop_drain = deadline;
        self
    }

    /// How many older generations may still be draining when another restart begins. At the cap
    /// the oldest is asked to end its linger, and the restart waits for it (up to
    /// [`hooks`](Self::hooks)); requests are not cut. Default: 8.
    pub fn generations(mut self, cap: usize) -> Self {
        self.generations = cap;
        self
    }

    /// The name of this instance, if a process has more than one: a successor's instance of the
    /// same name takes over. Default: `main`.
    pub fn instance(mut self, name: impl Into<String>) -> Self {
        self.instance = name.into();
        self
    }

    /// The limit for the application state of a restart, in bytes, all names together. Default:
    /// 64 MiB.
    pub fn state_limit(mut self, bytes: usize) -> Self {
        self.state_limit = bytes;
        self
    }

    /// The program to start, instead of the one that this process was started as, with this
    /// process's arguments. It is looked up anew at each restart.
    pub fn executable(mut self, path: impl Into<PathBuf>) -> Self {
        let arguments = self.executable.take().and_then(|(_, arguments)| arguments);
        self.executable = Some((path.into(), arguments));
        self
    }

    /// The program to start and its arguments, the first of which is the name that it sees as its
    /// own.
    pub fn command<A: Into<OsString>>(
        mut self,
        path: impl Into<PathBuf>,
        arguments: impl IntoIterator<Item = A>,
    ) -> Self {
        let arguments = arguments.into_iter().map(Into::into).collect();
        self.executable = Some((path.into(), Some(arguments)));
        self
    }

    /// Restart even where the end of this process looks like the end of the service: as PID 1, or
    /// as the main process of a systemd service without a notify socket.
    pub fn restart_even_if_unfollowed(mut self) -> Self {
        self.even_if_unfollowed = true;
        self
    }

    pub(crate) fn check(&self) -> Result<()> {
        let bad = |what: &str| Err(Error::new(ErrorKind::Policy, format!("policy: {what}")));
        if self.timing.drain < self.timing.linger {
            return bad("`drain` is shorter than `linger`, so connections would be cut untold");
        }
        if self.timing.stop_drain < self.timing.stop_linger {
            return bad("`stop_drain` is shorter than `stop_linger`");
        }
        if self.timing.drain < self.timing.probation {
            return bad("`drain` is shorter than `probation`");
        }
        if !crate::protocol::frame::is_name(&self.instance) || self.instance.contains(':') {
            return bad("`instance` must be 1 to 64 bytes without `:` or control characters");
        }
        Ok(())
    }
}
