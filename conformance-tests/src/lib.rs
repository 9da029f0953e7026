//! Shows that a server restarts without its clients noticing.
//!
//! Not a benchmark and not a test of handover's parts: it starts a real server
//! in a process of its own, puts load on it, sends real signals, replaces real
//! files, kills for real, and compares what happened with what was promised.
//!
//! A test binary of an adapter (`harness = false`) is both the runner of the
//! cases and, started again by a case, the server under test:
//!
//! ```no_run
//! use std::process::ExitCode;
//! use std::time::Duration;
//! use handover_conformance::{Case, Context, Failure, Generation, Suite};
//!
//! fn main() -> ExitCode {
//!     Suite::new("example", [Case {
//!         name: "serve::it_answers",
//!         clause: "a fresh start answers",
//!         deadline: Duration::from_secs(10),
//!         needs: &[],
//!         run: it_answers,
//!     }])
//!     .main(server)
//! }
//!
//! fn server(generation: &Generation) -> Result<(), Failure> {
//!     // bind, serve ...
//!     generation.tell("ready", &[("address", &"127.0.0.1:3000")]);
//!     Ok(())
//! }
//!
//! fn it_answers(case: &Context) -> Result<(), Failure> {
//!     let server = case.subject().start()?;
//!     case.wait_for_from(server.pid(), "ready", Duration::from_secs(5))?;
//!     Ok(())
//! }
//! ```
//!
//! # Implementation
//!
//! The runner is a subreaper: generations whose parent has gone become its
//! children. Each case has a folder and in it a socket, to which every generation
//! connects; events and commands cross it, and its end is the lifeline on which
//! a generation kills itself. Nothing here sleeps to wait for something, but for
//! [`poll_until`], where the kernel has no event to offer.
//!
//! The command line is libtest's (filters, `--list`, `--exact`, `--test-threads`),
//! for `cargo test` and `cargo nextest`, and `--report FILE` for a JSON account.
//!
//! # Features
//!
//! - `http`: `Conformance::http`, for cases about an adapter's own HTTP stack over hyper.
//! - `tls`: cases about TLS, with rustls on ring.

#![cfg_attr(test, allow(clippy::unwrap_used, reason = "a failed test is to panic"))]

pub mod client;
pub mod http;
pub mod hygiene;
pub mod server;
pub mod signal;
pub mod smoke;

mod case;
mod cases;
mod clock;
mod collector;
mod failure;
mod faults;
mod generation;
mod inherited;
mod lines;
mod program;
mod runner;
mod scenario;
mod subject;
mod timeline;

use std::process::ExitCode;

pub use case::{Case, Context, Need};
pub use clock::{Stamp, poll_until};
pub use failure::{Doing, Failure};
pub use generation::{Command, Generation};
pub use program::{Busy, HeldUp, Program, start_beside};
pub use runner::Suite;
pub use scenario::Scenario;
pub use subject::{Launch, Subject};
pub use timeline::{Event, Timeline};

use server::Server;

/// All the cases that an adapter must pass. Its name says which: `tokio`.
pub fn suite(name: &'static str) -> Conformance {
    Conformance { suite: Suite::new(name, cases::all()), http: None, blocks: false }
}

/// The suite of one adapter.
#[must_use = "nothing runs before `main`"]
pub struct Conformance {
    suite: Suite,
    /// The program with the adapter's own HTTP stack.
    http: Option<Served>,
    blocks: bool,
}

impl Conformance {
    /// For an adapter whose `run` blocks its thread, and whose program calls
    /// [`Server::run_blocking`] (with any other it fails): leaves out the few cases about a future
    /// of `run`, which there is not.
    pub fn blocking(mut self) -> Self {
        self.blocks = true;
        for (case, reason) in cases::OF_A_FUTURE {
            self.suite = self.suite.skip(case, reason);
        }
        self
    }

    /// Adds the group `hyper`, for an adapter that offers HTTP over hyper to its users: the cases of
    /// the group `http`, and those of HTTP/2, against that. The program is as for
    /// [`main`](Self::main), and hands it to [`Server::run_http`].
    #[cfg(feature = "http")]
    pub fn http(mut self, program: impl FnOnce(&Server) -> Result<(), Failure> + 'static) -> Self {
        self.suite = self.suite.and(cases::of_a_stack());
        self.http = Some(Box::new(program));
        self
    }

    /// The test binary's `main`: runs the cases, or is the program under test, which then starts
    /// the library on its runtime and hands it to [`Server::run`].
    ///
    /// With `--faults FILE` it runs no cases, but measures what each fault costs, and writes the
    /// table into that file.
    pub fn main(self, program: impl FnOnce(&Server) -> Result<(), Failure>) -> ExitCode {
        if let Some(code) = self.suite.faults() {
            return code;
        }
        let http = self.http;
        self.suite.main(|generation| {
            let server = Server::enter(generation)?.blocking(self.blocks);
            match (generation.scenario().get("server"), http) {
                (None, _) => program(&server),
                (Some("hyper"), Some(http)) => http(&server),
                (Some(other), _) => Err(Failure::new(format!("there is no server `{other}`"))),
            }
        })
    }
}

impl std::fmt::Debug for Conformance {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Conformance").field("suite", &self.suite).finish_non_exhaustive()
    }
}

/// The cases in which one generation is on one runtime and the next on another: for a test binary
/// that depends on several adapters.
pub fn pairs() -> Pairs {
    Pairs { runtimes: Vec::new() }
}

/// Programs of several runtimes in one test binary.
#[must_use = "nothing runs before `main`"]
pub struct Pairs {
    runtimes: Vec<(&'static str, Served)>,
}

type Served = Box<dyn FnOnce(&Server) -> Result<(), Failure>>;

impl Pairs {
    /// Adds the program on that runtime, as for [`Conformance::main`].
    pub fn runtime(
        mut self,
        name: &'static str,
        program: impl FnOnce(&Server) -> Result<(), Failure> + 'static,
    ) -> Self {
        self.runtimes.push((name, Box::new(program)));
        self
    }

    /// The test binary's `main`: runs the cases, or is a program on the runtime that the case
    /// wants. Pairs with a runtime that is not there are skipped.
    pub fn main(self) -> ExitCode {
        let mut suite = Suite::new("pairs", cases::pairs::PAIRS.iter().map(|pair| pair.case));
        for pair in cases::pairs::PAIRS {
            let there = |name| self.runtimes.iter().any(|(runtime, _)| *runtime == name);
            if !there(pair.old) || !there(pair.new) {
                suite = suite.skip(pair.case.name, "a runtime of it is not in this binary");
            }
        }
        suite.main(|generation| {
            let server = Server::enter(generation)?;
            let wanted = generation.scenario().get("runtime").unwrap_or_default();
            let program = self.runtimes.into_iter().find(|(name, _)| *name == wanted);
            match program {
                Some((_, program)) => program(&server),
                None => Err(Failure::new(format!("there is no runtime `{wanted}`"))),
            }
        })
    }
}

impl std::fmt::Debug for Pairs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.runtimes.iter().map(|(name, _)| name)).finish()
    }
}
