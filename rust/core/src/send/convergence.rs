//! When to stop the machine: a pure rule over the dirty rounds so far.
//!
//! The downtime limit is a ceiling, not a target: while one more round still makes the rest clearly smaller, it is worth its bytes,
//! because every page sent now is a page not sent while the machine stands still.

use std::time::Duration;

use super::outgoing::{to_f64, whole};

/// A rest that is sent faster than a round trip takes; no round can improve on it.
const NEGLIGIBLE_BYTES: u64 = 256 << 10;
/// Rounds below the ceiling at most, so that a slowly shrinking rest cannot hold the machine here for ever.
const ROUNDS_BELOW_CEILING: u32 = 30;

/// What to do after a sync.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Send another round.
    Another,
    /// Stop the machine.
    Switch,
}

/// The memory of the rule: the rest after the previous round.
#[derive(Debug, Clone)]
pub struct Convergence {
    previous: u64,
    below: u32,
}

impl Convergence {
    /// A migration of `total` bytes begins.
    pub fn new(total: u64) -> Self {
        Self { previous: total, below: 0 }
    }

    /// A round is over and `remaining` bytes are to be sent; `ceiling` bytes fit into the downtime limit.
    pub fn judge(&mut self, remaining: u64, ceiling: u64) -> Verdict {
        let previous = std::mem::replace(&mut self.previous, remaining);
        if remaining == 0 {
            return Verdict::Switch;
        }
        if remaining > ceiling {
            self.below = 0;
            return Verdict::Another;
        }
        self.below += 1;
        let clearly_smaller = remaining <= previous / 4 * 3;
        if remaining > NEGLIGIBLE_BYTES && clearly_smaller && self.below <= ROUNDS_BELOW_CEILING {
            Verdict::Another
        } else {
            Verdict::Switch
        }
    }
}

/// A round that was sent. It tells how long pages take where bytes do not, because they are sent in other ways than as they are.
#[derive(Debug, Clone, Copy)]
pub struct Round {
    /// Bytes of the pages that were dirty.
    pub bytes: u64,
    /// From the sync before it to the one after it.
    pub time: Duration,
}

impl Round {
    /// Bytes of dirty pages that fit into `limit`: as many as in this round at its speed, and what is more at `bytes_per_ms`, for it may
    /// be of another kind.
    pub fn ceiling(&self, limit: Duration, bytes_per_ms: f64) -> u64 {
        match limit.checked_sub(self.time) {
            None => whole(to_f64(self.bytes) * limit.as_secs_f64() / self.time.as_secs_f64()),
            Some(rest) => self.bytes.saturating_add(whole(rest.as_secs_f64() * 1000.0 * bytes_per_ms)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_round_that_took_longer_than_the_limit_counts_in_part() {
        let round = Round { bytes: 64 << 20, time: Duration::from_secs(2) };
        assert_eq!(round.ceiling(Duration::from_millis(500), 1e6), 16 << 20);
        assert_eq!(round.ceiling(Duration::ZERO, 1e6), 0);
    }

    #[test]
    fn what_is_more_than_a_short_round_goes_at_the_bandwidth() {
        let round = Round { bytes: 4096, time: Duration::from_millis(100) };
        assert_eq!(round.ceiling(Duration::from_millis(300), 1000.0), 4096 + 200_000);
        assert_eq!(round.ceiling(Duration::from_millis(100), 1000.0), 4096);
        assert_eq!(Round { bytes: 0, time: Duration::ZERO }.ceiling(Duration::ZERO, 1000.0), 0);
    }

    #[test]
    fn idle_machine_switches_at_once() {
        assert_eq!(Convergence::new(1 << 30).judge(0, 0), Verdict::Switch);
        assert_eq!(Convergence::new(1 << 30).judge(4096, 1 << 20), Verdict::Switch);
    }

    #[test]
    fn above_the_ceiling_never_switches() {
        let mut rule = Convergence::new(1 << 30);
        for _ in 0..1000 {
            assert_eq!(rule.judge(64 << 20, 63 << 20), Verdict::Another);
        }
    }

    #[test]
    fn a_steady_rest_below_the_ceiling_switches_on_the_second_look() {
        let mut rule = Convergence::new(1 << 30);
        assert_eq!(rule.judge(64 << 20, 150 << 20), Verdict::Another);
        assert_eq!(rule.judge(64 << 20, 150 << 20), Verdict::Switch);
    }

    #[test]
    fn a_shrinking_rest_goes_on_below_the_ceiling() {
        let mut rule = Convergence::new(1 << 30);
        let mut rest = 100_u64 << 20;
        while rest > NEGLIGIBLE_BYTES {
            assert_eq!(rule.judge(rest, 150 << 20), Verdict::Another);
            rest /= 2;
        }
        assert_eq!(rule.judge(rest, 150 << 20), Verdict::Switch);
    }

    #[test]
    fn the_rounds_below_the_ceiling_are_bounded() {
        let mut rule = Convergence::new(u64::MAX);
        let mut rest = u64::MAX / 8;
        let rounds = (0..100)
            .take_while(|_| {
                rest = rest / 4 * 3;
                rule.judge(rest, u64::MAX) == Verdict::Another
            })
            .count();
        assert_eq!(rounds, 30);
    }
}
