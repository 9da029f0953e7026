//! Connections that block, each on a thread of its own.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures::channel::oneshot;
use futures::future::{Either, select};
use handover_core::Runtime;
use rustix::net::{Shutdown, shutdown};

use super::serve::{Answers, Task};
use crate::http::{self, Service};

/// A connection that can be told, while a thread waits in a read, that no request is waited for.
struct Interruptible<C> {
    connection: C,
    state: Arc<Mutex<State>>,
    /// Nothing of a request has come.
    between: bool,
    /// What has left HTTP has no end between two requests.
    upgraded: bool,
}

#[derive(Default)]
struct State {
    waits: bool,
    over: bool,
}

/// Serves it on a thread, and is over when that is.
pub(super) fn answer<C, R>(connection: C, service: Answers<R>) -> Task
where
    C: Read + Write + AsFd + Send + 'static,
    R: Runtime,
{
    let state = Arc::new(Mutex::new(State::default()));
    // Out of descriptors it cannot be interrupted, and then lasts until the drain's deadline.
    let copy = connection.as_fd().try_clone_to_owned().ok();
    let (closing, name) = (service.drain(), service.name().to_owned());
    let over = closing.over();
    let (running, ended) = oneshot::channel::<()>();
    let connection =
        Interruptible { connection, state: Arc::clone(&state), between: true, upgraded: false };
    let thread = std::thread::Builder::new().name("connection".into()).spawn(move || {
        // A client that goes away is no news for a server.
        let _ = http::serve_blocking_as(&name, connection, || closing.is_closing());
        drop(running);
    });
    let over = Box::pin(over);
    Box::pin(async move {
        if thread.is_err() {
            return;
        }
        if let Either::Right(((), ended)) = select(ended, over).await {
            interrupt(&state, copy.as_ref());
            let _ = ended.await;
        }
    })
}

fn interrupt(state: &Mutex<State>, connection: Option<&OwnedFd>) {
    let mut state = lock(state);
    state.over = true;
    if state.waits
        && let Some(connection) = connection
    {
        // A request that has arrived is still read.
        let _ = shutdown(connection, Shutdown::Read);
    }
}

impl<C: Read + AsFd> Read for Interruptible<C> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let idle = self.between && !self.upgraded;
        if idle {
            let mut state = lock(&self.state);
            if state.over {
                // The same as while it waits: a request that has arrived is read. To close the
                // connection over it would reset it.
                let _ = shutdown(&self.connection, Shutdown::Read);
            }
            state.waits = true;
        }
        let read = self.connection.read(buffer);
        if idle {
            lock(&self.state).waits = false;
        }
        if let Ok(length @ 1..) = read {
            self.between = false;
            self.upgraded |= buffer[..length].starts_with(b"PING");
        }
        read
    }
}

impl<C: Write> Write for Interruptible<C> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.between |= !bytes.starts_with(b"HTTP/1.1 100");
        self.connection.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.connection.flush()
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}
