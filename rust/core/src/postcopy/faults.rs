//! The fault thread: reads what the kernel reports and hands it to [`Requests`]. It never waits for anything else.

use std::os::fd::AsFd;
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
    /// Starts it for memory that is armed.
    pub fn start(requests: Arc<Requests>) -> Result<Self> {
        requests.memory().uffd()?;
        let stop = Cancel::new()?;
        let thread = {
            let stop = stop.clone();
            let work = move || {
                let ended = serve(&requests, &stop);
                if let Err(error) = &ended {
                    tracing::error!(%error, "the fault thread ends: whoever touches a missing page from now on waits for ever");
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
        let panicked = |_| Err(Error::new(ErrorKind::InvalidState, "the fault thread panicked"));
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
        for fault in &faults[..found] {
            enough &= requests.fault(fault, woken)?;
        }
        if !enough && stop.wait(BREATH) {
            return Ok(());
        }
    }
}
