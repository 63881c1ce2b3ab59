//! XBZRLE on the source (spec/stream 5.5): after the first pass a page travels as the difference to what was last sent of it.
//!
//! The cache holds, for the pages that it has, what the destination has. So what is encoded, sent and kept is one snapshot of a page,
//! whatever the guest writes meanwhile. What is sent past the cache has no place in it: a page of another slot's, and all pages from
//! the first section after the stop on, when the cache is not kept up any more.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::records::is_zero;
use super::stream::Stream;
use super::ways::{MainRecords, Page, Way};
use crate::Result;
use crate::control::{Control, Session, ZeroPageDetection};
use crate::page::{Delta, PageCache, XbzrleEncoder};
use crate::ram::Block;
use crate::wire::SectionKind;
use crate::wire::consts::{PAGE_BYTES, PAGE_SIZE, RAM_XBZRLE, XBZRLE_ENCODING};

/// How often rates are evaluated at most.
const RATE_PERIOD: Duration = Duration::from_secs(1);

/// What is done with pages now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// The machine runs.
    Live,
    /// It is stopped: each page comes once more at most, so what the cache has is used and not kept up.
    Last,
    /// A page that comes now has perhaps been sent past the cache.
    Over,
}

/// Pages as differences.
#[derive(Debug)]
pub struct Deltas {
    control: Arc<Control>,
    session: Arc<Session>,
    encoder: XbzrleEncoder,
    cache: PageCache,
    /// Zeros are looked for; else they travel like anything else.
    looks: bool,
    /// The parameter as it was last looked at.
    cache_size: u64,
    /// Where each block begins in the space of all of them, in bytes.
    starts: Vec<u64>,
    /// Bytes of all blocks.
    total: u64,
    /// `dirty-sync-count`.
    age: u64,
    stage: Stage,
    /// The page as it is sent.
    snapshot: Box<[u8; PAGE_BYTES]>,
    delta: Box<[u8; PAGE_BYTES]>,
    /// Pages that came by.
    seen: u64,
    period: Period,
}

/// Where the counters stood when rates were evaluated last.
#[derive(Debug)]
struct Period {
    begun: Instant,
    seen: u64,
    misses: u64,
    pages: u64,
    bytes: u64,
}

impl Deltas {
    /// For blocks in migration order.
    ///
    /// # Errors
    /// `no-memory`: there is none for the cache.
    pub fn new(control: &Arc<Control>, session: &Arc<Session>, blocks: &[Arc<Block>]) -> Result<Self> {
        let mut total = 0;
        let mut starts = Vec::with_capacity(blocks.len());
        for block in blocks {
            starts.push(total);
            total += block.used_length();
        }
        let parameters = control.parameters();
        let cache_size = parameters.xbzrle_cache_size;
        Ok(Self {
            control: Arc::clone(control),
            session: Arc::clone(session),
            encoder: XbzrleEncoder::default(),
            cache: PageCache::new(useful(cache_size, total), PAGE_BYTES)?,
            looks: parameters.zero_page_detection != ZeroPageDetection::None,
            cache_size,
            starts,
            total,
            age: 0,
            stage: Stage::Live,
            snapshot: Box::new([0; PAGE_BYTES]),
            delta: Box::new([0; PAGE_BYTES]),
            seen: 0,
            period: Period { begun: Instant::now(), seen: 0, misses: 0, pages: 0, bytes: 0 },
        })
    }

    /// The parameter may have changed: a cache of another size begins empty.
    fn resize(&mut self) {
        let wanted = self.control.parameters().xbzrle_cache_size;
        let size = useful(wanted, self.total);
        if std::mem::replace(&mut self.cache_size, wanted) == wanted || size == self.cache.size() {
            return;
        }
        match PageCache::new(size, PAGE_BYTES) {
            Ok(cache) => self.cache = cache,
            Err(error) => tracing::warn!(%error, "the XBZRLE cache keeps its size"),
        }
    }

    /// The snapshot as a plain record: what is sent is what the cache has, if it has it.
    fn whole(&self, stream: &mut Stream, records: &mut MainRecords, page: &Page<'_>) -> Result<bool> {
        records.whole(stream, page, &self.snapshot)?;
        Ok(true)
    }

    /// The first `length` bytes of the delta as a record.
    fn difference(&self, stream: &mut Stream, records: &mut MainRecords, page: &Page<'_>, length: usize) -> Result<bool> {
        let before = stream.sent();
        records.head(stream, page, RAM_XBZRLE)?;
        let [.., high, low] = length.to_be_bytes();
        stream.put(&[XBZRLE_ENCODING, high, low])?;
        stream.put(&self.delta[..length])?;
        records.coded += 1;
        let counters = &self.session.counters.xbzrle;
        counters.pages.add(1);
        counters.bytes.add(stream.sent() - before);
        Ok(true)
    }

    /// At a sync: the rates since the last evaluation, if that was long ago.
    fn evaluate(&mut self) {
        let counters = &self.session.counters.xbzrle;
        let last = &self.period;
        let seen = self.seen - last.seen;
        if seen == 0 || last.begun.elapsed() < RATE_PERIOD {
            return;
        }
        let now = Period {
            begun: Instant::now(),
            seen: self.seen,
            misses: counters.cache_miss.get(),
            pages: counters.pages.get(),
            bytes: counters.bytes.get(),
        };
        counters.cache_miss_rate.set(ratio(now.misses - last.misses, seen));
        counters.encoding_rate.set(ratio((now.pages - last.pages) * PAGE_SIZE, now.bytes - last.bytes));
        self.period = now;
    }
}

impl Way for Deltas {
    fn page(&mut self, stream: &mut Stream, records: &mut MainRecords, page: &Page<'_>) -> Result<bool> {
        self.seen += 1;
        if page.bulk || self.stage == Stage::Over {
            return Ok(false);
        }
        let address = self.starts[page.area] + page.offset;
        if self.looks && is_zero(page.block, page.offset)? {
            // Refused where another page has the slot; then this one is not in it.
            let _ = self.cache.insert(address, &[0; PAGE_BYTES], self.age);
            records.zero(stream, page)?;
            return Ok(true);
        }
        let counters = &self.session.counters.xbzrle;
        page.block.read(page.offset, &mut self.snapshot[..])?;
        let Some(cached) = self.cache.get(address, self.age) else {
            counters.cache_miss.add(1);
            let kept = self.stage == Stage::Live && self.cache.insert(address, &self.snapshot[..], self.age).is_some();
            return if kept { self.whole(stream, records, page) } else { Ok(false) };
        };
        let delta = self.encoder.encode(cached, &self.snapshot[..], &mut self.delta[..]);
        if self.stage == Stage::Live && delta != Delta::Equal {
            cached.copy_from_slice(&self.snapshot[..]);
        }
        match delta {
            Delta::Equal => Ok(true),
            Delta::Length(length) => self.difference(stream, records, page, length),
            Delta::Overflow => {
                counters.overflow.add(1);
                self.whole(stream, records, page)
            }
        }
    }

    fn section_end(&mut self, _stream: &mut Stream, _records: &mut MainRecords, _kind: SectionKind) -> Result<()> {
        if self.stage == Stage::Last {
            self.stage = Stage::Over;
        }
        self.resize();
        Ok(())
    }

    fn synced(&mut self, count: u64) {
        self.age = count;
        self.evaluate();
    }

    fn last_stage(&mut self) {
        self.stage = Stage::Last;
    }
}

/// Bytes of a cache of `size` for `total` bytes of RAM: where every page has a slot of its own, more would never be used.
fn useful(size: u64, total: u64) -> usize {
    let most = total.max(PAGE_SIZE).checked_next_power_of_two().unwrap_or(size);
    usize::try_from(size.min(most)).unwrap_or(1 << (usize::BITS - 1))
}

/// 0 of nothing.
#[allow(clippy::cast_precision_loss)] // a rate for people
fn ratio(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 / whole as f64 }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
