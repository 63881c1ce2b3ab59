//! The only unsafe: memory maps, userfaultfd, `PAGEMAP_SCAN`, raw vectors, probes.

pub mod adopt;
pub mod flips;
pub mod guest;
pub mod io;
pub mod mmap;
pub mod pagemap;
pub mod probe;
pub mod scan;
pub mod signal;
mod stream;
pub mod uffd;
