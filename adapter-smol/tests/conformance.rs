//! All that the conformance suite asks of an adapter, on smol.

use std::process::ExitCode;

fn main() -> ExitCode {
    handover_conformance::suite("smol").main(|subject| {
        smol::block_on(async {
            let start = handover_smol::start_with(subject.policy())?;
            subject.run(start).await
        })
    })
}
