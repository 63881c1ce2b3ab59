//! The running migration: state words, ownership, counters, run state, events, status.
