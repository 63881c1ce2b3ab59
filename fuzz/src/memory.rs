//! A whole stream into the real memory of a small machine, through all of the destination: channel, decoder, RAM loader, threads that
//! decompress, a mapped-ram file, postcopy up to RUN.
//!
//! Input: one byte that chooses channel and capabilities, then a stream for the blocks below. Seeds: `python3 fuzz/make_seeds.py`.
//! Run: `make fuzz TARGET=memory TIME=3600`
//! Asserts: what ends well has left exactly the bytes that a slow model of the stream says; what is refused has left in each page one of
//! the versions that the stream had of it, and nothing behind a block's used length; the answers are whole messages; nothing hangs; less
//! than 64 MiB of heap.

use std::fs::File;
use std::io::Write;
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread;

use qmig_core::channel::Uri;
use qmig_core::control::Control;
use qmig_core::page::inflate_page;
use qmig_core::ram::Block;
use qmig_core::ram::BlockOptions;
use qmig_core::recv::Incoming;
use qmig_core::wire::{
    Accept, BlockEntry, CodedPage, Command, Decoder, DecoderOptions, Event, Input, PageSink, PayloadSource, ReturnMessage, SectionHeader,
};
use qmig_core::{Error, ErrorKind, Result};
use rustix::fs::{MemfdFlags, memfd_create};

use super::slow;

const PAGE: usize = 4096;

/// Name, pages in use, pages that there is room for.
type Shape = (&'static str, usize, usize);

const SHAPE: [Shape; 2] = [("ram", 8, 8), ("rom", 2, 4)];

/// Longest input: what fits a socket at once.
const INPUT_MAX: usize = 64 << 10;

/// How the stream comes and what is switched on.
#[derive(Debug, Clone, Copy, Default)]
pub struct How {
    pub socket: bool,
    pub compress: bool,
    pub mapped: bool,
    pub postcopy: bool,
}

impl How {
    pub fn of(choice: u8) -> Self {
        let bit = |n: u8| choice >> n & 1 != 0;
        Self { socket: bit(0), compress: bit(1), mapped: bit(2) && !bit(0), postcopy: bit(2) && bit(0) }
    }
}

pub fn run(data: &[u8]) -> bool {
    let Some((&choice, bytes)) = data.split_first() else { return false };
    if bytes.len() > INPUT_MAX {
        return false;
    }
    let _ = check(bytes, How::of(choice), &SHAPE);
    bytes.starts_with(b"QEVM\0\0\0\x03")
}

/// Loads the stream and compares; how many events the model saw, or why the destination refused it.
pub fn check(bytes: &[u8], how: How, shape: &[Shape]) -> Result<usize> {
    let blocks: Vec<_> = shape
        .iter()
        .map(|(name, pages, most)| {
            let options = BlockOptions { max_size: Some((most * PAGE) as u64), ..BlockOptions::default() };
            Block::new(name, (pages * PAGE) as u64, &options).unwrap()
        })
        .collect();
    // Pages that exist are written in another way than those that do not.
    blocks[0].fill(0, blocks[0].used_length() as usize, 0x5a).unwrap();
    let mut model = Model::new(bytes, shape);
    let events = model.run(how);
    let ended = load(bytes, how, &blocks);
    for (number, block) in blocks.iter().enumerate() {
        // Several pages of a file are read at once: where it breaks off, any number of them has come, and a part of one.
        let known = if how.mapped && ended.is_err() { Known::Nothing } else { Known::Versions { last: ended.is_ok() } };
        compare(number, block, &model, known);
    }
    ended.map(|()| events)
}

/// What is known of the bytes of a page.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Known {
    Nothing,
    /// They are one of those that the model has; the last one.
    Versions {
        last: bool,
    },
}

fn compare(number: usize, block: &Block, model: &Model<'_>, known: Known) {
    let used = block.used_length() as usize / PAGE;
    block.resize(block.max_length()).unwrap();
    for (page, versions) in model.pages[number].iter().enumerate() {
        let mut bytes = vec![0; PAGE];
        block.read((page * PAGE) as u64, &mut bytes).unwrap();
        let right = match known {
            _ if page >= used => bytes == [0; PAGE],
            Known::Nothing => true,
            Known::Versions { last: true } => versions.last() == Some(&bytes),
            Known::Versions { last: false } => versions.contains(&bytes),
        };
        assert!(right, "page {page} of {}, which has {used}", block.name());
    }
}

fn load(bytes: &[u8], how: How, blocks: &[Arc<Block>]) -> Result<()> {
    let control = Arc::new(Control::new(None));
    let on = [("compress", how.compress), ("mapped-ram", how.mapped), ("postcopy-ram", how.postcopy)];
    control.set_capabilities(on.iter().filter(|(_, on)| *on).map(|(name, _)| (*name).to_owned()));
    control.begin_incoming()?;
    let incoming = Incoming::new(control, blocks.to_vec(), DecoderOptions::default())?;
    let uri = Uri::parse("fd:fuzz")?;
    let (ended, answers) = if how.socket {
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        ours.write_all(bytes).unwrap();
        ours.shutdown(Shutdown::Write).unwrap();
        // Many answers do not fit a socket.
        (incoming.listen(&uri, Some(OwnedFd::from(theirs))), Some(thread::spawn(move || answers(ours))))
    } else {
        let file: File = memfd_create("stream", MemfdFlags::CLOEXEC).unwrap().into();
        file.write_all_at(bytes, 0).unwrap();
        (incoming.listen(&uri, Some(file.into())), None)
    };
    let ended = ended.and_then(|_| events(&incoming));
    let last = incoming.finish(ended.is_err().into());
    incoming.close();
    if let Some(answers) = answers {
        drop(incoming);
        answers.join().unwrap();
    }
    ended.and(last)
}

fn events(incoming: &Incoming) -> Result<()> {
    incoming.accept()?;
    loop {
        match incoming.next()? {
            Event::Finished => return Ok(()),
            Event::Section(header) => {
                pass(&mut *incoming.payload()?.lock().unwrap(), &header)?;
                incoming.section_done()?;
            }
            Event::Command(Command::Run, at) => return Err(Error::new(ErrorKind::Cancelled, "nobody starts this machine").at(at)),
            _ => {}
        }
    }
}

/// A machine with two devices.
fn pass(payload: &mut dyn PayloadSource, header: &SectionHeader) -> Result<()> {
    match header.idstr.as_slice() {
        b"timer" => payload.skip(24),
        b"globalstate" => payload.skip(104),
        _ => Err(Error::new(ErrorKind::UnknownSection, "no such device").at(header.offset)),
    }
}

/// All that came back is whole messages.
fn answers(mut source: UnixStream) {
    let mut bytes = Vec::new();
    // It ends with the destination, or breaks off where that has left bytes of the stream unread.
    let whole = std::io::Read::read_to_end(&mut source, &mut bytes).is_ok();
    let mut input = Input::from_bytes(bytes, 0);
    let wrong = loop {
        match ReturnMessage::read(&mut input) {
            Ok(Some(_)) => {}
            Ok(None) => break None,
            Err(error) => break Some(error),
        }
    };
    assert!(wrong.as_ref().is_none_or(|error| !whole && error.kind == ErrorKind::Truncated), "{wrong:?}");
}

/// All versions of every page that the stream has, the one before it among them.
struct Model<'a> {
    stream: &'a [u8],
    shape: &'a [Shape],
    /// For each announced block its number.
    order: Vec<usize>,
    pages: Vec<Vec<Vec<Vec<u8>>>>,
}

impl<'a> Model<'a> {
    fn new(stream: &'a [u8], shape: &'a [Shape]) -> Self {
        let first = |block: usize, used: bool| vec![if block == 0 && used { 0x5a } else { 0 }; PAGE];
        let pages = |block: usize, (_, used, most): &Shape| (0..*most).map(|page| vec![first(block, page < *used)]).collect();
        let pages = shape.iter().enumerate().map(|(block, shape)| pages(block, shape)).collect();
        Self { stream, shape, order: Vec::new(), pages }
    }

    fn run(&mut self, how: How) -> usize {
        let mut accept = Accept::XBZRLE;
        accept.set(Accept::COMPRESS, how.compress);
        accept.set(Accept::MAPPED_RAM, how.mapped);
        let input = Input::from_bytes(self.stream.to_vec(), 0);
        let mut decoder = Decoder::new(input, DecoderOptions::default()).accepting(accept);
        let mut events = 0;
        loop {
            match decoder.next(self) {
                Err(_) | Ok(Event::Finished) => return events,
                Ok(Event::Section(header)) => {
                    if pass(&mut decoder, &header).and_then(|()| decoder.section_done()).is_err() {
                        return events;
                    }
                }
                Ok(Event::Command(Command::PostcopyAdvise(_), _)) => {
                    self.pages.iter_mut().flatten().for_each(|page| page.push(vec![0; PAGE]));
                }
                Ok(Event::Command(Command::RamDiscard { name, ranges }, _)) => {
                    let Some(block) = self.shape.iter().position(|shape| shape.0.as_bytes() == name) else { return events };
                    let dropped = |page: u64| ranges.iter().any(|(start, len)| (*start..start + len).contains(&(page * PAGE as u64)));
                    self.pages[block].iter_mut().zip(0..).filter(|(_, page)| dropped(*page)).for_each(|(page, _)| page.push(vec![0; PAGE]));
                }
                Ok(_) => {}
            }
            events += 1;
        }
    }

    fn put(&mut self, block: usize, offset: u64, bytes: Vec<u8>) -> Result<()> {
        let page = self.pages[self.order[block]].get_mut(offset as usize / PAGE).ok_or_else(refused)?;
        page.push(bytes);
        Ok(())
    }

    /// What a mapped-ram file has of a block.
    fn mapped(&mut self, block: usize, entry: &BlockEntry) -> Result<()> {
        let Some(mapped) = entry.mapped else { return Ok(()) };
        for page in 0..entry.used_length as usize / PAGE {
            let byte = self.stream.get(mapped.bitmap as usize + page / 8).ok_or_else(refused)?;
            let at = mapped.pages as usize + page * PAGE;
            let bytes = match byte >> (page % 8) & 1 {
                0 => vec![0; PAGE],
                _ => self.stream.get(at..at + PAGE).ok_or_else(refused)?.to_vec(),
            };
            self.put(block, (page * PAGE) as u64, bytes)?;
        }
        Ok(())
    }
}

fn refused() -> Error {
    Error::new(ErrorKind::Io, "the model has no such place")
}

impl PageSink for Model<'_> {
    fn blocks(&mut self, list: &[BlockEntry]) -> Result<()> {
        let number = |entry: &BlockEntry| self.shape.iter().position(|shape| shape.0.as_bytes() == entry.name);
        self.order = list.iter().map(number).collect::<Option<_>>().ok_or_else(refused)?;
        for (block, entry) in list.iter().enumerate() {
            // A block that shrinks reads zero behind its end.
            let of = self.order[block];
            let used = entry.used_length as usize / PAGE;
            self.pages[of].iter_mut().skip(used).for_each(|page| page.push(vec![0; PAGE]));
            self.mapped(block, entry)?;
        }
        Ok(())
    }

    fn zero(&mut self, block: usize, offset: u64, fill: u8) -> Result<()> {
        self.put(block, offset, vec![fill; PAGE])
    }

    fn page(&mut self, block: usize, offset: u64, bytes: &[u8]) -> Result<()> {
        self.put(block, offset, bytes.to_vec())
    }

    fn coded(&mut self, block: usize, offset: u64, page: CodedPage<'_>) -> Result<()> {
        let bytes = match page {
            CodedPage::Xbzrle(delta) => {
                let before = self.pages[self.order[block]].get(offset as usize / PAGE).and_then(|page| page.last()).ok_or_else(refused)?;
                slow::decode(delta, before).map_err(|_| refused())?.0
            }
            CodedPage::Zlib(bytes) => {
                let mut page = vec![0; PAGE];
                // Threads look at it: that it is refused shows at the end of the section, when what came behind it may be in place.
                if inflate_page(bytes, false, &mut page).is_err() {
                    return Ok(());
                }
                page
            }
        };
        self.put(block, offset, bytes)
    }
}
