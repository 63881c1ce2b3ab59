//! Discard lists, obeyed: two small blocks of which some pages have come, and commands that take some of them back.
//!
//! Input: read as which pages have come and as commands, nearly all of them right. Seeds: none are needed (`arbitrary` makes them).
//! Run: `make fuzz TARGET=discards TIME=3600` (where the kernel gives no userfaultfd only the decoding is tried)
//! Asserts: the decoder refuses exactly the payloads that are wrong; exactly the pages named are dropped, read zero and count as missing;
//! a range outside its block drops nothing.

use std::cell::LazyCell;
use std::sync::Arc;

use arbitrary::Unstructured;
use qmig_core::postcopy::Memory;
use qmig_core::ram::Block;
use qmig_core::wire::{Command, Decoder, Event, Input, NullSink};

const PAGE: u64 = 4096;
const BLOCKS: [(&str, u64); 2] = [("ram", 16), ("rom", 3)];

thread_local! {
    static MEMORY: LazyCell<Option<Arc<Memory>>> = LazyCell::new(|| {
        let blocks: Vec<_> = BLOCKS.iter().map(|(name, pages)| Block::anon(name, pages * PAGE).unwrap()).collect();
        Memory::new(&blocks).ok()
    });
}

pub fn run(data: &[u8]) -> bool {
    MEMORY.with(|memory| play(&mut Unstructured::new(data), memory.as_ref()).is_ok())
}

fn play(u: &mut Unstructured<'_>, memory: Option<&Arc<Memory>>) -> arbitrary::Result<()> {
    let mut come: Vec<Vec<bool>> = BLOCKS.iter().map(|(_, pages)| vec![false; *pages as usize]).collect();
    if let Some(memory) = memory {
        memory.prepare().unwrap();
        for (block, pages) in come.iter_mut().enumerate() {
            for (page, come) in pages.iter_mut().enumerate() {
                *come = u.arbitrary()?;
                if *come {
                    memory.block(block).put_page(page as u64 * PAGE, &[0x77; PAGE as usize]).unwrap();
                    memory.note_received(block, page);
                }
            }
        }
    }
    for _ in 0..u.int_in_range(1..=8)? {
        let (payload, right) = payload(u)?;
        let Some((name, ranges)) = decode(&payload) else {
            assert!(!right, "refused: {payload:02x?}");
            continue;
        };
        assert!(right, "accepted: {payload:02x?}");
        let Some(memory) = memory else { continue };
        let Some(block) = memory.index_of(&name) else { continue };
        for (start, length) in ranges {
            let inside = start.checked_add(length).is_some_and(|end| end <= BLOCKS[block].1 * PAGE);
            assert_eq!(memory.discard(block, start, length).is_ok(), inside, "{start:#x}+{length:#x}");
            if inside {
                come[block][(start / PAGE) as usize..((start + length) / PAGE) as usize].fill(false);
            }
        }
        compare(memory, &come);
    }
    Ok(())
}

fn compare(memory: &Memory, come: &[Vec<bool>]) {
    for (block, pages) in come.iter().enumerate() {
        for (page, come) in pages.iter().enumerate() {
            let mut bytes = [1; PAGE as usize];
            memory.block(block).read(page as u64 * PAGE, &mut bytes).unwrap();
            assert!(bytes == [if *come { 0x77 } else { 0 }; PAGE as usize], "page {page} of block {block}");
            assert_eq!(memory.is_received(block, page as u64 * PAGE), *come, "page {page} of block {block}");
        }
    }
}

/// A payload, and whether it is right.
fn payload(u: &mut Unstructured<'_>) -> arbitrary::Result<(Vec<u8>, bool)> {
    let rarely = |u: &mut Unstructured<'_>| u.ratio(1, 16);
    let name: &[u8] = u.choose(&[b"ram".as_slice(), b"rom", b"other", b""])?;
    let (version, end) = (u8::from(rarely(u)?), u8::from(rarely(u)?));
    let mut payload = [&[version, name.len() as u8], name, &[end]].concat();
    let mut right = version == 0 && end == 0 && !name.is_empty();
    let count = u.int_in_range(0..=4)?;
    for _ in 0..count {
        let (start, length) = if rarely(u)? {
            (u.arbitrary::<u64>()?, u.arbitrary::<u64>()?)
        } else {
            (u.int_in_range(0..=17)? * PAGE, u.int_in_range(0..=17)? * PAGE)
        };
        right &= start % PAGE == 0 && length % PAGE == 0 && length > 0 && start.checked_add(length).is_some();
        payload.extend(start.to_be_bytes());
        payload.extend(length.to_be_bytes());
    }
    if rarely(u)? {
        let behind = u.int_in_range(1..=15)?;
        payload.resize(payload.len() + behind, 0);
        right = false;
    }
    // The shortest list has a name of one byte and one range.
    Ok((payload, right && count > 0))
}

fn decode(payload: &[u8]) -> Option<(Vec<u8>, Vec<(u64, u64)>)> {
    let head = [b"QEVM\0\0\0\x03\x08\0\x06".as_slice(), &(payload.len() as u16).to_be_bytes()].concat();
    let mut decoder = Decoder::offline(Input::from_bytes([&head, payload].concat(), 0), None);
    match decoder.next(&mut NullSink) {
        Ok(Event::Command(Command::RamDiscard { name, ranges }, _)) => Some((name, ranges)),
        Ok(event) => panic!("{event:?}"),
        Err(_) => None,
    }
}
