//! multifd: pages travel in packets over connections of their own (spec/stream 12).
//!
//! ```text
//! migration thread                     Deal                senders               destination
//!   page, page, ... 128 of a block --> queue of packets --> channel 0 -----------> places them
//!                                                       \-> channel 1 -----------> places them
//!   point of synchronisation --------> counted ----------> SYNC on every channel > each waits there
//!   EOS, or the word FLUSH, on main ---------------------------------------------> lets them all go on
//! ```
//!
//! A page is sent once at most between two points of synchronisation, so it does not matter which channel has it. The points lie
//! where the destination's generation expects them: before each EOS (7.2), or once a round (10.0). Whether a page is zero is found
//! here and said on main (7.2 and `legacy`), or by the senders and said in the packets.

mod deal;
mod sender;

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use self::deal::{Deal, Packet};
use self::sender::{Code, Sender};
use super::outgoing::Format;
use super::return_path::Ear;
use super::stream::Stream;
use super::ways::{MainRecords, Page, Way};
use crate::channel::{Address, Uri, WriteHalf};
use crate::control::{Compression, Control, Session, ZeroPageDetection};
use crate::ram::Block;
use crate::wire::SectionKind;
use crate::wire::consts::{MULTIFD_PAGES, PAGE_SIZE, RAM_MULTIFD_FLUSH};
use crate::wire::multifd::{HEADER_BYTES, Hello};
use crate::{Error, ErrorKind, Result};

/// Bytes that the kernel keeps unsent for all channels, about as many as one has by itself: the machine stands still while they go.
const UNSENT: u32 = 4 << 20;
/// And for each at least.
const LEAST_UNSENT: u32 = 64 << 10;

/// Packets that may be on their way however low the rate limit is: one is sent while another is filled.
const LEAST_PACKETS: usize = 2;

/// What multifd was agreed on when the migration began.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    channels: u8,
    compression: Compression,
    /// SYNC before each EOS, and not once a round.
    per_section: bool,
    /// Zero pages are told in packets.
    in_packets: bool,
    /// Zero pages are looked for at all.
    looks: bool,
}

impl Plan {
    /// What capabilities and parameters ask for, if `uri` and the format can have it.
    pub fn wanted(control: &Control, format: Format, uri: &Uri) -> Result<Option<Self>> {
        if !control.capability("multifd") || control.capability("mapped-ram") {
            return Ok(None);
        }
        let refused = |kind, text: &str| Err(Error::new(kind, format!("{uri}: {text}")));
        if format == Format::V2_9 {
            return refused(ErrorKind::Unsupported, "multifd is not known to a destination of 2.9; switch it off");
        }
        if !matches!(uri.address(), Address::Tcp(_) | Address::Unix(_)) {
            return refused(ErrorKind::InvalidArgument, "multifd needs further connections; use tcp: or unix:, or switch it off");
        }
        let parameters = control.parameters();
        let detection = parameters.zero_page_detection;
        Ok(Some(Self {
            channels: parameters.multifd_channels,
            compression: parameters.multifd_compression,
            per_section: format != Format::V10_0,
            in_packets: format == Format::V10_0 && detection != ZeroPageDetection::Legacy,
            looks: detection != ZeroPageDetection::None,
        }))
    }

    /// Open the channels, which must come after the main one, and say who they are. A peer that takes nothing for `patience` is dead.
    pub fn connect(&self, uri: &Uri, uuid: [u8; 16], patience: Duration, session: &Session) -> Result<Vec<WriteHalf>> {
        let open = |channel| {
            let writer = session.open(uri, None)?.split().1;
            let mut writer = writer.ok_or_else(|| Error::new(ErrorKind::BadUri, format!("{uri}: this channel cannot be written to")))?;
            writer.set_patience(patience);
            writer.bound_unsent((UNSENT / u32::from(self.channels)).max(LEAST_UNSENT));
            writer.write_all(&Hello { uuid, channel }.bytes())?;
            Ok(writer)
        };
        let named = |channel| {
            open(channel).map_err(|mut error: Error| {
                if error.kind != ErrorKind::Cancelled {
                    error.message += "; does the destination have `multifd` on, and the same `multifd-channels`?";
                }
                error.within(&format!("channel {channel}")).within("multifd")
            })
        };
        (0..self.channels).map(named).collect()
    }
}

/// The migration thread's hand on the senders.
#[derive(Debug)]
pub struct Multifd {
    plan: Plan,
    deal: Arc<Deal>,
    senders: Vec<JoinHandle<()>>,
    filling: Option<Packet>,
    /// Main has something to say that channels wait for.
    owes_flush: bool,
    /// The machine is stopped.
    stopped: bool,
    /// Bytes of channels that a page has cost lately, its part of the header included.
    cost: u64,
    /// Bytes that were sent and not counted against the rate limit yet; less than none: counted and not sent.
    debt: i64,
}

impl Multifd {
    /// Start a sender for each channel.
    pub fn start(plan: Plan, writers: Vec<WriteHalf>, blocks: &[Arc<Block>], session: &Arc<Session>, ear: Option<&Ear>) -> Result<Self> {
        let deal = Arc::new(Deal::new(writers.len()));
        let cost = PAGE_SIZE + (HEADER_BYTES as u64).div_ceil(u64::from(MULTIFD_PAGES));
        let mut made = Self { plan, deal, senders: Vec::new(), filling: None, owes_flush: false, stopped: false, cost, debt: 0 };
        for (channel, writer) in (0..=u8::MAX).zip(writers) {
            let sender = Sender {
                channel,
                writer,
                blocks: blocks.to_vec(),
                deal: Arc::clone(&made.deal),
                session: Arc::clone(session),
                ear: ear.cloned(),
                code: Code::new(plan.compression)?,
                looks: plan.looks && plan.in_packets,
                sync_room: if plan.per_section { MULTIFD_PAGES } else { 0 },
            };
            let thread = std::thread::Builder::new().name(format!("multifd-{channel}")).spawn(move || sender.run());
            made.senders.push(thread.map_err(|e| Error::io("starting a sender of multifd", e))?);
        }
        Ok(made)
    }

    fn add(&mut self, stream: &mut Stream, records: &mut MainRecords, page: &Page<'_>) -> Result<()> {
        if self.filling.as_ref().is_some_and(|packet| packet.area != page.area) {
            self.hand_over(stream, records)?;
        }
        let mut packet = match self.filling.take() {
            Some(packet) => packet,
            None => self.empty(stream)?,
        };
        packet.area = page.area;
        (if page.untouched { &mut packet.zero } else { &mut packet.pages }).push(page.offset);
        packet.charged += self.cost;
        self.charge(stream);
        let full = packet.is_full();
        self.filling = Some(packet);
        if full { self.hand_over(stream, records) } else { Ok(()) }
    }

    /// An empty packet. Whoever stands at a point of synchronisation waits for what main has to say of it, and we for them.
    fn empty(&mut self, stream: &mut Stream) -> Result<Packet> {
        if std::mem::take(&mut self.owes_flush) {
            stream.flush()?;
        }
        // What a page will have cost is known when it is sent: until then no more than a window's worth is on its way.
        let window = stream.piece().saturating_mul(10) / (u64::from(MULTIFD_PAGES) * PAGE_SIZE);
        let most = usize::try_from(window).unwrap_or(usize::MAX).max(LEAST_PACKETS);
        match self.deal.empty(most)? {
            Some(packet) => Ok(packet),
            None => self.deal.wait_empty(most),
        }
    }

    /// A page counts against the limit with what it costs presumably, and with the debt, as far as this window has room: so none is
    /// forgotten when the next one begins.
    fn charge(&mut self, stream: &Stream) {
        let budget = stream.rate().budget();
        if budget == u64::MAX {
            self.debt = 0; // without a limit nobody owes anything
        }
        let due = self.debt.saturating_add_unsigned(self.cost);
        let charged = u64::try_from(due).unwrap_or(0).min(budget.saturating_add(1).max(self.cost));
        stream.charge(charged);
        self.debt = due.saturating_sub_unsigned(charged);
    }

    fn hand_over(&mut self, stream: &mut Stream, records: &mut MainRecords) -> Result<()> {
        if let Some(packet) = self.filling.take() {
            self.deal.give(packet)?;
        }
        self.count(stream, records);
        Ok(())
    }

    /// Count what the senders have done meanwhile.
    fn count(&mut self, stream: &mut Stream, records: &mut MainRecords) {
        let tally = self.deal.tally();
        records.normal += tally.normal;
        records.duplicate += tally.zero;
        stream.carried(tally.bytes);
        self.debt = self.debt.saturating_add_unsigned(tally.bytes).saturating_sub_unsigned(tally.charged);
        let pages = tally.normal + tally.zero;
        if pages > 0 {
            self.cost = tally.paged.div_ceil(pages);
        }
    }

    fn sync(&mut self, stream: &mut Stream, records: &mut MainRecords) -> Result<()> {
        self.hand_over(stream, records)?;
        self.deal.sync()?;
        self.owes_flush = true;
        Ok(())
    }

    /// The same, with the word that says so on main.
    fn sync_and_say(&mut self, stream: &mut Stream, records: &mut MainRecords) -> Result<()> {
        self.sync(stream, records)?;
        stream.put(&RAM_MULTIFD_FLUSH.to_be_bytes())
    }
}

impl Way for Multifd {
    fn page(&mut self, stream: &mut Stream, records: &mut MainRecords, page: &Page<'_>) -> Result<bool> {
        let mine = if self.plan.in_packets { true } else { !self.plan.looks && !page.untouched };
        if mine {
            self.add(stream, records, page)?;
        }
        Ok(mine)
    }

    fn content(&mut self, stream: &mut Stream, records: &mut MainRecords, page: &Page<'_>) -> Result<bool> {
        self.add(stream, records, page)?;
        Ok(true)
    }

    fn section_end(&mut self, stream: &mut Stream, records: &mut MainRecords, kind: SectionKind) -> Result<()> {
        if self.plan.per_section {
            self.sync(stream, records)?;
        } else if kind == SectionKind::Start {
            self.sync_and_say(stream, records)?;
        }
        if self.stopped {
            // What follows asks the destination whether it has everything: by then no channel shall be found dead.
            stream.flush()?;
            self.deal.settled(None)?;
            self.count(stream, records);
        }
        Ok(())
    }

    fn round_end(&mut self, stream: &mut Stream, records: &mut MainRecords) -> Result<()> {
        if self.plan.per_section { Ok(()) } else { self.sync_and_say(stream, records) }
    }

    fn settled(&mut self, stream: &mut Stream, records: &mut MainRecords, until: Instant) -> Result<bool> {
        self.hand_over(stream, records)?;
        self.owes_flush = false;
        stream.flush()?;
        let settled = self.deal.settled(Some(until))?;
        self.count(stream, records);
        Ok(settled)
    }

    fn last_stage(&mut self) {
        self.stopped = true;
    }
}

impl Drop for Multifd {
    /// Who sends still has been cut off by now, or ends with its packet.
    fn drop(&mut self) {
        self.deal.end();
        for sender in self.senders.drain(..) {
            // It only moved bytes; a panic in it has been reported and has failed the migration.
            let _ = sender.join();
        }
    }
}
