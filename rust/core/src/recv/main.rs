//! The main channel of the destination as a source of bytes, and its decoder.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::channel::ReadHalf;
use crate::wire::{ByteSource, Decoder};
use crate::{ErrorKind, Result};

/// How long a source that was told the outcome may take to hang up.
pub const LINGER: Duration = Duration::from_secs(1);

/// The decoder of the main channel.
pub type Main = Decoder<Source>;

/// The receiving half of the main channel.
#[derive(Debug)]
pub struct Source {
    reader: ReadHalf,
    /// Once this is true there is no deadline any more.
    patient: Option<Arc<AtomicBool>>,
}

impl Source {
    /// Waits for as long as it takes.
    pub fn new(reader: ReadHalf) -> Self {
        Self { reader, patient: None }
    }

    /// A read that has to wait beyond `deadline` fails as `timeout`.
    pub fn set_deadline(&mut self, deadline: Instant) {
        self.reader.set_deadline(deadline);
    }

    /// The same, until `patient` becomes true.
    pub fn hurry(&mut self, deadline: Instant, patient: &Arc<AtomicBool>) {
        self.reader.set_deadline(deadline);
        self.patient = Some(Arc::clone(patient));
    }

    /// Waits for as long as it takes, again.
    pub fn clear_deadline(&mut self) {
        self.reader.clear_deadline();
        self.patient = None;
    }

    /// Bounds what the kernel keeps unread.
    pub fn bound(&self, bytes: usize) {
        self.reader.bound(bytes);
    }

    fn may_be_patient(&self) -> bool {
        self.patient.as_ref().is_some_and(|patient| patient.load(Ordering::Acquire))
    }
}

impl ByteSource for Source {
    fn read(&mut self, buf: &mut [u8]) -> Result<usize> {
        if self.may_be_patient() {
            self.clear_deadline();
        }
        match self.reader.read(buf) {
            // It became true while this waited.
            Err(error) if error.kind == ErrorKind::Timeout && self.may_be_patient() => {
                self.clear_deadline();
                self.reader.read(buf)
            }
            read => read,
        }
    }
}

/// The last word was said: reads and drops what still comes until the source hangs up, for a moment. Who closes a socket over unread
/// bytes resets it, and the source may lose that word.
pub fn drain(main: &mut Main) {
    let source = main.input().source();
    source.reader.set_deadline(Instant::now() + LINGER);
    source.reader.drain();
}
