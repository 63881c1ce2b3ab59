//! Named limits for what a peer may ask us to hold or to do. The stream is hostile until proven otherwise.

/// Those that whoever decodes may set otherwise (docs/reference/limits.md); the others follow from the format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Instead of [`SECTIONS_MAX`].
    pub sections: usize,
    /// Instead of [`RAM_BLOCKS_MAX`].
    pub ram_blocks: usize,
    /// Instead of [`PACKAGE_MAX`].
    pub package: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self { sections: SECTIONS_MAX, ram_blocks: RAM_BLOCKS_MAX, package: PACKAGE_MAX }
    }
}

/// Longest machine type name: real ones have a dozen bytes, and the field could announce four gigabytes.
pub const MACHINE_NAME_MAX: u32 = 255;
/// Capabilities in the configuration: two exist.
pub const CAPABILITIES_MAX: u32 = 64;
/// RAM blocks: a machine with every memory slot and every PCI ROM stays below.
pub const RAM_BLOCKS_MAX: usize = 1024;
/// Sections announced in one stream: each costs us memory until the stream ends; big machines have a few hundred.
pub const SECTIONS_MAX: usize = 16_384;
/// Bytes of the description that are kept; the rest is read and dropped.
pub const DESCRIPTION_KEPT: u32 = 64 << 20;
/// A compressed page: zlib's own bound for 4 KiB is 4110, other builds of it need some more (spec/stream 6.1).
pub const COMPRESSED_PAGE_MAX: u32 = 4608;
/// Compressed data of one multifd packet (spec/stream 12.5).
pub const MULTIFD_DATA_MAX: u32 = 1 << 20;
/// Window of a channel's zstd frame, as a power of two: what level 20, the highest of `multifd-zstd-level`, takes for a source of unknown
/// size. The library itself takes 27, which is 128 MiB a channel.
pub const ZSTD_WINDOW_LOG_MAX: u32 = 25;
/// Payload of a return-path message (spec/stream 8.1).
pub const RETURN_MESSAGE_MAX: u16 = 512;
/// Page requests that wait at a time: each stands for a thread that waits, and machines have a few hundred.
pub const REQUESTS_MAX: usize = 1 << 16;
/// Look-ahead of a reader: a subsection's type, length and name, with room to spare.
pub const PEEK_MAX: usize = 512;
/// Bytes of a package of device state: real ones are below 100 MiB, and it is held whole.
pub const PACKAGE_MAX: u32 = 128 << 20;
/// Growth step where the stream announces a length: memory follows the bytes that came, not the announcement.
pub const READ_STEP: usize = 64 << 10;
