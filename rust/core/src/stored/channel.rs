//! One multifd channel of a stored stream: its packets, from one point of synchronisation to the next.

use super::ram::StoredRam;
use super::source::FileSource;
use crate::page::{Endless, inflate_page};
use crate::wire::Input;
use crate::wire::consts::PAGE_BYTES;
use crate::wire::multifd::{Hello, Method, Packet, Pages};
use crate::{Error, ErrorKind, Result};

/// What came over a channel.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ChannelCounts {
    /// Number of the channel, once its handshake has been read.
    pub id: Option<u8>,
    /// Packets, those of synchronisation among them.
    pub packets: u64,
    /// Pages with their contents.
    pub normal: u64,
    /// Pages that are zero.
    pub zero: u64,
    /// Bytes of device state, which are passed over.
    pub device_state: u64,
}

#[derive(Debug)]
pub(super) struct Channel {
    input: Input<FileSource>,
    /// Which of the stream's files it is.
    file: u16,
    counts: ChannelCounts,
    codec: Endless,
}

impl Channel {
    pub fn new(source: FileSource, file: u16) -> Self {
        Self { input: Input::new(source), file, counts: ChannelCounts::default(), codec: Endless::default() }
    }

    pub fn counts(&self) -> &ChannelCounts {
        &self.counts
    }

    /// Everything up to and with the next packet of synchronisation.
    pub fn run_to_sync(&mut self, ram: &mut StoredRam) -> Result<()> {
        while let Some(synchronised) = self.packet(ram)? {
            if synchronised {
                return Ok(());
            }
        }
        let text = "the channel ends where the main channel waits for it once more";
        Err(Error::new(ErrorKind::Truncated, text).at(self.input.offset()))
    }

    /// Everything up to the end.
    pub fn finish(&mut self, ram: &mut StoredRam) -> Result<()> {
        while self.packet(ram)?.is_some() {}
        Ok(())
    }

    /// One packet: whether it is one of synchronisation; `None` at the end.
    fn packet(&mut self, ram: &mut StoredRam) -> Result<Option<bool>> {
        if self.counts.id.is_none() {
            self.counts.id = Some(Hello::read(&mut self.input)?.channel);
        }
        let at = self.input.offset();
        let Some(packet) = Packet::read(&mut self.input)? else { return Ok(None) };
        self.counts.packets += 1;
        match packet {
            Packet::DeviceState { size, .. } => {
                self.input.skip(size.into())?;
                self.counts.device_state += u64::from(size);
                Ok(Some(false))
            }
            Packet::Pages(pages) => {
                let sync = pages.sync;
                if !pages.normal.is_empty() || !pages.zero.is_empty() {
                    self.pages(&pages, ram).map_err(|e| e.at(at).within(&pages.block.escape_ascii().to_string()))?;
                }
                Ok(Some(sync))
            }
        }
    }

    fn pages(&mut self, pages: &Pages, ram: &mut StoredRam) -> Result<()> {
        let Some((block, used_length)) = ram.find(&pages.block) else {
            let text = "pages for a block that the block list does not have";
            return Err(Error::new(ErrorKind::UnknownBlock, text).at(pages.name_at()));
        };
        pages.check(used_length)?;
        for offset in &pages.zero {
            ram.fill(block, *offset, 0);
        }
        self.counts.zero += pages.zero.len() as u64;
        if pages.normal.is_empty() {
            return Ok(());
        }
        if pages.method == Method::None {
            for offset in &pages.normal {
                let place = self.input.offset();
                self.input.skip(PAGE_BYTES as u64)?;
                ram.place(block, *offset, self.file, place);
                self.counts.normal += 1;
            }
            return Ok(());
        }
        let mut out = vec![0; pages.normal.len() * PAGE_BYTES + 1];
        let data = self.input.read_vec(pages.size.into())?;
        match (pages.method, &mut self.codec) {
            (Method::Qpl | Method::Uadk, Endless::Unbegun) => one_by_one(&data, pages.method == Method::Qpl, &mut out)?,
            (method, stream) => stream.run(method, &data, &mut out)?,
        }
        for (offset, bytes) in pages.normal.iter().zip(out.as_chunks::<PAGE_BYTES>().0) {
            ram.keep(block, *offset, bytes)?;
        }
        self.counts.normal += pages.normal.len() as u64;
        Ok(())
    }
}

/// Pages behind a table of their lengths, each raw or compressed for itself; `out` has one byte more than they.
fn one_by_one(data: &[u8], raw_deflate: bool, out: &mut [u8]) -> Result<()> {
    let short = || Error::new(ErrorKind::BadPage, "the lengths of the packet's pages do not add up to its data");
    let (pages, _) = out.as_chunks_mut::<PAGE_BYTES>();
    let (table, mut rest) = data.split_at_checked(4 * pages.len()).ok_or_else(short)?;
    for (page, length) in pages.iter_mut().zip(table.as_chunks::<4>().0) {
        let length = u32::from_be_bytes(*length) as usize;
        let (bytes, behind) = rest.split_at_checked(length).ok_or_else(short)?;
        rest = behind;
        if length == PAGE_BYTES {
            page.copy_from_slice(bytes);
        } else {
            inflate_page(bytes, raw_deflate, page)?;
        }
    }
    if rest.is_empty() { Ok(()) } else { Err(short()) }
}
