//! XBZRLE in both directions. The first byte's lowest bit chooses which.
//!
//! Decoding: the rest is a delta for a fixed page; what is accepted, refused and patched is what the slow decoder says. Encoding: the
//! rest is cut into runs that change a page; every instruction set writes the bytes, and overflows, as the slow encoder does, and the
//! decoder makes the page of them.
#![no_main]

#[path = "../../rust/core/tests/slow/mod.rs"]
mod slow;

use libfuzzer_sys::fuzz_target;
use qmig_core::page::{Delta, XbzrleEncoder, xbzrle_decode};
use qmig_core::sys::flips::Level;

const PAGE: usize = 4096;

fuzz_target!(|data: &[u8]| {
    let Some((&choice, rest)) = data.split_first() else { return };
    let old: Vec<u8> = (0..PAGE).map(|at| u8::try_from(at / 7 % 251).unwrap_or(0)).collect();
    if choice & 1 == 0 { decode(rest, old) } else { encode(rest, &old, choice) }
});

fn decode(delta: &[u8], old: Vec<u8>) {
    let mut page = old.clone();
    let fast = xbzrle_decode(delta, &mut page);
    match slow::decode(delta, &old) {
        Ok((expected, end)) => assert!(fast.ok() == Some(end) && page == expected),
        Err(why) => assert!(fast.is_err(), "accepted although {why}"),
    }
}

fn encode(runs: &[u8], old: &[u8], choice: u8) {
    let mut new = old.to_vec();
    let mut at = 0;
    // Each run: how much is skipped (two bytes), how much is changed, by what.
    for run in runs.chunks_exact(4) {
        at += usize::from(u16::from_le_bytes([run[0], run[1]]) & 0x1fff);
        let end = (at + usize::from(run[2])).min(PAGE);
        new[at.min(end)..end].iter_mut().for_each(|byte| *byte ^= run[3]);
        at = end;
    }
    // A page's room, or less.
    let room = if choice & 2 == 0 { PAGE } else { usize::from(choice) * 8 };
    let expected = slow::encode(old, &new, room);
    for level in Level::all() {
        let mut delta = vec![0xee; room];
        let found = match XbzrleEncoder::new(level).encode(old, &new, &mut delta) {
            Delta::Length(length) => Ok(&delta[..length]),
            Delta::Equal => Err(slow::None::Equal),
            Delta::Overflow => Err(slow::None::Overflow),
        };
        assert_eq!(found, expected.as_deref().map_err(|none| *none), "{level:?}");
    }
    if let Ok(delta) = expected {
        let mut page = old.to_vec();
        assert!(xbzrle_decode(&delta, &mut page).is_ok() && page == new);
    }
}
