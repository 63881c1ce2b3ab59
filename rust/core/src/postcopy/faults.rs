//! The fault thread: reads what the kernel reports and hands it to [`Requests`]. It never waits for anything else.

use std::os::fd::AsFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::event::PollFlags;

use super::Requests;
use crate::channel::{Cancel, Wake};
use crate::sys::uffd::{FAULTS, Fault};
use crate::{Error, ErrorKind, Result};

/// How long the thread leaves the kernel alone after it had no memory for a page.
const BREATH: Duration = Duration::from_millis(2);

/// The running fault thread; dropping it ends it.
#[derive(Debug)]
pub struct Faults {
    stop: Cancel,
    thread: Mutex<Option<JoinHandle<Result<()>>>>,
}

impl Faults {
    /// Starts it for memory that is armed. If it fails, `failed` is told why, in that thread: from then on whoever touches a missing
    /// page waits for the background, so this must not stay a secret.
    pub fn start(requests: Arc<Requests>, failed: impl FnOnce(Error) + Send + 'static) -> Result<Self> {
        requests.memory().uffd()?;
        let stop = Cancel::new()?;
        let thread = {
            let stop = stop.clone();
            let work = move || {
                let panicked = |_| Err(Error::new(ErrorKind::InvalidState, "it panicked"));
                let ended = catch_unwind(AssertUnwindSafe(|| serve(&requests, &stop))).unwrap_or_else(panicked);
                let ended = ended.map_err(|error| error.within("fault thread"));
                if let Err(error) = &ended {
                    failed(error.clone());
                }
                ended
            };
            std::thread::Builder::new().name("qmig-faults".into()).spawn(work).map_err(|e| Error::io("starting the fault thread", e))?
        };
        Ok(Self { stop, thread: Mutex::new(Some(thread)) })
    }

    /// Ends the thread and waits for it: only when nobody can touch a missing page any more, or the memory is disarmed. What it
    /// failed of, if it did: from then on nobody was helped. Idempotent.
    pub fn stop(&self) -> Result<()> {
        self.stop.set();
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        // Who is told of its failure may be the last to hold this.
        let thread = thread.filter(|thread| thread.thread().id() != std::thread::current().id());
        let panicked = |_| Err(Error::new(ErrorKind::InvalidState, "who was told of the fault thread's end panicked"));
        thread.map_or(Ok(()), |thread| thread.join().unwrap_or_else(panicked))
    }
}

impl Drop for Faults {
    fn drop(&mut self) {
        let _ = self.stop();
    }
}

fn serve(requests: &Requests, stop: &Cancel) -> Result<()> {
    let mut faults = [Fault::default(); FAULTS];
    loop {
        // Disarmed: nobody waits any more.
        let Ok(uffd) = requests.memory().uffd() else { return Ok(()) };
        if stop.poll(uffd.as_fd(), PollFlags::IN, None) == Wake::Cancelled {
            return Ok(());
        }
        let woken = requests.latency().now();
        let found = uffd.read_faults(&mut faults).map_err(|e| Error::io("reading page faults", e))?;
        let mut enough = true;
        // They will not be reported again: one that makes no sense does not cost the others their pages.
        let mut bad = None;
        for fault in &faults[..found] {
            match requests.fault(fault, woken) {
                Ok(done) => enough &= done,
                Err(error) => bad = Some(error),
            }
        }
        if let Some(error) = bad {
            return Err(error);
        }
        if !enough && stop.wait(BREATH) {
            return Ok(());
        }
    }
}
