//! Pages compressed one by one by a pool of threads, while the migration thread goes on searching (spec/stream 6.3).
//!
//! The pool's records leave out the block's name: the migration thread writes the first record of a block itself, when the pool has nothing
//! of the block before. Their order does not matter between two looks at the dirty log, for no page is sent twice there; so the pool is
//! emptied at the end of each section, and of each round.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::records::is_zero;
use super::stream::Stream;
use super::ways::{MainRecords, Page, Way};
use crate::Result;
use crate::control::{Parameters, Session, ZeroPageDetection};
use crate::page::{Batch, Pool, Taken};
use crate::ram::Block;
use crate::wire::SectionKind;
use crate::wire::consts::{PAGE_BYTES, RAM_COMPRESS_PAGE};

/// How often the rates are evaluated at most.
const RATE_PERIOD: Duration = Duration::from_secs(1);

/// The way of compressed pages.
#[derive(Debug)]
pub struct Compress {
    /// Pages are known by number of block and offset.
    pool: Pool<(usize, u64)>,
    blocks: Vec<Arc<Block>>,
    session: Arc<Session>,
    /// Zeros are looked for; else they are compressed like anything else.
    looks: bool,
    /// A page waits for a worker rather than travel as it is.
    waits: bool,
    /// Only in the first pass: XBZRLE has the others.
    first_pass_only: bool,
    rates: Rates,
}

/// What the last evaluation of rates saw (spec/control-plane 4.5).
#[derive(Debug)]
struct Rates {
    evaluated: Instant,
    /// Pages that were offered.
    offered: u64,
    offered_before: u64,
    pages: u64,
    bytes: u64,
    busy: u64,
}

impl Compress {
    /// With its threads; `first_pass_only` if another way has pages from the second pass on.
    pub fn start(parameters: &Parameters, blocks: &[Arc<Block>], session: Arc<Session>, first_pass_only: bool) -> Result<Self> {
        let pool = Pool::deflate(usize::from(parameters.compress_threads), i32::from(parameters.compress_level))?;
        let rates = Rates { evaluated: Instant::now(), offered: 0, offered_before: 0, pages: 0, bytes: 0, busy: 0 };
        let looks = parameters.zero_page_detection != ZeroPageDetection::None;
        Ok(Self { pool, blocks: blocks.to_vec(), session, looks, waits: parameters.compress_wait_thread, first_pass_only, rates })
    }

    /// Everything that the workers have, into the stream.
    fn drain(&mut self, stream: &mut Stream, records: &mut MainRecords) -> Result<()> {
        self.pool.flush();
        while let Some(batch) = self.pool.taken(true)? {
            self.write(stream, records, batch)?;
        }
        Ok(())
    }

    /// Room for another page, unless that would have to be waited for and shall not.
    fn room(&mut self, stream: &mut Stream, records: &mut MainRecords) -> Result<bool> {
        if self.pool.is_filling() {
            return Ok(true);
        }
        while let Some(batch) = self.pool.taken(false)? {
            self.write(stream, records, batch)?;
        }
        if self.pool.room() {
            return Ok(true);
        }
        self.session.counters.compression.busy.add(1);
        if self.waits
            && let Some(batch) = self.pool.taken(true)?
        {
            self.write(stream, records, batch)?;
        }
        Ok(self.pool.room())
    }

    fn write(&mut self, stream: &mut Stream, records: &mut MainRecords, batch: Batch<(usize, u64)>) -> Result<()> {
        let counters = &self.session.counters.compression;
        for ((area, offset), taken) in batch.pages() {
            let page = Page { area, block: &self.blocks[area], offset, untouched: false, bulk: false };
            match taken {
                Taken::Packed(bytes) => {
                    records.head(stream, &page, RAM_COMPRESS_PAGE)?;
                    // At most a page.
                    stream.put(&u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_be_bytes())?;
                    stream.put(bytes)?;
                    records.coded += 1;
                    counters.pages.add(1);
                    counters.compressed_size.add(bytes.len() as u64);
                }
                Taken::Page(_) => records.plain(stream, &page)?,
                Taken::Bad(error) => return Err(error),
            }
        }
        self.pool.give_back(batch);
        Ok(())
    }
}

impl Way for Compress {
    fn page(&mut self, stream: &mut Stream, records: &mut MainRecords, page: &Page<'_>) -> Result<bool> {
        if self.first_pass_only && !page.bulk {
            return Ok(false);
        }
        self.rates.offered += 1;
        if records.names_block(page.area) {
            self.drain(stream, records)?;
            return Ok(false);
        }
        if page.untouched || self.looks && is_zero(page.block, page.offset)? {
            records.zero(stream, page)?;
            return Ok(true);
        }
        if !self.room(stream, records)? {
            return Ok(false);
        }
        self.pool.put_page((page.area, page.offset), |room| page.block.read(page.offset, room))?;
        Ok(true)
    }

    fn section_end(&mut self, stream: &mut Stream, records: &mut MainRecords, _kind: SectionKind) -> Result<()> {
        self.drain(stream, records)
    }

    fn round_end(&mut self, stream: &mut Stream, records: &mut MainRecords) -> Result<()> {
        self.drain(stream, records)
    }

    #[allow(clippy::cast_precision_loss)] // rates
    fn synced(&mut self, _count: u64) {
        let (counters, rates) = (&self.session.counters.compression, &mut self.rates);
        if rates.evaluated.elapsed() < RATE_PERIOD {
            return;
        }
        let (pages, bytes, busy) = (counters.pages.get(), counters.compressed_size.get(), counters.busy.get());
        let over = |part: u64, whole: u64| if whole == 0 { 0.0 } else { part as f64 / whole as f64 };
        counters.busy_rate.set(over(busy - rates.busy, rates.offered - rates.offered_before));
        counters.rate.set(over((pages - rates.pages) * PAGE_BYTES as u64, bytes - rates.bytes));
        *rates = Rates { evaluated: Instant::now(), offered: rates.offered, offered_before: rates.offered, pages, bytes, busy };
    }
}
