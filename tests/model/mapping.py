"""Where the model's states and guards stand in the code: for who changes one, and for the tests that compare the two.

What the model leaves out, and why it may: bytes inside a message (a cut inside one is a cut before it: whoever reads
half a message fails), the PINGs of the setup, precopy's pages (before the commit a failure forgets them all),
discards, a peer that lies, and what an operator does with a machine that stands still on both sides.
"""

from __future__ import annotations

SOURCE = {
    "running": ({"setup", "active"}, "send/outgoing.rs", "fn run"),
    "stopped": ({"active", "device", "postcopy-active"}, "send/postcopy.rs", "fn switch"),
    "sent": ({"active", "device", "postcopy-active"}, "send/return_path.rs", "fn wait_pong"),
    "answered": ({"active", "device", "postcopy-active"}, "send/postcopy.rs", "written_since"),
    "committed": ({"device", "active", "postcopy-active"}, "control/fate.rs", "fn commit"),
    "wait": ({"device", "active"}, "send/return_path.rs", "fn wait_shut"),
    "pages": ({"postcopy-active"}, "send/postcopy.rs", "fn give"),
    "ended": ({"postcopy-active"}, "send/return_path.rs", "fn wait_shut"),
    "paused": ({"postcopy-paused"}, "control/session.rs", "fn wait_for_link"),
    "asking": ({"postcopy-recover"}, "send/postcopy.rs", "fn handshake"),
    "resuming": ({"postcopy-recover"}, "send/return_path.rs", "fn wait_resumed"),
    "kept": ({"failed", "cancelled"}, "control/fate.rs", "fn withdraw"),
    "unknown": ({"failed"}, "control/fate.rs", "OwnershipUnknown"),
    "done": ({"completed"}, "control/fate.rs", "fn finish"),
    "dead": (set(), "", ""),
}
"""State of the source: its statuses in query-migrate, the file below rust/core/src, and what to look for there."""

DESTINATION = {
    "loading": ({"none", "active"}, "recv/mod.rs", "fn settle"),
    "ready": ({"active", "completed"}, "control/incoming.rs", "fn settle"),
    "listening": ({"postcopy-active"}, "recv/listening.rs", "fn start"),
    "may-run": ({"postcopy-active", "postcopy-paused", "postcopy-recover"}, "recv/listening.rs", "fn run_machine"),
    "live": ({"completed", "postcopy-active", "postcopy-paused", "postcopy-recover"}, "recv/listening.rs", "fn wait"),
    "late": ({"completed"}, "recv/late.rs", "fn answer"),
    "failed": ({"failed", "none"}, "control/incoming.rs", "fn fail"),
    "dead": (set(), "", ""),
}
"""The same for the destination."""

GUARD = {
    "cancel-asks-the-word": ("control/fate.rs", "self.lock_error().is_none() && self.withdraw()"),
    "commit-asks-the-word": ("control/fate.rs", "compare_exchange(Ownership::Mine"),
    "fence": ("send/postcopy.rs", "wait_pong(PING_DISCARDED)"),
    "run-is-withheld": ("send/postcopy.rs", "self.run = run.into_vec()"),
    "stays-stopped": ("control/fate.rs", "ErrorKind::OwnershipUnknown"),
    "settle": ("recv/mod.rs", "settle_incoming"),
    "run-asks": ("recv/listening.rs", "if let Some(error) = &state.ended"),
    "settled": ("recv/listening.rs", "state.stage != Stage::Settled"),
    "pause": ("send/postcopy.rs", "self.session.lose_link"),
    "bitmap": ("send/postcopy.rs", "missing.and_not(received)"),
    "quiet": ("recv/listening.rs", "connection.close(&self.requests)"),
    "whole": ("recv/listening.rs", "memory.check_complete()"),
    "witness": ("recv/listening.rs", "self.control.set_witness"),
}
"""Guard: the file below rust/core/src, and the words of it that make the check."""

OWNER = {
    "source": {"runs here"},
    "destination": {"runs there"},
    "unsure": {"runs there; the source has not heard so: ownership unknown"},
    "recovered": {"runs there"},
    "unknown": {"stopped on both sides: ownership unknown"},
    "stranded": {"stopped on both sides: ownership unknown"},
}
"""Whose the machine is after a cut of the campaign (`campaign.cut.OWNERS`): the model's end."""
