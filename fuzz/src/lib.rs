//! The fuzz targets: what each does with an input. `fuzz_targets/` makes libFuzzer binaries of them; `rust/core/tests/regressions.rs` has
//! this file as a module, without libFuzzer, and replays every input that once found something.
//!
//! A target takes any bytes and panics on what must not be; it says whether the input is worth keeping in a corpus. All of them run in
//! 64 MiB of heap: an allocation beyond that aborts.
#![allow(missing_docs, clippy::unwrap_used, clippy::cast_possible_truncation, clippy::type_complexity, clippy::struct_excessive_bools)]

#[path = "../../rust/core/tests/drive/mod.rs"]
pub mod drive;
#[path = "../../rust/core/tests/slow/mod.rs"]
pub mod slow;

pub mod commands;
pub mod discards;
pub mod mapped_ram;
pub mod memory;
pub mod multifd;
pub mod null;
pub mod pages;
pub mod qmp;
pub mod ram;
pub mod return_path;
pub mod stream;
pub mod structured;
pub mod xbzrle;

use std::alloc::System;

use cap::Cap;

/// No input makes the process hold more than this.
pub const HEAP_MAX: usize = 64 << 20;

#[global_allocator]
static HEAP: Cap<System> = Cap::new(System, HEAP_MAX);

/// Panics on what must not be; whether the input is worth keeping.
pub type Target = fn(&[u8]) -> bool;

/// All of them, by name.
pub const TARGETS: [(&str, Target); 13] = [
    ("commands", commands::run),
    ("discards", discards::run),
    ("mapped_ram", mapped_ram::run),
    ("memory", memory::run),
    ("multifd", multifd::run),
    ("null", null::run),
    ("pages", pages::run),
    ("qmp", qmp::run),
    ("ram", ram::run),
    ("return_path", return_path::run),
    ("stream", stream::run),
    ("structured", structured::run),
    ("xbzrle", xbzrle::run),
];

/// The sizes of the pieces in which bytes arrive, chosen by one byte of input.
pub fn sizes(choice: u8) -> &'static [usize] {
    match choice % 4 {
        0 => &[1],
        1 => &[7, 4096, 2],
        2 => &[4095, 13],
        _ => &[1 << 16],
    }
}
