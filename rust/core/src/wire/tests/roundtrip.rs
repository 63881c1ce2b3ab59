//! What is written comes back, in whatever pieces it arrives.

use proptest::prelude::*;

use super::super::command::{Advise, Command};
use super::super::consts::{RAM_PAGE, RAM_ZERO};
use super::super::{ByteSource, ReturnMessage, bitmap_bytes, read_bitmap, write_bitmap};
use super::*;
use crate::ErrorKind::{self, ReturnPath, Truncated};

fn name() -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(any::<u8>(), 1..=255)
}

fn range() -> impl Strategy<Value = (u64, u64)> {
    (0..1u64 << 40, 1..1u64 << 20).prop_map(|(page, pages)| (page << 12, pages << 12))
}

fn command() -> impl Strategy<Value = Command> {
    prop_oneof![
        Just(Command::OpenReturnPath),
        any::<u32>().prop_map(Command::Ping),
        prop::option::of((any::<u64>(), any::<u64>()).prop_map(|(page_sizes, target_page)| Advise { page_sizes, target_page }))
            .prop_map(Command::PostcopyAdvise),
        Just(Command::Listen),
        Just(Command::Run),
        (name(), prop::collection::vec(range(), 1..13)).prop_map(|(name, ranges)| Command::RamDiscard { name, ranges }),
        any::<u32>().prop_map(Command::Packaged),
        Just(Command::EnableColo),
        Just(Command::Resume),
        name().prop_map(Command::RecvBitmap),
        Just(Command::SwitchoverStart),
    ]
}

fn message() -> impl Strategy<Value = ReturnMessage> {
    let request = (prop::option::of(prop::collection::vec(any::<u8>(), 0..=255)), 0..1u64 << 40, 1..1u32 << 10);
    prop_oneof![
        any::<u32>().prop_map(ReturnMessage::Shut),
        any::<u32>().prop_map(ReturnMessage::Pong),
        request.prop_map(|(name, page, pages)| ReturnMessage::ReqPages { name, start: page << 12, length: pages << 12 }),
        name().prop_map(ReturnMessage::RecvBitmap),
        Just(ReturnMessage::ResumeAck),
        Just(ReturnMessage::SwitchoverAck),
    ]
}

/// Gives pieces of the sizes drawn.
struct Pieces<'a>(&'a [u8], std::iter::Cycle<std::vec::IntoIter<usize>>);

impl ByteSource for Pieces<'_> {
    fn read(&mut self, buf: &mut [u8]) -> Result<usize> {
        let most = buf.len().min(self.1.next().unwrap_or(1));
        self.0.read(&mut buf[..most])
    }
}

fn pieces() -> impl Strategy<Value = Vec<usize>> {
    prop::collection::vec(prop_oneof![1..20usize, 4000..9000usize], 1..5)
}

proptest! {
    #[test]
    fn commands(commands in prop::collection::vec(command(), 0..8)) {
        let bytes = stream(|out| {
            for command in &commands {
                out.command(command);
            }
            out.eof();
        });
        let events = run(live(&bytes), &mut RecordingSink::default()).unwrap();
        let found: Vec<_> = events.into_iter().filter_map(|event| if let Event::Command(command, _) = event { Some(command) } else { None }).collect();
        prop_assert_eq!(found, commands);
    }

    #[test]
    fn return_path(messages in prop::collection::vec(message(), 0..8), sizes in pieces()) {
        let mut out = Output::new();
        for message in &messages {
            message.write(&mut out);
        }
        let mut input = Input::with_capacity(Pieces(out.as_slice(), sizes.into_iter().cycle()), 4096);
        for message in messages {
            prop_assert_eq!(ReturnMessage::read(&mut input)?, Some(message));
        }
        prop_assert_eq!(ReturnMessage::read(&mut input)?, None);
    }

    #[test]
    fn bitmaps(pages in 1..5000u64, seed: u8) {
        let bits: Vec<u8> = (0..bitmap_bytes(pages)).map(|i| i.to_le_bytes()[0].wrapping_mul(seed)).collect();
        let mut out = Output::new();
        write_bitmap(&mut out, &bits);
        let found = read_bitmap(&mut Input::from_bytes(out.into_vec(), 0), pages)?;
        for page in 0..found.len() * 8 {
            let expected = (page as u64) < pages && bits[page / 8] >> (page % 8) & 1 == 1;
            prop_assert_eq!(found[page / 8] >> (page % 8) & 1 == 1, expected, "page {}", page);
        }
    }

    #[test]
    fn ram(writes in prop::collection::vec((0..3usize, 0..8u64, prop::option::of(1..=255u8)), 0..60), sizes in pieces()) {
        const NAMES: [&[u8]; 3] = [b"", b"pc.ram", b"a/b"];
        let mut model = vec![vec![0u8; 8 * 4096]; 3];
        let mut current = None;
        let bytes = stream(|out| {
            out.section_start(2, b"ram", 0, 4);
            out.mem_size(3 * 8 * 4096);
            for name in NAMES {
                out.block(name, 8 * 4096);
            }
            for (index, (block, page, fill)) in writes.iter().enumerate() {
                let flag = if fill.is_some() { RAM_PAGE } else { RAM_ZERO };
                out.page_record(page * 4096, flag, (current != Some(*block)).then_some(NAMES[*block]));
                current = Some(*block);
                let value = fill.unwrap_or(0);
                out.put(&[value; 4096][..if fill.is_some() { 4096 } else { 1 }]);
                model[*block][usize::try_from(page * 4096).unwrap()..][..4096].fill(value);
                if index % 7 == 6 {
                    out.eos();
                    out.footer(2);
                    out.section_part(2);
                }
            }
            out.eos();
            out.footer(2);
            out.eof();
        });
        let mut sink = RecordingSink::default();
        let source = Pieces(&bytes, sizes.into_iter().cycle());
        run(Decoder::new(Input::with_capacity(source, 4096), DecoderOptions::default()), &mut sink)?;
        for (block, expected) in model.iter().enumerate() {
            let mut found = Vec::new();
            sink.read(block, |piece| found.extend_from_slice(piece));
            prop_assert!(&found == expected, "block {}", block);
        }
    }
}

#[test]
fn names_and_numbers_of_messages() {
    let request = |name| ReturnMessage::ReqPages { name, start: 0, length: 4096 };
    let all = [
        ReturnMessage::Shut(0),
        ReturnMessage::Pong(0),
        request(Some(Vec::new())),
        request(None),
        ReturnMessage::RecvBitmap(b"ram".to_vec()),
        ReturnMessage::ResumeAck,
        ReturnMessage::SwitchoverAck,
    ];
    let names = ["SHUT", "PONG", "REQ_PAGES_ID", "REQ_PAGES", "RECV_BITMAP", "RESUME_ACK", "SWITCHOVER_ACK"];
    assert_eq!(all.each_ref().map(ReturnMessage::name), names);
    assert_eq!(all.each_ref().map(ReturnMessage::number), [1, 2, 3, 4, 5, 6, 7]);
}

/// The bytes of the specification's examples (8.4).
#[test]
fn request_as_in_the_specification() {
    let mut out = Output::new();
    ReturnMessage::ReqPages { name: Some(b"ram".to_vec()), start: 0x3000, length: 0x1000 }.write(&mut out);
    assert_eq!(out.as_slice(), b"\x00\x03\x00\x10\0\0\0\0\0\0\x30\0\0\0\x10\0\x03ram");
}

#[test]
fn bad_messages() {
    let refuse = |bytes: &[u8]| {
        let error = ReturnMessage::read(&mut Input::from_bytes(bytes.to_vec(), 0)).unwrap_err();
        assert_eq!(error.path, "return-path", "{error}");
        (error.kind, error.offset.unwrap())
    };
    let cases: [(&[u8], ErrorKind, u64); 19] = [
        (b"\0", Truncated, 0),
        (b"\0\x01\0", Truncated, 2),
        (b"\0\x01\0\x04\0\0", Truncated, 4),
        (b"\0\0\0\0", ReturnPath, 0),
        (b"\0\x08\0\0", ReturnPath, 0),
        (b"\0\x01\0\x05\0\0\0\0\0", ReturnPath, 2),
        (b"\0\x02\0\x00", ReturnPath, 2),
        (b"\0\x03\x02\x01", ReturnPath, 2),
        (b"\0\x03\0\x0c", ReturnPath, 2),
        (b"\0\x04\0\x0d", ReturnPath, 2),
        (b"\0\x06\0\x04\0\0\0\x02", ReturnPath, 4),
        (b"\0\x07\0\x01\0", ReturnPath, 2),
        (b"\0\x05\0\x02\0x", ReturnPath, 4),
        (b"\0\x05\0\x02\x02x", ReturnPath, 4),
        (b"\0\x05\0\x03\x01xy", ReturnPath, 6),
        (b"\0\x04\0\x0c\0\0\0\0\0\0\x30\0\0\0\0\0", ReturnPath, 4),
        (b"\0\x04\0\x0c\0\0\0\0\0\0\x30\x01\0\0\x10\0", ReturnPath, 4),
        (b"\0\x04\0\x0c\xff\xff\xff\xff\xff\xff\xf0\0\0\0\x20\0", ReturnPath, 4),
        (b"\0\x03\0\x10\0\0\0\0\0\0\x30\0\0\0\x10\0\x04ram", ReturnPath, 16),
    ];
    for (bytes, kind, offset) in cases {
        assert_eq!(refuse(bytes), (kind, offset), "{bytes:02x?}");
    }
}

#[test]
fn bad_bitmaps() {
    let mut out = Output::new();
    write_bitmap(&mut out, &[0xff; 8]);
    let good = out.into_vec();
    let refuse = |bytes: Vec<u8>, pages| {
        let error = read_bitmap(&mut Input::from_bytes(bytes, 0), pages).unwrap_err();
        (error.kind, error.offset.unwrap(), error.path)
    };
    let path = || "return-path/bitmap".to_owned();
    assert_eq!(refuse(good.clone(), 65), (ReturnPath, 0, path()));
    assert_eq!(refuse(good[..20].to_vec(), 64), (Truncated, 16, path()));
    let mut wrong = good.clone();
    wrong[23] ^= 1;
    assert_eq!(refuse(wrong, 64), (ReturnPath, 16, path()));
    assert_eq!(read_bitmap(&mut Input::from_bytes(good, 0), 3).unwrap(), [7, 0, 0, 0, 0, 0, 0, 0]);
}
