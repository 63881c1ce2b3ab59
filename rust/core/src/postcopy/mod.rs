//! The destination of postcopy: memory whose pages come after the machine runs.
//!
//! ```text
//! a thread touches a missing page ──> Faults (its own thread) ──> Requests ──> Requester: the return path, or a local page source
//! pages from a channel ──> Placer (one a channel) ──> Memory: claim, place, received ──> Requests, Latency: the fault is over
//! ```
//!
//! [`Memory`] knows what was received and watches the rest; a [`Placer`] puts whole host pages where threads may be waiting;
//! [`Faults`] reads what the kernel reports and [`Requests`] remembers what was asked for; [`Latency`] is the record of it.
//! No channel and no control in here: what sends a request is a [`Requester`]. [`local`] is the same without a migration.
//!
//! Rules: no lock is held while guest memory is touched; nothing is allocated or logged for a fault or a page; where data
//! belongs there is never a page of zeros, but an error or a wait.

mod claims;
mod faults;
pub(crate) mod histogram;
mod latency;
pub mod local;
mod memory;
mod placer;
mod requests;
#[cfg(test)]
mod tests;

pub use faults::Faults;
pub use latency::{Latency, Phase};
pub use memory::{Memory, support};
pub use placer::Placer;
pub use requests::{Requester, Requests};
