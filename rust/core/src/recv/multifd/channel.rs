//! One multifd channel: its packets, from the socket straight into guest memory where they hold pages as they are.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::{Shared, path};
use crate::channel::ReadHalf;
use crate::page::Endless;
use crate::ram::PageTarget;
use crate::sys::guest::settle;
use crate::sys::io::IoVecMut;
use crate::wire::consts::{MULTIFD_PAGES, PAGE_BYTES};
use crate::wire::multifd::{HEADER_BYTES, Hello, Method, Packet, Pages};
use crate::wire::{ByteSource, Input};
use crate::{Error, ErrorKind, Result};

/// The thread of one channel.
#[derive(Debug)]
pub struct Receiver {
    shared: Arc<Shared>,
    index: usize,
    /// Reads little ahead: page bytes that stand in its buffer have to be copied.
    input: Input<Heard>,
    codec: Endless,
    /// Compressed bytes of a packet, and what comes out of them.
    data: Vec<u8>,
    out: Vec<u8>,
    /// The packet before, for its memory.
    former: Pages,
}

/// The bytes of a channel, counted: whoever waits for it sees that it moves.
#[derive(Debug)]
struct Heard {
    reader: ReadHalf,
    shared: Arc<Shared>,
    index: usize,
}

impl Heard {
    fn note(&self, got: usize) -> usize {
        self.shared.heard[self.index].fetch_add(got as u64, Ordering::Relaxed);
        self.shared.received.add(got as u64);
        got
    }

    fn read_iov(&mut self, vectors: &mut [IoVecMut<'_>]) -> Result<usize> {
        let got = self.reader.read_iov(vectors)?;
        Ok(self.note(got))
    }
}

impl ByteSource for Heard {
    fn read(&mut self, buf: &mut [u8]) -> Result<usize> {
        let got = self.reader.read(buf)?;
        Ok(self.note(got))
    }
}

impl Receiver {
    /// For channel `index`, which nothing was read from yet.
    pub fn new(shared: Arc<Shared>, index: usize, mut reader: ReadHalf) -> Self {
        reader.set_alarm(&shared.cut);
        let source = Heard { reader, shared: Arc::clone(&shared), index };
        let input = Input::with_capacity(source, 0);
        Self { shared, index, input, codec: Endless::default(), data: Vec::new(), out: Vec::new(), former: Pages::default() }
    }

    /// Until the channel or RAM ends. It comes back with its socket: to close that over unread bytes resets the connection, and a source that
    /// sees this looks no further, also not for what it is told on the main channel.
    pub fn run(mut self) -> Self {
        let _alive = Alive { shared: Arc::clone(&self.shared), index: self.index };
        let mut packets = 0;
        let outcome = Hello::read(&mut self.input).map(|_| ()).and_then(|()| {
            while self.packet()? {
                packets += 1;
            }
            Ok(())
        });
        let outcome = outcome.map_err(|error| error.within(&format!("packet {packets}")).within(&path(self.index)));
        self.shared.over(self.index, outcome);
        self
    }

    /// One packet; false at the end.
    fn packet(&mut self) -> Result<bool> {
        let at = self.input.offset();
        let pages = match Packet::read_over(std::mem::take(&mut self.former), &mut self.input)? {
            None => return Ok(false),
            Some(Packet::Pages(pages)) => pages,
            Some(Packet::DeviceState { .. }) => {
                return Err(Error::new(ErrorKind::Unsupported, "state of a device, which is only taken from the main channel").at(at));
            }
        };
        if !pages.is_empty() {
            let Some(places) = self.shared.begin()? else { return Ok(false) };
            let target = places.find(&pages.block).ok_or_else(|| {
                let text = format!("pages for block \"{}\", which the block list does not have", pages.block.escape_ascii());
                Error::new(ErrorKind::UnknownBlock, text).at(pages.name_at())
            });
            let done = target.and_then(|target| self.place(&pages, target).map_err(|e| e.within(target.block().name())));
            self.shared.placed();
            done.map_err(|e| e.at(at))?;
        }
        let sync = pages.sync;
        self.former = pages;
        if !sync {
            return Ok(true);
        }
        settle();
        self.shared.arrive(self.index)
    }

    fn place(&mut self, pages: &Pages, target: &PageTarget) -> Result<()> {
        pages.check(target.block().used_length())?;
        if pages.method != self.shared.method {
            let text = format!(
                "pages with multifd-compression {} there, which is {} here; choose the same on both sides",
                pages.method.name(),
                self.shared.method.name()
            );
            return Err(Error::new(ErrorKind::BadFlags, text));
        }
        for offset in &pages.zero {
            target.fill(*offset, 0)?;
        }
        match pages.method {
            _ if pages.normal.is_empty() => Ok(()),
            Method::None => self.receive(&pages.normal, target),
            _ => self.decompress(pages, target),
        }
    }

    /// Pages as they are.
    fn receive(&mut self, offsets: &[u64], target: &PageTarget) -> Result<()> {
        let whole = offsets.len() * PAGE_BYTES;
        // What was read with the header; all else goes where it belongs.
        let ahead = self.input.buffered().min(whole);
        for (offset, bytes) in offsets.iter().zip(self.input.take(ahead)?.chunks(PAGE_BYTES)) {
            target.put(*offset, bytes)?;
        }
        if ahead == whole {
            return Ok(());
        }
        self.input.pass(whole - ahead, HEADER_BYTES, |source, done, header| {
            let mut vectors: [_; MULTIFD_PAGES as usize + 1] = std::array::from_fn(|_| IoVecMut::from_slice(&mut []));
            let count = places(offsets, ahead + done, target, &mut vectors)?;
            vectors[count] = IoVecMut::from_slice(header);
            source.read_iov(&mut vectors[..=count])
        })
    }

    /// Pages in the channel's stream. Both buffers follow what comes, up to the limits of a packet.
    fn decompress(&mut self, pages: &Pages, target: &PageTarget) -> Result<()> {
        self.data.resize(pages.size as usize, 0);
        self.input.read_exact(&mut self.data)?;
        // One byte more than may come out.
        self.out.resize(pages.normal.len() * PAGE_BYTES + 1, 0);
        self.codec.run(pages.method, &self.data, &mut self.out)?;
        pages.normal.iter().zip(self.out.chunks_exact(PAGE_BYTES)).try_for_each(|(offset, page)| target.put(*offset, page))
    }
}

/// A receiver that breaks down keeps nobody waiting.
struct Alive {
    shared: Arc<Shared>,
    index: usize,
}

impl Drop for Alive {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let error = Error::new(ErrorKind::InvalidState, "the receiver of this channel has broken down");
            self.shared.over(self.index, Err(error.within(&path(self.index))));
        }
    }
}

/// The places of pages at `offsets`, without their first `done` bytes; neighbours are one. How many there are.
fn places<'a>(offsets: &[u64], done: usize, target: &'a PageTarget, into: &mut [IoVecMut<'a>]) -> Result<usize> {
    let (mut rest, mut skip, mut count) = (&offsets[done / PAGE_BYTES..], done % PAGE_BYTES, 0);
    while let Some(first) = rest.first() {
        let run = rest.iter().zip((*first..).step_by(PAGE_BYTES)).take_while(|(offset, next)| **offset == *next).count();
        let mut place = IoVecMut::from_guest(target.place(*first, run * PAGE_BYTES)?);
        place.advance(std::mem::take(&mut skip));
        into[count] = place;
        count += 1;
        rest = &rest[run..];
    }
    Ok(count)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::time::Duration;

    use super::super::Terms;
    use super::*;
    use crate::channel::Cancel;

    #[test]
    fn a_receiver_that_breaks_down_is_heard_of() {
        let terms =
            Terms { channels: 2, method: Method::None, uuid: [0; 16], connect: Duration::from_secs(60), stall: Duration::from_secs(60) };
        let cut = Cancel::new().unwrap();
        let shared = Arc::new_cyclic(|this| Shared::new(&terms, &Arc::default(), cut.clone(), std::sync::Weak::clone(this)));
        let alive = Alive { shared: Arc::clone(&shared), index: 1 };
        let broken = std::thread::spawn(move || {
            let _alive = alive;
            panic!("as wanted");
        });
        assert!(broken.join().is_err() && cut.is_set());
        let error = shared.lock().failure.clone().unwrap();
        assert_eq!((error.kind, error.path.as_str()), (ErrorKind::InvalidState, "multifd/channel 1"));
    }
}
