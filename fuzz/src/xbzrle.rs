//! XBZRLE in both directions, against the slow codec that says what the specification says, byte for byte.
//!
//! Input: one byte whose lowest bit chooses the direction. Decoding: the rest is a delta for a fixed page. Encoding: the rest is cut into
//! runs (two bytes to skip, one how many change, one by what). Seeds: `python3 fuzz/make_seeds.py`.
//! Run: `make fuzz TARGET=xbzrle TIME=3600`
//! Asserts: what is accepted, refused and patched is what the slow decoder says; every instruction set writes the bytes, and overflows,
//! as the slow encoder does, and the decoder makes the page of them.

use qmig_core::page::{Delta, XbzrleEncoder, xbzrle_decode};
use qmig_core::sys::flips::Level;

use super::slow;

const PAGE: usize = 4096;

pub fn run(data: &[u8]) -> bool {
    let Some((&choice, rest)) = data.split_first() else { return false };
    let old: Vec<u8> = (0..PAGE).map(|at| u8::try_from(at / 7 % 251).unwrap_or(0)).collect();
    if choice & 1 == 0 {
        decode(rest, &old);
    } else {
        encode(rest, &old, choice);
    }
    true
}

fn decode(delta: &[u8], old: &[u8]) {
    let mut page = old.to_vec();
    let fast = xbzrle_decode(delta, &mut page);
    match slow::decode(delta, old) {
        Ok((expected, end)) => assert!(fast.ok() == Some(end) && page == expected),
        Err(why) => assert!(fast.is_err(), "accepted although {why}"),
    }
}

fn encode(runs: &[u8], old: &[u8], choice: u8) {
    let mut new = old.to_vec();
    let mut at = 0;
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
