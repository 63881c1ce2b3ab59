//! Raw copies to and from guest memory: the only place that touches guest bytes.
//!
//! Guest memory is written by the guest while we read it, so nothing here ever forms a `&[u8]` to it: bytes go in and
//! out by raw copies, and what a racing guest tears is found again by the dirty log. Ranges are checked before anything
//! is touched; a range outside its memory is our own mistake and panics (what a peer asks for is checked in `ram`).

use std::marker::PhantomData;
use std::ptr::NonNull;

use super::{scan, stream};

pub use stream::settle;

/// A bounds-checked, borrowed range of guest memory, to be handed to the kernel (vectors, file I/O).
#[derive(Debug, Clone, Copy)]
pub struct GuestRange<'a> {
    base: NonNull<u8>,
    len: usize,
    memory: PhantomData<&'a ()>,
}

// SAFETY: the range is an address and a length; whoever reads through it does so with raw copies.
unsafe impl Send for GuestRange<'_> {}
// SAFETY: as above.
unsafe impl Sync for GuestRange<'_> {}

impl GuestRange<'_> {
    /// First byte.
    pub fn as_ptr(&self) -> *const u8 {
        self.base.as_ptr()
    }

    /// A part of it. Panics outside.
    #[must_use]
    pub fn part(&self, offset: usize, len: usize) -> Self {
        assert!(offset <= self.len && len <= self.len - offset, "{offset:#x}+{len:#x} of a range of {:#x}", self.len);
        // Inside a range, so not null.
        Self { base: NonNull::new(self.base.as_ptr().wrapping_add(offset)).unwrap_or(self.base), len, memory: PhantomData }
    }

    /// Length in bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// No bytes at all.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

/// A view of mapped guest memory for as long as its owner is borrowed.
#[derive(Debug, Clone, Copy)]
pub struct GuestMem<'a> {
    base: NonNull<u8>,
    len: usize,
    memory: PhantomData<&'a ()>,
}

// SAFETY: all access is by raw copies, which any thread may do at any time.
unsafe impl Send for GuestMem<'_> {}
// SAFETY: as above.
unsafe impl Sync for GuestMem<'_> {}

impl<'a> GuestMem<'a> {
    /// A view of `len` bytes at `base`.
    ///
    /// # Safety
    /// The bytes are mapped readable and writable for the whole of `'a`, and no Rust reference to them exists.
    pub unsafe fn new(base: NonNull<u8>, len: usize) -> Self {
        Self { base, len, memory: PhantomData }
    }

    /// Length in bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// No bytes at all.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    fn at(&self, offset: usize, len: usize) -> *mut u8 {
        assert!(offset <= self.len && len <= self.len - offset, "guest range {offset:#x}+{len:#x} is outside {:#x}", self.len);
        self.base.as_ptr().wrapping_add(offset)
    }

    /// The range as something the kernel can be given.
    pub fn range(&self, offset: usize, len: usize) -> GuestRange<'a> {
        let base = self.at(offset, len);
        // A checked offset from a non-null base is not null.
        GuestRange { base: NonNull::new(base).unwrap_or(self.base), len, memory: PhantomData }
    }

    /// Copies out.
    pub fn read(&self, offset: usize, into: &mut [u8]) {
        let from = self.at(offset, into.len());
        // SAFETY: `at` checked the source; `into` is ours and, by the contract of `new`, not guest memory.
        unsafe { std::ptr::copy_nonoverlapping(from.cast_const(), into.as_mut_ptr(), into.len()) }
    }

    /// Copies in.
    pub fn write(&self, offset: usize, from: &[u8]) {
        let into = self.at(offset, from.len());
        // SAFETY: `at` checked the destination; `from` is not guest memory.
        unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), into, from.len()) }
    }

    /// Reads eight aligned bytes in one access, as a guest's load does (host byte order).
    #[inline]
    pub fn load_u64(&self, offset: u64) -> u64 {
        let from = self.word(offset);
        // SAFETY: `word` checked range and alignment; volatile, because the guest writes at the same time.
        unsafe { from.read_volatile() }
    }

    /// Writes eight aligned bytes in one access, as a guest's store does (host byte order).
    #[inline]
    pub fn store_u64(&self, offset: u64, value: u64) {
        let into = self.word(offset);
        // SAFETY: as in `load_u64`.
        unsafe { into.write_volatile(value) }
    }

    #[inline]
    fn word(&self, offset: u64) -> *mut u64 {
        // Memory is mapped, so an offset inside it fits; one that does not is refused by `at`.
        #[allow(clippy::cast_ptr_alignment)] // asserted below
        let word = self.at(usize::try_from(offset).unwrap_or(usize::MAX), 8).cast::<u64>();
        assert!(word.is_aligned(), "guest word at {offset:#x} is not aligned");
        word
    }

    /// Copies in past the caches: half the time of [`Self::write`] for pages that exist and that nobody reads soon.
    ///
    /// Other threads may see the bytes late unless [`settle`] is called before they are told of them.
    pub fn write_streaming(&self, offset: usize, from: &[u8]) {
        let into = self.at(offset, from.len());
        // SAFETY: `at` checked the destination; `from` is not guest memory.
        unsafe { stream::copy(into, from.as_ptr(), from.len()) }
    }

    /// Sets every byte to `value`.
    pub fn fill(&self, offset: usize, len: usize, value: u8) {
        let into = self.at(offset, len);
        // SAFETY: `at` checked the range.
        unsafe { std::ptr::write_bytes(into, value, len) }
    }

    /// Asks for the bytes at `offset` to be in the cache soon; an offset outside has no effect.
    pub fn prefetch(&self, offset: usize) {
        scan::prefetch(self.base.as_ptr().wrapping_add(offset));
    }

    /// True if every byte reads zero.
    pub fn is_zero(&self, offset: usize, len: usize) -> bool {
        let from = self.at(offset, len);
        // SAFETY: `at` checked the range.
        unsafe { scan::is_zero(from, len) }
    }
}
