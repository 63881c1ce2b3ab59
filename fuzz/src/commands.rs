//! Commands and their payloads, one behind the other, packages with what is in them.
//!
//! Input: one byte that chooses the pieces, then a stream's bytes behind its header. Seeds: `python3 fuzz/make_seeds.py`.
//! Run: `make fuzz TARGET=commands TIME=3600`
//! Asserts: a command that was accepted is written back byte for byte as it came; ranges of a discard are whole pages, not empty, and do
//! not wrap around; a refusal has a place; bytes in pieces give the same.

use qmig_core::wire::{ByteSource, Command, Decoder, Event, Input, NullSink, Output};
use qmig_core::{Error, Result};

use super::drive::Pieces;
use super::sizes;

const HEAD: &[u8] = b"QEVM\0\0\0\x03";

pub fn run(data: &[u8]) -> bool {
    let Some((&choice, bytes)) = data.split_first() else { return false };
    let stream = [HEAD, bytes].concat();
    let (commands, error) = read(Decoder::offline(Input::from_bytes(stream.clone(), 0), None), &stream);
    let pieces = Pieces { rest: &stream, sizes: sizes(choice), turn: 0 };
    assert_eq!(read(Decoder::offline(Input::with_capacity(pieces, 0), None), &stream), (commands, error));
    commands > 0
}

/// How many commands, and what ended them.
fn read<S: ByteSource>(mut decoder: Decoder<S>, stream: &[u8]) -> (usize, Option<Error>) {
    let mut count = 0;
    let ended = loop {
        match decoder.next(&mut NullSink) {
            Ok(Event::Command(command, at)) => {
                count += 1;
                check(&command, at, decoder.input().offset(), stream);
                if let Command::Packaged(size) = command
                    && let Err(error) = package(&mut decoder, size, stream, &mut count)
                {
                    break Some(error);
                }
            }
            Ok(Event::Configuration { .. } | Event::RamSection { .. }) => {}
            Ok(_) => break None,
            Err(error) => break Some(error),
        }
    };
    assert!(ended.as_ref().is_none_or(|error| error.offset.is_some_and(|at| at <= stream.len() as u64)), "{ended:?}");
    (count, ended)
}

fn package<S: ByteSource>(decoder: &mut Decoder<S>, size: u32, stream: &[u8], count: &mut usize) -> Result<()> {
    let offset = decoder.input().offset();
    let bytes = decoder.input().read_vec(size.into())?;
    let mut inner = decoder.package(bytes, offset);
    loop {
        match inner.next(&mut NullSink)? {
            Event::Command(command, at) => {
                *count += 1;
                check(&command, at, inner.input().offset(), stream);
                assert!(!matches!(command, Command::Packaged(_)), "a package inside a package");
            }
            _ => return Ok(()),
        }
    }
}

fn check(command: &Command, at: u64, end: u64, stream: &[u8]) {
    let mut again = Output::new();
    again.command(command);
    assert_eq!(again.as_slice(), &stream[at as usize..end as usize], "{command:?}");
    if let Command::RamDiscard { name, ranges } = command {
        assert!(!name.is_empty() && !ranges.is_empty());
        for (start, length) in ranges {
            assert!(start % 4096 == 0 && length % 4096 == 0 && *length > 0 && start.checked_add(*length).is_some());
        }
    }
}
