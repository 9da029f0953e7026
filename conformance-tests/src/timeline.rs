//! What happened in a case, in all its processes, in order.

use std::collections::BTreeMap;
use std::fmt::{self, Write};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::{Failure, Stamp};

/// Something that a generation or the runner has noted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// When, by the clock of whoever noted it, which is the same for all.
    pub at: Stamp,
    /// Which process it is about. None: the case itself.
    pub pid: Option<u32>,
    /// What happened.
    pub name: String,
    /// Its details.
    pub fields: BTreeMap<String, String>,
}

/// The events of one case, from wherever they come.
#[derive(Debug)]
pub struct Timeline {
    began: Stamp,
    events: Mutex<Vec<Event>>,
    grown: Condvar,
    /// Where an account of them begins.
    told_from: Mutex<Option<Stamp>>,
}

impl Event {
    /// Whether it has this name.
    #[must_use]
    pub fn is(&self, name: &str) -> bool {
        self.name == name
    }

    /// A detail's text.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&str> {
        self.fields.get(key).map(String::as_str)
    }
}

impl Timeline {
    pub(crate) fn new() -> Self {
        Self {
            began: Stamp::now(),
            events: Mutex::default(),
            grown: Condvar::new(),
            told_from: Mutex::default(),
        }
    }

    /// The case's first moment.
    #[must_use]
    pub fn began(&self) -> Stamp {
        self.began
    }

    /// How many events have come, to wait for later ones with [`wait_for_after`](Self::wait_for_after).
    #[must_use]
    pub fn len(&self) -> usize {
        self.lock().len()
    }

    /// Whether nothing has happened yet.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// All events so far, in the order of their moments.
    #[must_use]
    pub fn events(&self) -> Vec<Event> {
        let mut events = self.lock().clone();
        // They arrive through several sockets: the order of arrival is not the order.
        events.sort_by_key(|event| event.at);
        events
    }

    /// Waits for an event that meets `condition`. One that has come already counts.
    ///
    /// # Errors
    ///
    /// If none comes `within` that time.
    pub fn wait_for(
        &self,
        what: &str,
        within: Duration,
        condition: impl FnMut(&Event) -> bool,
    ) -> Result<Event, Failure> {
        self.wait_for_after(0, what, within, condition)
    }

    /// Waits for an event that meets `condition`, among those that arrived after
    /// the first `seen`.
    ///
    /// # Errors
    ///
    /// If none comes `within` that time.
    pub fn wait_for_after(
        &self,
        mut seen: usize,
        what: &str,
        within: Duration,
        mut condition: impl FnMut(&Event) -> bool,
    ) -> Result<Event, Failure> {
        let deadline = Stamp::now() + within;
        let mut events = self.lock();
        loop {
            while let Some(event) = events.get(seen) {
                if condition(event) {
                    return Ok(event.clone());
                }
                seen += 1;
            }
            let left = deadline.since(Stamp::now());
            if left.is_zero() {
                return Err(Failure::new(format!("{what}: not within {within:?}")));
            }
            events =
                self.grown.wait_timeout(events, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Leaves out of an account what was before: for a case that runs for minutes.
    pub(crate) fn tell_from(&self, moment: Stamp) {
        *self.told_from.lock().unwrap_or_else(PoisonError::into_inner) = Some(moment);
    }

    pub(crate) fn push(&self, event: Event) {
        self.lock().push(event);
        self.grown.notify_all();
    }

    pub(crate) fn note(&self, pid: Option<u32>, name: &str, fields: &[(&str, &dyn fmt::Display)]) {
        let fields = fields.iter().map(|(key, value)| ((*key).into(), value.to_string())).collect();
        self.push(Event { at: Stamp::now(), pid, name: name.into(), fields });
    }

    /// The events and others beside them as lines, each with its moment since the case began.
    pub(crate) fn told_with(&self, others: Vec<(Stamp, String)>) -> String {
        let mut lines = others;
        lines.extend(self.events().into_iter().map(|event| (event.at, event.to_string())));
        let from = *self.told_from.lock().unwrap_or_else(PoisonError::into_inner);
        lines.retain(|&(at, _)| from.is_none_or(|from| at >= from));
        lines.sort_by_key(|&(at, _)| at);
        lines.into_iter().fold(String::new(), |mut text, (at, line)| {
            // Writing to a string cannot fail.
            let _ = writeln!(text, "  +{:9.6}  {line}", at.since(self.began).as_secs_f64());
            text
        })
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Event>> {
        self.events.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.pid {
            Some(pid) => write!(f, "{pid:>8}  {}", self.name)?,
            None => write!(f, "{:>8}  {}", "case", self.name)?,
        }
        for (key, value) in &self.fields {
            write!(f, " {key}={}", value.escape_debug())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn waits_for_what_comes_and_finds_what_has_come() {
        let timeline = Arc::new(Timeline::new());
        timeline.note(None, "one", &[]);
        let moment = Duration::from_secs(60);
        timeline.wait_for("one", moment, |event| event.is("one")).unwrap();

        let other = Arc::clone(&timeline);
        let thread = std::thread::spawn(move || other.note(Some(7), "one", &[("x", &1)]));
        let event = timeline.wait_for_after(1, "one", moment, |event| event.is("one")).unwrap();
        assert_eq!((event.pid, event.get("x")), (Some(7), Some("1")));
        thread.join().unwrap();

        let never = timeline.wait_for("two", Duration::from_millis(5), |event| event.is("two"));
        assert!(never.unwrap_err().to_string().contains("two"));
    }
}
