//! One outgoing migration: status, ownership, first error, counters and times.
//!
//! Who owns the machine, and how that ends, is decided in `fate`; here is what follows from it. A snapshot is a session, too, whose
//! machine stays: `commit` then says that its stream is complete, after which no cancel is accepted.
//!
//! Postcopy lives longer than its connection. `link` is the switch of the present one; a connection that breaks is no failure but
//! `lose_link`, after which `wait_for_link` brings the next.
//!
//! The status becomes final in `finish` only (or by an explicit change to `completed`), which the owner calls when the machine is where
//! it belongs: who sees a final status may act at once.

mod times;

use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use serde_json::json;

use self::times::Times;
use super::counters::Counters;
use super::deadline::Deadline;
use super::fate::{Fate, Ownership};
use super::hub::Hub;
use super::links::Links;
use super::status::Status;
use crate::channel::{self, Cancel, Channel, Registration, Tls, Uri};
use crate::{Error, ErrorKind, Result};

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
    fate: Fate,
    finished: AtomicBool,
    times: Mutex<Times>,
    dirty_log: Mutex<Option<&'static str>>,
    postcopy_wanted: AtomicBool,
    switchover_wanted: AtomicBool,
    /// Percent of their time that the vCPUs do not get.
    throttle: AtomicU8,
    hurry: Cancel,
    _hurried: Registration,
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
            fate: Fate::new(stays),
            finished: AtomicBool::new(false),
            times: Mutex::new(Times::begin()),
            dirty_log: Mutex::new(None),
            postcopy_wanted: AtomicBool::new(false),
            switchover_wanted: AtomicBool::new(false),
            throttle: AtomicU8::new(0),
            deadline: Deadline::default(),
            link_error: Mutex::new(None),
            hub,
        };
        session.counters.expected_downtime.set(session.hub.parameters().downtime_limit);
        session.transition(Status::None, Status::Setup);
        Ok(session)
    }

    /// The present status.
    pub fn status(&self) -> Status {
        self.fate.status()
    }

    /// Compare-and-swap of the status with its MIGRATION event; false if it was not `old`, or if an error is recorded already.
    /// Towards `cancelling` and `cancelled` it needs a machine that is still ours.
    pub fn transition(&self, old: Status, new: Status) -> bool {
        self.fate.transition(old, new, |new| self.changed(new))
    }

    /// The commit point: true if the machine is given away from here on. False if a cancel or a failure came first.
    pub fn commit(&self) -> bool {
        self.fate.commit()
    }

    /// A snapshot: nobody else ever gets the machine.
    pub(super) fn stays(&self) -> bool {
        self.fate.stays()
    }

    /// Keeps the machine: true if nothing was committed, and then nothing ever will be.
    pub fn withdraw(&self) -> bool {
        self.fate.withdraw()
    }

    /// True while the source may still run the machine.
    pub fn owned(&self) -> bool {
        self.fate.owned()
    }

    /// The setup stage has been written: the status becomes `active`, which that of a snapshot never is.
    pub fn activate(&self) {
        if !self.stays() {
            self.transition(Status::Setup, Status::Active);
        }
    }

    /// Who may run the machine now.
    pub fn ownership(&self) -> Ownership {
        self.fate.ownership()
    }

    /// Records the first error, keeps the machine if it can, and ends all that waits. After a commit the error becomes
    /// `ownership-unknown`. The status becomes `failed` (or `cancelled` after a cancel) in `finish`.
    pub fn fail(&self, error: Error) {
        self.fate.fail(error);
        self.cancel.set();
    }

    /// The first error.
    pub fn error(&self) -> Option<Error> {
        self.fate.error()
    }

    /// Asks for a cancel: true if the migration will end as `cancelled`. Without effect if it has failed, has ended, was
    /// cancelled or was committed already. Never blocks.
    pub fn request_cancel(&self) -> bool {
        let cancelled = self.fate.request_cancel(|new| self.changed(new));
        if cancelled {
            self.cancel.set();
        }
        cancelled
    }

    /// Reaches the final status and freezes the times: `cancelled` after a cancel, `failed` after an error, else `completed` if
    /// the machine was committed, and `failed` if it was not. Idempotent.
    pub fn finish(&self) -> Status {
        self.fate.finish(|new| self.changed(new));
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
        self.fate.lose_link(|| self.note_link_error(error.clone()), |new| self.changed(new))
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
        if self.fate.recover(|new| self.changed(new)) {
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

    /// The destination has said something that only who has RUN says, if the machine was given away.
    pub fn heard(&self) {
        self.fate.heard();
    }

    /// The destination has shown that it got the machine.
    pub fn is_taken(&self) -> bool {
        self.fate.is_taken()
    }

    /// In `postcopy-paused`, with a destination that was not heard since the machine was given away: the migration ends in failure, and
    /// whose the machine is remains unknown. False in any other status, and if it was heard.
    pub(super) fn give_up(&self) -> bool {
        let given_up = self.fate.give_up(Error::new(ErrorKind::Cancelled, "given up on request (x-migrate-give-up)"));
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
        let given = self.fate.give_back(error);
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

    /// Called with the status held still.
    fn changed(&self, new: Status) {
        self.time_pause(new);
        if new.is_final() {
            self.freeze(new);
        }
        self.hub.migration_event(new);
    }
}
