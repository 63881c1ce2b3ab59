//! RAM payloads (spec/stream 4): the block list and the page records, straight from the input buffer into a sink.

use std::collections::HashMap;

use super::consts::{
    PAGE_BYTES, PAGE_SIZE, RAM_COMPRESS_PAGE, RAM_CONTINUE, RAM_EOS, RAM_FLAGS, RAM_HOOK, RAM_MEM_SIZE, RAM_MULTIFD_FLUSH, RAM_PAGE,
    RAM_XBZRLE, RAM_ZERO,
};
use super::input::{ByteSource, Input};
use super::limits::RAM_BLOCKS_MAX;
use super::sink::{BlockEntry, PageSink};
use crate::{Error, ErrorKind, Result};

/// Pages of one RAM section.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PageCounts {
    /// Sent as they are.
    pub normal: u64,
    /// Sent as one byte.
    pub zero: u64,
}

/// What the RAM handler remembers of a stream. The current block outlives sections, never the stream.
#[derive(Debug, Default)]
pub(super) struct RamState {
    blocks: Vec<BlockEntry>,
    index: HashMap<Vec<u8>, usize>,
    current: Option<usize>,
}

impl RamState {
    /// One payload up to and with its EOS; `first`: it is that of the START section, which opens with the block list.
    pub fn payload<S: ByteSource>(&mut self, input: &mut Input<S>, first: bool, sink: &mut dyn PageSink) -> Result<PageCounts> {
        if first {
            let at = input.offset();
            let word = input.be64()?;
            if word & RAM_FLAGS & !RAM_CONTINUE != RAM_MEM_SIZE {
                let text = format!("record {word:#x} opens the START section; the block list must (flag {RAM_MEM_SIZE:#x})");
                return Err(Error::new(ErrorKind::BadFlags, text).at(at));
            }
            self.list(input, word & !RAM_FLAGS, at)?;
            sink.blocks(&self.blocks).map_err(|e| e.at(at))?;
        }
        let mut counts = PageCounts::default();
        loop {
            let at = input.offset();
            let word = input.be64()?;
            let offset = word & !RAM_FLAGS;
            match word & RAM_FLAGS & !RAM_CONTINUE {
                RAM_PAGE => {
                    let block = self.place(input, word, at)?;
                    let bytes = input.take(PAGE_BYTES).map_err(|e| self.blame(block, e))?;
                    sink.page(block, offset, bytes).map_err(|e| self.blame(block, e.at(at)))?;
                    counts.normal += 1;
                }
                RAM_ZERO => {
                    let block = self.place(input, word, at)?;
                    let fill = input.u8().map_err(|e| self.blame(block, e))?;
                    sink.zero(block, offset, fill).map_err(|e| self.blame(block, e.at(at)))?;
                    counts.zero += 1;
                }
                RAM_EOS => return Ok(counts),
                flags => return Err(refused(word, flags).at(at)),
            }
        }
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
        error.within(&self.blocks[block].name.escape_ascii().to_string())
    }

    /// The block list; its word stood at `start`.
    fn list<S: ByteSource>(&mut self, input: &mut Input<S>, total: u64, start: u64) -> Result<()> {
        let mut remaining = total;
        while remaining > 0 {
            if self.blocks.len() == RAM_BLOCKS_MAX {
                let text = format!("more than {RAM_BLOCKS_MAX} RAM blocks (RAM_BLOCKS_MAX)");
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
            self.blocks.push(BlockEntry { name, used_length, offset });
        }
        Ok(())
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
        RAM_COMPRESS_PAGE => "a compressed page; switch the source's capability compress off",
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
