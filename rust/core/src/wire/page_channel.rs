//! A channel beside the main one that has page records and nothing else (spec/stream 9.9).

use super::input::{ByteSource, Input};
use super::ram::{PageCounts, RamState};
use super::sink::PageSink;
use crate::Result;

/// The block list of a stream.
#[derive(Debug, Clone)]
pub struct AnnouncedBlocks(pub(super) RamState);

impl AnnouncedBlocks {
    /// A channel of page records for these blocks; each starts with no block named.
    pub fn channel<S: ByteSource>(&self, source: S) -> PageChannel<S> {
        PageChannel { input: Input::with_capacity(source, PAGE_CHANNEL_BUFFER), ram: self.0.clone() }
    }
}

/// Bytes that are read ahead on a channel whose pages are waited for: a few of them.
const PAGE_CHANNEL_BUFFER: usize = 64 << 10;

/// A channel that has page records and nothing else (spec/stream 9.9).
#[derive(Debug)]
pub struct PageChannel<S> {
    input: Input<S>,
    ram: RamState,
}

impl<S: ByteSource> PageChannel<S> {
    /// Reads up to and with the EOS that ends the channel. A channel that ends without one fails as `truncated`.
    pub fn run(&mut self, sink: &mut dyn PageSink) -> Result<PageCounts> {
        self.ram.payload(&mut self.input, false, sink).map_err(|e| e.within("preempt"))
    }
}
