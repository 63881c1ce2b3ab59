//! How precopy ends: the last pass with the machine stopped, the fence, the commit, and the destination's last word.

use std::time::Instant;

use super::{Format, Outgoing};
use crate::control::Phase;
use crate::wire::{Output, SectionKind};
use crate::{Error, ErrorKind, Result};

/// Chances for a writer that has not noticed the stop.
const LATE_PASSES: u32 = 1;

impl Outgoing {
    /// The machine is stopped: the last pass, `full`, the fence, the commit, `tail` and the destination's last word.
    pub fn finish(&mut self, ends: &[Option<&[u8]>], full: &[u8], tail: &[u8]) -> Result<()> {
        self.check()?;
        let begun = self.open_last_pass()?;
        for end in ends {
            match end {
                Some(bytes) => self.put(bytes)?,
                None => _ = self.ram_pass(SectionKind::End, false, None)?,
            }
        }
        self.put(full)?;
        self.note(Phase::Pages, begun);
        let begun = Instant::now();
        self.fence()?;
        let done = if self.commits_after_finish { self.end_file(tail) } else { self.end_channel(tail) };
        self.note(Phase::Switchover, begun);
        done
    }

    /// The machine is stopped: no rate limit, the last sync, and what 10.0 says of it. Returns when the last pages' time began.
    pub(in crate::send) fn open_last_pass(&mut self) -> Result<Instant> {
        let begun = Instant::now();
        self.parts()?.1.set_bandwidth(0);
        self.parts()?.0.last_stage();
        let newly = self.parts()?.0.sync()?;
        self.synced(newly);
        self.note(Phase::Sync, begun);
        let begun = Instant::now();
        let sent = self.parts()?.1.sent();
        self.precopy_bytes = Some(sent);
        self.session.counters.precopy_bytes.set(sent);
        if self.options.switchover_start {
            let mut command = Output::new();
            command.switchover_start();
            self.put(command.as_slice())?;
        }
        Ok(begun)
    }

    /// The destination holds everything that was sent, and nothing has changed since.
    fn fence(&mut self) -> Result<()> {
        for late in 0..=LATE_PASSES {
            let deadline = Instant::now() + self.answer_deadline;
            if self.two_way {
                let token = self.ping()?;
                if let Some(back) = &self.back {
                    back.wait_pong(token, deadline).map_err(|e| self.blame(e))?;
                }
            } else {
                // Nobody answers, but a command that died early is noticed while the machine is still here.
                self.parts()?.1.drain(deadline).map_err(|e| self.blame(e))?;
            }
            let saver = self.parts()?.0;
            saver.sync()?;
            if saver.remaining_bytes() == 0 {
                // The destination may have given up after its answer.
                return self.check();
            }
            if late < LATE_PASSES {
                self.ram_pass(SectionKind::Part, false, None)?;
            }
        }
        let names = self.parts()?.0.name_dirty(8);
        Err(still_written(&names))
    }

    /// A channel with a reader at its end: commit, then EOF. From there on the machine may run there.
    fn end_channel(&mut self, tail: &[u8]) -> Result<()> {
        if !self.session.commit() {
            return Err(self.why_not_committed());
        }
        self.after_commit(tail).map_err(|error| {
            self.session.fail(error);
            self.why_not_committed()
        })
    }

    fn after_commit(&mut self, tail: &[u8]) -> Result<()> {
        // Nothing can be cancelled any more.
        let deadline = Instant::now() + self.answer_deadline;
        self.parts()?.1.set_deadline(deadline);
        self.put(tail)?;
        self.parts()?.1.finish()?;
        let Some(back) = &self.back else { return Ok(()) };
        match back.wait_shut(deadline)? {
            Some(0) => Ok(()),
            Some(status) => Err(Error::new(ErrorKind::ReturnPath, format!("the destination reported failure (status {status})"))),
            None if self.options.format == Format::V2_9 => Ok(()),
            None => Err(Error::new(ErrorKind::Closed, "the channel ended before the destination's last word (SHUT)")),
        }
    }

    /// A file: nobody runs from it until it is whole, so the commit comes last.
    fn end_file(&mut self, tail: &[u8]) -> Result<()> {
        self.put(tail)?;
        self.parts()?.1.finish()?;
        if self.session.commit() { Ok(()) } else { Err(self.why_not_committed()) }
    }
}

pub(in crate::send) fn still_written(names: &str) -> Error {
    Error::new(
        ErrorKind::WriterNotStopped,
        format!("memory is still being written although the machine is stopped: {names}; stop() must quiesce vCPUs and device threads"),
    )
}
