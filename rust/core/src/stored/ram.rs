//! RAM of a stored stream: the last version of every page, and which pages came at all.

use std::collections::{BTreeMap, HashMap};

use super::channel::{Channel, ChannelCounts};
use super::source::FileSource;
use crate::page::{inflate_page, xbzrle_decode};
use crate::wire::consts::{PAGE_BYTES, PAGE_SIZE};
use crate::wire::{BlockEntry, CodedPage, PageSink};
use crate::{Error, Result};

/// Bytes of a mapped-ram bitmap read at once: what covers 8 MiB of RAM.
const BITMAP_STEP: usize = 256;

type PageBytes = [u8; PAGE_BYTES];

#[derive(Debug)]
enum Page {
    Fill(u8),
    /// It stands in this file as it is.
    At(u16, u64),
    Own(Box<PageBytes>),
}

#[derive(Debug)]
struct Block {
    entry: BlockEntry,
    pages: BTreeMap<u64, Page>,
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
        block.entry.mapped.is_some() || block.pages.len() as u64 == block.entry.used_length / PAGE_SIZE
    }

    /// Runs of pages of `block` that came and may hold something else than zeros: (offset, length), ascending.
    pub fn runs(&self, block: usize) -> Vec<(u64, u64)> {
        let mut runs: Vec<(u64, u64)> = Vec::new();
        for (offset, page) in &self.blocks[block].pages {
            match (page, runs.last_mut()) {
                (Page::Fill(0), _) => {}
                (_, Some((start, length))) if *start + *length == *offset => *length += PAGE_SIZE,
                _ => runs.push((*offset, PAGE_SIZE)),
            }
        }
        runs
    }

    /// Fill `out` from `block` at `offset`, both whole pages and inside; what did not come reads as zero.
    pub fn read(&self, block: usize, offset: u64, out: &mut [u8]) -> Result<()> {
        let mut rest = out;
        let mut at = offset;
        let mut ahead = Ahead::default();
        for (place, page) in self.blocks[block].pages.range(offset..offset + rest.len() as u64) {
            let (gap, behind) = rest.split_at_mut(usize::try_from(place - at).unwrap_or(usize::MAX));
            gap.fill(0);
            let (now, behind) = behind.split_at_mut(PAGE_BYTES);
            match page {
                Page::Fill(fill) => now.fill(*fill),
                Page::At(file, at) => ahead.page(&self.files[usize::from(*file)], *file, *at, behind.len(), now)?,
                Page::Own(bytes) => now.copy_from_slice(&bytes[..]),
            }
            (rest, at) = (behind, place + PAGE_SIZE);
        }
        rest.fill(0);
        Ok(())
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
        self.blocks[block].pages.insert(offset, Page::At(file, at));
    }

    /// The page is `fill` all over.
    pub(super) fn fill(&mut self, block: usize, offset: u64, fill: u8) {
        self.blocks[block].pages.insert(offset, Page::Fill(fill));
    }

    /// The page is these bytes.
    pub(super) fn keep(&mut self, block: usize, offset: u64, bytes: Box<PageBytes>) {
        self.blocks[block].pages.insert(offset, Page::Own(bytes));
    }

    fn patch(&mut self, block: usize, offset: u64, delta: &[u8]) -> Result<()> {
        if let Some(Page::Own(bytes)) = self.blocks[block].pages.get_mut(&offset) {
            return xbzrle_decode(delta, &mut bytes[..]).map(drop);
        }
        let mut bytes = Box::new([0; PAGE_BYTES]);
        self.read(block, offset, &mut bytes[..])?;
        xbzrle_decode(delta, &mut bytes[..])?;
        self.keep(block, offset, bytes);
        Ok(())
    }

    /// Take the pages that a mapped-ram bitmap says are in the file.
    fn map(&mut self, block: usize) -> Result<()> {
        let entry = &self.blocks[block].entry;
        let Some(mapped) = entry.mapped else { return Ok(()) };
        let count = entry.used_length / PAGE_SIZE;
        let mut words = [0; BITMAP_STEP];
        let mut first = 0;
        while first < count {
            let bytes = (BITMAP_STEP as u64).min((count - first).div_ceil(64) * 8);
            let piece = &mut words[..usize::try_from(bytes).unwrap_or_default()];
            self.files[0].read_at(mapped.bitmap + first / 8, piece)?;
            for (byte, at) in piece.iter().zip((first..).step_by(8)).filter(|(byte, _)| **byte != 0) {
                for page in (0..8).filter(|bit| byte >> bit & 1 != 0).map(|bit| at + bit).filter(|page| *page < count) {
                    self.place(block, page * PAGE_SIZE, 0, mapped.pages + page * PAGE_SIZE);
                }
            }
            first += bytes * 8;
        }
        Ok(())
    }
}

impl PageSink for StoredRam {
    fn blocks(&mut self, list: &[BlockEntry]) -> Result<()> {
        self.index = list.iter().map(|entry| entry.name.clone()).zip(0..).collect();
        self.blocks = list.iter().map(|entry| Block { entry: entry.clone(), pages: BTreeMap::new() }).collect();
        (0..list.len()).try_for_each(|block| self.map(block).map_err(|e| e.within(&list[block].name.escape_ascii().to_string())))
    }

    fn zero(&mut self, block: usize, offset: u64, fill: u8) -> Result<()> {
        self.fill(block, offset, fill);
        Ok(())
    }

    fn page(&mut self, block: usize, offset: u64, bytes: &[u8]) -> Result<()> {
        let bytes: &PageBytes = bytes.try_into().map_err(|_| Error::io("a page", "not of a page's length"))?;
        self.keep(block, offset, Box::new(*bytes));
        Ok(())
    }

    fn page_at(&mut self, block: usize, offset: u64, _bytes: &[u8], at: u64) -> Result<()> {
        self.place(block, offset, 0, at);
        Ok(())
    }

    fn coded(&mut self, block: usize, offset: u64, page: CodedPage<'_>) -> Result<()> {
        match page {
            CodedPage::Xbzrle(delta) => self.patch(block, offset, delta),
            CodedPage::Zlib(bytes) => {
                let mut page = Box::new([0; PAGE_BYTES]);
                inflate_page(bytes, false, &mut page[..])?;
                self.keep(block, offset, page);
                Ok(())
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
