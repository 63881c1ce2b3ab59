//! qmig-core: live migration of an emulated machine, wire-compatible with QEMU.
//!
//! Every hot path of the project and no Python: bytes and meaning (`wire`), guest memory and what dirties it (`ram`),
//! pages in other forms (`page`), stored streams (`stored`), transports (`channel`), memory whose pages come late (`postcopy`),
//! the two sides of a migration (`send`, `recv`), their state and ownership (`control`), the QMP transport (`monitor`), the
//! deterministic model guest (`guest`) and what experiments need (`lab`).
//!
//! Dependencies point one way: sys, error ← wire ← page ← stored, ram ← channel ← postcopy ← control ← send, recv ← guest,
//! lab, monitor.
//! `unsafe` lives in `sys` only. There is no global state, and no thread that this crate does not own.
#![deny(unsafe_code)]

pub mod channel;
pub mod control;
pub mod error;
pub mod guest;
pub mod lab;
pub mod monitor;
pub mod page;
pub mod postcopy;
pub mod ram;
pub mod recv;
mod repeats;
mod room;
pub mod send;
pub mod stored;
mod sync;
#[allow(unsafe_code)]
pub mod sys;
pub mod wire;

pub use error::{Error, ErrorKind, Result};
