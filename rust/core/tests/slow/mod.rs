//! XBZRLE once more, slow and obvious, step by step as spec/stream 5.3 and 5.4 say it: what the fast code is compared with, by the
//! tests of `page` and by the fuzz target `xbzrle`.
#![allow(missing_docs, clippy::cast_possible_truncation, clippy::missing_errors_doc)]

/// Why there is no delta.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum None {
    Equal,
    Overflow,
}

pub fn encode(old: &[u8], new: &[u8], room: usize) -> Result<Vec<u8>, None> {
    let number = |value: usize| if value < 0x80 { vec![value as u8] } else { vec![value as u8 | 0x80, (value >> 7) as u8] };
    let (mut delta, mut at) = (Vec::new(), 0);
    while at < new.len() {
        if delta.len() + 2 > room {
            return Err(None::Overflow);
        }
        let skipped = (at..new.len()).take_while(|i| old[*i] == new[*i]).count();
        if skipped == new.len() {
            return Err(None::Equal);
        }
        at += skipped;
        if at == new.len() {
            break;
        }
        delta.extend(number(skipped));
        if delta.len() + 2 > room {
            return Err(None::Overflow);
        }
        let changed = (at..new.len()).take_while(|i| old[*i] != new[*i]).count();
        delta.extend(number(changed));
        if delta.len() + changed > room {
            return Err(None::Overflow);
        }
        delta.extend(&new[at..at + changed]);
        at += changed;
    }
    if new.is_empty() { Err(None::Equal) } else { Ok(delta) }
}

/// The page after the delta and the position behind the last run; an error says which step refuses.
pub fn decode(delta: &[u8], page: &[u8]) -> Result<(Vec<u8>, usize), &'static str> {
    let mut page = page.to_vec();
    let (mut from, mut to) = (0, 0);
    let number = |from: &mut usize| {
        if delta.len() - *from < 2 {
            return Err("fewer than two bytes are left");
        }
        let low = usize::from(delta[*from]);
        *from += 1;
        if low < 0x80 {
            return Ok(low);
        }
        let high = usize::from(delta[*from]);
        *from += 1;
        if high < 0x80 { Ok((low - 0x80) + 0x80 * high) } else { Err("a number of more than two bytes") }
    };
    while from < delta.len() {
        let begin = from;
        let skipped = number(&mut from)?;
        if skipped == 0 && begin > 0 {
            return Err("nothing is skipped");
        }
        to += skipped;
        if to > page.len() {
            return Err("more is skipped than there is");
        }
        let changed = number(&mut from)?;
        if changed == 0 {
            return Err("nothing is changed");
        }
        if to + changed > page.len() || from + changed > delta.len() {
            return Err("more is changed than there is");
        }
        for _ in 0..changed {
            page[to] = delta[from];
            to += 1;
            from += 1;
        }
    }
    Ok((page, to))
}
