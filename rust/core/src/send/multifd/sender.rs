//! One channel of multifd: a thread that takes packets, looks for zeros, compresses, writes.
//!
//! Pages that are not compressed go to the socket from where the guest has them.

use std::sync::Arc;
use std::time::Duration;

use super::deal::{Deal, Job, Packet, Tally};
use crate::channel::WriteHalf;
use crate::control::{Compression, Session};
use crate::page::{Deflate, Zstd};
use crate::ram::Block;
use crate::room::zeroed;
use crate::send::records::is_zero;
use crate::send::return_path::Ear;
use crate::sys::io::IoVec;
use crate::wire::consts::{MULTIFD_PAGES, PAGE_BYTES};
use crate::wire::limits::MULTIFD_DATA_MAX;
use crate::wire::multifd::{HEADER_BYTES, Head, Method};
use crate::{Error, ErrorKind, Result};

/// Pages that are copied out of the guest at a time, to be compressed from the cache.
const PIECE: usize = 16;

/// How long what the destination says may take longer than the end of a channel.
const LAST_WORD: Duration = Duration::from_secs(1);

/// How pages become the bytes of a packet.
#[derive(Debug)]
pub enum Code {
    /// As they are.
    Raw,
    /// One endless stream of this channel.
    Pressed(Press),
}

/// A compressor with its buffers.
#[derive(Debug)]
pub struct Press {
    stream: Endless,
    /// Pages, copied: the guest writes while we read.
    raw: Vec<u8>,
    out: Vec<u8>,
}

#[derive(Debug)]
enum Endless {
    Zlib(Deflate),
    Zstd(Zstd),
}

impl Code {
    /// As the parameters have it.
    pub fn new(compression: Compression) -> Result<Self> {
        let stream = match compression {
            Compression::None => return Ok(Self::Raw),
            Compression::Zlib(level) => Endless::Zlib(Deflate::new(level)),
            Compression::Zstd(level) => Endless::Zstd(Zstd::new(level)?),
        };
        let room = |bytes| zeroed(bytes, "a multifd channel's buffer");
        Ok(Self::Pressed(Press { stream, raw: room(PIECE * PAGE_BYTES)?, out: room(MULTIFD_DATA_MAX as usize)? }))
    }

    fn method(&self) -> Method {
        match self {
            Self::Raw => Method::None,
            Self::Pressed(Press { stream: Endless::Zlib(_), .. }) => Method::Zlib,
            Self::Pressed(Press { stream: Endless::Zstd(_), .. }) => Method::Zstd,
        }
    }
}

impl Press {
    /// All of these pages; what came out.
    fn run(&mut self, block: &Block, pages: &[u64]) -> Result<&[u8]> {
        let mut done = 0;
        let mut pieces = pages.chunks(PIECE).peekable();
        while let Some(piece) = pieces.next() {
            for (page, offset) in self.raw.chunks_mut(PAGE_BYTES).zip(piece) {
                block.read(*offset, page)?;
            }
            let (raw, out, last) = (&self.raw[..piece.len() * PAGE_BYTES], &mut self.out[done..], pieces.peek().is_none());
            done += match &mut self.stream {
                Endless::Zlib(stream) => stream.run(raw, last, out)?,
                Endless::Zstd(stream) => stream.run(raw, last, out)?,
            };
        }
        Ok(&self.out[..done])
    }
}

/// The thread's own.
#[derive(Debug)]
pub struct Sender {
    /// Number of the channel.
    pub channel: u8,
    /// Its socket.
    pub writer: WriteHalf,
    /// What the packets' block numbers mean.
    pub blocks: Vec<Arc<Block>>,
    /// Where the work comes from.
    pub deal: Arc<Deal>,
    /// The migration that ends if the channel dies.
    pub session: Arc<Session>,
    /// What the destination says meanwhile.
    pub ear: Option<Ear>,
    /// How pages are coded.
    pub code: Code,
    /// Pages are looked at: those that are zero have no bytes.
    pub looks: bool,
    /// Room for pages that a packet with SYNC says it has.
    pub sync_room: u32,
}

impl Sender {
    /// Work until there is no more, or the channel dies, which ends the migration.
    pub fn run(mut self) {
        let _alive = Alive(Arc::clone(&self.deal));
        let mut header = [0; HEADER_BYTES];
        let mut seen = 0;
        while let Some(job) = self.deal.next(&mut seen) {
            let done = match job {
                Job::Pages(mut packet) => self.pages(&mut packet, &mut header).map(|tally| self.deal.sent(packet, tally)),
                Job::Sync(number) => self.sync(number, &mut header).map(|tally| self.deal.sent_sync(tally)),
            };
            if let Err(error) = done {
                let error = error.within(&format!("channel {}", self.channel)).within("multifd");
                if error.kind != ErrorKind::Cancelled {
                    // Before the migration thread hears of it: what ended the migration is this.
                    self.session.fail(self.refusal(&error).unwrap_or_else(|| error.clone()));
                }
                self.deal.fail(error);
                return;
            }
        }
    }

    /// A channel that is closed says less than whoever has closed it.
    fn refusal(&self, error: &Error) -> Option<Error> {
        let closed = matches!(error.kind, ErrorKind::Io | ErrorKind::Closed);
        self.ear.as_ref().filter(|_| closed)?.refusal(LAST_WORD)
    }

    fn pages(&mut self, packet: &mut Packet, header: &mut [u8; HEADER_BYTES]) -> Result<Tally> {
        let block = &self.blocks[packet.area];
        if self.looks {
            let zero = &mut packet.zero;
            packet.pages.retain(|offset| {
                // An offset outside is found when it is read.
                let found = is_zero(block, *offset).unwrap_or(false);
                if found {
                    zero.push(*offset);
                }
                !found
            });
        }
        let head = Head {
            sync: false,
            method: self.code.method(),
            room: MULTIFD_PAGES,
            number: packet.number,
            block: block.name().as_bytes(),
            normal: &packet.pages,
            zero: &packet.zero,
        };
        let size = match &mut self.code {
            Code::Raw => {
                head.put(packet.pages.len() * PAGE_BYTES, header)?;
                let mut vectors = [IoVec::from_slice(&[]); 1 + MULTIFD_PAGES as usize];
                vectors[0] = IoVec::from_slice(header);
                let count = 1 + gather(block, &packet.pages, &mut vectors[1..])?;
                self.writer.write_iov(&vectors[..count])?;
                packet.pages.len() * PAGE_BYTES
            }
            Code::Pressed(press) => {
                let data = press.run(block, &packet.pages)?;
                head.put(data.len(), header)?;
                self.writer.write_iov(&[IoVec::from_slice(header), IoVec::from_slice(data)])?;
                data.len()
            }
        };
        let bytes = (HEADER_BYTES + size) as u64;
        self.session.counters.multifd_bytes.add(bytes);
        Ok(Tally { normal: packet.pages.len() as u64, zero: packet.zero.len() as u64, bytes, paged: bytes, charged: packet.charged })
    }

    fn sync(&mut self, number: u64, header: &mut [u8; HEADER_BYTES]) -> Result<Tally> {
        let head = Head { sync: true, method: Method::None, room: self.sync_room, number, block: &[], normal: &[], zero: &[] };
        head.put(0, header)?;
        self.writer.write_all(header)?;
        let bytes = HEADER_BYTES as u64;
        self.session.counters.multifd_bytes.add(bytes);
        Ok(Tally { bytes, ..Tally::default() })
    }
}

/// The pages as vectors, neighbours in one; how many.
fn gather<'a>(block: &'a Block, pages: &[u64], into: &mut [IoVec<'a>]) -> Result<usize> {
    let (mut count, mut at) = (0, 0);
    while let Some(first) = pages.get(at) {
        let run = (*first..).step_by(PAGE_BYTES).zip(&pages[at..]).take_while(|(next, offset)| next == *offset).count();
        into[count] = IoVec::from_guest(block.range(*first, run * PAGE_BYTES)?);
        count += 1;
        at += run;
    }
    Ok(count)
}

/// A sender that breaks down keeps nobody waiting.
struct Alive(Arc<Deal>);

impl Drop for Alive {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.fail(Error::new(ErrorKind::InvalidState, "a sender of multifd has broken down"));
        }
    }
}
