//! The destination's half of the control room: its status word, error and listening addresses.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde_json::{Map, Value, json};

use super::hub::Hub;
use super::status::{Status, StatusWord};
use crate::{Error, ErrorKind, Result};

#[derive(Debug, Default)]
struct State {
    begun: bool,
    error: Option<Error>,
    addresses: Option<Value>,
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

    /// 7.2 announces `setup` always, whatever the capability says, and keeps the status at `none` until a source connects.
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
            |_| self.hub.bus.emit("MIGRATION", Some(json!({ "status": Status::Setup.name() }))),
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
                if now.is_final() {
                    return None;
                }
                state.error.get_or_insert(error);
                Some(Status::Failed)
            },
            |new| self.hub.migration_event(new),
        );
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
        if status == Status::Failed
            && let Some(error) = &state.error
        {
            into.insert("error-desc".into(), error.to_string().into());
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
