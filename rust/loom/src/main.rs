//! Tries every interleaving, and every order that weak memory allows, of the core's own files: `cargo run --release [NAME...]`.
//!
//! The modules with a `path` are the core's files as they are; around them stand just enough of their neighbours (`sync`, `postcopy`,
//! `sys`). Each model prints how many interleavings it has; one that has a single one proves nothing and fails. `LOOM_MAX_PREEMPTIONS`
//! bounds the search (loom's own variable).
#![allow(dead_code)] // the core's files have more than the models use

mod control;
#[path = "../../core/src/error.rs"]
mod error;
mod models;
mod postcopy;
mod ram;
mod sync;
mod sys;

pub use error::{Error, ErrorKind, Result};

fn main() {
    let wanted: Vec<String> = std::env::args().skip(1).collect();
    for (name, model) in models::ALL {
        if wanted.is_empty() || wanted.iter().any(|word| name.contains(word.as_str())) {
            let begun = std::time::Instant::now();
            let count = models::run(*model);
            println!("{name}: {count} interleavings in {:.1} s", begun.elapsed().as_secs_f64());
            assert!(count > 1, "{name} has nothing to choose from");
        }
    }
}
