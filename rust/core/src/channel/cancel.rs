//! One switch that ends everything a session waits for: blocked socket calls (by closers), polls (by an eventfd), sleeps.
//!
//! `set` may be called by any thread at any time and never blocks; once set it stays set.

use std::collections::BTreeMap;
use std::fmt;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::io::Errno;

use crate::{Error, Result};

/// What a waiting thread cannot be woken from by the eventfd: shut a socket down, signal a process. Must not block.
pub type Closer = Box<dyn FnOnce() + Send>;

/// The switch; clones are the same switch.
#[derive(Clone)]
pub struct Cancel(Arc<Inner>);

struct Inner {
    set: AtomicBool,
    event: OwnedFd,
    closers: Mutex<Closers>,
}

#[derive(Default)]
struct Closers {
    next: u64,
    waiting: BTreeMap<u64, Closer>,
}

/// Keeps a closer registered; dropping it takes the closer back.
#[must_use]
pub struct Registration {
    inner: Arc<Inner>,
    id: u64,
}

/// Why a poll ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wake {
    /// The descriptor is ready (or broken, which the next call on it will say).
    Ready,
    /// The switch is set.
    Cancelled,
    /// The time is over.
    Timeout,
}

impl Cancel {
    /// A switch that is not set. Raises `io` if the process has no descriptor left.
    pub fn new() -> Result<Self> {
        let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).map_err(|e| Error::io("creating an eventfd", e))?;
        Ok(Self(Arc::new(Inner { set: AtomicBool::new(false), event, closers: Mutex::default() })))
    }

    /// True once `set` was called.
    pub fn is_set(&self) -> bool {
        self.0.set.load(Ordering::Acquire)
    }

    /// Sets the switch: every sleeper and poller wakes, every closer runs. Idempotent.
    pub fn set(&self) {
        if self.0.set.swap(true, Ordering::AcqRel) {
            return;
        }
        // Nobody reads the event, so it stays readable for every poller, and one write to a fresh counter cannot fail.
        let _ = rustix::io::write(&self.0.event, &1u64.to_ne_bytes());
        let closers = std::mem::take(&mut self.0.closers().waiting);
        for (_, close) in closers {
            close();
        }
    }

    /// Runs `close` when the switch is set, or at once if it is already, unless the registration is dropped before.
    pub fn register(&self, close: Closer) -> Registration {
        let mut closers = self.0.closers();
        let id = closers.next;
        closers.next += 1;
        // `set` stores the flag before it takes the list: either it finds this closer or we find the flag.
        if self.is_set() {
            drop(closers);
            close();
        } else {
            closers.waiting.insert(id, close);
        }
        Registration { inner: Arc::clone(&self.0), id }
    }

    /// Sleeps for `time`; true at once if the switch is or gets set.
    pub fn wait(&self, time: Duration) -> bool {
        let deadline = Instant::now().checked_add(time);
        let mut fds = [PollFd::new(&self.0.event, PollFlags::IN)];
        // A failure (no kernel memory) ends the sleep early, which every caller can bear.
        let _ = poll_until(&mut fds, deadline);
        self.is_set()
    }

    /// Waits until `fd` has one of `events`, the switch is set, or `timeout` is over. The switch wins.
    pub fn poll(&self, fd: BorrowedFd<'_>, events: PollFlags, timeout: Option<Duration>) -> Wake {
        let deadline = timeout.and_then(|t| Instant::now().checked_add(t));
        let mut fds = [PollFd::from_borrowed_fd(fd, events), PollFd::new(&self.0.event, PollFlags::IN)];
        // If polling fails (no kernel memory), the call on the descriptor that follows will say so or wait itself.
        let ready = poll_until(&mut fds, deadline).unwrap_or(true);
        match (self.is_set(), ready) {
            (true, _) => Wake::Cancelled,
            (false, true) => Wake::Ready,
            (false, false) => Wake::Timeout,
        }
    }

    /// Waits until one of `fds` is readable, the switch is set, or `timeout` is over.
    pub(super) fn poll_each<'a>(&self, fds: impl Iterator<Item = BorrowedFd<'a>>, timeout: Option<Duration>) -> rustix::io::Result<Wake> {
        let deadline = timeout.and_then(|t| Instant::now().checked_add(t));
        let mut polled: Vec<_> = fds.map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)).collect();
        polled.push(PollFd::new(&self.0.event, PollFlags::IN));
        let ready = poll_until(&mut polled, deadline)?;
        Ok(if self.is_set() {
            Wake::Cancelled
        } else if ready {
            Wake::Ready
        } else {
            Wake::Timeout
        })
    }

    /// The index of the first of `fds` that is readable; none once the switch is set.
    pub(super) fn poll_any(&self, fds: &[OwnedFd]) -> rustix::io::Result<Option<usize>> {
        let mut polled: Vec<_> = fds.iter().map(|fd| PollFd::new(fd, PollFlags::IN)).collect();
        polled.push(PollFd::new(&self.0.event, PollFlags::IN));
        poll_until(&mut polled, None)?;
        Ok(if self.is_set() { None } else { polled.iter().position(|fd| !fd.revents().is_empty()) })
    }
}

/// Polls, going on after signals; false if the deadline passed.
pub(super) fn poll_until(fds: &mut [PollFd<'_>], deadline: Option<Instant>) -> rustix::io::Result<bool> {
    loop {
        let left = deadline.map(|at| at.saturating_duration_since(Instant::now()));
        let timeout = left.and_then(|left| Timespec::try_from(left).ok());
        match poll(fds, timeout.as_ref()) {
            Err(Errno::INTR) => {}
            polled => return polled.map(|ready| ready > 0),
        }
    }
}

impl AsFd for Cancel {
    /// Readable once set; for a poll over several descriptors. Never read it.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.event.as_fd()
    }
}

impl Inner {
    fn closers(&self) -> MutexGuard<'_, Closers> {
        self.closers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        let closer = self.inner.closers().waiting.remove(&self.id);
        drop(closer); // outside the lock: it may own the last handle of a descriptor
    }
}

impl fmt::Debug for Cancel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Cancel").field(&self.is_set()).finish()
    }
}

impl fmt::Debug for Registration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Registration").field(&self.id).finish()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::sync::atomic::AtomicU32;
    use std::sync::mpsc;

    use super::*;

    const FOREVER: Duration = Duration::from_secs(60);

    fn counter() -> (Arc<AtomicU32>, Closer) {
        let count = Arc::new(AtomicU32::new(0));
        let closer = {
            let count = Arc::clone(&count);
            Box::new(move || {
                count.fetch_add(1, Ordering::Relaxed);
            })
        };
        (count, closer)
    }

    #[test]
    fn a_sleeper_wakes_at_once() {
        let cancel = Cancel::new().unwrap();
        assert!(!cancel.wait(Duration::from_millis(1)));
        let (started, begun) = mpsc::channel();
        let sleeper = {
            let cancel = cancel.clone();
            std::thread::spawn(move || {
                started.send(()).unwrap();
                cancel.wait(FOREVER)
            })
        };
        begun.recv().unwrap();
        let before = Instant::now();
        cancel.set();
        assert!(sleeper.join().unwrap());
        assert!(before.elapsed() < FOREVER / 2);
        assert!(cancel.is_set() && cancel.wait(FOREVER));
    }

    #[test]
    fn closers_run_once() {
        let cancel = Cancel::new().unwrap();
        let (kept, closer) = counter();
        let registration = cancel.register(closer);
        let (dropped, closer) = counter();
        drop(cancel.register(closer));
        cancel.set();
        cancel.set();
        drop(registration);
        let (late, closer) = counter();
        let _late = cancel.register(closer);
        assert_eq!([&kept, &dropped, &late].map(|c| c.load(Ordering::Relaxed)), [1, 0, 1]);
    }

    #[test]
    fn a_closer_may_use_the_switch() {
        let cancel = Cancel::new().unwrap();
        let again = cancel.clone();
        let _registration = cancel.register(Box::new(move || {
            again.set();
            drop(again.register(Box::new(|| {})));
        }));
        cancel.set();
    }

    #[test]
    fn poll_says_why_it_ended() {
        let cancel = Cancel::new().unwrap();
        let (reader, writer) = rustix::pipe::pipe().unwrap();
        let poll = |timeout| cancel.poll(reader.as_fd(), PollFlags::IN, timeout);
        assert_eq!(poll(Some(Duration::ZERO)), Wake::Timeout);
        rustix::io::write(&writer, b"x").unwrap();
        assert_eq!(poll(None), Wake::Ready);
        cancel.set();
        assert_eq!(poll(None), Wake::Cancelled);
    }
}
