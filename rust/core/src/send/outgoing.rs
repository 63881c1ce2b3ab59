//! One outgoing migration from the channel to the destination's last word. Called from one thread; cancelled through its session.

mod ending;
mod rates;

use std::sync::Arc;
use std::time::{Duration, Instant};

pub(super) use self::ending::still_written;
use self::rates::Rates;
pub(super) use self::rates::{per_ms, per_second, to_f64, whole};
use super::convergence::{Convergence, Round, Verdict};
use super::multifd::{self, Multifd};
use super::postcopy::{self, Plan};
use super::ram_saver::{RamSaver, Turn};
use super::ready;
use super::return_path::ReturnPath;
use super::stream::Stream;
use super::throttle::{LONGEST_PERIOD, Throttle};
use super::ways;
use crate::channel::{Address, Channel, Uri, WriteHalf};
use crate::control::{Control, Phase, Session, no_file};
use crate::ram::dirty::DirtyMode;
use crate::ram::{Block, RamList};
use crate::recv::Deadlines;
use crate::wire::consts::PAGE_SIZE;
use crate::wire::{Output, SectionKind};
use crate::{Error, ErrorKind, Result};

/// How long the destination may take to load what was sent, to end precopy, for each step of a recovery. The machine stands still meanwhile, so it is
/// bounded; device state is at most a few MiB, so it is generous.
const ANSWER_DEADLINE: Duration = Duration::from_secs(30);
/// The same for the last word of postcopy, which comes when devices are loaded and all pages are there: while it may still be that the
/// machine never ran, the destination must be able to say so.
const WORD_DEADLINE: Duration = Deadlines::DEFAULT.load.saturating_add(Deadlines::DEFAULT.drain).saturating_add(ANSWER_DEADLINE);
/// How long a peer may not read what it waits for.
const STALL_DEADLINE: Duration = Duration::from_secs(60);
/// A turn of RAM: how soon parameters, the destination's words, other live handlers and the counters have their turn.
pub(super) const TURN: Duration = Duration::from_millis(50);

/// What the writer emits (contract section 4).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// QEMU 2.9.
    V2_9,
    /// QEMU 7.2.
    V7_2,
    /// QEMU 10.0.
    V10_0,
}

/// What does not change during one migration.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// Format profile of the writer.
    pub format: Format,
    /// Section id of `ram`.
    pub section_id: u32,
    /// Section footers are written.
    pub footers: bool,
    /// `SWITCHOVER_START` is written (10.0).
    pub switchover_start: bool,
    /// How dirty pages are found.
    pub dirty: DirtyMode,
}

/// Why `run` returned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Stop the machine and call `finish`.
    Switchover,
    /// Other live handlers may write their PART sections now.
    Iterate,
    /// Postcopy was asked for: stop the machine and call `postcopy`.
    Postcopy,
    /// Take `Session::throttle` percent of their time from the vCPUs.
    Throttle,
}

/// The source of one migration.
#[derive(Debug)]
pub struct Outgoing {
    pub(super) control: Arc<Control>,
    pub(super) session: Arc<Session>,
    pub(super) options: Options,
    pub(super) blocks: Vec<Arc<Block>>,
    saver: Option<RamSaver>,
    channel: Option<Channel>,
    pub(super) uri: Option<Uri>,
    pub(super) plan: Option<Plan>,
    pub(super) stream: Option<Stream>,
    /// The channel for requested pages, until somebody sends over it.
    pub(super) second: Option<WriteHalf>,
    /// UUID of the machine; zeros if it has none.
    uuid: [u8; 16],
    /// The channels of multifd, until pages are sent over them.
    multifd: Option<(multifd::Plan, Vec<WriteHalf>)>,
    pub(super) back: Option<ReturnPath>,
    /// The last bytes of the package, between the commit and their way out.
    pub(super) run: Vec<u8>,
    two_way: bool,
    commits_after_finish: bool,
    convergence: Convergence,
    throttle: Throttle,
    pings: u32,
    /// How long the destination may take for an answer.
    pub(super) answer_deadline: Duration,
    /// And for the last word of postcopy.
    pub(super) word_deadline: Duration,
    /// And, after the commit, until it reads on.
    pub(super) stall_deadline: Duration,
    /// How long auto-converge waits for the end of a round.
    longest_period: Duration,
    /// Bytes sent while the machine ran; known once it stopped.
    pub(super) precopy_bytes: Option<u64>,
    rates: Rates,
}

impl Outgoing {
    /// A migration of `blocks` for the session that `control` has begun.
    pub fn new(control: Arc<Control>, blocks: Vec<Arc<Block>>, options: Options) -> Result<Self> {
        let session = control.outgoing().ok_or_else(|| Error::new(ErrorKind::InvalidState, "no outgoing migration has begun"))?;
        let blocks = RamList::new(blocks)?.blocks().to_vec();
        Ok(Self {
            control,
            session,
            options,
            blocks,
            saver: None,
            channel: None,
            uri: None,
            plan: None,
            stream: None,
            second: None,
            uuid: [0; 16],
            multifd: None,
            back: None,
            run: Vec::new(),
            two_way: false,
            commits_after_finish: false,
            convergence: Convergence::new(0),
            throttle: Throttle::default(),
            pings: 0,
            answer_deadline: ANSWER_DEADLINE,
            word_deadline: WORD_DEADLINE,
            stall_deadline: STALL_DEADLINE,
            longest_period: LONGEST_PERIOD,
            precopy_bytes: None,
            rates: Rates::new(),
        })
    }

    /// UUID of the machine, which multifd channels say.
    pub fn set_uuid(&mut self, uuid: [u8; 16]) {
        self.uuid = uuid;
    }

    /// How long the destination may take for an answer (to a fence, at the end of precopy, at each step of a recovery), and for anything
    /// from a multifd channel that is opened after this, instead of half a minute.
    pub fn set_answer_deadline(&mut self, deadline: Duration) {
        self.answer_deadline = deadline;
    }

    /// How long it may take for the last word of postcopy, instead of two minutes.
    pub fn set_word_deadline(&mut self, deadline: Duration) {
        self.word_deadline = deadline;
    }

    /// How long it may not read what it is sent after the commit, instead of a minute: then postcopy is paused.
    pub fn set_stall_deadline(&mut self, deadline: Duration) {
        self.stall_deadline = deadline;
    }

    /// How long auto-converge waits for the end of a round before it looks at what is dirty, instead of five seconds.
    pub fn set_longest_period(&mut self, period: Duration) {
        self.longest_period = period;
    }

    /// Open the channel. Blocks for sockets; a cancel of the session ends it.
    pub fn connect(&mut self, uri: &Uri, fd: Option<std::os::fd::OwnedFd>) -> Result<()> {
        self.plan = self.plan(uri)?;
        ready::check(&self.control, uri)?;
        let multifd = multifd::Plan::wanted(&self.control, self.options.format, uri)?;
        self.control.check_transport(uri)?;
        ways::check_format(&self.control, self.options.format)?;
        if multifd.is_some() && self.plan.is_some() {
            return Err(Error::new(ErrorKind::InvalidArgument, "postcopy-ram does not go with multifd: switch one off"));
        }
        let channel = self.session.open(uri, fd)?;
        self.two_way = channel.two_way();
        if self.plan.is_some() && !self.two_way {
            return Err(postcopy::one_way());
        }
        self.check_heard(uri)?;
        self.connect_second(uri, Format::V7_2)?;
        if let Some(plan) = multifd {
            self.multifd = Some((plan, plan.connect(uri, self.uuid, self.answer_deadline, &self.session)?));
        }
        self.uri = Some(uri.clone());
        let to_file = channel.writer.as_ref().is_some_and(WriteHalf::is_file);
        if self.control.mapped_ram().is_some() && !to_file {
            return Err(no_file(uri));
        }
        // Nobody runs from a file before it is whole. Anything else that was named as one (a FIFO) has nobody to wait for either.
        self.commits_after_finish = to_file || matches!(uri.address(), Address::File { .. });
        self.channel = Some(channel);
        Ok(())
    }

    /// The channel has a return path.
    pub fn two_way(&self) -> bool {
        self.two_way
    }

    /// Header, configuration, return path, START sections in handler order (None: RAM's own). The status becomes active.
    pub fn setup(&mut self, head: &[u8], sections: &[Option<&[u8]>]) -> Result<()> {
        self.session.mark_setup_start();
        let channel = self.channel.take().ok_or_else(|| Error::new(ErrorKind::InvalidState, "setup before connect"))?;
        let (reader, writer) = channel.split();
        let writer = writer.ok_or_else(|| Error::new(ErrorKind::BadUri, "this channel cannot be written to"))?;
        if let Some(reader) = reader {
            self.back = Some(ReturnPath::start(reader, Arc::clone(&self.session), self.blocks.clone())?);
        }
        self.stream = Some(Stream::new(self.blocks.clone(), writer, self.control.parameters().max_bandwidth));
        self.put(head)?;
        if self.two_way {
            let mut commands = Output::new();
            commands.open_return_path();
            self.put(commands.as_slice())?;
            self.ping()?;
            self.advise()?;
        }
        let postcopy = self.plan.is_some();
        let Some(stream) = &self.stream else { return Err(not_set_up()) };
        let mut ways = ways::wanted(&self.control, &self.session, &self.blocks, stream)?;
        if let Some((plan, channels)) = self.multifd.take() {
            let ear = self.back.as_ref().map(ReturnPath::ear);
            ways.insert(0, Box::new(Multifd::start(plan, channels, &self.blocks, &self.session, ear.as_ref())?));
        }
        let mut saver = RamSaver::new(&self.blocks, self.options.dirty, ways)?;
        saver.start()?;
        self.session.set_dirty_log(saver.log_name());
        self.session.counters.total.set(saver.total_bytes());
        self.convergence = Convergence::new(saver.total_bytes());
        self.saver = Some(saver);
        self.synced(0);
        for section in sections {
            match section {
                Some(bytes) => self.put(bytes)?,
                None => self.ram_section(SectionKind::Start, |outgoing| {
                    let (saver, stream) = outgoing.parts()?;
                    saver.put_block_list(stream, postcopy)
                })?,
            }
        }
        self.flush()?;
        self.session.mark_setup_end();
        self.rates.evaluated = Instant::now();
        // A cancel may have come first: then the next step finds it.
        self.session.activate();
        Ok(())
    }

    /// RAM rounds until the machine should be stopped; with `pending` bytes in other live handlers, one turn.
    pub fn run(&mut self, pending: u64) -> Result<Step> {
        loop {
            self.check()?;
            if self.plan.is_some() && self.session.postcopy_wanted() && self.ready(Instant::now()) {
                self.prepare_switch()?;
                return Ok(Step::Postcopy);
            }
            if self.session.switchover_wanted() {
                return Ok(Step::Switchover);
            }
            if let Some(percent) = self.throttle.news() {
                self.session.set_throttle(percent);
                return Ok(Step::Throttle);
            }
            let bandwidth = self.control.parameters().max_bandwidth;
            self.parts()?.1.set_bandwidth(bandwidth);
            if self.parts()?.0.remaining_bytes() > 0 {
                self.ram_pass(SectionKind::Part, true, Some(Instant::now() + TURN))?;
            }
            self.window()?;
            let (saver, stream) = self.parts()?;
            if stream.rate().exceeded() {
                stream.flush()?;
                let alarm = self.alarm();
                self.parts()?.1.rate().wait(&alarm);
                self.window()?;
            } else if saver.remaining_bytes() == 0 && self.settled()? {
                // What was clean but not sent would be sent while the machine stands still; and only now is it known how long it took.
                self.window()?;
                let (saver, stream) = self.parts()?;
                let (offered, sent, end) = (saver.offered(), stream.sent(), Instant::now());
                let newly = saver.sync()?;
                let remaining = saver.remaining_bytes();
                self.synced(newly);
                let next = (Instant::now(), offered.unwrap_or_default(), sent);
                let (begun, before, sent_before) = std::mem::replace(&mut self.rates.round, next);
                if self.session.counters.multifd_bytes.get() > 0 && sent > sent_before {
                    // Whoever sends together ends together: a window has too much of it, or nothing. The round has all of it.
                    self.rates.steady(per_ms(sent - sent_before, end - begun));
                }
                let round = offered.map(|all| Round { bytes: (all - before) * PAGE_SIZE, time: end - begun });
                self.rates.last_round = round.filter(|round| round.bytes > 0);
                let ceiling = self.ceiling();
                let left = remaining.saturating_add(pending);
                if self.convergence.judge(left, ceiling) == Verdict::Switch {
                    // What keeps the destination from being ready may be something that a live handler has to send.
                    return Ok(if self.ready(Instant::now() + TURN) { Step::Switchover } else { Step::Iterate });
                }
            }
            if self.auto_converge()
                && self.session.counters.dirty_sync_count.get() > 1
                && self.rates.evaluated.elapsed() >= self.longest_period
            {
                let newly = self.parts()?.0.sync()?;
                self.synced(newly);
            }
            if pending > 0 {
                self.flush()?;
                return Ok(Step::Iterate);
            }
        }
    }

    /// Everything that is not dirty has been sent; waits for a turn.
    fn settled(&mut self) -> Result<bool> {
        let (saver, stream) = self.parts()?;
        saver.settled(stream, Instant::now() + TURN).map_err(|e| self.blame(e))
    }

    /// Complete sections of other live handlers.
    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.check()?;
        self.put(bytes)?;
        self.flush()
    }

    /// Close channels, stop dirty logging. Idempotent.
    pub fn close(&mut self) {
        self.session.cancel.set();
        self.stream = None;
        self.second = None;
        self.multifd = None;
        self.channel = None;
        if let Some(mut back) = self.back.take() {
            back.join();
        }
        if let Some(mut saver) = self.saver.take() {
            saver.stop();
        }
    }

    pub(super) fn note(&self, phase: Phase, begun: Instant) {
        self.control.note_time(phase, u64::try_from(begun.elapsed().as_micros()).unwrap_or(u64::MAX));
        let sent = self.stream.as_ref().map_or(0, Stream::sent);
        self.session.counters.transferred.set(sent);
        self.session.counters.downtime_bytes.set(sent - self.precopy_bytes.unwrap_or(sent));
    }

    pub(super) fn why_not_committed(&self) -> Error {
        self.session.why_cancelled()
    }

    /// RAM records as one section: a pass, or a turn of it.
    fn ram_pass(&mut self, kind: SectionKind, limited: bool, deadline: Option<Instant>) -> Result<Turn> {
        let session = Arc::clone(&self.session);
        self.ram_section(kind, |outgoing| {
            let (saver, stream) = outgoing.parts()?;
            let turn = saver.send_dirty(stream, &session, limited, deadline)?;
            saver.put_end(stream, kind)?;
            saver.publish(&session.counters);
            Ok(turn)
        })
    }

    pub(super) fn ram_section<T>(&mut self, kind: SectionKind, payload: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        let id = self.options.section_id;
        let mut head = Output::new();
        match kind {
            SectionKind::Start => head.section_start(id, b"ram", 0, 4),
            SectionKind::Part => head.section_part(id),
            _ => head.section_end(id),
        }
        self.put(head.as_slice())?;
        let done = payload(self).map_err(|e| self.blame(e))?;
        if self.options.footers {
            let mut footer = Output::new();
            footer.footer(id);
            self.put(footer.as_slice())?;
        }
        Ok(done)
    }

    fn ping(&mut self) -> Result<u32> {
        self.pings += 1;
        let mut ping = Output::new();
        ping.ping(self.pings);
        self.put(ping.as_slice())?;
        self.flush()?;
        Ok(self.pings)
    }

    /// A failed write is the destination's doing more often than the network's: prefer what it said.
    pub(super) fn blame(&self, error: Error) -> Error {
        if self.session.cancel.is_set() {
            return self.why_not_committed();
        }
        match (&error.kind, self.back.as_ref().and_then(ReturnPath::failure)) {
            (ErrorKind::Io | ErrorKind::Closed, Some(theirs)) => theirs,
            _ => error,
        }
    }

    pub(super) fn check(&self) -> Result<()> {
        if self.session.cancel.is_set() {
            return Err(self.why_not_committed());
        }
        self.back.as_ref().and_then(ReturnPath::failure).map_or(Ok(()), Err)
    }

    pub(super) fn put(&mut self, bytes: &[u8]) -> Result<()> {
        self.stream()?.put(bytes).map_err(|e| self.blame(e))
    }

    pub(super) fn flush(&mut self) -> Result<()> {
        self.stream()?.flush().map_err(|e| self.blame(e))
    }

    pub(super) fn stream(&mut self) -> Result<&mut Stream> {
        self.stream.as_mut().ok_or_else(not_set_up)
    }

    pub(super) fn parts(&mut self) -> Result<(&mut RamSaver, &mut Stream)> {
        match (&mut self.saver, &mut self.stream) {
            (Some(saver), Some(stream)) => Ok((saver, stream)),
            _ => Err(not_set_up()),
        }
    }
}

fn not_set_up() -> Error {
    Error::new(ErrorKind::InvalidState, "the migration is not set up, or closed")
}
