//! `switchover-ack`: the machine is not stopped before the destination has said that its devices are ready (spec/stream 8.7).

use std::time::Instant;

use super::outgoing::Outgoing;
use crate::channel::{Address, Cancel, Uri};
use crate::control::{Control, RunState};
use crate::{Error, ErrorKind, Result};

const CAPABILITY: &str = "switchover-ack";

/// Refuses, before anything is opened, what has no way back for the word that is waited for.
pub fn check(control: &Control, uri: &Uri) -> Result<()> {
    if control.capability(CAPABILITY) && matches!(uri.address(), Address::File { .. } | Address::Exec(_)) {
        return Err(unheard(uri));
    }
    Ok(())
}

impl Outgoing {
    /// The same of what is open.
    pub(super) fn check_heard(&self, uri: &Uri) -> Result<()> {
        if self.two_way() || !self.control.capability(CAPABILITY) { Ok(()) } else { Err(unheard(uri)) }
    }

    /// The destination is ready for the switchover, or need not say so, as nobody notices how long it takes; waits for that until
    /// `deadline`. Anything that ends the connection ends the wait.
    pub(super) fn ready(&self, deadline: Instant) -> bool {
        !self.control.capability(CAPABILITY)
            || self.control.run_state() != RunState::Running
            || self.back.as_ref().is_some_and(|back| back.ready(deadline))
    }

    /// What ends a sleep: with postcopy the wish for it, if it can be granted at once.
    pub(super) fn alarm(&self) -> Cancel {
        if self.ready(Instant::now()) { self.session.hurry().clone() } else { self.session.cancel.clone() }
    }
}

fn unheard(uri: &Uri) -> Error {
    let text = format!("{uri}: `{CAPABILITY}` waits for the destination's word, and this channel has no way back; use tcp: or unix:");
    Error::new(ErrorKind::BadUri, text)
}
