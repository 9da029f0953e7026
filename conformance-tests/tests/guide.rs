//! All that the conformance suite asks of an adapter, of the one that the guide builds.
#![allow(
    unreachable_pub,
    dead_code,
    reason = "the modules are as they would be in an adapter of their own"
)]

#[path = "guide/adapter.rs"]
mod adapter;
#[path = "guide/bare.rs"]
mod bare;

use std::process::ExitCode;

fn main() -> ExitCode {
    handover_conformance::suite("guide").main(|subject| {
        bare::block_on(async {
            let start = adapter::start_with(subject.policy())?;
            subject.run(start).await
        })?
    })
}
