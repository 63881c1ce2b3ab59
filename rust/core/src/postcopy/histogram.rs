//! Durations in log-linear buckets, counted by many threads without a lock and readable at any time.
//!
//! As an HDR histogram: every power of two is divided into 64 buckets, so a value read back (the middle of its bucket) is wrong by
//! less than 0.8 %; below 128 every value has its own bucket. The greatest value is kept exactly.

use std::sync::atomic::{AtomicU64, Ordering};

use serde_json::{Value, json};

/// log2 of the buckets in a power of two.
const FINE: u32 = 6;
const PER_OCTAVE: usize = 1 << FINE;
/// Values of 2^42 ns (73 minutes) and more share the last bucket.
const OCTAVES: usize = 42 - FINE as usize;
const BUCKETS: usize = (OCTAVES + 1) * PER_OCTAVE;

/// Counts of durations in nanoseconds.
#[derive(Debug)]
pub(crate) struct Histogram {
    buckets: Box<[AtomicU64]>,
    sum: AtomicU64,
    max: AtomicU64,
}

/// The bucket of a value.
fn index(value: u64) -> usize {
    let shift = (u64::BITS - FINE - 1).saturating_sub(value.leading_zeros());
    // At most 127 after the shift.
    let fine = usize::try_from(value >> shift).unwrap_or(usize::MAX);
    (shift as usize * PER_OCTAVE + fine).min(BUCKETS - 1)
}

/// The least value of a bucket, and how many it has.
fn bounds(index: usize) -> (u64, u64) {
    let shift = (index / PER_OCTAVE).saturating_sub(1);
    (((index - shift * PER_OCTAVE) as u64) << shift, 1 << shift)
}

impl Histogram {
    pub(crate) fn new() -> Self {
        Self { buckets: (0..BUCKETS).map(|_| AtomicU64::new(0)).collect(), sum: AtomicU64::new(0), max: AtomicU64::new(0) }
    }

    pub(crate) fn add(&self, value: u64) {
        self.buckets[index(value)].fetch_add(1, Ordering::Relaxed);
        self.sum.fetch_add(value, Ordering::Relaxed);
        if value > self.max.load(Ordering::Relaxed) {
            self.max.fetch_max(value, Ordering::Relaxed);
        }
    }

    /// What was counted so far; counts that come meanwhile are in it or not.
    pub(crate) fn snapshot(&self) -> Snapshot {
        let counts: Vec<u64> = self.buckets.iter().map(|bucket| bucket.load(Ordering::Relaxed)).collect();
        let count = counts.iter().sum();
        Snapshot { counts, count, sum: self.sum.load(Ordering::Relaxed), max: self.max.load(Ordering::Relaxed) }
    }
}

/// A histogram that does not change.
#[derive(Debug)]
pub(crate) struct Snapshot {
    counts: Vec<u64>,
    pub(crate) count: u64,
    sum: u64,
    pub(crate) max: u64,
}

impl Snapshot {
    /// The value that `per_mille` of a thousand do not exceed; 0 if there is none.
    pub(crate) fn percentile(&self, per_mille: u64) -> u64 {
        let wanted = (self.count * per_mille).div_ceil(1000).max(1);
        let mut seen = 0;
        for (bucket, count) in self.counts.iter().enumerate() {
            seen += count;
            if seen >= wanted {
                let (least, width) = bounds(bucket);
                return (least + width / 2).min(self.max);
            }
        }
        0
    }

    /// For records: count, percentiles, greatest and mean in nanoseconds, and the buckets as [least value, how many values wide, count].
    pub(crate) fn record(&self) -> Value {
        let at = |per_mille| self.percentile(per_mille);
        let buckets: Vec<Value> = self.filled().map(|(least, width, count)| json!([least, width, count])).collect();
        json!({
            "count": self.count, "p50_ns": at(500), "p90_ns": at(900), "p99_ns": at(990), "p999_ns": at(999),
            "max_ns": self.max, "mean_ns": self.mean(), "buckets": buckets,
        })
    }

    pub(crate) fn mean(&self) -> u64 {
        self.sum.checked_div(self.count).unwrap_or(0)
    }

    /// The buckets that are not empty: least value, how many values wide, count.
    pub(crate) fn filled(&self) -> impl Iterator<Item = (u64, u64, u64)> + '_ {
        self.counts.iter().enumerate().filter(|(_, count)| **count > 0).map(|(bucket, count)| {
            let (least, width) = bounds(bucket);
            (least, width, *count)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_value_lies_in_its_bucket(value in 0..1_u64 << 42, shift in 0_u32..42) {
            let value = value >> shift;
            let (least, width) = bounds(index(value));
            prop_assert!((least..least + width).contains(&value), "{value} in {least}+{width}");
            let middle = least + width / 2;
            prop_assert!(middle.abs_diff(value) * 100 <= value, "{value} reads as {middle}");
        }

        #[test]
        fn percentiles_are_those_of_the_sorted_list(values in prop::collection::vec(0..10_000_000_u64, 1..300), per_mille in 1..1000_u64) {
            let histogram = Histogram::new();
            for value in &values {
                histogram.add(*value);
            }
            let mut sorted = values.clone();
            sorted.sort_unstable();
            let rank = usize::try_from((values.len() as u64 * per_mille).div_ceil(1000)).unwrap_or(0).max(1) - 1;
            let (exact, snapshot) = (sorted[rank], histogram.snapshot());
            let found = snapshot.percentile(per_mille);
            prop_assert!(found.abs_diff(exact) * 100 <= exact, "{exact} reads as {found}");
            prop_assert_eq!(snapshot.count, values.len() as u64);
            prop_assert_eq!(snapshot.max, *sorted.last().unwrap_or(&0));
            prop_assert_eq!(snapshot.mean(), values.iter().sum::<u64>() / values.len() as u64);
            prop_assert_eq!(snapshot.filled().map(|(_, _, count)| count).sum::<u64>(), snapshot.count);
        }
    }

    #[test]
    fn buckets_follow_each_other() {
        let mut next = 0;
        for bucket in 0..BUCKETS {
            let (least, width) = bounds(bucket);
            assert_eq!((least, index(least), index(least + width - 1)), (next, bucket, bucket));
            next = least + width;
        }
        assert_eq!(next, 1 << 42);
        assert_eq!(index(u64::MAX), BUCKETS - 1);
    }

    #[test]
    fn nothing_reads_as_nothing() {
        let empty = Histogram::new().snapshot();
        assert_eq!((empty.count, empty.percentile(500), empty.mean(), empty.max, empty.filled().count()), (0, 0, 0, 0, 0));
    }
}
