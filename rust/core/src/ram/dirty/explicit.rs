//! The log of what the emulator says by `Block::mark_dirty`.

use super::{DirtyLog, DirtyLogKind, Lease};
use crate::Result;
use crate::ram::Bitmap;

#[derive(Debug)]
pub(super) struct Explicit {
    lease: Lease,
}

impl Explicit {
    pub(super) fn open(lease: Lease) -> Self {
        Self { lease }
    }
}

impl DirtyLog for Explicit {
    fn kind(&self) -> DirtyLogKind {
        DirtyLogKind::Explicit
    }

    fn start(&mut self, untouched: &mut Bitmap) -> Result<()> {
        let block = &self.lease.0;
        // What was said before the start belongs to the first pass, which sends everything.
        block.marks.take(&mut Bitmap::new(block.pages()));
        block.untouched(untouched)
    }

    fn sync(&mut self, into: &mut Bitmap) -> Result<u64> {
        Ok(self.lease.0.marks.take(into))
    }

    fn stop(&mut self) {}
}
