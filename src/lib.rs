//! A server replaces its own process (a new binary, a new configuration) while its clients notice
//! nothing: the old process hands its open sockets to a new one, the new one says when it is
//! ready, the old one finishes what it was doing and leaves. If the new one fails, the old one
//! goes on.
//!
//! This crate only selects: one feature for each runtime, each a module with the same API. None is
//! on by default, and any set of them may be. It is not a supervisor, and not an HTTP server.
//!
//! | feature | module |
//! |---|---|
//! | `tokio` | [`handover::tokio`](tokio) |
//! | `smol` | [`handover::smol`](smol): smol, and every executor beside async-io |
//! | `std` | [`handover::threads`](threads): plain threads |
//! | `async-std` | [`handover::async_std`](async_std): legacy, since async-std is discontinued |
//! | `http` | `http` in the modules of tokio and smol: HTTP/1.1 and HTTP/2 that a restart does not break |
//! | `axum08` | `axum::serve` with the listeners of `tokio` |
//!
#![cfg_attr(
    feature = "tokio",
    doc = r#"
```no_run
use handover::tokio::Event;

#[tokio::main]
async fn main() -> handover::core::Result<()> {
    let mut start = handover::tokio::start()?;                 // inherits, if there is a predecessor
    let listener = start.listen_tcp("echo", "127.0.0.1:3000")?; // inherited, or bound now
    start.after(Event::Settle, || async { Ok(println!("the successor has settled")) });
    start
        .run(async {
            while let Ok((connection, _)) = listener.accept().await {
                tokio::spawn(async move { drop(connection) });  // in flight until it is dropped
            }
        })
        .await?;                                               // SIGHUP restarts, SIGTERM stops
    Ok(())
}
```
"#
)]
//!
//! The [manual](core::manual) explains the protocol and what cannot be promised, what an operator
//! sends and sees, why each default is what it is, and how to write an adapter for another
//! runtime.

pub use handover_core as core;

#[cfg(feature = "async-std")]
pub use handover_std::async_std;

#[cfg(feature = "smol")]
pub use handover_smol as smol;

#[cfg(feature = "std")]
pub use handover_std::threads;

#[cfg(feature = "tokio")]
pub use handover_tokio as tokio;
