//! The RAM handler of the destination after LISTEN: pages of one channel to where threads may be waiting for them.

use std::sync::Arc;

use super::silence::Silence;
use crate::page::PageInflate;
use crate::postcopy::{Placer, Requests};
use crate::wire::consts::PAGE_BYTES;
use crate::wire::{BlockEntry, CodedPage, PageSink};
use crate::{Error, ErrorKind, Result};

/// A placer with the stream's numbers of blocks.
#[derive(Debug)]
pub struct Placing {
    placer: Placer,
    /// For each announced block its number in the memory.
    order: Arc<[usize]>,
    /// Told whenever everything that came is placed.
    came: Option<Arc<dyn Came>>,
    /// Told whether a host page is here in part.
    silence: Option<Arc<Silence>>,
    /// From the first compressed page on.
    inflate: Option<PageInflate>,
}

/// Waits for pages to come.
pub trait Came: Send + Sync + std::fmt::Debug {
    /// Some may have; to be looked at soon.
    fn came(&self);
}

impl Placing {
    /// For the background: pages that nobody waits for are placed several at a time.
    pub fn background(requests: &Arc<Requests>, order: &Arc<[usize]>, silence: &Arc<Silence>) -> Self {
        let silence = Some(Arc::clone(silence));
        Self { placer: Placer::batched(Arc::clone(requests)), order: Arc::clone(order), came: None, silence, inflate: None }
    }

    /// For requested pages, which the end of the background waits for.
    pub fn urgent(requests: &Arc<Requests>, order: &Arc<[usize]>, came: Arc<dyn Came>) -> Self {
        Self { placer: Placer::new(Arc::clone(requests)), order: Arc::clone(order), came: Some(came), silence: None, inflate: None }
    }

    /// The link is lost: forget what was not placed.
    pub fn abandon(&mut self) {
        self.placer.abandon();
        self.note_part();
    }

    /// The channel is over: fails if it ended inside a host page.
    pub fn finish(&mut self) -> Result<()> {
        self.placer.finish().map_err(|e| e.within("ram"))
    }

    fn note_part(&self) {
        if let Some(silence) = &self.silence {
            silence.set_part(self.placer.has_part());
        }
    }
}

impl PageSink for Placing {
    fn blocks(&mut self, _list: &[BlockEntry]) -> Result<()> {
        Err(Error::new(ErrorKind::BadCommand, "a block list after POSTCOPY_LISTEN"))
    }

    fn zero(&mut self, block: usize, offset: u64, fill: u8) -> Result<()> {
        self.placer.zero(self.order[block], offset, fill)
    }

    fn page(&mut self, block: usize, offset: u64, bytes: &[u8]) -> Result<()> {
        self.placer.page(self.order[block], offset, bytes)
    }

    /// A compressed page is decompressed here: somebody may wait for it already, and it must be whole before it is placed.
    fn coded(&mut self, block: usize, offset: u64, page: CodedPage<'_>) -> Result<()> {
        let CodedPage::Zlib(bytes) = page else {
            return Err(Error::new(ErrorKind::BadFlags, "an XBZRLE page after POSTCOPY_LISTEN"));
        };
        let mut plain = [0; PAGE_BYTES];
        self.inflate.get_or_insert_default().run_all(bytes, &mut plain)?;
        self.page(block, offset, &plain)
    }

    fn collects(&self) -> bool {
        true
    }

    fn before_wait(&mut self) -> Result<()> {
        self.placer.flush()?;
        self.note_part();
        if let Some(waiting) = &self.came {
            waiting.came();
        }
        Ok(())
    }

    fn section_end(&mut self) -> Result<()> {
        self.placer.flush()?;
        self.note_part();
        Ok(())
    }
}
