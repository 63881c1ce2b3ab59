//! The time allowed for an outgoing migration (`x-deadline`), and what happens when it is over.
//!
//! A thread of its own keeps the time, as whoever moves bytes may just wait for a peer; it exists only where a deadline was set. The
//! time is that of `total-time`. It is for the way to the switchover: once the machine is given away nothing can be undone, so nothing is.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::parameters::DeadlineAction;
use super::session::Session;
use crate::{Error, ErrorKind};

/// Watches the deadline of one session.
#[derive(Debug, Default)]
pub(super) struct Deadline {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    due: Option<Due>,
    /// Why the migration was cancelled, if it was by this.
    reason: Option<Error>,
    ended: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Due {
    at: Instant,
    /// As it was set.
    milliseconds: u64,
    action: DeadlineAction,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is due, when it is; none at the end.
    fn wait(&self) -> Option<Due> {
        let mut state = self.state();
        loop {
            if state.ended {
                return None;
            }
            let left = state.due.map(|due| due.at.saturating_duration_since(Instant::now()));
            state = match left {
                Some(Duration::ZERO) => return state.due.take(),
                Some(left) => self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0,
                None => self.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
            };
        }
    }

    fn watch(&self, session: &Weak<Session>) {
        while let Some(due) = self.wait() {
            let Some(session) = session.upgrade() else { return };
            session.overdue(due);
        }
    }
}

impl Deadline {
    /// Nothing is watched any more; returns when the thread has ended.
    pub fn end(&self) {
        self.shared.state().ended = true;
        self.shared.changed.notify_all();
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread.filter(|thread| thread.thread().id() != std::thread::current().id()) {
            let _ = thread.join();
        }
    }

    fn set(&self, due: Option<Due>, session: Weak<Session>) {
        let mut thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner);
        {
            let mut state = self.shared.state();
            if state.ended {
                return;
            }
            state.due = due;
        }
        if due.is_some() && thread.is_none() {
            let shared = Arc::clone(&self.shared);
            match std::thread::Builder::new().name("deadline".into()).spawn(move || shared.watch(&session)) {
                Ok(started) => *thread = Some(started),
                Err(error) => tracing::error!(%error, "no thread to keep the deadline: the migration may take longer"),
            }
        }
        self.shared.changed.notify_all();
    }
}

impl Drop for Deadline {
    fn drop(&mut self) {
        self.end();
    }
}

impl Session {
    /// Keeps the deadline that the parameters name now, instead of any before. One that has passed already is acted on at once. A
    /// snapshot has none.
    pub(super) fn watch_deadline(self: &Arc<Self>) {
        if self.stays() {
            return;
        }
        let parameters = self.hub.parameters();
        let at = self.began().checked_add(Duration::from_millis(parameters.deadline)).filter(|_| parameters.deadline > 0);
        let due = at.map(|at| Due { at, milliseconds: parameters.deadline, action: parameters.deadline_action });
        self.deadline.set(due, Arc::downgrade(self));
    }

    /// Why the deadline has cancelled this migration; none if it has not.
    pub fn deadline_reason(&self) -> Option<Error> {
        self.deadline.shared.state().reason.clone()
    }

    /// The time is over. Without the capability there is no postcopy to switch to, and the migration is cancelled.
    fn overdue(&self, due: Due) {
        if !self.owned() || self.status().is_final() {
            return;
        }
        tracing::info!("x-deadline: {} ms are over ({:?})", due.milliseconds, due.action);
        match due.action {
            DeadlineAction::Force => self.want_switchover(),
            DeadlineAction::Postcopy if self.hub.capability("postcopy-ram") => self.want_postcopy(),
            DeadlineAction::Cancel | DeadlineAction::Postcopy => {
                let text = format!("the migration was cancelled: it took longer than the {} ms of `x-deadline`", due.milliseconds);
                self.deadline.shared.state().reason.get_or_insert(Error::new(ErrorKind::Cancelled, text));
                if !self.request_cancel() {
                    self.deadline.shared.state().reason = None;
                }
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::control::{Control, Parameters, Status};

    /// Long enough for any machine.
    const SOON: Duration = Duration::from_secs(20);

    fn within(milliseconds: u64, action: DeadlineAction) -> Parameters {
        Parameters { deadline: milliseconds, deadline_action: action, ..Parameters::default() }
    }

    fn begun(milliseconds: u64, action: DeadlineAction) -> (Control, Arc<Session>) {
        let control = Control::new(None);
        control.set_capabilities(["postcopy-ram".to_owned()]);
        control.set_parameters(within(milliseconds, action));
        let session = control.begin_outgoing().unwrap();
        (control, session)
    }

    #[test]
    fn each_action_at_its_time() {
        let (_control, session) = begun(1, DeadlineAction::Cancel);
        assert!(session.cancel.wait(SOON));
        assert!(session.why_cancelled().message.contains("the 1 ms of `x-deadline`"));
        assert_eq!(session.finish(), Status::Cancelled);

        let (_control, session) = begun(1, DeadlineAction::Postcopy);
        assert!(session.hurry().wait(SOON));
        assert!(session.postcopy_wanted() && !session.switchover_wanted() && !session.cancel.is_set());

        let (_control, session) = begun(1, DeadlineAction::Force);
        assert!(session.hurry().wait(SOON));
        assert!(session.switchover_wanted() && !session.postcopy_wanted() && !session.cancel.is_set());
    }

    #[test]
    fn without_postcopy_it_is_cancelled() {
        let control = Control::new(None);
        control.set_parameters(within(1, DeadlineAction::Postcopy));
        let session = control.begin_outgoing().unwrap();
        assert!(session.cancel.wait(SOON));
        assert_eq!(session.finish(), Status::Cancelled);
    }

    #[test]
    fn it_can_be_set_put_off_and_taken_away_on_the_way() {
        let (control, session) = begun(0, DeadlineAction::Cancel);
        assert!(session.deadline.thread.lock().unwrap().is_none(), "nothing to watch, nobody who watches");
        control.set_parameters(within(3_600_000, DeadlineAction::Cancel));
        assert_eq!(session.deadline.shared.state().due.unwrap().milliseconds, 3_600_000);
        control.set_parameters(within(0, DeadlineAction::Cancel));
        assert_eq!(session.deadline.shared.state().due, None);
        control.set_parameters(within(u64::MAX, DeadlineAction::Cancel));
        assert!(!session.cancel.is_set());
        // That time is over already.
        control.set_parameters(within(1, DeadlineAction::Cancel));
        assert!(session.cancel.wait(SOON));
    }

    #[test]
    fn the_end_of_a_migration_is_the_end_of_its_deadline() {
        let (control, session) = begun(3_600_000, DeadlineAction::Cancel);
        assert!(control.cancel());
        assert_eq!(session.finish(), Status::Cancelled);
        assert_eq!(session.why_cancelled().message, "cancelled", "not by the deadline");
        control.set_parameters(within(1, DeadlineAction::Cancel));
        assert_eq!(
            (session.deadline.shared.state().due.map(|due| due.milliseconds), session.status()),
            (Some(3_600_000), Status::Cancelled)
        );
        // One that was never finished leaves no thread either: this would wait for it.
        let (control, session) = begun(3_600_000, DeadlineAction::Cancel);
        drop((control, session));
    }

    #[test]
    fn a_snapshot_has_none() {
        let control = Control::new(None);
        control.set_parameters(within(3_600_000, DeadlineAction::Cancel));
        let session = control.begin_snapshot().unwrap();
        control.set_parameters(within(1, DeadlineAction::Cancel));
        assert_eq!(session.deadline.shared.state().due, None);
        session.finish();
    }

    #[test]
    fn what_was_given_away_has_no_deadline_any_more() {
        let (_control, session) = begun(0, DeadlineAction::Cancel);
        assert!(session.commit());
        for action in [DeadlineAction::Cancel, DeadlineAction::Postcopy, DeadlineAction::Force] {
            session.overdue(Due { at: Instant::now(), milliseconds: 1, action });
        }
        assert!(!session.hurry().is_set() && !session.cancel.is_set());
        assert_eq!((session.status(), session.deadline_reason()), (Status::Setup, None));
    }
}
