//! Who may place a page, and which pages are there: the bits that several placers and the fault thread share.
//!
//! A host page is claimed before it is placed and received after; so it is placed by one, and whoever finds it received finds its bytes.
//! `rust/loom` tries all interleavings of this very file with the placers and the fault thread.

use std::ops::Range;

use crate::ram::{AtomicBitmap, Bitmap};

/// The bits of one block.
#[derive(Debug)]
pub(super) struct Claims {
    /// Target pages in a host page.
    ratio: usize,
    /// A bit for each target page: it is as the source has it.
    received: AtomicBitmap,
    /// A bit for each host page: somebody places it, or has.
    claimed: AtomicBitmap,
}

impl Claims {
    /// Nothing of `pages` target pages, `ratio` of them in a host page, was received.
    pub(super) fn new(pages: usize, ratio: usize) -> Self {
        Self { ratio, received: AtomicBitmap::new(pages), claimed: AtomicBitmap::new(pages.div_ceil(ratio)) }
    }

    /// The right to place a host page, which one has; none if it was placed already, or is just being.
    pub(super) fn claim(&self, host: usize) -> bool {
        !self.is_received(host) && self.claimed.set(host)
    }

    /// Gives back the right to place host pages.
    pub(super) fn release(&self, hosts: Range<usize>) {
        self.claimed.clear_range(hosts);
    }

    /// Was the host page received?
    pub(super) fn is_received(&self, host: usize) -> bool {
        self.received.get(host * self.ratio)
    }

    /// These target pages are there.
    pub(super) fn note(&self, pages: Range<usize>) {
        self.received.set_range(pages);
    }

    /// These target pages will come again.
    pub(super) fn forget(&self, pages: Range<usize>) {
        self.received.clear_range(pages);
    }

    /// Nothing counts as received.
    pub(super) fn forget_all(&self) {
        self.forget(0..self.received.len());
    }

    /// What was received of the first `pages` target pages.
    pub(super) fn received(&self, pages: usize) -> Bitmap {
        self.received.snapshot(pages)
    }
}
