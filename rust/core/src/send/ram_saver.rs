//! The RAM handler of the source: which pages are dirty, which is next, and its record.
//!
//! A page's dirty bit is cleared before its content is looked at, so a write that comes later marks it again (spec/stream 4.5).

use std::sync::Arc;
use std::time::Instant;

use super::stream::Stream;
use super::ways::{MainRecords, Page, Way};
use super::zero_scout::{PIECE, ZeroScout};
use super::{discard, records};
use crate::Result;
use crate::control::{Counters, Session};
use crate::ram::dirty::{self, DirtyLog, DirtyMode};
use crate::ram::{Bitmap, Block};
use crate::wire::consts::{PAGE_BYTES, PAGE_SIZE, RAM_EOS, RAM_MEM_SIZE};
use crate::wire::{Output, SectionKind};

/// Zero pages in a row that call a scout: it costs about as much as looking at these.
const CALL_SCOUT: u32 = 512;

/// Other pages in a row that send it away.
const DISMISS_SCOUT: u32 = 64;

/// Pages between two looks at the time.
const LOOK: usize = 64;

/// One block on its way.
#[derive(Debug)]
struct Area {
    block: Arc<Block>,
    log: Box<dyn DirtyLog>,
    dirty: Bitmap,
    /// Pages that are zero without a look: certain only until the first pass is over.
    untouched: Option<Bitmap>,
    /// What the destination was told to discard; none before a switch.
    discarded: Option<Bitmap>,
}

/// The dirty pages of all blocks and the place of the search.
#[derive(Debug)]
pub struct RamSaver {
    areas: Vec<Area>,
    next_area: usize,
    next_page: usize,
    records: MainRecords,
    /// Who is offered each page before it becomes a plain record.
    ways: Vec<Box<dyn Way>>,
    /// Pages that they were offered after the first pass.
    offered: u64,
    dirty_pages: u64,
    /// Pages of one kind in a row up to here, as far as they needed a look: zero or not, and how many.
    run: (bool, u32),
    /// Ahead in the current area.
    scout: Option<ZeroScout>,
}

/// How a call of `send_dirty` ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turn {
    /// No dirty page is left in the bitmaps.
    Clean,
    /// The rate limit or the deadline came first.
    Interrupted,
}

impl RamSaver {
    /// Open a dirty log for each block (in migration order); nothing is armed yet.
    pub fn new(blocks: &[Arc<Block>], mode: DirtyMode, ways: Vec<Box<dyn Way>>) -> Result<Self> {
        let areas = blocks
            .iter()
            .map(|block| {
                Ok(Area {
                    block: Arc::clone(block),
                    log: dirty::open(block, mode)?,
                    dirty: Bitmap::new(block.pages()),
                    untouched: None,
                    discarded: None,
                })
            })
            .collect::<Result<_>>()?;
        Ok(Self {
            areas,
            next_area: 0,
            next_page: 0,
            records: MainRecords::new(blocks)?,
            ways,
            offered: 0,
            dirty_pages: 0,
            run: (false, 0),
            scout: None,
        })
    }

    /// Arm the logs and mark every page dirty. Memory that the log knows to be untouched needs no look.
    pub fn start(&mut self) -> Result<()> {
        self.dirty_pages = 0;
        for area in &mut self.areas {
            let pages = area.dirty.len();
            let mut untouched = Bitmap::new(pages);
            area.log.start(&mut untouched)?;
            area.untouched = Some(untouched);
            area.dirty.set_range(0..pages);
            self.dirty_pages += pages as u64;
        }
        Ok(())
    }

    /// Stop logging. Idempotent.
    pub fn stop(&mut self) {
        self.scout = None;
        for area in &mut self.areas {
            area.log.stop();
            area.block.keep_dirty(std::mem::replace(&mut area.dirty, Bitmap::new(0)));
        }
        self.areas.clear();
        self.ways.clear();
        self.dirty_pages = 0;
    }

    /// `wp-async` if the kernel watches every block, else `explicit`.
    pub fn log_name(&self) -> &'static str {
        self.areas.iter().map(|area| area.log.kind().name()).max_by_key(|name| *name == "explicit").unwrap_or("explicit")
    }

    /// Bytes of all blocks.
    pub fn total_bytes(&self) -> u64 {
        self.areas.iter().map(|area| area.block.used_length()).sum()
    }

    /// Bytes still to be sent as far as the bitmaps know.
    pub fn remaining_bytes(&self) -> u64 {
        self.dirty_pages * PAGE_SIZE
    }

    /// Page records written so far.
    pub fn pages_sent(&self) -> u64 {
        self.records.duplicate + self.records.normal + self.records.coded
    }

    /// Pages that came to their turn after the first pass, where they have other ways to travel than as they are: then the bytes sent do
    /// not tell how many they were.
    pub fn offered(&self) -> Option<u64> {
        (!self.ways.is_empty()).then_some(self.offered)
    }

    /// Move what the logs have seen into the bitmaps; returns the pages newly dirty.
    pub fn sync(&mut self) -> Result<u64> {
        // A page that was untouched and is written now would be in the bitmap already: only a look can tell from here on.
        self.end_pass();
        let mut newly = 0;
        for area in &mut self.areas {
            newly += area.log.sync(&mut area.dirty)?;
        }
        self.dirty_pages += newly;
        Ok(newly)
    }

    /// After a stop: pages that were written since the last sync, by name; they are dirty then. None if there are none.
    pub fn written_since(&mut self) -> Result<Option<String>> {
        let mut written = Vec::with_capacity(self.areas.len());
        for area in &mut self.areas {
            let mut late = Bitmap::new(area.dirty.len());
            if area.log.sync(&mut late)? > 0 {
                self.dirty_pages += area.dirty.or(&late);
            }
            written.push(late);
        }
        let names = name_pages(self.areas.iter().zip(&written).map(|(area, late)| (&area.block, late)), 8);
        Ok((!names.is_empty()).then_some(names))
    }

    /// Append the commands that discard what is dirty and was not in such a list before; whole host pages are dirty then.
    pub fn put_discards(&mut self, out: &mut Output) {
        for area in &mut self.areas {
            self.dirty_pages += discard::complete(&mut area.dirty, discard::ratio(&area.block));
            let mut stale = area.dirty.clone();
            match &mut area.discarded {
                Some(before) => {
                    stale.and_not(before);
                    before.or(&stale);
                }
                None => area.discarded = Some(stale.clone()),
            }
            discard::commands(out, &area.block, &stale);
        }
    }

    /// The dirty pages, block by block.
    pub fn dirty_pages(&self) -> Vec<Bitmap> {
        self.areas.iter().map(|area| area.dirty.clone()).collect()
    }

    /// The payload of the START section: the block list. For postcopy it says the page sizes that are not the ordinary one.
    pub fn put_block_list(&mut self, stream: &mut Stream, postcopy: bool) -> Result<()> {
        stream.put(&(self.total_bytes() | RAM_MEM_SIZE).to_be_bytes())?;
        for (at, area) in self.areas.iter().enumerate() {
            stream.put(self.records.name(at))?;
            stream.put(&area.block.used_length().to_be_bytes())?;
            if postcopy && area.block.page_size() != PAGE_SIZE {
                stream.put(&area.block.page_size().to_be_bytes())?;
            }
            for way in &mut self.ways {
                way.block_entry(stream, at)?;
            }
        }
        self.put_end(stream, SectionKind::Start)
    }

    /// The end of a RAM section's payload.
    pub fn put_end(&mut self, stream: &mut Stream, kind: SectionKind) -> Result<()> {
        for way in &mut self.ways {
            way.section_end(stream, &mut self.records, kind)?;
        }
        stream.put(&RAM_EOS.to_be_bytes())
    }

    /// Whether all pages that are not dirty any more were sent, too; waits for it, but not beyond `until`.
    pub fn settled(&mut self, stream: &mut Stream, until: Instant) -> Result<bool> {
        for way in &mut self.ways {
            if !way.settled(stream, &mut self.records, until)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// The dirty logs were asked; `count` is `dirty-sync-count`.
    pub fn synced(&mut self, count: u64) {
        self.ways.iter_mut().for_each(|way| way.synced(count));
    }

    /// The machine is stopped.
    pub fn last_stage(&mut self) {
        self.ways.iter_mut().for_each(|way| way.last_stage());
    }

    /// Send dirty pages from where the last call stopped, until none is left, the rate limit is reached (if `limited`) or `deadline` passes.
    /// A turn with a deadline also ends in a hurry.
    pub fn send_dirty(&mut self, stream: &mut Stream, session: &Session, limited: bool, deadline: Option<Instant>) -> Result<Turn> {
        let counters = &session.counters;
        let mut since_look = 0;
        while self.dirty_pages > 0 {
            let Some(page) = self.areas[self.next_area].dirty.next_set(self.next_page) else {
                self.scout = None;
                self.next_page = 0;
                self.next_area += 1;
                if self.next_area == self.areas.len() {
                    self.next_area = 0;
                    self.end_round(stream)?;
                }
                continue;
            };
            let sent = if self.send_zeros(stream, page)? { PIECE } else { 1 };
            if sent == 1 {
                self.send_page(stream, page)?;
            }
            self.next_page = page + sent;
            since_look += sent;
            if since_look >= LOOK {
                since_look = 0;
                self.publish(counters);
                if deadline.is_some_and(|limit| session.hurry().is_set() || Instant::now() >= limit) {
                    return Ok(Turn::Interrupted);
                }
            }
            if limited && stream.rate().exceeded() {
                self.publish(counters);
                return Ok(Turn::Interrupted);
            }
        }
        self.end_round(stream)?;
        self.publish(counters);
        Ok(Turn::Clean)
    }

    /// The dirty pages by name, for an error; at most `most` ranges.
    pub fn name_dirty(&self, most: usize) -> String {
        name_pages(self.areas.iter().map(|area| (&area.block, &area.dirty)), most)
    }

    /// A piece of zero pages in a row of them goes at once: with nothing but its reading to be done, a page's record counts. False: it is none.
    fn send_zeros(&mut self, stream: &mut Stream, first: usize) -> Result<bool> {
        let Some(area) = self.areas.get_mut(self.next_area) else { return Ok(false) };
        let piece = first / PIECE;
        if !first.is_multiple_of(PIECE)
            || area.dirty.words()[piece] != u64::MAX
            || !self.ways.is_empty()
            || self.records.names_block(self.next_area)
        {
            return Ok(false);
        }
        let untouched = area.untouched.as_ref().map_or(0, |known| known.words()[piece]);
        let seen = match &mut self.scout {
            Some(scout) if untouched != u64::MAX => scout.zeros(first, &area.dirty, area.untouched.as_ref()),
            _ => 0,
        };
        if seen | untouched != u64::MAX {
            return Ok(false);
        }
        area.dirty.clear_range(first..first + PIECE);
        self.dirty_pages -= PIECE as u64;
        self.records.zeros(stream, first as u64 * PAGE_SIZE)?;
        Ok(true)
    }

    fn send_page(&mut self, stream: &mut Stream, number: usize) -> Result<()> {
        let at = self.next_area;
        let area = &mut self.areas[at];
        area.dirty.clear(number);
        self.dirty_pages -= 1;
        let page = Page {
            area: at,
            block: &area.block,
            offset: number as u64 * PAGE_SIZE,
            untouched: area.untouched.as_ref().is_some_and(|known| known.get(number)),
            bulk: area.untouched.is_some(),
        };
        self.offered += u64::from(!page.bulk);
        for way in &mut self.ways {
            if way.page(stream, &mut self.records, &page)? {
                return Ok(());
            }
        }
        if page.untouched || look(&mut self.scout, &mut self.run, area, number)? {
            return self.records.zero(stream, &page);
        }
        for way in &mut self.ways {
            if way.content(stream, &mut self.records, &page)? {
                return Ok(());
            }
        }
        self.records.plain(stream, &page)
    }

    fn end_round(&mut self, stream: &mut Stream) -> Result<()> {
        self.end_pass();
        self.ways.iter_mut().try_for_each(|way| way.round_end(stream, &mut self.records))
    }

    /// Every page has been sent once: from now on only a look tells what is zero.
    fn end_pass(&mut self) {
        self.scout = None;
        for area in &mut self.areas {
            area.untouched = None;
        }
    }

    /// Tell clients how far it is.
    pub fn publish(&self, counters: &Counters) {
        counters.remaining.set(self.remaining_bytes());
        counters.duplicate.set(self.records.duplicate);
        counters.normal.set(self.records.normal);
    }
}

fn name_pages<'a>(areas: impl Iterator<Item = (&'a Arc<Block>, &'a Bitmap)>, most: usize) -> String {
    let mut ranges: Vec<String> = Vec::new();
    for (block, pages) in areas {
        for run in pages.runs() {
            if ranges.len() == most {
                ranges.push("...".into());
                return ranges.join(", ");
            }
            ranges.push(format!("{} {:#x}+{:#x}", block.name(), run.start * PAGE_BYTES, run.len() * PAGE_BYTES));
        }
    }
    ranges.join(", ")
}

/// Is the page zero? By a look, or by a scout's where zeros come in runs.
fn look(scout: &mut Option<ZeroScout>, run: &mut (bool, u32), area: &Area, page: usize) -> Result<bool> {
    let zero = match scout {
        Some(scout) => scout.is_zero(page, &area.dirty, area.untouched.as_ref()),
        None => records::is_zero(&area.block, page as u64 * PAGE_SIZE)?,
    };
    *run = if run.0 == zero { (zero, run.1.saturating_add(1)) } else { (zero, 1) };
    match *run {
        // Exactly then: where no scout is to be had, it is not asked for at each page.
        (true, CALL_SCOUT) if scout.is_none() => *scout = ZeroScout::start(&area.block, page + 1, &area.dirty, area.untouched.as_ref()),
        (false, DISMISS_SCOUT) => *scout = None,
        _ => {}
    }
    Ok(zero)
}
