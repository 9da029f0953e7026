use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use event_listener::{Event, listener};
use futures::Stream;

/// How many connections a server has. Cheap to clone; every clone counts the same.
#[derive(Clone, Default)]
pub struct Connections(Arc<Shared>);

#[derive(Default)]
struct Shared {
    /// Both counts and `WATCHED`. They share a word so that a change and the wish to hear of it
    /// cannot miss each other, and nobody sees one count without the other.
    word: AtomicU64,
    changed: Event,
}

/// Somebody waits for the next change. Whoever makes it takes the bit away: without a watcher a
/// change is the one addition that counts it.
const WATCHED: u64 = 1 << 63;
const OPEN: u64 = 1 << 32;
const BUSY: u64 = 1;

/// How many connections a server had at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub struct Counts {
    /// Connections that were open, those after an upgrade included.
    pub open: usize,
    /// Of these, those on which a request was being answered, or that were upgraded.
    pub busy: usize,
}

impl Counts {
    fn of(word: u64) -> Self {
        let open = (word & !WATCHED) / OPEN;
        Self { open: open as usize, busy: (word % OPEN) as usize }
    }
}

/// `3 open, 1 busy`.
impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} open, {} busy", self.open, self.busy)
    }
}

impl Connections {
    /// Connections that are open, those after an upgrade included.
    pub fn open(&self) -> usize {
        self.counts().open
    }

    /// Open connections on which a request is being answered, or that were upgraded. The others
    /// wait for their next request, or their first.
    pub fn busy(&self) -> usize {
        self.counts().busy
    }

    /// Both at one moment: `busy` is never the greater.
    pub fn counts(&self) -> Counts {
        Counts::of(self.0.word.load(Ordering::Relaxed))
    }

    /// The counts from now on: the present ones first, then each change. Several changes between
    /// two polls show as one. It does not end.
    ///
    /// While somebody watches, each change wakes a task; otherwise it costs nothing. So watch while
    /// it matters, for example to say what a drain still waits for:
    ///
    /// ```
    /// # use futures::StreamExt;
    /// # async fn log(drain: handover_core::Drain, connections: handover_http::Connections) {
    /// drain.closing().await;
    /// let mut changes = std::pin::pin!(connections.changes());
    /// while let Some(counts) = changes.next().await {
    ///     tracing::info!("still {counts}");
    ///     if counts.open == 0 {
    ///         break;
    ///     }
    /// }
    /// # }
    /// ```
    ///
    /// # Cancel safety
    /// Dropping the stream, or the future of its next item, loses nothing.
    pub fn changes(&self) -> impl Stream<Item = Counts> + Send + use<> {
        futures::stream::unfold((self.clone(), None), |(connections, known)| async move {
            let counts = connections.changed(known).await;
            Some((counts, (connections, Some(counts))))
        })
    }

    async fn changed(&self, known: Option<Counts>) -> Counts {
        loop {
            if known.is_none() {
                return self.counts();
            }
            listener!(self.0.changed => changed);
            // After the listener is there: whoever sees the bit finds it.
            let counts = Counts::of(self.0.word.fetch_or(WATCHED, Ordering::AcqRel));
            if known != Some(counts) {
                return counts;
            }
            changed.await;
        }
    }

    pub(crate) fn opened(&self) {
        self.told(self.0.word.fetch_add(OPEN, Ordering::Relaxed));
    }

    pub(crate) fn closed(&self) {
        self.told(self.0.word.fetch_sub(OPEN, Ordering::Relaxed));
    }

    pub(crate) fn became_busy(&self) {
        self.told(self.0.word.fetch_add(BUSY, Ordering::Relaxed));
    }

    pub(crate) fn became_idle(&self) {
        self.told(self.0.word.fetch_sub(BUSY, Ordering::Relaxed));
    }

    fn told(&self, before: u64) {
        if before & WATCHED != 0 {
            self.wake();
        }
    }

    #[cold]
    fn wake(&self) {
        // If the bit is gone, it was taken after this change, by one that wakes for both.
        if self.0.word.fetch_and(!WATCHED, Ordering::AcqRel) & WATCHED != 0 {
            self.0.changed.notify(usize::MAX);
        }
    }
}

impl fmt::Debug for Connections {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Counts { open, busy } = self.counts();
        f.debug_struct("Connections").field("open", &open).field("busy", &busy).finish()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test")]
mod tests {
    use super::*;
    use futures::StreamExt;
    use futures::executor::block_on;
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    fn counts(open: usize, busy: usize) -> Counts {
        Counts { open, busy }
    }

    #[test]
    fn changes_are_seen_and_those_between_two_looks_are_one() {
        let connections = Connections::default();
        connections.opened();
        let mut changes = pin!(connections.changes());
        assert_eq!(block_on(changes.next()), Some(counts(1, 0)));

        let context = &mut Context::from_waker(Waker::noop());
        assert_eq!(changes.poll_next_unpin(context), Poll::Pending);
        connections.opened();
        connections.became_busy();
        assert_eq!(changes.poll_next_unpin(context), Poll::Ready(Some(counts(2, 1))));
        assert_eq!(changes.poll_next_unpin(context), Poll::Pending);
        connections.became_busy();
        connections.became_idle();
        assert_eq!(changes.poll_next_unpin(context), Poll::Pending, "nothing has changed");
        assert_eq!(connections.counts().to_string(), "2 open, 1 busy");
    }

    #[test]
    fn one_change_is_all_that_a_watcher_who_left_costs() {
        let connections = Connections::default();
        let is_watched = || connections.0.word.load(Ordering::Relaxed) & WATCHED != 0;
        let mut changes = Box::pin(connections.changes());
        assert_eq!(block_on(changes.next()), Some(counts(0, 0)));
        assert!(!is_watched());
        let context = &mut Context::from_waker(Waker::noop());
        assert!(changes.poll_next_unpin(context).is_pending());
        assert!(is_watched());
        drop(changes);
        connections.opened();
        assert!(!is_watched());
    }

    #[test]
    fn no_change_is_missed() {
        for _ in 0..500 {
            let connections = Connections::default();
            let threads = [(); 2].map(|()| {
                let connections = connections.clone();
                std::thread::spawn(move || {
                    for _ in 0..20 {
                        connections.opened();
                        connections.became_busy();
                        connections.became_idle();
                        connections.closed();
                    }
                    connections.opened();
                    connections.opened();
                })
            });
            // Four are open at the very end only. Without the last wake-up it would wait for ever.
            let mut all = pin!(connections.changes().filter(|counts| {
                assert!(counts.busy <= counts.open, "{counts}");
                std::future::ready(counts.open == 4)
            }));
            assert_eq!(block_on(all.next()), Some(counts(4, 0)));
            threads.into_iter().for_each(|thread| thread.join().unwrap());
        }
    }
}
