//! Compressed pages and packets: garbage, bombs, dictionaries, frames one after another.
//!
//! Input: one byte that chooses the decoder (zlib page, deflate page, zstd page, endless streams in packets, there and back), then its
//! bytes. Seeds: `python3 fuzz/make_seeds.py`.
//! Run: `make fuzz TARGET=pages TIME=3600` (zstd is C: the address sanitizer sees only what Rust hands it)
//! Asserts: what is accepted fills the page, and the same a second time; nothing behind it is written; a page that our own encoder made
//! comes back as it was.

use qmig_core::page::{Inflate, Unzstd, deflate_page, inflate_page, unzstd_page, zstd_page};

const PAGE: usize = 4096;

pub fn run(data: &[u8]) -> bool {
    let Some((&choice, rest)) = data.split_first() else { return false };
    match choice % 5 {
        0 => twice(|page| inflate_page(rest, false, page).is_ok()),
        1 => twice(|page| inflate_page(rest, true, page).is_ok()),
        2 => twice(|page| unzstd_page(rest, page).is_ok()),
        3 => packets(rest),
        _ => there_and_back(rest),
    }
    true
}

/// A decoder has no state that outlives a page.
fn twice(decode: impl Fn(&mut [u8]) -> bool) {
    let (mut first, mut second) = (vec![1; PAGE], vec![2; PAGE]);
    let accepted = decode(&mut first);
    assert_eq!(decode(&mut second), accepted);
    assert!(!accepted || first == second, "accepted without filling the page");
}

/// One stream over several packets, each with room for one byte too many. After an error there is no next packet.
fn packets(bytes: &[u8]) {
    let Ok(mut zstd) = Unzstd::new() else { return };
    let mut zlib = Inflate::default();
    let (mut out, mut zlib_goes_on, mut zstd_goes_on) = (vec![0; PAGE + 1], true, true);
    for packet in bytes.split(|byte| *byte == 0xa5) {
        zlib_goes_on = zlib_goes_on && zlib.run(packet, &mut out).is_ok();
        zstd_goes_on = zstd_goes_on && zstd.run(packet, &mut out).is_ok();
    }
}

fn there_and_back(bytes: &[u8]) {
    let mut page = bytes.to_vec();
    page.resize(PAGE, 0);
    let mut back = vec![0xee; PAGE];
    let level = i32::from(bytes.first().copied().unwrap_or(0) % 10);
    assert!(deflate_page(&page, level).is_ok_and(|packed| inflate_page(&packed, false, &mut back).is_ok()) && back == page);
    back.fill(0xee);
    assert!(zstd_page(&page, level).is_ok_and(|packed| unzstd_page(&packed, &mut back).is_ok()) && back == page);
}
