//! Time that several processes agree on, and the one place that polls.

use std::fmt;
use std::ops::{Add, Sub};
use std::time::Duration;

use rustix::time::{ClockId, Timespec, clock_gettime};

use crate::Failure;

/// A moment of `CLOCK_MONOTONIC`.
///
/// [`std::time::Instant`] reads the same clock but cannot be written down, and
/// the moments here travel between processes: a generation's events, what the
/// clients saw and what the runner did end up in one timeline.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Stamp(u64);

impl Stamp {
    /// The current moment.
    #[must_use]
    pub fn now() -> Self {
        let now = clock_gettime(ClockId::Monotonic);
        // The monotonic clock counts from boot: neither part is negative.
        Self(now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64)
    }

    /// The moment that [`as_nanos`](Self::as_nanos) wrote down.
    #[must_use]
    pub const fn from_nanos(nanos: u64) -> Self {
        Self(nanos)
    }

    /// Nanoseconds since the clock's start.
    #[must_use]
    pub const fn as_nanos(self) -> u64 {
        self.0
    }

    /// How long after `earlier` this is; zero if it is before.
    #[must_use]
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }

    pub(crate) fn timespec(self) -> Timespec {
        Timespec {
            tv_sec: (self.0 / 1_000_000_000) as i64,
            tv_nsec: (self.0 % 1_000_000_000) as i64,
        }
    }
}

impl Add<Duration> for Stamp {
    type Output = Self;

    fn add(self, later: Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(later.as_nanos()).unwrap_or(u64::MAX)))
    }
}

impl Sub for Stamp {
    type Output = Duration;

    fn sub(self, earlier: Self) -> Duration {
        self.since(earlier)
    }
}

impl fmt::Display for Stamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:06}", self.0 / 1_000_000_000, self.0 / 1_000 % 1_000_000)
    }
}

/// Waits until `condition` gives a value, looking again and again.
///
/// Only for what the kernel offers no event for (the content of `/proc`, a
/// queue's length): everything else waits for its event. Starts at 1 ms between
/// two looks and ends at 20 ms, so that a quick change is seen quickly and a
/// slow one does not eat the processor that it waits for.
///
/// # Errors
///
/// After `within`, naming `what` did not come.
pub fn poll_until<T>(
    within: Duration,
    what: &str,
    mut condition: impl FnMut() -> Option<T>,
) -> Result<T, Failure> {
    let deadline = Stamp::now() + within;
    let mut pause = Duration::from_millis(1);
    loop {
        if let Some(value) = condition() {
            return Ok(value);
        }
        let left = deadline.since(Stamp::now());
        if left.is_zero() {
            return Err(Failure::new(format!("{what}: not within {within:?}")));
        }
        std::thread::sleep(pause.min(left));
        pause = (pause * 2).min(Duration::from_millis(20));
    }
}
