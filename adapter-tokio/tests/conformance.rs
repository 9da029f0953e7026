//! All that the conformance suite asks of an adapter, on tokio.

use std::process::ExitCode;

fn main() -> ExitCode {
    handover_conformance::suite("tokio").main(|subject| {
        tokio::runtime::Runtime::new()?.block_on(async {
            let start = handover_tokio::start_with(subject.policy())?;
            subject.run(start).await
        })
    })
}
