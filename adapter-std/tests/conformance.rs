//! All that the conformance suite asks of an adapter, on threads.

use std::process::ExitCode;

use handover_std::threads::{self, block_on};

const BLOCKS: &str = "a `run` that blocks its thread cannot be dropped";

fn main() -> ExitCode {
    handover_conformance::suite("threads")
        .skip("descriptors::nothing_is_left_of_a_run_that_is_dropped", BLOCKS)
        .skip("old_process_fails::its_driver_is_dropped_during_a_restart", BLOCKS)
        .skip("old_process_fails::its_driver_is_dropped_while_draining", BLOCKS)
        .skip("old_process_fails::its_runtime_hangs", "the driver has a thread of its own")
        .main(|subject| {
            subject.run_blocking(
                threads::start_with(subject.policy())?,
                |start, reason| start.give_up(reason),
                |start, server| {
                    start.run(|| block_on(server).unwrap_or_else(|e| Err(e.to_string())))
                },
            )
        })
}
