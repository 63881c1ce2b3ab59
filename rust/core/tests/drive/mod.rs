//! Drives the decoder over any bytes and checks what must hold for all of them. Shared by the tests and the fuzz target.
#![allow(missing_docs, clippy::unwrap_used)]

use qmig_core::page::{inflate_page, xbzrle_decode};
use qmig_core::wire::{Accept, BlockEntry, ByteSource, CodedPage, Decoder, Event, Input, PageSink, layout};
use qmig_core::{Error, ErrorKind, Result};

/// How far a stream went.
#[derive(Debug, PartialEq, Eq)]
pub struct Verdict {
    pub events: usize,
    /// Pages, and a checksum over their order, places and bytes.
    pub pages: u64,
    pub checksum: u64,
    pub error: Option<Error>,
}

impl Verdict {
    /// Refused at the door: nothing of it says anything about the decoder.
    #[allow(dead_code)]
    pub fn is_dull(&self) -> bool {
        self.events == 0
    }
}

/// A source that gives its bytes in pieces of uneven size.
#[derive(Debug)]
pub struct Pieces<'a> {
    pub rest: &'a [u8],
    pub sizes: &'a [usize],
    pub turn: usize,
}

impl ByteSource for Pieces<'_> {
    fn read(&mut self, buf: &mut [u8]) -> Result<usize> {
        let size = self.sizes[self.turn % self.sizes.len()].max(1);
        self.turn += 1;
        let most = size.min(buf.len());
        self.rest.read(&mut buf[..most])
    }
}

/// Checks what the decoder promises to its sinks.
#[derive(Debug, Default)]
struct CheckingSink {
    lengths: Vec<u64>,
    announced: bool,
    pages: u64,
    checksum: u64,
}

impl CheckingSink {
    fn note(&mut self, block: usize, offset: u64, content: u64) {
        assert!(offset.is_multiple_of(4096) && offset + 4096 <= self.lengths[block], "page {offset:#x} outside block {block}");
        self.pages += 1;
        let word = offset ^ (block as u64) << 1 ^ content;
        self.checksum = (self.checksum.rotate_left(5) ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
}

impl PageSink for CheckingSink {
    fn blocks(&mut self, list: &[BlockEntry]) -> Result<()> {
        assert!(!std::mem::replace(&mut self.announced, true), "a second block list");
        assert!(list.iter().all(|entry| entry.used_length > 0 && entry.used_length.is_multiple_of(4096)));
        self.lengths = list.iter().map(|entry| entry.used_length).collect();
        Ok(())
    }

    fn zero(&mut self, block: usize, offset: u64, fill: u8) -> Result<()> {
        self.note(block, offset, u64::from(fill) << 32);
        Ok(())
    }

    fn page(&mut self, block: usize, offset: u64, bytes: &[u8]) -> Result<()> {
        assert_eq!(bytes.len(), 4096);
        // First and last word catch a buffer that was moved under us.
        let word = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
        self.note(block, offset, word(0) ^ word(4088).rotate_left(1) ^ 1 << 40);
        Ok(())
    }

    fn coded(&mut self, block: usize, offset: u64, page: CodedPage<'_>) -> Result<()> {
        let mut content = [0; 4096];
        match page {
            CodedPage::Xbzrle(delta) => drop(xbzrle_decode(delta, &mut content)?),
            CodedPage::Zlib(bytes) => inflate_page(bytes, false, &mut content)?,
        }
        self.page(block, offset, &content)
    }
}

fn offset_of(event: &Event) -> Option<u64> {
    match event {
        Event::Configuration { offset, .. } | Event::End { offset } | Event::Command(_, offset) => Some(*offset),
        Event::Section(header) | Event::RamSection { header, .. } => Some(header.offset),
        Event::Description(description) => Some(description.offset),
        Event::Finished => None,
    }
}

/// Decode to the end or to the first error.
pub fn drive<S: ByteSource>(mut decoder: Decoder<S>, length: u64) -> Verdict {
    let mut sink = CheckingSink::default();
    let (mut events, mut last) = (0, None);
    let outcome = loop {
        match decoder.next(&mut sink) {
            Err(error) => break Err(error),
            Ok(Event::Finished) => break Ok(()),
            Ok(event) => {
                let offset = offset_of(&event).unwrap();
                assert!(last.is_none_or(|last| offset > last), "no progress at {offset:#x} after {last:?}");
                last = Some(offset);
                events += 1;
                if let Event::Section(header) = event
                    && let Err(error) = layout::skip_known(decoder.input(), &header).and_then(|()| decoder.section_done())
                {
                    break Err(error);
                }
            }
        }
        assert!(decoder.input().offset() <= length);
    };
    if let Err(error) = &outcome {
        assert!(error.offset.is_some_and(|at| at <= length), "an error without a place in the stream: {error}");
        assert!(!error.message.is_empty());
        let again = decoder.next(&mut sink).unwrap_err();
        assert_eq!(again.kind, ErrorKind::InvalidState, "a refused stream gave something again");
    }
    Verdict { events, pages: sink.pages, checksum: sink.checksum, error: outcome.err() }
}

/// Decode `bytes` twice, all at hand and in pieces through a small buffer: nobody may see a difference. And again with everything
/// accepted: a stream that was fine stays so, and one that was refused goes as far at least.
pub fn drive_both(bytes: &[u8], sizes: &[usize]) -> Verdict {
    let length = bytes.len() as u64;
    let [plain, all] = [Accept::empty(), Accept::all()].map(|accept| {
        let whole = drive(Decoder::offline(Input::from_bytes(bytes.to_vec(), 0), None).accepting(accept), length);
        let pieces = Pieces { rest: bytes, sizes, turn: 0 };
        let apart = drive(Decoder::offline(Input::with_capacity(pieces, 0), None).accepting(accept), length);
        assert_eq!(whole, apart, "the same bytes in pieces");
        whole
    });
    match &plain.error {
        None => assert_eq!(plain, all),
        Some(_) => assert!(plain.events <= all.events),
    }
    plain
}
