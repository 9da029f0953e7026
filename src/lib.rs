//! Replace a server's process without its clients noticing.

pub use handover_core as core;

#[cfg(feature = "async-std")]
pub use handover_std::async_std;

#[cfg(feature = "smol")]
pub use handover_smol as smol;

#[cfg(feature = "std")]
pub use handover_std::threads;

#[cfg(feature = "tokio")]
pub use handover_tokio as tokio;
