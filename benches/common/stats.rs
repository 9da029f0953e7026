//! Figures, and how they are shown.

use std::time::Duration;

/// Whether a look is enough: `--quick`, or `QUICK` in the environment.
pub(crate) fn quick() -> bool {
    std::env::args().any(|argument| argument == "--quick")
        || std::env::var_os("QUICK").is_some_and(|value| value != "0")
}

/// The middle one, or between the two that are; 0 of none.
pub(crate) fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match (sorted.get(sorted.len().saturating_sub(1) / 2), sorted.get(sorted.len() / 2)) {
        (Some(low), Some(high)) => f64::midpoint(*low, *high),
        _ => 0.0,
    }
}

/// The largest; 0 of none.
pub(crate) fn max(values: &[f64]) -> f64 {
    values.iter().copied().fold(0.0, f64::max)
}

/// Milliseconds.
#[allow(dead_code, reason = "not every bench measures so long")]
pub(crate) fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}
