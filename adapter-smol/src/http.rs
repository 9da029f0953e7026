//! Serving HTTP so that a restart loses no request: HTTP/1.1 and HTTP/2, over hyper.
//!
//! [`Server`] serves one connection. It takes hyper's traits: smol-hyper has them for a
//! [`Connection`](crate::Connection), for timers and for executors.

#[doc(no_inline)]
pub use handover_http::{Close, CloseFuture, CloseLayer, Connections, Server};
