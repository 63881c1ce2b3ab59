//! Puts received pages where threads may be waiting for them: whole host pages, in one step each.
//!
//! One for each channel. A host page larger than a target page is assembled in a buffer of the placer's own. Small pages that nobody
//! waits for may be collected and placed several at a time, if whoever feeds the placer promises to [`Placer::flush`] before it waits
//! for more.

use std::ops::Range;
use std::sync::Arc;

use super::memory::Content;
use super::{Memory, Requests};
use crate::ram::{Bitmap, TARGET_PAGE};
use crate::{Error, ErrorKind, Result};

/// Small pages placed at a time at most.
const BATCH: usize = 16;

/// Places what one channel brings.
#[derive(Debug)]
pub struct Placer {
    requests: Arc<Requests>,
    /// A host page being assembled, or a batch of small ones.
    buffer: Vec<u8>,
    group: Option<Group>,
    /// Target pages of the group that came.
    seen: Bitmap,
    batch: usize,
}

/// What is in the buffer.
#[derive(Debug, Clone, Copy)]
struct Group {
    block: usize,
    /// Of the host page, or the first page of the batch.
    offset: u64,
    /// Target pages so far.
    count: usize,
    /// All of them are zero; then the buffer holds anything.
    zero: bool,
    /// When the first of them came.
    first: u64,
}

impl Placer {
    /// Every page is placed as soon as it is whole.
    pub fn new(requests: Arc<Requests>) -> Self {
        Self::with_batch(requests, 1)
    }

    /// Pages that nobody waits for are placed several at a time: call [`Self::flush`] before waiting for bytes.
    pub fn batched(requests: Arc<Requests>) -> Self {
        Self::with_batch(requests, BATCH)
    }

    fn with_batch(requests: Arc<Requests>, batch: usize) -> Self {
        let memory = requests.memory();
        let largest = (0..memory.len()).map(|block| ratio(memory, block)).max().unwrap_or(1);
        let room = largest.max(batch);
        Self { buffer: vec![0; room * TARGET_PAGE], seen: Bitmap::new(room), group: None, batch, requests }
    }

    /// A target page arrived: 4096 bytes for a page-aligned offset inside a block of [`Memory`].
    pub fn page(&mut self, block: usize, offset: u64, bytes: &[u8]) -> Result<()> {
        assert_eq!(bytes.len(), TARGET_PAGE, "a target page");
        self.take(block, offset, Some(bytes))
    }

    /// A target page of `fill` bytes arrived.
    pub fn zero(&mut self, block: usize, offset: u64, fill: u8) -> Result<()> {
        if fill == 0 { self.take(block, offset, None) } else { self.take(block, offset, Some(&[fill; TARGET_PAGE])) }
    }

    /// A whole host page, from wherever it is.
    pub(super) fn whole(&mut self, block: usize, offset: u64, content: Content<'_>) -> Result<()> {
        let memory = self.requests.memory();
        let (size, used) = (memory.page_size(block), memory.block(block).used_length());
        if !offset.is_multiple_of(size) || offset >= used {
            return Err(self.error(block, format!("page {offset:#x} is misaligned or outside the block's {used:#x} bytes")));
        }
        if !memory.claim(block, offset) {
            return Err(self.error(block, format!("page {offset:#x} arrived twice")));
        }
        let first = self.requests.latency().now();
        place(&self.requests, block, offset, content, first)
    }

    /// What it belongs to.
    pub(super) fn requests(&self) -> &Requests {
        &self.requests
    }

    /// Places the small pages that were collected. A host page that is not whole stays.
    pub fn flush(&mut self) -> Result<()> {
        match self.group {
            Some(group) if ratio(self.requests.memory(), group.block) == 1 => self.complete(group),
            _ => Ok(()),
        }
    }

    /// A host page is here in part.
    pub fn has_part(&self) -> bool {
        self.group.is_some_and(|group| ratio(self.requests.memory(), group.block) > 1)
    }

    /// Forgets what was collected and not placed: after a broken link, before the received pages are told.
    pub fn abandon(&mut self) {
        if let Some(group) = self.group.take() {
            let memory = self.requests.memory();
            if ratio(memory, group.block) == 1 {
                memory.release(group.block, group.offset, group.count * TARGET_PAGE);
            }
        }
    }

    /// The channel is at its end: everything that came is placed. An error if that is a host page in part.
    pub fn finish(&mut self) -> Result<()> {
        self.flush()?;
        self.group.map_or(Ok(()), |group| Err(self.interrupted(group)))
    }

    fn take(&mut self, block: usize, offset: u64, bytes: Option<&[u8]>) -> Result<()> {
        let used = self.requests.memory().block(block).used_length();
        if !offset.is_multiple_of(TARGET_PAGE as u64) || offset >= used {
            let text = format!("page {offset:#x} is misaligned or outside the block's {used:#x} bytes");
            return Err(self.error(block, text));
        }
        if ratio(self.requests.memory(), block) > 1 { self.assemble(block, offset, bytes) } else { self.small(block, offset, bytes) }
    }

    /// A page that is a host page.
    fn small(&mut self, block: usize, offset: u64, bytes: Option<&[u8]>) -> Result<()> {
        if let Some(group) = self.group.filter(|group| ratio(self.requests.memory(), group.block) > 1) {
            return Err(self.interrupted(group));
        }
        if !self.requests.memory().claim(block, offset) {
            return Err(self.error(block, format!("page {offset:#x} arrived twice")));
        }
        let waited = self.requests.is_asked(block, number(offset));
        if waited || self.batch == 1 {
            let content = bytes.map_or(Content::Zeros(TARGET_PAGE), Content::Bytes);
            let first = if waited { self.requests.latency().now() } else { 0 };
            return place(&self.requests, block, offset, content, first);
        }
        if let Some(group) = self.group.filter(|group| !group.continues(block, offset, bytes.is_none()) || group.count == self.batch) {
            self.complete(group).inspect_err(|_| self.requests.memory().release(block, offset, TARGET_PAGE))?;
        }
        let group = self.group.get_or_insert(Group { block, offset, count: 0, zero: bytes.is_none(), first: 0 });
        if let Some(bytes) = bytes {
            self.buffer[piece(group.count)].copy_from_slice(bytes);
        }
        group.count += 1;
        Ok(())
    }

    /// A part of a larger host page.
    fn assemble(&mut self, block: usize, offset: u64, bytes: Option<&[u8]>) -> Result<()> {
        let memory = self.requests.memory();
        let (size, ratio) = (memory.page_size(block), ratio(memory, block));
        let host = offset - offset % size;
        let part = number(offset - host);
        let mut group = match self.group {
            Some(group) if (group.block, group.offset) == (block, host) => group,
            Some(group) if self::ratio(memory, group.block) > 1 => return Err(self.interrupted(group)),
            _ => {
                self.flush()?;
                self.seen.clear_all();
                Group { block, offset: host, count: 0, zero: true, first: self.requests.latency().now() }
            }
        };
        if !self.seen.set(part) {
            return Err(self.error(block, format!("page {offset:#x} arrived twice")));
        }
        if bytes.is_some() && group.zero {
            // Those before it were zeros.
            group.zero = false;
            self.buffer[..ratio * TARGET_PAGE].fill(0);
        }
        match bytes {
            Some(bytes) => self.buffer[piece(part)].copy_from_slice(bytes),
            None if group.zero => {}
            None => self.buffer[piece(part)].fill(0),
        }
        group.count += 1;
        self.group = Some(group);
        if group.count < ratio {
            return Ok(());
        }
        self.group = None;
        if !self.requests.memory().claim(block, host) {
            return Err(self.error(block, format!("the page of {size:#x} bytes at {host:#x} arrived twice")));
        }
        let content = if group.zero { Content::Zeros(ratio * TARGET_PAGE) } else { Content::Bytes(&self.buffer[..ratio * TARGET_PAGE]) };
        place(&self.requests, block, host, content, group.first)
    }

    /// Places a batch of small pages.
    fn complete(&mut self, group: Group) -> Result<()> {
        self.group = None;
        let len = group.count * TARGET_PAGE;
        let content = if group.zero { Content::Zeros(len) } else { Content::Bytes(&self.buffer[..len]) };
        place(&self.requests, group.block, group.offset, content, group.first)
    }

    fn interrupted(&self, group: Group) -> Error {
        let memory = self.requests.memory();
        let (size, ratio) = (memory.page_size(group.block), ratio(memory, group.block));
        let text = format!("only {} of the {ratio} parts of the page of {size:#x} bytes at {:#x} came", group.count, group.offset);
        self.error(group.block, text)
    }

    fn error(&self, block: usize, text: String) -> Error {
        Error::new(ErrorKind::BadAddress, text).within(self.requests.memory().block(block).name())
    }
}

impl Drop for Placer {
    fn drop(&mut self) {
        self.abandon();
    }
}

impl Group {
    /// Is this the page after the last, of the same sort?
    fn continues(&self, block: usize, offset: u64, zero: bool) -> bool {
        (self.block, self.zero) == (block, zero) && self.offset + (self.count * TARGET_PAGE) as u64 == offset
    }
}

/// Places claimed pages and tells who waits for them.
fn place(requests: &Requests, block: usize, offset: u64, content: Content<'_>, first: u64) -> Result<()> {
    let size = requests.memory().page_size(block);
    requests.memory().place(block, offset, content, |at, len| {
        for page in at / size..(at + len as u64) / size {
            // Pages of mapped memory fit.
            requests.placed(block, usize::try_from(page).unwrap_or(usize::MAX), first);
        }
    })
}

/// Target pages in a host page of the block.
fn ratio(memory: &Memory, block: usize) -> usize {
    number(memory.page_size(block))
}

/// Bytes as target pages; they lie in mapped memory.
fn number(bytes: u64) -> usize {
    usize::try_from(bytes / TARGET_PAGE as u64).unwrap_or(usize::MAX)
}

/// Where the n-th target page lies in the buffer.
fn piece(n: usize) -> Range<usize> {
    n * TARGET_PAGE..(n + 1) * TARGET_PAGE
}
