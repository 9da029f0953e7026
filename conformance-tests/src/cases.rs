//! The catalogue of what every adapter must show.

mod common;
mod descriptors;
mod drain;
mod new_version_fails;
mod serve;
mod talk;
mod terminal;

use crate::Case;

pub(crate) fn all() -> impl Iterator<Item = Case> {
    let groups = [serve::CASES, drain::CASES, descriptors::CASES, new_version_fails::CASES];
    groups.into_iter().flatten().copied()
}
