//! RAM blocks, the block list, bitmaps, dirty logs.
//!
//! A `Block` is a named range of guest memory; a `RamList` is all of one machine in migration order. What changes while a
//! migration runs is noticed by a `DirtyLog` and kept in `Bitmap`s of one bit a target page.

pub mod bitmap;
pub mod block;
pub mod dirty;
pub mod list;
pub mod rate;
pub mod target;

pub use bitmap::{AtomicBitmap, Bitmap};
pub use block::{Backing, Block, BlockOptions};
pub(crate) use dirty::Lease;
pub use dirty::{DirtyLog, DirtyLogKind, DirtyMode};
pub use list::RamList;
pub use target::PageTarget;

pub use crate::sys::guest::GuestRange;
pub use crate::sys::mmap::PAGE as TARGET_PAGE;

/// `TARGET_PAGE` as a shift.
pub const TARGET_PAGE_BITS: u32 = TARGET_PAGE.trailing_zeros();

/// Pages that `bytes` fill or touch.
pub(crate) fn pages(bytes: u64) -> usize {
    // A length of mapped memory fits the address space.
    usize::try_from(bytes.div_ceil(TARGET_PAGE as u64)).unwrap_or(usize::MAX)
}
