//! Streams that are right, in any order that the format allows, and then broken at one place.
//!
//! Input: read as a model of a stream (blocks, pages in every form, devices, commands, description). Seeds: none are needed
//! (`arbitrary` makes them), though `make_seeds.py` gives some bytes to begin with.
//! Run: `make fuzz TARGET=structured TIME=3600`
//! Asserts: what is right is accepted to its end, and its pages are those of the model; broken, it keeps all that the target `stream`
//! asserts, and its memory all that the target `memory` does.

use std::collections::BTreeMap;

use arbitrary::{Result, Unstructured};
use qmig_core::page::{Delta, XbzrleEncoder, deflate_page, inflate_page, xbzrle_decode};
use qmig_core::sys::flips::Level;
use qmig_core::wire::consts::{RAM_COMPRESS_PAGE, RAM_PAGE, RAM_XBZRLE, RAM_ZERO, XBZRLE_ENCODING};
use qmig_core::wire::{Accept, BlockEntry, CodedPage, Command, Decoder, Event, Input, Output, PageSink, layout};

use super::memory::How;
use super::{drive, memory, sizes};

const PAGE: usize = 4096;
const RAM: u32 = 2;
/// The blocks of the machine of `memory`, so that streams can be loaded there.
const SHAPE: [(&str, usize, usize); 2] = [("ram", 8, 8), ("rom", 2, 4)];

/// By block and offset.
type Pages = BTreeMap<(usize, u64), Vec<u8>>;

pub fn run(data: &[u8]) -> bool {
    play(&mut Unstructured::new(data)).is_ok()
}

fn play(u: &mut Unstructured<'_>) -> Result<()> {
    let mut made = Maker::default();
    made.stream(u)?;
    let Maker { out, pages, .. } = made;
    let mut bytes = out.into_vec();
    let found = read(&bytes);
    assert!(found == pages, "{} pages, the model has {}", found.len(), pages.len());
    damage(&mut bytes, u)?;
    let choice = u.arbitrary()?;
    drive::drive_both(&bytes, sizes(choice));
    // Dearer by far than all the rest.
    if choice >> 4 == 0 {
        let _ = memory::check(&bytes, How::of(choice), &SHAPE);
    }
    Ok(())
}

fn damage(bytes: &mut Vec<u8>, u: &mut Unstructured<'_>) -> Result<()> {
    let at = u.int_in_range(0..=bytes.len() - 1)?;
    let length = u.int_in_range(1..=40)?.min(bytes.len() - at);
    match u.int_in_range(0..=5)? {
        0 => bytes[at] ^= 1 << u.int_in_range(0..=7)?,
        1 => bytes[at] = u.arbitrary()?,
        2 => bytes.truncate(at),
        3 => drop(bytes.drain(at..at + length)),
        4 => {
            let piece = bytes[at..at + length].to_vec();
            let to = u.int_in_range(0..=bytes.len())?;
            drop(bytes.splice(to..to, piece));
        }
        _ => {
            let word = *u.choose(&[0_u64, 1, 0xfff, 0x1000, 0x7fff_ffff, u64::from(u32::MAX), 1 << 63, u64::MAX])?;
            let end = bytes.len().min(at + 8);
            bytes[at..end].copy_from_slice(&word.to_be_bytes()[8 - (end - at)..]);
        }
    }
    Ok(())
}

#[derive(Default)]
struct Maker {
    out: Output,
    pages: Pages,
    footers: bool,
    /// The block that was named last.
    current: Option<usize>,
    devices: u32,
}

impl Maker {
    fn stream(&mut self, u: &mut Unstructured<'_>) -> Result<()> {
        self.footers = !u.ratio(1, 8)?;
        self.out.file_header();
        if !u.ratio(1, 8)? {
            self.configuration(u)?;
        }
        for _ in 0..u.int_in_range(0..=3)? {
            self.command(u)?;
        }
        self.out.section_start(RAM, b"ram", 0, 4);
        self.out.mem_size(SHAPE.iter().map(|shape| (shape.1 * PAGE) as u64).sum());
        for (name, pages, _) in SHAPE {
            self.out.block(name.as_bytes(), (pages * PAGE) as u64);
        }
        self.end_of_ram();
        for _ in 0..u.int_in_range(0..=6)? {
            if u.ratio(1, 4)? {
                self.command(u)?;
            } else {
                self.out.section_part(RAM);
                self.records(u)?;
            }
        }
        self.out.section_end(RAM);
        self.records(u)?;
        for _ in 0..u.int_in_range(0..=4)? {
            self.device(u)?;
        }
        self.out.eof();
        if u.arbitrary()? {
            self.out.description(b"{\"page_size\": 4096, \"devices\": []}");
        }
        Ok(())
    }

    fn configuration(&mut self, u: &mut Unstructured<'_>) -> Result<()> {
        self.out.configuration(b"none");
        if u.arbitrary()? {
            self.out.configuration_page_bits(12);
        }
        if u.arbitrary()? {
            self.out.configuration_capabilities(&[]);
        }
        if u.arbitrary()? {
            self.out.configuration_uuid(&u.arbitrary()?);
        }
        Ok(())
    }

    fn command(&mut self, u: &mut Unstructured<'_>) -> Result<()> {
        let command = match u.int_in_range(0..=4)? {
            0 => Command::OpenReturnPath,
            1 => Command::Ping(u.arbitrary()?),
            2 => Command::SwitchoverStart,
            3 => Command::RecvBitmap(b"ram".to_vec()),
            _ => Command::Resume,
        };
        self.out.command(&command);
        Ok(())
    }

    fn records(&mut self, u: &mut Unstructured<'_>) -> Result<()> {
        for _ in 0..u.int_in_range(0..=5)? {
            self.record(u)?;
        }
        self.end_of_ram();
        Ok(())
    }

    fn end_of_ram(&mut self) {
        self.out.eos();
        self.footer(RAM);
    }

    fn footer(&mut self, id: u32) {
        if self.footers {
            self.out.footer(id);
        }
    }

    fn record(&mut self, u: &mut Unstructured<'_>) -> Result<()> {
        let block = u.int_in_range(0..=SHAPE.len() - 1)?;
        let offset = (u.int_in_range(0..=SHAPE[block].1 - 1)? * PAGE) as u64;
        let name = SHAPE[block].0.as_bytes();
        // Who names a block again does no wrong.
        let name = if self.current == Some(block) && !u.ratio(1, 8)? { None } else { Some(name) };
        let before = self.pages.get(&(block, offset)).cloned().unwrap_or_else(|| vec![0; PAGE]);
        let mut page = before.clone();
        for _ in 0..u.int_in_range(1..=4)? {
            let at = u.int_in_range(0..=PAGE - 1)?;
            let end = PAGE.min(at + usize::from(u.arbitrary::<u8>()?));
            page[at..end].fill(u.arbitrary()?);
        }
        match u.int_in_range(0..=3)? {
            0 => {
                let fill = if u.ratio(3, 4)? { 0 } else { u.arbitrary()? };
                page.fill(fill);
                self.out.page_record(offset, RAM_ZERO, name);
                self.out.u8(fill);
            }
            1 => {
                let mut delta = vec![0; PAGE];
                let Delta::Length(length) = XbzrleEncoder::new(Level::best()).encode(&before, &page, &mut delta) else { return Ok(()) };
                self.out.page_record(offset, RAM_XBZRLE, name);
                self.out.u8(XBZRLE_ENCODING);
                self.out.be16(length as u16);
                self.out.put(&delta[..length]);
            }
            2 => {
                let packed = deflate_page(&page, 1).unwrap();
                self.out.page_record(offset, RAM_COMPRESS_PAGE, name);
                self.out.be32(packed.len() as u32);
                self.out.put(&packed);
            }
            _ => {
                self.out.page_record(offset, RAM_PAGE, name);
                self.out.put(&page);
            }
        }
        self.current = Some(block);
        self.pages.insert((block, offset), page);
        Ok(())
    }

    fn device(&mut self, u: &mut Unstructured<'_>) -> Result<()> {
        self.devices += 1;
        let id = RAM + self.devices;
        let mut bytes = |n: usize, out: &mut Output| -> Result<()> {
            out.put(&[u.arbitrary()?]);
            out.zeros(n - 1);
            Ok(())
        };
        match self.devices {
            1 => {
                self.out.section_full(id, b"timer", 0, 2);
                bytes(24, &mut self.out)?;
            }
            2 => {
                self.out.section_full(id, b"globalstate", 0, 1);
                bytes(104, &mut self.out)?;
            }
            3 => {
                self.out.section_full(id, b"cpu_common", 0, 1);
                bytes(8, &mut self.out)?;
                self.out.subsection(b"cpu_common/exception_index", 1);
                bytes(4, &mut self.out)?;
            }
            _ => {
                self.out.section_full(id, b"PCIBUS", 0, 1);
                self.out.be32(3);
                bytes(12, &mut self.out)?;
            }
        }
        self.footer(id);
        Ok(())
    }
}

/// All pages of a stream that must be right.
fn read(bytes: &[u8]) -> Pages {
    let mut decoder = Decoder::offline(Input::from_bytes(bytes.to_vec(), 0), None).accepting(Accept::all());
    let mut sink = Sink::default();
    loop {
        match decoder.next(&mut sink).unwrap() {
            Event::Finished => return sink.0,
            Event::Section(header) => {
                layout::skip_known(decoder.input(), &header).unwrap();
                decoder.section_done().unwrap();
            }
            _ => {}
        }
    }
}

#[derive(Default)]
struct Sink(Pages);

impl PageSink for Sink {
    fn blocks(&mut self, list: &[BlockEntry]) -> qmig_core::Result<()> {
        assert!(list.iter().zip(SHAPE).all(|(entry, shape)| entry.name == shape.0.as_bytes()));
        Ok(())
    }

    fn zero(&mut self, block: usize, offset: u64, fill: u8) -> qmig_core::Result<()> {
        self.0.insert((block, offset), vec![fill; PAGE]);
        Ok(())
    }

    fn page(&mut self, block: usize, offset: u64, bytes: &[u8]) -> qmig_core::Result<()> {
        self.0.insert((block, offset), bytes.to_vec());
        Ok(())
    }

    fn coded(&mut self, block: usize, offset: u64, page: CodedPage<'_>) -> qmig_core::Result<()> {
        let content = self.0.entry((block, offset)).or_insert_with(|| vec![0; PAGE]);
        match page {
            CodedPage::Xbzrle(delta) => xbzrle_decode(delta, content).map(drop),
            CodedPage::Zlib(bytes) => inflate_page(bytes, false, content),
        }
    }
}
