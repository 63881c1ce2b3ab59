//! RAM payloads (spec/stream 4): the block list and the page records, straight from the input buffer into a sink.

use std::collections::HashMap;

use super::command::Command;
use super::consts::{
    PAGE_BYTES, PAGE_SIZE, RAM_COMPRESS_PAGE, RAM_CONTINUE, RAM_EOS, RAM_FLAGS, RAM_HOOK, RAM_MEM_SIZE, RAM_MULTIFD_FLUSH, RAM_PAGE,
    RAM_XBZRLE, RAM_ZERO, XBZRLE_ENCODING,
};
use super::elements::Accept;
use super::input::{ByteSource, Input};
use super::limits::COMPRESSED_PAGE_MAX;
use super::sink::{BlockEntry, CodedPage, MappedRam, PageSink};
use crate::{Error, ErrorKind, Result};

/// Pages of one RAM section.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PageCounts {
    /// Sent as they are.
    pub normal: u64,
    /// Sent as one byte.
    pub zero: u64,
    /// Sent as a difference.
    pub xbzrle: u64,
    /// Sent compressed, one by one.
    pub compressed: u64,
}

/// Bytes of the longest plain record: word, block name, page.
const RECORD_MAX: usize = 8 + 1 + 255 + PAGE_BYTES;

/// What the RAM handler remembers of a stream. The current block outlives sections, never the stream.
#[derive(Debug, Clone, Default)]
pub(super) struct RamState {
    blocks: Vec<BlockEntry>,
    index: HashMap<Vec<u8>, usize>,
    current: Option<usize>,
    /// What is taken beyond plain pages.
    pub accept: Accept,
    /// Entries have a mapped-ram header.
    pub mapped: bool,
    /// Entries have an address.
    pub addresses: bool,
    /// All page sizes of the source's blocks, as ADVISE said, where pages larger than the target's are among them.
    page_sizes: u64,
    /// Blocks that a list may have.
    most: usize,
}

impl RamState {
    /// For a list of at most `most` blocks.
    pub fn new(most: usize) -> Self {
        Self { most, ..Self::default() }
    }

    /// One payload up to and with its EOS; `first`: it is that of the START section, which opens with the block list.
    pub fn payload<S: ByteSource>(&mut self, input: &mut Input<S>, first: bool, sink: &mut dyn PageSink) -> Result<PageCounts> {
        sink.section_begin()?;
        if first {
            let at = input.offset();
            let word = input.be64()?;
            if word & RAM_FLAGS & !RAM_CONTINUE != RAM_MEM_SIZE {
                let text = format!("record {word:#x} opens the START section; the block list must (flag {RAM_MEM_SIZE:#x})");
                return Err(Error::new(ErrorKind::BadFlags, text).at(at));
            }
            self.list(input, word & !RAM_FLAGS, at, sink)?;
            sink.blocks(&self.blocks).map_err(|e| e.at(at))?;
        }
        if self.mapped {
            return no_records(input, sink);
        }
        if sink.collects() { self.records::<S, true>(input, sink) } else { self.records::<S, false>(input, sink) }
    }

    /// The records. `COLLECTS`: the sink is told before bytes may have to be waited for; no other sink pays for the look.
    fn records<S: ByteSource, const COLLECTS: bool>(&mut self, input: &mut Input<S>, sink: &mut dyn PageSink) -> Result<PageCounts> {
        let mut counts = PageCounts::default();
        loop {
            if COLLECTS && input.buffered() < RECORD_MAX {
                sink.before_wait()?;
            }
            let at = input.offset();
            let word = input.be64()?;
            let offset = word & !RAM_FLAGS;
            match word & RAM_FLAGS & !RAM_CONTINUE {
                RAM_PAGE => {
                    let block = self.place(input, word, at)?;
                    let data = input.offset();
                    let bytes = input.take(PAGE_BYTES).map_err(|e| self.blame(block, e))?;
                    sink.page_at(block, offset, bytes, data).map_err(|e| self.blame(block, e.at(at)))?;
                    counts.normal += 1;
                }
                RAM_ZERO => {
                    let block = self.place(input, word, at)?;
                    let fill = input.u8().map_err(|e| self.blame(block, e))?;
                    sink.zero(block, offset, fill).map_err(|e| self.blame(block, e.at(at)))?;
                    counts.zero += 1;
                }
                RAM_EOS => return sink.section_end().map(|()| counts),
                flags => self.other(input, word, flags, at, sink, &mut counts)?,
            }
        }
    }

    /// A record that is no plain page: taken if that was asked for.
    #[cold]
    #[inline(never)]
    fn other<S: ByteSource>(
        &mut self,
        input: &mut Input<S>,
        word: u64,
        flags: u64,
        at: u64,
        sink: &mut dyn PageSink,
        counts: &mut PageCounts,
    ) -> Result<()> {
        let offset = word & !RAM_FLAGS;
        match flags {
            RAM_XBZRLE if self.accept.contains(Accept::XBZRLE) => {
                let block = self.place(input, word, at)?;
                let delta = delta(input).map_err(|e| self.blame(block, e))?;
                sink.coded_at(block, offset, CodedPage::Xbzrle(delta), at).map_err(|e| self.blame(block, e.at(at)))?;
                counts.xbzrle += 1;
            }
            RAM_COMPRESS_PAGE if self.accept.contains(Accept::COMPRESS) => {
                let block = self.place(input, word, at)?;
                let bytes = compressed(input).map_err(|e| self.blame(block, e))?;
                sink.coded_at(block, offset, CodedPage::Zlib(bytes), at).map_err(|e| self.blame(block, e.at(at)))?;
                counts.compressed += 1;
            }
            RAM_MULTIFD_FLUSH if self.accept.contains(Accept::MULTIFD) => sink.flush().map_err(|e| e.at(at))?,
            _ => return Err(refused(word, flags).at(at)),
        }
        Ok(())
    }

    /// Remember what a command says of the blocks that will be listed.
    pub fn told(&mut self, command: &Command) {
        if let Command::PostcopyAdvise(Some(advise)) = command
            && !self.accept.is_empty()
        {
            self.page_sizes = advise.page_sizes & !(PAGE_SIZE | (PAGE_SIZE - 1));
        }
    }

    /// Forget which block was meant last: the next record must name its own.
    pub fn forget_current(&mut self) {
        self.current = None;
    }

    /// Which block a page record is for, with its offset checked.
    #[inline]
    fn place<S: ByteSource>(&mut self, input: &mut Input<S>, word: u64, at: u64) -> Result<usize> {
        let block = if word & RAM_CONTINUE == 0 { self.named(input)? } else { self.current.ok_or_else(|| nothing_to_continue(at))? };
        if (word & !RAM_FLAGS) < self.blocks[block].used_length { Ok(block) } else { Err(self.outside(block, word, at)) }
    }

    fn named<S: ByteSource>(&mut self, input: &mut Input<S>) -> Result<usize> {
        let at = input.offset();
        let name = input.cstr8()?;
        let Some(&block) = self.index.get(name) else {
            let text = format!("page for block \"{}\", which the block list does not have", name.escape_ascii());
            return Err(Error::new(ErrorKind::UnknownBlock, text).at(at));
        };
        self.current = Some(block);
        Ok(block)
    }

    #[cold]
    fn outside(&self, block: usize, word: u64, at: u64) -> Error {
        let text = format!("page at {:#x} of a block of {:#x} bytes", word & !RAM_FLAGS, self.blocks[block].used_length);
        self.blame(block, Error::new(ErrorKind::BadAddress, text).at(at))
    }

    #[cold]
    fn blame(&self, block: usize, error: Error) -> Error {
        blame(&self.blocks[block].name, error)
    }

    /// What an entry of the list has behind the length.
    fn extras<S: ByteSource>(&self, input: &mut Input<S>, entry: &mut BlockEntry, sink: &dyn PageSink) -> Result<()> {
        let follows = sink.page_size_follows(&entry.name);
        if follows == Some(true) {
            entry.page_size = Some(input.be64()?);
        }
        // Not announced, so it is known by its looks: a page size that ADVISE named. The next name would have to be empty to look like it.
        if follows.is_none()
            && self.page_sizes != 0
            && let Ok(word) = <[u8; 8]>::try_from(input.peek(8)?).map(u64::from_be_bytes)
            && word.is_power_of_two()
            && word & self.page_sizes != 0
        {
            input.skip(8)?;
            entry.page_size = Some(word);
        }
        if self.addresses {
            entry.address = Some(input.be64()?);
        }
        if self.mapped {
            entry.mapped = Some(mapped(input, entry.used_length)?);
        }
        Ok(())
    }

    /// The block list; its word stood at `start`.
    fn list<S: ByteSource>(&mut self, input: &mut Input<S>, total: u64, start: u64, sink: &dyn PageSink) -> Result<()> {
        let mut remaining = total;
        while remaining > 0 {
            if self.blocks.len() >= self.most {
                let text = format!("more than {} RAM blocks (RAM_BLOCKS_MAX)", self.most);
                return Err(Error::new(ErrorKind::LimitExceeded, text).at(input.offset()));
            }
            let offset = input.offset();
            let name = input.cstr8()?.to_vec();
            let refuse = |text: String, at| Err(Error::new(ErrorKind::BlockMismatch, text).at(at).within(&name.escape_ascii().to_string()));
            let at = input.offset();
            let used_length = input.be64()?;
            if used_length == 0 || !used_length.is_multiple_of(PAGE_SIZE) {
                return refuse(format!("length {used_length:#x} is not one or more pages of {PAGE_SIZE:#x} bytes"), at);
            }
            let Some(rest) = remaining.checked_sub(used_length) else {
                return refuse(
                    format!("length {used_length:#x} exceeds what is left ({remaining:#x}) of the total announced at {start:#x}"),
                    at,
                );
            };
            remaining = rest;
            if self.index.insert(name.clone(), self.blocks.len()).is_some() {
                return refuse("the block list has this block twice".into(), offset);
            }
            let mut entry = BlockEntry::new(name, used_length, offset);
            self.extras(input, &mut entry, sink).map_err(|e| blame(&entry.name, e))?;
            self.blocks.push(entry);
        }
        Ok(())
    }
}

fn blame(name: &[u8], error: Error) -> Error {
    error.within(&name.escape_ascii().to_string())
}

/// What an XBZRLE record has behind the block: encoding, length, delta.
fn delta<S: ByteSource>(input: &mut Input<S>) -> Result<&[u8]> {
    let at = input.offset();
    let encoding = input.u8()?;
    if encoding != XBZRLE_ENCODING {
        let text = format!("encoding {encoding:#x} of an XBZRLE page; {XBZRLE_ENCODING} is the only one");
        return Err(Error::new(ErrorKind::BadPage, text).at(at));
    }
    let at = input.offset();
    let length = usize::from(input.be16()?);
    if length > PAGE_BYTES {
        return Err(Error::new(ErrorKind::LimitExceeded, format!("a delta of {length} bytes for a page of {PAGE_BYTES}")).at(at));
    }
    input.take(length)
}

/// What a compressed page has behind the block: length, zlib stream.
fn compressed<S: ByteSource>(input: &mut Input<S>) -> Result<&[u8]> {
    let at = input.offset();
    let length = input.be32()?;
    if length == 0 || length > COMPRESSED_PAGE_MAX {
        let text = format!("a compressed page of {length} bytes; 1 to {COMPRESSED_PAGE_MAX} are accepted (COMPRESSED_PAGE_MAX)");
        return Err(Error::new(ErrorKind::LimitExceeded, text).at(at));
    }
    input.take(length as usize)
}

/// The header of a block in a mapped-ram file; ends behind its pages, where the stream goes on (spec/stream 13.2).
fn mapped<S: ByteSource>(input: &mut Input<S>, used_length: u64) -> Result<MappedRam> {
    let at = input.offset();
    let version = input.be32()?;
    if version != 1 {
        return Err(Error::new(ErrorKind::BadVersion, format!("mapped-ram header of version {version}; 1 is the only one")).at(at));
    }
    let at = input.offset();
    let page_size = input.be64()?;
    if page_size != PAGE_SIZE {
        return Err(Error::new(ErrorKind::BlockMismatch, format!("pages of {page_size:#x} bytes, expected {PAGE_SIZE:#x}")).at(at));
    }
    let at = input.offset();
    let (bitmap, pages) = (input.be64()?, input.be64()?);
    let here = input.offset();
    let bitmap_bytes = (used_length / PAGE_SIZE).div_ceil(64) * 8;
    let bitmap_end = bitmap.checked_add(bitmap_bytes).filter(|_| bitmap >= here);
    let in_order = bitmap_end.is_some_and(|end| end <= pages) && pages.is_multiple_of(PAGE_SIZE);
    let Some(end) = pages.checked_add(used_length).filter(|_| in_order) else {
        let text = format!(
            "bitmap at {bitmap:#x} and pages at {pages:#x}: they must follow this header ({here:#x}) in this order, the pages aligned"
        );
        let field = if bitmap_end.is_some() { at + 8 } else { at };
        return Err(Error::new(ErrorKind::BadAddress, text).at(field));
    };
    input.skip(end - here)?;
    Ok(MappedRam { bitmap, pages })
}

/// The rest of a payload where the pages stand at fixed places: nothing but its end.
fn no_records<S: ByteSource>(input: &mut Input<S>, sink: &mut dyn PageSink) -> Result<PageCounts> {
    let at = input.offset();
    let word = input.be64()?;
    match word & RAM_FLAGS & !RAM_CONTINUE {
        RAM_EOS => sink.section_end().map(|()| PageCounts::default()),
        flags @ RAM_MEM_SIZE => Err(refused(word, flags).at(at)),
        flags => {
            let text = format!("record {word:#x} has flags {flags:#x} in a mapped-ram stream, whose pages stand at fixed places");
            Err(Error::new(ErrorKind::BadFlags, text).at(at))
        }
    }
}

#[cold]
fn nothing_to_continue(at: u64) -> Error {
    Error::new(ErrorKind::BadFlags, "page record without a block name, and no record before it had one").at(at)
}

/// Flags that are no page and no end: a feature that is not here, a list out of place, or nonsense.
#[cold]
fn refused(word: u64, flags: u64) -> Error {
    let feature = match flags {
        RAM_XBZRLE => "an XBZRLE page; switch the source's capability xbzrle off",
        RAM_COMPRESS_PAGE => "a compressed page; switch the capability compress on here, too, or off at the source",
        RAM_MULTIFD_FLUSH => "a multifd flush; switch the source's capability multifd off",
        RAM_HOOK => "an RDMA hook; use a tcp: or unix: URI",
        RAM_MEM_SIZE => {
            return Error::new(
                ErrorKind::BadFlags,
                format!("record {word:#x} is a block list, which stands only first in the START section"),
            );
        }
        _ => return Error::new(ErrorKind::BadFlags, format!("record {word:#x} has flags {flags:#x}, which is no legal combination")),
    };
    Error::new(ErrorKind::Unsupported, format!("record {word:#x} is {feature}"))
}
