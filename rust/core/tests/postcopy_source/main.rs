//! The source side of postcopy against a scripted destination: every byte of the switch, requests, failures, recoveries.
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation, missing_docs)]

#[path = "../cut/mod.rs"]
mod cut;
mod never_both;
mod peer;
mod preempt;
mod recovery;
mod refusals;
mod requests;
mod switch;
