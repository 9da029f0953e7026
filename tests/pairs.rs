//! A server on one runtime is replaced by one on another.

use std::process::ExitCode;

use handover::threads::{self, block_on};

fn main() -> ExitCode {
    handover_conformance::pairs()
        .runtime("tokio", |subject| {
            tokio::runtime::Runtime::new()?.block_on(async {
                let start = handover::tokio::start_with(subject.policy())?;
                subject.run(start).await
            })
        })
        .runtime("smol", |subject| {
            smol::block_on(async {
                let start = handover::smol::start_with(subject.policy())?;
                subject.run(start).await
            })
        })
        .runtime("threads", |subject| {
            subject.run_blocking(
                threads::start_with(subject.policy())?,
                |start, reason| start.give_up(reason),
                |start, server| {
                    start.run(|| block_on(server).unwrap_or_else(|error| Err(error.to_string())))
                },
            )
        })
        .runtime("async-std", |subject| {
            // Its sockets and timers need no executor of its own.
            smol::block_on(async {
                let start = handover::async_std::start_with(subject.policy())?;
                subject.run(start).await
            })
        })
        .main()
}
