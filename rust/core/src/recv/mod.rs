//! The destination: RAM loader and page sinks.
