//! The RAM handler of the destination in precopy: pages go straight to their place in registered blocks, and nowhere else.

use std::sync::Arc;

use crate::ram::{Bitmap, Block, RamList};
use crate::wire::consts::{PAGE_BYTES, PAGE_SIZE};
use crate::wire::{BlockEntry, PageSink};
use crate::{Error, ErrorKind, Result};

/// One announced block and the pages of it that are certainly zero without a look.
#[derive(Debug)]
struct Place {
    block: Arc<Block>,
    untouched: Bitmap,
}

/// Writes received pages into the blocks that the stream announced.
#[derive(Debug)]
pub struct RamLoader {
    list: RamList,
    places: Vec<Place>,
    normal: u64,
    duplicate: u64,
}

impl RamLoader {
    /// A loader for the registered blocks.
    pub fn new(list: RamList) -> Self {
        Self { list, places: Vec::new(), normal: 0, duplicate: 0 }
    }

    /// Pages received so far: raw, zero.
    pub fn pages(&self) -> (u64, u64) {
        (self.normal, self.duplicate)
    }
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
                block.resize(entry.used_length).map_err(|e| {
                    Error::new(
                        ErrorKind::BlockMismatch,
                        format!(
                            "length {:#x} differs from {:#x} here: {}; give both sides the same RAM size",
                            entry.used_length,
                            block.used_length(),
                            e.message
                        ),
                    )
                    .at(entry.offset)
                    .within(&name)
                })?;
            }
            let mut untouched = Bitmap::new(block.pages());
            block.untouched(&mut untouched)?;
            places.push(Place { block, untouched });
        }
        if let Some(missing) = self.list.iter().find(|block| !places.iter().any(|place| Arc::ptr_eq(&place.block, block))) {
            return Err(Error::new(
                ErrorKind::UnknownBlock,
                format!("the stream lacks RAM block {:?}, which this machine has", missing.name()),
            ));
        }
        self.places = places;
        Ok(())
    }

    fn zero(&mut self, block: usize, offset: u64, fill: u8) -> Result<()> {
        self.duplicate += 1;
        let place = &mut self.places[block];
        let page = page_of(offset);
        if fill != 0 {
            place.untouched.clear(page);
            return place.block.put_page(offset, &[fill; PAGE_BYTES]);
        }
        if place.untouched.get(page) { Ok(()) } else { place.block.zero_page(offset) }
    }

    fn page(&mut self, block: usize, offset: u64, bytes: &[u8]) -> Result<()> {
        self.normal += 1;
        let place = &mut self.places[block];
        place.untouched.clear(page_of(offset));
        place.block.put_page(offset, bytes)
    }
}

/// The decoder has checked that the offset lies inside a block that is mapped here, so it fits.
fn page_of(offset: u64) -> usize {
    usize::try_from(offset / PAGE_SIZE).unwrap_or(usize::MAX)
}
