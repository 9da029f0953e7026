//! What is known of one connection.
//!
//! hyper tells neither which protocol a connection speaks, nor whether it holds a part of a
//! request, nor whether another request waits behind the one that is being answered. All three
//! follow from what it reads and when.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use crate::connections::Connections;

/// Shared by a connection's input and output, its service and its answers. They are all polled by
/// one task in HTTP/1, so that `Relaxed` is enough; in HTTP/2 the counts alone matter.
pub(crate) struct Seen {
    /// HTTP/1: hyper may hold bytes that it has not passed on yet.
    unparsed: AtomicBool,
    http2: AtomicBool,
    upgraded: AtomicBool,
    /// How many requests are being answered.
    requests: AtomicUsize,
    connections: Connections,
}

impl Seen {
    pub(crate) fn new(connections: Connections) -> Arc<Self> {
        connections.opened();
        Arc::new(Self {
            unparsed: AtomicBool::new(false),
            http2: AtomicBool::new(false),
            upgraded: AtomicBool::new(false),
            requests: AtomicUsize::new(0),
            connections,
        })
    }

    /// hyper is about to read. While a request is being answered it does so only when its buffer
    /// is empty: for the request's body, or to see whether the client has gone.
    pub(crate) fn reads(&self) {
        if self.is_busy() {
            self.unparsed.store(false, Ordering::Relaxed);
        }
    }

    /// hyper got bytes.
    pub(crate) fn got_bytes(&self) {
        self.unparsed.store(true, Ordering::Relaxed);
    }

    /// The connection began with the preface of HTTP/2.
    pub(crate) fn speaks_http2(&self) {
        self.http2.store(true, Ordering::Relaxed);
    }

    /// A request begins; it ends when the value is dropped.
    pub(crate) fn request(self: &Arc<Self>) -> Answering {
        if self.requests.fetch_add(1, Ordering::Relaxed) == 0 {
            self.connections.became_busy();
        }
        // More may be in the buffer. If not, hyper's next step is to read.
        self.unparsed.store(true, Ordering::Relaxed);
        Answering(Arc::clone(self))
    }

    /// The connection is not HTTP's any more, and busy to its end: as if the request whose answer
    /// this is had none.
    pub(crate) fn upgrades(&self) {
        if !self.upgraded.swap(true, Ordering::Relaxed) {
            self.requests.fetch_add(1, Ordering::Relaxed);
        }
    }

    pub(crate) fn is_http2(&self) -> bool {
        self.http2.load(Ordering::Relaxed)
    }

    /// HTTP/1: whether another request, or a part of one, has been read already.
    pub(crate) fn has_unparsed(&self) -> bool {
        self.unparsed.load(Ordering::Relaxed)
    }

    /// HTTP/1: whether there is neither a request nor a part of one.
    pub(crate) fn is_idle(&self) -> bool {
        !self.is_busy() && !self.has_unparsed()
    }

    fn is_busy(&self) -> bool {
        self.requests.load(Ordering::Relaxed) > 0
    }
}

impl Drop for Seen {
    fn drop(&mut self) {
        if *self.upgraded.get_mut() {
            self.connections.became_idle();
        }
        self.connections.closed();
    }
}

/// A request that is being answered.
pub(crate) struct Answering(Arc<Seen>);

impl Answering {
    pub(crate) fn seen(&self) -> &Seen {
        &self.0
    }
}

impl Drop for Answering {
    fn drop(&mut self) {
        if self.0.requests.fetch_sub(1, Ordering::Relaxed) == 1 {
            self.0.connections.became_idle();
        }
    }
}
