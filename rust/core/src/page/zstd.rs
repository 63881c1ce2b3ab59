//! zstd: the endless frame of a multifd channel (spec/stream 12.5), and single pages.

use std::fmt;

use zstd::stream::raw::{DParameter, Decoder, Encoder, InBuffer, Operation, OutBuffer};

use super::bad;
use crate::wire::limits::ZSTD_WINDOW_LOG_MAX;
use crate::{Error, Result};

/// A frame that goes on from packet to packet. Its window is allocated as it is filled, `ZSTD_WINDOW_LOG_MAX` at most.
pub struct Unzstd(Decoder<'static>);

impl fmt::Debug for Unzstd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Unzstd").finish_non_exhaustive()
    }
}

impl Unzstd {
    /// At the begin of a frame.
    pub fn new() -> Result<Self> {
        let bounded = Decoder::new().and_then(|mut decoder| {
            decoder.set_parameter(DParameter::WindowLogMax(ZSTD_WINDOW_LOG_MAX))?;
            Ok(Self(decoder))
        });
        bounded.map_err(|e| Error::io("zstd", e))
    }

    /// Decompress all of `input` into `out`, which has one byte more than what is to come out: nothing may come there.
    pub fn run(&mut self, input: &[u8], out: &mut [u8]) -> Result<()> {
        let wanted = out.len() - 1;
        let mut from = InBuffer::around(input);
        let mut to = OutBuffer::around(out);
        loop {
            let before = (from.pos(), to.pos());
            self.0.run(&mut from, &mut to).map_err(|e| bad(format!("zstd: {e}")))?;
            let (read, done) = (from.pos(), to.pos());
            if done > wanted {
                return Err(bad(format!("zstd: more than {wanted} bytes come out")));
            }
            if read == input.len() && done == wanted {
                return Ok(());
            }
            if (read, done) == before {
                return Err(bad(format!("zstd: {done} bytes come out of {read}, expected {wanted} of {}", input.len())));
            }
        }
    }
}

/// The other side of such a frame.
pub struct Zstd(Encoder<'static>);

impl fmt::Debug for Zstd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Zstd").finish_non_exhaustive()
    }
}

impl Zstd {
    /// At the begin of a frame, with one of zstd's levels.
    pub fn new(level: i32) -> Result<Self> {
        Encoder::new(level).map(Self).map_err(|e| Error::io("zstd", e))
    }

    /// Compress all of `input` into the front of `out`; how much came out. With `last` everything so far has come out; without it some may
    /// be kept for later.
    pub fn run(&mut self, input: &[u8], last: bool, out: &mut [u8]) -> Result<usize> {
        let mut from = InBuffer::around(input);
        let mut to = OutBuffer::around(out);
        loop {
            let kept = if from.pos() < input.len() {
                self.0.run(&mut from, &mut to).map(|_| 1)
            } else if last {
                self.0.flush(&mut to)
            } else {
                Ok(0)
            };
            if kept.map_err(|e| bad(format!("zstd: {e}")))? == 0 {
                return Ok(to.pos());
            }
            if to.pos() == to.capacity() {
                return Err(bad(format!("zstd: more than {} bytes come out", to.pos())));
            }
        }
    }
}

/// A page as one frame.
///
/// # Errors
/// `bad-page`: a level that zstd does not have (it has -131072 to 22, 0 being its default).
pub fn zstd_page(page: &[u8], level: i32) -> Result<Vec<u8>> {
    if !zstd::compression_level_range().contains(&level) {
        return Err(bad(format!("zstd has levels {:?}, not {level}", zstd::compression_level_range())));
    }
    zstd::bulk::compress(page, level).map_err(|e| bad(format!("zstd: {e}")))
}

/// Decompress `input`, one frame, into `page`, which it must fill.
pub fn unzstd_page(input: &[u8], page: &mut [u8]) -> Result<()> {
    let wanted = page.len();
    let frame = zstd::zstd_safe::find_frame_compressed_size(input);
    if frame != Ok(input.len()) {
        return Err(bad(format!("zstd: {} bytes are not one whole frame", input.len())));
    }
    let done = zstd::bulk::decompress_to_buffer(input, page).map_err(|e| bad(format!("zstd: {e}")))?;
    if done == wanted { Ok(()) } else { Err(bad(format!("zstd: only {done} of {wanted} bytes come out"))) }
}
