#![doc = include_str!("manual.md")]

mod answer;
mod close;
mod connections;
mod io;
mod seen;
mod server;

pub use close::{Close, CloseFuture, CloseLayer};
pub use connections::{Connections, Counts};
pub use server::Server;

/// Types that occur in bounds and are of no use otherwise.
#[doc(hidden)]
pub mod bounds {
    pub use crate::answer::{Answer, AnswerBody};
}
