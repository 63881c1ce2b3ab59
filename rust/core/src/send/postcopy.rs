//! The switch to postcopy, the life after it, and its recoveries (spec/stream 7 to 9).
//!
//! ```text
//! source                                              destination
//!   OPEN_RETURN_PATH, PING 1, ADVISE --------------------> all RAM is emptied
//!   START, PART ... (precopy) ----------------------------->
//!   [DISCARD what is dirty: the machine still runs] ------->
//!   (machine stopped, device state serialised)
//!   [SWITCHOVER_START] END sections, DISCARD the rest ----->
//!   PING 2, PACKAGED { LISTEN, FULL sections, PING 3 ------> PONG 2: alive, and everything above is done
//!   last look at the dirty log; then the commit: mine -> committed
//!   RUN } ------------------------------------------------> starts the machine, PONG 3
//!   PING 4, PART sections, requested pages first <--------- page requests
//!   END, EOF ---------------------------------------------> SHUT 0
//! ```
//!
//! The destination reads the package whole before it obeys any of it, so without its last bytes (RUN) nothing has happened: up to
//! there a failure leaves the machine here. From the commit on the memory is kept, and whatever breaks the connection leads to
//! `postcopy-paused`, where the next connection is waited for. Only the destination can end it: with everything received (SHUT 0),
//! in failure, or because it never ran the machine (SHUT 2, ours alone), which then goes on here. So it does if the kernel has not
//! taken all of RUN. A destination that ended between the two is never heard again: that is for an administrator to find out.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::background::Flow;
use super::outgoing::{Format, Outgoing};
use super::records::{Records, drop_pages};
use super::return_path::ReturnPath;
use super::stream::Stream;
use super::unsent::{Place, Unsent};
use super::urgent::Urgent;
use crate::channel::{Address, Uri, WriteHalf};
use crate::control::{Phase, Status};
use crate::ram::Bitmap;
use crate::wire::consts::PAGE_SIZE;
use crate::wire::{Advise, Command, Output};
use crate::{Error, ErrorKind, Result};

/// The PING that setup sends, the one behind the discards, the one in the package, the one behind it.
const PING_SETUP: u32 = 1;
const PING_DISCARDED: u32 = 2;
const PING_PACKAGE: u32 = 3;
pub(super) const PING_RUNNING: u32 = 4;
/// Largest package that a destination of 2.9 takes; later ones take what its length field can say.
const PACKAGE_MAX_V2_9: u32 = 1 << 24;
/// SHUT: the destination has not run the machine and never will.
const NEVER_RAN: u32 = 2;
/// How long a destination that broke the connection may still have something to say.
const LAST_WORD: Duration = Duration::from_secs(1);

/// What of postcopy was agreed on when the migration began.
#[derive(Debug, Clone, Copy)]
pub(super) struct Plan {
    /// Requested pages have a channel of their own.
    preempt: bool,
    /// Memory is freed as it is sent.
    release: bool,
}

impl Outgoing {
    /// Requested pages have a channel of their own.
    pub(super) fn preempt(&self) -> bool {
        self.plan.is_some_and(|plan| plan.preempt)
    }

    /// What the capabilities ask for, if `uri` and the format can have it.
    pub(super) fn plan(&self, uri: &Uri) -> Result<Option<Plan>> {
        if !self.control.capability("postcopy-ram") {
            return Ok(None);
        }
        if matches!(uri.address(), Address::File { .. } | Address::Exec(_)) {
            return Err(one_way());
        }
        let plan = Plan { preempt: self.control.capability("postcopy-preempt"), release: self.control.capability("release-ram") };
        if plan.preempt && self.options.format == Format::V2_9 {
            return Err(Error::new(ErrorKind::Unsupported, "postcopy-preempt is not known to a destination of 2.9; switch it off"));
        }
        if plan.preempt && !matches!(uri.address(), Address::Tcp(_) | Address::Unix(_)) {
            let text = format!("{uri}: postcopy-preempt needs a second connection; use tcp: or unix:");
            return Err(Error::new(ErrorKind::InvalidArgument, text));
        }
        Ok(Some(plan))
    }

    /// The second channel, where the destination waits for it from the start (7.2).
    pub(super) fn connect_second(&mut self, uri: &Uri, when: Format) -> Result<()> {
        if self.preempt() && self.options.format == when {
            let channel = self.session.open(uri, None)?;
            self.second = channel.split().1;
        }
        Ok(())
    }

    /// Tell the destination that postcopy may come.
    pub(super) fn advise(&mut self) -> Result<()> {
        if self.plan.is_none() {
            return Ok(());
        }
        let page_sizes = self.blocks.iter().fold(0, |sizes, block| sizes | block.page_size());
        let mut command = Output::new();
        command.command(&Command::PostcopyAdvise(Some(Advise { page_sizes, target_page: PAGE_SIZE })));
        self.put(command.as_slice())
    }

    /// Postcopy was asked for: what can be done before the machine stops. From here on no page is sent before the switch.
    pub(super) fn prepare_switch(&mut self) -> Result<()> {
        if self.preempt()
            && self.options.format == Format::V10_0
            && let Some(uri) = self.uri.clone()
        {
            // The destination counts connections: it must have taken the first.
            self.wait_pong(PING_SETUP)?;
            self.connect_second(&uri, Format::V10_0)?;
        }
        self.parts()?.1.set_bandwidth(0);
        self.bound()?;
        let newly = self.parts()?.0.sync()?;
        self.synced(newly);
        self.discard()?;
        self.flush()?;
        // As 7.2 does it: before the machine is stopped, unless it shall pause between the two. A cancel is found at the next step.
        if !self.control.capability("pause-before-switchover") {
            self.session.transition(Status::Active, Status::PostcopyActive);
        }
        Ok(())
    }

    /// The machine is stopped and the destination shall run it at once: END sections of the other live handlers (`ends`), device state
    /// (`full`), and then the memory as it is asked for. Returns when the destination has everything.
    pub fn postcopy(&mut self, ends: &[&[u8]], full: &[u8]) -> Result<()> {
        let (flow, clean) = self.switch(ends, full)?;
        let mut moved = self.give(flow, &clean);
        drop(clean);
        while let Err(error) = moved {
            self.lost(error)?;
            moved = self.recover()?.and_then(|flow| self.send_all(flow));
        }
        Ok(())
    }

    /// Everything up to the commit. Returns the pages that are to be sent, and with `release-ram` those that are not.
    fn switch(&mut self, ends: &[&[u8]], full: &[u8]) -> Result<(Flow, Vec<Bitmap>)> {
        self.check()?;
        let Some(plan) = self.plan else {
            return Err(Error::new(ErrorKind::InvalidState, "postcopy was not announced: switch the capability `postcopy-ram` on first"));
        };
        let mut package = Output::new();
        package.command(&Command::Listen);
        package.put(full);
        package.ping(PING_PACKAGE);
        let mut run = Output::new();
        run.command(&Command::Run);
        let most = if self.options.format == Format::V2_9 { PACKAGE_MAX_V2_9 } else { u32::MAX };
        let size = u32::try_from(package.len() + run.len()).ok().filter(|size| *size <= most).ok_or_else(|| {
            let text = format!("{} bytes of device state; a package of this format has at most {most:#x}", full.len());
            Error::new(ErrorKind::LimitExceeded, text)
        })?;
        let from = self.session.status();
        if !matches!(from, Status::Active | Status::PreSwitchover | Status::Device | Status::PostcopyActive) {
            return Err(Error::new(ErrorKind::InvalidState, format!("postcopy cannot begin in status `{}`", from.name())));
        }
        if from != Status::PostcopyActive && !self.session.transition(from, Status::PostcopyActive) {
            return Err(self.why_not_committed());
        }

        let begun = self.open_last_pass()?;
        for end in ends {
            self.put(end)?;
        }
        self.discard()?;
        self.flush()?;
        // While the destination drops its pages: has a writer not noticed the stop?
        if self.parts()?.0.written_since()?.is_some() {
            self.discard()?;
        }
        self.note(Phase::Pages, begun);

        let begun = Instant::now();
        // In one write: the answer acknowledges the package too. Else the peer's kernel takes 40 ms for that (TCP, delayed ACK).
        let mut head = Output::new();
        head.ping(PING_DISCARDED);
        head.command(&Command::Packaged(size));
        self.put(head.as_slice())?;
        self.put(package.as_slice())?;
        self.flush()?;
        self.wait_pong(PING_DISCARDED)?;
        // What may get lost from here on is RUN alone.
        let deadline = Instant::now() + self.answer_deadline;
        self.stream()?.arrived(deadline).map_err(|e| self.blame(e))?;
        if let Some(names) = self.parts()?.0.written_since()? {
            return Err(super::outgoing::still_written(&names));
        }
        // The destination may have given up after its answer.
        self.check()?;

        let dirty = self.parts()?.0.dirty_pages();
        let unsent = Arc::new(Unsent::new(&self.blocks, dirty));
        let clean = if plan.release { (0..self.blocks.len()).map(|block| unsent.clean(block)).collect() } else { Vec::new() };
        let flow = self.flow(unsent)?;
        self.serve(&flow);
        if !self.session.commit() {
            return Err(self.why_not_committed());
        }
        self.run = run.into_vec();
        self.note(Phase::Switchover, begun);
        Ok((flow, clean))
    }

    /// The last bytes of the package, then the memory.
    fn give(&mut self, flow: Flow, clean: &[Bitmap]) -> Result<()> {
        let stall = self.stall_deadline;
        self.parts()?.1.set_deadline(Instant::now() + stall);
        let run = self.run.clone();
        self.put(&run)?;
        self.flush()?;
        self.run.clear();
        self.session.mark_handed_over();
        self.ping_as(PING_RUNNING)?;
        for (block, clean) in clean.iter().enumerate() {
            clean.runs().for_each(|pages| drop_pages(&flow.unsent, block, pages));
        }
        self.send_all(flow)
    }

    /// Who sends what, over the present connection.
    fn flow(&mut self, unsent: Arc<Unsent>) -> Result<Flow> {
        let release = self.plan.is_some_and(|plan| plan.release);
        let records = || Records::new(Arc::clone(&unsent), Arc::clone(&self.session), release);
        let second = self.second.take().map(|writer| (self.second_stream(writer), records().naming_all()));
        if self.preempt() && second.is_none() {
            return Err(Error::new(ErrorKind::InvalidState, "the channel for requested pages is missing"));
        }
        let urgent = Urgent::new(Arc::clone(&unsent), second, self.stall_deadline);
        Ok(Flow { records: records(), urgent, unsent, place: Place::default() })
    }

    fn second_stream(&self, writer: WriteHalf) -> Stream {
        Stream::new(self.blocks.clone(), writer, 0)
    }

    /// From here on the return-path thread takes requests.
    fn serve(&self, flow: &Flow) {
        if let Some(back) = &self.back {
            back.serve(&flow.urgent);
        }
    }

    /// The connection broke after the commit. Returns when it can be replaced; fails where that makes no sense.
    fn lost(&mut self, error: Error) -> Result<()> {
        if self.session.cancel.is_set() {
            return Err(self.why_not_committed());
        }
        let said = self.back.as_ref().and_then(|back| back.last_word(Instant::now() + LAST_WORD));
        let error = match error.kind {
            ErrorKind::Cancelled => Error::new(ErrorKind::Cancelled, "the connection was ended on request (migrate-pause)"),
            _ => self.blame(error),
        };
        // The kernel has not taken all of RUN, and nobody else has it: so the destination can never run the machine.
        let kept = !std::mem::take(&mut self.run).is_empty() && !self.stream()?.keeps_bytes();
        if kept && self.session.give_back(error.clone()) {
            return Err(error);
        }
        let release = self.plan.is_some_and(|plan| plan.release);
        let ended = match said {
            None | Some(0) => false,
            Some(status) => {
                let text = "the destination could not load the machine and never ran it; its log or query-migrate says why";
                let never = Error::new(ErrorKind::ReturnPath, text);
                if status == NEVER_RAN && !release && self.session.give_back(never.clone()) {
                    return Err(never);
                }
                // Who is only being asked whether it is the right one does not end anything.
                self.session.status() == Status::PostcopyActive
            }
        };
        let error = if self.session.is_taken() { error } else { unheard(error) };
        let recoverable = !ended && !release && self.options.format != Format::V2_9;
        if recoverable && self.session.lose_link(&error) {
            self.stream = None;
            self.second = None;
            if let Some(mut back) = self.back.take() {
                back.join();
            }
            return Ok(());
        }
        self.session.fail(error);
        Err(self.why_not_committed())
    }

    /// Wait for the next connection and find out what the destination has. The outer error is the end, the inner one that of the
    /// connection.
    fn recover(&mut self) -> Result<Result<Flow>> {
        let channel = match self.session.wait_for_link() {
            Ok(channel) => channel,
            Err(error) => {
                self.session.fail(error);
                return Err(self.why_not_committed());
            }
        };
        let uri = channel.uri().clone();
        let (Some(reader), Some(writer)) = channel.split() else { return Ok(Err(one_way())) };
        let recovered = ReturnPath::start(reader, Arc::clone(&self.session), self.blocks.clone()).and_then(|back| {
            back.expect_bitmaps();
            self.back = Some(back);
            self.stream = Some(Stream::new(self.blocks.clone(), writer, 0));
            self.handshake(&uri)
        });
        Ok(recovered)
    }

    fn handshake(&mut self, uri: &Uri) -> Result<Flow> {
        let deadline = Instant::now() + self.answer_deadline;
        self.parts()?.1.set_deadline(deadline);
        self.bound()?;
        self.connect_second(uri, Format::V7_2)?;
        let mut questions = Output::new();
        for block in &self.blocks {
            questions.command(&Command::RecvBitmap(block.name().as_bytes().to_vec()));
        }
        self.put(questions.as_slice())?;
        self.flush()?;
        let deadline = Instant::now() + self.answer_deadline;
        let received = self.answered(|back| back.wait_bitmaps(deadline))?;
        self.connect_second(uri, Format::V10_0)?;
        let missing = received.iter().map(|received| {
            let mut missing = Bitmap::full(received.len());
            missing.and_not(received);
            missing
        });
        let flow = self.flow(Arc::new(Unsent::new(&self.blocks, missing.collect())))?;
        // The requests may be here before the acknowledgement has been noticed.
        self.serve(&flow);
        let mut resume = Output::new();
        resume.command(&Command::Resume);
        self.put(resume.as_slice())?;
        self.flush()?;
        let deadline = Instant::now() + self.answer_deadline;
        self.answered(|back| back.wait_resumed(deadline))?;
        if self.session.resumed() { Ok(flow) } else { Err(self.why_not_committed()) }
    }

    /// Send the discards of what is dirty and was not in a list before.
    fn discard(&mut self) -> Result<()> {
        let mut commands = Output::new();
        self.parts()?.0.put_discards(&mut commands);
        self.put(commands.as_slice())
    }

    fn ping_as(&mut self, token: u32) -> Result<()> {
        let mut ping = Output::new();
        ping.ping(token);
        self.put(ping.as_slice())?;
        self.flush()
    }

    fn wait_pong(&self, token: u32) -> Result<()> {
        let deadline = Instant::now() + self.answer_deadline;
        self.answered(|back| back.wait_pong(token, deadline))
    }

    fn answered<T>(&self, wait: impl FnOnce(&ReturnPath) -> Result<T>) -> Result<T> {
        let back = self.back.as_ref().ok_or_else(one_way)?;
        wait(back).map_err(|e| self.blame(e))
    }
}

/// A connection that was lost with the last bytes of the package on their way.
fn unheard(mut error: Error) -> Error {
    error.message += "; the destination has not said that it runs the machine: if it has ended without running the machine, \
                      x-migrate-give-up and then cont let it run here";
    error
}

pub(super) fn one_way() -> Error {
    Error::new(ErrorKind::BadUri, "postcopy needs a connection with a way back: use tcp:, unix:, or fd: with a socket")
}
