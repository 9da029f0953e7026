use std::fmt;
use std::sync::Arc;
use std::task::Waker;

use sync::{AtomicU64, AtomicWaker, Ordering};

#[cfg(not(all(test, loom)))]
mod sync {
    pub(super) use std::sync::atomic::{AtomicU64, Ordering};

    pub(super) use futures::task::AtomicWaker;
}

/// Checked with every interleaving: `RUSTFLAGS="--cfg loom" cargo test -p handover-core --lib
/// --release in_flight`.
#[cfg(all(test, loom))]
mod sync {
    use std::task::Waker;

    pub(super) use loom::sync::atomic::{AtomicU64, Ordering};

    #[derive(Default)]
    pub(super) struct AtomicWaker(loom::future::AtomicWaker);

    impl AtomicWaker {
        pub(super) fn register(&self, waker: &Waker) {
            self.0.register_by_ref(waker);
        }

        pub(super) fn wake(&self) {
            self.0.wake();
        }

        pub(super) fn take(&self) -> Option<Waker> {
            self.0.take_waker()
        }
    }
}

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

#[cfg(all(test, not(loom)))]
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

#[cfg(all(test, loom))]
mod loom_tests {
    use super::*;
    use loom::future::block_on;
    use loom::sync::atomic::AtomicBool;
    use loom::thread;
    use std::future::poll_fn;
    use std::task::Poll;

    /// Every interleaving with at most so many preemptions; without a number, every one.
    fn check(most: Option<usize>, run: fn()) {
        let mut model = loom::model::Builder::new();
        model.preemption_bound = most;
        model.check(run);
    }

    /// As the driver does it. If a wake-up is lost, loom finds a deadlock.
    fn wait(counter: &InFlight) {
        block_on(poll_fn(|context| {
            counter.await_zero(context.waker());
            if counter.count() == 0 { Poll::Ready(()) } else { Poll::Pending }
        }));
    }

    #[test]
    fn the_last_of_two_guards_wakes() {
        check(None, || {
            let counter = Arc::new(InFlight::default());
            let guards = [counter.guard(), counter.guard()];
            let threads = guards.map(|guard| thread::spawn(move || drop(guard)));
            wait(&counter);
            assert_eq!(counter.count(), 0);
            threads.into_iter().for_each(|thread| thread.join().unwrap());
        });
    }

    #[test]
    fn an_accept_that_finds_nothing_does_not_hide_the_end() {
        check(Some(4), || {
            let counter = Arc::new(InFlight::default());
            let connection = counter.guard();
            let accepting = {
                let counter = Arc::clone(&counter);
                thread::spawn(move || drop(counter.guard()))
            };
            let serving = thread::spawn(move || drop(connection));
            wait(&counter);
            accepting.join().unwrap();
            serving.join().unwrap();
            assert_eq!(counter.count(), 0);
        });
    }

    #[test]
    fn a_rollback_between_two_drains_loses_nothing() {
        check(Some(4), || {
            let counter = Arc::new(InFlight::default());
            let guards = [counter.guard(), counter.guard()];
            let threads = guards.map(|guard| thread::spawn(move || drop(guard)));
            block_on(poll_fn(|context| {
                counter.await_zero(context.waker());
                Poll::Ready(())
            }));
            counter.stop_awaiting();
            wait(&counter);
            assert_eq!(counter.count(), 0);
            threads.into_iter().for_each(|thread| thread.join().unwrap());
        });
    }

    /// What the one word is for: with the wish and the count in two, each side may read the other's
    /// as it was before.
    #[test]
    #[should_panic = "deadlock"]
    fn two_words_would_miss_each_other() {
        #[derive(Default)]
        struct TwoWords {
            count: AtomicU64,
            awaited: AtomicBool,
            waker: sync::AtomicWaker,
        }

        check(None, || {
            let counter = Arc::new(TwoWords::default());
            counter.count.store(1, Ordering::Release);
            let thread = {
                let counter = Arc::clone(&counter);
                thread::spawn(move || {
                    let last = counter.count.fetch_sub(1, Ordering::AcqRel) == 1;
                    if last && counter.awaited.load(Ordering::Acquire) {
                        counter.waker.wake();
                    }
                })
            };
            block_on(poll_fn(|context| {
                counter.waker.register(context.waker());
                counter.awaited.store(true, Ordering::Release);
                match counter.count.load(Ordering::Acquire) {
                    0 => Poll::Ready(()),
                    _ => Poll::Pending,
                }
            }));
            thread.join().unwrap();
        });
    }
}
