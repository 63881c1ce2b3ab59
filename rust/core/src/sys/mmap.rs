//! Owned memory maps: what a RAM block made by the core stands on.
//!
//! The whole of a block's greatest length is mapped once, so that its address never changes. Maps are not inherited by
//! children (a fork would write-protect them all for copy-on-write, and a child must not see guest memory).

use std::ffi::c_void;
use std::fs::{File, OpenOptions};
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::ptr::NonNull;

use rustix::fs::{MemfdFlags, SeekFrom};
use rustix::io::Errno;
use rustix::mm::{Advice, MapFlags, ProtFlags};

use super::guest::GuestMem;
use super::uffd::REMEDY;
use crate::{Error, ErrorKind, Result};

/// Page size that this crate's arithmetic stands on: the target page, and the smallest page of the host.
pub const PAGE: usize = 4096;

/// `f_type` of file systems that live in memory (`linux/magic.h`).
const TMPFS: i64 = 0x0102_1994;
const RAMFS: i64 = 0x8584_58f6;
const HUGETLBFS: i64 = 0x9584_58f6;

/// Where huge pages begin; blocks start there so that they can be used.
pub const HUGE_PAGE: usize = 2 << 20;

/// What memory is made of: that decides how it is discarded, how holes are found and whether the kernel can log writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Nature {
    /// Private to this process: nobody else can change it, and what the page table lacks does not exist.
    Private,
    /// A file in memory (memfd, tmpfs, hugetlbfs, shared anonymous memory).
    Shmem,
    /// A file on a disk.
    Disk,
}

/// The file that a map shows, from `offset` on.
#[derive(Debug)]
pub(super) struct Under {
    pub(super) fd: OwnedFd,
    pub(super) offset: u64,
}

/// Whose the memory is.
#[derive(Debug)]
enum Owner {
    Us,
    /// Unmapping it is the caller's business.
    Caller,
}

/// Mapped memory of one nature and page size; if it is ours it is unmapped on drop.
#[derive(Debug)]
pub struct Mapping {
    base: NonNull<u8>,
    len: usize,
    page_size: usize,
    nature: Nature,
    /// The file under a shared map, where it is known.
    under: Option<Under>,
    owner: Owner,
    /// Transparent huge pages were asked for when it was made.
    thp: bool,
}

// SAFETY: the map belongs to the process, not to a thread; access is by raw copies only.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

/// A kernel refusal to give memory, with what helps.
fn no_memory(what: &str, errno: Errno) -> Error {
    Error::new(ErrorKind::NoMemory, format!("{what}: {errno}; free memory, or raise vm.overcommit_memory or `ulimit -v`"))
}

impl Mapping {
    /// Private anonymous memory. `thp`: ask for transparent huge pages (else refuse them).
    pub fn anon(len: usize, thp: bool) -> Result<Self> {
        let made = Self::place(len, PAGE, Nature::Private, None, MapFlags::PRIVATE | MapFlags::NORESERVE)?;
        Ok(made.with_huge(thp))
    }

    /// Shared memory in a file without a name.
    pub fn memfd(len: usize, thp: bool) -> Result<Self> {
        let say = |errno| no_memory("cannot make a memfd", errno);
        let fd = rustix::fs::memfd_create("guest-ram", MemfdFlags::CLOEXEC).map_err(say)?;
        rustix::fs::ftruncate(&fd, len as u64).map_err(say)?;
        let made = Self::place(len, PAGE, Nature::Shmem, Some(Under { fd, offset: 0 }), MapFlags::SHARED | MapFlags::NORESERVE)?;
        Ok(made.with_huge(thp))
    }

    /// A shared map of the file at `path`, which is created or extended to `len`; what it holds is kept.
    pub fn file(path: &Path, len: usize) -> Result<Self> {
        let say = |error: &dyn std::fmt::Display| Error::new(ErrorKind::BadBlock, format!("{}: {error}", path.display()));
        let file: File =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path).map_err(|e| say(&e))?;
        let meta = file.metadata().map_err(|e| say(&e))?;
        if !meta.is_file() {
            return Err(say(&"not a regular file; name one, or a path that does not exist yet"));
        }
        if meta.len() > len as u64 {
            let text = format!(
                "the file has {:#x} bytes, more than the block's {len:#x}; make the block as large, or truncate the file",
                meta.len()
            );
            return Err(say(&text));
        }
        let system = rustix::fs::fstatfs(&file).map_err(|e| say(&e))?;
        let (nature, page_size) = match system.f_type {
            TMPFS | RAMFS => (Nature::Shmem, PAGE),
            HUGETLBFS => (Nature::Shmem, usize::try_from(system.f_bsize).unwrap_or(HUGE_PAGE)),
            _ => (Nature::Disk, PAGE),
        };
        if !len.is_multiple_of(page_size) {
            return Err(say(&format!("{len:#x} bytes is no multiple of the file's page size {page_size:#x}")));
        }
        file.set_len(len as u64).map_err(|e| say(&e))?;
        Self::place(len, page_size, nature, Some(Under { fd: file.into(), offset: 0 }), MapFlags::SHARED | MapFlags::NORESERVE)
    }

    /// Private memory of 2 MiB pages taken from the reserved pool.
    pub fn hugetlb(len: usize) -> Result<Self> {
        if !len.is_multiple_of(HUGE_PAGE) {
            return Err(Error::new(ErrorKind::BadBlock, format!("{len:#x} bytes is no multiple of the huge page size {HUGE_PAGE:#x}")));
        }
        Self::place(len, HUGE_PAGE, Nature::Private, None, MapFlags::PRIVATE | MapFlags::HUGETLB | MapFlags::HUGE_2MB).map_err(|error| {
            let pages = len / HUGE_PAGE;
            Error::new(
                ErrorKind::NoMemory,
                format!(
                    "{}; reserve {pages} pages of 2 MiB: sysctl vm.nr_hugepages={pages} (see HugePages_Free in /proc/meminfo)",
                    error.message
                ),
            )
        })
    }

    /// Maps `len` bytes at a huge-page boundary, inside a reservation whose edges are given back.
    fn place(len: usize, page_size: usize, nature: Nature, under: Option<Under>, flags: MapFlags) -> Result<Self> {
        let refused = |errno| no_memory(&format!("cannot map {len:#x} bytes"), errno);
        let span = len.checked_add(HUGE_PAGE).filter(|_| len > 0).ok_or_else(|| refused(Errno::INVAL))?;
        // SAFETY: a new map at an address of the kernel's choice.
        let hold =
            unsafe { rustix::mm::mmap_anonymous(std::ptr::null_mut(), span, ProtFlags::empty(), MapFlags::PRIVATE | MapFlags::NORESERVE) }
                .map_err(refused)?
                .cast::<u8>();
        let head = hold.align_offset(HUGE_PAGE);
        let base = hold.wrapping_add(head);
        let (at, prot, flags) = (base.cast::<c_void>(), ProtFlags::READ | ProtFlags::WRITE, flags | MapFlags::FIXED);
        // SAFETY: it replaces part of the reservation that is ours alone.
        let mapped = unsafe {
            match &under {
                None => rustix::mm::mmap_anonymous(at, len, prot, flags),
                Some(under) => rustix::mm::mmap(at, len, prot, flags, &under.fd, under.offset),
            }
        };
        if let Err(errno) = mapped {
            unmap(hold, span);
            return Err(refused(errno));
        }
        let tail = base.wrapping_add(len.next_multiple_of(PAGE));
        unmap(hold, head);
        unmap(tail, span - head - len.next_multiple_of(PAGE));
        let base = NonNull::new(base).ok_or_else(|| refused(Errno::FAULT))?;
        let made = Self { base, len, page_size, nature, under, owner: Owner::Us, thp: false };
        // A kernel without this advice only loses the protection against forks.
        let _ = made.advise(0, len, Advice::LinuxDontFork);
        Ok(made)
    }

    /// Memory of the caller's.
    ///
    /// # Safety
    /// It is mapped as said, readable and writable, until this is dropped, and no Rust reference to it exists.
    pub(super) unsafe fn foreign(base: *mut u8, len: usize, page_size: usize, nature: Nature, under: Option<Under>) -> Result<Self> {
        let base = NonNull::new(base).ok_or_else(|| Error::new(ErrorKind::BadBlock, "no memory is mapped at address 0"))?;
        Ok(Self { base, len, page_size, nature, under, owner: Owner::Caller, thp: false })
    }

    fn with_huge(mut self, thp: bool) -> Self {
        self.thp = thp;
        self.ask_huge(thp);
        self
    }

    fn ask_huge(&self, thp: bool) {
        // Refused by kernels built without huge pages: then there is nothing to ask for.
        let _ = self.advise(0, self.len, if thp { Advice::LinuxHugepage } else { Advice::LinuxNoHugepage });
    }

    /// No transparent huge pages for now: they bring in the neighbours of a page.
    pub(crate) fn suspend_huge(&self) {
        self.ask_huge(false);
    }

    /// What was asked for when it was made counts again. The caller's memory is left without.
    pub(crate) fn resume_huge(&self) {
        if self.thp {
            self.ask_huge(true);
        }
    }

    /// Gives up the file under the map, so that it does not tell what exists any more.
    #[cfg(test)]
    pub(crate) fn forget_file(&mut self) -> Option<OwnedFd> {
        self.under.take().map(|under| under.fd)
    }

    /// Drops the pages from the page table only; what a file has stays in the file.
    pub(crate) fn unmap_pages(&self, offset: usize, len: usize) -> rustix::io::Result<()> {
        self.advise(offset, len, Advice::LinuxDontNeed)
    }

    /// The same, as a guest's balloon might.
    #[cfg(test)]
    pub(crate) fn zap(&self, offset: usize, len: usize) {
        self.unmap_pages(offset, len).unwrap_or_else(|errno| panic!("{errno}"));
    }

    /// Pushes the pages out of memory, to swap or their file.
    #[cfg(test)]
    pub(crate) fn page_out(&self, offset: usize, len: usize) {
        self.advise(offset, len, Advice::LinuxPageOut).unwrap_or_else(|errno| panic!("{errno}"));
    }

    fn advise(&self, offset: usize, len: usize, advice: Advice) -> rustix::io::Result<()> {
        let range = self.view().range(offset, len);
        // SAFETY: inside our own map; advice used here frees pages or sets flags, and no reference to the bytes exists.
        unsafe { rustix::mm::madvise(range.as_ptr().cast_mut().cast(), len, advice) }
    }

    /// The bytes, while this map is borrowed.
    pub fn view(&self) -> GuestMem<'_> {
        // SAFETY: mapped readable and writable until drop, which the borrow excludes.
        unsafe { GuestMem::new(self.base, self.len) }
    }

    /// Page size of the memory.
    pub fn page_size(&self) -> usize {
        self.page_size
    }

    /// What the memory is made of.
    pub fn nature(&self) -> Nature {
        self.nature
    }

    /// Is the memory the caller's, who decides what becomes of it?
    pub fn is_foreign(&self) -> bool {
        matches!(self.owner, Owner::Caller)
    }

    /// Visits the runs of a file in memory where something was stored, up to `len`; false if that cannot be known.
    ///
    /// What was swapped out counts as stored. Offsets are those of the map; runs may begin and end inside pages.
    pub fn stored_runs(&self, len: usize, mut visit: impl FnMut(Range<usize>)) -> Result<bool> {
        let Some(Under { fd, offset }) = self.under.as_ref().filter(|_| self.nature == Nature::Shmem && self.page_size == PAGE) else {
            return Ok(false);
        };
        let failed = |errno| Error::io("looking for holes in guest memory", errno);
        // Lengths of mapped memory fit.
        let place = |at: u64| usize::try_from(at.saturating_sub(*offset)).unwrap_or(usize::MAX).min(len);
        let mut at = 0;
        while at < len {
            at = match rustix::fs::seek(fd, SeekFrom::Data(offset + at as u64)) {
                Err(Errno::NXIO) => return Ok(true),
                start => place(start.map_err(failed)?),
            };
            let end = place(rustix::fs::seek(fd, SeekFrom::Hole(offset + at as u64)).map_err(failed)?);
            visit(at..end);
            at = end;
        }
        Ok(true)
    }

    /// Visits the numbers of the pages in `range` (of offsets, whole pages) that are in memory, also while the kernel moves them,
    /// which the page map shows like a page in swap. Markers of the kernel's are no pages.
    pub fn resident(&self, range: Range<usize>, mut visit: impl FnMut(usize)) -> rustix::io::Result<()> {
        let mut states = [0_u8; 4096];
        for at in range.clone().step_by(states.len() * PAGE) {
            let len = (states.len() * PAGE).min(range.end - at);
            let place = self.view().range(at, len).as_ptr().cast_mut();
            // SAFETY: the kernel reads no memory there and writes one byte a page, for which there is room.
            while unsafe { libc::mincore(place.cast(), len, states.as_mut_ptr()) } != 0 {
                match std::io::Error::last_os_error().raw_os_error().map(Errno::from_raw_os_error) {
                    Some(Errno::AGAIN) => {}
                    errno => return Err(errno.unwrap_or(Errno::IO)),
                }
            }
            let found = states[..len / PAGE].iter().enumerate().filter(|(_, state)| **state & 1 != 0);
            found.for_each(|(page, _)| visit(at / PAGE + page));
        }
        Ok(())
    }

    /// Brings the pages of the range in, ready for reading or for writing. `NotPermitted`: they are watched by a userfaultfd that
    /// sees the faults of user code only.
    pub fn populate(&self, offset: usize, len: usize, write: bool) -> Result<()> {
        let advice = if write { Advice::LinuxPopulateWrite } else { Advice::LinuxPopulateRead };
        loop {
            match self.advise(offset, len, advice) {
                Err(Errno::INTR | Errno::AGAIN) => {}
                other => return other.map_err(|errno| self.not_brought(offset, len, errno)),
            }
        }
    }

    fn not_brought(&self, offset: usize, len: usize, errno: Errno) -> Error {
        let what = format!("cannot bring in {offset:#x}+{len:#x}");
        if errno != Errno::FAULT {
            return no_memory(&what, errno);
        }
        let missing = format!("pages that are still to come by postcopy are out of the kernel's reach here: {REMEDY}");
        if self.nature == Nature::Private && self.page_size == PAGE {
            return Error::new(ErrorKind::NotPermitted, format!("{what}: {errno}; {missing}"));
        }
        // Where pages come out of a file or a pool, the same error also says that it is full.
        Error::new(ErrorKind::NoMemory, format!("{what}: {errno}; no room for them; or {missing}"))
    }

    fn check_pages(&self, offset: usize, len: usize) -> Result<()> {
        if offset.is_multiple_of(self.page_size) && len.is_multiple_of(self.page_size) {
            return Ok(());
        }
        Err(Error::new(ErrorKind::InvalidArgument, format!("{offset:#x}+{len:#x} are no multiples of the page size {:#x}", self.page_size)))
    }

    /// Frees the pages of the range, multiples of the page size; it reads zero afterwards.
    pub fn discard(&self, offset: usize, len: usize) -> Result<()> {
        self.check_pages(offset, len)?;
        let advice = if self.nature == Nature::Private { Advice::LinuxDontNeed } else { Advice::LinuxRemove };
        self.advise(offset, len, advice)
            .map_err(|errno| Error::new(ErrorKind::BadBlock, format!("cannot discard {offset:#x}+{len:#x}: {errno}")))
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        if matches!(self.owner, Owner::Us) {
            unmap(self.base.as_ptr(), self.len.next_multiple_of(PAGE));
        }
    }
}

/// Unmaps what is ours; nothing if `len` is 0.
fn unmap(base: *mut u8, len: usize) {
    if len > 0 {
        // SAFETY: callers give ranges that they mapped and that nobody uses any more.
        // Failure means the range was never a map of ours: a mistake that must not go on.
        unsafe { rustix::mm::munmap(base.cast(), len) }.unwrap_or_else(|errno| panic!("munmap {base:p}+{len:#x}: {errno}"));
    }
}
