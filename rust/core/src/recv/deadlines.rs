//! How long a destination waits for its source.

use std::time::Duration;

/// How long the source may take.
#[derive(Debug, Clone, Copy)]
pub struct Deadlines {
    /// From the first connection of several to the last.
    pub connect: Duration,
    /// For the machine's device state, with the pages that it touches while it is loaded: nobody runs the machine meanwhile.
    pub load: Duration,
    /// For each step of a recovery.
    pub recover: Duration,
    /// For the last requested pages after the end of everything else.
    pub drain: Duration,
    /// For the next byte, while requested pages are outstanding, a host page has come in part, the main channel waits for another, or precopy
    /// has only to end.
    pub stall: Duration,
}

impl Deadlines {
    /// What holds unless somebody says otherwise. A source waits for the last word longer than `load` and `drain` together.
    pub const DEFAULT: Self = Self {
        connect: Duration::from_secs(30),
        load: Duration::from_secs(60),
        recover: Duration::from_secs(30),
        drain: Duration::from_secs(30),
        stall: Duration::from_secs(60),
    };
}

impl Default for Deadlines {
    fn default() -> Self {
        Self::DEFAULT
    }
}
