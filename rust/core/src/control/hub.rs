//! What every part of the control room shares: the event bus and the snapshots of capabilities and parameters.

use std::collections::BTreeSet;
use std::sync::{Arc, PoisonError, RwLock};

use serde_json::json;

use super::events::Bus;
use super::parameters::Parameters;
use super::status::Status;
use crate::channel::Tls;

#[derive(Debug, Default)]
pub(super) struct Hub {
    pub(super) bus: Bus,
    capabilities: RwLock<BTreeSet<String>>,
    parameters: RwLock<Arc<Parameters>>,
    tls: RwLock<Option<Arc<Tls>>>,
}

impl Hub {
    pub(super) fn parameters(&self) -> Arc<Parameters> {
        self.parameters.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn set_parameters(&self, new: Parameters) {
        *self.parameters.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(new);
    }

    /// What channels that are opened from now on are secured with.
    pub(super) fn tls(&self) -> Option<Arc<Tls>> {
        self.tls.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn set_tls(&self, tls: Option<Arc<Tls>>) {
        *self.tls.write().unwrap_or_else(PoisonError::into_inner) = tls;
    }

    pub(super) fn capability(&self, name: &str) -> bool {
        self.capabilities.read().unwrap_or_else(PoisonError::into_inner).contains(name)
    }

    pub(super) fn set_capabilities(&self, enabled: impl IntoIterator<Item = String>) {
        *self.capabilities.write().unwrap_or_else(PoisonError::into_inner) = enabled.into_iter().collect();
    }

    pub(super) fn events_enabled(&self) -> bool {
        self.capability("events")
    }

    /// The MIGRATION event, if asked for.
    pub(super) fn migration_event(&self, status: Status) {
        if self.events_enabled() {
            self.bus.emit("MIGRATION", Some(json!({ "status": status.name() })));
        }
    }
}
