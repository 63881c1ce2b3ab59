//! The log of what the emulator says by `Block::mark_dirty`.

use std::sync::atomic::Ordering;

use rustix::thread::{MembarrierCommand, membarrier};

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
        block.wants_marks.store(true, Ordering::Relaxed);
        // Every writer's stores so far become visible, and its next look at the flag sees it set.
        barrier_everywhere();
        // What was said before the start belongs to the first pass, which sends everything.
        block.marks.take(&mut Bitmap::new(block.pages()));
        block.untouched(untouched)?;
        Ok(())
    }

    fn sync(&mut self, into: &mut Bitmap) -> Result<u64> {
        Ok(self.lease.0.marks.take(into))
    }

    fn stop(&mut self) {
        self.lease.0.wants_marks.store(false, Ordering::Relaxed);
    }
}

impl Drop for Explicit {
    fn drop(&mut self) {
        self.stop();
    }
}

/// A full memory barrier in every thread of this process, so that writers need none of their own.
fn barrier_everywhere() {
    use MembarrierCommand::{Global, PrivateExpedited, RegisterPrivateExpedited};
    // A kernel that has neither (a sandbox may refuse the call) has interrupted every writer long before the first page is read.
    if membarrier(RegisterPrivateExpedited).and_then(|()| membarrier(PrivateExpedited)).is_err() {
        let _ = membarrier(Global);
    }
}
