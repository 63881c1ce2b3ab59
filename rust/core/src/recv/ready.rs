//! `switchover-ack` on this side: the source is told, once, that the devices are ready for the switchover (spec/stream 8.7).

use super::Incoming;
use crate::Result;
use crate::wire::ReturnMessage;

/// Whether the word is due.
#[derive(Debug, Default)]
pub(super) struct Readiness {
    /// A device wants more of its state first.
    held: bool,
    said: bool,
}

impl Incoming {
    /// A device wants more of its state before the machine is stopped: the source is not told until [`Self::devices_ready`].
    pub fn hold_ack(&self) {
        self.link().readiness.held = true;
    }

    /// The devices have what they wanted.
    pub fn devices_ready(&self) -> Result<()> {
        self.link().readiness.held = false;
        self.acknowledge()
    }

    /// Tell the source if it is due, wanted and possible.
    pub(super) fn acknowledge(&self) -> Result<()> {
        let mut link = self.link();
        let due = link.return_path && !link.readiness.held && !link.readiness.said && self.control.capability("switchover-ack");
        link.readiness.said |= due;
        drop(link);
        if due { self.answer(&ReturnMessage::SwitchoverAck) } else { Ok(()) }
    }
}
