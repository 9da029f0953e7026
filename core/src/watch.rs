use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use event_listener::{Event, listener};

use crate::machine::State;

/// The state of an instance, for everybody who wants to see it change.
#[derive(Clone)]
pub(crate) struct StateWatch(Arc<Shared>);

struct Shared {
    /// `STARTING`, or the state's place in `STATES`.
    state: AtomicU8,
    changed: Event,
}

const STARTING: u8 = u8::MAX;
const STATES: [State; 4] = [State::Serving, State::Forking, State::Draining, State::Exited];

impl StateWatch {
    pub(crate) fn new() -> Self {
        Self(Arc::new(Shared { state: AtomicU8::new(STARTING), changed: Event::new() }))
    }

    pub(crate) fn get(&self) -> Option<State> {
        STATES.get(usize::from(self.0.state.load(Ordering::Acquire))).copied()
    }

    pub(crate) fn set(&self, state: Option<State>) {
        let place = STATES.iter().position(|known| Some(*known) == state);
        let place = place.map_or(STARTING, |place| place as u8);
        if self.0.state.swap(place, Ordering::AcqRel) != place {
            self.0.changed.notify(usize::MAX);
        }
    }

    pub(crate) async fn changed(&self, known: Option<State>) -> Option<State> {
        loop {
            listener!(self.0.changed => changed);
            let state = self.get();
            if state != known {
                return state;
            }
            changed.await;
        }
    }
}
