use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Wake, Waker};

/// More waiting tasks than a listener or a watcher usually has. Wakers of tasks that are long gone
/// must not pile up: at this number all are woken, and those that still wait return.
const MANY: usize = 64;

/// The tasks to wake when something changes. As a waker of its own it wakes them all.
pub(crate) struct Waiters(Mutex<Crowd>);

struct Crowd {
    wakers: Vec<Waker>,
    /// Grows when a crowd turns out to be waiting: it would otherwise drive itself in circles.
    limit: usize,
}

impl Default for Waiters {
    fn default() -> Self {
        Self(Mutex::new(Crowd { wakers: Vec::new(), limit: MANY }))
    }
}

impl Waiters {
    /// Wakes this task at the next change. Call it before, or under the lock of, the look at what
    /// may change.
    pub(crate) fn register(&self, waker: &Waker) {
        let mut crowd = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if crowd.wakers.iter().any(|known| known.will_wake(waker)) {
            return;
        }
        let mut woken = Vec::new();
        if crowd.wakers.len() >= crowd.limit {
            crowd.limit *= 2;
            woken = std::mem::take(&mut crowd.wakers);
        }
        crowd.wakers.push(waker.clone());
        drop(crowd);
        woken.into_iter().for_each(Waker::wake);
    }

    pub(crate) fn wake_all(&self) {
        let mut crowd = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // Nearly always there is one: it leaves the list's memory to the next.
        let (one, others) = match crowd.wakers.len() {
            1 => (crowd.wakers.pop(), Vec::new()),
            _ => (None, std::mem::take(&mut crowd.wakers)),
        };
        drop(crowd);
        one.into_iter().chain(others).for_each(Waker::wake);
    }
}

impl Wake for Waiters {
    fn wake(self: Arc<Self>) {
        self.wake_all();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.wake_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[derive(Default)]
    struct Count(AtomicUsize);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    #[test]
    fn a_waiting_crowd_is_not_driven_in_circles() {
        let waiters = Arc::new(Waiters::default());
        let counts: Vec<_> = (0..200).map(|_| Arc::new(Count::default())).collect();
        let wakers: Vec<_> = counts.iter().map(|count| Waker::from(Arc::clone(count))).collect();
        let mut seen = vec![0; counts.len()];
        let mut polls = counts.len();
        wakers.iter().for_each(|waker| waiters.register(waker));
        // Whoever is woken without a cause comes back.
        loop {
            let mut came = 0;
            for (at, count) in counts.iter().enumerate() {
                let woken = count.0.load(Ordering::SeqCst);
                if std::mem::replace(&mut seen[at], woken) != woken {
                    waiters.register(&wakers[at]);
                    came += 1;
                }
            }
            polls += came;
            if came == 0 {
                break;
            }
            assert!(polls < 2000, "they wake each other for ever");
        }
        let before: usize = seen.iter().sum();
        Waker::from(waiters).wake();
        let after: usize = counts.iter().map(|count| count.0.load(Ordering::SeqCst)).sum();
        assert_eq!(after - before, 200);
    }
}
