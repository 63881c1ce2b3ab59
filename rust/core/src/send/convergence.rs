//! When to stop the machine: a pure rule over the dirty rounds so far.
//!
//! The downtime limit is a ceiling, not a target: while one more round still makes the rest clearly smaller, it is worth its bytes,
//! because every page sent now is a page not sent while the machine stands still.

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

#[cfg(test)]
mod tests {
    use super::*;

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
