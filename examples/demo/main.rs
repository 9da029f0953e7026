//! A server that is replaced ten times under load, and clients that do not notice.
//!
//! ```sh
//! cargo run --release --example demo --features tokio
//! ```
//!
//! One binary in two roles. As `demo serve` it is the server ([`server`]: an axum app that
//! restarts on SIGHUP). Without an argument it is the operator and the clients: it installs a copy
//! of itself in a temporary folder and starts that ([`fleet`]), puts load on it, then ten times
//! renames a new build over the copy and sends SIGHUP ([`story`]), and shows what happens
//! ([`view`]). It ends with status 1 if any request was lost, or anything was left behind.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "showing is what it is for")]

mod fleet;
mod server;
mod story;
mod view;

use std::process::ExitCode;

fn main() -> ExitCode {
    let result = match std::env::args().nth(1).as_deref() {
        None => story::run(),
        Some("serve") => server::run().map(|()| true),
        Some(other) => Err(handover_conformance::Failure::new(format!("what is `{other}`?"))),
    };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(failure) => {
            eprintln!("demo: {failure}");
            ExitCode::FAILURE
        }
    }
}
