//! The end of a process that stands still for ever.
//!
//! Whoever touches a missing page of a machine that is given up waits until the process ends, for zeros in place of data might be acted on.
//! If that thread holds a lock that everybody needs, as that of an interpreter, then nobody is left who could end the process. So a thread
//! that needs no lock looks for signs of life, and where there are none beside such a page it ends the process, with a line that says why.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::listening::Listening;
use crate::sys::signal;
use crate::{Error, Result};

/// Looks in which nothing moves before it counts as standing still: a process that was stopped and goes on has them all before it.
const LOOKS: u32 = 20;

/// Signs of life, given by a thread that needs the lock that everybody needs.
#[derive(Debug, Default)]
pub struct Life(AtomicU64);

impl Life {
    /// One of them.
    pub fn beat(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    fn beats(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Watches over `listening`, and keeps it, as long as its memory is incomplete. If for `patience` somebody waits for a page and there is no sign of
/// `life`, `end` is called with the number of such pages.
pub fn keep(listening: Arc<Listening>, life: Arc<Life>, patience: Duration, end: impl FnOnce(u64) + Send + 'static) -> Result<()> {
    let work = move || {
        let (mut seen, mut silent) = (life.beats(), 0);
        while listening.rest(patience / LOOKS) {
            let (now, waiting) = (life.beats(), listening.waiting());
            silent = if waiting == 0 || now != seen { 0 } else { silent + 1 };
            seen = now;
            if silent == LOOKS {
                return end(waiting);
            }
        }
    };
    std::thread::Builder::new().name("qmig-vigil".into()).spawn(work).map(drop).map_err(|e| Error::io("starting the vigil", e))
}

/// What there is to do then.
pub fn end_process(pages: u64) {
    let text =
        format!("nothing moves beside threads that wait for {pages} pages of a machine that was given up: the process ends without them\n");
    let stderr = rustix::stdio::stderr();
    // Nobody may be reading it.
    if poll(&mut [PollFd::new(&stderr, PollFlags::OUT)], Some(&Timespec::default())).is_ok_and(|ready| ready > 0) {
        let _ = rustix::io::write(stderr, text.as_bytes());
    }
    signal::exit_now(1)
}
