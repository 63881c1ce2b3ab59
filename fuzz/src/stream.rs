//! A whole stream into a sink that checks everything a decoder promises; slower than `null` and stricter.
//!
//! Input: one byte that chooses the pieces in which the rest arrives, then a main-channel stream. Seeds: `python3 fuzz/make_seeds.py`.
//! Run: `make fuzz TARGET=stream TIME=3600`
//! Asserts: progress; offsets never go back; pages aligned and inside their block; every error has a place in the stream and nothing
//! comes after it; bytes in pieces give what the same bytes at once give; who accepts more reads no less.

use super::{drive, sizes};

pub fn run(data: &[u8]) -> bool {
    let Some((&choice, bytes)) = data.split_first() else { return false };
    // Refused before the first element: it has nothing for others to build on.
    !drive::drive_both(bytes, sizes(choice)).is_dull()
}
