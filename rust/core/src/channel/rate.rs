//! The bandwidth limit of one migration, over all its channels, in windows of 100 ms.
//!
//! Senders `account` what they put on any channel; the migration thread asks `exceeded` (or keeps to `budget`), sleeps in
//! `wait` and takes the window's figures from `window_elapsed`. The limit may change at any time, from any thread.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::Cancel;

/// Length of a window; the limit of one is a tenth of the bandwidth.
pub const WINDOW: Duration = Duration::from_millis(100);
/// Windows in a second.
const WINDOWS: u64 = 10;
/// Longest single sleep: how soon a changed limit is noticed.
const SLICE: Duration = Duration::from_millis(10);

/// Where time comes from; tests put their own here.
pub trait Clock: Send + Sync {
    /// Time since some fixed moment.
    fn now(&self) -> Duration;
    /// Sleeps for `time`; true if `cancel` is set.
    fn sleep(&self, time: Duration, cancel: &Cancel) -> bool;
}

/// The monotonic clock.
#[derive(Debug)]
pub struct Monotonic(Instant);

impl Clock for Monotonic {
    fn now(&self) -> Duration {
        self.0.elapsed()
    }

    fn sleep(&self, time: Duration, cancel: &Cancel) -> bool {
        cancel.wait(time)
    }
}

/// Window bookkeeping; shared by reference.
pub struct RateLimit<C = Monotonic> {
    clock: C,
    /// Bytes that one window may carry; 0: unlimited.
    limit: AtomicU64,
    /// Bytes accounted in the current window.
    sent: AtomicU64,
    /// When the current window began.
    start: Mutex<Duration>,
}

impl RateLimit {
    /// A limit of `bandwidth` bytes a second; 0 (and anything below 10) is unlimited.
    pub fn new(bandwidth: u64) -> Self {
        Self::with_clock(bandwidth, Monotonic(Instant::now()))
    }
}

impl<C: Clock> RateLimit<C> {
    /// The same with another clock.
    pub fn with_clock(bandwidth: u64, clock: C) -> Self {
        let start = Mutex::new(clock.now());
        Self { clock, limit: AtomicU64::new(bandwidth / WINDOWS), sent: AtomicU64::new(0), start }
    }

    /// Changes the limit (bytes a second), the current window included.
    pub fn set_bandwidth(&self, bandwidth: u64) {
        self.limit.store(bandwidth / WINDOWS, Ordering::Relaxed);
    }

    /// Counts bytes that were put on a channel.
    pub fn account(&self, bytes: u64) {
        self.sent.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Bytes left in this window: how large the next batch may be. `u64::MAX` if unlimited.
    pub fn budget(&self) -> u64 {
        match self.limit.load(Ordering::Relaxed) {
            0 => u64::MAX,
            limit => limit.saturating_sub(self.sent.load(Ordering::Relaxed)),
        }
    }

    /// True if this window has carried more than its limit.
    pub fn exceeded(&self) -> bool {
        let limit = self.limit.load(Ordering::Relaxed);
        limit > 0 && self.sent.load(Ordering::Relaxed) > limit
    }

    /// Sleeps to the end of the window, or until a changed limit leaves room; true if `cancel` is set.
    ///
    /// It begins no window: `window_elapsed` does.
    pub fn wait(&self, cancel: &Cancel) -> bool {
        let end = *self.start() + WINDOW;
        loop {
            if cancel.is_set() {
                return true;
            }
            let left = end.saturating_sub(self.clock.now());
            if left.is_zero() || self.budget() > 0 {
                return false;
            }
            if self.clock.sleep(left.min(SLICE), cancel) {
                return true;
            }
        }
    }

    /// How long the window still lasts.
    pub fn left(&self) -> Duration {
        (*self.start() + WINDOW).saturating_sub(self.clock.now())
    }

    /// If the window is over: its bytes and its length, and a new one begins.
    pub fn window_elapsed(&self) -> Option<(u64, Duration)> {
        let mut start = self.start();
        let now = self.clock.now();
        let elapsed = now.saturating_sub(*start);
        if elapsed < WINDOW {
            return None;
        }
        *start = now;
        Some((self.sent.swap(0, Ordering::Relaxed), elapsed))
    }

    fn start(&self) -> MutexGuard<'_, Duration> {
        self.start.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<C> fmt::Debug for RateLimit<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RateLimit").field("limit", &self.limit).field("sent", &self.sent).finish_non_exhaustive()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    type Act = Box<dyn Fn(&Cancel) + Send + Sync>;

    /// Time moves only in sleeps, whose lengths it keeps, and may do something at one of them.
    #[derive(Default)]
    struct Script {
        now: Mutex<Duration>,
        slept: Mutex<Vec<Duration>>,
        at: Option<(usize, Act)>,
    }

    impl Script {
        fn advance(&self, ms: u64) {
            *self.now.lock().unwrap() += Duration::from_millis(ms);
        }
        fn slept(&self) -> usize {
            self.slept.lock().unwrap().len()
        }
    }

    impl Clock for std::sync::Arc<Script> {
        fn now(&self) -> Duration {
            *self.now.lock().unwrap()
        }
        fn sleep(&self, time: Duration, cancel: &Cancel) -> bool {
            self.slept.lock().unwrap().push(time);
            *self.now.lock().unwrap() += time;
            if let Some((nth, act)) = &self.at
                && *nth == self.slept()
            {
                act(cancel);
            }
            cancel.is_set()
        }
    }

    fn limit(bandwidth: u64, script: Script) -> (RateLimit<std::sync::Arc<Script>>, std::sync::Arc<Script>) {
        let script = std::sync::Arc::new(script);
        (RateLimit::with_clock(bandwidth, std::sync::Arc::clone(&script)), script)
    }

    #[test]
    fn below_ten_bytes_a_second_is_unlimited() {
        for bandwidth in [0, 9] {
            let (rate, _) = limit(bandwidth, Script::default());
            rate.account(u64::MAX / 2);
            assert!(!rate.exceeded());
            assert_eq!(rate.budget(), u64::MAX);
            assert!(!rate.wait(&Cancel::new().unwrap()));
        }
    }

    #[test]
    fn exceeded_is_strictly_more() {
        let (rate, _) = limit(1009, Script::default());
        rate.account(60);
        assert_eq!(rate.budget(), 40);
        rate.account(40);
        assert!(!rate.exceeded());
        assert_eq!(rate.budget(), 0);
        rate.account(1);
        assert!(rate.exceeded());
        assert_eq!(rate.budget(), 0);
    }

    #[test]
    fn sleeps_in_slices_to_the_end_of_the_window() {
        let (rate, script) = limit(1000, Script::default());
        script.advance(35);
        rate.account(101);
        assert!(!rate.wait(&Cancel::new().unwrap()));
        let slept = script.slept.lock().unwrap().clone();
        assert_eq!(slept.len(), 7);
        assert!(slept.iter().all(|s| *s <= SLICE));
        assert_eq!(slept.iter().sum::<Duration>(), Duration::from_millis(65));
        assert_eq!(rate.window_elapsed(), Some((101, WINDOW)));
        assert!(!rate.exceeded());
    }

    #[test]
    fn a_window_has_its_bytes_and_its_true_length() {
        let (rate, script) = limit(0, Script::default());
        rate.account(5);
        script.advance(99);
        assert_eq!(rate.window_elapsed(), None);
        script.advance(31);
        rate.account(6);
        assert_eq!(rate.window_elapsed(), Some((11, Duration::from_millis(130))));
        script.advance(100);
        assert_eq!(rate.window_elapsed(), Some((0, WINDOW)));
    }

    #[test]
    fn a_raised_limit_ends_the_sleep() {
        let script = Script::default();
        let (rate, script) = limit(1000, script);
        rate.account(101);
        rate.set_bandwidth(100_000);
        assert!(!rate.exceeded());
        assert!(!rate.wait(&Cancel::new().unwrap()));
        assert_eq!(script.slept(), 0);
        rate.set_bandwidth(10);
        assert!(rate.exceeded());
    }

    #[test]
    fn cancel_ends_the_sleep() {
        let (rate, script) = limit(1000, Script { at: Some((3, Box::new(Cancel::set))), ..Script::default() });
        rate.account(101);
        let cancel = Cancel::new().unwrap();
        assert!(rate.wait(&cancel));
        assert_eq!(script.slept(), 3);
        assert!(rate.wait(&cancel));
        assert_eq!(script.slept(), 3);
    }
}
