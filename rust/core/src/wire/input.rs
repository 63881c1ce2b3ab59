//! Bytes in: a byte source and the buffered, offset-keeping reader over it.
//!
//! The reader takes whatever one read of the source gives and never waits for more than it was asked for: at the end of
//! a message the peer may be waiting for our answer (spec/stream 0.3).

use std::fmt;

use super::consts::PAGE_BYTES;
use super::limits::{COMPRESSED_PAGE_MAX, READ_STEP};
use crate::{Error, ErrorKind, Result};

/// Where bytes come from. A read blocks until there is at least one byte; 0 is the end, for good.
pub trait ByteSource {
    /// Read at most `buf.len()` bytes; 0 means the end.
    fn read(&mut self, buf: &mut [u8]) -> Result<usize>;

    /// Pass over at most `n` bytes without reading them; says how many. 0: it cannot, or there are none.
    fn skip(&mut self, _n: u64) -> Result<u64> {
        Ok(0)
    }
}

impl ByteSource for &[u8] {
    fn read(&mut self, buf: &mut [u8]) -> Result<usize> {
        let (now, later) = self.split_at(self.len().min(buf.len()));
        buf[..now.len()].copy_from_slice(now);
        *self = later;
        Ok(now.len())
    }
}

impl<S: ByteSource + ?Sized> ByteSource for &mut S {
    fn read(&mut self, buf: &mut [u8]) -> Result<usize> {
        (**self).read(buf)
    }
}

impl<S: ByteSource + ?Sized> ByteSource for Box<S> {
    fn read(&mut self, buf: &mut [u8]) -> Result<usize> {
        (**self).read(buf)
    }
}

/// A source without bytes, for an [`Input`] that holds all of them already.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoSource;

impl ByteSource for NoSource {
    fn read(&mut self, _buf: &mut [u8]) -> Result<usize> {
        Ok(0)
    }
}

/// Bytes of one section payload, for whoever knows its layout.
pub trait PayloadSource {
    /// Stream offset of the next byte.
    fn offset(&self) -> u64;
    /// Bytes that can be had without waiting for the source.
    fn buffered(&self) -> usize;
    /// Fill `out`, or fail as `truncated` at the offset where it would have begun.
    fn read_exact(&mut self, out: &mut [u8]) -> Result<()>;
    /// Up to `n` coming bytes ([`super::limits::PEEK_MAX`] at most) without consuming them; fewer only where the stream ends.
    fn peek(&mut self, n: usize) -> Result<&[u8]>;
    /// Consume and drop `n` bytes.
    fn skip(&mut self, n: u64) -> Result<()>;

    /// `n` bytes as announced by the stream: memory grows with what arrives.
    fn read_vec(&mut self, n: u64) -> Result<Vec<u8>> {
        let start = self.offset();
        let mut out = Vec::new();
        let mut left = n;
        while left > 0 {
            let step = usize::try_from(left).map_or(READ_STEP, |left| left.min(READ_STEP));
            let from = out.len();
            out.resize(from + step, 0);
            let read = self.read_exact(&mut out[from..]);
            read.map_err(|e| self.within_field(start, n, e))?;
            left -= step as u64;
        }
        Ok(out)
    }

    /// An error that ended a field of `n` bytes from `start` on, read in steps: a truncation is that of the whole field.
    fn within_field(&self, start: u64, n: u64, error: Error) -> Error {
        if error.kind != ErrorKind::Truncated {
            return error;
        }
        let came = self.offset().saturating_sub(start) + self.buffered() as u64;
        Error { path: error.path, ..truncated(start, n.saturating_sub(came)) }
    }
}

/// A buffered reader that knows its stream offset. Integers are big-endian.
///
/// Whatever cannot be completed fails as `truncated` at the offset of its first byte, and nothing of it is consumed
/// (only [`read_exact`](Self::read_exact), [`read_vec`](Self::read_vec) and [`skip`](Self::skip) may have consumed a part).
pub struct Input<S> {
    source: S,
    buffer: Box<[u8]>,
    /// Next byte and end of the valid bytes in `buffer`.
    at: usize,
    end: usize,
    /// Stream offset of `buffer[0]`.
    base: u64,
    ended: bool,
}

impl<S> fmt::Debug for Input<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Input").field("offset", &self.offset()).field("buffered", &self.buffered()).finish_non_exhaustive()
    }
}

impl Input<NoSource> {
    /// All bytes at hand, none to follow; the first stands at stream offset `offset`.
    pub fn from_bytes(bytes: Vec<u8>, offset: u64) -> Self {
        let end = bytes.len();
        Self { source: NoSource, buffer: bytes.into_boxed_slice(), at: 0, end, base: offset, ended: true }
    }
}

impl<S> Input<S> {
    /// Stream offset of the next byte.
    #[inline]
    pub fn offset(&self) -> u64 {
        self.base + self.at as u64
    }

    /// Bytes that can be had without asking the source.
    #[inline]
    pub fn buffered(&self) -> usize {
        self.end - self.at
    }
}

impl<S: ByteSource> Input<S> {
    /// Fits the second-level cache, so that whoever copies bytes on reads warm memory.
    pub const CAPACITY: usize = 256 << 10;

    /// A reader with the usual buffer.
    pub fn new(source: S) -> Self {
        Self::with_capacity(source, Self::CAPACITY)
    }

    /// A reader with a buffer of `capacity` bytes (the largest page record at least), which bounds [`take`](Self::take) and [`peek`](Self::peek).
    pub fn with_capacity(source: S, capacity: usize) -> Self {
        Self {
            source,
            buffer: vec![0; capacity.max(PAGE_BYTES).max(COMPRESSED_PAGE_MAX as usize)].into_boxed_slice(),
            at: 0,
            end: 0,
            base: 0,
            ended: false,
        }
    }

    /// The same, its first byte standing at offset `base`: in a file not every stream begins at 0.
    #[must_use]
    pub fn starting_at(self, base: u64) -> Self {
        Self { base, ..self }
    }

    /// Where its bytes come from.
    pub fn source(&mut self) -> &mut S {
        &mut self.source
    }

    /// The next `n` bytes. `n` is ours, not the stream's: more than the buffer holds is a mistake of the caller.
    #[inline]
    pub fn take(&mut self, n: usize) -> Result<&[u8]> {
        if self.buffered() < n {
            self.fill(n)?;
        }
        self.at += n;
        Ok(&self.buffer[self.at - n..self.at])
    }

    /// One byte.
    #[inline]
    pub fn u8(&mut self) -> Result<u8> {
        Ok(self.array::<1>()?[0])
    }

    /// Two bytes.
    #[inline]
    pub fn be16(&mut self) -> Result<u16> {
        self.array().map(u16::from_be_bytes)
    }

    /// Four bytes.
    #[inline]
    pub fn be32(&mut self) -> Result<u32> {
        self.array().map(u32::from_be_bytes)
    }

    /// Eight bytes.
    #[inline]
    pub fn be64(&mut self) -> Result<u64> {
        self.array().map(u64::from_be_bytes)
    }

    /// A fixed number of bytes by value.
    #[inline]
    pub fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut out = [0; N];
        out.copy_from_slice(self.take(N)?);
        Ok(out)
    }

    /// A counted string: one length byte, then so many bytes.
    pub fn cstr8(&mut self) -> Result<&[u8]> {
        if self.buffered() == 0 {
            self.fill(1)?;
        }
        let length = usize::from(self.buffer[self.at]);
        Ok(&self.take(1 + length)?[1..])
    }

    /// Up to `n` coming bytes without consuming them; fewer only where the stream ends. `n` is at most the capacity.
    pub fn peek(&mut self, n: usize) -> Result<&[u8]> {
        while self.buffered() < n && self.more(n)? {}
        Ok(&self.buffer[self.at..self.end.min(self.at + n)])
    }

    /// Fill `out`. Large remainders go from the source straight to their place.
    pub fn read_exact(&mut self, out: &mut [u8]) -> Result<()> {
        let start = self.offset();
        let now = self.buffered().min(out.len());
        out[..now].copy_from_slice(&self.buffer[self.at..self.at + now]);
        self.at += now;
        let mut done = now;
        while done < out.len() {
            let rest = &mut out[done..];
            if rest.len() < self.buffer.len() {
                let missing = rest.len();
                let got = self.peek(missing)?;
                if got.len() < missing {
                    return Err(truncated(start, (missing - got.len()) as u64));
                }
                rest.copy_from_slice(got);
                self.at += missing;
                return Ok(());
            }
            let n = if self.ended { 0 } else { self.source.read(rest)? };
            if n == 0 {
                self.ended = true;
                return Err(truncated(start, rest.len() as u64));
            }
            // The buffer is empty, so its base may stand anywhere.
            self.base += n as u64;
            done += n;
        }
        Ok(())
    }

    /// `n` bytes as announced by the stream: memory grows with what arrives.
    pub fn read_vec(&mut self, n: u64) -> Result<Vec<u8>> {
        PayloadSource::read_vec(self, n)
    }

    /// Consume and drop `n` bytes.
    pub fn skip(&mut self, n: u64) -> Result<()> {
        let start = self.offset();
        let mut left = n;
        loop {
            let now = usize::try_from(left).map_or(self.buffered(), |left| left.min(self.buffered()));
            self.at += now;
            left -= now as u64;
            if left == 0 {
                return Ok(());
            }
            if left > self.buffer.len() as u64 && !self.ended {
                let passed = self.source.skip(left)?;
                // The buffer is empty, so its base may stand anywhere.
                self.base += passed;
                left -= passed;
            }
            if left > 0 && !self.more(1)? {
                return Err(truncated(start, left));
            }
        }
    }

    /// The next `n` bytes go past the buffer, which must be empty: `read` takes them from the source to wherever they belong. It is told
    /// how many it has taken, and may put what comes behind all of them into its slice, of `behind` bytes.
    pub fn pass(&mut self, n: usize, behind: usize, mut read: impl FnMut(&mut S, usize, &mut [u8]) -> Result<usize>) -> Result<()> {
        assert!(self.buffered() == 0, "{} bytes stand in the buffer", self.buffered());
        let start = self.offset();
        let mut done = 0;
        while done < n {
            let got = if self.ended { 0 } else { read(&mut self.source, done, &mut self.buffer[..behind])? };
            self.ended |= got == 0;
            if got == 0 {
                return Err(truncated(start, (n - done) as u64));
            }
            done += got;
        }
        (self.base, self.at, self.end) = (start + n as u64, 0, done - n);
        Ok(())
    }

    /// Make `need` bytes available.
    #[cold]
    fn fill(&mut self, need: usize) -> Result<()> {
        while self.buffered() < need {
            if !self.more(need)? {
                return Err(truncated(self.offset(), (need - self.buffered()) as u64));
            }
        }
        Ok(())
    }

    /// One read of the source, so that `need` bytes will fit; false at the end.
    fn more(&mut self, need: usize) -> Result<bool> {
        if self.ended {
            return Ok(false);
        }
        assert!(need <= self.buffer.len(), "{need} bytes at once from a buffer of {}", self.buffer.len());
        // What is left is shorter than the field that is wanted, so moving it is cheap.
        self.buffer.copy_within(self.at..self.end, 0);
        self.base += self.at as u64;
        self.end -= self.at;
        self.at = 0;
        let n = self.source.read(&mut self.buffer[self.end..])?;
        self.end += n;
        self.ended = n == 0;
        Ok(n > 0)
    }
}

impl<S: ByteSource> PayloadSource for Input<S> {
    fn offset(&self) -> u64 {
        Input::offset(self)
    }

    fn buffered(&self) -> usize {
        Input::buffered(self)
    }

    fn read_exact(&mut self, out: &mut [u8]) -> Result<()> {
        Input::read_exact(self, out)
    }

    fn peek(&mut self, n: usize) -> Result<&[u8]> {
        Input::peek(self, n)
    }

    fn skip(&mut self, n: u64) -> Result<()> {
        Input::skip(self, n)
    }
}

/// The stream ended inside the field at `offset`.
fn truncated(offset: u64, missing: u64) -> Error {
    let bytes = if missing == 1 { "1 byte is".to_owned() } else { format!("{missing} bytes are") };
    Error::new(ErrorKind::Truncated, format!("the stream ends inside this field: {bytes} missing")).at(offset)
}
