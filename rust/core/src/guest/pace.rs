//! How fast a vCPU runs: steps a second, and the share of time that auto-converge takes away. No part of the guest's state.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Shorter sleeps cost more than they tell: at high rates the steps of this long are done in one go.
const NAP_MIN: Duration = Duration::from_micros(500);
/// A vCPU that could not run for longer (stopped process, missing page) does not make up for more than this.
const BACKLOG: Duration = Duration::from_millis(100);
/// In each such window a throttled vCPU first runs, then sleeps.
const WINDOW: Duration = Duration::from_millis(10);

/// Sleeps for `pause`, or until `stop` is set and the thread unparked.
pub(super) fn nap(pause: Duration, stop: &AtomicBool) {
    let end = Instant::now() + pause;
    while !stop.load(Ordering::Relaxed) {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return;
        }
        std::thread::park_timeout(left);
    }
}

/// Keeps `rate` steps a second since it began.
#[derive(Debug)]
pub(super) struct Pace {
    rate: u64,
    began: Instant,
    done: u64,
}

impl Pace {
    pub fn new(rate: u64, now: Instant) -> Self {
        Self { rate, began: now, done: 0 }
    }

    /// Steps that are due now, at least one; or how long to sleep until one is.
    pub fn due(&mut self, now: Instant) -> Result<u64, Duration> {
        if self.rate == 0 {
            return Err(Duration::from_secs(3600));
        }
        let mut due = self.steps(now - self.began).saturating_sub(self.done);
        let backlog = self.steps(BACKLOG).max(1);
        if due > backlog {
            self.began = now;
            self.done = 0;
            due = backlog;
        }
        if due > 0 {
            return Ok(due);
        }
        // When step number `done + 1` is due, rounded up.
        let at = (u128::from(self.done) + 1) * 1_000_000_000;
        let at = Duration::from_nanos(u64::try_from(at.div_ceil(u128::from(self.rate))).unwrap_or(u64::MAX));
        Err((self.began + at).saturating_duration_since(now).max(NAP_MIN))
    }

    pub fn did(&mut self, steps: u64) {
        self.done += steps;
    }

    fn steps(&self, time: Duration) -> u64 {
        u64::try_from(time.as_nanos() * u128::from(self.rate) / 1_000_000_000).unwrap_or(u64::MAX)
    }
}

/// Takes a percentage of the time away.
#[derive(Debug)]
pub(super) struct Throttle {
    /// When the vCPU began to run, after its last sleep.
    began: Instant,
}

impl Throttle {
    pub fn new(now: Instant) -> Self {
        Self { began: now }
    }

    /// How long to sleep now, once the running share of a window is used up. Who has run longer sleeps longer, up to what a whole
    /// window costs: a step may have waited for a page.
    pub fn pause(&mut self, percent: u32, now: Instant) -> Option<Duration> {
        if percent == 0 {
            self.began = now;
            return None;
        }
        let (ran, share) = (now.saturating_duration_since(self.began), 100 - percent);
        if ran < WINDOW * share / 100 {
            return None;
        }
        let pause = ran.min(WINDOW) * percent / share;
        self.began = now + pause;
        Some(pause)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs a pace on a clock that only its own sleeps move; steps done after `length`.
    fn simulate(rate: u64, length: Duration, most: u64) -> u64 {
        let began = Instant::now();
        let (mut pace, mut now, mut done) = (Pace::new(rate, began), began, 0);
        while now - began < length {
            match pace.due(now) {
                Ok(due) => {
                    pace.did(due.min(most));
                    done += due.min(most);
                }
                Err(pause) => now += pause,
            }
        }
        done
    }

    #[test]
    fn the_rate_is_kept() {
        for rate in [1, 3, 999, 10_000, 7_654_321] {
            let done = simulate(rate, Duration::from_secs(10), 512);
            let wanted = rate * 10;
            // Nothing but the last nap may be missing.
            assert!(done <= wanted && wanted - done <= rate / 1000 + 1, "rate {rate}: {done} of {wanted}");
        }
    }

    #[test]
    fn no_rate_sleeps_until_stopped() {
        assert!(Pace::new(0, Instant::now()).due(Instant::now()).is_err());
    }

    #[test]
    fn a_long_stall_is_forgiven() {
        let began = Instant::now();
        let mut pace = Pace::new(1000, began);
        let later = began + Duration::from_secs(60);
        assert_eq!(pace.due(later), Ok(100));
        pace.did(100);
        assert!(pace.due(later).is_err());
    }

    #[test]
    fn a_throttled_window_runs_first_and_then_sleeps() {
        let began = Instant::now();
        let mut throttle = Throttle::new(began);
        let at = |ms| began + Duration::from_millis(ms);
        assert_eq!(throttle.pause(70, at(2)), None);
        assert_eq!(throttle.pause(70, at(3)), Some(Duration::from_millis(7)));
        assert_eq!(throttle.pause(70, at(10)), None);
        assert_eq!(throttle.pause(70, at(16)), Some(Duration::from_millis(14)), "twice the share costs twice the sleep");
        assert_eq!(throttle.pause(99, at(60_000)), Some(Duration::from_millis(990)), "no more than a window's");
        assert_eq!(throttle.pause(0, at(60_015)), None);
        assert_eq!(throttle.pause(99, at(60_015)), None);
    }
}
