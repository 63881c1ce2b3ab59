//! A RAM section alone: page records in every form for two small blocks, against a slow reader that says what spec/stream 4 to 6 say.
//!
//! Input: one byte (which forms are accepted, which pieces), then records up to the EOS word. Seeds: `python3 fuzz/make_seeds.py`.
//! Run: `make fuzz TARGET=ram TIME=3600`
//! Asserts: the decoder accepts what the slow reader accepts and hands out the same records, at once and in pieces.

use qmig_core::wire::{Accept, BlockEntry, ByteSource, CodedPage, Decoder, Event, Input, Output, PageSink};
use qmig_core::{Error, Result};

use super::drive::Pieces;
use super::sizes;

const PAGE: usize = 4096;
const BLOCKS: [(&[u8], u64); 2] = [(b"ram", 8 * PAGE as u64), (b"rom", 2 * PAGE as u64)];

/// One record: block, offset, flag, bytes. A flush is one of no block.
type Record = (usize, u64, u64, Vec<u8>);

pub fn run(data: &[u8]) -> bool {
    let Some((&choice, bytes)) = data.split_first() else { return false };
    let accept = Accept::from_bits_truncate(choice >> 2 & 7);
    let (expected, right) = slow(bytes, accept);
    let (found, error) = fast(bytes, accept);
    assert!(found == expected, "{} records, and the slow reader has {}", found.len(), expected.len());
    assert_eq!(error.is_none(), right, "{error:?}");
    let apart = fast(Pieces { rest: bytes, sizes: sizes(choice), turn: 0 }, accept);
    assert!(apart == (found, error), "the same bytes in pieces");
    !expected.is_empty()
}

fn fast(source: impl ByteSource, accept: Accept) -> (Vec<Record>, Option<Error>) {
    let mut head = Output::new();
    head.file_header();
    head.section_start(2, b"ram", 0, 4);
    head.mem_size(BLOCKS.iter().map(|block| block.1).sum());
    for (name, length) in BLOCKS {
        head.block(name, length);
    }
    head.eos();
    let mut sink = Sink::default();
    let mut decoder = Decoder::offline(Input::from_bytes(head.into_vec(), 0), Some(false)).accepting(accept);
    assert!(matches!(decoder.next(&mut sink), Ok(Event::RamSection { .. })));
    let ended = decoder.announced_blocks().channel(source).run(&mut sink);
    if let Ok(counts) = &ended {
        let of = |flag| sink.0.iter().filter(|record| record.2 == flag).count() as u64;
        assert_eq!((counts.normal, counts.zero, counts.xbzrle, counts.compressed), (of(8), of(2), of(0x40), of(0x100)));
    }
    (sink.0, ended.err())
}

#[derive(Default)]
struct Sink(Vec<Record>);

impl PageSink for Sink {
    fn blocks(&mut self, list: &[BlockEntry]) -> Result<()> {
        assert_eq!(list.len(), BLOCKS.len());
        Ok(())
    }

    fn zero(&mut self, block: usize, offset: u64, fill: u8) -> Result<()> {
        self.0.push((block, offset, 2, vec![fill]));
        Ok(())
    }

    fn page(&mut self, block: usize, offset: u64, bytes: &[u8]) -> Result<()> {
        self.0.push((block, offset, 8, bytes.to_vec()));
        Ok(())
    }

    fn coded(&mut self, block: usize, offset: u64, page: CodedPage<'_>) -> Result<()> {
        let (flag, bytes) = match page {
            CodedPage::Xbzrle(bytes) => (0x40, bytes),
            CodedPage::Zlib(bytes) => (0x100, bytes),
        };
        self.0.push((block, offset, flag, bytes.to_vec()));
        Ok(())
    }

    fn flush(&mut self) -> Result<()> {
        self.0.push((usize::MAX, 0, 0x200, Vec::new()));
        Ok(())
    }
}

/// All records up to the end or the first that is refused, and which of both it was.
fn slow(mut bytes: &[u8], accept: Accept) -> (Vec<Record>, bool) {
    let (mut records, mut current) = (Vec::new(), None);
    loop {
        match one(&mut bytes, &mut current, accept) {
            Some(Some(record)) => records.push(record),
            Some(None) => return (records, true),
            None => return (records, false),
        }
    }
}

/// The next record: none where it is refused, none inside where it is the end.
#[allow(clippy::option_option)]
fn one(rest: &mut &[u8], current: &mut Option<usize>, accept: Accept) -> Option<Option<Record>> {
    let word = u64::from_be_bytes(take(rest, 8)?.try_into().ok()?);
    let (offset, flags, continues) = (word & !0xfff, word & 0xfff & !0x20, word & 0x20 != 0);
    match flags {
        0x10 => return Some(None),
        0x200 if accept.contains(Accept::MULTIFD) => return Some(Some((usize::MAX, 0, flags, Vec::new()))),
        0x02 | 0x08 => {}
        0x40 if accept.contains(Accept::XBZRLE) => {}
        0x100 if accept.contains(Accept::COMPRESS) => {}
        _ => return None,
    }
    if !continues {
        let length = take(rest, 1)?[0];
        let name = take(rest, length.into())?;
        *current = Some(BLOCKS.iter().position(|block| block.0 == name)?);
    }
    let block = (*current)?;
    if offset >= BLOCKS[block].1 {
        return None;
    }
    let length = match flags {
        0x02 => 1,
        0x08 => PAGE,
        0x40 => {
            let head = take(rest, 3)?;
            let length = usize::from(head[1]) << 8 | usize::from(head[2]);
            if head[0] != 1 || length > PAGE {
                return None;
            }
            length
        }
        _ => {
            let length = u32::from_be_bytes(take(rest, 4)?.try_into().ok()?) as usize;
            if !(1..=4608).contains(&length) {
                return None;
            }
            length
        }
    };
    Some(Some((block, offset, flags, take(rest, length)?.to_vec())))
}

fn take<'a>(rest: &mut &'a [u8], n: usize) -> Option<&'a [u8]> {
    let (now, later) = rest.split_at_checked(n)?;
    *rest = later;
    Some(now)
}
