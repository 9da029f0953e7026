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
