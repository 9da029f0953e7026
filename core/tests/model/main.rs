//! Every history of a few generations, over the real [`Machine`](handover_core::machine::Machine):
//! invariants 1 to 5 and 7 to 9 of the manual's protocol page are checked in every state that crashes, stops,
//! timers and the network between the processes can lead to. (6 and 10 concern one machine and
//! are in its own tests; 11 and 12 need descriptors.)
//!
//! `cargo test` explores what takes some seconds; `MODEL=full cargo test --release -p
//! handover-core --test model -- --nocapture` explores more.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "tests fail by panicking, and show what they counted and how long it took"
)]

mod world;

use std::collections::HashMap;
use std::collections::hash_map::{DefaultHasher, Entry};
use std::hash::{Hash, Hasher};
use std::time::Instant;

use world::{Budget, Bug, Machines, Move, Rules, What, World};

const NOTHING: Budget = Budget {
    processes: 1,
    restarts: 0,
    crashes: 0,
    drops: 0,
    stops: 0,
    quits: 0,
    spawn_failures: 0,
    vetoes: 0,
};

const SOUND: Rules = Rules { bug: Bug::None, strict: true };

fn is_full() -> bool {
    std::env::var_os("MODEL").is_some_and(|value| value == "full")
}

struct Found {
    states: usize,
    /// The broken invariant and the shortest way to it.
    broken: Option<(String, Vec<String>)>,
}

/// Breadth first, so that what is found first is found on a shortest way. States are told apart
/// by 64 bits of their hash: at ten million states a collision has a chance of three in a million.
fn explore(budget: Budget, rules: Rules) -> Found {
    let began = Instant::now();
    let mut machines = Machines::new();
    let start = World::new(budget, &mut machines);
    let mut numbers = HashMap::from([(fingerprint(&start), 0u32)]);
    let mut origins: Vec<Option<(u32, Move)>> = vec![None];
    let mut edges: Vec<(u32, u32)> = Vec::new();
    let mut level = vec![(0u32, start)];
    let mut broken = None;
    'all: while !level.is_empty() {
        let mut next_level = Vec::new();
        for (number, world) in level {
            let moves = world.moves(&machines, rules);
            if let Err(why) = world.judge_end(&moves, &machines) {
                broken = Some((why, number, None));
                break 'all;
            }
            for step in moves {
                let next = match world.step(step, &mut machines, rules) {
                    Ok(next) => next,
                    Err(why) => {
                        broken = Some((why, number, Some(step)));
                        break 'all;
                    }
                };
                let count = u32::try_from(origins.len()).expect("fewer states");
                let known = match numbers.entry(fingerprint(&next)) {
                    Entry::Occupied(known) => *known.get(),
                    Entry::Vacant(vacant) => {
                        vacant.insert(count);
                        origins.push(Some((number, step)));
                        next_level.push((count, next));
                        count
                    }
                };
                if known != number {
                    edges.push((number, known));
                }
            }
        }
        level = next_level;
    }
    let states = origins.len();
    if broken.is_none() {
        assert_no_circle(states, &edges);
    }
    println!(
        "{budget:?}, {:?}: {states} states, {} steps, {} machines, {:.1?}",
        rules.bug,
        edges.len(),
        machines.len(),
        began.elapsed()
    );
    let broken = broken.map(|(why, mut at, last)| {
        let mut path: Vec<_> = last.into_iter().collect();
        while let Some((before, step)) = origins[at as usize] {
            path.push(step);
            at = before;
        }
        path.reverse();
        let mut world = start;
        let mut trace = Vec::new();
        for step in path {
            trace.push(world.describe(step, &machines));
            if let Ok(next) = world.step(step, &mut machines, rules) {
                world = next;
            }
        }
        (why, trace)
    });
    Found { states, broken }
}

fn fingerprint(world: &World) -> u64 {
    let mut hasher = DefaultHasher::new();
    world.hash(&mut hasher);
    hasher.finish()
}

/// Invariant 9's other half: nothing goes round for ever, so that every run has an end (and what
/// an end must look like was checked where no step was left).
fn assert_no_circle(states: usize, edges: &[(u32, u32)]) {
    let mut incoming = vec![0u32; states];
    let mut first = vec![0u32; states + 1];
    for (from, to) in edges {
        incoming[*to as usize] += 1;
        first[*from as usize + 1] += 1;
    }
    for at in 0..states {
        first[at + 1] += first[at];
    }
    // The edges were found state by state, so they are ordered by where they start.
    let mut free: Vec<usize> = (0..states).filter(|at| incoming[*at] == 0).collect();
    let mut done = 0;
    while let Some(at) = free.pop() {
        done += 1;
        for (_, to) in &edges[first[at] as usize..first[at + 1] as usize] {
            let to = *to as usize;
            incoming[to] -= 1;
            if incoming[to] == 0 {
                free.push(to);
            }
        }
    }
    assert_eq!(done, states, "9: some histories go round in circles");
}

fn assert_sound(budget: Budget) {
    let Found { states, broken } = explore(budget, SOUND);
    if let Some((why, trace)) = broken {
        panic!("{why}\n{}", trace.join("\n"));
    }
    assert!(states > 100, "the model does not move");
}

#[test]
fn two_generations() {
    assert_sound(Budget {
        processes: 2,
        restarts: 2,
        crashes: 2,
        drops: 1,
        stops: 2,
        quits: 1,
        spawn_failures: 1,
        vetoes: 1,
    });
}

const THREE: Budget = Budget { processes: 3, restarts: 2, ..NOTHING };

#[test]
fn three_generations_and_crashes() {
    assert_sound(Budget { crashes: 2, ..THREE });
}

#[test]
fn three_generations_and_a_stop() {
    assert_sound(Budget { stops: 1, ..THREE });
}

#[test]
fn three_generations_and_everything() {
    if !is_full() {
        println!("only with MODEL=full");
        return;
    }
    let more = Budget { spawn_failures: 1, vetoes: 1, restarts: 3, ..THREE };
    assert_sound(Budget { crashes: 2, drops: 1, ..more });
    assert_sound(Budget { crashes: 2, stops: 1, ..THREE });
    assert_sound(Budget { crashes: 1, stops: 2, quits: 1, ..THREE });
    assert_sound(Budget { crashes: 2, drops: 1, stops: 2, quits: 1, ..THREE });
}

#[test]
fn four_generations() {
    if !is_full() {
        println!("only with MODEL=full");
        return;
    }
    assert_sound(Budget { processes: 4, restarts: 3, crashes: 2, ..NOTHING });
}

/// The planted bug must be found, and what is printed is the shortest way to it.
fn assert_found(budget: Budget, rules: Rules, invariants: &[&str]) {
    let (why, trace) = explore(budget, rules).broken.expect("the model finds the planted bug");
    println!("{:?} breaks {why}\n  {}\n", rules.bug, trace.join("\n  "));
    assert!(invariants.iter().any(|number| why.starts_with(number)), "{why}");
}

fn planted(bug: Bug) -> Rules {
    Rules { bug, strict: false }
}

#[test]
fn finds_end_of_file_before_frames() {
    let budget = Budget { processes: 2, restarts: 1, crashes: 1, stops: 1, ..NOTHING };
    assert_found(budget, planted(Bug::EndOfFileBeforeFrames), &["7"]);
}

#[test]
fn finds_commit_before_the_gate_is_closed() {
    let budget = Budget { processes: 2, restarts: 1, ..NOTHING };
    assert_found(budget, planted(Bug::CommitBeforeGate), &["1"]);
    let strict = Rules { strict: true, ..planted(Bug::CommitBeforeGate) };
    assert_found(budget, strict, &["2"]);
}

#[test]
fn finds_an_orphan_that_serves_without_the_lock() {
    // Two generations cannot show the harm: the orphan's only rival is dead.
    let two = Budget { processes: 2, restarts: 1, crashes: 1, ..NOTHING };
    assert!(explore(two, planted(Bug::OrphanWithoutLock)).broken.is_none());
    let three = Budget { processes: 3, restarts: 2, ..two };
    assert_found(three, planted(Bug::OrphanWithoutLock), &["1"]);
}

#[test]
fn finds_release_at_fork() {
    let budget = Budget { processes: 3, restarts: 2, crashes: 1, ..NOTHING };
    assert_found(budget, planted(Bug::ReleaseAtFork), &["3"]);
}

#[test]
fn steps_are_sorted_into_kinds() {
    use handover_core::machine::Input;
    let step = |what| Move { process: 0, what };
    assert!(!step(What::Crash).is_fair() && !step(What::Give(Input::Stop)).is_fair());
    assert!(step(What::Timeout).is_fair() && !step(What::Timeout).is_certain());
    assert!(step(What::Act).is_certain());
}
