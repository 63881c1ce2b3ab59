//! The bitmaps.

#[path = "../../core/src/ram/bitmap.rs"]
mod bitmap;
pub mod model;

pub use bitmap::{AtomicBitmap, Bitmap};

/// Bytes of a target page.
pub const TARGET_PAGE: usize = 4096;
