//! One outgoing migration: status, ownership, first error, counters and times.
//!
//! ```text
//!            commit()                      fail()
//!     Mine ───────────► Committed ─────────────────► failed, `ownership-unknown`: the machine never resumes here by itself
//!      │ cancel(), fail(), finish()
//!      └───────────────► Withdrawn ─────────────────► cancelled or failed: the machine goes on here
//! ```
//!
//! A snapshot is a session, too, whose machine stays: `commit` then says that its stream is complete, after which no cancel is accepted.
//!
//! One way leads back: in postcopy, a destination that never ran the machine says so, and `give_back` makes it ours again.
//!
//! Postcopy lives longer than its connection. `link` is the switch of the present one; a connection that breaks is no failure but
//! `lose_link`, after which `wait_for_link` brings the next.
//!
//! `commit` is one compare-and-swap; a cancel and every failure go through the same word, so the machine is never run by both
//! sides. The status becomes final in `finish` only (or by an explicit change to `completed`), which the owner calls when the
//! machine is where it belongs: who sees a final status may act at once.

mod times;

use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde_json::json;

use self::times::Times;
use super::counters::Counters;
use super::deadline::Deadline;
use super::hub::Hub;
use super::links::Links;
use super::status::{Status, StatusWord};
use crate::channel::{self, Cancel, Channel, Registration, Tls, Uri};
use crate::{Error, ErrorKind, Result};

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

/// Where to connect for a recovery.
#[derive(Debug)]
struct Target {
    uri: Uri,
    fd: Option<OwnedFd>,
    tls: Option<Arc<Tls>>,
}

/// One attempt to give the machine away.
#[derive(Debug)]
pub struct Session {
    /// Set by cancel and by every failure: ends all that waits or moves bytes.
    pub cancel: Cancel,
    /// Statistics; reset by being new.
    pub counters: Counters,
    pub(super) hub: Arc<Hub>,
    pub(super) deadline: Deadline,
    status: StatusWord,
    ownership: AtomicU8,
    finished: AtomicBool,
    /// A snapshot: nobody else ever gets the machine.
    pub(super) stays: bool,
    error: Mutex<Option<Error>>,
    times: Mutex<Times>,
    dirty_log: Mutex<Option<&'static str>>,
    postcopy_wanted: AtomicBool,
    switchover_wanted: AtomicBool,
    /// Percent of their time that the vCPUs do not get.
    throttle: AtomicU8,
    hurry: Cancel,
    _hurried: Registration,
    /// The destination has recovered once: it ran the machine, whatever it may say.
    recovered: AtomicBool,
    /// It was heard after the commit: it has the whole machine, but for pages.
    taken: AtomicBool,
    links: Arc<Links<Target>>,
    /// What every channel of the present connection is secured with.
    tls: Mutex<Option<Arc<Tls>>>,
    /// Why the last connection was lost, or could not be made.
    link_error: Mutex<Option<Error>>,
}

impl Session {
    /// A new attempt in status `setup`, of which the machine `stays` here if it is a snapshot. Fails with `io` when no descriptor is left.
    pub(super) fn new(hub: Arc<Hub>, stays: bool) -> Result<Self> {
        let (cancel, hurry) = (Cancel::new()?, Cancel::new()?);
        let too = hurry.clone();
        let session = Self {
            _hurried: cancel.register(Box::new(move || too.set())),
            hurry,
            links: Links::new(&cancel),
            tls: Mutex::new(if stays { None } else { hub.tls() }), // a file has nobody to shake hands with
            cancel,
            counters: Counters::default(),
            status: StatusWord::new(Status::None),
            ownership: AtomicU8::new(Ownership::Mine as u8),
            finished: AtomicBool::new(false),
            stays,
            error: Mutex::new(None),
            times: Mutex::new(Times::begin()),
            dirty_log: Mutex::new(None),
            postcopy_wanted: AtomicBool::new(false),
            switchover_wanted: AtomicBool::new(false),
            throttle: AtomicU8::new(0),
            deadline: Deadline::default(),
            recovered: AtomicBool::new(false),
            taken: AtomicBool::new(false),
            link_error: Mutex::new(None),
            hub,
        };
        session.counters.expected_downtime.set(session.hub.parameters().downtime_limit);
        session.transition(Status::None, Status::Setup);
        Ok(session)
    }

    /// The present status.
    pub fn status(&self) -> Status {
        self.status.get()
    }

    /// Compare-and-swap of the status with its MIGRATION event; false if it was not `old`, or if an error is recorded already.
    /// Towards `cancelling` and `cancelled` it needs a machine that is still ours.
    pub fn transition(&self, old: Status, new: Status) -> bool {
        let decide = |now: Status| {
            let refused = now != old || now.is_final() || self.lock_error().is_some();
            let keeps = matches!(new, Status::Cancelling | Status::Cancelled | Status::Failed);
            (!refused && (!keeps || self.withdraw() || new == Status::Failed)).then_some(new)
        };
        self.change(decide).is_some()
    }

    /// The commit point: true if the machine is given away from here on. False if a cancel or a failure came first.
    pub fn commit(&self) -> bool {
        self.claim(Ownership::Committed)
    }

    /// Keeps the machine: true if nothing was committed, and then nothing ever will be.
    pub fn withdraw(&self) -> bool {
        self.claim(Ownership::Withdrawn)
    }

    /// True while the source may still run the machine.
    pub fn owned(&self) -> bool {
        self.stays || self.ownership() != Ownership::Committed
    }

    /// The setup stage has been written: the status becomes `active`, which that of a snapshot never is.
    pub fn activate(&self) {
        if !self.stays {
            self.transition(Status::Setup, Status::Active);
        }
    }

    /// Who may run the machine now.
    pub fn ownership(&self) -> Ownership {
        let value = self.ownership.load(Ordering::SeqCst);
        // Only `claim` and `new` write the word.
        [Ownership::Mine, Ownership::Committed].into_iter().find(|o| *o as u8 == value).unwrap_or(Ownership::Withdrawn)
    }

    fn claim(&self, wanted: Ownership) -> bool {
        let swap = self.ownership.compare_exchange(Ownership::Mine as u8, wanted as u8, Ordering::SeqCst, Ordering::SeqCst);
        swap.is_ok() || swap == Err(wanted as u8)
    }

    /// Records the first error, keeps the machine if it can, and ends all that waits. After a commit the error becomes
    /// `ownership-unknown`. The status becomes `failed` (or `cancelled` after a cancel) in `finish`.
    pub fn fail(&self, error: Error) {
        self.change(|now| {
            if !now.is_final() {
                self.record(error);
            }
            None
        });
        self.cancel.set();
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
    pub fn error(&self) -> Option<Error> {
        self.lock_error().clone()
    }

    /// Asks for a cancel: true if the migration will end as `cancelled`. Without effect if it has failed, has ended, was
    /// cancelled or was committed already. Never blocks.
    pub fn request_cancel(&self) -> bool {
        let decide = |now: Status| {
            let possible = now.is_cancellable() && self.lock_error().is_none() && self.withdraw();
            possible.then_some(Status::Cancelling)
        };
        let cancelled = self.change(decide).is_some();
        if cancelled {
            self.cancel.set();
        }
        cancelled
    }

    /// Reaches the final status and freezes the times: `cancelled` after a cancel, `failed` after an error, else `completed` if
    /// the machine was committed, and `failed` if it was not. Idempotent.
    pub fn finish(&self) -> Status {
        self.change(|now| match now {
            Status::Completed | Status::Failed | Status::Cancelled => None,
            Status::Cancelling => Some(Status::Cancelled),
            _ if self.lock_error().is_some() => Some(Status::Failed),
            _ if self.withdraw() => {
                self.record(Error::new(ErrorKind::InvalidState, "the migration ended before the machine was handed over"));
                Some(Status::Failed)
            }
            _ => Some(Status::Completed),
        });
        self.finished.store(true, Ordering::Release);
        self.deadline.end();
        self.cancel.set();
        self.status()
    }

    /// True once `finish` was called: nobody works for this session any more.
    pub fn finished(&self) -> bool {
        self.finished.load(Ordering::Acquire)
    }

    /// `migrate-start-postcopy`: the switch is wanted as soon as possible.
    pub(super) fn want_postcopy(&self) {
        self.postcopy_wanted.store(true, Ordering::Release);
        self.hurry.set();
    }

    /// The machine is to be stopped now, however much is left.
    pub(super) fn want_switchover(&self) {
        self.switchover_wanted.store(true, Ordering::Release);
        self.hurry.set();
    }

    /// True once the switchover must not wait for convergence any more.
    pub fn switchover_wanted(&self) -> bool {
        self.switchover_wanted.load(Ordering::Acquire)
    }

    /// Percent of their time that auto-converge takes from the vCPUs; 0: it does not.
    pub fn throttle(&self) -> u8 {
        self.throttle.load(Ordering::Relaxed)
    }

    /// Says what is taken from the vCPUs from now on.
    pub fn set_throttle(&self, percent: u8) {
        self.throttle.store(percent, Ordering::Relaxed);
    }

    /// Why it ends early: its deadline, the first error, or just that it was cancelled.
    pub fn why_cancelled(&self) -> Error {
        self.deadline_reason().or_else(|| self.error()).unwrap_or_else(|| Error::new(ErrorKind::Cancelled, "cancelled"))
    }

    /// Set when postcopy or the switchover is wanted, and with `cancel`: ends the sleeps of precopy.
    pub fn hurry(&self) -> &Cancel {
        &self.hurry
    }

    /// True once `migrate-start-postcopy` was asked for.
    pub fn postcopy_wanted(&self) -> bool {
        self.postcopy_wanted.load(Ordering::Acquire)
    }

    /// The switch of the present connection: every channel of it is opened with this one, so that `migrate-pause` ends them all.
    pub fn link(&self) -> Result<Cancel> {
        self.links.switch()
    }

    /// Opens a channel of the present connection, with its handshake done if there is TLS. `fd` as for [`channel::connect`].
    pub fn open(&self, uri: &Uri, fd: Option<OwnedFd>) -> Result<Channel> {
        let tls = self.tls.lock().unwrap_or_else(PoisonError::into_inner).clone();
        channel::connect_over(uri, fd, tls.as_deref(), &self.link()?)
    }

    /// The connection broke in postcopy: everything of it is cut and the status becomes `postcopy-paused`. False in any other status,
    /// and after an error; then it is a failure.
    pub fn lose_link(&self, error: &Error) -> bool {
        self.links.lose();
        let lost = self.change(|now| {
            let pauses = now.has_link() && !self.owned() && self.lock_error().is_none();
            if pauses {
                self.note_link_error(error.clone());
            }
            pauses.then_some(Status::PostcopyPaused)
        });
        lost.is_some()
    }

    /// In `postcopy-paused`: waits for `migrate` with `resume` and connects. The status becomes `postcopy-recover`. A connection that
    /// cannot be made is shown by query-migrate, and the waiting goes on. Fails as `cancelled` when the session ends.
    pub fn wait_for_link(&self) -> Result<Channel> {
        let open = |target: Target, switch: &Cancel| {
            let channel = channel::connect_over(&target.uri, target.fd, target.tls.as_deref(), switch)?;
            *self.tls.lock().unwrap_or_else(PoisonError::into_inner) = target.tls;
            Ok(channel)
        };
        let channel = self.links.wait(open, |error| self.note_link_error(error))?;
        self.recovered.store(true, Ordering::Release);
        if self.transition(Status::PostcopyPaused, Status::PostcopyRecover) {
            return Ok(channel);
        }
        Err(self.why_cancelled())
    }

    /// The destination has acknowledged the recovery: `postcopy-recover` becomes `postcopy-active`.
    pub fn resumed(&self) -> bool {
        let resumed = self.transition(Status::PostcopyRecover, Status::PostcopyActive);
        if resumed {
            *self.link_error.lock().unwrap_or_else(PoisonError::into_inner) = None;
        }
        resumed
    }

    pub(super) fn resume(&self, uri: &Uri, fd: Option<OwnedFd>) {
        self.links.post(Target { uri: uri.clone(), fd, tls: self.hub.tls() });
    }

    /// The destination has said something that it can say with the whole package only, if the machine was given away.
    pub fn heard(&self) {
        if self.ownership() == Ownership::Committed {
            self.taken.store(true, Ordering::Release);
        }
    }

    /// The destination has shown that it got the machine.
    pub fn is_taken(&self) -> bool {
        self.taken.load(Ordering::Acquire)
    }

    /// In `postcopy-paused`, with a destination that was not heard since the machine was given away: the migration ends in failure, and
    /// whose the machine is remains unknown. False in any other status, and if it was heard.
    pub(super) fn give_up(&self) -> bool {
        let mut given_up = false;
        self.change(|now| {
            given_up = now == Status::PostcopyPaused && !self.is_taken();
            if given_up {
                self.record(Error::new(ErrorKind::Cancelled, "given up on request (x-migrate-give-up)"));
            }
            None
        });
        if given_up {
            self.cancel.set();
        }
        given_up
    }

    /// `migrate-pause`: cuts the connection; whoever moves bytes finds it and pauses.
    pub(super) fn pause(&self) {
        self.links.cut();
    }

    fn note_link_error(&self, error: Error) {
        *self.link_error.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
    }

    /// The destination said that it never ran the machine (SHUT with status 2): true if that can be, and then the machine is ours
    /// again, with `error` as the reason why the migration failed.
    pub fn give_back(&self, error: Error) -> bool {
        let mut given = false;
        self.change(|now| {
            let possible = matches!(now, Status::PostcopyActive | Status::Device)
                && self.lock_error().is_none()
                && !self.recovered.load(Ordering::Acquire);
            let (from, to) = (Ownership::Committed as u8, Ownership::Withdrawn as u8);
            given = possible && self.ownership.compare_exchange(from, to, Ordering::SeqCst, Ordering::SeqCst).is_ok();
            if given {
                self.record(error);
            }
            None
        });
        if given {
            self.cancel.set();
        }
        given
    }

    /// Which dirty log the blocks use: `wp-async` or `explicit`.
    pub fn set_dirty_log(&self, kind: &'static str) {
        *self.dirty_log.lock().unwrap_or_else(PoisonError::into_inner) = Some(kind);
    }

    /// Tells monitors the end of dirty sync number `n`, if they asked for events.
    pub fn migration_pass(&self, n: u64) {
        if self.hub.events_enabled() {
            self.hub.bus.emit("MIGRATION_PASS", Some(json!({ "pass": n })));
        }
    }

    fn change(&self, decide: impl FnOnce(Status) -> Option<Status>) -> Option<Status> {
        self.status.change(decide, |new| {
            self.time_pause(new);
            if new.is_final() {
                self.freeze(new);
            }
            self.hub.migration_event(new);
        })
    }

    fn lock_error(&self) -> MutexGuard<'_, Option<Error>> {
        self.error.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
