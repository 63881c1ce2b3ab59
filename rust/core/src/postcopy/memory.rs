//! What was received of each block, and the watch over the rest.
//!
//! Life: made and emptied at ADVISE, filled by precopy and emptied in part by discards, armed at LISTEN, disarmed when every
//! page is there. From `arm` on a page comes to exist only by being placed, because the kernel stops whoever touches a missing
//! one: first everything is registered, then what is present and was not received is discarded, so nothing slips in between.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use super::claims::Claims;
use crate::ram::{Bitmap, Block, Lease, TARGET_PAGE};
use crate::sys::mmap::{Mapping, Nature};
use crate::sys::uffd::{Faults, Features, Modes, Placed, REMEDY, Refusal, Uffd};
use crate::{Error, ErrorKind, Result};

/// Tries how often a page that the kernel cannot place just now is offered again.
const TRIES: u32 = 10_000;

/// All RAM of a machine whose pages come late.
#[derive(Debug)]
pub struct Memory {
    regions: Vec<Region>,
    /// As many zeros as the largest host page has bytes: the kernel makes no zero pages of the larger ones.
    zeros: Mapping,
    watch: OnceLock<Watch>,
    /// Nobody may find zeros, not even at the end.
    kept: AtomicBool,
}

/// One block of it.
#[derive(Debug)]
struct Region {
    block: Arc<Block>,
    /// Bytes that are placed in one step, and target pages in it.
    page_size: u64,
    ratio: usize,
    claims: Claims,
}

/// The registered ranges; unregistered on drop.
#[derive(Debug)]
struct Watch {
    uffd: Uffd,
    /// By address, with the index of the block.
    ranges: Vec<(Range<usize>, usize)>,
    /// While it is on the blocks keep their size and have no other watcher.
    leases: Mutex<Vec<Lease>>,
    on: AtomicBool,
}

/// Bytes for a page.
#[derive(Debug, Clone, Copy)]
pub(super) enum Content<'a> {
    Bytes(&'a [u8]),
    Guest(crate::ram::GuestRange<'a>),
    /// That many zeros.
    Zeros(usize),
}

impl Content<'_> {
    fn len(self) -> usize {
        match self {
            Self::Bytes(bytes) => bytes.len(),
            Self::Guest(range) => range.len(),
            Self::Zeros(len) => len,
        }
    }
}

fn bad_address(text: String) -> Error {
    Error::new(ErrorKind::BadAddress, text)
}

/// Can the pages of `blocks` come late on this machine? To be asked before anything is sent or promised; the error has the remedy.
/// The answer is a caution, if there is one, with its remedy.
pub fn support(blocks: &[Arc<Block>]) -> Result<Option<String>> {
    let found = Uffd::features()?;
    for block in blocks {
        let refuse =
            |why: &str| Err(Error::new(ErrorKind::NotPermitted, format!("block {:?}: postcopy is not possible: {why}", block.name())));
        let nature = block.memory().nature();
        if nature == Nature::Disk {
            return refuse("its memory is a file on disk; put the file on tmpfs (/dev/shm), or use backing anon, memfd or hugetlb");
        }
        if block.page_size() > TARGET_PAGE as u64 && !found.contains(Features::MISSING_HUGETLBFS) {
            return refuse("this kernel does not report missing huge pages; use backing anon");
        }
        if nature == Nature::Shmem && !found.contains(Features::MISSING_SHMEM) {
            return refuse("this kernel does not report missing pages of shared memory; use backing anon");
        }
    }
    Ok((Uffd::best()? == Faults::User).then(|| {
        format!(
            "where postcopy brings the memory, only user code can wait for a missing page: system calls into guest memory (recv_into, \
             write) and prefault fail with EFAULT until all has arrived: {REMEDY}"
        )
    }))
}

impl Memory {
    /// Of these blocks, in this order; nothing counts as received.
    pub fn new(blocks: &[Arc<Block>]) -> Result<Arc<Self>> {
        support(blocks)?;
        let region = |block: &Arc<Block>| {
            let (pages, page_size) = (crate::ram::pages(block.max_length()), block.page_size());
            // A page size fits.
            let ratio = usize::try_from(page_size).unwrap_or(usize::MAX) / TARGET_PAGE;
            Region { block: Arc::clone(block), page_size, ratio, claims: Claims::new(pages, ratio) }
        };
        let largest = blocks.iter().map(|block| to_usize(block.page_size())).max().unwrap_or(TARGET_PAGE);
        let zeros = Mapping::anon(largest, false)?;
        Ok(Arc::new(Self { regions: blocks.iter().map(region).collect(), zeros, watch: OnceLock::new(), kept: AtomicBool::new(false) }))
    }

    /// How many blocks.
    pub fn len(&self) -> usize {
        self.regions.len()
    }

    /// A machine without RAM.
    pub fn is_empty(&self) -> bool {
        self.regions.is_empty()
    }

    /// A block by its index.
    pub fn block(&self, index: usize) -> &Arc<Block> {
        &self.regions[index].block
    }

    /// The index of a block by its name on the wire.
    pub fn index_of(&self, name: &[u8]) -> Option<usize> {
        self.regions.iter().position(|region| region.block.name().as_bytes() == name)
    }

    /// Host page size of a block in bytes.
    pub fn page_size(&self, block: usize) -> u64 {
        self.regions[block].page_size
    }

    /// The bitwise sum of all host page sizes: what ADVISE carries.
    pub fn page_sizes(&self) -> u64 {
        self.regions.iter().fold(0, |sum, region| sum | region.page_size)
    }

    /// ADVISE: empties all blocks; nothing counts as received.
    pub fn prepare(&self) -> Result<()> {
        self.refuse_armed("ADVISE")?;
        for region in &self.regions {
            let used = region.block.used_length();
            region.claims.forget_all();
            region.discard(0..crate::ram::pages(used))?;
        }
        Ok(())
    }

    /// DISCARD: the source will send these bytes again (whole host pages inside the block); what was received of them is dropped.
    pub fn discard(&self, block: usize, start: u64, len: u64) -> Result<()> {
        self.refuse_armed("a discard")?;
        let region = &self.regions[block];
        let (size, used) = (region.page_size, region.block.used_length());
        if len == 0 || !start.is_multiple_of(size) || !len.is_multiple_of(size) {
            let text = format!("discard of {start:#x}+{len:#x}: not whole pages of {size:#x} bytes");
            return Err(bad_address(text).within(region.block.name()));
        }
        if len > used || start > used - len {
            return Err(
                bad_address(format!("discard of {start:#x}+{len:#x} is outside the block's {used:#x} bytes")).within(region.block.name())
            );
        }
        let pages = crate::ram::pages(start)..crate::ram::pages(start + len);
        region.claims.forget(pages.clone());
        region.discard(pages)
    }

    /// Precopy has stored this target page, be it of zeros. Panics outside the block.
    pub fn note_received(&self, block: usize, page: usize) {
        self.regions[block].claims.note(page..page + 1);
    }

    /// What was received of a block so far, a bit for each target page in use.
    pub fn received(&self, block: usize) -> Bitmap {
        let region = &self.regions[block];
        region.claims.received(region.block.pages())
    }

    /// Was the host page that holds `offset` received?
    pub fn is_received(&self, block: usize, offset: u64) -> bool {
        let region = &self.regions[block];
        region.claims.is_received(region.host(offset))
    }

    /// Every page was received; else an error that names the first that was not.
    pub fn check_complete(&self) -> Result<()> {
        for (index, region) in self.regions.iter().enumerate() {
            let received = self.received(index);
            if let Some(page) = received.next_clear(0) {
                let missing = received.len() as u64 - received.count();
                let text = format!("the stream is over and {missing} pages never came, the first at {:#x}", page * TARGET_PAGE);
                return Err(Error::new(ErrorKind::Truncated, text).within(region.block.name()));
            }
        }
        Ok(())
    }

    /// LISTEN: from now on whoever touches a page that was not received waits until it is placed. Once only.
    ///
    /// Refuses a host page of which only a part was received: its rest would read zero.
    pub fn arm(&self) -> Result<()> {
        self.refuse_armed("LISTEN")?;
        let leases = self.regions.iter().map(|region| Lease::take(&region.block)).collect::<Result<Vec<_>>>()?;
        for region in &self.regions {
            region.check_whole()?;
        }
        let mut watch = Watch { uffd: open()?, ranges: Vec::new(), leases: Mutex::new(leases), on: AtomicBool::new(true) };
        for (index, region) in self.regions.iter().enumerate() {
            let (address, len) = (region.block.address(), region.block.pages() * TARGET_PAGE);
            // A huge page would bring in the neighbours of a page, as zeros.
            region.block.memory().suspend_huge();
            watch.uffd.register(address, len, Modes::MISSING).map_err(|errno| {
                let text = format!("block {:?}: missing pages cannot be watched: {errno}", region.block.name());
                Error::new(ErrorKind::NotPermitted, text)
            })?;
            watch.ranges.push((address..address + len, index));
        }
        watch.ranges.sort_by_key(|(range, _)| range.start);
        for region in &self.regions {
            region.drop_unreceived()?;
        }
        self.watch.set(watch).map_err(|_| armed("LISTEN"))
    }

    fn refuse_armed(&self, what: &str) -> Result<()> {
        if self.watch.get().is_some() { Err(armed(what)) } else { Ok(()) }
    }

    fn watch(&self) -> Result<&Watch> {
        self.watch
            .get()
            .filter(|watch| watch.on.load(Ordering::Acquire))
            .ok_or_else(|| Error::new(ErrorKind::InvalidState, "the memory's missing pages are not watched"))
    }

    /// The descriptor that reports missing pages; an error before `arm` and after `disarm`.
    pub fn uffd(&self) -> Result<&Uffd> {
        Ok(&self.watch()?.uffd)
    }

    /// The block that a `RECV_BITMAP` names.
    pub fn asked_for(&self, name: &[u8]) -> Result<usize> {
        self.index_of(name).ok_or_else(|| {
            let text = format!("RECV_BITMAP for block \"{}\", which this machine does not have", name.escape_ascii());
            Error::new(ErrorKind::UnknownBlock, text)
        })
    }

    /// Stops watching. Threads that wait go on, and find zeros where nothing was placed: only when everything was received, or when
    /// the machine cannot run any more. Idempotent.
    pub fn disarm(&self) {
        if self.watch.get().is_some_and(Watch::off) {
            self.regions.iter().for_each(|region| region.block.memory().resume_huge());
        }
    }

    /// From now on only [`Self::disarm`] stops watching: if this is dropped before, whoever waits goes on waiting until the process ends.
    pub fn keep(&self) {
        self.kept.store(true, Ordering::Release);
    }

    /// The block and the offset of the host page at an address; none if it is not watched.
    pub fn locate(&self, address: usize) -> Option<(usize, u64)> {
        let watch = self.watch.get()?;
        let found = watch.ranges.partition_point(|(range, _)| range.end <= address);
        let (range, block) = watch.ranges.get(found).filter(|(range, _)| range.contains(&address))?;
        let offset = (address - range.start) as u64;
        Some((*block, offset - offset % self.regions[*block].page_size))
    }

    /// The right to place a host page, which one has; none if it was placed already, or is just being.
    pub(super) fn claim(&self, block: usize, offset: u64) -> bool {
        let region = &self.regions[block];
        region.claims.claim(region.host(offset))
    }

    /// Gives back the right to place the host pages of a range.
    pub(super) fn release(&self, block: usize, offset: u64, len: usize) {
        let region = &self.regions[block];
        let first = region.host(offset);
        region.claims.release(first..first + len / (region.ratio * TARGET_PAGE));
    }

    /// Places claimed host pages and tells of every run that is there; on an error the rest is no longer claimed.
    pub(super) fn place(&self, block: usize, offset: u64, content: Content<'_>, mut there: impl FnMut(u64, usize)) -> Result<()> {
        let (region, len) = (&self.regions[block], content.len());
        let page = region.ratio * TARGET_PAGE;
        let uffd = self.uffd();
        let (mut done, mut step, mut tries) = (0, len, 0);
        let failed = loop {
            if done == len {
                return Ok(());
            }
            let uffd = match &uffd {
                Ok(uffd) => uffd,
                Err(error) => break error.clone(),
            };
            let to = region.block.address() + to_usize(offset) + done;
            let placed = match content {
                Content::Bytes(bytes) => uffd.copy(to, &bytes[done..done + step]),
                Content::Guest(range) => uffd.copy_guest(to, range.part(done, step)),
                Content::Zeros(_) => self.zeros(region, uffd, to, step),
            };
            if placed.done > 0 {
                let at = offset + done as u64;
                region.claims.note(crate::ram::pages(at)..crate::ram::pages(at + placed.done as u64));
                there(at, placed.done);
                done += placed.done;
                tries = 0;
            }
            match placed.why {
                None => {}
                // It stopped half-way: page by page from here.
                Some(Refusal::Again) if tries < TRIES => {
                    step = page;
                    tries += u32::from(placed.done == 0);
                    if tries > 0 {
                        std::thread::yield_now();
                    }
                }
                Some(why) => break refused(why, offset + done as u64),
            }
            step = step.min(len - done);
        };
        self.release(block, offset + done as u64, len - done);
        Err(failed.within(region.block.name()))
    }

    /// Zeros at missing pages: any number of small ones, or one large one.
    fn zeros(&self, region: &Region, uffd: &Uffd, to: usize, len: usize) -> Placed {
        if region.ratio == 1 { uffd.zeropage(to, len) } else { uffd.copy_guest(to, self.zeros.view().range(0, len)) }
    }

    /// Ends a fault on a page that was received: if it is a page of zeros that was skipped, it is made now. False if there is no memory
    /// just now; the thread was woken all the same and will fault again.
    pub(super) fn satisfy(&self, block: usize, offset: u64) -> bool {
        let (region, Ok(watch)) = (&self.regions[block], self.watch()) else { return true };
        let (to, len) = (region.block.address() + to_usize(offset), region.ratio * TARGET_PAGE);
        let why = self.zeros(region, &watch.uffd, to, len).why;
        if why.is_some() {
            // A range that is gone has nobody waiting.
            let _ = watch.uffd.wake(to, len);
        }
        why != Some(Refusal::NoMemory)
    }
}

/// A descriptor for missing pages of every kind that this kernel reports.
fn open() -> Result<Uffd> {
    let found = Uffd::features()?;
    // Only what is there and needed: a kernel refuses what it does not know.
    let wanted = Features::MISSING_HUGETLBFS | Features::MISSING_SHMEM | Features::THREAD_ID;
    Uffd::open(wanted & found, Faults::Best)
}

fn armed(what: &str) -> Error {
    Error::new(ErrorKind::InvalidState, format!("{what} after LISTEN: pages are being placed already"))
}

/// What a page means that the kernel would not take.
fn refused(why: Refusal, offset: u64) -> Error {
    match why {
        Refusal::Exists => Error::new(
            ErrorKind::BadAddress,
            format!("something is at page {offset:#x} although it was never received: what was read there may have been wrong"),
        ),
        Refusal::NoMemory => Error::new(
            ErrorKind::NoMemory,
            format!(
                "no memory for page {offset:#x}; free some (or raise the limit of the control group, tmpfs or huge-page pool), then recover"
            ),
        ),
        Refusal::Gone => {
            Error::new(ErrorKind::InvalidState, format!("page {offset:#x} cannot be placed: its memory is not watched any more"))
        }
        Refusal::Again => Error::new(ErrorKind::Timeout, format!("page {offset:#x} cannot be placed: the address space keeps changing")),
        Refusal::Other(errno) => Error::io(format!("placing page {offset:#x}"), errno),
    }
}

/// Offsets inside mapped memory fit.
fn to_usize(offset: u64) -> usize {
    usize::try_from(offset).unwrap_or(usize::MAX)
}

impl Region {
    /// The number of the host page at `offset`.
    fn host(&self, offset: u64) -> usize {
        to_usize(offset / self.page_size)
    }

    /// Frees target pages, whole host pages of them.
    fn discard(&self, pages: Range<usize>) -> Result<()> {
        self.block.discard((pages.start * TARGET_PAGE) as u64, pages.len() * TARGET_PAGE).map_err(|e| e.within(self.block.name()))
    }

    /// Refuses a host page of which only a part was received.
    fn check_whole(&self) -> Result<()> {
        if self.ratio == 1 {
            return Ok(());
        }
        let received = self.claims.received(self.block.pages());
        for run in received.runs() {
            for edge in [run.start, run.end] {
                if !edge.is_multiple_of(self.ratio) {
                    let text = format!(
                        "the page of {:#x} bytes at {:#x} was received in part only and not discarded: its rest would read zero",
                        self.page_size,
                        edge / self.ratio * self.ratio * TARGET_PAGE
                    );
                    return Err(Error::new(ErrorKind::BadCommand, text).within(self.block.name()));
                }
            }
        }
        Ok(())
    }

    /// Frees whatever exists and was not received.
    fn drop_unreceived(&self) -> Result<()> {
        let mut absent = Bitmap::new(self.block.pages());
        // An old kernel does not tell: then all of it is freed, be it there or not.
        if !self.block.untouched(&mut absent).unwrap_or(false) {
            absent.clear_all();
        }
        let mut surplus = Bitmap::full(self.block.pages());
        surplus.and_not(&self.claims.received(self.block.pages()));
        surplus.and_not(&absent);
        for run in surplus.runs() {
            let whole = run.start / self.ratio * self.ratio..run.end.next_multiple_of(self.ratio);
            self.discard(whole)?;
        }
        Ok(())
    }
}

impl Watch {
    /// False if it was off.
    fn off(&self) -> bool {
        if !self.on.swap(false, Ordering::AcqRel) {
            return false;
        }
        for (range, _) in &self.ranges {
            // Refused only for memory that its owner has unmapped: then nobody waits there.
            let _ = self.uffd.unregister(range.start, range.len());
        }
        self.leases.lock().unwrap_or_else(PoisonError::into_inner).clear();
        true
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        if *self.kept.get_mut() && self.uffd().is_ok() {
            // The kernel unregisters what belongs to a closed descriptor.
            std::mem::forget(self.watch.take());
        }
        self.disarm();
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.off();
    }
}
