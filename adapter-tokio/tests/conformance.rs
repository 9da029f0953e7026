//! All that the conformance suite asks of an adapter, on tokio.

use std::process::ExitCode;

fn main() -> ExitCode {
    let suite = handover_conformance::suite("tokio");
    #[cfg(feature = "http")]
    let suite = suite.http(|subject| {
        tokio::runtime::Runtime::new()?.block_on(async {
            let start = handover_tokio::start_with(subject.policy())?;
            subject.run_http(start, handover_tokio::http::serve).await
        })
    });
    suite.main(|subject| {
        tokio::runtime::Runtime::new()?.block_on(async {
            let start = handover_tokio::start_with(subject.policy())?;
            subject.run(start).await
        })
    })
}
