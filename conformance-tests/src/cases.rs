//! The catalogue of what every adapter must show.

mod adapter;
mod at_the_same_time;
mod chaos;
pub(crate) mod common;
mod descriptors;
mod drain;
mod frozen;
mod http;
#[cfg(feature = "http")]
mod http2;
mod manager;
mod new_version_fails;
mod old_process_fails;
pub(crate) mod pairs;
mod serve;
mod talk;
mod terminal;
#[cfg(feature = "tls")]
mod tls;

use crate::Case;

/// What can only befall a future, and why not a thread.
pub(crate) const OF_A_FUTURE: &[(&str, &str)] = &[
    ("descriptors::nothing_is_left_of_a_run_that_is_dropped", CANNOT_BE_DROPPED),
    ("old_process_fails::its_driver_is_dropped_during_a_restart", CANNOT_BE_DROPPED),
    ("old_process_fails::its_driver_is_dropped_while_draining", CANNOT_BE_DROPPED),
    ("old_process_fails::its_runtime_hangs", "the driver does not share a thread with the server"),
];
const CANNOT_BE_DROPPED: &str = "a `run` that blocks its thread cannot be dropped";

pub(crate) fn all() -> impl Iterator<Item = Case> {
    let groups = [
        serve::CASES,
        drain::CASES,
        descriptors::CASES,
        new_version_fails::CASES,
        old_process_fails::CASES,
        at_the_same_time::CASES,
        http::CASES,
        #[cfg(feature = "tls")]
        tls::CASES,
        adapter::CASES,
        manager::CASES,
    ];
    groups.into_iter().flatten().copied().chain([chaos::case()])
}

/// Those about an adapter's own HTTP stack.
#[cfg(feature = "http")]
pub(crate) fn of_a_stack() -> impl Iterator<Item = Case> {
    [http::OF_A_STACK, http2::CASES].into_iter().flatten().copied()
}
