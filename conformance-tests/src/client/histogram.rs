//! How long things took, in little memory.

use std::fmt;
use std::time::Duration;

/// Steps between a power of two and the next: a value is off by 3 % at most.
const STEPS: u32 = 32;
const STEP_BITS: u32 = STEPS.ilog2();
/// Up to 2^40 us, twelve days. Beyond any deadline here.
const BUCKETS: usize = ((40 - STEP_BITS + 1) * STEPS) as usize;

/// Counts durations in buckets that grow with the value, to the microsecond.
#[derive(Clone)]
pub struct Histogram {
    buckets: Box<[u32]>,
    count: u64,
    max: Duration,
}

impl Histogram {
    pub(crate) fn new() -> Self {
        Self { buckets: vec![0; BUCKETS].into(), count: 0, max: Duration::ZERO }
    }

    pub(crate) fn record(&mut self, value: Duration) {
        self.buckets[bucket_of(value)] += 1;
        self.count += 1;
        self.max = self.max.max(value);
    }

    /// How many values were recorded.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.count
    }

    /// The largest value, exactly.
    #[must_use]
    pub fn max(&self) -> Duration {
        self.max
    }

    /// The value that `share` of all values do not exceed: 0.5 is the median.
    /// Zero if nothing was recorded.
    #[must_use]
    pub fn quantile(&self, share: f64) -> Duration {
        let wanted = (self.count as f64 * share).ceil() as u64;
        let mut seen = 0;
        for (index, &count) in self.buckets.iter().enumerate() {
            seen += u64::from(count);
            if seen >= wanted && count > 0 {
                return upper_bound(index).min(self.max);
            }
        }
        self.max
    }

    /// What was recorded in `self` or `other`.
    #[must_use]
    pub fn plus(&self, other: &Self) -> Self {
        let mut sum = self.clone();
        for (bucket, more) in sum.buckets.iter_mut().zip(&other.buckets) {
            *bucket += more;
        }
        sum.count += other.count;
        sum.max = sum.max.max(other.max);
        sum
    }
}

impl fmt::Debug for Histogram {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Histogram")
            .field("count", &self.count)
            .field("p50", &self.quantile(0.5))
            .field("p99", &self.quantile(0.99))
            .field("max", &self.max)
            .finish()
    }
}

fn bucket_of(value: Duration) -> usize {
    let micros = u64::try_from(value.as_micros()).unwrap_or(u64::MAX);
    if micros < u64::from(STEPS) {
        return micros as usize;
    }
    let shift = micros.ilog2() - STEP_BITS;
    // The top bit is what `shift` says; the next five bits are the step.
    let step = (micros >> shift) as usize - STEPS as usize;
    ((shift + 1) as usize * STEPS as usize + step).min(BUCKETS - 1)
}

fn upper_bound(index: usize) -> Duration {
    let steps = STEPS as usize;
    if index < steps {
        return Duration::from_micros(index as u64);
    }
    let shift = index / steps - 1;
    let step = (index % steps + steps) as u64;
    Duration::from_micros(((step + 1) << shift) - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_within_three_percent() {
        let mut histogram = Histogram::new();
        for micros in 1..=100_000 {
            histogram.record(Duration::from_micros(micros));
        }
        for (share, exact) in [(0.5, 50_000.0), (0.9, 90_000.0), (0.99, 99_000.0)] {
            let got = histogram.quantile(share).as_micros() as f64;
            assert!((got / exact - 1.0).abs() < 0.033, "{share}: {got} for {exact}");
        }
        assert_eq!(histogram.max(), Duration::from_millis(100));
        assert_eq!(histogram.count(), 100_000);
    }

    #[test]
    fn every_value_lies_below_the_bound_of_its_bucket() {
        for exponent in 0..39 {
            for micros in [1u64 << exponent, (1 << exponent) + 1, (2 << exponent) - 1] {
                let value = Duration::from_micros(micros);
                let bucket = bucket_of(value);
                assert!(upper_bound(bucket) >= value);
                assert!(bucket == 0 || upper_bound(bucket - 1) < value);
            }
        }
        assert_eq!(bucket_of(Duration::MAX), BUCKETS - 1);
    }

    #[test]
    fn an_empty_one_says_zero() {
        assert_eq!(Histogram::new().quantile(0.99), Duration::ZERO);
    }

    #[test]
    fn a_sum_counts_both() {
        let (mut one, mut other) = (Histogram::new(), Histogram::new());
        one.record(Duration::from_millis(1));
        other.record(Duration::from_millis(9));
        let sum = one.plus(&other);
        assert_eq!((sum.count(), sum.max()), (2, Duration::from_millis(9)));
    }
}
