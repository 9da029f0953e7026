//! The catalogue of what every adapter must show.

mod common;
mod drain;
mod serve;
mod talk;

use crate::Case;

pub(crate) fn all() -> impl Iterator<Item = Case> {
    [serve::CASES, drain::CASES].into_iter().flatten().copied()
}
