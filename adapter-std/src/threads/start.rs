use std::error::Error;
use std::ops::{Deref, DerefMut};
use std::panic::resume_unwind;
use std::thread;

use futures::channel::oneshot;
use handover_core::{ErrorKind, Exit, Result, ServerOutput};

use super::Threads;
use super::wait::block_on;

/// A process before its first accept. See [`handover_core::Start`], to which it dereferences; only
/// [`run`](Start::run) is different, and takes a closure.
#[must_use = "nothing is served before `run`"]
pub struct Start(handover_core::Start<Threads>);

impl Start {
    /// Serves: says ready, waits for the predecessor's commit, opens the gates, and runs `server`,
    /// on a thread of its own, until this process has been replaced or stopped and everything in
    /// flight is done or was cut. The calling thread waits, and sees to signals and restarts.
    ///
    /// The server's listeners wait while this process drains, so that a rollback can resume them,
    /// and end when it stops: `incoming` returns `None`. A server that ends by itself stops this
    /// process; its error becomes the error of `run`, and its panic goes on here.
    ///
    /// No thread can be dropped: one that does not come back by itself, in `server` or in a
    /// connection at the drain deadline, is left behind, and ends with the process.
    ///
    /// # Errors
    /// This process must not serve (its predecessor goes on), the server failed, or a hook before
    /// the first accept did.
    pub fn run<F, O>(self, server: F) -> Result<Exit>
    where
        F: FnOnce() -> O + Send + 'static,
        O: ServerOutput + Send + 'static,
    {
        block_on(self.0.run(on_a_thread(server))).unwrap_or_else(|error| {
            Err(handover_core::Error::with_source(ErrorKind::Runtime, "wait", error))
        })
    }

    /// See [`handover_core::Start::give_up`].
    pub fn give_up(self, reason: impl Into<String>) {
        self.0.give_up(reason);
    }
}

async fn on_a_thread<F, O>(server: F) -> std::result::Result<(), Box<dyn Error + Send + Sync>>
where
    F: FnOnce() -> O + Send + 'static,
    O: ServerOutput + Send + 'static,
{
    let (running, ended) = oneshot::channel::<()>();
    let server = move || {
        let _dropped_at_the_end = running;
        server()
    };
    let thread = thread::Builder::new().name("server".into()).spawn(server)?;
    let _ = ended.await;
    let output = thread.join().unwrap_or_else(|panic| resume_unwind(panic));
    output.into_error().map_or(Ok(()), Err)
}

impl From<handover_core::Start<Threads>> for Start {
    fn from(start: handover_core::Start<Threads>) -> Self {
        Start(start)
    }
}

impl Deref for Start {
    type Target = handover_core::Start<Threads>;

    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

impl DerefMut for Start {
    fn deref_mut(&mut self) -> &mut Self::Target {
        &mut self.0
    }
}
