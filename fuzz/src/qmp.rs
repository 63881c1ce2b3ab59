//! What a monitor's client sends: from bytes to JSON messages.
//!
//! Input: one byte that chooses the pieces, then the bytes. Seeds: `python3 fuzz/make_seeds.py`.
//! Run: `make fuzz TARGET=qmp TIME=3600`
//! Asserts: bytes in pieces give the messages and the errors that the same bytes at once give; after a 0xFF byte a good message is
//! understood, whatever came before.

use qmig_core::monitor::Framer;

use super::sizes;

pub fn run(data: &[u8]) -> bool {
    let Some((&choice, bytes)) = data.split_first() else { return false };
    let whole = messages(&mut Framer::default(), [bytes].into_iter());
    let mut framer = Framer::default();
    let size = sizes(choice)[0];
    assert_eq!(messages(&mut framer, bytes.chunks(size)), whole, "the same bytes in pieces of {size}");
    let after = messages(&mut framer, [b"\xff{\"execute\": 'x'}".as_slice()].into_iter());
    assert_eq!(after.last().map(String::as_str), Some("{\"execute\":\"x\"}"));
    whole.iter().any(|message| message.starts_with('{'))
}

fn messages<'a>(framer: &mut Framer, pieces: impl Iterator<Item = &'a [u8]>) -> Vec<String> {
    let mut found = Vec::new();
    for mut piece in pieces {
        while let Some(message) = framer.next(&mut piece) {
            found.push(message.map_or_else(|error| format!("! {error}"), |value| value.to_string()));
        }
    }
    found
}
