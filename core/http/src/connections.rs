use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// How many connections a server has. Cheap to clone; every clone counts the same.
#[derive(Debug, Clone, Default)]
pub struct Connections(Arc<Counts>);

#[derive(Debug, Default)]
struct Counts {
    open: AtomicUsize,
    busy: AtomicUsize,
}

impl Connections {
    /// Connections that are open, those after an upgrade included.
    pub fn open(&self) -> usize {
        self.0.open.load(Ordering::Relaxed)
    }

    /// Open connections on which a request is being answered, or that were upgraded. The others
    /// wait for their next request, or their first.
    pub fn busy(&self) -> usize {
        self.0.busy.load(Ordering::Relaxed)
    }

    pub(crate) fn opened(&self) {
        self.0.open.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn closed(&self) {
        self.0.open.fetch_sub(1, Ordering::Relaxed);
    }

    pub(crate) fn became_busy(&self) {
        self.0.busy.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn became_idle(&self) {
        self.0.busy.fetch_sub(1, Ordering::Relaxed);
    }
}
