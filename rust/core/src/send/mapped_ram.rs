//! The way of a mapped-ram file (spec/stream 13): a page always goes to its own place there, so the newest wins; a page of zeros only has
//! its bit cleared. Pages that follow each other are written as one, by the migration thread or by several writers.

mod writers;

use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use super::records;
use super::stream::Stream;
use super::ways::{MainRecords, Page, Way};
use crate::channel::Positioned;
use crate::control::{Counter, Session};
use crate::ram::{AtomicBitmap, Block};
use crate::sys::io::IoVec;
use crate::wire::consts::{PAGE_BYTES, PAGE_SIZE};
use crate::wire::{Output, SectionKind, bitmap_bytes};
use crate::{Error, ErrorKind, Result};
use writers::Writers;

/// Pages begin at a multiple of this, so that they can be written past the page cache.
const ALIGNMENT: u64 = 1 << 20;
/// Bytes of a block's header.
const HEADER: u64 = 28;
/// Bytes of one run at most.
const RUN: u64 = 1 << 20;

/// Where a block stands in the file.
#[derive(Debug)]
struct Place {
    block: Arc<Block>,
    /// Position of the bitmap.
    bitmap: u64,
    /// Position of page 0.
    pages: u64,
    /// The pages whose content is in the file.
    present: AtomicBitmap,
}

/// Pages of one block, one behind the other.
#[derive(Debug)]
struct Run {
    place: Arc<Place>,
    pages: Range<usize>,
    /// Zeros are looked for; else they are written like anything else.
    looks: bool,
}

/// Pages done, by whichever thread.
#[derive(Debug, Default)]
struct Written {
    normal: Counter,
    zero: Counter,
}

/// Writes pages to their places.
#[derive(Debug)]
pub struct MappedRam {
    blocks: Vec<Arc<Block>>,
    places: Vec<Arc<Place>>,
    file: Positioned,
    session: Arc<Session>,
    written: Arc<Written>,
    writers: Option<Writers>,
    looks: bool,
    /// Neighbours that wait to be written as one.
    run: Option<Run>,
    /// Pages that were never touched: zero, and their bits are clear.
    untouched: u64,
    /// The machine is stopped: every section may be the last, so each ends with the bitmaps in the file.
    last: bool,
}

impl MappedRam {
    /// Pages of `blocks` go to `file`, which is that of the main channel; if `threads` is more than one, by so many writers. `looks`:
    /// zeros are looked for.
    pub fn new(file: Positioned, blocks: &[Arc<Block>], threads: usize, looks: bool, session: Arc<Session>) -> Result<Self> {
        let written = Arc::new(Written::default());
        let writers = if threads > 1 { Some(Writers::start(&file, threads, &written)?) } else { None };
        Ok(Self {
            blocks: blocks.to_vec(),
            places: Vec::with_capacity(blocks.len()),
            file,
            session,
            written,
            writers,
            looks,
            run: None,
            untouched: 0,
            last: false,
        })
    }

    /// What waits goes to the file, or to the writers.
    fn hand_out(&mut self, stream: &mut Stream, records: &mut MainRecords) -> Result<()> {
        if let Some(run) = self.run.take() {
            match &self.writers {
                Some(writers) => writers.push(run)?,
                None => run.write(&self.file, &self.written)?,
            }
        }
        self.count(stream, records);
        Ok(())
    }

    /// Everything so far is in the file.
    fn settle(&mut self, stream: &mut Stream, records: &mut MainRecords) -> Result<()> {
        self.hand_out(stream, records)?;
        if let Some(writers) = &self.writers {
            writers.settle()?;
            self.count(stream, records);
        }
        Ok(())
    }

    /// Takes over what was written meanwhile, also for the rate limit.
    fn count(&self, stream: &mut Stream, records: &mut MainRecords) {
        let normal = self.written.normal.get();
        stream.account((normal - records.normal) * PAGE_SIZE);
        records.normal = normal;
        records.duplicate = self.untouched + self.written.zero.get();
        if self.writers.is_some() {
            self.session.counters.multifd_bytes.set(normal * PAGE_SIZE);
        }
    }

    fn write_bitmaps(&self) -> Result<()> {
        for place in &self.places {
            let bits = place.present.snapshot(place.present.len());
            let bytes: Vec<u8> = bits.words().iter().flat_map(|word| word.to_le_bytes()).collect();
            self.file.write(IoVec::from_slice(&bytes), place.bitmap).map_err(|e| e.within(place.block.name()))?;
        }
        Ok(())
    }
}

impl Way for MappedRam {
    fn page(&mut self, stream: &mut Stream, records: &mut MainRecords, page: &Page<'_>) -> Result<bool> {
        if page.untouched {
            self.untouched += 1;
            records.duplicate += 1;
            return Ok(true);
        }
        // It is inside a mapped block.
        let number = usize::try_from(page.offset).unwrap_or(usize::MAX) / PAGE_BYTES;
        let place = &self.places[page.area];
        match &mut self.run {
            Some(run) if run.grows(place, number, RUN.min(stream.piece())) => run.pages.end += 1,
            _ => {
                let run = Run { place: Arc::clone(place), pages: number..number + 1, looks: self.looks };
                self.hand_out(stream, records)?;
                self.run = Some(run);
            }
        }
        Ok(true)
    }

    fn block_entry(&mut self, stream: &mut Stream, area: usize) -> Result<()> {
        let block = Arc::clone(&self.blocks[area]);
        let bitmap = stream.position()? + HEADER;
        let pages = (bitmap + bitmap_bytes(block.pages() as u64)).next_multiple_of(ALIGNMENT);
        let mut header = Output::new();
        header.mapped_ram(bitmap, pages);
        stream.put(header.as_slice())?;
        stream.go(pages + block.used_length())?;
        let present = AtomicBitmap::new(block.pages());
        self.places.push(Arc::new(Place { block, bitmap, pages, present }));
        Ok(())
    }

    fn section_end(&mut self, stream: &mut Stream, records: &mut MainRecords, _kind: SectionKind) -> Result<()> {
        if !self.last {
            return self.hand_out(stream, records);
        }
        self.settle(stream, records)?;
        self.write_bitmaps()
    }

    fn settled(&mut self, stream: &mut Stream, records: &mut MainRecords, _until: Instant) -> Result<bool> {
        self.settle(stream, records).map(|()| true)
    }

    fn last_stage(&mut self) {
        self.last = true;
    }

    fn round_end(&mut self, stream: &mut Stream, records: &mut MainRecords) -> Result<()> {
        // From here on a page may come again, and its bit must not be changed by who was late.
        self.settle(stream, records)
    }
}

impl Run {
    /// The page comes next, and there is room for it in `bytes` bytes.
    fn grows(&self, place: &Arc<Place>, page: usize, bytes: u64) -> bool {
        self.pages.end == page && ((self.pages.len() + 1) * PAGE_BYTES) as u64 <= bytes && Arc::ptr_eq(&self.place, place)
    }

    /// Writes those pages that are not zero.
    fn write(&self, file: &Positioned, written: &Written) -> Result<()> {
        let block = &self.place.block;
        let look = |page: usize| Ok(self.looks && records::is_zero(block, page as u64 * PAGE_SIZE)?);
        let mut start = self.pages.start;
        while start < self.pages.end {
            let zero = look(start)?;
            let mut end = start + 1;
            while end < self.pages.end && look(end)? == zero {
                end += 1;
            }
            self.put(start..end, zero, file, written).map_err(|e| e.within(block.name()))?;
            start = end;
        }
        Ok(())
    }

    fn put(&self, pages: Range<usize>, zero: bool, file: &Positioned, written: &Written) -> Result<()> {
        let (place, count) = (&self.place, pages.len() as u64);
        if zero {
            place.present.clear_range(pages);
            written.zero.add(count);
            return Ok(());
        }
        let offset = pages.start as u64 * PAGE_SIZE;
        let bytes = IoVec::from_guest(place.block.range(offset, pages.len() * PAGE_BYTES)?);
        place.present.set_range(pages);
        file.write(bytes, place.pages + offset)?;
        written.normal.add(count);
        Ok(())
    }
}

/// The file of the main channel, of which everybody has made sure by now that it is one.
pub fn file(stream: &Stream) -> Result<Positioned> {
    stream.positioned().unwrap_or_else(|| Err(Error::new(ErrorKind::InvalidState, "mapped-ram without a file")))
}
