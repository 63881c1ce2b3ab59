//! Page records after the switch: whole host pages, raw or zero, and what follows from having sent them.

use std::ops::Range;
use std::sync::Arc;

use super::stream::Stream;
use super::unsent::Unsent;
use crate::Result;
use crate::control::Session;
use crate::ram::Block;
use crate::wire::consts::{PAGE_BYTES, PAGE_SIZE, RAM_CONTINUE, RAM_PAGE, RAM_ZERO};

/// How far ahead of the look at a page its first bytes are asked for: a cache miss a page would cost as much as sending it.
const LOOK_AHEAD: u64 = 16 * PAGE_SIZE;

/// Is the target page at `offset` zero? One look of a scan that goes on behind it.
pub fn is_zero(block: &Block, offset: u64) -> Result<bool> {
    block.prefetch(offset + LOOK_AHEAD);
    block.is_zero(offset, PAGE_BYTES)
}

/// Writes records to one channel.
#[derive(Debug)]
pub struct Records {
    unsent: Arc<Unsent>,
    session: Arc<Session>,
    /// Block of the last record; none where each record has to name its own.
    last: Option<usize>,
    names_all: bool,
    /// Host pages to be dropped once they have been written; none without `release-ram`.
    release: Option<Vec<(usize, Range<usize>)>>,
}

impl Records {
    /// For the main channel, which nobody else writes to.
    pub fn new(unsent: Arc<Unsent>, session: Arc<Session>, release: bool) -> Self {
        Self { unsent, session, last: None, names_all: false, release: release.then(Vec::new) }
    }

    /// The same, with the block's name in front of every host page: for a channel whose reader forgets, or mixes up, the last one.
    pub fn naming_all(self) -> Self {
        Self { names_all: true, ..self }
    }

    /// Write the target pages of a host page that was claimed.
    pub fn put(&mut self, stream: &mut Stream, block: usize, pages: Range<usize>) -> Result<()> {
        let memory = self.unsent.block(block);
        let before = stream.sent();
        let mut zeros = 0;
        if self.names_all {
            self.last = None;
        }
        for page in pages.clone() {
            let offset = page as u64 * PAGE_SIZE;
            let zero = is_zero(memory, offset)?;
            let kind = if zero { RAM_ZERO } else { RAM_PAGE };
            if self.last == Some(block) {
                stream.put(&(offset | kind | RAM_CONTINUE).to_be_bytes())?;
            } else {
                self.last = Some(block);
                stream.put(&(offset | kind).to_be_bytes())?;
                let name = memory.name().as_bytes();
                stream.put(&[u8::try_from(name.len()).unwrap_or(u8::MAX)])?; // blocks have names of at most 255 bytes
                stream.put(name)?;
            }
            if zero {
                zeros += 1;
                stream.put(&[0])?;
            } else {
                stream.put_page(block, offset, PAGE_BYTES)?;
            }
        }
        let (counters, bytes) = (&self.session.counters, stream.sent() - before);
        counters.transferred.add(bytes);
        counters.postcopy_bytes.add(bytes);
        counters.duplicate.add(zeros);
        counters.normal.add(pages.len() as u64 - zeros);
        counters.remaining.set(self.unsent.left() * PAGE_SIZE);
        if let Some(release) = &mut self.release {
            release.push((block, pages));
        }
        Ok(())
    }

    /// Hand everything to the channel; drop what is there now if that is wanted.
    pub fn flush(&mut self, stream: &mut Stream) -> Result<()> {
        stream.flush()?;
        for (block, pages) in self.release.iter_mut().flat_map(|list| list.drain(..)) {
            drop_pages(&self.unsent, block, pages);
        }
        Ok(())
    }
}

/// Frees whole host pages. Memory that cannot be freed stays: that is a waste, no failure.
pub fn drop_pages(unsent: &Unsent, block: usize, pages: Range<usize>) {
    let _ = unsent.block(block).discard(pages.start as u64 * PAGE_SIZE, pages.len() * PAGE_BYTES);
}
