//! What this does, how to run it and what it asserts: `../src/stream.rs`.
#![no_main]

use libfuzzer_sys::{Corpus, fuzz_target};

fuzz_target!(|data: &[u8]| -> Corpus { if qmig_fuzz::stream::run(data) { Corpus::Keep } else { Corpus::Reject } });
