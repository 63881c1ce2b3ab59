//! One page in, bytes out, and back: the forms in which a page travels other than as it is. So far only their decoders.
//!
//! What comes from the wire is hostile: no decoder writes past its output or allocates by what the input announces.

mod inflate;
mod xbzrle;
mod zstd;

pub use inflate::{Inflate, inflate_page};
pub use xbzrle::xbzrle_decode;
pub use zstd::Unzstd;

use crate::{Error, ErrorKind};

/// A page or packet that does not decode.
#[cold]
fn bad(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::BadPage, message)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::cast_possible_truncation)]
mod tests;
