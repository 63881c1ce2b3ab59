//! RAM of a stored stream: the last version of every page, and which pages came at all.

use std::collections::HashMap;
use std::ops::Range;

use super::channel::{Channel, ChannelCounts};
use super::pool::{PageBytes, Pool};
use super::runs::{Runs, Source};
use super::source::FileSource;
use crate::page::{inflate_page, xbzrle_decode};
use crate::wire::consts::{PAGE_BYTES, PAGE_SIZE};
use crate::wire::{BlockEntry, CodedPage, MappedRam, PageSink};
use crate::{Error, Result};

/// Bytes of a mapped-ram bitmap read at once: what covers 128 MiB of RAM.
const BITMAP_STEP: u64 = 4096;

#[derive(Debug)]
struct Block {
    entry: BlockEntry,
    /// Pages that came as records.
    runs: Runs,
    /// Pages that a mapped-ram bitmap says are in the file; they stay there, and so does the bitmap.
    mapped: u64,
}

/// Reads pages that stand nearly one behind the other in a file in few pieces.
#[derive(Debug, Default)]
struct Ahead {
    file: u16,
    at: u64,
    bytes: Vec<u8>,
}

impl Ahead {
    /// Longest piece.
    const MOST: usize = 256 << 10;

    /// Copy the page at `at` of `source` to `out`; `more` bytes of other pages may be wanted after it.
    fn page(&mut self, source: &FileSource, file: u16, at: u64, more: usize, out: &mut [u8]) -> Result<()> {
        if self.have(file, at).is_none() {
            // Records are little longer than their pages; past the end there is nothing to read ahead.
            let length = (more + more / 256 + PAGE_BYTES).min(Self::MOST) as u64;
            let length = length.min(source.length().saturating_sub(at)).max(PAGE_SIZE);
            self.bytes.resize(usize::try_from(length).unwrap_or(PAGE_BYTES), 0);
            (self.file, self.at) = (file, at);
            source.read_at(at, &mut self.bytes)?;
        }
        if let Some(page) = self.have(file, at) {
            out.copy_from_slice(page);
        }
        Ok(())
    }

    fn have(&self, file: u16, at: u64) -> Option<&[u8]> {
        let from = usize::try_from(at.checked_sub(self.at)?).ok()?;
        self.bytes.get(from..from.checked_add(PAGE_BYTES)?).filter(|_| self.file == file)
    }
}

/// The page sink of a stored stream. Takes pages in every form, from the main channel and from multifd channels.
#[derive(Debug, Default)]
pub struct StoredRam {
    /// Main channel, then the others.
    files: Vec<FileSource>,
    blocks: Vec<Block>,
    index: HashMap<Vec<u8>, usize>,
    pool: Pool,
    channels: Vec<Channel>,
    /// The source marks points of synchronisation by a word of its own, else by the end of each section (spec/stream 12.6).
    flushes: bool,
}

impl StoredRam {
    /// For a stream of these channels, main first. With multifd channels missing or not given, their pages are.
    pub fn new(main: &FileSource, channels: &[FileSource]) -> Self {
        let files = [main].into_iter().chain(channels).cloned().collect();
        let channels = channels.iter().zip(1..).map(|(source, file)| Channel::new(source.clone(), file)).collect();
        Self { files, channels, ..Self::default() }
    }

    /// The announced list.
    pub fn entries(&self) -> impl ExactSizeIterator<Item = &BlockEntry> {
        self.blocks.iter().map(|block| &block.entry)
    }

    /// Whether every page of `block` came.
    pub fn is_complete(&self, block: usize) -> bool {
        let block = &self.blocks[block];
        block.entry.mapped.is_some() || block.runs.pages() == block.entry.used_length / PAGE_SIZE
    }

    /// How many pages of `block` came; of a mapped-ram file's those that its bitmap names.
    pub fn pages(&self, block: usize) -> u64 {
        let block = &self.blocks[block];
        if block.entry.mapped.is_some() { block.mapped } else { block.runs.pages() }
    }

    /// The first run of pages of `block` from `offset` on that came and may hold something else than zeros: (offset, length).
    pub fn next_run(&self, block: usize, offset: u64) -> Result<Option<(u64, u64)>> {
        let mut found: Option<(u64, u64)> = None;
        let mut pieces = self.pieces(block, offset..self.blocks[block].entry.used_length);
        while let Some((range, source)) = pieces.next()? {
            match (&mut found, source.filter(|source| *source != Source::Fill(0))) {
                (None, None) => {}
                (Some(_), None) => break,
                (None, Some(_)) => found = Some((range.start, range.end - range.start)),
                (Some((_, length)), Some(_)) => *length += range.end - range.start,
            }
        }
        Ok(found)
    }

    /// Fill `out` from `block` at `offset`, both whole pages and inside; what did not come reads as zero.
    pub fn read(&self, block: usize, offset: u64, out: &mut [u8]) -> Result<()> {
        let mut rest = out;
        let mut ahead = Ahead::default();
        let mut pieces = self.pieces(block, offset..offset + rest.len() as u64);
        while let Some((range, source)) = pieces.next()? {
            let (now, behind) = rest.split_at_mut(usize::try_from(range.end - range.start).unwrap_or(usize::MAX));
            match source {
                None => now.fill(0),
                Some(Source::Fill(fill)) => now.fill(fill),
                Some(Source::Pool(at)) => self.pool.read(at, now)?,
                Some(Source::File { file, at, stride: PAGE_SIZE }) if now.len() >= Ahead::MOST => {
                    self.files[usize::from(file)].read_at(at, now)?;
                }
                Some(Source::File { file, mut at, stride }) => {
                    let mut more = now.len() + behind.len();
                    for page in now.chunks_mut(PAGE_BYTES) {
                        more -= page.len();
                        ahead.page(&self.files[usize::from(file)], file, at, more, page)?;
                        at += stride;
                    }
                }
            }
            rest = behind;
        }
        Ok(())
    }

    fn pieces(&self, block: usize, range: Range<u64>) -> Pieces<'_> {
        Pieces { ram: self, block: &self.blocks[block], range, file: Extent::default(), bitmap: Bitmap::default() }
    }

    /// Read what the channels still have behind the last point of synchronisation.
    pub fn finish(&mut self) -> Result<()> {
        self.catch_up(Channel::finish)
    }

    /// What came over each multifd channel.
    pub fn channels(&self) -> impl ExactSizeIterator<Item = &ChannelCounts> {
        self.channels.iter().map(Channel::counts)
    }

    fn catch_up(&mut self, mut run: impl FnMut(&mut Channel, &mut Self) -> Result<()>) -> Result<()> {
        let mut channels = std::mem::take(&mut self.channels);
        let outcome = channels
            .iter_mut()
            .enumerate()
            .try_for_each(|(i, channel)| run(channel, self).map_err(|e| e.within(&format!("channel {}", i + 1))));
        self.channels = channels;
        outcome
    }

    /// The block of that name and its used length.
    pub(super) fn find(&self, name: &[u8]) -> Option<(usize, u64)> {
        self.index.get(name).map(|&block| (block, self.blocks[block].entry.used_length))
    }

    /// The page stands in `file` at `at`.
    pub(super) fn place(&mut self, block: usize, offset: u64, file: u16, at: u64) {
        self.set(block, offset, Source::page(file, at));
    }

    /// The page is `fill` all over.
    pub(super) fn fill(&mut self, block: usize, offset: u64, fill: u8) {
        self.set(block, offset, Source::Fill(fill));
    }

    /// The page is these bytes.
    pub(super) fn keep(&mut self, block: usize, offset: u64, bytes: &PageBytes) -> Result<()> {
        if let Some(Source::Pool(at)) = self.blocks[block].runs.get(offset) {
            return self.pool.write(at, bytes);
        }
        let at = self.pool.put(bytes)?;
        self.set(block, offset, Source::Pool(at));
        Ok(())
    }

    fn set(&mut self, block: usize, offset: u64, source: Source) {
        if let Some(Source::Pool(at)) = self.blocks[block].runs.set(offset, source) {
            self.pool.give_back(at);
        }
    }

    fn patch(&mut self, block: usize, offset: u64, delta: &[u8]) -> Result<()> {
        let mut bytes = [0; PAGE_BYTES];
        self.read(block, offset, &mut bytes)?;
        xbzrle_decode(delta, &mut bytes)?;
        self.keep(block, offset, &bytes)
    }
}

/// Parts of a block that have their bytes in one way, ascending and without gaps; without a source they are zero.
struct Pieces<'a> {
    ram: &'a StoredRam,
    block: &'a Block,
    range: Range<u64>,
    file: Extent,
    bitmap: Bitmap,
}

impl Pieces<'_> {
    fn next(&mut self) -> Result<Option<(Range<u64>, Option<Source>)>> {
        let Range { start, end } = self.range;
        if start >= end {
            return Ok(None);
        }
        let (until, source) = match self.block.runs.at(start) {
            Ok((until, source)) => (until, Some(source)),
            Err(next) => match self.block.entry.mapped {
                None => (next.unwrap_or(end), None),
                Some(mapped) => self.mapped(mapped, next.unwrap_or(end).min(end))?,
            },
        };
        self.range.start = until.min(end);
        Ok(Some((start..self.range.start, source)))
    }

    /// What a mapped-ram file has from the first byte of the range on, up to `end` at most.
    fn mapped(&mut self, mapped: MappedRam, end: u64) -> Result<(u64, Option<Source>)> {
        let start = self.range.start;
        let file = &self.ram.files[0];
        let data = self.file.at_or_behind(file, mapped.pages + start)?;
        let first = (data.start - mapped.pages) / PAGE_SIZE * PAGE_SIZE;
        if first > start {
            return Ok((first.min(end), None));
        }
        let end = end.min((data.end - mapped.pages).div_ceil(PAGE_SIZE).saturating_mul(PAGE_SIZE));
        let (pages, set) = self.bitmap.run(file, mapped, start / PAGE_SIZE, end / PAGE_SIZE)?;
        Ok((pages * PAGE_SIZE, set.then(|| Source::page(0, mapped.pages + start))))
    }
}

/// A part of a file that is known to hold data.
#[derive(Debug, Default)]
struct Extent {
    data: Range<u64>,
}

impl Extent {
    /// The data that `at` lies in, or the next one behind it.
    fn at_or_behind(&mut self, file: &FileSource, at: u64) -> Result<Range<u64>> {
        if !self.data.contains(&at) {
            self.data = file.data(at)?;
        }
        Ok(self.data.clone())
    }
}

/// A piece of a mapped-ram bitmap.
#[derive(Debug, Default)]
struct Bitmap {
    first: u64,
    bytes: Vec<u8>,
}

impl Bitmap {
    /// The pages below `end` from `page` on that are alike, as far as one piece of the bitmap goes: the first that is not, and whether
    /// they are set.
    fn run(&mut self, file: &FileSource, mapped: MappedRam, page: u64, end: u64) -> Result<(u64, bool)> {
        if page < self.first || page >= self.first + 8 * self.bytes.len() as u64 {
            self.first = page / 8 * 8;
            let bytes = (end - self.first).div_ceil(8).min(BITMAP_STEP);
            self.bytes.resize(usize::try_from(bytes).unwrap_or_default(), 0);
            file.read_at(mapped.bitmap + self.first / 8, &mut self.bytes)?;
        }
        let end = end.min(self.first + 8 * self.bytes.len() as u64);
        let byte = |page: u64| self.bytes[usize::try_from((page - self.first) / 8).unwrap_or_default()];
        let set = byte(page) >> (page % 8) & 1;
        let mut at = page;
        while at < end && byte(at) >> (at % 8) & 1 == set {
            let whole = at.is_multiple_of(8) && byte(at) == set * 0xff;
            at += if whole { 8 } else { 1 };
        }
        Ok((at.min(end), set != 0))
    }

    /// How many of `pages` pages are set.
    fn count(file: &FileSource, mapped: MappedRam, pages: u64) -> Result<u64> {
        let mut extent = Extent::default();
        let mut bytes = Vec::new();
        let mut count = 0;
        let mut at = 0;
        while at * 8 < pages {
            let data = extent.at_or_behind(file, mapped.bitmap + at)?;
            at = at.max(data.start - mapped.bitmap);
            let length = pages.div_ceil(8).saturating_sub(at).min(BITMAP_STEP).min(data.end - mapped.bitmap - at);
            bytes.resize(usize::try_from(length).unwrap_or_default(), 0);
            file.read_at(mapped.bitmap + at, &mut bytes)?;
            at += length;
            if at * 8 > pages
                && let Some(last) = bytes.last_mut()
            {
                *last &= 0xff >> (at * 8 - pages);
            }
            count += bytes.iter().map(|byte| u64::from(byte.count_ones())).sum::<u64>();
            if length == 0 {
                break;
            }
        }
        Ok(count)
    }
}

impl PageSink for StoredRam {
    fn blocks(&mut self, list: &[BlockEntry]) -> Result<()> {
        self.index = list.iter().map(|entry| entry.name.clone()).zip(0..).collect();
        self.blocks = list.iter().map(|entry| Block { entry: entry.clone(), runs: Runs::default(), mapped: 0 }).collect();
        for block in &mut self.blocks {
            if let Some(mapped) = block.entry.mapped {
                let found = Bitmap::count(&self.files[0], mapped, block.entry.used_length / PAGE_SIZE);
                block.mapped = found.map_err(|e| e.within(&block.entry.name.escape_ascii().to_string()))?;
            }
        }
        Ok(())
    }

    fn zero(&mut self, block: usize, offset: u64, fill: u8) -> Result<()> {
        self.fill(block, offset, fill);
        Ok(())
    }

    fn page(&mut self, block: usize, offset: u64, bytes: &[u8]) -> Result<()> {
        let bytes: &PageBytes = bytes.try_into().map_err(|_| Error::io("a page", "not of a page's length"))?;
        self.keep(block, offset, bytes)
    }

    fn page_at(&mut self, block: usize, offset: u64, _bytes: &[u8], at: u64) -> Result<()> {
        self.place(block, offset, 0, at);
        Ok(())
    }

    fn coded(&mut self, block: usize, offset: u64, page: CodedPage<'_>) -> Result<()> {
        match page {
            CodedPage::Xbzrle(delta) => self.patch(block, offset, delta),
            CodedPage::Zlib(bytes) => {
                let mut page = [0; PAGE_BYTES];
                inflate_page(bytes, false, &mut page)?;
                self.keep(block, offset, &page)
            }
        }
    }

    fn flush(&mut self) -> Result<()> {
        self.flushes = true;
        self.catch_up(Channel::run_to_sync)
    }

    fn section_end(&mut self) -> Result<()> {
        if self.flushes { Ok(()) } else { self.catch_up(Channel::run_to_sync) }
    }
}
