use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::Waker;

use futures::task::AtomicWaker;

/// Set in the counter's word while somebody waits for the count to reach zero. It shares the word
/// with the count, so that "the last one has left" and "we wait" cannot miss each other.
const AWAITED: u64 = 1 << 63;

/// How many connections, and other pieces of work, are in flight.
#[derive(Default)]
pub(crate) struct InFlight {
    word: AtomicU64,
    waker: AtomicWaker,
}

impl InFlight {
    /// Counts one more, until the guard is dropped.
    pub(crate) fn guard(self: &Arc<Self>) -> Guard {
        // The guard is taken before the accept, under the gate's lock, which orders it against
        // the closing of the gate.
        self.word.fetch_add(1, Ordering::Relaxed);
        Guard { counter: Arc::clone(self) }
    }

    pub(crate) fn count(&self) -> u64 {
        self.word.load(Ordering::Acquire) & !AWAITED
    }

    /// Has `waker` woken when the count falls to zero. The caller looks at the count afterwards.
    pub(crate) fn await_zero(&self, waker: &Waker) {
        self.waker.register(waker);
        self.word.fetch_or(AWAITED, Ordering::AcqRel);
    }

    /// Undoes [`await_zero`](Self::await_zero).
    pub(crate) fn stop_awaiting(&self) {
        self.word.fetch_and(!AWAITED, Ordering::AcqRel);
        self.waker.take();
    }
}

/// One piece of work in flight: a connection, a job. The process does not leave before it is
/// dropped, or before the drain deadline.
///
/// It is taken before the connection is accepted, so that no connection is ever uncounted.
#[must_use = "the work counts as finished as soon as the guard is dropped"]
pub struct Guard {
    counter: Arc<InFlight>,
}

impl Drop for Guard {
    fn drop(&mut self) {
        if self.counter.word.fetch_sub(1, Ordering::AcqRel) == AWAITED | 1 {
            self.counter.waker.wake();
        }
    }
}

impl fmt::Debug for Guard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Guard").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicUsize;
    use std::task::Wake;

    #[derive(Default)]
    struct Count(AtomicUsize);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    #[test]
    fn only_the_last_guard_wakes_and_only_when_awaited() {
        let counter = Arc::new(InFlight::default());
        let wakes = Arc::new(Count::default());
        let waker = Waker::from(Arc::clone(&wakes));

        drop(counter.guard());
        let (first, second) = (counter.guard(), counter.guard());
        counter.await_zero(&waker);
        assert_eq!(counter.count(), 2);
        drop(first);
        assert_eq!(wakes.0.load(Ordering::SeqCst), 0);
        drop(second);
        assert_eq!((wakes.0.load(Ordering::SeqCst), counter.count()), (1, 0));

        counter.stop_awaiting();
        drop(counter.guard());
        assert_eq!(wakes.0.load(Ordering::SeqCst), 1);
    }
}
