//! Atomics and locks of the code whose interleavings loom tries out: std's here, loom's own where `rust/loom` compiles the same files.

pub use std::sync::{Mutex, MutexGuard, atomic};
