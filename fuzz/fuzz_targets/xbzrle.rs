//! What this does, how to run it and what it asserts: `../src/xbzrle.rs`.
#![no_main]

use libfuzzer_sys::{Corpus, fuzz_target};

fuzz_target!(|data: &[u8]| -> Corpus { if qmig_fuzz::xbzrle::run(data) { Corpus::Keep } else { Corpus::Reject } });
