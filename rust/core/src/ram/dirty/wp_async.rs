//! The kernel's log: userfaultfd write protection that the kernel lifts by itself, read back by `PAGEMAP_SCAN`.
//!
//! Every page is protected, also those that do not exist yet (the kernel keeps markers for them). A write lifts the
//! protection of its page; a sync reports the pages without protection and protects them again in the same step, under
//! the lock of their page table, so that no write falls between. Huge pages of anonymous memory are split by the first
//! write, so reports are of target pages; hugetlb reports whole huge pages.
//!
//! A page that vanishes from the page table (`MADV_DONTNEED`, reclaim) is reported too, for what is read there next may
//! differ: as written by kernels that count places without a page table as written, by a second scan on others. What the
//! kernel cannot see is a hole punched into a shared file where the page was protected: that is a write through the file,
//! and `mark_dirty` (or `Block::discard`) is for it.

use std::fs::File;
use std::io::Read;
use std::ops::Range;

use rustix::io::Errno;

use super::{DirtyLog, DirtyLogKind, Lease};
use crate::ram::{Bitmap, TARGET_PAGE};
use crate::sys::mmap::{HUGE_PAGE, Mapping, Nature};
use crate::sys::pagemap::{Pagemap, Query};
use crate::sys::probe::WP_ASYNC;
use crate::sys::uffd::{Faults, Modes, Uffd};
use crate::{Error, ErrorKind, Result};

/// Bytes protected at a time: a call holds a lock that page faults and maps of other threads need.
const CHUNK: usize = 64 << 20;

#[derive(Debug)]
pub(super) struct WpAsync {
    uffd: Uffd,
    pagemap: Pagemap,
    /// Sync must look for places without a page table by itself.
    pub(super) seek_absent: bool,
    armed: bool,
    address: usize,
    len: usize,
    lease: Lease,
}

fn failed(what: &str, errno: Errno) -> Error {
    Error::new(ErrorKind::NoDirtyLog, format!("the kernel's dirty log: {what}: {errno}"))
}

impl WpAsync {
    pub(super) fn open(lease: Lease) -> Result<Self> {
        if lease.0.memory().nature() == Nature::Disk {
            return Err(Error::new(
                ErrorKind::NoDirtyLog,
                format!(
                    "block {:?}: memory of a file on disk has no kernel dirty log; put the file on tmpfs (/dev/shm), or choose the \
                     explicit log and call mark_dirty after each write",
                    lease.0.name()
                ),
            ));
        }
        let (uffd, mut pagemap) = (Uffd::open(WP_ASYNC, Faults::User)?, Pagemap::open()?);
        // Of hugetlb pages no kernel says it.
        let seek_absent = lease.0.memory().page_size() > TARGET_PAGE || !absent_is_written(&uffd, &mut pagemap)?;
        let (address, len) = (lease.0.address(), lease.0.pages() * TARGET_PAGE);
        Ok(Self { uffd, pagemap, seek_absent, armed: false, address, len, lease })
    }

    /// Watches the memory for a moment, to see whether that is possible.
    pub(super) fn probe(&mut self) -> Result<()> {
        self.register()?;
        self.stop();
        Ok(())
    }

    fn register(&mut self) -> Result<()> {
        self.uffd.register(self.address, self.len, Modes::WP).map_err(|errno| {
            let remedy = match errno {
                Errno::BUSY => "another userfaultfd watches this memory; close that first",
                _ => "use anonymous, memfd or tmpfs memory, or the explicit log",
            };
            failed(&format!("block {:?} cannot be watched ({remedy})", self.lease.0.name()), errno)
        })?;
        self.armed = true;
        Ok(())
    }

    fn protect(&mut self) -> rustix::io::Result<()> {
        (0..self.len).step_by(CHUNK).try_for_each(|at| self.uffd.write_protect(self.address + at, CHUNK.min(self.len - at), true))
    }

    /// The pages that match, as bits; how many of them are new.
    fn collect(&mut self, query: Query, into: &mut Bitmap) -> rustix::io::Result<u64> {
        let (address, mut new) = (self.address, 0);
        self.pagemap.scan(address, self.len, query, |start, end| new += into.set_range(pages(address, start, end)))?;
        Ok(new)
    }

    /// Protects private memory. Sets the bits of the pages that did not exist when they were protected.
    ///
    /// Such a page was absent before and has a marker after. The kernel shows a marker, a protected page in swap and one that
    /// it is just moving alike. The last is told apart by a look at what is in memory; to be in swap a page must have been
    /// written and swapped out in between; if that can have happened, no bit is set.
    fn protect_private(&mut self, untouched: &mut Bitmap) -> rustix::io::Result<()> {
        let pressure = Pressure::now();
        let mut before = Bitmap::new(untouched.len());
        self.collect(Query::ABSENT, &mut before)?;
        self.protect()?;
        let mut after = Bitmap::new(untouched.len());
        self.collect(Query::PROTECTED_ABSENT, &mut after)?;
        after.and(&before);
        let mut moving = Bitmap::new(untouched.len());
        for run in after.runs() {
            self.lease.0.memory().resident(run.start * TARGET_PAGE..run.end * TARGET_PAGE, |page| _ = moving.set(page))?;
        }
        after.and_not(&moving);
        if !pressure.swapped_since() {
            untouched.or(&after);
        }
        Ok(())
    }

    /// Reports and protects places where no page exists.
    fn sync_absent(&mut self, into: &mut Bitmap) -> rustix::io::Result<u64> {
        let mut absent = Bitmap::new(into.len());
        self.collect(Query::ABSENT, &mut absent)?;
        // In this order: what is written meanwhile is reported with the rest, and read after that.
        for run in absent.runs() {
            self.uffd.write_protect(self.address + run.start * TARGET_PAGE, run.len() * TARGET_PAGE, true)?;
        }
        Ok(into.or(&absent))
    }
}

/// The target pages from address `start` to `end` of a block at `base`.
fn pages(base: usize, start: usize, end: usize) -> Range<usize> {
    (start - base) / TARGET_PAGE..(end - base) / TARGET_PAGE
}

/// Does this kernel report memory without a page table as written? Tried on memory that never had one.
fn absent_is_written(uffd: &Uffd, pagemap: &mut Pagemap) -> Result<bool> {
    let bare = Mapping::anon(HUGE_PAGE, false)?;
    let address = bare.view().range(0, HUGE_PAGE).as_ptr().addr();
    uffd.register(address, HUGE_PAGE, Modes::WP).map_err(|e| failed("cannot be tried", e))?;
    let mut seen = 0;
    pagemap.scan(address, HUGE_PAGE, Query::WRITTEN, |start, end| seen += end - start).map_err(|e| failed("cannot be tried", e))?;
    Ok(seen == HUGE_PAGE)
}

/// How much the system has looked for pages to swap out, at some moment.
struct Pressure(Option<u64>);

impl Pressure {
    fn now() -> Self {
        // Room for all of it: the kernel counts anew at each read.
        let mut text = String::with_capacity(32 << 10);
        let all = File::open("/proc/vmstat").and_then(|mut file| file.read_to_string(&mut text));
        Self(all.ok().and_then(|_| text.lines().find_map(|line| line.strip_prefix("pgscan_anon ")?.parse().ok())))
    }

    /// Can a page have been swapped out since? The kernel counts a page before it takes it from anyone.
    fn swapped_since(&self) -> bool {
        self.0.is_none() || self.0 != Self::now().0
    }
}

impl DirtyLog for WpAsync {
    fn kind(&self) -> DirtyLogKind {
        DirtyLogKind::WpAsync
    }

    fn start(&mut self, untouched: &mut Bitmap) -> Result<()> {
        self.stop();
        // What was said before the start belongs to the first pass, which sends everything.
        self.lease.0.marks.take(&mut Bitmap::new(self.lease.0.pages()));
        self.register()?;
        let nature = self.lease.0.memory().nature();
        if nature == Nature::Private { self.protect_private(untouched) } else { self.protect() }
            .map_err(|e| failed("cannot protect", e))?;
        if nature == Nature::Shmem {
            // Whatever is stored from here on is noticed; what was stored before is no hole.
            self.lease.0.untouched(untouched)?;
        }
        Ok(())
    }

    fn sync(&mut self, into: &mut Bitmap) -> Result<u64> {
        if !self.armed {
            return Err(Error::new(ErrorKind::InvalidState, "the dirty log was not started"));
        }
        let mut new = self.collect(Query::WRITTEN, into).map_err(|e| failed("cannot be read", e))?;
        if self.seek_absent {
            new += self.sync_absent(into).map_err(|e| failed("cannot be read", e))?;
        }
        Ok(new + self.lease.0.marks.take(into))
    }

    fn stop(&mut self) {
        if std::mem::take(&mut self.armed) {
            // Refused only for memory that the caller has unmapped meanwhile: then there is nothing to lift.
            let _ = self.uffd.unregister(self.address, self.len);
        }
    }
}

impl Drop for WpAsync {
    fn drop(&mut self) {
        self.stop();
    }
}
