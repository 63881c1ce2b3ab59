//! Stored streams, for reading offline: files as byte sources, and RAM put together from all of a migration's channels.
//!
//! Nothing here follows what a stream announces: memory grows with the records that come, and a page that stands in a file as it is
//! stays there.

mod channel;
mod ram;
mod source;

pub use channel::ChannelCounts;
pub use ram::StoredRam;
pub use source::FileSource;
