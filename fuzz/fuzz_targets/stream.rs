//! A whole stream into a sink that only checks. The first byte chooses the pieces in which the rest arrives.
//!
//! Found are: panics, overflows, no progress, offsets that go back, pages outside their block, errors without a place, anything
//! after an error, and any difference between bytes at hand and the same bytes in pieces.
#![no_main]

#[path = "../../rust/core/tests/drive/mod.rs"]
mod drive;

use libfuzzer_sys::{Corpus, fuzz_target};

fuzz_target!(|data: &[u8]| -> Corpus {
    let Some((&choice, bytes)) = data.split_first() else { return Corpus::Reject };
    let sizes: &[usize] = match choice % 4 {
        0 => &[1],
        1 => &[7, 4096, 2],
        2 => &[4095, 13],
        _ => &[1 << 16],
    };
    // Refused before the first element: it has nothing for others to build on.
    if drive::drive_both(bytes, sizes).is_dull() { Corpus::Reject } else { Corpus::Keep }
});
