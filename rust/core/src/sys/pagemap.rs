//! `PAGEMAP_SCAN`: which pages of a range are in which state, and re-protecting those that are reported.
//!
//! Linux 6.7; see `Documentation/admin-guide/mm/pagemap.rst`. The vector is never empty: old kernels panic on that.

use std::fs::File;

use linux_raw_sys::general as raw;
use rustix::io::Errno;
use rustix::ioctl::{Ioctl, IoctlOutput, Opcode, ioctl, opcode};

use crate::{Error, ErrorKind, Result};

/// A run of pages in the same state: `start`, `end` (addresses), `categories`.
pub type Region = raw::page_region;

const SCAN: Opcode = opcode::read_write::<raw::pm_scan_arg>(b'f', 16);

const _: () = {
    assert!(SCAN == 0xc060_6610);
    assert!(size_of::<Region>() == 24 && size_of::<raw::pm_scan_arg>() == 96);
};

bitflags::bitflags! {
    /// State of a page (`PAGE_IS_*`).
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct Category: u64 {
        /// Written since it was protected, or not protected.
        const WRITTEN = raw::PAGE_IS_WRITTEN as u64;
        /// In memory.
        const PRESENT = raw::PAGE_IS_PRESENT as u64;
        /// Swapped out, or only a marker of the kernel's.
        const SWAPPED = raw::PAGE_IS_SWAPPED as u64;
    }
}

/// What to look for.
#[derive(Debug, Clone, Copy)]
pub struct Query {
    /// Protect what is reported, in the same step; an error if the range is not under asynchronous write protection.
    pub protect: bool,
    /// A page matches if it is in all of these states ...
    pub all: Category,
    /// ... where these are turned round: the page must *not* be in them.
    pub inverted: Category,
}

impl Query {
    /// Pages written since they were last protected, and (on newer kernels) places where no page exists; protects them
    /// again. Exactly this query takes the kernel's fast way; with others the kernel protects only what is written.
    pub const WRITTEN: Self = Self { protect: true, all: Category::WRITTEN, inverted: Category::empty() };
    /// Pages in the page table.
    pub const PRESENT: Self = Self { protect: false, all: Category::PRESENT, inverted: Category::empty() };
    /// Places where no page exists, in memory or in swap, nor a marker.
    pub const ABSENT: Self = Self { protect: false, all: ABSENT, inverted: ABSENT };
    /// Places where no page exists in memory, and that are protected: a marker, or a page in swap.
    pub const PROTECTED_ABSENT: Self = Self {
        protect: false,
        all: Category::PRESENT.union(Category::WRITTEN).union(Category::SWAPPED),
        inverted: Category::PRESENT.union(Category::WRITTEN),
    };
}

const ABSENT: Category = Category::PRESENT.union(Category::SWAPPED);

/// How many regions one call can report; a scan that finds more goes on in another call.
const REGIONS: usize = 4096;

/// The page map of this process, with room for the answers.
#[derive(Debug)]
pub struct Pagemap {
    file: File,
    regions: Vec<Region>,
}

impl Pagemap {
    /// Opens it.
    pub fn open() -> Result<Self> {
        let path = "/proc/self/pagemap";
        let file = File::open(path).map_err(|e| Error::new(ErrorKind::NotPermitted, format!("{path}: {e}; is /proc mounted?")))?;
        Ok(Self { file, regions: vec![Region { start: 0, end: 0, categories: 0 }; REGIONS] })
    }

    /// Visits every run of matching pages of `len` bytes at `address` (both page-aligned), in order; runs may touch.
    ///
    /// With `protect` a page is protected exactly if it is reported, also when the answer does not fit one call. On an
    /// error that does not hold: any page of the range may have been protected unreported.
    pub fn scan(&mut self, address: usize, len: usize, query: Query, mut visit: impl FnMut(usize, usize)) -> rustix::io::Result<()> {
        let flags = if query.protect { raw::PM_SCAN_WP_MATCHING | raw::PM_SCAN_CHECK_WPASYNC } else { 0 };
        let (mut start, end) = (address as u64, address as u64 + len as u64);
        while start < end {
            let arg = raw::pm_scan_arg {
                size: size_of::<raw::pm_scan_arg>() as u64,
                flags: u64::from(flags),
                start,
                end,
                walk_end: 0,
                vec: self.regions.as_mut_ptr().expose_provenance() as u64,
                vec_len: self.regions.len() as u64,
                max_pages: 0,
                category_inverted: query.inverted.bits(),
                category_mask: query.all.bits(),
                category_anyof_mask: 0,
                // The kernel's fast way needs exactly this mask.
                return_mask: query.all.bits(),
            };
            assert!(!self.regions.is_empty(), "PAGEMAP_SCAN with an empty vector");
            // SAFETY: the vector is ours and holds `vec_len` regions; protection only makes the next write slower.
            let (found, walk_end) = unsafe { ioctl(&self.file, Scan(arg)) }?;
            for region in &self.regions[..found.min(self.regions.len())] {
                visit(to_usize(region.start), to_usize(region.end));
            }
            if walk_end <= start {
                return Err(Errno::IO);
            }
            start = walk_end;
        }
        Ok(())
    }
}

/// Addresses of this process fit.
#[allow(clippy::cast_possible_truncation)]
const fn to_usize(address: u64) -> usize {
    const { assert!(size_of::<usize>() == size_of::<u64>()) };
    address as usize
}

/// One call; its output is the number of regions and where the walk ended.
struct Scan(raw::pm_scan_arg);

// SAFETY: the kernel reads and writes one `pm_scan_arg`, which `as_ptr` gives, and the vector named in it.
unsafe impl Ioctl for Scan {
    type Output = (usize, u64);
    const IS_MUTATING: bool = true;

    fn opcode(&self) -> Opcode {
        SCAN
    }

    fn as_ptr(&mut self) -> *mut std::ffi::c_void {
        (&raw mut self.0).cast()
    }

    unsafe fn output_from_ptr(out: IoctlOutput, arg: *mut std::ffi::c_void) -> rustix::io::Result<(usize, u64)> {
        // SAFETY: the pointer that `as_ptr` gave.
        let walk_end = unsafe { (*arg.cast::<raw::pm_scan_arg>()).walk_end };
        Ok((usize::try_from(out).map_err(|_| Errno::IO)?, walk_end))
    }
}
