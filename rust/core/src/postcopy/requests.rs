//! What was asked for and has not come: one bit for each host page, so that a page is asked for once, whoever waits for it.
//!
//! The bits outlive the link: while there is no [`Requester`] they are kept, and with the next one everything is asked again.

use std::fmt;
use std::sync::{Arc, PoisonError};

use super::{Latency, Memory};
use crate::ram::AtomicBitmap;
use crate::sync::Mutex;
use crate::sync::atomic::{AtomicU64, Ordering};
use crate::sys::uffd::Fault;
use crate::{Error, ErrorKind, Result};

/// Sends a request for a page: the return path, or something that has the page at hand.
///
/// Called by the fault thread, or by whoever sets it, one at a time. Once it fails it is dropped, and whoever made it must see to it
/// that the link counts as broken.
pub trait Requester: Send {
    /// Ask for `len` bytes at `offset` of a block of [`Memory`]: one host page.
    fn request(&mut self, block: usize, offset: u64, len: u32) -> Result<()>;
}

/// The outstanding requests of one machine.
pub struct Requests {
    memory: Arc<Memory>,
    latency: Arc<Latency>,
    /// For each block a bit for each host page.
    asked: Vec<AtomicBitmap>,
    outstanding: AtomicU64,
    sent: AtomicU64,
    requester: Mutex<Option<Box<dyn Requester>>>,
}

impl Requests {
    /// None yet, and nobody to send them.
    pub fn new(memory: Arc<Memory>, latency: Arc<Latency>) -> Arc<Self> {
        let pages = |index: usize| usize::try_from(memory.block(index).max_length() / memory.page_size(index)).unwrap_or(usize::MAX);
        let asked = (0..memory.len()).map(|index| AtomicBitmap::new(pages(index))).collect();
        Arc::new(Self { memory, latency, asked, outstanding: AtomicU64::new(0), sent: AtomicU64::new(0), requester: Mutex::new(None) })
    }

    /// The memory whose pages are asked for.
    pub fn memory(&self) -> &Arc<Memory> {
        &self.memory
    }

    /// The record of it.
    pub fn latency(&self) -> &Arc<Latency> {
        &self.latency
    }

    /// Who sends from now on. With somebody: all that is outstanding is asked again, in order, before anything new. None while there
    /// is no link: cut the old one first, for a request that is being written to it is waited for.
    pub fn set_requester(&self, requester: Option<Box<dyn Requester>>) {
        let mut current = self.requester.lock().unwrap_or_else(PoisonError::into_inner);
        *current = requester;
        for (block, asked) in self.asked.iter().enumerate() {
            if current.is_none() {
                return;
            }
            for page in asked.snapshot(asked.len()).runs().flatten() {
                self.send(&mut current, block, page);
            }
        }
    }

    /// How many pages were asked for, or wait to be, and have not come.
    pub fn outstanding(&self) -> u64 {
        self.outstanding.load(Ordering::SeqCst)
    }

    /// How many requests were sent, repeated ones included.
    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    /// Is somebody waiting for the page?
    pub(super) fn is_asked(&self, block: usize, page: usize) -> bool {
        self.asked[block].get(page)
    }

    /// A thread waits for a page. False if there was no memory for a page of zeros: try it again a little later.
    pub(super) fn fault(&self, fault: &Fault, woken: u64) -> Result<bool> {
        let (block, offset) = self
            .memory
            .locate(fault.address)
            .ok_or_else(|| Error::new(ErrorKind::BadAddress, format!("a fault at {:#x}, which is in no block", fault.address)))?;
        let size = self.memory.page_size(block);
        // Pages of mapped memory fit.
        let page = usize::try_from(offset / size).unwrap_or(usize::MAX);
        if self.memory.is_received(block, offset) {
            return Ok(self.memory.satisfy(block, offset));
        }
        let held = self.latency.now();
        self.latency.blocked(fault.thread, block, page, held);
        // Whoever places a page clears its bit first and looks for waiting threads then.
        if !self.mark(block, page) {
            return Ok(true);
        }
        self.latency.read(block, page, woken, held);
        // Whoever places it from now on sees the bit; what was placed before was seen by the kernel, which let the thread go.
        if self.memory.is_received(block, offset) {
            self.finish(block, page, None);
            return Ok(true);
        }
        let mut current = self.requester.lock().unwrap_or_else(PoisonError::into_inner);
        self.send(&mut current, block, page);
        Ok(true)
    }

    /// The page is asked for from now on; false if it was already.
    fn mark(&self, block: usize, page: usize) -> bool {
        // Before the bit: who finds the bit counts down.
        self.outstanding.fetch_add(1, Ordering::SeqCst);
        let new = self.asked[block].set(page);
        if !new {
            self.outstanding.fetch_sub(1, Ordering::SeqCst);
        }
        new
    }

    /// Asks for a page that nobody waits for yet; an error if there is nobody to ask.
    pub(super) fn want(&self, block: usize, page: usize) -> Result<()> {
        let offset = page as u64 * self.memory.page_size(block);
        let mut current = self.requester.lock().unwrap_or_else(PoisonError::into_inner);
        if self.memory.is_received(block, offset) || !self.mark(block, page) {
            return Ok(());
        }
        if self.memory.is_received(block, offset) {
            self.finish(block, page, None);
            return Ok(());
        }
        self.send(&mut current, block, page);
        let closed = || Error::new(ErrorKind::Closed, "there is nobody to ask for pages");
        current.as_ref().map(|_| ()).ok_or_else(closed)
    }

    fn send(&self, current: &mut Option<Box<dyn Requester>>, block: usize, page: usize) {
        let size = self.memory.page_size(block);
        let Some(requester) = current else { return };
        let len = u32::try_from(size).unwrap_or(u32::MAX);
        // Before it is out: the page may be here before this thread goes on.
        self.latency.requested(block, page);
        self.sent.fetch_add(1, Ordering::Relaxed);
        if requester.request(block, page as u64 * size, len).is_err() {
            self.sent.fetch_sub(1, Ordering::Relaxed);
            *current = None;
        }
    }

    /// The page is there, its first byte since `first`; nothing if nobody asked for it.
    pub(super) fn placed(&self, block: usize, page: usize, first: u64) {
        if self.asked[block].get(page) {
            self.finish(block, page, Some(first));
        }
    }

    fn finish(&self, block: usize, page: usize, first: Option<u64>) {
        if self.asked[block].test_and_clear(page) {
            self.latency.placed(block, page, first);
            // Last: who sees none outstanding sees them all recorded.
            self.outstanding.fetch_sub(1, Ordering::SeqCst);
        }
    }
}

impl fmt::Debug for Requests {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Requests").field("outstanding", &self.outstanding()).field("sent", &self.sent()).finish_non_exhaustive()
    }
}
