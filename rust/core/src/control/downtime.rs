//! Where the downtime went: `x-downtime` of query-migrate, in microseconds.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde_json::{Map, Value};

/// A part of the switchover.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Source: stopping the machine and letting go of its storage.
    Stop,
    /// Source: the last sync of the dirty bitmap.
    Sync,
    /// Source: the last pages, and the device state behind them.
    Pages,
    /// Source: fence, commit, end of the stream; the destination loads its devices meanwhile.
    Switchover,
    /// Destination: loading device state.
    Load,
    /// Destination: starting the machine.
    Start,
}

impl Phase {
    const ALL: [Self; 6] = [Self::Stop, Self::Sync, Self::Pages, Self::Switchover, Self::Load, Self::Start];

    /// The member's name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Sync => "sync",
            Self::Pages => "pages",
            Self::Switchover => "switchover",
            Self::Load => "load",
            Self::Start => "start",
        }
    }

    /// The phase of that name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|p| p.name() == name)
    }
}

#[derive(Debug, Default)]
pub(super) struct DowntimeRecord(Mutex<Map<String, Value>>);

impl DowntimeRecord {
    pub(super) fn clear(&self) {
        self.lock().clear();
    }

    pub(super) fn note(&self, phase: Phase, microseconds: u64) {
        self.lock().insert(phase.name().into(), microseconds.into());
    }

    pub(super) fn note_device(&self, device: &str, microseconds: u64) {
        if let Value::Object(devices) = self.lock().entry("devices").or_insert_with(|| Value::Object(Map::new())) {
            devices.insert(device.into(), microseconds.into());
        }
    }

    /// None if nothing was noted. `pause`: how long the last switchover from here waited in `pre-switchover`.
    pub(super) fn to_json(&self, pause: Option<Duration>) -> Option<Value> {
        let mut times = self.lock().clone();
        // Without a stop these are the times of a machine that has come back since.
        if let Some(pause) = pause.filter(|_| times.contains_key(Phase::Stop.name())) {
            times.insert("pause".into(), u64::try_from(pause.as_micros()).unwrap_or(u64::MAX).into());
        }
        (!times.is_empty()).then_some(Value::Object(times))
    }

    fn lock(&self) -> MutexGuard<'_, Map<String, Value>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
