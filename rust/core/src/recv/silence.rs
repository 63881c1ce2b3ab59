//! How long a source that owes something may send nothing.
//!
//! Requested pages are owed, and the rest of a host page of which a part came. Without a debt there is no bound: the background may be
//! as slow as it likes. Bytes count on whichever channel they come.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::channel::ReadHalf;
use crate::postcopy::Requests;
use crate::wire::ByteSource;
use crate::{Error, ErrorKind, Result};

/// What both channels know of it.
#[derive(Debug)]
pub struct Silence {
    requests: Arc<Requests>,
    stall: Duration,
    began: Instant,
    /// When bytes came last, in nanoseconds since `began`.
    heard: AtomicU64,
    /// A part of a host page is here.
    part: AtomicBool,
}

impl Silence {
    /// Of at most `stall` while a page of `requests` is outstanding.
    pub fn new(requests: Arc<Requests>, stall: Duration) -> Self {
        Self { requests, stall, began: Instant::now(), heard: AtomicU64::new(0), part: AtomicBool::new(false) }
    }

    /// Bytes came.
    pub fn broken(&self) {
        let now = u64::try_from(self.began.elapsed().as_nanos()).unwrap_or(u64::MAX);
        self.heard.store(now, Ordering::Relaxed);
    }

    /// A part of a host page is here, or no longer.
    pub fn set_part(&self, part: bool) {
        self.part.store(part, Ordering::Relaxed);
    }

    /// How long to wait at most before the next look.
    pub fn step(&self) -> Duration {
        self.stall / 8
    }

    /// Fails as `timeout` if the silence has been too long `now`. `owed` belongs to one wait: since when there has been a debt.
    pub fn check(&self, owed: &mut Option<Instant>, now: Instant) -> Result<()> {
        let (pages, part) = (self.requests.outstanding(), self.part.load(Ordering::Relaxed));
        if pages == 0 && !part {
            *owed = None;
            return Ok(());
        }
        let heard = self.began + Duration::from_nanos(self.heard.load(Ordering::Relaxed));
        let since = heard.max(*owed.get_or_insert(now));
        if now.saturating_duration_since(since) < self.stall {
            return Ok(());
        }
        let debt = if pages > 0 { format!("{pages} requested pages are outstanding") } else { "a host page has come in part".into() };
        let text = format!(
            "the source has sent nothing for {:?} while {debt}; see whether it hangs or cannot be reached, then recover \
             (migrate-recover here, migrate with resume there)",
            self.stall
        );
        Err(Error::new(ErrorKind::Timeout, text))
    }
}

/// The receiving half of another channel, whose bytes count too.
#[derive(Debug)]
pub struct Heard {
    /// The channel.
    pub reader: ReadHalf,
    /// What its bytes break.
    pub silence: Arc<Silence>,
}

impl ByteSource for Heard {
    fn read(&mut self, buf: &mut [u8]) -> Result<usize> {
        let read = self.reader.read(buf);
        self.silence.broken();
        read
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::postcopy::{Latency, Memory};
    use crate::ram::Block;

    #[test]
    fn only_a_silent_debtor_is_overdue() {
        let memory = Memory::new(&[Block::anon("ram", 4096).unwrap()]).unwrap();
        let stall = Duration::from_secs(3600);
        let silence = Silence::new(Requests::new(memory, Arc::new(Latency::new())), stall);
        let (began, mut owed) = (silence.began, None);
        silence.check(&mut owed, began + 9 * stall).unwrap();

        silence.set_part(true);
        silence.check(&mut owed, began + 10 * stall).unwrap();
        silence.check(&mut owed, began + 10 * stall + stall / 2).unwrap();
        let error = silence.check(&mut owed, began + 11 * stall).unwrap_err();
        assert_eq!(error.kind, ErrorKind::Timeout);
        assert!(error.message.contains("nothing for 3600s while a host page has come in part"), "{error}");

        silence.heard.store(u64::try_from((11 * stall).as_nanos()).unwrap(), Ordering::Relaxed); // on the other channel
        silence.check(&mut owed, began + 11 * stall).unwrap();
        silence.check(&mut owed, began + 12 * stall).unwrap_err();

        silence.set_part(false);
        silence.check(&mut owed, began + 12 * stall).unwrap();
        silence.set_part(true); // a new debt has all the time again
        silence.check(&mut owed, began + 12 * stall).unwrap();
    }
}
