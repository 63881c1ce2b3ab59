//! How a dirty page travels: as a plain record on the main channel, or in one of the other ways that capabilities switch on.

use std::fmt::Debug;
use std::sync::Arc;
use std::time::Instant;

use super::compress::Compress;
use super::delta::Deltas;
use super::mapped_ram::{self, MappedRam};
use super::outgoing::Format;
use super::stream::Stream;
use super::zero_scout::PIECE;
use crate::control::{Control, Session, ZeroPageDetection};
use crate::ram::Block;
use crate::wire::SectionKind;
use crate::wire::consts::{PAGE_BYTES, PAGE_SIZE, RAM_CONTINUE, RAM_PAGE, RAM_ZERO};
use crate::{Error, ErrorKind, Result};

/// A dirty page that the search has come to; its dirty bit is clear already, so a write from now on marks it again.
#[derive(Debug, Clone, Copy)]
pub struct Page<'a> {
    /// Number of the block in migration order.
    pub area: usize,
    /// The block.
    pub block: &'a Arc<Block>,
    /// Where in the block, in bytes.
    pub offset: u64,
    /// It is zero: that is known without a look.
    pub untouched: bool,
    /// Nothing was sent of it before: this is the first pass.
    pub bulk: bool,
}

/// Page records of the main channel, each in the block of the one before or naming its own.
#[derive(Debug)]
pub struct MainRecords {
    /// For each block its length byte and name.
    names: Vec<Vec<u8>>,
    last: Option<usize>,
    /// Pages sent as zero records.
    pub duplicate: u64,
    /// Pages sent whole.
    pub normal: u64,
    /// Pages sent in another form.
    pub coded: u64,
}

impl MainRecords {
    /// For the records of `blocks`.
    pub fn new(blocks: &[Arc<Block>]) -> Result<Self> {
        let name = |block: &Arc<Block>| {
            let length =
                u8::try_from(block.name().len()).map_err(|_| Error::new(ErrorKind::BadBlock, "a block name has at most 255 bytes"))?;
            Ok([&[length], block.name().as_bytes()].concat())
        };
        Ok(Self { names: blocks.iter().map(name).collect::<Result<_>>()?, last: None, duplicate: 0, normal: 0, coded: 0 })
    }

    /// Length byte and name of a block, as the stream has them.
    pub fn name(&self, area: usize) -> &[u8] {
        &self.names[area]
    }

    /// A record is about to name another block, or the first one.
    pub fn names_block(&self, area: usize) -> bool {
        self.last != Some(area)
    }

    /// The record's word, and the block's name if it is another one than before; what belongs to `flag` follows by `Stream::put`.
    pub fn head(&mut self, stream: &mut Stream, page: &Page<'_>, flag: u64) -> Result<()> {
        if self.last == Some(page.area) {
            return stream.put(&(page.offset | flag | RAM_CONTINUE).to_be_bytes());
        }
        self.last = Some(page.area);
        stream.put(&(page.offset | flag).to_be_bytes())?;
        stream.put(&self.names[page.area])
    }

    /// A page of zeros.
    pub fn zero(&mut self, stream: &mut Stream, page: &Page<'_>) -> Result<()> {
        self.duplicate += 1;
        if self.last == Some(page.area) {
            // The common record in one piece.
            let mut record = [0; 9];
            record[..8].copy_from_slice(&(page.offset | RAM_ZERO | RAM_CONTINUE).to_be_bytes());
            return stream.put(&record);
        }
        self.head(stream, page, RAM_ZERO)?;
        stream.put(&[0])
    }

    /// A row of zero pages from `first` on, in the block of the last record, in one piece.
    pub fn zeros(&mut self, stream: &mut Stream, first: u64) -> Result<()> {
        let mut records = [[0; 9]; PIECE];
        for (record, number) in records.iter_mut().zip(0..) {
            record[..8].copy_from_slice(&((first + number * PAGE_SIZE) | RAM_ZERO | RAM_CONTINUE).to_be_bytes());
        }
        self.duplicate += PIECE as u64;
        stream.put(records.as_flattened())
    }

    /// The page as it is when it is written.
    pub fn plain(&mut self, stream: &mut Stream, page: &Page<'_>) -> Result<()> {
        self.normal += 1;
        self.head(stream, page, RAM_PAGE)?;
        stream.put_page(page.area, page.offset, PAGE_BYTES)
    }

    /// A page as `bytes`, which were copied out of it.
    pub fn whole(&mut self, stream: &mut Stream, page: &Page<'_>, bytes: &[u8; PAGE_BYTES]) -> Result<()> {
        self.normal += 1;
        self.head(stream, page, RAM_PAGE)?;
        stream.put(bytes)
    }
}

/// A way for pages to travel. Called from the migration thread only.
pub trait Way: Debug + Send {
    /// Takes the page: true if nothing more is to be done for it, false if it shall go on as if this way were not there.
    fn page(&mut self, stream: &mut Stream, records: &mut MainRecords, page: &Page<'_>) -> Result<bool>;

    /// The same for a page that no way has taken and that was found not to be zero.
    fn content(&mut self, _stream: &mut Stream, _records: &mut MainRecords, _page: &Page<'_>) -> Result<bool> {
        Ok(false)
    }

    /// What follows a block's entry in the list of the START section.
    fn block_entry(&mut self, _stream: &mut Stream, _area: usize) -> Result<()> {
        Ok(())
    }

    /// The payload of a RAM section is about to end.
    fn section_end(&mut self, _stream: &mut Stream, _records: &mut MainRecords, _kind: SectionKind) -> Result<()> {
        Ok(())
    }

    /// The search has passed the end of the block list, or nothing is dirty any more: no page is sent twice between two of these.
    fn round_end(&mut self, _stream: &mut Stream, _records: &mut MainRecords) -> Result<()> {
        Ok(())
    }

    /// Nothing is dirty as far as is known: has everything been sent? Waits for it, but not beyond `until`.
    fn settled(&mut self, _stream: &mut Stream, _records: &mut MainRecords, _until: Instant) -> Result<bool> {
        Ok(true)
    }

    /// The dirty logs were asked; `count` is `dirty-sync-count`.
    fn synced(&mut self, _count: u64) {}

    /// The machine is stopped.
    fn last_stage(&mut self) {}
}

/// The ways that the capabilities of `control` ask for, in the order in which pages are offered to them.
pub fn wanted(control: &Arc<Control>, session: &Arc<Session>, blocks: &[Arc<Block>], stream: &Stream) -> Result<Vec<Box<dyn Way>>> {
    let mut ways: Vec<Box<dyn Way>> = Vec::new();
    let looks = control.parameters().zero_page_detection != ZeroPageDetection::None;
    if let Some(threads) = control.mapped_ram() {
        let file = mapped_ram::file(stream)?;
        ways.push(Box::new(MappedRam::new(file, blocks, threads, looks, Arc::clone(session))?));
        return Ok(ways);
    }
    if control.capability("xbzrle") {
        ways.push(Box::new(Deltas::new(control, session, blocks)?));
    }
    if control.capability("compress") {
        let (parameters, xbzrle) = (control.parameters(), control.capability("xbzrle"));
        ways.push(Box::new(Compress::start(&parameters, blocks, Arc::clone(session), xbzrle)?));
    }
    if !looks {
        ways.push(Box::new(Unlooked));
    }
    Ok(ways)
}

/// What the format cannot say is refused before anything is sent. Only QEMU 2.4 to 9.0 know single compressed pages.
pub fn check_format(control: &Control, format: Format) -> Result<()> {
    if format == Format::V10_0 && control.capability("compress") {
        let text = "a destination of 10.0 knows no compressed pages; switch `compress` off, or use `multifd` with multifd-compression";
        return Err(Error::new(ErrorKind::Unsupported, text));
    }
    Ok(())
}

/// Pages travel whole, whatever is in them; only what nobody ever touched is known to be zero.
#[derive(Debug)]
struct Unlooked;

impl Way for Unlooked {
    fn page(&mut self, stream: &mut Stream, records: &mut MainRecords, page: &Page<'_>) -> Result<bool> {
        if !page.untouched {
            records.plain(stream, page)?;
        }
        Ok(!page.untouched)
    }
}
