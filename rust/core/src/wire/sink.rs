//! Where received pages go: the trait, one sink that drops them and one that keeps them.

use std::collections::BTreeMap;

use super::consts::{PAGE_BYTES, PAGE_SIZE};
use crate::{Error, ErrorKind, Result};

/// A block as the stream announced it: length checked to be whole pages and not 0, name unique in the list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlockEntry {
    /// Its name; legally empty, and not necessarily text.
    pub name: Vec<u8>,
    /// Bytes in use; every page record's offset is below.
    pub used_length: u64,
    /// Stream offset of the entry.
    pub offset: u64,
    /// Page size of the backing memory, where the entry says it (huge pages with postcopy).
    pub page_size: Option<u64>,
    /// Guest address of the block, where the entry says it (x-ignore-shared).
    pub address: Option<u64>,
    /// Where its pages stand in a mapped-ram file.
    pub mapped: Option<MappedRam>,
}

impl BlockEntry {
    /// An entry that says no more than it must.
    pub fn new(name: Vec<u8>, used_length: u64, offset: u64) -> Self {
        Self { name, used_length, offset, page_size: None, address: None, mapped: None }
    }
}

/// A block's place in a mapped-ram file (spec/stream 13); both positions are behind the block's entry, and no sum wraps around.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MappedRam {
    /// File position of the bitmap: little-endian 64-bit words, bit i of them is page i, set: its content is in the file.
    pub bitmap: u64,
    /// File position of page 0; the others follow in order.
    pub pages: u64,
}

/// A page in another form than as it is. Only decoders that accept it (`Accept`) hand it out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CodedPage<'a> {
    /// The difference to the last version sent (spec/stream 5.2).
    Xbzrle(&'a [u8]),
    /// A zlib stream of its own (spec/stream 6.1).
    Zlib(&'a [u8]),
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

    /// The same with the stream offset of `bytes`, for sinks that would rather remember where they stand.
    fn page_at(&mut self, block: usize, offset: u64, bytes: &[u8], _at: u64) -> Result<()> {
        self.page(block, offset, bytes)
    }

    /// A page in another form.
    fn coded(&mut self, _block: usize, _offset: u64, page: CodedPage<'_>) -> Result<()> {
        let text = match page {
            CodedPage::Xbzrle(_) => "XBZRLE pages are not taken here",
            CodedPage::Zlib(_) => "compressed pages are not taken here",
        };
        Err(Error::new(ErrorKind::Unsupported, text))
    }

    /// The same with the stream offset of its record, for sinks that decode later.
    fn coded_at(&mut self, block: usize, offset: u64, page: CodedPage<'_>, _at: u64) -> Result<()> {
        self.coded(block, offset, page)
    }

    /// The multifd channels are to be caught up with: the word `MULTIFD_FLUSH`.
    fn flush(&mut self) -> Result<()> {
        Ok(())
    }

    /// Wants `before_wait` to be called.
    fn collects(&self) -> bool {
        false
    }

    /// The next bytes may not be here yet: whatever is not to wait for them is done now.
    fn before_wait(&mut self) -> Result<()> {
        Ok(())
    }

    /// After ADVISE: does this block's entry in the list say its page size? None: it is known by its looks, if at all.
    fn page_size_follows(&self, _name: &[u8]) -> Option<bool> {
        None
    }

    /// The begin of a RAM section's payload; in the first one before the list of blocks.
    fn section_begin(&mut self) -> Result<()> {
        Ok(())
    }

    /// The end of a RAM section's payload.
    fn section_end(&mut self) -> Result<()> {
        Ok(())
    }
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
