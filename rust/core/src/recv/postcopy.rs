//! Postcopy up to LISTEN: its state, which decides what is legal (spec/stream 9.2), and the memory that is prepared for it.
//!
//! ```text
//! NONE ──ADVISE──► ADVISE ──DISCARD──► DISCARD ──LISTEN──► LISTENING ──RUN──► RUNNING ──► END
//!                    └───────────────LISTEN───────────────────►
//! ```

use std::sync::Arc;

use crate::control::Control;
use crate::postcopy::{Latency, Memory, Requests};
use crate::ram::TARGET_PAGE;
use crate::wire::{Advise, Command};
use crate::{Error, ErrorKind, Result};

use super::deadlines::Deadlines;
use super::ram_loader::RamLoader;

/// Where postcopy stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Progress {
    /// Nothing of it.
    #[default]
    None,
    /// It may come; all RAM was emptied.
    Advise,
    /// It is about to come; what is stale is dropped.
    Discard,
    /// The stream belongs to the listen thread; devices are loaded.
    Listening,
    /// The machine may run here.
    Running,
}

impl Progress {
    const fn name(self) -> &'static str {
        match self {
            Self::None => "NONE",
            Self::Advise => "ADVISE",
            Self::Discard => "DISCARD",
            Self::Listening => "LISTENING",
            Self::Running => "RUNNING",
        }
    }
}

/// A command that has no place in the present state.
pub fn out_of_order(command: &Command, state: &str) -> Error {
    Error::new(ErrorKind::BadCommand, format!("{} is out of order: postcopy is {state} here", command.name()))
}

/// What was prepared.
#[derive(Debug, Default)]
pub struct Postcopy {
    progress: Progress,
    memory: Option<Arc<Memory>>,
    /// vCPUs of the machine; 0: unknown.
    pub cpus: u32,
    /// How long the source may take.
    pub deadlines: Deadlines,
}

impl Postcopy {
    /// Where it stands.
    pub fn progress(&self) -> Progress {
        self.progress
    }

    /// The commands ADVISE and DISCARD.
    pub fn prepare(&mut self, command: &Command, control: &Control, loader: &mut RamLoader) -> Result<()> {
        match (command, self.progress) {
            (Command::PostcopyAdvise(advise), Progress::None) => {
                self.advise(*advise, control, loader)?;
                self.progress = Progress::Advise;
            }
            (Command::RamDiscard { name, ranges }, Progress::Advise | Progress::Discard) => {
                self.progress = Progress::Discard;
                self.discard(name, ranges)?;
            }
            _ => return Err(self.refuse(command)),
        }
        Ok(())
    }

    fn advise(&mut self, advise: Option<Advise>, control: &Control, loader: &mut RamLoader) -> Result<()> {
        let Some(advise) = advise else {
            let text = "POSTCOPY_ADVISE is for dirty bitmaps, which this machine does not have; switch `dirty-bitmaps` off at the source";
            return Err(Error::new(ErrorKind::Unsupported, text));
        };
        if !control.capability("postcopy-ram") {
            let text = "postcopy may come, but `postcopy-ram` is off here; switch it on here, too, or off at the source";
            return Err(Error::new(ErrorKind::BadCommand, text));
        }
        let blocks = loader.list().blocks();
        let memory = Memory::new(blocks)?;
        if advise.page_sizes != memory.page_sizes() {
            let here = blocks.iter().map(|block| format!("{:?}: {:#x}", block.name(), block.page_size())).collect::<Vec<_>>();
            let text = format!(
                "the source's RAM has page sizes {:#x} in all, and this machine's has {:#x} ({}); back the RAM of both sides alike",
                advise.page_sizes,
                memory.page_sizes(),
                here.join(", ")
            );
            return Err(Error::new(ErrorKind::BlockMismatch, text));
        }
        if advise.target_page != TARGET_PAGE as u64 {
            let text = format!("target pages of {:#x} bytes there and of {TARGET_PAGE:#x} here", advise.target_page);
            return Err(Error::new(ErrorKind::BlockMismatch, text));
        }
        memory.prepare()?;
        loader.note(Arc::clone(&memory));
        self.memory = Some(memory);
        Ok(())
    }

    fn discard(&self, name: &[u8], ranges: &[(u64, u64)]) -> Result<()> {
        let memory = self.memory.as_ref().ok_or_else(unprepared)?;
        let unknown = || {
            let text = format!("discard in block \"{}\", which this machine does not have", name.escape_ascii());
            Error::new(ErrorKind::UnknownBlock, text)
        };
        let block = memory.index_of(name).ok_or_else(unknown)?;
        ranges.iter().try_for_each(|(start, len)| memory.discard(block, *start, *len))
    }

    /// May a package come now?
    pub fn check_package(&self, command: &Command) -> Result<()> {
        match self.progress {
            Progress::Advise | Progress::Discard => Ok(()),
            _ => Err(self.refuse(command)),
        }
    }

    /// LISTEN: the memory is watched from here on.
    pub fn listen(&mut self, command: &Command, control: &Control) -> Result<Arc<Requests>> {
        if !matches!(self.progress, Progress::Advise | Progress::Discard) {
            return Err(self.refuse(command));
        }
        let memory = self.memory.clone().ok_or_else(unprepared)?;
        memory.arm()?;
        self.progress = Progress::Listening;
        let latency = Arc::new(Latency::new());
        latency.set_cpus(self.cpus);
        control.set_fault_latency(Arc::clone(&latency));
        Ok(Requests::new(memory, latency))
    }

    /// RUN.
    pub fn run(&mut self, command: &Command) -> Result<()> {
        if self.progress != Progress::Listening {
            return Err(self.refuse(command));
        }
        self.progress = Progress::Running;
        Ok(())
    }

    fn refuse(&self, command: &Command) -> Error {
        out_of_order(command, self.progress.name())
    }
}

fn unprepared() -> Error {
    Error::new(ErrorKind::InvalidState, "postcopy was not announced")
}
