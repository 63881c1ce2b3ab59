//! The main channel of the destination as a source of bytes, and its decoder.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::multifd::FanIn;
use super::silence::Silence;
use crate::channel::{Cancel, ReadHalf};
use crate::control::Counter;
use crate::wire::{ByteSource, Decoder};
use crate::{Error, ErrorKind, Result};

/// How long a source that was told the outcome may take to hang up.
pub const LINGER: Duration = Duration::from_secs(1);

/// The decoder of the main channel.
pub type Main = Decoder<Source>;

/// The receiving half of the main channel.
#[derive(Debug)]
pub struct Source {
    reader: ReadHalf,
    /// Counts what comes.
    received: Arc<Counter>,
    deadline: Option<Instant>,
    /// Once this is true there is no deadline any more.
    patient: Option<Arc<AtomicBool>>,
    /// What bounds a read without a deadline.
    silence: Option<Arc<Silence>>,
    /// How long nothing may come.
    idle: Option<Duration>,
    /// The channels beside it: if one breaks, there is nothing more to wait for.
    beside: Option<Arc<FanIn>>,
}

impl Source {
    /// Waits for as long as it takes. What comes is counted in `received`.
    pub fn new(reader: ReadHalf, received: &Arc<Counter>) -> Self {
        Self { reader, received: Arc::clone(received), deadline: None, patient: None, silence: None, idle: None, beside: None }
    }

    /// A read that has to wait beyond `deadline` fails as `timeout`.
    pub fn set_deadline(&mut self, deadline: Instant) {
        self.deadline = Some(deadline);
    }

    /// The same, until `patient` becomes true.
    pub fn hurry(&mut self, deadline: Instant, patient: &Arc<AtomicBool>) {
        self.set_deadline(deadline);
        self.patient = Some(Arc::clone(patient));
    }

    /// Waits for as long as it takes, again.
    pub fn clear_deadline(&mut self) {
        self.deadline = None;
        self.patient = None;
    }

    /// Where there is no deadline, waits for as long as `silence` allows.
    pub fn bear(&mut self, silence: &Arc<Silence>) {
        self.silence = Some(Arc::clone(silence));
    }

    /// The source was told that all it sent is here, and has nothing to do but to end: a read that waits longer than `time` fails as `timeout`.
    pub fn expect_end(&mut self, time: Duration) {
        self.idle = Some(time);
    }

    /// Everything was read: a command may end by `deadline`, and is told if it failed.
    pub fn finish(&mut self, deadline: Instant) -> Result<()> {
        self.reader.set_deadline(deadline);
        self.reader.finish()
    }

    /// A read fails with what breaks one of `channels`.
    pub fn stand_by(&mut self, channels: &Arc<FanIn>) {
        self.set_alarm(channels.broken());
        self.beside = Some(Arc::clone(channels));
    }

    /// A read fails as `cancelled` once `alarm` is set.
    pub fn set_alarm(&mut self, alarm: &Cancel) {
        self.reader.set_alarm(alarm);
    }

    /// Bounds what the kernel keeps unread.
    pub fn bound(&self, bytes: usize) {
        self.reader.bound(bytes);
    }

    /// A wait is over that was only for a look.
    fn goes_on(&self) -> bool {
        self.may_be_patient() || self.deadline.map_or(self.silence.is_some(), |deadline| Instant::now() < deadline)
    }

    fn may_be_patient(&self) -> bool {
        self.patient.as_ref().is_some_and(|patient| patient.load(Ordering::Acquire))
    }
}

impl ByteSource for Source {
    fn read(&mut self, buf: &mut [u8]) -> Result<usize> {
        let mut owed = None;
        let enough = self.idle.map(|time| Instant::now() + time);
        loop {
            if self.may_be_patient() {
                self.clear_deadline();
            }
            let now = Instant::now();
            if let (None, Some(silence)) = (self.deadline, &self.silence) {
                silence.check(&mut owed, now)?;
            }
            // Patience may come, and pages be asked for, while this waits.
            let look = self.silence.as_ref().map(|silence| now + silence.step());
            let until = [self.deadline, look, enough].into_iter().flatten().min();
            match until {
                Some(until) => self.reader.set_deadline(until),
                None => self.reader.clear_deadline(),
            }
            match self.reader.read(buf) {
                Err(error) if error.kind == ErrorKind::Timeout && enough.is_some_and(|at| Instant::now() >= at) => {
                    return Err(fell_silent(error, self.idle.unwrap_or_default()));
                }
                // The kernel has timeouts of its own, which are the end of a connection.
                Err(error) if error.kind == ErrorKind::Timeout && until.is_some_and(|at| Instant::now() >= at) && self.goes_on() => {}
                Err(error) if error.kind == ErrorKind::Cancelled => {
                    return Err(self.beside.as_ref().and_then(|channels| channels.failure()).unwrap_or(error));
                }
                read => return read.inspect(|got| self.received.add(*got as u64)),
            }
        }
    }

    fn skip(&mut self, n: u64) -> Result<u64> {
        self.reader.skip(n)
    }
}

fn fell_silent(mut error: Error, time: Duration) -> Error {
    error.message = format!(
        "the source has sent nothing for {time:?} since it was told that everything is here; query-migrate there says whether it still has \
         the machine"
    );
    error
}

/// The last word was said: reads and drops what still comes until the source hangs up, for a moment. Who closes a socket over unread
/// bytes resets it, and the source may lose that word.
pub fn drain(main: &mut Main) {
    let source = main.input().source();
    source.reader.set_deadline(Instant::now() + LINGER);
    source.reader.drain();
}
