//! All that the conformance suite asks of an adapter, on async-std.

use std::process::ExitCode;

fn main() -> ExitCode {
    handover_conformance::suite("async-std").main(|subject| {
        async_std::task::block_on(async {
            let start = handover_std::async_std::start_with(subject.policy())?;
            subject.run(start).await
        })
    })
}
