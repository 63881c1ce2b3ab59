//! Where received pages go: the trait, one sink that drops them and one that keeps them.

use std::collections::BTreeMap;

use super::consts::{PAGE_BYTES, PAGE_SIZE};
use crate::Result;

/// A block as the stream announced it: length checked to be whole pages and not 0, name unique in the list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlockEntry {
    /// Its name; legally empty, and not necessarily text.
    pub name: Vec<u8>,
    /// Bytes in use; every page record's offset is below.
    pub used_length: u64,
    /// Stream offset of the entry.
    pub offset: u64,
}

/// Receives RAM. `block` is an index into the announced list; `offset` is page-aligned and inside the block.
///
/// The decoder adds stream offset and path to errors.
pub trait PageSink {
    /// The list of blocks; comes once, before any page.
    fn blocks(&mut self, list: &[BlockEntry]) -> Result<()>;
    /// A page of `fill` bytes, nearly always 0.
    fn zero(&mut self, block: usize, offset: u64, fill: u8) -> Result<()>;
    /// A page as it is; `bytes` has 4096 of them.
    fn page(&mut self, block: usize, offset: u64, bytes: &[u8]) -> Result<()>;
}

/// Drops everything.
#[derive(Debug, Clone, Copy, Default)]
pub struct NullSink;

impl PageSink for NullSink {
    fn blocks(&mut self, _list: &[BlockEntry]) -> Result<()> {
        Ok(())
    }

    fn zero(&mut self, _block: usize, _offset: u64, _fill: u8) -> Result<()> {
        Ok(())
    }

    fn page(&mut self, _block: usize, _offset: u64, _bytes: &[u8]) -> Result<()> {
        Ok(())
    }
}

#[derive(Debug, Clone)]
enum Page {
    /// Kept small: nine bytes of stream must not cost a page of memory.
    Fill(u8),
    Bytes(Box<[u8]>),
}

/// Keeps the last version of every page; holds no more memory than the stream had bytes, roughly.
#[derive(Debug, Clone, Default)]
pub struct RecordingSink {
    blocks: Vec<(BlockEntry, BTreeMap<u64, Page>)>,
}

impl RecordingSink {
    /// The announced list.
    pub fn blocks(&self) -> impl ExactSizeIterator<Item = &BlockEntry> {
        self.blocks.iter().map(|(entry, _)| entry)
    }

    /// The contents of `block` over its used length, in order and in pieces. What was never received reads as zero.
    pub fn read(&self, block: usize, mut each: impl FnMut(&[u8])) {
        static ZEROS: [u8; 16 * PAGE_BYTES] = [0; 16 * PAGE_BYTES];
        let gap = |mut bytes: u64, each: &mut dyn FnMut(&[u8])| {
            while bytes > 0 {
                let step = usize::try_from(bytes).map_or(ZEROS.len(), |bytes| bytes.min(ZEROS.len()));
                each(&ZEROS[..step]);
                bytes -= step as u64;
            }
        };
        let (entry, pages) = &self.blocks[block];
        let mut at = 0;
        for (offset, page) in pages {
            gap(offset - at, &mut each);
            match page {
                Page::Fill(fill) => each(&[*fill; PAGE_BYTES]),
                Page::Bytes(bytes) => each(bytes),
            }
            at = offset + PAGE_SIZE;
        }
        gap(entry.used_length - at, &mut each);
    }
}

impl PageSink for RecordingSink {
    fn blocks(&mut self, list: &[BlockEntry]) -> Result<()> {
        self.blocks = list.iter().map(|entry| (entry.clone(), BTreeMap::new())).collect();
        Ok(())
    }

    fn zero(&mut self, block: usize, offset: u64, fill: u8) -> Result<()> {
        let pages = &mut self.blocks[block].1;
        if fill == 0 {
            pages.remove(&offset);
        } else {
            pages.insert(offset, Page::Fill(fill));
        }
        Ok(())
    }

    fn page(&mut self, block: usize, offset: u64, bytes: &[u8]) -> Result<()> {
        self.blocks[block].1.insert(offset, Page::Bytes(bytes.into()));
        Ok(())
    }
}
