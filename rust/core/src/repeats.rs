//! What a peer can repeat at will must not fill the log.

use std::sync::atomic::{AtomicU64, Ordering};

/// Counts one kind of event, and says which are worth a line: the first, and from there on each with which the count has doubled.
#[derive(Debug, Default)]
pub struct Repeats(AtomicU64);

impl Repeats {
    /// It has happened again: if that is worth a line, what to write behind it.
    pub fn again(&self) -> Option<String> {
        let times = self.0.fetch_add(1, Ordering::Relaxed) + 1;
        let words = || if times == 1 { String::new() } else { format!(" ({times} so far)") };
        times.is_power_of_two().then(words)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_million_are_twenty_lines() {
        let repeats = Repeats::default();
        let lines: Vec<String> = (0..1_000_000).filter_map(|_| repeats.again()).collect();
        assert_eq!(lines[..3], ["", " (2 so far)", " (4 so far)"]);
        assert_eq!(lines.len(), 20);
    }
}
