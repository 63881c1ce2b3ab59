//! zlib and deflate: pages compressed one by one, and the endless stream of a multifd channel (spec/stream 6, 12.5).

use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};

use super::bad;
use crate::Result;

/// A stream that goes on from packet to packet.
#[derive(Debug)]
pub struct Inflate(Decompress);

impl Default for Inflate {
    /// A zlib stream.
    fn default() -> Self {
        Self(Decompress::new(true))
    }
}

impl Inflate {
    /// Decompress all of `input` into `out`, which has one byte more than what is to come out: nothing may come there.
    pub fn run(&mut self, mut input: &[u8], out: &mut [u8]) -> Result<()> {
        let wanted = out.len() - 1;
        let mut done = 0;
        loop {
            let (read, written) = (self.0.total_in(), self.0.total_out());
            let status = self.0.decompress(input, &mut out[done..], FlushDecompress::Sync).map_err(|e| bad(format!("zlib: {e}")))?;
            let (read, written) = (self.0.total_in() - read, self.0.total_out() - written);
            // Both are lengths inside our slices.
            input = &input[usize::try_from(read).unwrap_or(input.len())..];
            done += usize::try_from(written).unwrap_or(0);
            if done > wanted {
                return Err(bad(format!("zlib: more than {wanted} bytes come out")));
            }
            if status == Status::StreamEnd && !(input.is_empty() && done == wanted) || read == 0 && written == 0 {
                break;
            }
            if input.is_empty() && done == wanted {
                return Ok(());
            }
        }
        if input.is_empty() && done == wanted { Ok(()) } else { Err(bad(format!("zlib: {done} bytes come out, expected {wanted}"))) }
    }
}

/// The other side of such a stream.
#[derive(Debug)]
pub struct Deflate(Compress);

impl Deflate {
    /// A zlib stream; levels above zlib's highest are that.
    pub fn new(level: u32) -> Self {
        Self(Compress::new(Compression::new(level.min(9)), true))
    }

    /// Compress all of `input` into the front of `out`; how much came out. With `last` everything so far has come out; without it some may
    /// be kept for later.
    pub fn run(&mut self, mut input: &[u8], last: bool, out: &mut [u8]) -> Result<usize> {
        let flush = if last { FlushCompress::Sync } else { FlushCompress::None };
        let mut done = 0;
        loop {
            let (read, written) = (self.0.total_in(), self.0.total_out());
            self.0.compress(input, &mut out[done..], flush).map_err(|e| bad(format!("zlib: {e}")))?;
            // Both are lengths inside our slices.
            input = &input[usize::try_from(self.0.total_in() - read).unwrap_or(input.len())..];
            done += usize::try_from(self.0.total_out() - written).unwrap_or(0);
            if done == out.len() {
                return Err(bad(format!("zlib: more than {done} bytes come out")));
            }
            // There was room left, so nothing stayed behind for want of it.
            if input.is_empty() {
                return Ok(done);
            }
        }
    }
}

/// Compresses pages one by one, each to a zlib stream of its own, in memory that is kept.
#[derive(Debug)]
pub struct PageDeflate(Compress);

impl PageDeflate {
    /// For one level of zlib.
    ///
    /// # Errors
    /// `bad-page`: a level that zlib does not have (it has 0 to 9).
    pub fn new(level: i32) -> Result<Self> {
        let level = u32::try_from(level).ok().filter(|level| *level <= 9);
        let level = level.ok_or_else(|| bad("zlib has levels 0 to 9 only"))?;
        Ok(Self(Compress::new(Compression::new(level), true)))
    }

    /// Compress `page` into `out`; the length there, or None if it is too small.
    pub fn run(&mut self, page: &[u8], out: &mut [u8]) -> Result<Option<usize>> {
        self.0.reset();
        match self.0.compress(page, out, FlushCompress::Finish) {
            // A length inside our slice.
            Ok(Status::StreamEnd) => Ok(Some(usize::try_from(self.0.total_out()).unwrap_or(out.len()))),
            Ok(Status::Ok | Status::BufError) => Ok(None),
            Err(e) => Err(bad(format!("zlib: a page of {} bytes does not compress: {e}", page.len()))),
        }
    }
}

/// Decompresses pages one by one, each from a stream of its own, in memory that is kept.
#[derive(Debug)]
pub struct PageInflate {
    stream: Decompress,
    raw: bool,
}

impl Default for PageInflate {
    /// Zlib streams.
    fn default() -> Self {
        Self::new(false)
    }
}

impl PageInflate {
    /// Of zlib or, if `raw`, deflate streams.
    pub fn new(raw: bool) -> Self {
        Self { stream: Decompress::new(!raw), raw }
    }

    /// Decompress the stream that `input` begins with into `page`, which it must fill. Returns the length of the stream.
    pub fn run(&mut self, input: &[u8], page: &mut [u8]) -> Result<usize> {
        self.stream.reset(!self.raw);
        let status = self.stream.decompress(input, page, FlushDecompress::Finish).map_err(|e| bad(format!("zlib: {e}")))?;
        let done = self.stream.total_out();
        match status {
            Status::StreamEnd if done == page.len() as u64 => Ok(usize::try_from(self.stream.total_in()).unwrap_or(input.len())),
            Status::StreamEnd => Err(bad(format!("zlib: only {done} of {} bytes come out", page.len()))),
            _ if done == page.len() as u64 => Err(bad(format!("zlib: more than {done} bytes come out, or the stream does not end"))),
            _ => Err(bad(format!("zlib: the stream ends early, after {done} bytes"))),
        }
    }

    /// The same of a stream that is all of `input`, as one that was sent with its length must be.
    pub fn run_all(&mut self, input: &[u8], page: &mut [u8]) -> Result<()> {
        match self.run(input, page)? {
            used if used == input.len() => Ok(()),
            used => Err(bad(format!("zlib: {} bytes follow the end of the stream", input.len() - used))),
        }
    }
}

/// A page as a whole zlib stream, within the bound that every reader accepts (spec/stream 6.1).
///
/// # Errors
/// `bad-page`: a level that zlib does not have (it has 0 to 9).
pub fn deflate_page(page: &[u8], level: i32) -> Result<Vec<u8>> {
    let mut out = vec![0; page.len() + (page.len() >> 12) + (page.len() >> 14) + (page.len() >> 25) + 13];
    let length = match PageDeflate::new(level)?.run(page, &mut out)? {
        Some(length) => length,
        // The fastest levels lengthen what does not shrink; stored it fits.
        None => PageDeflate::new(0)?.run(page, &mut out)?.ok_or_else(|| bad("zlib: a stored page is longer than its bound"))?,
    };
    out.truncate(length);
    Ok(out)
}

/// Decompress `input`, a whole zlib (or, if `raw`, deflate) stream, into `page`, which it must fill. Bytes behind its end are ignored.
pub fn inflate_page(input: &[u8], raw: bool, page: &mut [u8]) -> Result<()> {
    PageInflate::new(raw).run(input, page).map(drop)
}
