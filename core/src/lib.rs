//! The core of Handover: a server replaces its own process (a new binary, a new configuration) while
//! its clients notice nothing.
//!
//! It is not a runtime, not an HTTP server and not a supervisor. Programs use it through the
//! `handover` crate and a runtime's module there; this crate is for whoever writes an adapter for
//! a runtime, or wants the [state machine](machine) alone.
//!
//! # The contract
//!
//! - The old process hands its sockets to the new one by name, the new one says when it is ready,
//!   the old one then finishes what it was doing and leaves ([`Start::run`] returns).
//! - Whatever the new process does wrong before it serves, the old one goes on as before and says
//!   why ([`RestartError`]). If the new one dies within its probation, the old one serves again.
//! - At most one process accepts at a time; the kernel keeps the ownership.
//!
//! The [manual] says how ([`protocol`](manual::protocol)), what an operator needs to know
//! ([`operating`](manual::operating)), what each failure costs ([`faults`](manual::faults)), why each
//! default is what it is
//! ([`defaults`](manual::defaults)), and how to write an adapter ([`adapter`](manual::adapter)).
//!
//! # How it is built
//!
//! [`Machine`](machine::Machine) decides, and does no input or output. One driver, polled inside
//! [`Start::run`], gives it what happened and does what it says, over a small [`Runtime`] that an
//! adapter implements. Every accept goes through a [`Gated`] socket, which counts the connection
//! before it exists and which the driver opens and closes.
//!
//! It starts no thread but two short-lived ones per restart (one to start the process, since exec
//! may block; one to seal application state), catches the signals of its [`Policy`] through the
//! runtime, keeps one epoll instance and a few descriptors, all close-on-exec, and never changes
//! its process's environment.
//!
//! # Platforms
//!
//! Linux 5.4 or newer (pidfds).
//!
//! # Cancel safety
//!
//! Each async function says what dropping its future does. Dropping `run` ends the instance.

#![cfg_attr(
    test,
    allow(
        clippy::disallowed_methods,
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::print_stdout,
        reason = "tests live in real time, fail by panicking, and show what they counted"
    )
)]

mod activation;
mod attempt;
mod bind;
mod connection;
mod descriptor;
mod drain;
mod driver;
mod error;
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod fuzz;
mod gate;
mod handle;
mod hooks;
mod in_flight;
mod inherit;
mod join;
pub mod machine;
pub mod manual;
mod notify;
mod outcome;
mod ownership;
mod policy;
mod poller;
mod protocol;
mod raw;
mod registry;
mod runtime;
mod shortage;
#[cfg(feature = "signals")]
mod signal_pipe;
mod sockets;
mod spawn;
mod start;
mod state;
mod terminal;
mod waiters;
mod watch;

pub use bind::ListenOptions;
pub use connection::Connection;
pub use descriptor::{Address, Kind};
pub use drain::{Drain, Stage};
pub use error::{Error, ErrorKind, Result};
pub use gate::{Gated, Source};
pub use handle::Handle;
pub use hooks::Event;
pub use in_flight::Guard;
pub use machine::{Failure, State};
pub use outcome::{Exit, RestartError, ServerOutput, Steps, Takeover};
pub use policy::{Policy, Verb};
pub use registry::{Claim, Origin};
pub use runtime::{Datagrams, Listener, Runtime, Signal, Sockets};
pub use shortage::pause_after;
#[cfg(feature = "signals")]
pub use signal_pipe::SignalPipe;
#[doc(hidden)]
pub use sockets::__private;
pub use spawn::Ended;
pub use start::Start;
pub use state::HandedOver;
