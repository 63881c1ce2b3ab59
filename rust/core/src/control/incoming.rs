//! The destination's half of the control room: its status word, error, listening addresses, and what may still be cancelled.
//!
//! A destination that has answered the fence, or seen the end, may own the machine: from then on nothing here cuts it off. Both
//! that moment and a cancel go through one lock, so that one of them comes first.

use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde_json::{Map, Value, json};

use super::Witness;
use super::hub::Hub;
use super::links::Links;
use super::status::{Status, StatusWord};
use crate::channel::{Cancel, Listener, Uri};
use crate::postcopy::Latency;
use crate::{Error, ErrorKind, Result};

const NANOS_PER_MS: u64 = 1_000_000;

#[derive(Debug, Default)]
struct State {
    begun: bool,
    error: Option<Error>,
    addresses: Option<Value>,
    /// What ends the load; none before a source has connected, and none once the machine may be here.
    cut: Option<Cancel>,
    cancelled: bool,
    links: Option<Arc<Links<Arc<Listener>>>>,
    latency: Option<Arc<Latency>>,
    witness: Option<Arc<dyn Witness>>,
}

#[derive(Debug)]
pub(super) struct Incoming {
    hub: Arc<Hub>,
    status: StatusWord,
    state: Mutex<State>,
}

impl Incoming {
    pub(super) fn new(hub: Arc<Hub>) -> Self {
        Self { hub, status: StatusWord::new(Status::None), state: Mutex::default() }
    }

    pub(super) fn status(&self) -> Status {
        self.status.get()
    }

    /// 7.2 announces a listener always, whatever the capability says, and keeps the status as it is until a source connects.
    fn announce(&self) {
        self.hub.bus.emit("MIGRATION", Some(json!({ "status": Status::Setup.name() })));
    }

    pub(super) fn begin(&self) -> Result<()> {
        let mut begun = false;
        self.status.change(
            |now| {
                let mut state = self.lock();
                begun = !state.begun || now.is_final();
                if !begun {
                    return None;
                }
                *state = State { begun: true, ..State::default() };
                Some(Status::None)
            },
            |_| self.announce(),
        );
        if begun {
            return Ok(());
        }
        Err(Error::new(
            ErrorKind::InvalidState,
            "an incoming migration is under way already; wait until it has failed, or start a new process",
        ))
    }

    pub(super) fn transition(&self, old: Status, new: Status) -> bool {
        self.status.change(|now| (now == old).then_some(new), |new| self.hub.migration_event(new)).is_some()
    }

    /// Records the first error and fails, unless the machine is here already.
    pub(super) fn fail(&self, error: Error) {
        self.status.change(
            |now| {
                let mut state = self.lock();
                state.addresses = None;
                state.cut = None;
                if now.is_final() {
                    return None;
                }
                state.error.get_or_insert(error);
                Some(Status::Failed)
            },
            |new| self.hub.migration_event(new),
        );
    }

    /// A source has connected: until `settle`, a cancel sets `cut`.
    pub(super) fn connected(&self, cut: &Cancel) {
        self.lock().cut = Some(cut.clone());
    }

    /// The machine may be here from now on and no cancel is accepted any more; false if one came first.
    pub(super) fn settle(&self) -> bool {
        let mut state = self.lock();
        state.cut = None;
        !state.cancelled
    }

    /// True if a load was under way and fails now.
    pub(super) fn cancel(&self) -> bool {
        let cut = {
            let mut state = self.lock();
            let cut = state.cut.take();
            state.cancelled |= cut.is_some();
            cut
        };
        cut.inspect(Cancel::set).is_some()
    }

    pub(super) fn link(&self, whole: &Cancel) -> Arc<Links<Arc<Listener>>> {
        let links = Links::new(whole);
        self.lock().links = Some(links.clone());
        links
    }

    fn links(&self) -> Option<Arc<Links<Arc<Listener>>>> {
        self.lock().links.clone()
    }

    pub(super) fn pause(&self) {
        if let Some(links) = self.links() {
            links.cut();
        }
    }

    pub(super) fn lose_link(&self, error: Error) -> bool {
        if let Some(links) = self.links() {
            links.lose();
        }
        let lost = self.status.change(
            |now| {
                let pauses = now.has_link();
                if pauses {
                    let mut state = self.lock();
                    state.error = Some(error);
                    state.addresses = None;
                }
                pauses.then_some(Status::PostcopyPaused)
            },
            |new| self.hub.migration_event(new),
        );
        lost.is_some()
    }

    /// The source goes on over the new connection.
    pub(super) fn resumed(&self) -> bool {
        let resumed = self.transition(Status::PostcopyRecover, Status::PostcopyActive);
        if resumed {
            self.lock().error = None;
        }
        resumed
    }

    pub(super) fn recover(&self, uri: &Uri, fd: Option<OwnedFd>) -> Result<()> {
        let none = || Error::new(ErrorKind::InvalidState, "the incoming migration has no connection that could be replaced");
        let links = self.links().ok_or_else(none)?;
        // The same address may be asked for again, so the one before goes first.
        let witness = self.witness();
        witness.as_ref().map_or_else(|| links.withdraw(), |witness| witness.end());
        self.set_addresses(None);
        let listener = Listener::bind_over(uri, fd, self.hub.tls())?;
        self.announce();
        self.set_addresses(Some(listener.addresses()));
        match witness {
            Some(witness) => witness.answer(Arc::new(listener))?,
            None => links.post(Arc::new(listener)),
        }
        Ok(())
    }

    /// Everything is here; `witness` says so.
    pub(super) fn set_witness(&self, witness: Arc<dyn Witness>) {
        self.lock().witness = Some(witness);
    }

    pub(super) fn has_witness(&self) -> bool {
        self.witness().is_some()
    }

    /// A late source is not waited for any more.
    pub(super) fn dismiss_witness(&self) {
        if let Some(witness) = self.witness() {
            witness.end();
        }
    }

    fn witness(&self) -> Option<Arc<dyn Witness>> {
        self.lock().witness.clone()
    }

    /// A source that was waited for could not be taken; the waiting goes on.
    pub(super) fn note_link_error(&self, error: Error) {
        let mut state = self.lock();
        state.error = Some(error);
        state.addresses = None;
    }

    pub(super) fn set_latency(&self, latency: Arc<Latency>) {
        self.lock().latency = Some(latency);
    }

    pub(super) fn latency(&self) -> Option<Arc<Latency>> {
        self.lock().latency.clone()
    }

    pub(super) fn set_addresses(&self, addresses: Option<Value>) {
        self.lock().addresses = addresses;
    }

    /// The destination's part of query-migrate (control-plane 4.3, 7.2; `error-desc` is ours, as 10.0 does it).
    pub(super) fn query(&self, into: &mut Map<String, Value>) {
        let state = self.lock();
        if let Some(addresses) = &state.addresses {
            into.insert("socket-address".into(), addresses.clone());
        }
        let status = self.status();
        if status != Status::None {
            into.insert("status".into(), status.name().into());
        }
        if matches!(status, Status::Failed | Status::PostcopyPaused | Status::PostcopyRecover)
            && let Some(error) = &state.error
        {
            into.insert("error-desc".into(), error.to_string().into());
        }
        drop(state);
        let Some(latency) = self.latency() else { return };
        into.insert("x-fault-latency".into(), latency.summary());
        if self.hub.capability("postcopy-blocktime") && status == Status::Completed {
            let (all, each) = latency.blocktime();
            into.insert("postcopy-blocktime".into(), (all / NANOS_PER_MS).into());
            into.insert("postcopy-vcpu-blocktime".into(), each.iter().map(|(_, time)| time / NANOS_PER_MS).collect());
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
