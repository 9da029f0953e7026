pub mod client;
mod clock;
mod failure;
pub use clock::{Stamp, poll_until};
pub use failure::{Doing, Failure};
