//! Tests of the wire room; what needs golden streams is in `rust/core/tests/wire_streams.rs`.

mod elements;
mod packets;
mod refusals;
mod roundtrip;
mod waiting;

use super::{Decoder, DecoderOptions, Event, Input, NoSource, Output, PageSink, RecordingSink, layout};
use crate::{Error, Result};

/// Header, configuration of machine `none`, and what `build` adds.
fn stream(build: impl FnOnce(&mut Output)) -> Vec<u8> {
    let mut out = Output::new();
    out.file_header();
    out.configuration(b"none");
    build(&mut out);
    out.into_vec()
}

/// Bytes of `stream(|_| ())`: where `build` begins.
const HEAD: u64 = 17;

/// A START of RAM with one block `ram` of `pages` pages.
fn ram_start(out: &mut Output, pages: u64) {
    out.section_start(2, b"ram", 0, 4);
    out.mem_size(pages * 4096);
    out.block(b"ram", pages * 4096);
    out.eos();
    out.footer(2);
}

/// Bytes of that up to the records of a PART behind it.
const RAM_HEAD: u64 = 17 + 8 + 12 + 8 + 5;

fn offline(bytes: &[u8]) -> Decoder<NoSource> {
    Decoder::offline(Input::from_bytes(bytes.to_vec(), 0), Some(true))
}

fn live(bytes: &[u8]) -> Decoder<&[u8]> {
    Decoder::new(Input::new(bytes), DecoderOptions::default())
}

/// All events; device payloads by their fixed layouts.
fn run<S: super::ByteSource>(mut decoder: Decoder<S>, sink: &mut dyn PageSink) -> Result<Vec<Event>> {
    let mut events = Vec::new();
    loop {
        let event = decoder.next(sink)?;
        if let Event::Section(header) = &event {
            layout::skip_known(decoder.input(), header)?;
            decoder.section_done()?;
        }
        let last = event == Event::Finished;
        events.push(event);
        if last {
            return Ok(events);
        }
    }
}

fn events(bytes: &[u8]) -> Vec<Event> {
    run(offline(bytes), &mut RecordingSink::default()).unwrap()
}

/// Why `bytes` are refused.
fn refusal(bytes: &[u8]) -> Error {
    run(offline(bytes), &mut RecordingSink::default()).unwrap_err()
}
