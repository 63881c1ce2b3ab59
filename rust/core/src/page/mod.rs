//! One page in, bytes out, and back: the forms in which a page travels other than as it is.
//!
//! What comes from the wire is hostile: no decoder writes past its output or allocates by what the input announces.

mod cache;
mod endless;
mod inflate;
mod many;
mod pool;
mod xbzrle;
mod zstd;

pub use cache::PageCache;
pub use endless::Endless;
pub use inflate::{Deflate, Inflate, PageDeflate, PageInflate, deflate_page, inflate_page};
pub use many::CompressPool;
pub use pool::{Batch, Pool, Taken};
pub use xbzrle::{Delta, XBZRLE_PAGE_MAX, XbzrleEncoder, xbzrle_decode};
pub use zstd::{Unzstd, Zstd, unzstd_page, zstd_page};

use crate::{Error, ErrorKind};

/// A page or packet that does not decode.
#[cold]
fn bad(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::BadPage, message)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::cast_possible_truncation)]
mod tests;
