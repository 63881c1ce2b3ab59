//! The main channel of the source while it is written: batch, rate limit and byte count in one hand.

use std::sync::Arc;
use std::time::Instant;

use super::batch::Batch;
use crate::Result;
use crate::channel::{Positioned, RateLimit, WriteHalf};
use crate::ram::Block;

/// Bytes under way.
#[derive(Debug, Clone, Copy)]
pub struct Bound {
    /// That the kernel has not sent.
    pub unsent: u32,
    /// With those that the peer has not acknowledged.
    pub whole: usize,
    /// Of one write.
    pub write: u64,
}

/// Where everything that the source sends goes through, in order.
#[derive(Debug)]
pub struct Stream {
    blocks: Vec<Arc<Block>>,
    batch: Batch,
    writer: WriteHalf,
    rate: RateLimit,
    sent: u64,
    /// Bytes of one write at most, whatever the rate.
    most: u64,
}

impl Stream {
    /// A stream over `writer`; `blocks` is what page records' block indices mean.
    pub fn new(blocks: Vec<Arc<Block>>, writer: WriteHalf, bandwidth: u64) -> Self {
        let mut stream = Self { blocks, batch: Batch::new(), writer, rate: RateLimit::new(bandwidth), sent: 0, most: u64::MAX };
        stream.set_bandwidth(bandwidth);
        stream
    }

    /// Bytes handed to the stream so far, with those that further channels have carried.
    pub fn sent(&self) -> u64 {
        self.sent
    }

    /// The rate limit, for its window and its waits.
    pub fn rate(&self) -> &RateLimit {
        &self.rate
    }

    /// Bytes a second from now on; 0 is unlimited.
    pub fn set_bandwidth(&mut self, bandwidth: u64) {
        self.rate.set_bandwidth(bandwidth);
        // A slow channel is fed in pieces of a hundredth of a second, so that the rate is even and a cancel is quick.
        self.batch.set_max_bytes(if bandwidth == 0 { self.most } else { self.most.min(bandwidth / 100) });
    }

    /// From here on little is under way at a time: `bound` for a peer on this machine; one further away gets what `rate` (bytes a
    /// second) carries in 5 ms, if that is more.
    pub fn bound(&mut self, bound: &Bound, rate: u64) {
        let distance = if self.writer.is_local() { 0 } else { usize::try_from(rate / 200).unwrap_or(usize::MAX) };
        self.writer.bound(bound.unsent, distance.max(bound.whole));
        self.most = bound.write;
        self.batch.set_max_bytes(bound.write);
    }

    /// Wait until the channel takes something.
    pub fn room(&self) -> Result<()> {
        self.writer.room()
    }

    /// Bytes of one write at present.
    pub fn piece(&self) -> u64 {
        self.batch.max_bytes()
    }

    /// Bytes went out beside the stream: they count all the same.
    pub fn account(&mut self, bytes: u64) {
        self.sent += bytes;
        self.rate.account(bytes);
    }

    /// The file that is written, if it is one.
    pub fn positioned(&self) -> Option<Result<Positioned>> {
        self.writer.positioned()
    }

    /// Position of the next byte in its file.
    pub fn position(&mut self) -> Result<u64> {
        self.flush()?;
        self.writer.position()
    }

    /// The stream goes on at this position of its file.
    pub fn go(&mut self, to: u64) -> Result<()> {
        self.flush()?;
        self.writer.go(to)
    }

    /// Append stream bytes.
    pub fn put(&mut self, bytes: &[u8]) -> Result<()> {
        self.batch.put(bytes);
        self.count(bytes.len() as u64)
    }

    /// Append the `len` bytes of guest memory at `offset` of block number `block`.
    pub fn put_page(&mut self, block: usize, offset: u64, len: usize) -> Result<()> {
        self.batch.page(block, offset, len);
        self.count(len as u64)
    }

    /// Bytes that further channels are to carry count against the limit from now on.
    pub fn charge(&self, bytes: u64) {
        self.rate.account(bytes);
    }

    /// Further channels have carried so many bytes.
    pub fn carried(&mut self, bytes: u64) {
        self.sent += bytes;
    }

    /// Write what is pending.
    pub fn flush(&mut self) -> Result<()> {
        self.batch.flush(&self.blocks, &mut self.writer)
    }

    /// Flush, and wait until the reader of a pipe has taken everything.
    pub fn drain(&mut self, deadline: Instant) -> Result<()> {
        self.flush()?;
        self.writer.drained(deadline)
    }

    /// A write that fails may leave bytes behind that go out all the same: sealed records do.
    pub fn keeps_bytes(&self) -> bool {
        self.writer.is_secured()
    }

    /// Wait until the peer's kernel has what was flushed.
    pub fn arrived(&self, deadline: Instant) -> Result<()> {
        self.writer.arrived(deadline)
    }

    /// From here on a write that has to wait longer fails.
    pub fn set_deadline(&mut self, deadline: Instant) {
        self.writer.set_deadline(deadline);
    }

    /// Flush and let the transport finish: the child's exit status, the file's fsync.
    pub fn finish(&mut self) -> Result<()> {
        self.flush()?;
        self.writer.finish()
    }

    fn count(&mut self, bytes: u64) -> Result<()> {
        self.sent += bytes;
        self.rate.account(bytes);
        if self.batch.full() { self.flush() } else { Ok(()) }
    }
}
