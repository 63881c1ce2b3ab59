//! Channels over TLS: bytes, ends, cancels and deadlines as without it; who is let in and who is not, and what is said about it.
#![allow(clippy::unwrap_used, missing_docs)]

#[path = "../certs/mod.rs"]
mod certs;
mod channels;
mod files;
mod refusals;
