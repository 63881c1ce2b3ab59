//! The models, by name.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::control::model as fate;
use crate::postcopy::model as pages;
use crate::ram::model as bits;

/// Name and body of every model.
pub const ALL: &[(&str, fn())] = &[
    ("fate: commit against cancel", fate::commit_or_cancel),
    ("fate: commit against a failure and a cancel", fate::commit_or_fail_or_cancel),
    ("fate: given back against a failure and a pause", fate::given_back),
    ("fate: the end against a cancel and a failure", fate::one_end),
    ("bits: two writers and a taker", bits::none_is_lost),
    ("bits: what was written before is seen", bits::what_was_written_is_seen),
    ("pages: a fault against the page that comes by itself", pages::fault_or_page),
    ("pages: two channels bring the same page", pages::two_channels),
    ("pages: a fault against a new connection", pages::fault_or_new_link),
    ("pages: two faults against the page", pages::two_faults),
];

/// Tries all of one; how many interleavings there were.
pub fn run(model: fn()) -> u64 {
    let count = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&count);
    loom::model(move || {
        counted.fetch_add(1, Ordering::Relaxed);
        model();
    });
    count.load(Ordering::Relaxed)
}
