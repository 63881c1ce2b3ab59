//! XBZRLE (spec/stream 5): a page as the bytes that differ from its last version, in runs.

use super::bad;
use crate::{Error, Result};

/// Patch `page` in place with `delta`; returns the position behind the last changed byte. Runs before an error have been written.
pub fn xbzrle_decode(delta: &[u8], page: &mut [u8]) -> Result<usize> {
    let (mut from, mut to) = (0, 0);
    while from < delta.len() {
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
