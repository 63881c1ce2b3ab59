//! The endless stream of a multifd channel (spec/stream 12.5), whichever codec it has.

use super::{Inflate, Unzstd};
use crate::wire::multifd::Method;
use crate::{Error, ErrorKind, Result};

/// Begun by the first packet with data; it never ends and never changes its codec.
#[derive(Debug, Default)]
pub enum Endless {
    /// No packet yet.
    #[default]
    Unbegun,
    /// As zlib.
    Zlib(Box<Inflate>),
    /// As zstd.
    Zstd(Unzstd),
}

impl Endless {
    /// Decompress a packet's `data` into `out`, which has one byte more than what is to come out: nothing may come there.
    ///
    /// # Errors
    /// `bad-flags`: `method` is another one than before; `unsupported`: it has no endless stream; `bad-page`: as the codec says.
    pub fn run(&mut self, method: Method, data: &[u8], out: &mut [u8]) -> Result<()> {
        if matches!(self, Self::Unbegun) {
            *self = match method {
                Method::Zlib => Self::Zlib(Box::default()),
                Method::Zstd => Self::Zstd(Unzstd::new()?),
                Method::None | Method::Qpl | Method::Uadk => {
                    return Err(Error::new(ErrorKind::Unsupported, "a compression that is not built here"));
                }
            };
        }
        match (method, self) {
            (Method::Zlib, Self::Zlib(stream)) => stream.run(data, out),
            (Method::Zstd, Self::Zstd(stream)) => stream.run(data, out),
            _ => Err(Error::new(ErrorKind::BadFlags, "the channel's compression changes within the stream")),
        }
    }
}
