//! When the stages of an outgoing migration were, and what query-migrate shows of its source.

use std::sync::{MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde_json::{Map, Value};

use super::Session;
use crate::control::Status;

#[derive(Debug, Clone, Copy)]
pub(super) struct Times {
    start: Instant,
    setup_start: Instant,
    setup: Option<Duration>,
    stopped: Option<Instant>,
    /// Since when it waits before the switchover, if it does.
    paused: Option<Instant>,
    pause: Option<Duration>,
    handed_over: Option<Instant>,
    end: Option<Instant>,
}

impl Times {
    /// Of a migration that begins now.
    pub(super) fn begin() -> Self {
        let now = Instant::now();
        Self { start: now, setup_start: now, setup: None, stopped: None, paused: None, pause: None, handed_over: None, end: None }
    }
}

impl Session {
    /// The connection stands: the setup stage is timed from here.
    pub fn mark_setup_start(&self) {
        self.lock_times().setup_start = Instant::now();
    }

    /// The setup stage has been written.
    pub fn mark_setup_end(&self) {
        let mut times = self.lock_times();
        times.setup = Some(times.setup_start.elapsed());
    }

    /// The machine is about to be stopped for the switchover: downtime counts from here.
    pub fn mark_stopped(&self) {
        self.lock_times().stopped = Some(Instant::now());
    }

    /// Postcopy: the machine has just been handed over, so the downtime ends here.
    pub fn mark_handed_over(&self) {
        self.lock_times().handed_over = Some(Instant::now());
    }

    /// The status becomes `new`: how long it waited in `pre-switchover` is a part of the downtime.
    pub(super) fn time_pause(&self, new: Status) {
        let mut times = self.lock_times();
        if new == Status::PreSwitchover {
            times.paused = Some(Instant::now());
        } else if let Some(begun) = times.paused.take() {
            times.pause = Some(begun.elapsed());
        }
    }

    /// How long the switchover waited for `migrate-continue`.
    pub(in crate::control) fn pause_time(&self) -> Option<Duration> {
        self.lock_times().pause
    }

    pub(super) fn freeze(&self, status: Status) {
        let mut times = self.lock_times();
        let end = Instant::now();
        times.end = Some(end);
        if status == Status::Completed {
            let flowing = (end - times.start).saturating_sub(times.setup.unwrap_or_default());
            let seconds = flowing.as_secs_f64().max(0.001);
            #[allow(clippy::cast_precision_loss)] // a rate for people
            self.counters.mbps.set(self.counters.transferred.get() as f64 * 8.0 / seconds / 1e6);
        }
    }

    /// The source's part of query-migrate (control-plane 4.3, 7.2).
    pub(in crate::control) fn query(&self, into: &mut Map<String, Value>) {
        let status = self.status();
        if status == Status::None {
            return;
        }
        into.insert("status".into(), status.name().into());
        let error = match status {
            Status::Failed => self.error(),
            Status::Cancelled => self.deadline_reason(),
            Status::PostcopyPaused | Status::PostcopyRecover => self.link_error.lock().unwrap_or_else(PoisonError::into_inner).clone(),
            _ => None,
        };
        if let Some(error) = error {
            into.insert("error-desc".into(), error.to_string().into());
        }
        if matches!(status, Status::Setup | Status::Cancelled | Status::Failed | Status::WaitUnplug | Status::Colo) {
            return;
        }
        let times = *self.lock_times();
        let total = times.end.unwrap_or_else(Instant::now) - times.start;
        into.insert("total-time".into(), millis(total));
        match (status, times.end) {
            (Status::Completed, Some(end)) => {
                let running = times.handed_over.unwrap_or(end);
                into.insert("downtime".into(), millis(times.stopped.map_or(Duration::ZERO, |stop| running - stop)));
            }
            _ => {
                into.insert("expected-downtime".into(), self.counters.expected_downtime.get().into());
            }
        }
        into.insert("setup-time".into(), millis(times.setup.unwrap_or_default()));
        into.insert("ram".into(), self.counters.to_json(status == Status::Completed));
        if self.hub.capability("xbzrle") {
            into.insert("xbzrle-cache".into(), self.counters.xbzrle.to_json(self.hub.parameters().xbzrle_cache_size));
        }
        if self.hub.capability("compress") {
            into.insert("compression".into(), self.counters.compression.to_json());
        }
        if self.throttle() > 0 && !status.in_postcopy() {
            into.insert("cpu-throttle-percentage".into(), self.throttle().into());
        }
        if let Some(kind) = *self.dirty_log.lock().unwrap_or_else(PoisonError::into_inner) {
            into.insert("x-dirty-log".into(), kind.into());
        }
    }

    /// When the time of `total-time` began.
    pub(in crate::control) fn began(&self) -> Instant {
        self.lock_times().start
    }

    fn lock_times(&self) -> MutexGuard<'_, Times> {
        self.times.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn millis(time: Duration) -> Value {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX).into()
}
