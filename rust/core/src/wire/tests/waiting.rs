//! A live peer may wait for our answer, so the decoder must never ask for a byte that the format does not make mandatory.

use super::super::command::Command;
use super::super::consts::{RAM_PAGE, RAM_ZERO};
use super::super::{ByteSource, NullSink, PayloadSource, ReturnMessage};
use super::*;
use crate::ErrorKind;

/// Gives one byte at a time, so that what is buffered beyond the offset was asked for.
#[derive(Debug)]
struct Drip<'a>(&'a [u8]);

impl ByteSource for Drip<'_> {
    fn read(&mut self, buf: &mut [u8]) -> Result<usize> {
        self.0.read(&mut buf[..1])
    }
}

/// Offset of the decoder and bytes asked for, after each event.
fn trace(bytes: &[u8], options: DecoderOptions) -> Vec<(Event, u64, u64)> {
    let mut decoder = Decoder::new(Input::new(Drip(bytes)), options);
    let mut out = Vec::new();
    loop {
        let event = decoder.next(&mut NullSink).unwrap();
        let (at, given) = (decoder.input().offset(), decoder.input().offset() + decoder.input().buffered() as u64);
        if let Event::Section(header) = &event {
            layout::skip_known(decoder.input(), header).unwrap();
            decoder.section_done().unwrap();
        }
        let last = event == Event::Finished;
        out.push((event, at, given));
        if last {
            return out;
        }
    }
}

fn example() -> Vec<u8> {
    stream(|out| {
        out.open_return_path();
        out.ping(1);
        out.command(&Command::PostcopyAdvise(None));
        ram_start(out, 2);
        out.section_part(2);
        out.page_record(0, RAM_ZERO, Some(b"ram"));
        out.u8(0);
        out.page_record(4096, RAM_PAGE, None);
        out.zeros(4096);
        out.eos();
        out.footer(2);
        out.switchover_start();
        out.section_end(2);
        out.eos();
        out.footer(2);
        out.section_full(0, b"timer", 0, 2);
        out.zeros(24);
        out.footer(0);
        out.ping(2);
        out.eof();
        out.description(b"{}");
    })
}

#[test]
fn no_byte_is_asked_for_too_early() {
    let bytes = example();
    for (event, at, given) in trace(&bytes, DecoderOptions::default()) {
        // Only behind the configuration one byte is looked at: another element is mandatory there.
        let ahead = u64::from(matches!(event, Event::Configuration { .. }));
        assert_eq!(given, at + ahead, "{event:?}");
    }
}

#[test]
fn behind_the_end_exactly_one_byte_is_wanted() {
    let end = example().len() - 7;
    let with = |tail: &[u8]| [&example()[..end], tail].concat();
    let wanted = |bytes: &[u8], description| {
        let trace = trace(bytes, DecoderOptions { description, ..DecoderOptions::default() });
        trace.last().map(|(_, at, given)| (at - end as u64, *given - end as u64)).unwrap()
    };
    assert_eq!(wanted(&with(b"\x06\0\0\0\x02{}"), true), (7, 7));
    assert_eq!(wanted(&with(b"\x06\0\0\0\0junk"), true), (5, 5));
    assert_eq!(wanted(&with(b"junk"), true), (0, 1));
    assert_eq!(wanted(&with(b""), true), (0, 0));
    assert_eq!(wanted(&with(b"\x06\0\0\0\x02{}"), false), (0, 0));
}

/// Gives its bytes, then breaks.
struct Breaks<'a>(&'a [u8], ErrorKind);

impl ByteSource for Breaks<'_> {
    fn read(&mut self, buf: &mut [u8]) -> Result<usize> {
        if self.0.is_empty() { Err(Error::new(self.1, "broken")) } else { self.0.read(buf) }
    }
}

/// At the end marker the machine has arrived and the source has let go of it: a description that breaks off spoils nothing.
#[test]
fn a_live_description_may_break_off() {
    let bytes = example();
    for cut in bytes.len() - 7..bytes.len() {
        assert_eq!(run(live(&bytes[..cut]), &mut NullSink).unwrap().last(), Some(&Event::Finished), "cut at {cut}");
    }
    for (kind, fine) in [(ErrorKind::Io, true), (ErrorKind::Cancelled, false)] {
        let source = Breaks(&bytes[..bytes.len() - 3], kind);
        let outcome = run(Decoder::new(Input::new(source), DecoderOptions::default()), &mut NullSink);
        assert_eq!(outcome.is_ok(), fine, "{kind:?}");
    }
}

#[test]
fn return_path_messages_end_where_they_end() {
    let mut out = Output::new();
    ReturnMessage::Pong(7).write(&mut out);
    ReturnMessage::Shut(0).write(&mut out);
    let mut input = Input::new(Drip(out.as_slice()));
    for message in [ReturnMessage::Pong(7), ReturnMessage::Shut(0)] {
        assert_eq!(ReturnMessage::read(&mut input).unwrap(), Some(message));
        assert_eq!(input.buffered(), 0);
    }
    assert_eq!(ReturnMessage::read(&mut input).unwrap(), None);
}

#[test]
fn a_payload_reader_takes_no_more_than_asked() {
    let mut input = Input::new(Drip(b"0123456789"));
    assert_eq!(input.peek(2).unwrap(), b"01");
    assert_eq!((input.offset(), input.buffered()), (0, 2));
    let mut three = [0; 3];
    PayloadSource::read_exact(&mut input, &mut three).unwrap();
    assert_eq!((&three, input.offset(), input.buffered()), (b"012", 3, 0));
    PayloadSource::skip(&mut input, 2).unwrap();
    assert_eq!((input.offset(), input.buffered()), (5, 0));
    assert_eq!(PayloadSource::read_vec(&mut input, 4).unwrap(), b"5678");
    assert_eq!(input.peek(9).unwrap(), b"9");
}
