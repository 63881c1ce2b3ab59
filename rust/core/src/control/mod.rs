//! The running migration as everybody sees it: run state, both statuses, ownership, counters, parameters, events.
//!
//! Nothing in here waits for anything: all of it may be called from any thread at any time, also while the interpreter is
//! stuck. Whoever moves bytes (`send`, `recv`) and whoever decides (Python) write here; monitors read.
//!
//! Lock order: status word, then everything else; no lock is held while something foreign is called, except the queueing of an
//! event, so that observers see events in the order of the changes.

mod counters;
mod deadline;
mod downtime;
mod events;
mod fate;
mod hub;
mod incoming;
mod links;
mod mapped_ram;
mod parameters;
mod run_state;
mod session;
mod status;
#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;

use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use serde_json::{Map, Value, json};

pub use self::counters::{CompressionCounters, Counter, Counters, Gauge, TARGET_PAGE, XbzrleCounters};
use self::downtime::DowntimeRecord;
pub use self::downtime::Phase;
pub use self::events::{Event, QUEUE_LIMIT, Subscription, Waker};
pub use self::fate::Ownership;
use self::hub::Hub;
use self::incoming::Incoming;
pub use self::links::Links;
pub(crate) use self::mapped_ram::no_file;
pub use self::parameters::{Compression, DeadlineAction, Parameters, ThrottleSettings, ZeroPageDetection};
pub use self::run_state::RunState;
pub use self::session::Session;
pub use self::status::Status;
use crate::channel::{Address, Cancel, Listener, Tls, Uri};
use crate::postcopy::Latency;
use crate::{Error, ErrorKind, Result};

/// Postcopy talks both ways.
fn two_way(uri: &Uri) -> Result<()> {
    match uri.address() {
        Address::Tcp(_) | Address::Unix(_) | Address::Fd(_) => Ok(()),
        Address::Exec(_) | Address::File { .. } => Err(Error::new(
            ErrorKind::BadUri,
            format!("{uri}: this channel has no way back, which a recovery needs; use tcp:, unix: or fd: with a socket"),
        )),
    }
}

/// Answers for an incoming postcopy that is complete, in case its source has not heard so.
pub trait Witness: std::fmt::Debug + Send + Sync {
    /// Tells the source that connects to `listener`, in a thread of its own; who was waited for before is not any more.
    fn answer(&self, listener: Arc<Listener>) -> Result<()>;
    /// Nobody is waited for any more; returns when the thread has ended.
    fn end(&self);
}

/// State of one machine's migrations.
#[derive(Debug)]
pub struct Control {
    name: Option<String>,
    hub: Arc<Hub>,
    run_state: Mutex<RunState>,
    outgoing: Mutex<Option<Arc<Session>>>,
    incoming: Incoming,
    blocked_reasons: RwLock<Vec<String>>,
    downtime: DowntimeRecord,
    /// Ordinary commands that had to wait behind a fault.
    pub commands_waited: Counter,
    /// Bytes that the source of the present or last incoming migration has sent, on all channels.
    pub received: Arc<Counter>,
}

impl Control {
    /// Of a machine that has not been started.
    pub fn new(name: Option<String>) -> Self {
        let hub = Arc::new(Hub::default());
        Self {
            name,
            run_state: Mutex::new(RunState::Prelaunch),
            outgoing: Mutex::new(None),
            incoming: Incoming::new(hub.clone()),
            blocked_reasons: RwLock::default(),
            downtime: DowntimeRecord::default(),
            commands_waited: Counter::default(),
            received: Arc::default(),
            hub,
        }
    }

    /// The machine's name (`-name`).
    pub fn name(&self) -> Option<&str> {
        self.name.as_deref()
    }

    /// Run state of the machine.
    pub fn run_state(&self) -> RunState {
        *self.run_state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the run state; `invalid-state` if the table does not allow it.
    pub fn set_run_state(&self, next: RunState) -> Result<()> {
        let mut now = self.run_state.lock().unwrap_or_else(PoisonError::into_inner);
        if !now.may_become(next) {
            let text = format!("the machine cannot go from `{}` to `{}`", now.name(), next.name());
            return Err(Error::new(ErrorKind::InvalidState, text));
        }
        *now = next;
        Ok(())
    }

    /// Sends an event to every monitor and subscriber.
    pub fn event(&self, name: &str, data: Option<Value>) {
        self.hub.bus.emit(name, data);
    }

    /// Events from now on; `waker`, which must not block, is called after each.
    pub fn subscribe(&self, waker: Option<Waker>) -> Subscription {
        self.hub.bus.subscribe(waker)
    }

    /// The present parameters; look again whenever they matter.
    pub fn parameters(&self) -> Arc<Parameters> {
        self.hub.parameters()
    }

    /// Replaces the parameters at once; a deadline holds for a migration that is under way, too.
    pub fn set_parameters(&self, parameters: Parameters) {
        self.hub.set_parameters(parameters);
        if let Some(session) = self.outgoing() {
            session.watch_deadline();
        }
    }

    /// What the channels of the next migration are secured with; read when one begins, when listening begins, and by a recovery.
    pub fn set_tls(&self, tls: Option<Arc<Tls>>) {
        self.hub.set_tls(tls);
    }

    /// The same, for who listens.
    pub fn tls(&self) -> Option<Arc<Tls>> {
        self.hub.tls()
    }

    /// True if the capability is on.
    pub fn capability(&self, name: &str) -> bool {
        self.hub.capability(name)
    }

    /// Replaces the set of capabilities that are on.
    pub fn set_capabilities(&self, enabled: impl IntoIterator<Item = String>) {
        self.hub.set_capabilities(enabled);
    }

    /// Why the machine cannot migrate now; empty if it can.
    pub fn set_blocked_reasons(&self, reasons: Vec<String>) {
        *self.blocked_reasons.write().unwrap_or_else(PoisonError::into_inner) = reasons;
    }

    /// The present or last outgoing migration.
    pub fn outgoing(&self) -> Option<Arc<Session>> {
        self.outgoing.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Status of the present or last outgoing migration.
    pub fn outgoing_status(&self) -> Status {
        self.outgoing().map_or(Status::None, |session| session.status())
    }

    /// Starts an outgoing migration in status `setup`. Fails with `invalid-state` until the one before was finished.
    pub fn begin_outgoing(&self) -> Result<Arc<Session>> {
        self.begin(false)
    }

    /// The same for a snapshot, whose stream is kept here, as is the machine.
    pub fn begin_snapshot(&self) -> Result<Arc<Session>> {
        self.begin(true)
    }

    fn begin(&self, stays: bool) -> Result<Arc<Session>> {
        let mut outgoing = self.outgoing.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(session) = outgoing.as_ref()
            && !session.finished()
        {
            let text = format!("a migration is under way already (status `{}`); wait for its end or cancel it", session.status().name());
            return Err(Error::new(ErrorKind::InvalidState, text));
        }
        self.downtime.clear();
        let session = Arc::new(Session::new(self.hub.clone(), stays)?);
        *outgoing = Some(session.clone());
        drop(outgoing);
        session.watch_deadline();
        Ok(session)
    }

    /// True unless the machine was given away by the last outgoing migration.
    pub fn owned(&self) -> bool {
        self.outgoing().is_none_or(|session| session.owned())
    }

    /// `migrate_cancel`: true if an outgoing migration will end as `cancelled`, or an incoming one, whose source has connected and
    /// has no promise yet, as `failed`. Never blocks.
    pub fn cancel(&self) -> bool {
        self.incoming.dismiss_witness();
        self.outgoing().is_some_and(|session| session.request_cancel()) || self.incoming.cancel()
    }

    /// `migrate-start-postcopy`: the outgoing migration switches as soon as it can. `invalid-state` without the capability, or without
    /// a migration.
    pub fn start_postcopy(&self) -> Result<()> {
        let refused = |text: &str| Err(Error::new(ErrorKind::InvalidState, text));
        if !self.capability("postcopy-ram") {
            return refused("postcopy cannot be started: switch the capability `postcopy-ram` on, on both sides, before the migration");
        }
        match self.outgoing() {
            Some(session) => session.want_postcopy(),
            None => return refused("postcopy cannot be started: no migration has begun"),
        }
        Ok(())
    }

    /// `migrate-pause`: cuts the connection of an outgoing migration in postcopy, or else of an incoming one; both sides then find
    /// themselves in `postcopy-paused`. `invalid-state` if neither is in postcopy with a connection. Never blocks.
    pub fn pause(&self) -> Result<()> {
        if let Some(session) = self.outgoing().filter(|session| session.status().has_link()) {
            session.pause();
            return Ok(());
        }
        if self.incoming_status().has_link() {
            self.incoming.pause();
            return Ok(());
        }
        Err(self.not_in("migrate-pause", Status::PostcopyActive))
    }

    /// `x-migrate-give-up`: nobody will recover a paused outgoing migration whose destination was not heard since the hand-over. It ends as
    /// `ownership-unknown`, with the machine stopped, for its administrator to start. `invalid-state` if it is not paused, or if the
    /// destination was heard: then it has the machine.
    pub fn give_up_outgoing(&self) -> Result<()> {
        let paused = |session: &Arc<Session>| session.status() == Status::PostcopyPaused;
        match self.outgoing().filter(paused) {
            Some(session) if session.give_up() => Ok(()),
            Some(session) if session.is_taken() => {
                let text = "x-migrate-give-up: the destination has answered since the hand-over, so the machine is probably there: recover the migration";
                Err(Error::new(ErrorKind::InvalidState, text))
            }
            _ => Err(self.not_in("x-migrate-give-up", Status::PostcopyPaused)),
        }
    }

    /// `migrate` with `resume`: a paused outgoing migration connects to `uri`. `invalid-state` if it is not paused, or if RAM was
    /// released as it was sent. Does not wait for the connection, which query-migrate tells of; the last one asked for counts.
    pub fn resume_outgoing(&self, uri: &Uri, fd: Option<OwnedFd>) -> Result<()> {
        let session = self.outgoing().filter(|session| session.status() == Status::PostcopyPaused);
        let session = session.ok_or_else(|| self.not_in("migrate with `resume`", Status::PostcopyPaused))?;
        if self.capability("release-ram") {
            let text = "this migration cannot be resumed: with `release-ram` the source has dropped what it had sent";
            return Err(Error::new(ErrorKind::InvalidState, text));
        }
        two_way(uri)?;
        session.resume(uri, fd);
        Ok(())
    }

    /// `migrate-recover`: a paused incoming migration listens at `uri`, instead of wherever it listened before, and says where in
    /// `socket-address`. One that is complete does so, too, for a source whose connection broke before it heard that; its status stays
    /// as it is. `invalid-state` otherwise; `listen` and the like. Does not wait for the source.
    pub fn recover_incoming(&self, uri: &Uri, fd: Option<OwnedFd>) -> Result<()> {
        if self.incoming_status() != Status::PostcopyPaused && !self.incoming.has_witness() {
            return Err(self.not_in("migrate-recover", Status::PostcopyPaused));
        }
        two_way(uri)?;
        self.incoming.recover(uri, fd)
    }

    fn not_in(&self, command: &str, needed: Status) -> Error {
        let (out, incoming) = (self.outgoing_status().name(), self.incoming_status().name());
        let text = format!("{command} needs a migration in `{}`: outgoing is `{out}`, incoming is `{incoming}`", needed.name());
        Error::new(ErrorKind::InvalidState, text)
    }

    /// Status of the incoming migration: `none` until a source has connected.
    pub fn incoming_status(&self) -> Status {
        self.incoming.status()
    }

    /// Starts an incoming migration and says `setup` to everybody. `invalid-state` while one is under way.
    pub fn begin_incoming(&self) -> Result<()> {
        self.downtime.clear();
        self.incoming.begin()?;
        self.received.set(0);
        Ok(())
    }

    /// Compare-and-swap of the incoming status with its event.
    pub fn set_incoming_status(&self, old: Status, new: Status) -> bool {
        self.incoming.transition(old, new)
    }

    /// The incoming migration failed; its first error is kept and the addresses are forgotten.
    pub fn fail_incoming(&self, error: Error) {
        self.incoming.fail(error);
    }

    /// A source has connected: from here to `settle_incoming` a cancel sets `cut`.
    pub fn incoming_connected(&self, cut: &Cancel) {
        self.incoming.connected(cut);
    }

    /// What follows may give this side the machine, so no cancel is accepted any more. False if one came first: then it must not follow.
    pub fn settle_incoming(&self) -> bool {
        self.incoming.settle()
    }

    /// The connections of the incoming migration; `whole` ends it. Once for each, before its first connection.
    pub fn link_incoming(&self, whole: &Cancel) -> Arc<Links<Arc<Listener>>> {
        self.incoming.link(whole)
    }

    /// The connection of the incoming migration broke after the machine ran here: `postcopy-active` or `postcopy-recover` becomes
    /// `postcopy-paused`, with the reason in `error-desc`. False in any other status.
    pub fn pause_incoming(&self, error: Error) -> bool {
        self.incoming.lose_link(error)
    }

    /// The memory of the incoming migration is complete: who tells a source that asks late.
    pub fn set_witness(&self, witness: Arc<dyn Witness>) {
        self.incoming.set_witness(witness);
    }

    /// The source goes on over a new connection: `postcopy-recover` becomes `postcopy-active`.
    pub fn resumed_incoming(&self) -> bool {
        self.incoming.resumed()
    }

    /// A source that was waited for after a pause could not be taken: `error-desc` says so.
    pub fn note_incoming_error(&self, error: Error) {
        self.incoming.note_link_error(error);
    }

    /// The record of faults that query-migrate shows for the incoming migration.
    pub fn set_fault_latency(&self, latency: Arc<Latency>) {
        self.incoming.set_latency(latency);
    }

    /// The record of faults of the present or last incoming postcopy; none without one.
    pub fn fault_latency(&self) -> Option<Arc<Latency>> {
        self.incoming.latency()
    }

    /// Where the destination listens, in the shape of `socket-address`.
    pub fn set_socket_addresses(&self, addresses: Option<Value>) {
        self.incoming.set_addresses(addresses);
    }

    /// One entry of `x-downtime`.
    pub fn note_time(&self, phase: Phase, microseconds: u64) {
        self.downtime.note(phase, microseconds);
    }

    /// What one device's state took.
    pub fn note_device_time(&self, device: &str, microseconds: u64) {
        self.downtime.note_device(device, microseconds);
    }

    /// The answer to `query-status`.
    pub fn query_status(&self) -> Value {
        let state = self.run_state();
        json!({ "status": state.name(), "singlestep": false, "running": state == RunState::Running })
    }

    /// The answer to `query-migrate`: the destination's part, then the source's over it.
    pub fn query_migrate(&self) -> Value {
        let mut answer = Map::new();
        self.incoming.query(&mut answer);
        let blocked = self.blocked_reasons.read().unwrap_or_else(PoisonError::into_inner);
        if !blocked.is_empty() {
            answer.insert("blocked-reasons".into(), json!(*blocked));
        }
        drop(blocked);
        if let Some(session) = self.outgoing() {
            answer.remove("error-desc");
            session.query(&mut answer);
            return self.with_own(answer, session.pause_time());
        }
        self.with_own(answer, None)
    }

    /// The destination's part alone, for whoever has one of its migrations in hand.
    pub fn query_incoming(&self) -> Value {
        let mut answer = Map::new();
        self.incoming.query(&mut answer);
        self.with_own(answer, None)
    }

    fn with_own(&self, mut answer: Map<String, Value>, pause: Option<Duration>) -> Value {
        if let Some(times) = self.downtime.to_json(pause) {
            answer.insert("x-downtime".into(), times);
        }
        if ["ram", "x-fault-latency"].iter().any(|member| answer.contains_key(*member)) {
            answer.insert("x-commands-waited".into(), self.commands_waited.get().into());
        }
        Value::Object(answer)
    }
}
