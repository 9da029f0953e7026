//! Polling the driver beside the user's server, each only when it was woken itself: a server that
//! accepts ten thousand connections a second must not poll the driver as often.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use futures::task::AtomicWaker;

/// A future's place in a task that it shares with another.
pub(crate) struct Seat {
    flag: Arc<Flag>,
    waker: Waker,
}

#[derive(Default)]
struct Flag {
    woken: AtomicBool,
    task: AtomicWaker,
}

impl Wake for Flag {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if !self.woken.swap(true, Ordering::AcqRel) {
            self.task.wake();
        }
    }
}

impl Seat {
    pub(crate) fn new() -> Self {
        let flag = Arc::new(Flag::default());
        flag.woken.store(true, Ordering::Release);
        Self { waker: Waker::from(Arc::clone(&flag)), flag }
    }

    /// Has it polled the next time.
    pub(crate) fn wake(&self) {
        self.flag.woken.store(true, Ordering::Release);
    }

    /// Polls if it was woken since the last time.
    pub(crate) fn poll<T>(
        &self,
        context: &Context<'_>,
        poll: impl FnOnce(&mut Context<'_>) -> Poll<T>,
    ) -> Poll<T> {
        self.flag.task.register(context.waker());
        if self.flag.woken.swap(false, Ordering::AcqRel) {
            poll(&mut Context::from_waker(&self.waker))
        } else {
            Poll::Pending
        }
    }
}
