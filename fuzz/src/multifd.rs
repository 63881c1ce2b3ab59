//! A multifd channel: the handshake, then packets up to the end.
//!
//! Input: one byte that chooses the pieces in which the rest arrives, then the bytes of the channel. Seeds: `python3 fuzz/make_seeds.py`.
//! Run: `make fuzz TARGET=multifd TIME=3600`
//! Asserts: a packet that was accepted keeps the limits of the format, whatever it announced (no more pages than fit, offsets of whole
//! pages inside the block once checked, each once, data of a bounded size); its header is what our own writer makes of it; bytes in
//! pieces give what the same bytes at once give.

use std::collections::BTreeSet;

use qmig_core::Error;
use qmig_core::wire::multifd::{HEADER_BYTES, Head, Hello, Method, Packet, Pages};
use qmig_core::wire::{ByteSource, Input};

use super::drive::Pieces;
use super::sizes;

const USED_LENGTH: u64 = 1 << 20;

pub fn run(data: &[u8]) -> bool {
    let Some((&choice, bytes)) = data.split_first() else { return false };
    let whole = channel(bytes);
    assert_eq!(channel(Pieces { rest: bytes, sizes: sizes(choice), turn: 0 }), whole);
    whole.0 > 0
}

/// Elements that were accepted, pages of them, and why it ended.
fn channel(source: impl ByteSource) -> (usize, usize, Option<Error>) {
    let mut input = Input::with_capacity(source, 0);
    let (mut elements, mut pages) = (0, 0);
    let ended = (|| {
        Hello::read(&mut input)?;
        elements += 1;
        while let Some(packet) = Packet::read(&mut input)? {
            elements += 1;
            let size = match packet {
                Packet::DeviceState { size, .. } => size,
                Packet::Pages(packet) => {
                    check(&packet);
                    pages += packet.normal.len() + packet.zero.len();
                    packet.size
                }
            };
            input.skip(size.into())?;
        }
        Ok(())
    })();
    (elements, pages, ended.err())
}

fn check(packet: &Pages) {
    let all = || packet.normal.iter().chain(&packet.zero).copied();
    assert!(all().count() <= 128);
    let right = all().all(|offset| offset % 4096 == 0 && offset < USED_LENGTH) && all().collect::<BTreeSet<_>>().len() == all().count();
    assert_eq!(packet.check(USED_LENGTH).is_ok(), right);
    if packet.method == Method::None {
        assert_eq!(packet.size as usize, packet.normal.len() * 4096);
    }
    let mut bytes = [0; HEADER_BYTES];
    let Pages { sync, method, ref block, ref normal, ref zero, size, .. } = *packet;
    Head { sync, method, room: 128, number: 0, block, normal, zero }.put(size as usize, &mut bytes).unwrap();
    let again = Packet::read(&mut Input::new(bytes.as_slice())).unwrap();
    assert_eq!(again, Some(Packet::Pages(Pages { offsets_at: 320, ..packet.clone() })));
}
