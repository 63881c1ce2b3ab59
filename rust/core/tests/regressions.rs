//! The fuzz targets without their engine: every input that once found something, and bytes out of a generator.
//!
//! An input lies in `fuzz/regressions/TARGET/`, named by what it found. A campaign is run by `make fuzz`.
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation, missing_docs)]

#[path = "../../../fuzz/src/lib.rs"]
mod fuzz;

use std::path::Path;

use fuzz::TARGETS;
use proptest::prelude::*;
use proptest::test_runner::RngSeed;

/// Replays what lies below `root`, a directory for each target.
fn replay(root: &Path) -> usize {
    let mut count = 0;
    for (name, target) in TARGETS {
        let Ok(inputs) = std::fs::read_dir(root.join(name)) else { continue };
        for input in inputs {
            let path = input.unwrap().path();
            // What a test that fails has printed ends with the one that it was.
            eprintln!("{}", path.display());
            target(&std::fs::read(&path).unwrap());
            count += 1;
        }
    }
    count
}

#[test]
fn what_once_found_something_finds_nothing_any_more() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/regressions");
    assert!(replay(&root) > 0);
    for directory in std::fs::read_dir(&root).unwrap() {
        let name = directory.unwrap().file_name();
        assert!(TARGETS.iter().any(|(target, _)| name == *target), "{} is no target", name.display());
    }
}

/// For `make coverage`, which counts what a corpus reaches.
#[test]
fn a_corpus_is_replayed_if_one_is_named() {
    if let Some(root) = std::env::var_os("QMIG_FUZZ_CORPUS") {
        assert!(replay(Path::new(&root)) > 0);
    }
}

/// Those that make something of any bytes. What is right must be accepted there, and what is damaged bears all that they assert.
#[test]
fn what_is_made_of_any_bytes_does_what_its_model_says() {
    let made = [fuzz::structured::run, fuzz::discards::run, fuzz::mapped_ram::run];
    let config =
        ProptestConfig { cases: 300, rng_seed: RngSeed::Fixed(0x716d_6967), failure_persistence: None, ..ProptestConfig::default() };
    proptest!(config, |(bytes in prop::collection::vec(any::<u8>(), 0..600))| {
        for target in made {
            target(&bytes);
        }
    });
}
