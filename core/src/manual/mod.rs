//! The manual: pages that are not the documentation of one item.

#[doc = include_str!("adapter.md")]
pub mod adapter {}

#[doc = include_str!("defaults.md")]
pub mod defaults {}

#[doc = include_str!("protocol.md")]
pub mod protocol {}

#[doc = include_str!("faults.md")]
pub mod faults {}

#[doc = include_str!("operating.md")]
pub mod operating {}
