//! Auto-converge: by how much the machine must be slowed down so that its memory can be sent faster than it is written.
//!
//! A pure rule over periods of a second or more (spec/control-plane 3.9, as QEMU 7.2; the syncs in long rounds are those of 10.0).

use std::time::Duration;

use crate::control::ThrottleSettings;

/// Periods with too many dirty pages that a step needs; they need not follow each other.
const PERIODS: u8 = 2;
/// A round that takes longer is interrupted by a look at what is dirty, so that steps do not wait for it.
pub(super) const LONGEST_PERIOD: Duration = Duration::from_secs(5);

/// The memory of the rule.
#[derive(Debug, Clone, Default)]
pub(super) struct Throttle {
    percent: u8,
    periods: u8,
    /// What was sent up to the last period.
    sent: u64,
    /// Not yet told to the machine.
    news: Option<u8>,
}

impl Throttle {
    /// A period is over, in which `dirtied` bytes were written; `sent` bytes were sent since the migration began.
    pub fn judge(&mut self, dirtied: u64, sent: u64, settings: ThrottleSettings) {
        let period = sent - std::mem::replace(&mut self.sent, sent);
        let bearable = u64::try_from(u128::from(period) * u128::from(settings.threshold) / 100).unwrap_or(u64::MAX);
        if dirtied <= bearable {
            return;
        }
        self.periods += 1;
        if self.periods < PERIODS {
            return;
        }
        self.periods = 0;
        let next = if self.percent == 0 { settings.initial } else { self.percent + self.step(dirtied, bearable, settings) };
        let next = next.clamp(1, settings.most.clamp(1, 99));
        if next != self.percent {
            self.percent = next;
            self.news = Some(next);
        }
    }

    /// Percent to be taken from the vCPUs from now on, if that has changed.
    pub fn news(&mut self) -> Option<u8> {
        self.news.take()
    }

    fn step(&self, dirtied: u64, bearable: u64, settings: ThrottleSettings) -> u8 {
        let left = 100 - self.percent;
        if !settings.tailslow {
            return settings.increment;
        }
        // What the vCPUs may keep if they write in proportion to their time. Below `left`, for `bearable` is below `dirtied`.
        let ideal = u128::from(left) * u128::from(bearable) / u128::from(dirtied);
        settings.increment.min(left - u8::try_from(ideal).unwrap_or(left))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SETTINGS: ThrottleSettings = ThrottleSettings { threshold: 50, initial: 20, increment: 10, most: 99, tailslow: false };

    /// What `periods` of (dirtied, sent) lead to.
    fn steps(settings: ThrottleSettings, periods: impl IntoIterator<Item = (u64, u64)>) -> Vec<u8> {
        let (mut rule, mut all) = (Throttle::default(), 0);
        let judged = periods.into_iter().map(|(dirtied, sent)| {
            all += sent;
            rule.judge(dirtied, all, settings);
            rule.news()
        });
        judged.flatten().collect()
    }

    #[test]
    fn every_second_period_takes_more_up_to_the_cap() {
        assert_eq!(steps(SETTINGS, [(100, 100); 20]), [20, 30, 40, 50, 60, 70, 80, 90, 99]);
        assert_eq!(steps(ThrottleSettings { most: 45, ..SETTINGS }, [(100, 100); 20]), [20, 30, 40, 45]);
        assert_eq!(steps(ThrottleSettings { initial: 99, ..SETTINGS }, [(100, 100); 20]), [99]);
        assert_eq!(steps(ThrottleSettings { increment: 99, ..SETTINGS }, [(100, 100); 20]), [20, 99]);
    }

    #[test]
    fn what_is_bearable_counts_for_nothing() {
        assert_eq!(steps(SETTINGS, [(50, 100); 20]), [0u8; 0]);
        assert_eq!(steps(SETTINGS, [(51, 100), (0, 100), (50, 100), (51, 100)]), [20]);
        assert_eq!(steps(ThrottleSettings { threshold: 100, ..SETTINGS }, [(100, 100); 20]), [0u8; 0]);
        assert_eq!(steps(SETTINGS, [(u64::MAX, 0), (u64::MAX, 0)]), [20]);
        assert_eq!(steps(ThrottleSettings { threshold: 100, ..SETTINGS }, [(u64::MAX, u64::MAX)]), [0u8; 0]);
    }

    #[test]
    fn the_last_steps_are_small_ones_if_that_is_wanted() {
        let slow = ThrottleSettings { tailslow: true, ..SETTINGS };
        // 80 % of the time write 52: 50 of them take 76.
        assert_eq!(steps(slow, [(52, 100); 4]), [20, 24]);
        assert_eq!(steps(slow, [(1000, 100); 4]), [20, 30]);
        assert_eq!(steps(slow, [(1000, 0); 20]), [20, 30, 40, 50, 60, 70, 80, 90, 99]);
    }

    #[test]
    fn settings_of_a_moment_hold_at_the_next_step() {
        let mut rule = Throttle::default();
        for settings in [SETTINGS, SETTINGS, SETTINGS, ThrottleSettings { increment: 30, ..SETTINGS }] {
            rule.judge(1, 0, settings);
        }
        assert_eq!(rule.news(), Some(50));
        assert_eq!(rule.news(), None);
        // A cap that is lowered below what is taken gives the difference back.
        let lower = ThrottleSettings { initial: 5, most: 10, ..SETTINGS };
        rule.judge(1, 0, lower);
        rule.judge(1, 0, lower);
        assert_eq!(rule.news(), Some(10));
    }
}
