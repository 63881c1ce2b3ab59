//! The decoder: a whole stream, element by element. RAM goes into a [`PageSink`] on the way; payloads of other sections are
//! the caller's to consume, because only a handler knows how long its own is (spec/stream 2.2).
//!
//! Offsets in errors: the first byte of the refused element, or of the field inside it that is wrong or could not be completed.

mod sections;

use std::collections::{HashMap, HashSet};

use super::command::Command;
use super::configuration::Configuration;
use super::consts::{
    COMMAND, CONFIGURATION, DESCRIPTION, EOF, FILE_MAGIC, FILE_VERSION, FILE_VERSION_OBSOLETE, FOOTER, MULTIFD_MAGIC, SECTION_END,
    SECTION_FULL, SECTION_PART, SECTION_START, SUBSECTION,
};
use super::elements::{Accept, DecoderOptions, Description, Event, SectionHeader, SectionKind};
use super::input::{ByteSource, Input, NoSource, PayloadSource};
use super::limits::{DESCRIPTION_KEPT, Limits};
use super::page_channel::AnnouncedBlocks;
use super::ram::RamState;
use super::sink::PageSink;
use crate::{Error, ErrorKind, Result};

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
    /// Where the package ends that elements are read from, if this is offline; 0: none.
    package_end: u64,
    state: State,
    limits: Limits,
    /// START and FULL headers by section id.
    announced: HashMap<u32, SectionHeader>,
    /// Handlers, by name and instance, that have started a live section.
    started: HashSet<(Vec<u8>, u32)>,
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
            package_end: 0,
            state: State::Start,
            limits: options.limits,
            announced: HashMap::new(),
            started: HashSet::new(),
            ram: RamState::new(options.limits.ram_blocks),
        }
    }

    /// For stored streams: finds out by itself whether there is a configuration and, if `footers` is `None`, whether sections
    /// have footers; hands the description out.
    pub fn offline(input: Input<S>, footers: Option<bool>) -> Self {
        Self::offline_within(input, footers, Limits::default())
    }

    /// The same within other limits.
    pub fn offline_within(input: Input<S>, footers: Option<bool>, limits: Limits) -> Self {
        let new = Self::new(input, DecoderOptions { limits, ..DecoderOptions::default() });
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
            package_end: 0,
            state: State::Elements,
            limits: self.limits,
            announced: self.announced.clone(),
            started: self.started.clone(),
            ram: RamState::new(self.limits.ram_blocks),
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
            EOF if offset < self.package_end => {
                Err(Error::new(ErrorKind::UnknownElement, "the stream ends inside a package").at(offset).within("command/PACKAGED"))
            }
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
                if self.offline {
                    self.follow_package(&command, offset)?;
                }
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

    /// A stored package is read with the stream that it stands in, and is over with RUN.
    fn follow_package(&mut self, command: &Command, offset: u64) -> Result<()> {
        match command {
            Command::Packaged(_) if offset < self.package_end => {
                Err(Error::new(ErrorKind::BadCommand, "a package inside a package").at(offset).within("command/PACKAGED"))
            }
            Command::Packaged(size) => {
                self.package_end = self.input.offset() + u64::from(*size);
                Ok(())
            }
            Command::Run => {
                self.package_end = 0;
                Ok(())
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
