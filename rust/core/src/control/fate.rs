//! Who owns the machine of one outgoing migration, and how that ends: the status word, the commit word and the first error.
//!
//! ```text
//!            commit()                      fail()
//!     Mine ───────────► Committed ─────────────────► failed, `ownership-unknown`: the machine never resumes here by itself
//!      │ cancel(), fail(), finish()
//!      └───────────────► Withdrawn ─────────────────► cancelled or failed: the machine goes on here
//! ```
//!
//! `commit` is one compare-and-swap; a cancel and every failure go through the same word, so the machine is never run by both sides.
//! One way leads back: in postcopy, a destination that never ran the machine says so, and `give_back` makes it ours again.
//!
//! Nothing here waits for anybody. `rust/loom` tries all interleavings of this very file.

use std::sync::PoisonError;

use super::status::{Status, StatusWord};
use crate::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use crate::sync::{Mutex, MutexGuard};
use crate::{Error, ErrorKind};

/// Who may run the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Ownership {
    /// The source; it may still be given away.
    Mine,
    /// The destination, from the source's point of view for good.
    Committed,
    /// The source for good: this migration can give nothing away any more.
    Withdrawn,
}

/// The words that decide; `then` of each method is called with the new status while that is held still.
#[derive(Debug)]
pub(super) struct Fate {
    status: StatusWord,
    ownership: AtomicU8,
    /// A snapshot: nobody else ever gets the machine.
    stays: bool,
    error: Mutex<Option<Error>>,
    /// The destination has recovered once: it ran the machine, whatever it may say.
    recovered: AtomicBool,
    /// It was heard after the commit: it has all that it needs to run the machine.
    taken: AtomicBool,
}

impl Fate {
    /// Nothing is decided. The machine `stays` here if this is a snapshot.
    pub(super) fn new(stays: bool) -> Self {
        Self {
            status: StatusWord::new(Status::None),
            ownership: AtomicU8::new(Ownership::Mine as u8),
            stays,
            error: Mutex::new(None),
            recovered: AtomicBool::new(false),
            taken: AtomicBool::new(false),
        }
    }

    pub(super) fn status(&self) -> Status {
        self.status.get()
    }

    /// Nobody else ever gets the machine.
    pub(super) fn stays(&self) -> bool {
        self.stays
    }

    /// False if the status was not `old`, or if an error is recorded already. Towards `cancelling` and `cancelled` it needs a machine
    /// that is still ours.
    pub(super) fn transition(&self, old: Status, new: Status, then: impl FnOnce(Status)) -> bool {
        let decide = |now: Status| {
            let refused = now != old || now.is_final() || self.lock_error().is_some();
            let keeps = matches!(new, Status::Cancelling | Status::Cancelled | Status::Failed);
            (!refused && (!keeps || self.withdraw() || new == Status::Failed)).then_some(new)
        };
        self.status.change(decide, then).is_some()
    }

    /// The commit point: true if the machine is given away from here on. False if a cancel or a failure came first.
    pub(super) fn commit(&self) -> bool {
        self.claim(Ownership::Committed)
    }

    /// Keeps the machine: true if nothing was committed, and then nothing ever will be.
    pub(super) fn withdraw(&self) -> bool {
        self.claim(Ownership::Withdrawn)
    }

    pub(super) fn ownership(&self) -> Ownership {
        let value = self.ownership.load(Ordering::SeqCst);
        // Only `claim`, `give_back` and `new` write the word.
        [Ownership::Mine, Ownership::Committed].into_iter().find(|o| *o as u8 == value).unwrap_or(Ownership::Withdrawn)
    }

    /// True while the source may still run the machine.
    pub(super) fn owned(&self) -> bool {
        self.stays || self.ownership() != Ownership::Committed
    }

    fn claim(&self, wanted: Ownership) -> bool {
        let swap = self.ownership.compare_exchange(Ownership::Mine as u8, wanted as u8, Ordering::SeqCst, Ordering::SeqCst);
        swap.is_ok() || swap == Err(wanted as u8)
    }

    /// Records the first error and keeps the machine if it can; after a commit the error becomes `ownership-unknown`.
    pub(super) fn fail(&self, error: Error) {
        let decide = |now: Status| {
            if !now.is_final() {
                self.record(error);
            }
            None
        };
        self.status.change(decide, |_| ());
    }

    /// Called with the status held still.
    fn record(&self, mut error: Error) {
        if !self.withdraw() && !self.stays {
            error.kind = ErrorKind::OwnershipUnknown;
            error.message += "; the machine was handed over already, so its ownership is unknown and it stays stopped here: look whether the destination runs it before you say `cont`";
        }
        self.lock_error().get_or_insert(error);
    }

    /// The first error.
    pub(super) fn error(&self) -> Option<Error> {
        self.lock_error().clone()
    }

    /// True if the migration will end as `cancelled`: not if it has failed, has ended, was cancelled or was committed already.
    pub(super) fn request_cancel(&self, then: impl FnOnce(Status)) -> bool {
        let decide = |now: Status| {
            let possible = now.is_cancellable() && self.lock_error().is_none() && self.withdraw();
            possible.then_some(Status::Cancelling)
        };
        self.status.change(decide, then).is_some()
    }

    /// Reaches the final status: `cancelled` after a cancel, `failed` after an error, else `completed` if the machine was committed, and
    /// `failed` if it was not. Idempotent.
    pub(super) fn finish(&self, then: impl FnOnce(Status)) {
        let decide = |now: Status| match now {
            Status::Completed | Status::Failed | Status::Cancelled => None,
            Status::Cancelling => Some(Status::Cancelled),
            _ if self.lock_error().is_some() => Some(Status::Failed),
            _ if self.withdraw() => {
                self.record(Error::new(ErrorKind::InvalidState, "the migration ended before the machine was handed over"));
                Some(Status::Failed)
            }
            _ => Some(Status::Completed),
        };
        self.status.change(decide, then);
    }

    /// The connection broke: in postcopy the status becomes `postcopy-paused`, and `note` is called before. False in any other status,
    /// and after an error; then it is a failure.
    pub(super) fn lose_link(&self, note: impl FnOnce(), then: impl FnOnce(Status)) -> bool {
        let decide = |now: Status| {
            let pauses = now.has_link() && !self.owned() && self.lock_error().is_none();
            if pauses {
                note();
            }
            pauses.then_some(Status::PostcopyPaused)
        };
        self.status.change(decide, then).is_some()
    }

    /// Another connection stands: from `postcopy-paused` to `postcopy-recover`. From here on no word of the destination gives the
    /// machine back, for it has run it.
    pub(super) fn recover(&self, then: impl FnOnce(Status)) -> bool {
        self.recovered.store(true, Ordering::Release);
        self.transition(Status::PostcopyPaused, Status::PostcopyRecover, then)
    }

    /// The destination said that it never ran the machine (SHUT with status 2): true if that can be, and then the machine is ours
    /// again, with `error` as the reason why the migration failed.
    pub(super) fn give_back(&self, error: Error) -> bool {
        let mut given = false;
        let decide = |now: Status| {
            let possible = matches!(now, Status::PostcopyActive | Status::Device)
                && self.lock_error().is_none()
                && !self.recovered.load(Ordering::Acquire);
            let (from, to) = (Ownership::Committed as u8, Ownership::Withdrawn as u8);
            given = possible && self.ownership.compare_exchange(from, to, Ordering::SeqCst, Ordering::SeqCst).is_ok();
            if given {
                self.record(error);
            }
            None
        };
        self.status.change(decide, |_| ());
        given
    }

    /// The destination has said something that only who has RUN says, if the machine was given away.
    pub(super) fn heard(&self) {
        if self.ownership() == Ownership::Committed {
            self.taken.store(true, Ordering::Release);
        }
    }

    /// The destination has shown that it got the machine.
    pub(super) fn is_taken(&self) -> bool {
        self.taken.load(Ordering::Acquire)
    }

    /// In `postcopy-paused`, with a destination that was not heard since the commit: fails with `error`, ownership unknown. False in any
    /// other status, and if it was heard.
    pub(super) fn give_up(&self, error: Error) -> bool {
        let mut given_up = false;
        let decide = |now: Status| {
            given_up = now == Status::PostcopyPaused && !self.is_taken();
            if given_up {
                self.record(error);
            }
            None
        };
        self.status.change(decide, |_| ());
        given_up
    }

    fn lock_error(&self) -> MutexGuard<'_, Option<Error>> {
        self.error.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
