//! Numbers of the format (spec/stream 16.4). Nothing here is a choice of ours.

/// First four bytes of a stream: `QEVM`.
pub const FILE_MAGIC: u32 = 0x5145_564d;
/// The only living file version.
pub const FILE_VERSION: u32 = 3;
/// The retired one, which gets an error of its own.
pub const FILE_VERSION_OBSOLETE: u32 = 2;

/// Element type: end of the stream.
pub const EOF: u8 = 0x00;
/// Element type: a live handler's first section.
pub const SECTION_START: u8 = 0x01;
/// Element type: one more part of a live section.
pub const SECTION_PART: u8 = 0x02;
/// Element type: a live handler's last section.
pub const SECTION_END: u8 = 0x03;
/// Element type: a whole section at once.
pub const SECTION_FULL: u8 = 0x04;
/// A subsection; only inside payloads.
pub const SUBSECTION: u8 = 0x05;
/// The description of the devices, as JSON; only after the end.
pub const DESCRIPTION: u8 = 0x06;
/// The configuration; only directly after the file header.
pub const CONFIGURATION: u8 = 0x07;
/// Element type: a command.
pub const COMMAND: u8 = 0x08;
/// A section's footer; only directly after its payload.
pub const FOOTER: u8 = 0x7e;

/// Bytes of a target page.
pub const PAGE_SIZE: u64 = 4096;
/// The same, for slices.
pub const PAGE_BYTES: usize = 4096;
/// log2 of the target page.
pub const PAGE_BITS: u32 = 12;

/// idstr of the RAM handler; its instance is 0.
pub const RAM_IDSTR: &[u8] = b"ram";
/// The only version of the RAM section.
pub const RAM_VERSION: u32 = 4;

/// The bits of a record word that are flags; the rest is an offset or a size.
pub const RAM_FLAGS: u64 = PAGE_SIZE - 1;
/// Obsolete and refused.
pub const RAM_FULL: u64 = 0x001;
/// A page of one repeated byte.
pub const RAM_ZERO: u64 = 0x002;
/// The list of blocks.
pub const RAM_MEM_SIZE: u64 = 0x004;
/// A page as it is.
pub const RAM_PAGE: u64 = 0x008;
/// End of this section's payload.
pub const RAM_EOS: u64 = 0x010;
/// Modifier: the block of the record before; its name is left out.
pub const RAM_CONTINUE: u64 = 0x020;
/// A page as the difference to its last version.
pub const RAM_XBZRLE: u64 = 0x040;
/// Reserved for RDMA.
pub const RAM_HOOK: u64 = 0x080;
/// A page compressed with zlib.
pub const RAM_COMPRESS_PAGE: u64 = 0x100;
/// The only encoding of an XBZRLE page.
pub const XBZRLE_ENCODING: u8 = 1;
/// A point of synchronisation with multifd channels.
pub const RAM_MULTIFD_FLUSH: u64 = 0x200;

/// First four bytes of every multifd packet.
pub const MULTIFD_MAGIC: u32 = 0x1122_3344;
/// The only version of multifd packets.
pub const MULTIFD_VERSION: u32 = 1;
/// Most pages of one multifd packet; its header has room for so many offsets, always.
pub const MULTIFD_PAGES: u32 = 524_288 / 4096;
/// Packet flag: the channel waits here for the others.
pub const MULTIFD_SYNC: u32 = 0x01;
/// Packet flags: how the pages are compressed; 0: not at all.
pub const MULTIFD_METHOD: u32 = 0x3e;
/// Packet flag: not pages but state of a device, in another layout.
pub const MULTIFD_DEVICE_STATE: u32 = 0x40;
