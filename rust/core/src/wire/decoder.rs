//! The decoder: a whole stream, element by element. RAM goes into a [`PageSink`] on the way; payloads of other sections are
//! the caller's to consume, because only a handler knows how long its own is (spec/stream 2.2).
//!
//! Offsets in errors: the first byte of the refused element, or of the field inside it that is wrong or could not be completed.

use std::collections::HashMap;

use bitflags::bitflags;

use super::command::Command;
use super::configuration::Configuration;
use super::consts::{
    COMMAND, CONFIGURATION, DESCRIPTION, EOF, FILE_MAGIC, FILE_VERSION, FILE_VERSION_OBSOLETE, FOOTER, MULTIFD_MAGIC, RAM_IDSTR,
    RAM_VERSION, SECTION_END, SECTION_FULL, SECTION_PART, SECTION_START, SUBSECTION,
};
use super::input::{ByteSource, Input, NoSource, PayloadSource};
use super::limits::{DESCRIPTION_KEPT, SECTIONS_MAX};
use super::ram::{PageCounts, RamState};
use super::sink::PageSink;
use crate::{Error, ErrorKind, Result};

/// What the machine at this end expects in a stream; the other end must agree, since a stream does not say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DecoderOptions {
    /// A configuration follows the file header.
    pub configuration: bool,
    /// Sections have footers.
    pub footers: bool,
    /// A description may follow the end: wait for one more byte there (spec/stream 1.4).
    pub description: bool,
}

impl Default for DecoderOptions {
    fn default() -> Self {
        Self { configuration: true, footers: true, description: true }
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

/// Whether an optional element is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Presence {
    Yes,
    No,
    /// Look, and remember.
    Detect,
}

impl From<bool> for Presence {
    fn from(there: bool) -> Self {
        if there { Self::Yes } else { Self::No }
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

    fn is_ram(&self) -> bool {
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

#[derive(Debug)]
enum State {
    Start,
    Elements,
    /// The caller has to consume this section's payload.
    Payload(SectionHeader),
    Description,
    Finished,
    Failed,
}

/// What of a migration the elements are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    /// All of it, or what comes before LISTEN.
    Whole,
    /// A package: no RAM, no package, and the last element is RUN.
    Package,
    /// What comes after LISTEN: the rest of RAM, commands, the end.
    Listening,
}

/// Decodes one stream. After an error nothing more comes out of it.
#[derive(Debug)]
pub struct Decoder<S> {
    input: Input<S>,
    configuration: Presence,
    footers: Presence,
    description: bool,
    offline: bool,
    part: Part,
    state: State,
    /// START and FULL headers by section id.
    announced: HashMap<u32, SectionHeader>,
    ram: RamState,
}

impl<S: ByteSource> Decoder<S> {
    /// For loading: reads no byte before the format makes it mandatory, and drops the description. At the `End` event the
    /// migration has been received, so a stream that breaks off behind it is no error.
    pub fn new(input: Input<S>, options: DecoderOptions) -> Self {
        Self {
            input,
            configuration: options.configuration.into(),
            footers: options.footers.into(),
            description: options.description,
            offline: false,
            part: Part::Whole,
            state: State::Start,
            announced: HashMap::new(),
            ram: RamState::default(),
        }
    }

    /// For stored streams: finds out by itself whether there is a configuration and, if `footers` is `None`, whether sections
    /// have footers; hands the description out.
    pub fn offline(input: Input<S>, footers: Option<bool>) -> Self {
        let new = Self::new(input, DecoderOptions::default());
        Self { configuration: Presence::Detect, footers: footers.map_or(Presence::Detect, Into::into), offline: true, ..new }
    }

    /// The same, taking what `accept` says, too.
    #[must_use]
    pub fn accepting(mut self, accept: Accept) -> Self {
        self.ram.accept = accept;
        self
    }

    /// For the bytes of a package, the first of which stands at stream offset `offset`: elements without header and configuration, with
    /// the sections that are announced already. Its last event is the command RUN, behind which there may be nothing.
    pub fn package(&self, bytes: Vec<u8>, offset: u64) -> Decoder<NoSource> {
        Decoder {
            input: Input::from_bytes(bytes, offset),
            configuration: Presence::No,
            footers: self.footers,
            description: false,
            offline: false,
            part: Part::Package,
            state: State::Elements,
            announced: self.announced.clone(),
            ram: RamState::default(),
        }
    }

    /// LISTEN was obeyed: from here on only the rest of RAM, commands and the end are legal, and no description follows.
    pub fn listening(&mut self) {
        self.part = Part::Listening;
        self.description = false;
    }

    /// The stream goes on in `source`, at an element: what was half read is forgotten, and so is which block was meant last.
    pub fn replace_source(&mut self, source: S) {
        self.input = Input::new(source);
        self.ram.forget_current();
        self.state = State::Elements;
    }

    /// The blocks that this stream announced, for channels that bring pages of them.
    pub fn announced_blocks(&self) -> AnnouncedBlocks {
        let mut ram = self.ram.clone();
        ram.forget_current();
        AnnouncedBlocks(ram)
    }

    /// Whether sections have footers, as far as it is known.
    pub fn footers(&self) -> Option<bool> {
        match self.footers {
            Presence::Yes => Some(true),
            Presence::No => Some(false),
            Presence::Detect => None,
        }
    }

    /// The bytes that come next: the payload after a `Section` event.
    pub fn input(&mut self) -> &mut Input<S> {
        &mut self.input
    }

    /// Read up to the next event. RAM payloads go into `sink`.
    pub fn next(&mut self, sink: &mut dyn PageSink) -> Result<Event> {
        let event = self.step(sink);
        if event.is_err() {
            self.state = State::Failed;
        }
        event
    }

    /// The payload of the section has been consumed: read its footer.
    pub fn section_done(&mut self) -> Result<()> {
        match std::mem::replace(&mut self.state, State::Failed) {
            State::Payload(header) => {
                self.footer(&header)?;
                self.state = State::Elements;
                Ok(())
            }
            other => {
                self.state = other;
                Err(Error::new(ErrorKind::InvalidState, "no section payload is being read"))
            }
        }
    }

    fn step(&mut self, sink: &mut dyn PageSink) -> Result<Event> {
        match &self.state {
            State::Start => {
                self.file_header().map_err(|e| e.within("header"))?;
                self.state = State::Elements;
                if self.has_configuration()? {
                    return self.read_configuration();
                }
                // Nothing says so; a live decoder accepts it only where it must be so.
                self.ram.mapped = !self.offline && self.ram.accept.contains(Accept::MAPPED_RAM);
                self.element(sink)
            }
            State::Elements => self.element(sink),
            State::Payload(header) => {
                let text = format!("the payload of section {} has not been declared done", header.path());
                Err(Error::new(ErrorKind::InvalidState, text))
            }
            State::Description => {
                self.state = State::Finished;
                let found = self.read_description();
                match found {
                    Ok(Some(description)) if self.offline => Ok(Event::Description(description)),
                    Ok(_) => Ok(Event::Finished),
                    // Everything that counts has arrived, and the source has let go of the machine.
                    Err(e) if !self.offline && e.kind != ErrorKind::Cancelled => Ok(Event::Finished),
                    Err(e) => Err(e.within("description")),
                }
            }
            State::Finished => Ok(Event::Finished),
            State::Failed => Err(Error::new(ErrorKind::InvalidState, "this stream has been refused before")),
        }
    }

    fn file_header(&mut self) -> Result<()> {
        let at = self.input.offset();
        let magic = self.input.be32()?;
        if magic == MULTIFD_MAGIC {
            let text = "begins like a multifd channel; switch the capability multifd on here, too, or off at the source";
            return Err(Error::new(ErrorKind::BadMagic, text).at(at));
        }
        if magic >> 16 == 0x1603 {
            let text = "begins like a TLS handshake; set tls-creds here, too, or take it off at the source";
            return Err(Error::new(ErrorKind::BadMagic, text).at(at));
        }
        if magic != FILE_MAGIC {
            let text = format!("begins with {magic:#010x}, not {FILE_MAGIC:#010x} (QEVM): this is no migration stream");
            return Err(Error::new(ErrorKind::BadMagic, text).at(at));
        }
        let at = self.input.offset();
        match self.input.be32()? {
            FILE_VERSION => Ok(()),
            FILE_VERSION_OBSOLETE => {
                let text = "version 2, a format retired long ago; migrate with a newer QEMU on the way, which writes version 3";
                Err(Error::new(ErrorKind::ObsoleteVersion, text).at(at))
            }
            version => Err(Error::new(ErrorKind::BadVersion, format!("version {version}; only {FILE_VERSION} is known")).at(at)),
        }
    }

    fn has_configuration(&mut self) -> Result<bool> {
        let wanted = self.configuration;
        if wanted == Presence::No {
            return Ok(false);
        }
        let at = self.input.offset();
        // A type byte is mandatory here in any case.
        match self.input.peek(1)? {
            [CONFIGURATION] | [] => Ok(true),
            _ if wanted == Presence::Detect => Ok(false),
            [other, ..] => {
                let text = format!(
                    "the configuration is missing (element {other:#04x} instead); send it, or switch it off here too (migration.send-configuration=off)"
                );
                Err(Error::new(ErrorKind::BadConfiguration, text).at(at).within("configuration"))
            }
        }
    }

    fn read_configuration(&mut self) -> Result<Event> {
        let offset = self.input.offset();
        self.input.u8().map_err(|e| e.within("configuration"))?;
        let configuration = Configuration::read(&mut self.input, self.ram.accept)?;
        self.ram.mapped = configuration.mapped_ram();
        self.ram.addresses = configuration.ignore_shared();
        let Configuration { machine, page_bits, capabilities, uuid } = configuration;
        Ok(Event::Configuration { offset, machine, page_bits, capabilities, uuid })
    }

    fn element(&mut self, sink: &mut dyn PageSink) -> Result<Event> {
        let offset = self.input.offset();
        if self.part != Part::Whole {
            self.check_part(offset)?;
        }
        match self.input.u8()? {
            EOF => {
                self.state = if self.description { State::Description } else { State::Finished };
                Ok(Event::End { offset })
            }
            SECTION_START => self.announcement(SectionKind::Start, offset, sink),
            SECTION_FULL => self.announcement(SectionKind::Full, offset, sink),
            SECTION_PART => self.continuation(SectionKind::Part, offset, sink),
            SECTION_END => self.continuation(SectionKind::End, offset, sink),
            COMMAND => {
                let command = Command::read(&mut self.input, offset).map_err(|e| e.within("command"))?;
                self.ram.told(&command);
                if self.part == Part::Package {
                    self.packaged(&command).map_err(|e| e.at(offset).within("package"))?;
                }
                Ok(Event::Command(command, offset))
            }
            other => Err(misplaced(other).at(offset)),
        }
    }

    /// Refuses an element that the stream as a whole may have, but not this part of it.
    #[cold]
    fn check_part(&mut self, offset: u64) -> Result<()> {
        let next = self.input.peek(1)?.first().copied();
        let refuse = |text: String| Err(Error::new(ErrorKind::UnknownElement, text).at(offset));
        match (self.part, next) {
            (Part::Package, None | Some(EOF)) => {
                let text = "the package ends without POSTCOPY_RUN: nothing would ever run the machine";
                Err(Error::new(ErrorKind::Truncated, text).at(offset).within("package"))
            }
            (Part::Listening, Some(kind @ (SECTION_START | SECTION_FULL))) => {
                refuse(format!("element {kind:#04x} after POSTCOPY_LISTEN, where only the rest of RAM may come"))
            }
            _ => Ok(()),
        }
    }

    /// A command inside a package.
    fn packaged(&mut self, command: &Command) -> Result<()> {
        match command {
            Command::Packaged(_) => Err(Error::new(ErrorKind::BadCommand, "a package inside a package")),
            Command::Run if self.input.buffered() > 0 => {
                Err(Error::new(ErrorKind::TrailingData, format!("{} bytes after POSTCOPY_RUN in the package", self.input.buffered())))
            }
            Command::Run => {
                self.state = State::Finished;
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// START or FULL: a header that names its handler.
    fn announcement(&mut self, kind: SectionKind, offset: u64, sink: &mut dyn PageSink) -> Result<Event> {
        let id = self.input.be32()?;
        let at = self.input.offset();
        let idstr = self.input.cstr8()?.to_vec();
        if idstr.is_empty() {
            return Err(Error::new(ErrorKind::UnknownSection, "a section without a name").at(at));
        }
        let instance = self.input.be32()?;
        let at = self.input.offset();
        let version = self.input.be32()?;
        let header = SectionHeader { kind, id, idstr, instance, version, offset };
        self.announce(&header).map_err(|e| e.at(offset).within(&header.path()))?;
        if !header.is_ram() {
            self.state = State::Payload(header.clone());
            return Ok(Event::Section(header));
        }
        if version != RAM_VERSION {
            let text = format!("RAM section of version {version}; {RAM_VERSION} is the only one");
            return Err(Error::new(ErrorKind::BadVersion, text).at(at).within("ram"));
        }
        self.ram_section(header, sink)
    }

    fn announce(&mut self, header: &SectionHeader) -> Result<()> {
        let start = header.kind == SectionKind::Start;
        if !start && header.is_ram() {
            return Err(Error::new(ErrorKind::UnknownSection, "RAM is a live section and cannot come as FULL"));
        }
        let same_handler = |other: &SectionHeader| other.idstr == header.idstr && other.instance == header.instance;
        // A FULL may come again (7.2 sends some devices twice); a live section starts once, and an id means one handler.
        let clash = self.announced.get(&header.id).is_some_and(|other| start || other.kind != header.kind || !same_handler(other))
            || start && self.announced.values().any(|other| other.kind == SectionKind::Start && same_handler(other));
        if clash {
            let text = format!(
                "section {} is announced again (id {:#x}); each live section starts once and each id stands for one handler",
                header.path(),
                header.id
            );
            return Err(Error::new(ErrorKind::DuplicateSection, text));
        }
        if self.announced.len() == SECTIONS_MAX {
            return Err(Error::new(ErrorKind::LimitExceeded, format!("more than {SECTIONS_MAX} sections (SECTIONS_MAX)")));
        }
        self.announced.insert(header.id, header.clone());
        Ok(())
    }

    /// PART or END: refers to a START by its id.
    fn continuation(&mut self, kind: SectionKind, offset: u64, sink: &mut dyn PageSink) -> Result<Event> {
        let id = self.input.be32()?;
        match self.announced.get(&id) {
            Some(start) if start.kind == SectionKind::Start => {
                let header = SectionHeader { kind, offset, ..start.clone() };
                if header.is_ram() {
                    return self.ram_section(header, sink);
                }
                if self.part == Part::Listening {
                    let text = "a part of a device after POSTCOPY_LISTEN, where only the rest of RAM may come";
                    return Err(Error::new(ErrorKind::UnknownElement, text).at(offset).within(&header.path()));
                }
                self.state = State::Payload(header.clone());
                Ok(Event::Section(header))
            }
            Some(full) => {
                let text = format!("section {} came as FULL and cannot go on with {}", full.path(), kind.name().to_uppercase());
                Err(Error::new(ErrorKind::UnknownSection, text).at(offset).within(&full.path()))
            }
            None => {
                let text = format!("{} of section id {id:#x}, which no START has announced", kind.name().to_uppercase());
                Err(Error::new(ErrorKind::UnknownSection, text).at(offset))
            }
        }
    }

    fn ram_section(&mut self, header: SectionHeader, sink: &mut dyn PageSink) -> Result<Event> {
        if self.part == Part::Package {
            return Err(Error::new(ErrorKind::UnknownElement, "RAM inside a package").at(header.offset).within("ram"));
        }
        let first = header.kind == SectionKind::Start;
        let pages = self.ram.payload(&mut self.input, first, sink).map_err(|e| e.within("ram"))?;
        self.footer(&header)?;
        Ok(Event::RamSection { header, pages })
    }

    fn footer(&mut self, header: &SectionHeader) -> Result<()> {
        if self.footers == Presence::Detect {
            let id = header.id.to_be_bytes();
            let there = *self.input.peek(1)? == [FOOTER] && self.input.peek(5)?.get(1..) == Some(&id);
            self.footers = there.into();
        }
        if self.footers == Presence::No {
            return Ok(());
        }
        self.read_footer(header.id).map_err(|e| e.within(&header.path()))
    }

    fn read_footer(&mut self, id: u32) -> Result<()> {
        let at = self.input.offset();
        let mark = self.input.u8()?;
        if mark != FOOTER {
            let text = format!(
                "byte {mark:#04x} where the section's footer must stand: the payload has another length than its handler read, or footers are off at the source"
            );
            return Err(Error::new(ErrorKind::BadFooter, text).at(at));
        }
        match self.input.be32()? {
            found if found == id => Ok(()),
            found => Err(Error::new(ErrorKind::BadFooter, format!("footer of section id {found:#x} after a section of id {id:#x}")).at(at)),
        }
    }

    /// One more byte is mandatory, unless the stream ends; only a description's type byte makes more so.
    fn read_description(&mut self) -> Result<Option<Description>> {
        let offset = self.input.offset();
        if self.input.peek(1)? != [DESCRIPTION] {
            return Ok(None);
        }
        self.input.skip(1)?;
        let length = self.input.be32()?;
        let kept = if self.offline { length.min(DESCRIPTION_KEPT) } else { 0 };
        let start = self.input.offset();
        let read = self.input.read_vec(kept.into()).and_then(|text| self.input.skip(u64::from(length - kept)).map(|()| text));
        let text = read.map_err(|e| self.input.within_field(start, length.into(), e))?;
        Ok(Some(Description { offset, length, text }))
    }

    fn in_payload(&self) -> Result<()> {
        match self.state {
            State::Payload(_) => Ok(()),
            _ => Err(Error::new(ErrorKind::InvalidState, "the payload that this reader was for is over")),
        }
    }
}

/// The block list of a stream.
#[derive(Debug, Clone)]
pub struct AnnouncedBlocks(RamState);

impl AnnouncedBlocks {
    /// A channel of page records for these blocks; each starts with no block named.
    pub fn channel<S: ByteSource>(&self, source: S) -> PageChannel<S> {
        PageChannel { input: Input::with_capacity(source, PAGE_CHANNEL_BUFFER), ram: self.0.clone() }
    }
}

/// Bytes that are read ahead on a channel whose pages are waited for: a few of them.
const PAGE_CHANNEL_BUFFER: usize = 64 << 10;

/// A channel that has page records and nothing else (spec/stream 9.9).
#[derive(Debug)]
pub struct PageChannel<S> {
    input: Input<S>,
    ram: RamState,
}

impl<S: ByteSource> PageChannel<S> {
    /// Reads up to and with the EOS that ends the channel. A channel that ends without one fails as `truncated`.
    pub fn run(&mut self, sink: &mut dyn PageSink) -> Result<PageCounts> {
        self.ram.payload(&mut self.input, false, sink).map_err(|e| e.within("preempt"))
    }
}

/// A byte that is no element type here, with what it would be elsewhere.
fn misplaced(byte: u8) -> Error {
    let text = match byte {
        SUBSECTION => "a subsection outside a section: an unknown one, or its section was not read to its end",
        DESCRIPTION => "a description before the end of the stream",
        CONFIGURATION => "a configuration that is not the first element, or that is switched off here (migration.send-configuration)",
        FOOTER => "a footer without a section; footers are off here (migration.send-section-footer) or a payload was read too short",
        _ => return Error::new(ErrorKind::UnknownElement, format!("byte {byte:#04x} is no element type")),
    };
    Error::new(ErrorKind::UnknownElement, format!("element {byte:#04x} is {text}"))
}

impl<S: ByteSource> PayloadSource for Decoder<S> {
    fn offset(&self) -> u64 {
        self.input.offset()
    }

    fn buffered(&self) -> usize {
        self.input.buffered()
    }

    fn read_exact(&mut self, out: &mut [u8]) -> Result<()> {
        self.in_payload()?;
        self.input.read_exact(out)
    }

    fn peek(&mut self, n: usize) -> Result<&[u8]> {
        self.in_payload()?;
        self.input.peek(n)
    }

    fn skip(&mut self, n: u64) -> Result<()> {
        self.in_payload()?;
        self.input.skip(n)
    }
}
