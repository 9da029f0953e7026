//! All that the conformance suite asks of an adapter, on smol.

use std::process::ExitCode;

fn main() -> ExitCode {
    let suite = handover_conformance::suite("smol");
    #[cfg(feature = "http")]
    let suite = suite.http(|subject| {
        smol::block_on(async {
            let start = handover_smol::start_with(subject.policy())?;
            let spawn = |task| smol::spawn(task).detach();
            subject.run_http(start, move |l, s| handover_smol::http::serve(l, s, spawn)).await
        })
    });
    suite.main(|subject| {
        smol::block_on(async {
            let start = handover_smol::start_with(subject.policy())?;
            subject.run(start).await
        })
    })
}
