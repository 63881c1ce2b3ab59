//! XBZRLE (spec/stream 5): a page as the bytes that differ from its last version, in runs.

use super::bad;
use crate::sys::flips::{self, Level};
use crate::{Error, Result};

/// The largest number that two bytes of seven bits can hold, and so the longest run.
const RUN_MAX: usize = 0x3fff;

/// The largest page: from here on a changed page may hold a run that cannot be written.
pub const XBZRLE_PAGE_MAX: usize = RUN_MAX + 1;

/// Bytes written at a time where a run of changed bytes is short, as most are.
const SHORT: usize = 8;

/// Room for two numbers, a short run, and what the decoder asks for behind them.
const MOST: usize = 2 + 1 + SHORT + 2;

/// What a page has become.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Delta {
    /// It is as it was.
    Equal,
    /// The delta's length.
    Length(usize),
    /// The delta is longer than the room for it: the page itself is to be sent.
    Overflow,
}

/// Makes deltas. Holds what it needs for that, so that a page costs no allocation.
#[derive(Debug)]
pub struct XbzrleEncoder {
    level: Level,
    flips: Vec<u16>,
}

impl Default for XbzrleEncoder {
    fn default() -> Self {
        Self::new(Level::best())
    }
}

impl XbzrleEncoder {
    /// An encoder that uses these instructions; all give the same bytes.
    #[must_use]
    pub fn new(level: Level) -> Self {
        Self { level, flips: vec![0; flips::room(XBZRLE_PAGE_MAX)] }
    }

    /// Write to `delta` what makes `new` of `old`. An overflow is decided in QEMU's order (spec/stream 5.3), so that the same
    /// pages are sent whole.
    ///
    /// # Panics
    /// The pages differ in length or are longer than [`XBZRLE_PAGE_MAX`].
    pub fn encode(&mut self, old: &[u8], new: &[u8], delta: &mut [u8]) -> Delta {
        assert!(old.len() == new.len() && new.len() <= XBZRLE_PAGE_MAX, "pages of {} and {} bytes", old.len(), new.len());
        if delta.len() < 2 && !new.is_empty() {
            return Delta::Overflow; // even where the pages are equal
        }
        let count = self.level.flips(old, new, &mut self.flips);
        if count == 0 {
            return Delta::Equal;
        }
        let (mut done, mut end) = (0, 0);
        for run in self.flips[..count].as_chunks::<2>().0 {
            let first = usize::from(run[0]);
            let (skipped, changed) = (first - end, usize::from(run[1]) - first);
            end = first + changed;
            // All that may be written here, and what the next look at the room asks for, while there is room enough.
            if changed <= SHORT
                && let Some(room) = delta.get_mut(done..done + MOST)
                && let Some(bytes) = new.get(first..first + SHORT)
            {
                let (number, length) = number_of(skipped);
                room[..2].copy_from_slice(&number);
                room[length] = changed.to_le_bytes()[0];
                room[length + 1..length + 1 + SHORT].copy_from_slice(bytes);
                done += length + 1 + changed;
                continue;
            }
            let Some(next) = long_run(skipped, &new[first..end], delta, done) else { return Delta::Overflow };
            done = next;
        }
        // The equal rest is not written, but looked at as if it were.
        if end < new.len() && done + 2 > delta.len() { Delta::Overflow } else { Delta::Length(done) }
    }
}

/// A run of any length; None if it does not fit.
fn long_run(skipped: usize, changed: &[u8], delta: &mut [u8], done: usize) -> Option<usize> {
    let after_skipped = put_number(skipped, delta.get_mut(done..done + 2)?) + done;
    let start = put_number(changed.len(), delta.get_mut(after_skipped..after_skipped + 2)?) + after_skipped;
    delta.get_mut(start..start + changed.len())?.copy_from_slice(changed);
    (changed.len() <= RUN_MAX).then_some(start + changed.len())
}

/// A number in its shortest form, and its length.
#[inline]
fn number_of(value: usize) -> ([u8; 2], usize) {
    let long = usize::from(value >= 0x80);
    let [low, high, ..] = (value & 0x7f | long << 7 | value >> 7 << 8).to_le_bytes();
    ([low, high], 1 + long)
}

fn put_number(value: usize, room: &mut [u8]) -> usize {
    let (number, length) = number_of(value);
    room[..length].copy_from_slice(&number[..length]);
    length
}

/// Patch `page` in place with `delta`; returns the position behind the last changed byte. Runs before an error have been written.
pub fn xbzrle_decode(delta: &[u8], page: &mut [u8]) -> Result<usize> {
    let (mut from, mut to) = (0, 0);
    while from < delta.len() {
        // Most runs change one byte, and most numbers are as long as the ones before: guessed, where waiting would take longer.
        let short = match delta.get(from..from + 4) {
            Some(&[skipped @ 1..0x80, 1, byte, _]) => Some((usize::from(skipped), byte, 3)),
            Some(&[low @ 0x80..=0xff, high @ 1..0x80, 1, byte]) => Some((usize::from(low & 0x7f) | usize::from(high) << 7, byte, 4)),
            _ => None,
        };
        if let Some((skipped, byte, length)) = short
            && let Some(place) = page.get_mut(to + skipped)
        {
            *place = byte;
            from += length;
            to += skipped + 1;
            continue;
        }
        let first = from == 0;
        let skipped = number(delta, &mut from)?;
        if skipped == 0 && !first {
            return Err(bad("an XBZRLE run of no unchanged bytes that is not the first"));
        }
        to += skipped;
        if to > page.len() {
            return Err(outside());
        }
        let changed = number(delta, &mut from)?;
        if changed == 0 {
            return Err(bad("an XBZRLE run of no changed bytes"));
        }
        let source = delta.get(from..from + changed).ok_or_else(|| bad("the delta ends inside an XBZRLE run"))?;
        page.get_mut(to..to + changed).ok_or_else(outside)?.copy_from_slice(source);
        from += changed;
        to += changed;
    }
    Ok(to)
}

/// A number of one or two bytes, seven bits each. Two bytes must be there in any case: something follows every number.
fn number(delta: &[u8], at: &mut usize) -> Result<usize> {
    match *delta.get(*at..).unwrap_or_default() {
        [low, _, ..] if low < 0x80 => {
            *at += 1;
            Ok(usize::from(low))
        }
        [low, high, ..] if high < 0x80 => {
            *at += 2;
            Ok(usize::from(low & 0x7f) | usize::from(high) << 7)
        }
        [_, _, ..] => Err(bad("an XBZRLE number of more than two bytes")),
        _ => Err(bad("the delta ends inside an XBZRLE number")),
    }
}

#[cold]
fn outside() -> Error {
    bad("an XBZRLE run leaves the page")
}
