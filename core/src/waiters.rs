use std::sync::{Mutex, PoisonError};
use std::task::Waker;

/// More waiting tasks than a listener or a watcher ever has at once. Wakers of tasks that are
/// long gone must not pile up: at this number all are woken, and those that still wait return.
const MANY: usize = 64;

/// The tasks to wake when something changes.
#[derive(Default)]
pub(crate) struct Waiters(Mutex<Vec<Waker>>);

impl Waiters {
    /// Wakes this task at the next change. Call it before, or under the lock of, the look at what
    /// may change.
    pub(crate) fn register(&self, waker: &Waker) {
        let mut wakers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if wakers.iter().any(|known| known.will_wake(waker)) {
            return;
        }
        let crowd = if wakers.len() >= MANY { std::mem::take(&mut *wakers) } else { Vec::new() };
        wakers.push(waker.clone());
        drop(wakers);
        crowd.into_iter().for_each(Waker::wake);
    }

    /// Wakes everybody else: this task has got what they wait for too, and a runtime that knows
    /// only the task that asked last will not wake them for the next.
    pub(crate) fn pass_on(&self, waker: &Waker) {
        let mut wakers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        wakers.retain(|known| !known.will_wake(waker));
        let others = std::mem::take(&mut *wakers);
        drop(wakers);
        others.into_iter().for_each(Waker::wake);
    }

    pub(crate) fn wake_all(&self) {
        let wakers = std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner));
        wakers.into_iter().for_each(Waker::wake);
    }
}
