//! What this does, how to run it and what it asserts: `../src/return_path.rs`.
#![no_main]

use libfuzzer_sys::{Corpus, fuzz_target};

fuzz_target!(|data: &[u8]| -> Corpus { if qmig_fuzz::return_path::run(data) { Corpus::Keep } else { Corpus::Reject } });
