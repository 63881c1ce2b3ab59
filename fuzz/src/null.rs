//! A whole stream into a sink that drops everything: how fast the decoder alone goes, and the target to leave running for days.
//!
//! Input: a main-channel stream. Seeds: `python3 fuzz/make_seeds.py` (golden streams cut down to a few records of each kind).
//! Run: `make fuzz TARGET=null TIME=3600 SANITIZER=none`
//! Asserts: no panic, no overflow, nothing read behind the end, less than 64 MiB of heap.

use qmig_core::wire::{Decoder, Event, Input, NullSink, layout};

pub fn run(data: &[u8]) -> bool {
    let mut decoder = Decoder::offline(Input::from_bytes(data.to_vec(), 0), None);
    let mut events = 0;
    loop {
        match decoder.next(&mut NullSink) {
            Err(_) | Ok(Event::Finished) => break,
            Ok(Event::Section(header)) => {
                if layout::skip_known(decoder.input(), &header).and_then(|()| decoder.section_done()).is_err() {
                    break;
                }
            }
            Ok(_) => {}
        }
        events += 1;
    }
    assert!(decoder.input().offset() <= data.len() as u64);
    events > 0
}
