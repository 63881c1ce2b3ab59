//! The RAM handler of the destination in precopy: pages go straight to their place in registered blocks, and nowhere else.

use std::sync::Arc;

use crate::ram::{Block, PageTarget, RamList};
use crate::wire::{BlockEntry, PageSink};
use crate::{Error, ErrorKind, Result};

/// Writes received pages into the blocks that the stream announced.
#[derive(Debug)]
pub struct RamLoader {
    list: RamList,
    places: Vec<PageTarget>,
}

impl RamLoader {
    /// A loader for the registered blocks.
    pub fn new(list: RamList) -> Self {
        Self { list, places: Vec::new() }
    }

    /// A RAM section is complete: its pages are there for every thread that hears of it.
    pub fn settle(&self) {
        self.places.iter().for_each(PageTarget::settle);
    }

    /// Refuses a stream that says it is complete and never announced this machine's RAM.
    pub fn check_complete(&self) -> Result<()> {
        if self.places.len() == self.list.len() {
            return Ok(());
        }
        Err(Error::new(ErrorKind::MissingSection, "the stream has no RAM, and this machine does").within("ram"))
    }
}

/// Gives `block` the length that it has at the source.
fn fit(block: &Block, length: u64) -> Result<()> {
    let here = block.used_length();
    let refused = |why: &str| {
        Error::new(
            ErrorKind::BlockMismatch,
            format!("length {length:#x} differs from {here:#x} here{why}; give both sides the same RAM size"),
        )
    };
    if !block.resizable() {
        return Err(refused(""));
    }
    block.resize(length).map_err(|e| refused(&format!(" and cannot be taken over ({})", e.message)))
}

impl PageSink for RamLoader {
    fn blocks(&mut self, list: &[BlockEntry]) -> Result<()> {
        let mut places = Vec::with_capacity(list.len());
        for entry in list {
            let name = String::from_utf8_lossy(&entry.name).into_owned();
            let found = self.list.find(&entry.name).ok_or_else(|| {
                let here: Vec<&str> = self.list.iter().map(|block| block.name()).collect();
                Error::new(ErrorKind::UnknownBlock, format!("no RAM block {name:?} here; this machine has {here:?}")).at(entry.offset)
            })?;
            let block = Arc::clone(&self.list.blocks()[found]);
            if block.used_length() != entry.used_length {
                fit(&block, entry.used_length).map_err(|e| e.at(entry.offset).within(&name))?;
            }
            places.push(PageTarget::new(block)?);
        }
        if let Some(missing) = self.list.iter().find(|block| !places.iter().any(|place| Arc::ptr_eq(place.block(), block))) {
            return Err(Error::new(
                ErrorKind::UnknownBlock,
                format!("the stream lacks RAM block {:?}, which this machine has", missing.name()),
            ));
        }
        self.places = places;
        Ok(())
    }

    fn zero(&mut self, block: usize, offset: u64, fill: u8) -> Result<()> {
        self.places[block].fill(offset, fill)
    }

    fn page(&mut self, block: usize, offset: u64, bytes: &[u8]) -> Result<()> {
        self.places[block].put(offset, bytes)
    }
}
