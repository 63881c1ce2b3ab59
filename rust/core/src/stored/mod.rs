//! Stored streams, for reading offline: files as byte sources, and RAM put together from all of a migration's channels.
//!
//! Nothing here follows what a stream announces: memory grows with the records that come, a page that stands in a file as it is stays
//! there, and of pages that had to be decoded no more than a fixed amount is in memory.

mod channel;
mod pool;
mod ram;
mod runs;
mod source;

pub use channel::ChannelCounts;
pub use ram::StoredRam;
pub use source::FileSource;
