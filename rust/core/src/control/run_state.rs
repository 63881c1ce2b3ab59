//! Run states of the machine and which may follow which (control-plane 8.1, 8.2: the 7.2 table with the additions of 10.0).

/// Run state of the machine. The names are visible on QMP and in the globalstate section.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum RunState {
    /// Stopped by a debugger.
    Debug,
    /// Waiting for, or loading, an incoming machine.
    Inmigrate,
    /// The emulator cannot go on.
    InternalError,
    /// Stopped by a storage error.
    IoError,
    /// Stopped on request.
    Paused,
    /// The machine has gone elsewhere.
    Postmigrate,
    /// Not yet started.
    Prelaunch,
    /// Stopped for the switchover.
    FinishMigrate,
    /// A snapshot is being loaded.
    RestoreVm,
    /// vCPUs run.
    Running,
    /// A snapshot is being saved.
    SaveVm,
    /// The guest switched itself off.
    Shutdown,
    /// The guest sleeps.
    Suspended,
    /// The watchdog stopped it.
    Watchdog,
    /// The guest reported its own crash.
    GuestPanicked,
    /// Stopped between two checkpoints of replication.
    Colo,
}

use RunState as R;

impl RunState {
    /// Every run state.
    pub const ALL: &'static [Self] = &[
        R::Debug,
        R::Inmigrate,
        R::InternalError,
        R::IoError,
        R::Paused,
        R::Postmigrate,
        R::Prelaunch,
        R::FinishMigrate,
        R::RestoreVm,
        R::Running,
        R::SaveVm,
        R::Shutdown,
        R::Suspended,
        R::Watchdog,
        R::GuestPanicked,
        R::Colo,
    ];

    /// The name on QMP and in the stream.
    pub const fn name(self) -> &'static str {
        match self {
            R::Debug => "debug",
            R::Inmigrate => "inmigrate",
            R::InternalError => "internal-error",
            R::IoError => "io-error",
            R::Paused => "paused",
            R::Postmigrate => "postmigrate",
            R::Prelaunch => "prelaunch",
            R::FinishMigrate => "finish-migrate",
            R::RestoreVm => "restore-vm",
            R::Running => "running",
            R::SaveVm => "save-vm",
            R::Shutdown => "shutdown",
            R::Suspended => "suspended",
            R::Watchdog => "watchdog",
            R::GuestPanicked => "guest-panicked",
            R::Colo => "colo",
        }
    }

    /// The run state of that name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|s| s.name() == name)
    }

    /// What may follow.
    const fn next(self) -> &'static [Self] {
        match self {
            R::Prelaunch => &[R::Running, R::FinishMigrate, R::Inmigrate, R::Suspended],
            R::Inmigrate => &[
                R::InternalError,
                R::IoError,
                R::Paused,
                R::Running,
                R::Shutdown,
                R::Suspended,
                R::Watchdog,
                R::GuestPanicked,
                R::FinishMigrate,
                R::Prelaunch,
                R::Postmigrate,
                R::Colo,
            ],
            R::Paused => &[R::Running, R::FinishMigrate, R::Prelaunch, R::Colo, R::Postmigrate, R::Suspended],
            R::Running => &[
                R::Debug,
                R::InternalError,
                R::IoError,
                R::Paused,
                R::FinishMigrate,
                R::RestoreVm,
                R::SaveVm,
                R::Shutdown,
                R::Watchdog,
                R::GuestPanicked,
                R::Colo,
                R::Suspended,
            ],
            R::FinishMigrate => &[
                R::Running,
                R::Postmigrate,
                R::Prelaunch,
                R::Colo,
                R::Paused,
                R::InternalError,
                R::IoError,
                R::Shutdown,
                R::Suspended,
                R::Watchdog,
                R::GuestPanicked,
            ],
            R::Postmigrate | R::IoError | R::GuestPanicked => &[R::Running, R::FinishMigrate, R::Prelaunch],
            R::SaveVm => &[R::Running, R::Suspended],
            R::RestoreVm => &[R::Running, R::Prelaunch, R::Suspended],
            R::Colo => &[R::Running, R::Prelaunch, R::Shutdown],
            R::Suspended => &[R::Running, R::FinishMigrate, R::Prelaunch, R::Colo, R::Paused, R::SaveVm, R::RestoreVm, R::Shutdown],
            R::InternalError => &[R::Paused, R::FinishMigrate, R::Prelaunch],
            R::Shutdown => &[R::Paused, R::FinishMigrate, R::Prelaunch, R::Colo],
            R::Debug => &[R::Running, R::FinishMigrate, R::Prelaunch, R::Suspended],
            R::Watchdog => &[R::Running, R::FinishMigrate, R::Prelaunch, R::Colo],
        }
    }

    /// True if the machine may go from `self` to `next`; staying is always legal.
    pub fn may_become(self, next: Self) -> bool {
        self == next || self.next().contains(&next)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip() {
        for (index, state) in RunState::ALL.iter().enumerate() {
            assert_eq!(*state as usize, index);
            assert_eq!(RunState::from_name(state.name()), Some(*state));
        }
        assert_eq!(RunState::from_name("stopped"), None);
    }

    #[test]
    fn the_table_has_its_gaps() {
        for illegal in [R::Debug, R::SaveVm, R::RestoreVm] {
            assert!(!R::Inmigrate.may_become(illegal));
        }
        assert!(!R::Paused.may_become(R::SaveVm));
        assert!(!R::Running.may_become(R::Postmigrate));
        assert!(R::Running.may_become(R::Running));
        // A source that was paused gets its former state back after a failed switchover.
        assert!(R::FinishMigrate.may_become(R::Paused));
    }

    #[test]
    fn a_reset_leads_out_of_everything_that_can_be_reset() {
        for state in RunState::ALL {
            let expect = !matches!(state, R::Running | R::SaveVm);
            assert_eq!(state.may_become(R::Prelaunch), expect, "{}", state.name());
        }
    }
}
