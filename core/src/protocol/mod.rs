//! The handover protocol: frames, and the socket that carries them.

pub(crate) mod channel;
pub(crate) mod frame;
