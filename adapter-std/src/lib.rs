//! Handover for whoever has the standard library and nothing else: for plain [`threads`], and (behind a feature) for
//! async-std.
//!
//! # Features
//!
//! - `async-std`: the module `async_std`. Legacy: async-std was discontinued in March 2025.

#[cfg(feature = "async-std")]
pub mod async_std;
pub mod threads;
