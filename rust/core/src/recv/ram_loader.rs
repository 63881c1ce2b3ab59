//! The RAM handler of the destination in precopy: pages go straight to their place in registered blocks, and nowhere else.
//!
//! Once postcopy was announced, which pages have come is remembered; without that nobody asks.

use std::sync::Arc;

use super::inflating::{Inflating, Place};
use super::mapped_ram::MappedFile;
use super::multifd::FanIn;
use super::places::Places;
use crate::page::xbzrle_decode;
use crate::postcopy::Memory;
use crate::ram::{Block, RamList, TARGET_PAGE};
use crate::sys::guest::settle;
use crate::wire::{BlockEntry, ByteSource, CodedPage, Decoder, Event, PageSink};
use crate::{Error, ErrorKind, Result};

/// Writes received pages into the blocks that the stream announced.
#[derive(Debug)]
pub struct RamLoader {
    list: RamList,
    places: Arc<Places>,
    /// For each announced block its place in the list.
    order: Vec<usize>,
    /// After ADVISE: what notes the pages.
    memory: Option<Arc<Memory>>,
    /// Other channels that bring pages, too.
    beside: Option<Arc<FanIn>>,
    /// Where the pages stand, if not in the stream.
    mapped: Option<MappedFile>,
    /// Threads for compressed pages, and those at work since the first of them came.
    inflate_threads: u8,
    inflating: Option<Inflating>,
}

impl RamLoader {
    /// A loader for the registered blocks.
    pub fn new(list: RamList) -> Self {
        Self {
            list,
            places: Arc::default(),
            order: Vec::new(),
            memory: None,
            beside: None,
            mapped: None,
            inflate_threads: 1,
            inflating: None,
        }
    }

    /// So many threads decompress pages, if any come compressed.
    pub fn set_inflate_threads(&mut self, threads: u8) {
        self.inflate_threads = threads.max(1);
    }

    /// No more RAM comes: ends the threads.
    pub fn rest(&mut self) {
        self.inflating = None;
        if let Some(channels) = &self.beside {
            channels.ram_ended();
        }
    }

    /// The blocks of this machine.
    pub fn list(&self) -> &RamList {
        &self.list
    }

    /// Pages also come on these channels.
    pub fn stand_by(&mut self, channels: Arc<FanIn>) {
        self.beside = Some(channels);
    }

    /// The pages stand at fixed places of this file.
    pub fn map(&mut self, file: MappedFile) {
        self.mapped = Some(file);
    }

    /// The other channels may go on over what this one has stored.
    fn meet(&self, at: impl FnOnce(&FanIn) -> Result<()>) -> Result<()> {
        let Some(channels) = &self.beside else { return Ok(()) };
        settle();
        at(channels)
    }

    /// From now on note what comes in `memory`, which has the blocks of the list in its order.
    pub fn note(&mut self, memory: Arc<Memory>) {
        self.memory = Some(memory);
    }

    /// Pages are placed by others from now on: says which block of the list each announced one is.
    pub fn hand_over(&mut self) -> Vec<usize> {
        self.rest();
        self.places = Arc::default();
        self.order.clone()
    }

    /// The decoder's next event, its pages loaded.
    pub fn feed<S: ByteSource>(&mut self, decoder: &mut Decoder<S>) -> Result<Event> {
        match self.memory.clone() {
            None => decoder.next(self),
            Some(memory) => decoder.next(&mut Noting { loader: self, memory: &memory }),
        }
    }

    /// Changes a page by a difference. It is put together apart from guest memory: a delta that is refused has changed nothing.
    fn patch(&mut self, block: usize, offset: u64, delta: &[u8]) -> Result<()> {
        self.overtake(block, offset)?;
        let mut page = [0; TARGET_PAGE];
        self.places[block].block().read(offset, &mut page)?;
        xbzrle_decode(delta, &mut page)?;
        self.places[block].put(offset, &page)
    }

    /// What came of a page in this section and is being decompressed is older than what comes now.
    fn overtake(&mut self, block: usize, offset: u64) -> Result<()> {
        self.inflating.as_mut().map_or(Ok(()), |inflating| inflating.meet(block, offset, &self.places))
    }

    /// A RAM section is complete: its pages are there for every thread that hears of it. With `last` no page comes before the next one.
    pub fn settle(&self, last: bool) -> Result<()> {
        settle();
        self.beside.as_ref().filter(|_| last).map_or(Ok(()), |channels| channels.hold())
    }

    /// Refuses a stream that says it is complete and never announced this machine's RAM.
    pub fn check_complete(&self) -> Result<()> {
        if self.order.len() == self.list.len() {
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
        let mut blocks = Vec::with_capacity(list.len());
        let mut order = Vec::with_capacity(list.len());
        for entry in list {
            let name = String::from_utf8_lossy(&entry.name).into_owned();
            let found = self.list.find(&entry.name).ok_or_else(|| {
                let here: Vec<&str> = self.list.iter().map(|block| block.name()).collect();
                Error::new(ErrorKind::UnknownBlock, format!("no RAM block {name:?} here; this machine has {here:?}")).at(entry.offset)
            })?;
            let block = Arc::clone(&self.list.blocks()[found]);
            if let Some(theirs) = entry.page_size.filter(|size| *size != block.page_size()) {
                let text = format!(
                    "pages of {theirs:#x} bytes there and of {:#x} here: postcopy needs the same kind of memory on both sides",
                    block.page_size()
                );
                return Err(Error::new(ErrorKind::BlockMismatch, text).at(entry.offset).within(&name));
            }
            if block.used_length() != entry.used_length {
                fit(&block, entry.used_length).map_err(|e| e.at(entry.offset).within(&name))?;
            }
            order.push(found);
            blocks.push(block);
        }
        if let Some(missing) = self.list.iter().find(|block| !blocks.iter().any(|listed| Arc::ptr_eq(listed, block))) {
            return Err(Error::new(
                ErrorKind::UnknownBlock,
                format!("the stream lacks RAM block {:?}, which this machine has", missing.name()),
            ));
        }
        self.places = Arc::new(Places::new(blocks)?);
        if let Some(file) = &self.mapped {
            let regions: Vec<_> = list.iter().filter_map(|entry| entry.mapped).collect();
            file.load(&self.places, &regions)?;
        }
        self.order = order;
        if let Some(channels) = &self.beside {
            channels.announce(&self.places);
        }
        Ok(())
    }

    fn zero(&mut self, block: usize, offset: u64, fill: u8) -> Result<()> {
        self.overtake(block, offset)?;
        self.places[block].fill(offset, fill)
    }

    fn page(&mut self, block: usize, offset: u64, bytes: &[u8]) -> Result<()> {
        self.overtake(block, offset)?;
        self.places[block].put(offset, bytes)
    }

    fn flush(&mut self) -> Result<()> {
        self.meet(FanIn::flush)
    }

    fn section_begin(&mut self) -> Result<()> {
        self.beside.as_ref().map_or(Ok(()), |channels| channels.go_on())
    }

    fn section_end(&mut self) -> Result<()> {
        if let Some(inflating) = &mut self.inflating {
            inflating.finish(&self.places)?;
        }
        self.meet(FanIn::section_end)
    }

    fn coded_at(&mut self, block: usize, offset: u64, page: CodedPage<'_>, at: u64) -> Result<()> {
        let bytes = match page {
            CodedPage::Xbzrle(delta) => return self.patch(block, offset, delta),
            CodedPage::Zlib(bytes) => bytes,
        };
        let inflating = match &mut self.inflating {
            Some(inflating) => inflating,
            none => none.insert(Inflating::start(self.inflate_threads)?),
        };
        inflating.take(Place { block, offset, at }, bytes, &self.places)
    }
}

/// The loader after ADVISE.
struct Noting<'a> {
    loader: &'a mut RamLoader,
    memory: &'a Memory,
}

impl Noting<'_> {
    fn note(&self, block: usize, offset: u64) {
        // The offset is inside a mapped block.
        let page = usize::try_from(offset).unwrap_or(usize::MAX) / TARGET_PAGE;
        self.memory.note_received(self.loader.order[block], page);
    }
}

impl PageSink for Noting<'_> {
    fn blocks(&mut self, list: &[BlockEntry]) -> Result<()> {
        self.loader.blocks(list)
    }

    fn page_size_follows(&self, name: &[u8]) -> Option<bool> {
        let list = &self.loader.list;
        Some(list.find(name).is_some_and(|block| list.blocks()[block].page_size() != TARGET_PAGE as u64))
    }

    fn zero(&mut self, block: usize, offset: u64, fill: u8) -> Result<()> {
        self.loader.zero(block, offset, fill)?;
        self.note(block, offset);
        Ok(())
    }

    fn page(&mut self, block: usize, offset: u64, bytes: &[u8]) -> Result<()> {
        self.loader.page(block, offset, bytes)?;
        self.note(block, offset);
        Ok(())
    }

    fn coded_at(&mut self, block: usize, offset: u64, page: CodedPage<'_>, at: u64) -> Result<()> {
        self.loader.coded_at(block, offset, page, at)?;
        // It comes to be there before this section ends, or the load fails.
        self.note(block, offset);
        Ok(())
    }

    fn section_end(&mut self) -> Result<()> {
        self.loader.section_end()
    }
}
