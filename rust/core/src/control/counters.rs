//! Statistics of one migration: atomics that its threads write and `query-migrate` reads without stopping anybody.
//!
//! Definitions are those of control-plane 4.1. Values are independent of each other: a reader may see them some bytes apart.

use std::sync::atomic::{AtomicU64, Ordering};

use serde_json::{Value, json};

/// Bytes of one target page.
pub const TARGET_PAGE: u64 = 4096;

/// A number that several threads may raise or set.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// The present value.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    /// Raises it by `n`.
    pub fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    /// Makes it `n`.
    pub fn set(&self, n: u64) {
        self.0.store(n, Ordering::Relaxed);
    }
}

/// A measured rate.
#[derive(Debug, Default)]
pub struct Gauge(AtomicU64);

impl Gauge {
    /// The last measure.
    pub fn get(&self) -> f64 {
        f64::from_bits(self.0.load(Ordering::Relaxed))
    }

    /// Stores a measure.
    pub fn set(&self, value: f64) {
        self.0.store(value.to_bits(), Ordering::Relaxed);
    }
}

/// Counters of pages compressed one by one (control-plane 4.5).
#[derive(Debug, Default)]
pub struct CompressionCounters {
    /// Pages sent compressed.
    pub pages: Counter,
    /// How often no worker was free.
    pub busy: Counter,
    /// The same for each page that was to be compressed, in the last evaluated period.
    pub busy_rate: Gauge,
    /// Bytes that the pages became.
    pub compressed_size: Counter,
    /// Bytes before over bytes after, in the last evaluated period.
    pub rate: Gauge,
}

impl CompressionCounters {
    /// The `compression` object of query-migrate.
    pub fn to_json(&self) -> Value {
        json!({
            "pages": self.pages.get(),
            "busy": self.busy.get(),
            "busy-rate": self.busy_rate.get(),
            "compressed-size": self.compressed_size.get(),
            "compression-rate": self.rate.get(),
        })
    }
}

/// Counters of one outgoing migration.
#[derive(Debug, Default)]
pub struct Counters {
    /// Bytes: sum of the used lengths of all RAM blocks now.
    pub total: Counter,
    /// Bytes of RAM records sent.
    pub transferred: Counter,
    /// Bytes still dirty.
    pub remaining: Counter,
    /// Pages sent as zero records.
    pub duplicate: Counter,
    /// Pages sent raw.
    pub normal: Counter,
    /// Syncs of the dirty bitmap, including those of setup and of the end.
    pub dirty_sync_count: Counter,
    /// Pages dirtied per second in the last evaluated period.
    pub dirty_pages_rate: Counter,
    /// Pages sent per second in the last window.
    pub pages_per_second: Counter,
    /// RAM bytes sent while the machine ran.
    pub precopy_bytes: Counter,
    /// RAM bytes sent while it was stopped for the switchover.
    pub downtime_bytes: Counter,
    /// RAM bytes sent while the destination ran.
    pub postcopy_bytes: Counter,
    /// Page requests received.
    pub postcopy_requests: Counter,
    /// Bytes sent through the further channels.
    pub multifd_bytes: Counter,
    /// Syncs in which zero-copy fell back to copying.
    pub zero_copy_missed: Counter,
    /// Milliseconds: how long the switchover would take now.
    pub expected_downtime: Counter,
    /// 10^6 bit/s in the last window; the average of the whole at the end.
    pub mbps: Gauge,
    /// Of pages sent as differences.
    pub xbzrle: XbzrleCounters,
    /// Of compressed pages.
    pub compression: CompressionCounters,
}

/// Counters of the capability `xbzrle` (control-plane 4.4).
#[derive(Debug, Default)]
pub struct XbzrleCounters {
    /// Bytes of records with a difference, their heads included.
    pub bytes: Counter,
    /// Such records.
    pub pages: Counter,
    /// Pages that the cache did not have.
    pub cache_miss: Counter,
    /// The same for each page looked at in the last period.
    pub cache_miss_rate: Gauge,
    /// Bytes of pages for each byte sent for them in the last period; 0: none were.
    pub encoding_rate: Gauge,
    /// Pages whose difference was larger than a page.
    pub overflow: Counter,
}

impl XbzrleCounters {
    /// The `xbzrle-cache` object of query-migrate; `cache_size` in bytes.
    pub fn to_json(&self, cache_size: u64) -> Value {
        json!({
            "cache-size": cache_size,
            "bytes": self.bytes.get(),
            "pages": self.pages.get(),
            "cache-miss": self.cache_miss.get(),
            "cache-miss-rate": self.cache_miss_rate.get(),
            "encoding-rate": self.encoding_rate.get(),
            "overflow": self.overflow.get(),
        })
    }
}

impl Counters {
    /// The `ram` object of query-migrate. What has no meaning any more at the end is 0.
    pub fn to_json(&self, completed: bool) -> Value {
        let live = |counter: &Counter| if completed { 0 } else { counter.get() };
        json!({
            "total": self.total.get(),
            "postcopy-requests": self.postcopy_requests.get(),
            "dirty-sync-count": self.dirty_sync_count.get(),
            "multifd-bytes": self.multifd_bytes.get(),
            "pages-per-second": self.pages_per_second.get(),
            "downtime-bytes": self.downtime_bytes.get(),
            "page-size": TARGET_PAGE,
            "remaining": live(&self.remaining),
            "postcopy-bytes": self.postcopy_bytes.get(),
            "mbps": self.mbps.get(),
            "transferred": self.transferred.get(),
            "dirty-sync-missed-zero-copy": self.zero_copy_missed.get(),
            "precopy-bytes": self.precopy_bytes.get(),
            "duplicate": self.duplicate.get(),
            "dirty-pages-rate": live(&self.dirty_pages_rate),
            "skipped": 0,
            "normal-bytes": self.normal.get() * TARGET_PAGE,
            "normal": self.normal.get(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_clears_what_lost_its_meaning() {
        let counters = Counters::default();
        counters.remaining.set(4096);
        counters.dirty_pages_rate.set(7);
        counters.normal.add(3);
        counters.mbps.set(1.5);
        let live = counters.to_json(false);
        assert_eq!((&live["remaining"], &live["dirty-pages-rate"]), (&json!(4096), &json!(7)));
        assert_eq!((&live["normal-bytes"], &live["mbps"]), (&json!(12288), &json!(1.5)));
        let done = counters.to_json(true);
        assert_eq!((&done["remaining"], &done["dirty-pages-rate"]), (&json!(0), &json!(0)));
    }
}
