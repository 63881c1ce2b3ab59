//! The source: page search, RAM saver, switchover, fence and commit.
//!
//! ```text
//! source                                              destination
//!   header, configuration ------------------------------->
//!   OPEN_RETURN_PATH, PING 1 ----------------------------> PONG 1
//!   START sections, PART sections (rounds) --------------->
//!   (machine stopped, device state serialised)
//!   [SWITCHOVER_START] END sections, FULL sections ------->
//!   PING 2: the fence ------------------------------------> PONG 2: everything above has been loaded
//!   last look at the dirty log; then the commit: mine -> committed
//!   EOF, description -------------------------------------> starts the machine
//!                                                          SHUT 0
//! ```
//!
//! Before the commit any failure leaves the machine ours; after it the machine never runs here again by itself. Channels
//! without a return path commit before EOF is written; a file commits after its fsync, because nobody runs from it yet.

mod background;
mod batch;
mod compress;
mod convergence;
mod delta;
mod discard;
mod mapped_ram;
mod multifd;
mod outgoing;
mod postcopy;
mod ram_saver;
mod ready;
mod records;
mod return_path;
mod stream;
mod throttle;
mod unsent;
mod urgent;
mod ways;
mod zero_scout;

pub use outgoing::{Format, Options, Outgoing, Step};
