//! Handover for plain [`threads`], and (behind the feature `async-std`) for async-std.
#[cfg(feature = "async-std")]
pub mod async_std;
pub mod threads;
