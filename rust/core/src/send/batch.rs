//! What is about to be written: stream bytes and guest pages in order, sent with one vectored write and without copying pages.

use std::sync::Arc;

use crate::Result;
use crate::channel::WriteHalf;
use crate::ram::Block;
use crate::sys::io::IoVec;

/// Pieces per write: the most that one `sendmsg` takes.
const MAX_PIECES: usize = 1024;
/// Bytes per write. Large enough that a write's fixed cost vanishes, small enough that the receiver starts early.
const MAX_BYTES: u64 = 2 << 20;
/// Stream bytes per write: so many stand for megabytes of zero pages, which the receiver shall take while we look for more.
const MAX_ARENA: usize = 32 << 10;

#[derive(Debug, Clone, Copy)]
enum Piece {
    Bytes { start: usize, len: usize },
    Page { block: usize, offset: u64, len: usize },
}

/// A bounded list of pieces; the owner flushes it when `full` says so.
#[derive(Debug)]
pub struct Batch {
    arena: Vec<u8>,
    pieces: Vec<Piece>,
    bytes: u64,
    max_bytes: u64,
}

impl Batch {
    /// An empty batch.
    pub fn new() -> Self {
        Self { arena: Vec::with_capacity(2 * MAX_ARENA), pieces: Vec::with_capacity(MAX_PIECES), bytes: 0, max_bytes: MAX_BYTES }
    }

    /// Bound the bytes per write, so that a slow channel is fed evenly.
    pub fn set_max_bytes(&mut self, bytes: u64) {
        self.max_bytes = bytes.clamp(8 << 10, MAX_BYTES);
    }

    /// Bytes per write at most.
    pub fn max_bytes(&self) -> u64 {
        self.max_bytes
    }

    /// Append stream bytes.
    pub fn put(&mut self, bytes: &[u8]) {
        let start = self.arena.len();
        self.arena.extend_from_slice(bytes);
        self.bytes += bytes.len() as u64;
        match self.pieces.last_mut() {
            Some(Piece::Bytes { len, .. }) => *len += bytes.len(),
            _ => self.pieces.push(Piece::Bytes { start, len: bytes.len() }),
        }
    }

    /// Append `len` bytes of guest memory, read when the batch is flushed.
    pub fn page(&mut self, block: usize, offset: u64, len: usize) {
        self.bytes += len as u64;
        self.pieces.push(Piece::Page { block, offset, len });
    }

    /// True when the next record might not fit.
    pub fn full(&self) -> bool {
        self.pieces.len() + 2 > MAX_PIECES || self.bytes >= self.max_bytes || self.arena.len() >= MAX_ARENA
    }

    /// Write everything, in order; `blocks` is what `page`'s indices mean. Empty afterwards, also on failure.
    pub fn flush(&mut self, blocks: &[Arc<Block>], writer: &mut WriteHalf) -> Result<()> {
        if self.pieces.is_empty() {
            return Ok(());
        }
        let done = self.write(blocks, writer);
        self.arena.clear();
        self.pieces.clear();
        self.bytes = 0;
        done
    }

    fn write(&self, blocks: &[Arc<Block>], writer: &mut WriteHalf) -> Result<()> {
        if let [Piece::Bytes { start, len }] = self.pieces[..] {
            // Pages in other forms come as stream bytes.
            return writer.write_iov(&[IoVec::from_slice(&self.arena[start..start + len])]);
        }
        let mut vectors = Vec::with_capacity(self.pieces.len());
        for piece in &self.pieces {
            vectors.push(match *piece {
                Piece::Bytes { start, len } => IoVec::from_slice(&self.arena[start..start + len]),
                Piece::Page { block, offset, len } => IoVec::from_guest(blocks[block].range(offset, len)?),
            });
        }
        writer.write_iov(&vectors)
    }
}
