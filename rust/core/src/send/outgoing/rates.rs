//! How fast pages are dirtied and sent, and what fits into the downtime.

use std::time::{Duration, Instant};

use super::{Outgoing, RamSaver, Round, Stream};
use crate::Result;
use crate::wire::consts::PAGE_SIZE;

/// How often the dirty rate is evaluated at most.
const RATE_PERIOD: Duration = Duration::from_secs(1);
/// A window that carried fewer bytes says nothing about the rate (spec/control-plane 3.3).
const LEAST_FOR_ESTIMATE: u64 = 10_000;

/// What the last evaluation of rates saw (spec/control-plane 4.1).
#[derive(Debug)]
pub(super) struct Rates {
    pub(super) evaluated: Instant,
    pub(super) dirtied: u64,
    pub(super) pages_sent: u64,
    pub(super) bytes_per_ms: f64,
    /// Bytes dirty at the last sync.
    pub(super) dirty_bytes: u64,
    /// Bytes sent up to the last window.
    pub(super) sent: u64,
    /// When the present round began, and what `RamSaver::offered` and `Stream::sent` were then.
    pub(super) round: (Instant, u64, u64),
    /// The last round, where it is to be gone by.
    pub(super) last_round: Option<Round>,
}

impl Rates {
    pub(super) fn new() -> Self {
        Self {
            evaluated: Instant::now(),
            dirtied: 0,
            pages_sent: 0,
            bytes_per_ms: 0.0,
            dirty_bytes: 0,
            sent: 0,
            round: (Instant::now(), 0, 0),
            last_round: None,
        }
    }

    /// No faster than this over a whole round.
    pub(super) fn steady(&mut self, bytes_per_ms: f64) {
        self.bytes_per_ms = if self.bytes_per_ms > 0.0 { self.bytes_per_ms.min(bytes_per_ms) } else { bytes_per_ms };
    }
}

impl Outgoing {
    /// A sync is over: count it, tell clients, and evaluate the dirty rate once a second.
    pub(in crate::send) fn synced(&mut self, newly: u64) {
        let counters = &self.session.counters;
        self.rates.dirtied += newly;
        let elapsed = self.rates.evaluated.elapsed();
        if elapsed >= RATE_PERIOD {
            counters.dirty_pages_rate.set(per_second(self.rates.dirtied, elapsed));
            if self.auto_converge() {
                let sent = self.stream.as_ref().map_or(0, Stream::sent);
                self.throttle.judge(self.rates.dirtied * PAGE_SIZE, sent, self.control.parameters().throttle);
            }
            self.rates.dirtied = 0;
            self.rates.evaluated = Instant::now();
        }
        self.rates.dirty_bytes = self.saver.as_ref().map_or(0, RamSaver::remaining_bytes);
        counters.remaining.set(self.rates.dirty_bytes);
        counters.dirty_sync_count.add(1);
        let count = counters.dirty_sync_count.get();
        if let Some(saver) = &mut self.saver {
            saver.synced(count);
        }
        self.session.migration_pass(count);
    }

    pub(super) fn auto_converge(&self) -> bool {
        self.control.capability("auto-converge")
    }

    /// At the end of a bandwidth window: throughput, pages per second, expected downtime.
    pub(super) fn window(&mut self) -> Result<()> {
        let (saver, stream) = self.parts()?;
        let pages = saver.pages_sent();
        let sent = stream.sent();
        let window = stream.rate().window_elapsed();
        let counters = &self.session.counters;
        counters.transferred.set(sent);
        counters.precopy_bytes.set(sent);
        let Some((_, elapsed)) = window else { return Ok(()) };
        // Sent, and not only charged: packets of multifd are on their way for a while.
        let bytes = sent - std::mem::replace(&mut self.rates.sent, sent);
        self.rates.bytes_per_ms = per_ms(bytes, elapsed);
        counters.mbps.set(self.rates.bytes_per_ms * 8.0 / 1000.0);
        counters.pages_per_second.set(per_second(pages - self.rates.pages_sent, elapsed));
        self.rates.pages_sent = pages;
        if counters.dirty_pages_rate.get() > 0 && bytes > LEAST_FOR_ESTIMATE {
            let speed = self.rates.last_round.map_or(self.rates.bytes_per_ms, |round| per_ms(round.bytes, round.time));
            counters.expected_downtime.set(whole(to_f64(self.rates.dirty_bytes) / speed));
        }
        Ok(())
    }

    /// Bytes of dirty pages that fit into the downtime limit.
    pub(super) fn ceiling(&self) -> u64 {
        let parameters = self.control.parameters();
        let bytes_per_ms = if parameters.avail_switchover_bandwidth > 0 {
            to_f64(parameters.avail_switchover_bandwidth / 1000)
        } else if self.rates.bytes_per_ms > 0.0 {
            self.rates.bytes_per_ms
        } else {
            // No window is over yet: the average so far.
            let sent = self.stream.as_ref().map_or(0, Stream::sent);
            per_ms(sent, self.rates.evaluated.elapsed())
        };
        match self.rates.last_round {
            Some(round) if parameters.avail_switchover_bandwidth == 0 => {
                round.ceiling(Duration::from_millis(parameters.downtime_limit), bytes_per_ms)
            }
            _ => whole(bytes_per_ms * to_f64(parameters.downtime_limit)),
        }
    }

    /// Bytes a second of the last window.
    pub(in crate::send) fn bytes_per_second(&self) -> u64 {
        whole(self.rates.bytes_per_ms * 1000.0)
    }
}

pub(in crate::send) fn per_ms(bytes: u64, elapsed: Duration) -> f64 {
    to_f64(bytes) / (elapsed.as_secs_f64() * 1000.0).max(0.001)
}

pub(in crate::send) fn per_second(count: u64, elapsed: Duration) -> u64 {
    whole(to_f64(count) / elapsed.as_secs_f64().max(1e-6))
}

#[allow(clippy::cast_precision_loss)] // an estimate
pub(in crate::send) fn to_f64(value: u64) -> f64 {
    value as f64
}

#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // saturates, and is never negative
pub(in crate::send) fn whole(value: f64) -> u64 {
    value as u64
}
