//! Bytes and meaning of the migration stream. Pure: no sockets, no guest memory.
//!
//! ```text
//! main channel, source to destination                            return path, the other way
//!
//!   header         QEVM 3                                          u16 type, u16 length, payload
//!   configuration  07 machine {05 subsection}
//!   commands       08 number length payload   ── PING ──────────►  PONG
//!   START          01 id "ram" 0 4  blocks EOS   7e id
//!   PART ...       02 id  page records EOS       7e id
//!   END            03 id  page records EOS       7e id
//!   FULL ...       04 id idstr instance version payload 7e id
//!   end            00
//!   description    06 length JSON             ───────────────────► SHUT
//! ```
//!
//! [`Decoder`] turns the bytes of an [`Input`] into [`Event`]s and puts RAM into a [`PageSink`]; [`Output`] writes the same
//! elements. [`ReturnMessage`] is the codec of the other direction. What a peer may ask for is bounded in [`limits`].

mod command;
mod configuration;
pub mod consts;
mod decoder;
mod elements;
mod input;
pub mod layout;
pub mod limits;
pub mod multifd;
mod output;
mod page_channel;
mod ram;
mod return_path;
mod sink;

pub use command::{Advise, Command};
pub use decoder::Decoder;
pub use elements::{Accept, DecoderOptions, Description, Event, SectionHeader, SectionKind};
pub use input::{ByteSource, Input, NoSource, PayloadSource};
pub use output::Output;
pub use page_channel::{AnnouncedBlocks, PageChannel};
pub use ram::PageCounts;
pub use return_path::{ReturnMessage, bitmap_bytes, read_bitmap, write_bitmap};
pub use sink::{BlockEntry, CodedPage, MappedRam, NullSink, PageSink, RecordingSink};

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::cast_possible_truncation)]
mod tests;
