//! Compressed pages on the destination: a pool of threads decompresses what the reader brings, and the reader stores what is done.
//!
//! All of a section's pages are in place before its end is passed on. A page that does not decode is told there, the first of the stream if
//! there are several: what came behind it may be in place already, in a machine that will not run.

use std::collections::HashSet;

use super::places::Places;
use crate::page::{Pool, Taken};
use crate::{Error, Result};

/// Where a page goes, and where it came.
#[derive(Debug, Clone, Copy)]
pub struct Place {
    /// Number of the announced block.
    pub block: usize,
    /// Place of the page in it.
    pub offset: u64,
    /// Stream offset of its record.
    pub at: u64,
}

/// The pages that are being decompressed.
#[derive(Debug)]
pub struct Inflating {
    pool: Pool<Place>,
    /// Block and offset of what is not in place yet.
    pending: HashSet<(usize, u64)>,
    /// The first failure in stream order, with the offset of its record.
    failed: Option<(u64, Error)>,
}

impl Inflating {
    /// With its threads.
    pub fn start(threads: u8) -> Result<Self> {
        Ok(Self { pool: Pool::inflate(threads.into())?, pending: HashSet::new(), failed: None })
    }

    /// A compressed page came. `places` are those of the stream.
    pub fn take(&mut self, place: Place, bytes: &[u8], places: &Places) -> Result<()> {
        self.meet(place.block, place.offset, places)?;
        self.pending.insert((place.block, place.offset));
        if !self.pool.is_filling() {
            while self.store(false, places)? {}
            while !self.pool.room() {
                self.store(true, places)?;
            }
        }
        self.pool.put_packed(place, bytes);
        Ok(())
    }

    /// Another version of this page comes: the one before it, if it is still on its way, is put in place first.
    pub fn meet(&mut self, block: usize, offset: u64, places: &Places) -> Result<()> {
        if self.pending.contains(&(block, offset)) { self.finish(places) } else { Ok(()) }
    }

    /// The section ends: everything that came is in place.
    pub fn finish(&mut self, places: &Places) -> Result<()> {
        self.pool.flush();
        while self.store(true, places)? {}
        self.failed.take().map_or(Ok(()), |(_, error)| Err(error))
    }

    /// Store a batch of pages that are done; false if there is none, with `wait` only because none is under way.
    fn store(&mut self, wait: bool, places: &Places) -> Result<bool> {
        let Some(batch) = self.pool.taken(wait)? else { return Ok(false) };
        for (place, taken) in batch.pages() {
            let target = &places[place.block];
            self.pending.remove(&(place.block, place.offset));
            let stored = match taken {
                Taken::Page(bytes) => target.put(place.offset, bytes),
                Taken::Bad(error) => Err(error),
                Taken::Packed(_) => unreachable!("this pool decompresses"),
            };
            if let Err(mut error) = stored
                && self.failed.as_ref().is_none_or(|(first, _)| place.at < *first)
            {
                error.message = format!("page {:#x}: {}", place.offset, error.message);
                self.failed = Some((place.at, error.at(place.at).within(target.block().name())));
            }
        }
        self.pool.give_back(batch);
        Ok(true)
    }
}
