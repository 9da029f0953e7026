//! All that the conformance suite asks of an adapter, on threads.

use std::process::ExitCode;

use handover_std::threads::{self, block_on};

fn main() -> ExitCode {
    handover_conformance::suite("threads").blocking().main(|subject| {
        subject.run_blocking(
            threads::start_with(subject.policy())?,
            |start, reason| start.give_up(reason),
            |start, server| start.run(|| block_on(server).unwrap_or_else(|e| Err(e.to_string()))),
        )
    })
}
