//! `Cancel`: one switch that ends everything a migration waits in. Sleeps, polls and registered channels all hear it.
//!
//! Setting it never blocks and may happen from any thread, also one that holds locks of the control room.

use std::fmt;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::io::Errno;

use crate::{Error, Result};

/// What is run once when the switch is set, e.g. the shutdown of a socket. It must not block.
pub type Closer = Box<dyn FnOnce() + Send>;

struct Inner {
    set: AtomicBool,
    event: OwnedFd,
    closers: Mutex<Vec<Closer>>,
}

/// A switch shared by clones; once set it stays set.
#[derive(Clone)]
pub struct Cancel(Arc<Inner>);

impl Cancel {
    /// A switch that is not set. Fails with `io` when the process has no descriptor left.
    pub fn new() -> Result<Self> {
        let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).map_err(|e| Error::io("eventfd", e))?;
        Ok(Self(Arc::new(Inner { set: AtomicBool::new(false), event, closers: Mutex::new(Vec::new()) })))
    }

    /// True once `set` was called.
    pub fn is_set(&self) -> bool {
        self.0.set.load(Ordering::Acquire)
    }

    /// Sets the switch: wakes every sleeper and runs every closer. Idempotent.
    pub fn set(&self) {
        // The flag changes under the lock so that `register` either sees it or is seen.
        let closers = {
            let mut closers = self.0.closers.lock().unwrap_or_else(PoisonError::into_inner);
            self.0.set.store(true, Ordering::Release);
            std::mem::take(&mut *closers)
        };
        // The counter is never read, so the descriptor stays readable; it cannot overflow in practice and nothing depends on it.
        let _ = rustix::io::write(&self.0.event, &1u64.to_ne_bytes());
        for close in closers {
            close();
        }
    }

    /// Runs `closer` when the switch is set; at once if it is set already.
    pub fn register(&self, closer: Closer) {
        {
            let mut closers = self.0.closers.lock().unwrap_or_else(PoisonError::into_inner);
            if !self.is_set() {
                closers.push(closer);
                return;
            }
        }
        closer();
    }

    /// Sleeps for `time` unless the switch is set; true if it is.
    pub fn wait(&self, time: Duration) -> bool {
        let end = Instant::now() + time;
        while !self.is_set() {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            let Ok(timeout) = Timespec::try_from(left) else { return self.is_set() };
            match poll(&mut [PollFd::new(&self.0.event, PollFlags::IN)], Some(&timeout)) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(_) => return self.is_set(),
            }
        }
        true
    }

    /// Readable once the switch is set: for polls that wait for something else too.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.0.event.as_fd()
    }
}

impl fmt::Debug for Cancel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Cancel").field(&self.is_set()).finish()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn wakes_sleepers_and_closers_once() {
        let cancel = Cancel::new().unwrap();
        assert!(!cancel.wait(Duration::from_millis(1)));
        let (tx, rx) = mpsc::channel();
        let before = tx.clone();
        cancel.register(Box::new(move || before.send("before").unwrap()));
        let sleeper = {
            let c = cancel.clone();
            std::thread::spawn(move || c.wait(Duration::from_mins(1)))
        };
        cancel.set();
        cancel.set();
        assert!(sleeper.join().unwrap());
        cancel.register(Box::new(move || tx.send("after").unwrap()));
        assert_eq!(rx.iter().collect::<Vec<_>>(), ["before", "after"]);
    }
}
