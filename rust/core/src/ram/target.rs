//! A block as the destination of a load: where received pages go.
//!
//! A page of zeros must not make memory exist that reads zero anyway, and reading is no way to find out: on a hole of a
//! shared file or of huge pages the look itself allocates. So what exists is asked once, before the load, of the page
//! table or the file; from then on only the loader writes.

use std::sync::{Arc, Mutex, PoisonError};

use super::{AtomicBitmap, Bitmap, Block, TARGET_PAGE};
use crate::sys::guest::{GuestRange, settle};
use crate::sys::mmap::Nature;
use crate::sys::pagemap::{Pagemap, Query};
use crate::{Error, Result};

/// One block being loaded, by one thread or several; nobody else writes to it meanwhile. Who stores a page that another thread stored
/// before must have heard of that from it.
#[derive(Debug)]
pub struct PageTarget {
    block: Arc<Block>,
    /// Pages where nothing was ever stored.
    untouched: AtomicBitmap,
    /// For memory that does not tell what exists: what is in the page table does.
    present: Option<Mutex<Pagemap>>,
}

impl PageTarget {
    /// Looks at what exists and is ready for pages.
    pub fn new(block: Arc<Block>) -> Result<Self> {
        // All that a later resize can make used.
        let mut untouched = Bitmap::new(super::pages(block.max_length()));
        let known = block.untouched(&mut untouched)?;
        let present = if known || block.memory().nature() != Nature::Shmem { None } else { Some(Mutex::new(Pagemap::open()?)) };
        Ok(Self { block, untouched: untouched.into(), present })
    }

    /// The block.
    pub fn block(&self) -> &Arc<Block> {
        &self.block
    }

    /// Stores a received target page at `offset`, a multiple of the target page size below the used length.
    pub fn put(&self, offset: u64, page: &[u8]) -> Result<()> {
        // A page that comes to exist is in the cache, cleared by the kernel; one that exists is not, and need not be.
        if self.touch(offset) { self.block.put_page(offset, page) } else { self.block.stream_page(offset, page) }
    }

    /// Whole target pages from `offset` on, for the kernel to fill; all of them exist from now on.
    pub fn place(&self, offset: u64, len: usize) -> Result<GuestRange<'_>> {
        let range = self.block.range(offset, len)?;
        self.untouched.clear_range(index(offset)..index(offset) + len / TARGET_PAGE);
        Ok(range)
    }

    /// Makes what this thread stored so far visible to every thread that is told of it from now on.
    pub fn settle(&self) {
        settle();
    }

    /// Fills the target page at `offset` with one byte value; with 0 no memory comes to exist.
    pub fn fill(&self, offset: u64, value: u8) -> Result<()> {
        if value != 0 {
            self.touch(offset);
            return self.block.fill(offset, TARGET_PAGE, value);
        }
        let page = index(offset);
        if page < self.untouched.len() && self.untouched.get(page) { Ok(()) } else { self.zero(offset) }
    }

    /// The page exists from now on; was it untouched? An offset outside the block is left to the block to refuse.
    fn touch(&self, offset: u64) -> bool {
        let page = index(offset);
        page < self.untouched.len() && self.untouched.get(page) && self.untouched.test_and_clear(page)
    }

    /// Makes a page read zero that may hold something.
    fn zero(&self, offset: u64) -> Result<()> {
        if let Some(pagemap) = &self.present {
            let mut present = false;
            let at = self.block.range(offset, TARGET_PAGE)?.as_ptr().addr();
            let mut pagemap = pagemap.lock().unwrap_or_else(PoisonError::into_inner);
            pagemap.scan(at, TARGET_PAGE, Query::PRESENT, |_, _| present = true).map_err(|e| Error::io("PAGEMAP_SCAN", e))?;
            // Not mapped: a hole, or something in the file or in swap. Making it a hole is right for all of them.
            if !present && self.block.memory().discard(index(offset) * TARGET_PAGE, TARGET_PAGE).is_ok() {
                return Ok(());
            }
        }
        if !self.block.is_zero(offset, TARGET_PAGE)? {
            self.block.fill(offset, TARGET_PAGE, 0)?;
        }
        Ok(())
    }
}

impl Drop for PageTarget {
    fn drop(&mut self) {
        settle();
    }
}

/// The page of an offset; one outside the block is refused by the block.
fn index(offset: u64) -> usize {
    usize::try_from(offset / TARGET_PAGE as u64).unwrap_or(usize::MAX)
}
