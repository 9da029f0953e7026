//! Connections that block, each on a thread of its own.

use std::io::{self, Read, Write};
use std::os::fd::AsFd;

use futures::channel::oneshot;
use handover_core::{Drain, Runtime};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;

use super::answers::{Answers, Task};
use crate::http::{self, Service};

/// A connection that ends when no request is waited for any more.
struct Draining<C> {
    connection: C,
    drain: Drain,
    /// Nothing of a request has come.
    between: bool,
    /// What has left HTTP has no end between two requests.
    upgraded: bool,
}

/// Serves it on a thread, and is over when that is.
pub(super) fn answer<C, R>(connection: C, service: Answers<R>) -> Task
where
    C: Read + Write + AsFd + Send + 'static,
    R: Runtime,
{
    let (drain, name) = (service.drain(), service.name().to_owned());
    let (running, ended) = oneshot::channel::<()>();
    let connection = Draining { connection, drain: drain.clone(), between: true, upgraded: false };
    #[cfg(feature = "tls")]
    let tls = service.tls();
    // Without a thread the connection is closed, and this is over at once.
    let _ = std::thread::Builder::new().name("connection".into()).spawn(move || {
        let _dropped_at_the_end = running;
        let closing = || drain.is_closing();
        // A client that goes away is no news for a server.
        #[cfg(feature = "tls")]
        if let Some(tls) = tls {
            if let Ok(connection) = super::tls::over(tls, connection) {
                let _ = http::serve_blocking_as(&name, connection, closing);
            }
            return;
        }
        let _ = http::serve_blocking_as(&name, connection, closing);
    });
    Box::pin(async move {
        let _ = ended.await;
    })
}

impl<C: AsFd> Draining<C> {
    /// Waits for a request; whether it is over instead. Out of descriptors nothing tells, and it
    /// lasts until the drain's deadline.
    fn is_over(&self) -> bool {
        let Ok(over) = self.drain.over_descriptor() else { return false };
        let mut polled = [
            PollFd::new(&self.connection, PollFlags::IN),
            PollFd::from_borrowed_fd(over, PollFlags::IN),
        ];
        while let Err(Errno::INTR) = poll(&mut polled, None) {}
        // A request that has arrived is still read.
        let [request, over] = polled.map(|polled| !polled.revents().is_empty());
        over && !request
    }
}

impl<C: Read + AsFd> Read for Draining<C> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.between && !self.upgraded && self.is_over() {
            return Ok(0);
        }
        let read = self.connection.read(buffer);
        if let Ok(length @ 1..) = read {
            self.between = false;
            self.upgraded |= buffer[..length].starts_with(b"PING");
        }
        read
    }
}

impl<C: Write> Write for Draining<C> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.between |= !bytes.starts_with(b"HTTP/1.1 100");
        self.connection.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.connection.flush()
    }
}
