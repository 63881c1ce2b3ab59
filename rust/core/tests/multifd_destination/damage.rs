//! Damaged streams: whatever the bytes, the load ends, its threads too, and with one error at most.

use std::net::Shutdown;
use std::time::Duration;

use proptest::prelude::*;
use proptest::sample::Index;
use proptest::test_runner::RngSeed;
use qmig_core::recv::Deadlines;

use super::source::Destination;
use super::{METHODS, two_rounds};

/// Bytes of a channel that are looked at before any page: damage there does most.
const HEAD: usize = 64 + 1344;

#[test]
fn a_damaged_channel_ends_the_load_one_way_or_the_other() {
    let config =
        ProptestConfig { cases: 60, rng_seed: RngSeed::Fixed(0x716d_6967), failure_persistence: None, ..ProptestConfig::default() };
    let damage = prop::collection::vec((any::<Index>(), any::<u8>(), any::<bool>()), 0..4);
    proptest!(config, |(method in 0..3_usize, flushes: bool, which in 0..3_usize, damage in damage, cut in any::<Option<Index>>())| {
        let (main, [zero, one]) = two_rounds(METHODS[method], flushes);
        let mut streams = [zero.bytes, one.bytes, main];
        let stream = &mut streams[which];
        let unhurt = damage.iter().all(|(_, byte, _)| *byte == 0) && cut.is_none();
        for (at, byte, early) in damage {
            let within = if early { stream.len().min(HEAD) } else { stream.len() };
            stream[at.index(within)] ^= byte;
        }
        if let Some(cut) = cut {
            stream.truncate(cut.index(stream.len()));
        }
        let short = Duration::from_millis(300);
        let patience = if unhurt { Deadlines::default() } else { Deadlines { connect: short, stall: short, ..Deadlines::default() } };
        let mut destination = Destination::new(2, METHODS[method]).impatient(patience).start();
        let sockets = streams.map(|bytes| destination.offer(&bytes));
        for socket in sockets.iter().flatten() {
            let _ = socket.shutdown(Shutdown::Write); // it may have gone
        }
        let outcome = destination.outcome();
        prop_assert!(outcome.is_ok() || !unhurt, "{outcome:?}");
        if let Err(error) = outcome {
            prop_assert!(!error.message.is_empty());
        }
    });
}
