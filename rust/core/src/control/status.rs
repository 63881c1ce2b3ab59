//! The migration status: names as QMP shows them (7.2), what each one means, and the word that holds one.
//!
//! A word changes by compare-and-swap only. The swap and the MIGRATION event it causes are one step, so that observers see
//! events in the order of the changes.

use std::sync::PoisonError;

use crate::sync::Mutex;
use crate::sync::atomic::{AtomicU8, Ordering};

/// Status of one side of a migration (control-plane 2.1, 2.2). QMP knows the names only.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Status {
    /// Nothing was ever started.
    None,
    /// Connecting, or writing the setup stage.
    Setup,
    /// Cancel was asked for; cleaning up.
    Cancelling,
    /// Ended by cancel; the source kept the machine.
    Cancelled,
    /// Precopy runs.
    Active,
    /// The destination runs and asks for pages.
    PostcopyActive,
    /// Postcopy lost its channel and waits for another.
    PostcopyPaused,
    /// A new channel stands; the two sides compare what they have.
    PostcopyRecover,
    /// Done.
    Completed,
    /// Ended by an error.
    Failed,
    /// Lock-step replication.
    Colo,
    /// Stopped before the switchover on request.
    PreSwitchover,
    /// Device state is being written.
    Device,
    /// Waiting for the guest to unplug failover devices.
    WaitUnplug,
}

impl Status {
    /// Every status.
    pub const ALL: &'static [Self] = &[
        Self::None,
        Self::Setup,
        Self::Cancelling,
        Self::Cancelled,
        Self::Active,
        Self::PostcopyActive,
        Self::PostcopyPaused,
        Self::PostcopyRecover,
        Self::Completed,
        Self::Failed,
        Self::Colo,
        Self::PreSwitchover,
        Self::Device,
        Self::WaitUnplug,
    ];

    /// The name on QMP.
    pub const fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Setup => "setup",
            Self::Cancelling => "cancelling",
            Self::Cancelled => "cancelled",
            Self::Active => "active",
            Self::PostcopyActive => "postcopy-active",
            Self::PostcopyPaused => "postcopy-paused",
            Self::PostcopyRecover => "postcopy-recover",
            Self::Completed => "completed",
            Self::Failed => "failed",
            Self::Colo => "colo",
            Self::PreSwitchover => "pre-switchover",
            Self::Device => "device",
            Self::WaitUnplug => "wait-unplug",
        }
    }

    /// The status of that name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|s| s.name() == name)
    }

    /// Nothing more will happen.
    pub const fn is_final(self) -> bool {
        matches!(self, Self::Completed | Self::Failed | Self::Cancelled)
    }

    /// Postcopy with a connection, which may be lost or cut.
    pub const fn has_link(self) -> bool {
        matches!(self, Self::PostcopyActive | Self::PostcopyRecover)
    }

    /// The destination runs, or is about to, and memory is missing there.
    pub const fn in_postcopy(self) -> bool {
        matches!(self, Self::PostcopyActive | Self::PostcopyPaused | Self::PostcopyRecover)
    }

    /// A cancel may still be asked for (7.2: every running state but `colo`; `cancelling` is on its way already).
    pub const fn is_cancellable(self) -> bool {
        !self.is_final() && !matches!(self, Self::None | Self::Cancelling | Self::Colo)
    }
}

/// The word that holds a status.
#[derive(Debug)]
pub struct StatusWord {
    word: AtomicU8,
    /// Held over a change and its event; never while anything can block.
    order: Mutex<()>,
}

impl StatusWord {
    /// A word that holds `status`.
    pub fn new(status: Status) -> Self {
        Self { word: AtomicU8::new(status as u8), order: Mutex::new(()) }
    }

    /// The present status; takes no lock.
    pub fn get(&self) -> Status {
        let value = self.word.load(Ordering::Acquire);
        // Only `change` and `new` write the word, and only from a Status.
        Status::ALL.iter().copied().find(|s| *s as u8 == value).unwrap_or(Status::None)
    }

    /// Asks `decide` for the next status given the present one; stores it and calls `then` with it as one step. Returns it.
    pub fn change(&self, decide: impl FnOnce(Status) -> Option<Status>, then: impl FnOnce(Status)) -> Option<Status> {
        let _order = self.order.lock().unwrap_or_else(PoisonError::into_inner);
        let next = decide(self.get())?;
        self.word.store(next as u8, Ordering::Release);
        then(next);
        Some(next)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip() {
        for (index, status) in Status::ALL.iter().enumerate() {
            assert_eq!(*status as usize, index);
            assert_eq!(Status::from_name(status.name()), Some(*status));
            assert_eq!(StatusWord::new(*status).get(), *status);
        }
        assert_eq!(Status::from_name("Active"), None);
    }

    #[test]
    fn a_lost_race_changes_nothing_and_says_nothing() {
        let word = StatusWord::new(Status::Cancelling);
        let swapped = word.change(|now| (now == Status::Active).then_some(Status::Completed), |_| panic!("no event"));
        assert_eq!((swapped, word.get()), (None, Status::Cancelling));
    }
}
