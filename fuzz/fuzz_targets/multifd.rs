//! A multifd channel: the handshake, then packets up to the end. The first byte chooses the pieces in which the rest arrives.
//!
//! A packet that was accepted keeps the limits of the format, whatever it announced: no more pages than fit, offsets of whole pages
//! inside the block once checked, data of a bounded size. Bytes in pieces give what the same bytes at once give.
#![no_main]

#[path = "../../rust/core/tests/drive/mod.rs"]
#[allow(dead_code)]
mod drive;

use drive::Pieces;
use libfuzzer_sys::{Corpus, fuzz_target};
use qmig_core::Error;
use qmig_core::wire::{
    ByteSource, Input,
    multifd::{Hello, Method, Packet},
};

const USED_LENGTH: u64 = 1 << 20;

fuzz_target!(|data: &[u8]| -> Corpus {
    let Some((&choice, bytes)) = data.split_first() else { return Corpus::Reject };
    let sizes: &[usize] = if choice & 1 == 0 { &[1] } else { &[7, 4096, 2] };
    let whole = channel(bytes);
    assert_eq!(channel(Pieces { rest: bytes, sizes, turn: 0 }), whole);
    if whole.0 == 0 { Corpus::Reject } else { Corpus::Keep }
});

/// Elements that were accepted, pages of them, and why it ended.
fn channel(source: impl ByteSource) -> (usize, usize, Option<Error>) {
    let mut input = Input::new(source);
    let (mut elements, mut pages) = (0, 0);
    let ended = (|| {
        Hello::read(&mut input)?;
        elements += 1;
        while let Some(packet) = Packet::read(&mut input)? {
            elements += 1;
            let size = match packet {
                Packet::DeviceState { size, .. } => size,
                Packet::Pages(packet) => {
                    let count = packet.normal.len() + packet.zero.len();
                    assert!(count <= 128);
                    if packet.check(USED_LENGTH).is_ok() {
                        assert!(packet.normal.iter().chain(&packet.zero).all(|offset| offset % 4096 == 0 && *offset < USED_LENGTH));
                    }
                    if packet.method == Method::None {
                        assert_eq!(packet.size as usize, packet.normal.len() * 4096);
                    }
                    pages += count;
                    packet.size
                }
            };
            input.skip(size.into())?;
        }
        Ok(())
    })();
    (elements, pages, ended.err())
}
