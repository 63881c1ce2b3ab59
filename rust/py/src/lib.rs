//! `qmig_e2k._core`: the Python door. Signatures and conversions only; what happens is in qmig-core.
//!
//! All classes are frozen, all blocking calls detach from the interpreter, and no thread of the core ever attaches to it.
#![allow(clippy::needless_pass_by_value)] // PyO3 hands arguments over by value

mod block;
mod codec;
mod control;
mod dirty_rate;
mod error;
mod faults;
mod guest;
mod incoming;
mod lab;
mod log;
mod monitor;
mod outgoing;
mod stored;
mod tls;
mod wire;

use pyo3::prelude::*;

/// The native half of `qmig_e2k`.
#[pymodule(gil_used = false)]
fn _core(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("__version__", env!("CARGO_PKG_VERSION"))?;
    error::register(module)?;
    block::register(module)?;
    codec::register(module)?;
    wire::register(module)?;
    stored::register(module)?;
    tls::register(module)?;
    control::register(module)?;
    dirty_rate::register(module)?;
    outgoing::register(module)?;
    incoming::register(module)?;
    monitor::register(module)?;
    faults::register(module)?;
    guest::register(module)?;
    log::register(module)?;
    lab::register(module)
}
