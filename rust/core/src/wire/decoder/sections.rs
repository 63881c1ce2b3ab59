//! Sections: their headers, which must fit what was announced, RAM's payload, and their footers.

use super::{Decoder, Part, Presence, State};
use crate::wire::consts::{FOOTER, RAM_VERSION};
use crate::wire::elements::{Event, SectionHeader, SectionKind};
use crate::wire::input::ByteSource;
use crate::wire::sink::PageSink;
use crate::{Error, ErrorKind, Result};

impl<S: ByteSource> Decoder<S> {
    /// START or FULL: a header that names its handler.
    pub(super) fn announcement(&mut self, kind: SectionKind, offset: u64, sink: &mut dyn PageSink) -> Result<Event> {
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
            || start && self.started.contains(&(header.idstr.clone(), header.instance));
        if clash {
            let text = format!(
                "section {} is announced again (id {:#x}); each live section starts once and each id stands for one handler",
                header.path(),
                header.id
            );
            return Err(Error::new(ErrorKind::DuplicateSection, text));
        }
        let most = self.limits.sections;
        if self.announced.len() >= most && !self.announced.contains_key(&header.id) {
            return Err(Error::new(ErrorKind::LimitExceeded, format!("more than {most} sections (SECTIONS_MAX)")));
        }
        if start {
            self.started.insert((header.idstr.clone(), header.instance));
        }
        self.announced.insert(header.id, header.clone());
        Ok(())
    }

    /// PART or END: refers to a START by its id.
    pub(super) fn continuation(&mut self, kind: SectionKind, offset: u64, sink: &mut dyn PageSink) -> Result<Event> {
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

    pub(super) fn footer(&mut self, header: &SectionHeader) -> Result<()> {
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
}
