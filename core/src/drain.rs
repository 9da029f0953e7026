use std::fmt;
use std::future::Future;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU8, Ordering, fence};
use std::sync::{Arc, OnceLock};

use event_listener::{Event, listener};
use rustix::event::{EventfdFlags, eventfd};

/// How far the draining of a process has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Stage {
    /// Nothing ends.
    Open = 0,
    /// From the commit, or a stop: connections should end when they can do so without a loss (HTTP
    /// answers say `Connection: close`). Nothing is closed. A rollback leads back to `Open`.
    Closing = 1,
    /// Irreversible: nobody comes back to this process, and the linger is over. A server's own
    /// graceful shutdown may begin.
    Over = 2,
    /// The drain deadline has passed: what is left is not waited for.
    Cut = 3,
}

/// The drain signal, for the connections of a server. Cheap to clone; every clone sees the same.
#[derive(Clone)]
pub struct Drain(Arc<Shared>);

struct Shared {
    stage: AtomicU8,
    changed: Event,
    /// For those that wait for descriptors, if there are any.
    over: OnceLock<OwnedFd>,
}

impl Drain {
    pub(crate) fn new() -> Self {
        let (stage, changed) = (AtomicU8::new(0), Event::new());
        Drain(Arc::new(Shared { stage, changed, over: OnceLock::new() }))
    }

    /// A drain signal that belongs to no instance, to test a server with, and what sets its stage.
    pub fn manual() -> (Self, impl Fn(Stage) + Clone + Send + Sync + use<>) {
        let drain = Self::new();
        let shared = drain.clone();
        (drain, move |stage| shared.set(stage))
    }

    /// The present stage. One atomic load: cheap enough for every request.
    pub fn stage(&self) -> Stage {
        match self.0.stage.load(Ordering::Acquire) {
            0 => Stage::Open,
            1 => Stage::Closing,
            2 => Stage::Over,
            _ => Stage::Cut,
        }
    }

    /// Whether connections should end when they can: answers should say `Connection: close`.
    pub fn is_closing(&self) -> bool {
        self.stage() >= Stage::Closing
    }

    /// Resolves when draining starts. A rollback may follow, after which a new call waits again.
    pub fn closing(&self) -> impl Future<Output = ()> + Send + use<> {
        self.reached(Stage::Closing)
    }

    /// Resolves when a server's own graceful shutdown may begin: give it to
    /// `axum::serve(..).with_graceful_shutdown(..)`.
    pub fn over(&self) -> impl Future<Output = ()> + Send + use<> {
        self.reached(Stage::Over)
    }

    /// Resolves at the drain deadline, at [`quit`](crate::Handle::quit), and when
    /// [`run`](crate::Start::run) has ended or was dropped: nothing waits any more.
    ///
    /// For programs that live on after `run`: a task that they spawned for a connection does so
    /// too, and holds the connection open, unless it waits for this beside its work and then drops
    /// it. (`http::serve` does. Where the process ends after `run`, so do all its tasks.) What is
    /// dropped here was counted in [`Exit::cut`](crate::Exit::cut) already.
    pub fn cut(&self) -> impl Future<Output = ()> + Send + use<> {
        self.reached(Stage::Cut)
    }

    /// The same as [`over`](Self::over), for what waits with poll(2) or in an event loop of its own:
    /// a descriptor that becomes readable then, and stays so. It is one for all clones of this
    /// drain signal, made at the first call: any number of threads can wait for it beside the
    /// connection that each of them serves. Only wait for it: there is nothing in it to read.
    ///
    /// # Errors
    /// No more descriptors can be had.
    pub fn over_descriptor(&self) -> io::Result<BorrowedFd<'_>> {
        if let Some(over) = self.0.over.get() {
            return Ok(over.as_fd());
        }
        // As a semaphore, so that whoever reads it all the same takes nothing from the others.
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK | EventfdFlags::SEMAPHORE;
        let made = eventfd(0, flags)?;
        let over = self.0.over.get_or_init(|| made);
        // Either `set` sees the descriptor, or this sees the stage.
        fence(Ordering::SeqCst);
        if self.stage() >= Stage::Over {
            make_readable(over);
        }
        Ok(over.as_fd())
    }

    fn reached(&self, stage: Stage) -> impl Future<Output = ()> + Send + use<> {
        let drain = self.clone();
        async move {
            while drain.stage() < stage {
                listener!(drain.0.changed => changed);
                if drain.stage() < stage {
                    changed.await;
                }
            }
        }
    }

    pub(crate) fn set(&self, stage: Stage) {
        self.0.stage.store(stage as u8, Ordering::Release);
        self.0.changed.notify(usize::MAX);
        fence(Ordering::SeqCst);
        if stage >= Stage::Over
            && let Some(over) = self.0.over.get()
        {
            make_readable(over);
        }
    }
}

fn make_readable(over: &OwnedFd) {
    // It fails only if it was done before.
    let _ = rustix::io::write(over, &(u64::MAX - 1).to_ne_bytes());
}

impl fmt::Debug for Drain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Drain").field(&self.stage()).finish()
    }
}
