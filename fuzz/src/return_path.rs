//! The return path: messages up to the end, and the bitmaps behind `RECV_BITMAP`.
//!
//! Input: one byte that chooses the pieces, then the bytes. Seeds: `python3 fuzz/make_seeds.py`.
//! Run: `make fuzz TARGET=return_path TIME=3600`
//! Asserts: a message that was accepted is written back byte for byte as it came; requests are whole pages and do not wrap around; a
//! bitmap has no page behind the last and comes back; bytes in pieces give the same.

use qmig_core::Error;
use qmig_core::wire::{ByteSource, Input, Output, ReturnMessage, bitmap_bytes, read_bitmap, write_bitmap};

use super::drive::Pieces;
use super::sizes;

/// Pages of every block: no whole bytes, no whole words.
const PAGES: u64 = 77;

pub fn run(data: &[u8]) -> bool {
    let Some((&choice, bytes)) = data.split_first() else { return false };
    let (messages, error) = read(Input::from_bytes(bytes.to_vec(), 0), bytes);
    let pieces = Pieces { rest: bytes, sizes: sizes(choice), turn: 0 };
    assert_eq!(read(Input::with_capacity(pieces, 0), bytes), (messages, error));
    messages > 0
}

fn read<S: ByteSource>(mut input: Input<S>, bytes: &[u8]) -> (usize, Option<Error>) {
    let mut messages = 0;
    loop {
        let at = input.offset() as usize;
        let message = match ReturnMessage::read(&mut input) {
            Ok(Some(message)) => message,
            Ok(None) => return (messages, None),
            Err(error) => return (messages, Some(error)),
        };
        messages += 1;
        let mut again = Output::new();
        message.write(&mut again);
        assert_eq!(again.as_slice(), &bytes[at..input.offset() as usize], "{message:?}");
        match message {
            ReturnMessage::ReqPages { start, length, .. } => {
                assert!(start % 4096 == 0 && length % 4096 == 0 && length > 0 && start.checked_add(length.into()).is_some());
            }
            ReturnMessage::RecvBitmap(_) => match read_bitmap(&mut input, PAGES) {
                Ok(bits) => check(&bits),
                Err(error) => return (messages, Some(error)),
            },
            _ => {}
        }
    }
}

fn check(bits: &[u8]) {
    assert_eq!(bits.len() as u64, bitmap_bytes(PAGES));
    assert!((PAGES..8 * bits.len() as u64).all(|page| bits[page as usize / 8] >> (page % 8) & 1 == 0));
    let mut again = Output::new();
    write_bitmap(&mut again, bits);
    assert_eq!(read_bitmap(&mut Input::from_bytes(again.into_vec(), 0), PAGES).unwrap(), bits);
}
