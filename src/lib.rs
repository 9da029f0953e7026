//! Replace a server's process without its clients noticing.

pub use handover_core as core;

#[cfg(feature = "tokio")]
pub use handover_tokio as tokio;
