//! Placers against the fault thread: the core's files, over a memory whose kernel is a lock and a bool for each page.

#[path = "../../../core/src/postcopy/claims.rs"]
mod claims;
mod latency;
pub mod memory;
pub mod model;
#[path = "../../../core/src/postcopy/placer.rs"]
mod placer;
#[path = "../../../core/src/postcopy/requests.rs"]
mod requests;

pub use latency::Latency;
pub use memory::Memory;
pub use placer::Placer;
pub use requests::{Requester, Requests};
