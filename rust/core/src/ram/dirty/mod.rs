//! What notices writes to a block: one trait, two kinds.
//!
//! `wp_async` lets the kernel notice every store made through this mapping by any thread. It does not see writes through
//! another mapping, another process, `pwrite` or direct I/O; these must be told by `Block::mark_dirty` *after* the write.
//! `explicit` knows only what it is told. Either way what is told is in the next sync.

mod explicit;
#[cfg(test)]
mod tests;
mod wp_async;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::{Bitmap, Block};
use crate::{Error, ErrorKind, Result};

/// Which kind of log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DirtyLogKind {
    /// The kernel notices.
    WpAsync,
    /// The emulator says.
    Explicit,
}

impl DirtyLogKind {
    /// The name users know.
    pub const fn name(self) -> &'static str {
        match self {
            Self::WpAsync => "wp-async",
            Self::Explicit => "explicit",
        }
    }
}

/// Which kind is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DirtyMode {
    /// The kernel's; an error with the remedy where that is impossible.
    #[default]
    Auto,
    /// What the emulator says, and no more.
    Explicit,
}

/// The log of one block. Stops when dropped.
pub trait DirtyLog: Send + fmt::Debug {
    /// Which kind this is.
    fn kind(&self) -> DirtyLogKind;

    /// Begins to notice: whatever is written from now on is in a later sync. `untouched` (one bit for each page of the
    /// used length, clear) receives the pages that certainly read zero because nothing was ever stored there; a write
    /// to one of them is noticed like any other.
    fn start(&mut self, untouched: &mut Bitmap) -> Result<()>;

    /// Sets the bits of pages written since `start` or the last sync; how many are new. A page may be reported that was
    /// not written (a neighbour in the same huge page was, or it is not certain); none is left out.
    fn sync(&mut self, into: &mut Bitmap) -> Result<u64>;

    /// Stops noticing. Idempotent.
    fn stop(&mut self);
}

/// A log for `block`, not started yet. While it exists the block's size is fixed and no other log can be had.
pub fn open(block: &Arc<Block>, mode: DirtyMode) -> Result<Box<dyn DirtyLog>> {
    let lease = Lease::take(block)?;
    Ok(match mode {
        DirtyMode::Auto if !block.explicit() => Box::new(wp_async::WpAsync::open(lease)?),
        DirtyMode::Auto | DirtyMode::Explicit => Box::new(explicit::Explicit::open(lease)),
    })
}

/// Could the kernel notice writes to `block`? Tried by watching it for a moment.
pub(super) fn probe(block: &Arc<Block>) -> Result<()> {
    wp_async::WpAsync::open(Lease::take(block)?)?.probe()
}

/// The right to watch a block, which one has at a time: a dirty log or a fault handler.
#[derive(Debug)]
pub(crate) struct Lease(Arc<Block>);

impl Lease {
    pub(crate) fn take(block: &Arc<Block>) -> Result<Self> {
        if block.leased.swap(true, Ordering::AcqRel) {
            let text = format!("block {:?} is in a migration already; end that one first", block.name());
            return Err(Error::new(ErrorKind::InvalidState, text));
        }
        Ok(Self(Arc::clone(block)))
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.0.leased.store(false, Ordering::Release);
    }
}
