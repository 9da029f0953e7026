use std::collections::HashMap;
use std::error::Error as StdError;
use std::future::Future;

use futures::future::BoxFuture;

use crate::runtime::Signal;

/// Something that hooks can be run before or after.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Event {
    /// A signal. An error of a hook before it vetoes a restart; a stop goes on.
    Signal(Signal),
    /// The first accept of this process, in every generation. An error of a hook before it ends
    /// [`run`](crate::Start::run) (in a successor: it gives up, and the predecessor goes on).
    Accept,
    /// A restart. Before: nothing has happened yet, an error vetoes it. After: its outcome is
    /// known.
    Restart,
    /// The switch to the successor. Before: the successor is ready and this process still serves;
    /// what must exist once (a lock, a timer) is given up here; an error aborts the restart. It may
    /// still fail afterwards: take it back in `after` [`Restart`](Event::Restart) if that was not
    /// followed by a commit, and in `after` [`RollBack`](Event::RollBack).
    Commit,
    /// The end of probation. Only `after`: no rollback can follow any more.
    Settle,
    /// The return from `Draining` to `Serving`. Only `after`.
    RollBack,
    /// The loss of the predecessor while it could still have taken over again. Only `after`.
    Alone,
    /// A stop of the service (not a replacement). Before: it still serves; an error is reported
    /// and the stop goes on. After: nothing is in flight any more.
    Stop,
}

pub(crate) type HookResult = Result<(), Box<dyn StdError + Send + Sync>>;
type Hook = Box<dyn FnMut() -> BoxFuture<'static, HookResult> + Send>;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum When {
    Before,
    After,
}

#[derive(Default)]
pub(crate) struct Hooks(HashMap<(When, Event), Vec<Hook>>);

impl Hooks {
    pub(crate) fn add<F, Fut>(&mut self, when: When, event: Event, mut hook: F)
    where
        F: FnMut() -> Fut + Send + 'static,
        Fut: Future<Output = HookResult> + Send + 'static,
    {
        let hook: Hook = Box::new(move || Box::pin(hook()));
        self.0.entry((when, event)).or_default().push(hook);
    }

    pub(crate) fn signals(&self) -> impl Iterator<Item = Signal> {
        self.0.keys().filter_map(|(_, event)| match event {
            Event::Signal(signal) => Some(*signal),
            _ => None,
        })
    }

    /// Runs the hooks in the order in which they were added; the first error ends it. `None` if
    /// there are none.
    pub(crate) fn run(
        &mut self,
        when: When,
        event: Event,
    ) -> Option<BoxFuture<'static, HookResult>> {
        let hooks = self.0.get_mut(&(when, event)).filter(|hooks| !hooks.is_empty())?;
        // Called here, awaited there: a hook is a closure that makes a future.
        let futures: Vec<_> = hooks.iter_mut().map(|hook| hook()).collect();
        Some(Box::pin(async move {
            for future in futures {
                future.await?;
            }
            Ok(())
        }))
    }
}
