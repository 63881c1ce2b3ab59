//! The elements of a stream as a decoder hands them out, and what it is told to take.

use bitflags::bitflags;

use super::command::Command;
use super::consts::RAM_IDSTR;
use super::limits::Limits;
use super::ram::PageCounts;

/// What the machine at this end expects in a stream; the other end must agree, since a stream does not say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DecoderOptions {
    /// A configuration follows the file header.
    pub configuration: bool,
    /// Sections have footers.
    pub footers: bool,
    /// A description may follow the end: wait for one more byte there (spec/stream 1.4).
    pub description: bool,
    /// What the stream may ask for.
    pub limits: Limits,
}

impl Default for DecoderOptions {
    fn default() -> Self {
        Self { configuration: true, footers: true, description: true, limits: Limits::default() }
    }
}

bitflags! {
    /// What a decoder takes beyond plain precopy. The source does it only if it was asked to, so nothing is taken unasked.
    #[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
    pub struct Accept: u8 {
        /// Pages as differences.
        const XBZRLE = 1;
        /// Pages compressed one by one.
        const COMPRESS = 1 << 1;
        /// Pages on other channels; the main one has marks at which all must have been read up to.
        const MULTIFD = 1 << 2;
        /// Pages at fixed places of a file.
        const MAPPED_RAM = 1 << 3;
        /// Blocks with their guest addresses, some without pages.
        const IGNORE_SHARED = 1 << 4;
    }
}

/// The four kinds of section.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SectionKind {
    /// First of a live handler.
    Start,
    /// One more of a live handler.
    Part,
    /// Last of a live handler.
    End,
    /// All of a handler at once.
    Full,
}

impl SectionKind {
    /// The word for it: `start`, `part`, `end`, `full`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Part => "part",
            Self::End => "end",
            Self::Full => "full",
        }
    }
}

/// Header of a section; PART and END repeat what their START said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SectionHeader {
    /// Which kind this one is.
    pub kind: SectionKind,
    /// The writer's number for the handler.
    pub id: u32,
    /// Name of the handler, 1 to 255 bytes.
    pub idstr: Vec<u8>,
    /// Which of several handlers of that name.
    pub instance: u32,
    /// Version of the payload.
    pub version: u32,
    /// Stream offset of the type byte.
    pub offset: u64,
}

impl SectionHeader {
    /// Where errors of this section are: `idstr/instance`, and just `ram` for RAM.
    pub fn path(&self) -> String {
        let name = self.idstr.escape_ascii();
        if self.is_ram() { name.to_string() } else { format!("{name}/{}", self.instance) }
    }

    pub(super) fn is_ram(&self) -> bool {
        self.idstr == RAM_IDSTR && self.instance == 0
    }
}

/// What [`Decoder::next`] found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The configuration.
    Configuration {
        /// Stream offset of the type byte.
        offset: u64,
        /// Concrete machine type.
        machine: Vec<u8>,
        /// log2 of the target page, where it was sent.
        page_bits: Option<u32>,
        /// Validated capabilities that are on.
        capabilities: Vec<String>,
        /// Identity of the machine.
        uuid: Option<[u8; 16]>,
    },
    /// Header of a section: consume the payload through [`Decoder::input`], then call [`Decoder::section_done`].
    Section(SectionHeader),
    /// A whole section of RAM, already in the sink.
    RamSection {
        /// Its header.
        header: SectionHeader,
        /// Pages it brought.
        pages: PageCounts,
    },
    /// A command and the stream offset of its type byte. After PACKAGED its bytes are next in [`Decoder::input`].
    Command(Command, u64),
    /// The end: everything has been received.
    End {
        /// Stream offset of the type byte.
        offset: u64,
    },
    /// The description (offline decoders only; others drop it).
    Description(Description),
    /// Nothing more is read from this stream.
    Finished,
}

/// The description of the devices.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Description {
    /// Stream offset of the type byte.
    pub offset: u64,
    /// Bytes of text announced.
    pub length: u32,
    /// The text; only its first 64 MiB (`DESCRIPTION_KEPT`).
    pub text: Vec<u8>,
}
