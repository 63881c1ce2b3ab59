//! Packets of a multifd channel (spec/stream 12): the handshake, and headers of pages or of device state. What follows a header is
//! the caller's to consume.

use super::consts::{
    MULTIFD_DEVICE_STATE, MULTIFD_MAGIC, MULTIFD_METHOD, MULTIFD_PAGES, MULTIFD_SYNC, MULTIFD_VERSION, PAGE_BYTES, PAGE_SIZE,
};
use super::input::{ByteSource, Input};
use super::limits::MULTIFD_DATA_MAX;
use crate::{Error, ErrorKind, Result};

/// Length of the block's name, padded.
const NAME_BYTES: usize = 256;
/// Length of the first data of a channel.
pub const HELLO_BYTES: usize = 64;
/// Length of a header of pages, however many there are.
pub const HEADER_BYTES: usize = OFFSETS_AT + 8 * MULTIFD_PAGES as usize;
const NAME_AT: usize = 64;
const OFFSETS_AT: usize = NAME_AT + NAME_BYTES;

/// How the pages of a packet are compressed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Method {
    /// Not at all.
    #[default]
    None,
    /// One endless zlib stream over all packets of the channel.
    Zlib,
    /// One endless zstd frame over all packets of the channel.
    Zstd,
    /// Each page raw or a deflate stream of its own, their lengths first.
    Qpl,
    /// Each page raw or a zlib stream of its own, their lengths first.
    Uadk,
}

impl Method {
    /// Its name as a value of the parameter `multifd-compression`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Zlib => "zlib",
            Self::Zstd => "zstd",
            Self::Qpl => "qpl",
            Self::Uadk => "uadk",
        }
    }
}

/// First data of a channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hello {
    /// UUID of the source's machine; zeros if it has none.
    pub uuid: [u8; 16],
    /// Number of the channel.
    pub channel: u8,
}

/// One packet's header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Packet {
    /// Pages, possibly none.
    Pages(Pages),
    /// So many bytes of a device's state follow.
    DeviceState {
        /// Name of the handler.
        idstr: Vec<u8>,
        /// Which of several handlers of that name.
        instance: u32,
        /// Bytes that follow.
        size: u32,
    },
}

/// Header of a packet with pages.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pages {
    /// The channel waits behind this packet until all have come so far.
    pub sync: bool,
    /// How the pages are compressed.
    pub method: Method,
    /// The block; means nothing if there are no pages.
    pub block: Vec<u8>,
    /// Offsets of pages whose contents follow, whole pages.
    pub normal: Vec<u64>,
    /// Offsets of pages that are zero.
    pub zero: Vec<u64>,
    /// Bytes that follow.
    pub size: u32,
    /// Stream offset of the first offset.
    pub offsets_at: u64,
}

impl Hello {
    /// Read it.
    pub fn read<S: ByteSource>(input: &mut Input<S>) -> Result<Self> {
        head(input)?;
        let uuid = input.array()?;
        let channel = input.u8()?;
        input.skip(7 + 32)?;
        Ok(Self { uuid, channel })
    }
}

impl Hello {
    /// As it is written.
    pub fn bytes(&self) -> [u8; HELLO_BYTES] {
        let mut bytes = [0; HELLO_BYTES];
        bytes[..4].copy_from_slice(&MULTIFD_MAGIC.to_be_bytes());
        bytes[4..8].copy_from_slice(&MULTIFD_VERSION.to_be_bytes());
        bytes[8..24].copy_from_slice(&self.uuid);
        bytes[24] = self.channel;
        bytes
    }
}

/// What a source says in the header of a packet with pages, or of one with SYNC.
#[derive(Debug, Clone, Copy)]
pub struct Head<'a> {
    /// The channel waits behind this packet until all have come so far.
    pub sync: bool,
    /// How the pages are compressed.
    pub method: Method,
    /// Pages that there is room for: as many as a packet can have, or 0.
    pub room: u32,
    /// Number of the packet among those of all channels.
    pub number: u64,
    /// The block.
    pub block: &'a [u8],
    /// Offsets of pages whose contents follow.
    pub normal: &'a [u64],
    /// Offsets of pages that are zero.
    pub zero: &'a [u64],
}

impl Head<'_> {
    /// As it is written, with `size` bytes behind it. `invalid-argument` if there are more pages than a packet has, or too long a name.
    pub fn put(&self, size: usize, out: &mut [u8; HEADER_BYTES]) -> Result<()> {
        let pages = self.normal.len() + self.zero.len();
        let (Ok(size), true) = (u32::try_from(size), pages <= MULTIFD_PAGES as usize && self.block.len() < NAME_BYTES) else {
            let text = format!("{pages} pages of a block with a name of {} bytes are no multifd packet", self.block.len());
            return Err(Error::new(ErrorKind::InvalidArgument, text));
        };
        let count = |list: &[u64]| u32::try_from(list.len()).unwrap_or(MULTIFD_PAGES); // bounded above
        let method = match self.method {
            Method::None => 0,
            Method::Zlib => 0x02,
            Method::Zstd => 0x04,
            Method::Qpl => 0x08,
            Method::Uadk => 0x10,
        };
        out.fill(0);
        let flags = method | if self.sync { MULTIFD_SYNC } else { 0 };
        let words = [MULTIFD_MAGIC, MULTIFD_VERSION, flags, self.room, count(self.normal), size];
        for (place, word) in out.chunks_exact_mut(4).zip(words) {
            place.copy_from_slice(&word.to_be_bytes());
        }
        out[24..32].copy_from_slice(&self.number.to_be_bytes());
        out[32..36].copy_from_slice(&count(self.zero).to_be_bytes());
        out[NAME_AT..NAME_AT + self.block.len()].copy_from_slice(self.block);
        for (place, offset) in out[OFFSETS_AT..].chunks_exact_mut(8).zip(self.normal.iter().chain(self.zero)) {
            place.copy_from_slice(&offset.to_be_bytes());
        }
        Ok(())
    }
}

impl Packet {
    /// Read the next header; `None` where the channel ends between packets.
    pub fn read<S: ByteSource>(input: &mut Input<S>) -> Result<Option<Self>> {
        Self::read_over(Pages::default(), input)
    }

    /// The same in the memory of the packet before, for whoever reads many.
    pub fn read_over<S: ByteSource>(former: Pages, input: &mut Input<S>) -> Result<Option<Self>> {
        if input.peek(1)?.is_empty() {
            return Ok(None);
        }
        head(input)?;
        let at = input.offset();
        let flags = input.be32()?;
        if flags & !(MULTIFD_SYNC | MULTIFD_METHOD | MULTIFD_DEVICE_STATE) != 0 {
            return Err(Error::new(ErrorKind::BadFlags, format!("packet flags {flags:#x} are not known")).at(at));
        }
        if flags & MULTIFD_DEVICE_STATE == 0 {
            return former.read(input, flags, at).map(Self::Pages).map(Some);
        }
        if flags != MULTIFD_DEVICE_STATE {
            return Err(Error::new(ErrorKind::BadFlags, format!("packet flags {flags:#x}: device state stands alone")).at(at));
        }
        let mut idstr = Vec::new();
        name(input, &mut idstr)?;
        let instance = input.be32()?;
        let at = input.offset();
        let size = input.be32()?;
        if size == 0 {
            return Err(Error::new(ErrorKind::LimitExceeded, "a packet of device state without any").at(at));
        }
        Ok(Some(Self::DeviceState { idstr, instance, size }))
    }
}

impl Pages {
    fn read<S: ByteSource>(mut self, input: &mut Input<S>, flags: u32, at: u64) -> Result<Self> {
        let method = match flags & MULTIFD_METHOD {
            0 => Method::None,
            0x02 => Method::Zlib,
            0x04 => Method::Zstd,
            0x08 => Method::Qpl,
            0x10 => Method::Uadk,
            0x20 => return Err(Error::new(ErrorKind::Unsupported, "pages compressed with QATzip").at(at)),
            other => return Err(Error::new(ErrorKind::BadFlags, format!("packet flags name several compressions ({other:#x})")).at(at)),
        };
        let at = input.offset();
        let (room, normals, size) = (input.be32()?, input.be32()?, input.be32()?);
        input.skip(8)?;
        let zeros = input.be32()?;
        let excess = [(room > MULTIFD_PAGES, 0), (normals > room, 4), (zeros > room.saturating_sub(normals), 20)];
        if let Some((_, field)) = excess.into_iter().find(|(is, _)| *is) {
            let text = format!(
                "{normals} pages and {zeros} zero pages in a packet for {room}; at most {MULTIFD_PAGES} are accepted (MULTIFD_PAGES)"
            );
            return Err(Error::new(ErrorKind::LimitExceeded, text).at(at + field));
        }
        input.skip(28)?;
        name(input, &mut self.block)?;
        let offsets_at = input.offset();
        let Self { block, mut normal, mut zero, .. } = self;
        for (list, count) in [(&mut normal, normals), (&mut zero, zeros)] {
            list.clear();
            for _ in 0..count {
                list.push(input.be64()?);
            }
        }
        let unused = MULTIFD_PAGES as usize - normal.len() - zero.len();
        input.skip(8 * unused as u64)?;
        // An older source leaves the length of the packet before in one without pages.
        let size = if normal.is_empty() { 0 } else { size };
        let pages = normal.len() * PAGE_BYTES;
        let fits = match method {
            Method::None => u64::from(size) == pages as u64,
            _ => normal.is_empty() || (1..=MULTIFD_DATA_MAX).contains(&size),
        };
        if !fits {
            let text =
                format!("{size} bytes for {pages} bytes of pages; compressed at most {MULTIFD_DATA_MAX} are accepted (MULTIFD_DATA_MAX)");
            return Err(Error::new(ErrorKind::LimitExceeded, text).at(at + 8));
        }
        Ok(Self { sync: flags & MULTIFD_SYNC != 0, method, block, normal, zero, size, offsets_at })
    }

    /// Pages of either kind.
    pub fn is_empty(&self) -> bool {
        self.normal.is_empty() && self.zero.is_empty()
    }

    /// Stream offset of the block's name.
    pub fn name_at(&self) -> u64 {
        self.offsets_at - NAME_BYTES as u64
    }

    /// All offsets are those of whole pages of a block of `used_length` bytes, each once.
    pub fn check(&self, used_length: u64) -> Result<()> {
        let all = || self.normal.iter().chain(&self.zero).copied().zip(0_u64..);
        let refuse = |text: String, index: u64| Err(Error::new(ErrorKind::BadAddress, text).at(self.offsets_at + 8 * index));
        let inside = |offset: u64| offset.is_multiple_of(PAGE_SIZE) && offset < used_length;
        if let Some((offset, index)) = all().find(|(offset, _)| !inside(*offset)) {
            return refuse(format!("page at {offset:#x} of a block of {used_length:#x} bytes"), index);
        }
        // Whoever searches memory from its begin sends them so; any other order is looked through.
        if self.normal.is_sorted_by(|a, b| a < b) && self.zero.is_empty() {
            return Ok(());
        }
        let mut sorted = [(0, 0); MULTIFD_PAGES as usize];
        let sorted = &mut sorted[..self.normal.len() + self.zero.len()];
        sorted.iter_mut().zip(all()).for_each(|(place, page)| *place = page);
        sorted.sort_unstable();
        match sorted.windows(2).filter(|pair| pair[0].0 == pair[1].0).min_by_key(|pair| pair[1].1) {
            None => Ok(()),
            Some(pair) => refuse(format!("page at {:#x} twice in one packet", pair[0].0), pair[1].1),
        }
    }
}

/// Magic and version, before everything.
fn head<S: ByteSource>(input: &mut Input<S>) -> Result<()> {
    let at = input.offset();
    let magic = input.be32()?;
    if magic != MULTIFD_MAGIC {
        return Err(
            Error::new(ErrorKind::BadMagic, format!("{magic:#010x} where a multifd packet must begin with {MULTIFD_MAGIC:#010x}")).at(at)
        );
    }
    let at = input.offset();
    match input.be32()? {
        MULTIFD_VERSION => Ok(()),
        version => {
            Err(Error::new(ErrorKind::BadVersion, format!("multifd packet of version {version}; {MULTIFD_VERSION} is the only one")).at(at))
        }
    }
}

/// A name padded with zeros.
fn name<S: ByteSource>(input: &mut Input<S>, into: &mut Vec<u8>) -> Result<()> {
    let field: [u8; NAME_BYTES] = input.array()?;
    let length = field[..NAME_BYTES - 1].iter().position(|byte| *byte == 0).unwrap_or(NAME_BYTES - 1);
    into.clear();
    into.extend_from_slice(&field[..length]);
    Ok(())
}
