#![doc = include_str!("manual.md")]

mod answer;
mod close;
mod connections;
mod goaway;
mod io;
mod runtime;
mod seen;
mod serve;
mod server;
mod service;

pub use close::{Close, CloseFuture, CloseLayer};
pub use connections::{Connections, Counts};
#[doc(no_inline)]
pub use handover_core::Drain;
pub use runtime::{Accept, Adapt, Spawn, Tasks};
pub use serve::{Plain, Serve};
pub use server::Server;
pub use service::HyperToTower;

/// Types that occur in bounds and are of no use otherwise.
#[doc(hidden)]
pub mod bounds {
    pub use crate::answer::{Answer, AnswerBody};
}
