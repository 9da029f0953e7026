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

use std::collections::BTreeSet;
use std::process::{Command, ExitCode};
use std::sync::atomic::Ordering;

use handover_core::Start;
use libtest_mimic::{Arguments, Failed, Trial};

use crate::broken::Broken;
use crate::catalogue::{CATALOGUE, Mutant, Mutation, VARIABLE, Verdict};

/// Most of the time they wait.
const AT_ONCE: usize = 6;

fn main() -> ExitCode {
    if Mutation::of_this_process().is_some() {
        return suite();
    }
    let mut arguments = Arguments::from_args();
    arguments.test_threads.get_or_insert(AT_ONCE);
    let trials = CATALOGUE.iter().flat_map(|mutant| match mutant.verdict {
        Verdict::Fails(case, words) => vec![trial(mutant, case, Some(words))],
        Verdict::Passes => cases().into_iter().map(|case| trial(mutant, case, None)).collect(),
    });
    libtest_mimic::run(&arguments, trials.collect()).exit_code()
}

/// The cases in which some mutant fails.
fn cases() -> BTreeSet<&'static str> {
    let named = CATALOGUE.iter().filter_map(|mutant| match mutant.verdict {
        Verdict::Fails(case, _) => Some(case),
        Verdict::Passes => None,
    });
    named.collect()
}

fn trial(mutant: &Mutant, case: &'static str, words: Option<&'static [&'static str]>) -> Trial {
    let name = mutant.name;
    Trial::test(format!("{name}::{case}"), move || judge(name, case, words))
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

/// Runs a case on a mutant: it must fail and say these words, or pass if there are none.
fn judge(mutant: &str, case: &str, words: Option<&[&str]>) -> Result<(), Failed> {
    let mut suite = Command::new(std::env::current_exe()?);
    let output = suite.args([case, "--exact"]).env(VARIABLE, mutant).output()?;
    let account = String::from_utf8_lossy(&output.stdout);
    let failed = |what: &str| Err(format!("{what}:\n{account}").into());
    if !account.contains("running 1 test\n") || account.contains("; 1 ignored;") {
        return failed("there is no such case here");
    }
    match (words, output.status.success()) {
        (None, true) => Ok(()),
        (None, false) => failed("it is correct, and has failed"),
        (Some(_), true) => failed("it is broken, and has passed"),
        (Some(words), false) => match words.iter().find(|word| !account.contains(**word)) {
            Some(word) => failed(&format!("nothing says `{word}`")),
            None => Ok(()),
        },
    }
}
