//! The memory after the switch: requested pages first, the rest behind them, each once, up to the destination's last word.
//!
//! What is chosen to be sent cannot be called back, so it is chosen late (when the channel has room) and in small pieces, and little
//! is under way at a time: a page that is asked for is then never far behind.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::outgoing::{Format, Outgoing, TURN, per_ms, per_second};
use super::records::Records;
use super::stream::Bound;
use super::unsent::{Place, Unsent};
use super::urgent::Urgent;
use crate::wire::consts::{PAGE_SIZE, RAM_EOS};
use crate::wire::{Output, SectionKind};
use crate::{Error, ErrorKind, Result};

/// Where requested pages share the channel: the less, the sooner they come, and the slower the background is. Both measured over TCP
/// loopback with two cores, a thread that touches pages at random all the time, and 64 KiB at the receiver.
const SHARED: Bound = Bound { unsent: 16 << 10, whole: 32 << 10, write: 16 << 10 };
/// Where they have their own. A receiver acknowledges late what is less than two of loopback's segments of 64 KiB, so a smaller `whole`
/// stops the background for 40 ms now and then.
const APART: Bound = Bound { unsent: 64 << 10, whole: 256 << 10, write: 64 << 10 };
/// Requested host pages that go out with one write.
const TOGETHER: usize = 8;
/// Longest sleep: how soon changed parameters are noticed.
const SLICE: Duration = Duration::from_millis(10);

/// What is sent over one connection.
#[derive(Debug)]
pub(super) struct Flow {
    pub unsent: Arc<Unsent>,
    pub urgent: Arc<Urgent>,
    /// Of the main channel.
    pub records: Records,
    /// Where the search goes on.
    pub place: Place,
}

impl Outgoing {
    /// Keep little under way from here on.
    pub(super) fn bound(&mut self) -> Result<()> {
        let (bound, rate) = (self.bounds(), self.bytes_per_second());
        self.stream()?.bound(bound, rate);
        Ok(())
    }

    fn bounds(&self) -> &'static Bound {
        if self.preempt() { &APART } else { &SHARED }
    }

    /// Everything that is unsent, END, EOF; returns when the destination has it all.
    pub(super) fn send_all(&mut self, mut flow: Flow) -> Result<()> {
        while flow.unsent.left() > 0 {
            self.check()?;
            let bandwidth = self.control.parameters().max_postcopy_bandwidth;
            self.stream()?.set_bandwidth(bandwidth);
            let rate = self.stream()?.rate();
            if rate.exceeded() && !flow.urgent.any() {
                flow.urgent.sleep(rate.left().min(SLICE));
            } else {
                self.turn(&mut flow)?;
            }
            self.pace();
        }
        // All are taken, but the return-path thread may still be writing the last.
        flow.urgent.settle(None)?;
        self.ram_section(SectionKind::End, |outgoing| outgoing.put(&RAM_EOS.to_be_bytes()))?;
        let mut end = Output::new();
        end.eof();
        self.put(end.as_slice())?;
        self.flush()?;
        if self.options.format == Format::V7_2 {
            flow.urgent.settle(Some(&RAM_EOS.to_be_bytes()))?;
        }
        let back = self.back.as_ref().ok_or_else(super::postcopy::one_way)?;
        match back.wait_shut(Instant::now() + self.word_deadline)? {
            Some(0) => Ok(()),
            Some(status) => Err(Error::new(ErrorKind::ReturnPath, format!("the destination reported failure (status {status})"))),
            None => Err(Error::new(ErrorKind::Closed, "the channel ended before the destination's last word (SHUT)")),
        }
    }

    /// One PART section: for some time, or until the background has to rest and nothing is asked for.
    fn turn(&mut self, flow: &mut Flow) -> Result<()> {
        let until = Instant::now() + TURN;
        let most = self.bounds().write;
        let stall = self.stall_deadline;
        self.stream()?.set_deadline(Instant::now() + stall);
        self.ram_section(SectionKind::Part, |outgoing| {
            while flow.unsent.left() > 0 && Instant::now() < until {
                outgoing.check()?;
                let stream = outgoing.stream()?;
                stream.room()?;
                let mut urgent = 0;
                while urgent < TOGETHER
                    && let Some((block, pages)) = flow.urgent.next(&mut flow.place)
                {
                    flow.records.put(stream, block, pages)?;
                    urgent += 1;
                }
                if urgent == 0 {
                    if stream.rate().exceeded() {
                        break;
                    }
                    let begun = stream.sent();
                    while stream.sent() - begun < most
                        && let Some((block, pages)) = flow.unsent.take(&mut flow.place)
                    {
                        flow.records.put(stream, block, pages)?;
                    }
                }
                flow.records.flush(stream)?;
            }
            outgoing.put(&RAM_EOS.to_be_bytes())
        })?;
        self.flush()
    }

    /// At the end of a bandwidth window: throughput, pages per second.
    fn pace(&mut self) {
        let counters = &self.session.counters;
        let window = self.stream.as_ref().and_then(|stream| stream.rate().window_elapsed());
        if let Some((bytes, elapsed)) = window {
            counters.mbps.set(per_ms(bytes, elapsed) * 8.0 / 1000.0);
            counters.pages_per_second.set(per_second(bytes / PAGE_SIZE, elapsed));
        }
    }
}
