//! One named range of guest RAM.
//!
//! A block is made by the core, which then owns its memory, or stands on memory of the caller's. Its greatest length is
//! reserved at once and its address never changes; the used length, which is what migrates, may change below that.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering, compiler_fence};
use std::sync::{Arc, Mutex, PoisonError};

use super::{AtomicBitmap, Bitmap, DirtyLogKind, TARGET_PAGE, dirty, pages};
use crate::sys::guest::{GuestMem, GuestRange};
use crate::sys::mmap::{Mapping, Nature};
use crate::sys::pagemap::{Pagemap, Query};
use crate::{Error, ErrorKind, Result};

#[cfg(test)]
mod tests;

/// Longest name: the wire has one byte for its length.
const NAME_MAX: usize = 255;

/// What a block's memory is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Backing {
    /// Private anonymous memory.
    #[default]
    Anon,
    /// Shared memory in a file without a name.
    Memfd,
    /// A shared map of a file.
    File,
    /// Private memory of reserved huge pages.
    Hugetlb,
    /// The caller's own memory.
    Adopted,
}

impl Backing {
    /// The name users know.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Anon => "anon",
            Self::Memfd => "memfd",
            Self::File => "file",
            Self::Hugetlb => "hugetlb",
            Self::Adopted => "adopted",
        }
    }
}

/// How to make a block.
#[derive(Debug, Clone)]
pub struct BlockOptions {
    /// Not `Adopted`.
    pub backing: Backing,
    /// The file of `Backing::File`, and of no other.
    pub path: Option<PathBuf>,
    /// Greatest length in bytes; none: the size, and a stream may not change it.
    pub max_size: Option<u64>,
    /// Ask for transparent huge pages (anon, memfd).
    pub thp: bool,
}

impl Default for BlockOptions {
    fn default() -> Self {
        Self { backing: Backing::Anon, path: None, max_size: None, thp: true }
    }
}

/// One range of guest RAM. Shared by everyone who uses it; its memory goes with the last of them.
#[derive(Debug)]
pub struct Block {
    name: String,
    memory: Mapping,
    backing: Backing,
    explicit: bool,
    used: AtomicU64,
    max: u64,
    resizable: bool,
    /// What was written by ways that the kernel's log does not see.
    pub(super) marks: AtomicBitmap,
    /// A dirty log or a fault handler has the block.
    pub(super) leased: AtomicBool,
    /// An explicit log runs.
    pub(super) wants_marks: AtomicBool,
    last_dirty: Mutex<Option<Bitmap>>,
}

impl Block {
    /// A block of private anonymous memory.
    pub fn anon(name: &str, size: u64) -> Result<Arc<Self>> {
        Self::new(name, size, &BlockOptions::default())
    }

    /// A block with memory of its own.
    pub fn new(name: &str, size: u64, options: &BlockOptions) -> Result<Arc<Self>> {
        let max = options.max_size.unwrap_or(size);
        let bad = |text: String| Error::new(ErrorKind::BadBlock, format!("block {name:?}: {text}"));
        check_name(name)?;
        if size == 0 || !size.is_multiple_of(TARGET_PAGE as u64) || !max.is_multiple_of(TARGET_PAGE as u64) {
            return Err(bad(format!("size {size:#x} and max_size {max:#x} must be positive multiples of {TARGET_PAGE:#x}")));
        }
        if max < size {
            return Err(bad(format!("max_size {max:#x} is less than size {size:#x}")));
        }
        let len = usize::try_from(max).map_err(|_| bad(format!("{max:#x} bytes do not fit the address space")))?;
        let path = match (options.backing, &options.path) {
            (Backing::File, None) => return Err(bad("backing \"file\" needs a path".into())),
            (Backing::File, Some(path)) => path.as_path(),
            (_, Some(_)) => return Err(bad("a path goes with backing \"file\" only".into())),
            (_, None) => Path::new(""),
        };
        let memory = match options.backing {
            Backing::Anon => Mapping::anon(len, options.thp),
            Backing::Memfd => Mapping::memfd(len, options.thp),
            Backing::File => Mapping::file(path, len),
            Backing::Hugetlb => Mapping::hugetlb(len),
            Backing::Adopted => return Err(bad("memory of the caller's is adopted, not made".into())),
        }
        .map_err(|e| named(name, e))?;
        if !size.is_multiple_of(memory.page_size() as u64) {
            return Err(bad(format!("size {size:#x} is no multiple of the memory's page size {:#x}", memory.page_size())));
        }
        Ok(Self::over(name, memory, size, options, false))
    }

    /// A block over memory of the caller's; all of it is used.
    ///
    /// `explicit`: the caller will say by [`Self::mark_dirty`] what it wrote. Without that the kernel must be able to
    /// notice, which is tried at once.
    pub fn adopt(name: &str, memory: Mapping, explicit: bool) -> Result<Arc<Self>> {
        check_name(name)?;
        let size = memory.view().len() as u64;
        let options = BlockOptions { backing: Backing::Adopted, ..BlockOptions::default() };
        let made = Self::over(name, memory, size, &options, explicit);
        if !explicit {
            dirty::probe(&made).map_err(|e| named(name, e))?;
        }
        Ok(made)
    }

    fn over(name: &str, memory: Mapping, size: u64, options: &BlockOptions, explicit: bool) -> Arc<Self> {
        let max = memory.view().len() as u64;
        Arc::new(Self {
            name: name.to_owned(),
            memory,
            backing: options.backing,
            explicit,
            used: AtomicU64::new(size),
            max,
            resizable: options.max_size.is_some(),
            marks: AtomicBitmap::new(pages(max)),
            leased: AtomicBool::new(false),
            wants_marks: AtomicBool::new(false),
            last_dirty: Mutex::new(None),
        })
    }

    /// The name in the stream (idstr).
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Bytes that migrate.
    pub fn used_length(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    /// Bytes that are reserved.
    pub fn max_length(&self) -> u64 {
        self.max
    }

    /// A stream may bring another length: whoever made the block has named a greatest one.
    pub fn resizable(&self) -> bool {
        self.resizable
    }

    /// Target pages that migrate.
    pub fn pages(&self) -> usize {
        pages(self.used_length())
    }

    /// Page size of the memory in bytes.
    pub fn page_size(&self) -> u64 {
        self.memory.page_size() as u64
    }

    /// What the memory is made of.
    pub fn backing(&self) -> Backing {
        self.backing
    }

    /// Address of the first byte in this process.
    pub fn address(&self) -> usize {
        self.view().range(0, 0).as_ptr().addr()
    }

    /// The kind of dirty log that `DirtyMode::Auto` means for this block.
    pub fn dirty_log(&self) -> DirtyLogKind {
        if self.explicit || self.memory.nature() == Nature::Disk { DirtyLogKind::Explicit } else { DirtyLogKind::WpAsync }
    }

    /// True while a log runs that knows only what `mark_dirty` says. To be asked after the write, as cheaply as it looks:
    /// the log's start makes sure that a writer either sees this or has its write seen by the first pass.
    #[inline]
    pub fn wants_marks(&self) -> bool {
        compiler_fence(Ordering::SeqCst);
        self.wants_marks.load(Ordering::Relaxed)
    }

    /// The caller said that it marks what it writes.
    pub(super) fn explicit(&self) -> bool {
        self.explicit
    }

    pub(crate) fn memory(&self) -> &Mapping {
        &self.memory
    }

    pub(crate) fn view(&self) -> GuestMem<'_> {
        self.memory.view()
    }

    /// The checked offset of `len` bytes below the used length.
    fn check(&self, offset: u64, len: usize) -> Result<usize> {
        let used = self.used_length();
        if len as u64 <= used && offset <= used - len as u64 {
            // It is below a mapped length.
            return Ok(usize::try_from(offset).unwrap_or(usize::MAX));
        }
        Err(Error::new(ErrorKind::InvalidArgument, format!("{offset:#x}+{len:#x} is outside block {:?} of {used:#x} bytes", self.name)))
    }

    /// Copies out.
    pub fn read(&self, offset: u64, into: &mut [u8]) -> Result<()> {
        let at = self.check(offset, into.len())?;
        self.view().read(at, into);
        Ok(())
    }

    /// Copies in and marks dirty.
    pub fn write(&self, offset: u64, from: &[u8]) -> Result<()> {
        let at = self.check(offset, from.len())?;
        self.view().write(at, from);
        self.mark_dirty(offset, from.len())
    }

    /// Copies a received page in; nothing is marked.
    pub fn put_page(&self, offset: u64, page: &[u8]) -> Result<()> {
        let at = self.check(offset, page.len())?;
        self.view().write(at, page);
        Ok(())
    }

    /// The same past the caches, for a page that exists already; `PageTarget::settle` before others are told.
    pub(super) fn stream_page(&self, offset: u64, page: &[u8]) -> Result<()> {
        let at = self.check(offset, page.len())?;
        self.view().write_streaming(at, page);
        Ok(())
    }

    /// Sets every byte of a range; nothing is marked.
    pub fn fill(&self, offset: u64, len: usize, value: u8) -> Result<()> {
        let at = self.check(offset, len)?;
        self.view().fill(at, len, value);
        Ok(())
    }

    /// Asks for the bytes at `offset` to be in the cache soon. An offset outside has no effect, and no memory comes to exist.
    pub fn prefetch(&self, offset: u64) {
        if let Ok(at) = self.check(offset, 1) {
            self.view().prefetch(at);
        }
    }

    /// True if the bytes read zero.
    pub fn is_zero(&self, offset: u64, len: usize) -> Result<bool> {
        let at = self.check(offset, len)?;
        Ok(self.view().is_zero(at, len))
    }

    /// The bytes as something the kernel can be given.
    pub fn range(&self, offset: u64, len: usize) -> Result<GuestRange<'_>> {
        let at = self.check(offset, len)?;
        Ok(self.view().range(at, len))
    }

    /// Says that these bytes were written by a way that the kernel's log does not see. To be called after the write.
    pub fn mark_dirty(&self, offset: u64, len: usize) -> Result<()> {
        let at = self.check(offset, len)?;
        if len > 0 {
            self.marks.set_range(at / TARGET_PAGE..(at + len).div_ceil(TARGET_PAGE));
        }
        Ok(())
    }

    /// Brings the pages of the range in ahead of use; their content stays.
    pub fn prefault(&self, offset: u64, len: usize) -> Result<()> {
        let at = self.check(offset, len)?;
        let start = at - at % self.memory.page_size();
        let end = (at + len).next_multiple_of(self.memory.page_size()).min(self.view().len());
        // Under a dirty log, coming in for writing would count as written.
        let write = !self.leased.load(Ordering::Acquire);
        if len > 0 { self.memory.populate(start, end - start, write) } else { Ok(()) }
    }

    /// Changes the used length. Not while a dirty log watches the block.
    pub fn resize(&self, size: u64) -> Result<()> {
        if size == 0 || size > self.max || !size.is_multiple_of(self.page_size()) {
            let text = format!(
                "block {:?}: size {size:#x} must be a positive multiple of {:#x}, at most {:#x}",
                self.name,
                self.page_size(),
                self.max
            );
            return Err(Error::new(ErrorKind::BadBlock, text));
        }
        if self.leased.load(Ordering::Acquire) {
            return Err(Error::new(ErrorKind::InvalidState, format!("block {:?} cannot change its size during a migration", self.name)));
        }
        let old = self.used.swap(size, Ordering::AcqRel);
        // What comes back later reads zero. A file keeps its bytes, and memory of the caller's is not ours to free.
        if size < old && !self.memory.is_foreign() && self.backing != Backing::File {
            // Both lie below the mapped length.
            let (from, to) = (usize::try_from(size).unwrap_or(usize::MAX), usize::try_from(old).unwrap_or(usize::MAX));
            self.memory.discard(from, to - from)?;
        }
        Ok(())
    }

    /// Frees the pages of the range (multiples of the page size); it reads zero afterwards and is marked dirty.
    pub fn discard(&self, offset: u64, len: usize) -> Result<()> {
        let at = self.check(offset, len)?;
        self.memory.discard(at, len)?;
        self.mark_dirty(offset, len)
    }

    /// Sets the bits of target pages that certainly read zero because nothing was ever stored there; reads none of them.
    /// True if all such pages were found, false if this memory does not tell.
    ///
    /// That a page is untouched holds until the next write, by whatever way; who cannot exclude one needs a dirty log
    /// that was started before.
    pub fn untouched(&self, into: &mut Bitmap) -> Result<bool> {
        let len = into.len().saturating_mul(TARGET_PAGE).min(self.view().len());
        let address = self.address();
        match self.memory.nature() {
            Nature::Private => {
                // Only this process can store here, and what it stored is in the page table or in swap.
                Pagemap::open()?
                    .scan(address, len, Query::ABSENT, |start, end| {
                        into.set_range((start - address) / TARGET_PAGE..(end - address) / TARGET_PAGE);
                    })
                    .map_err(|e| Error::io("PAGEMAP_SCAN", e))?;
                Ok(true)
            }
            Nature::Shmem => {
                let (mut hole, pages) = (0, len / TARGET_PAGE);
                let known = self.memory.stored_runs(len, |run| {
                    into.set_range(hole..hole.max(run.start / TARGET_PAGE));
                    hole = run.end.div_ceil(TARGET_PAGE);
                })?;
                if known {
                    into.set_range(hole..hole.max(pages));
                }
                Ok(known)
            }
            Nature::Disk => Ok(false),
        }
    }

    /// Keeps the dirty bitmap of a migration for [`Self::dump_dirty`].
    pub fn keep_dirty(&self, bitmap: Bitmap) {
        *self.last_dirty.lock().unwrap_or_else(PoisonError::into_inner) = Some(bitmap);
    }

    /// The dirty bitmap of the last migration as text: 128 pages a line, `1` or `.`; lines wholly `expected` are left out.
    pub fn dump_dirty(&self, expected: bool) -> String {
        const LINE: usize = 128;
        let kept = self.last_dirty.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(bitmap) = kept.as_ref() else { return String::new() };
        let mut text = String::new();
        for start in (0..bitmap.len()).step_by(LINE) {
            let end = bitmap.len().min(start + LINE);
            if (start..end).all(|page| bitmap.get(page) == expected) {
                continue;
            }
            // Writing to a String cannot fail.
            let _ = write!(text, "0x{:08x}: ", start * TARGET_PAGE);
            text.extend((start..end).map(|page| if bitmap.get(page) { '1' } else { '.' }));
            text.push('\n');
        }
        text
    }
}

/// The error, saying of which block.
fn named(name: &str, error: Error) -> Error {
    Error { message: format!("block {name:?}: {}", error.message), ..error }
}

fn check_name(name: &str) -> Result<()> {
    if name.is_empty() || name.len() > NAME_MAX {
        let text = format!("a RAM block's name has 1 to {NAME_MAX} bytes, this one {}", name.len());
        return Err(Error::new(ErrorKind::InvalidArgument, text));
    }
    Ok(())
}
