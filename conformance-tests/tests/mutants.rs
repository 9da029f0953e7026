//! The suite's own test: broken adapters, each of which must fail in the case that is named for it,
//! with words that point to the cause.
//!
//! This binary plays both parts. As a test it has one trial for each mutant, and starts itself with
//! `HANDOVER_MUTANT` set; it is then the conformance suite of that mutant.
#![allow(
    unreachable_pub,
    dead_code,
    reason = "the modules are as they would be in an adapter of their own"
)]

#[path = "guide/bare.rs"]
mod bare;
#[path = "mutants/broken.rs"]
mod broken;
#[path = "mutants/catalogue.rs"]
mod catalogue;

use std::process::{Command, ExitCode};
use std::sync::atomic::Ordering;

use handover_core::Start;
use libtest_mimic::{Arguments, Failed, Trial};

use crate::broken::Broken;
use crate::catalogue::{CATALOGUE, Mutant, Mutation, VARIABLE};

/// Most of the time they wait.
const AT_ONCE: usize = 6;

fn main() -> ExitCode {
    if Mutation::of_this_process().is_some() {
        return suite();
    }
    let mut arguments = Arguments::from_args();
    arguments.test_threads.get_or_insert(AT_ONCE);
    let trials = CATALOGUE.iter().map(|mutant| Trial::test(mutant.name, || judge(mutant)));
    libtest_mimic::run(&arguments, trials.collect()).exit_code()
}

fn suite() -> ExitCode {
    handover_conformance::suite("mutant").main(|subject| {
        bare::block_on(async {
            let start = Start::new(Broken, subject.policy())?;
            broken::INHERITS.store(start.predecessor().is_some(), Ordering::Relaxed);
            subject.run(start).await
        })?
    })
}

/// Runs the suite on a mutant, and looks whether it says what is wrong.
fn judge(mutant: &Mutant) -> Result<(), Failed> {
    for case in mutant.cases {
        let mut suite = Command::new(std::env::current_exe()?);
        suite.args([case, "--exact", "--test-threads", "1"]).env(VARIABLE, mutant.name);
        let output = suite.output()?;
        let text = String::from_utf8_lossy(&output.stdout);
        let account = || format!("`{case}` on this mutant:\n{text}");
        if !text.contains("running 1 test") {
            return Err(format!("there is no such case: {}", account()).into());
        }
        let Some(words) = mutant.words else {
            if output.status.success() {
                continue;
            }
            return Err(format!("it is correct, and has failed: {}", account()).into());
        };
        if output.status.success() {
            return Err(format!("it is broken, and has passed: {}", account()).into());
        }
        for word in words {
            if !text.contains(word) {
                return Err(format!("nothing says `{word}`: {}", account()).into());
            }
        }
    }
    Ok(())
}
