//! One block of small pages. As in the core's memory a page is claimed, then placed by the kernel, then received, then told.

use std::sync::Arc;

use super::claims::Claims;
use crate::ram::TARGET_PAGE;
use crate::sync::Mutex;
use crate::{Error, ErrorKind, Result};

/// What is placed.
#[derive(Debug, Clone, Copy)]
pub enum Content<'a> {
    Bytes(&'a [u8]),
    Zeros(usize),
}

/// The block.
#[derive(Debug)]
pub struct Block(u64);

impl Block {
    pub fn max_length(&self) -> u64 {
        self.0
    }

    pub fn used_length(&self) -> u64 {
        self.0
    }

    pub fn name(&self) -> &'static str {
        "ram"
    }
}

/// In place of the core's.
#[derive(Debug)]
pub struct Memory {
    block: Block,
    claims: Claims,
    /// What the kernel has: nobody who finds a page there faults.
    present: Mutex<Vec<bool>>,
}

impl Memory {
    pub fn new(pages: usize) -> Arc<Self> {
        let block = Block((pages * TARGET_PAGE) as u64);
        Arc::new(Self { block, claims: Claims::new(pages, 1), present: Mutex::new(vec![false; pages]) })
    }

    pub fn len(&self) -> usize {
        1
    }

    pub fn block(&self, _index: usize) -> &Block {
        &self.block
    }

    pub fn page_size(&self, _block: usize) -> u64 {
        TARGET_PAGE as u64
    }

    pub fn locate(&self, address: usize) -> Option<(usize, u64)> {
        Some((0, address as u64))
    }

    pub fn is_received(&self, _block: usize, offset: u64) -> bool {
        self.claims.is_received(page(offset))
    }

    /// A page that was received and skipped is made of zeros.
    pub fn satisfy(&self, _block: usize, offset: u64) -> bool {
        self.present.lock().unwrap()[page(offset)] = true;
        true
    }

    pub fn claim(&self, _block: usize, offset: u64) -> bool {
        self.claims.claim(page(offset))
    }

    pub fn release(&self, _block: usize, offset: u64, len: usize) {
        self.claims.release(page(offset)..page(offset) + len / TARGET_PAGE);
    }

    pub fn place(&self, _block: usize, offset: u64, content: Content<'_>, mut there: impl FnMut(u64, usize)) -> Result<()> {
        let len = match content {
            Content::Bytes(bytes) => bytes.len(),
            Content::Zeros(len) => len,
        };
        let pages = page(offset)..page(offset) + len / TARGET_PAGE;
        for page in &mut self.present.lock().unwrap()[pages.clone()] {
            if std::mem::replace(page, true) {
                return Err(Error::new(ErrorKind::BadAddress, "something is at a page that was never received"));
            }
        }
        self.claims.note(pages);
        there(offset, len);
        Ok(())
    }

    /// A thread touches the page: true if it finds it.
    pub fn touch(&self, page: usize) -> bool {
        self.present.lock().unwrap()[page]
    }
}

fn page(offset: u64) -> usize {
    usize::try_from(offset).unwrap() / TARGET_PAGE
}
