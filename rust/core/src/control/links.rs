//! Connections that can be lost and found again: the switch of the present one, and the mailbox for what opens the next.
//!
//! Whoever moves bytes waits here, without Python; a monitor posts, cuts and replaces from its own thread and never waits for the
//! peer. What is posted last counts: an earlier one that is still being opened is given up.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};

use crate::channel::{Cancel, Registration};
use crate::{Error, ErrorKind, Result};

/// The connections of one side of one migration; `T` opens the next one.
#[derive(Debug)]
pub struct Links<T> {
    whole: Cancel,
    state: Mutex<State<T>>,
    changed: Condvar,
    _waker: Registration,
}

#[derive(Debug)]
struct State<T> {
    present: Option<Switch>,
    next: Option<T>,
    /// What was posted has been taken and is being opened with the present switch.
    opening: bool,
}

/// The switch of one connection; it is set with the switch of the whole migration, too.
#[derive(Debug)]
struct Switch {
    cancel: Cancel,
    _with_whole: Registration,
}

impl Switch {
    fn new(whole: &Cancel) -> Result<Self> {
        let cancel = Cancel::new()?;
        let set = cancel.clone();
        Ok(Self { cancel, _with_whole: whole.register(Box::new(move || set.set())) })
    }
}

impl<T: Send + 'static> Links<T> {
    /// No connection yet; all ends when `whole` is set.
    pub fn new(whole: &Cancel) -> Arc<Self> {
        Arc::new_cyclic(|this: &Weak<Self>| {
            let this = this.clone();
            let waker = whole.register(Box::new(move || {
                if let Some(links) = this.upgrade() {
                    let _order = links.lock(); // whoever has looked already waits by now
                    links.changed.notify_all();
                }
            }));
            let state = Mutex::new(State { present: None, next: None, opening: false });
            Self { whole: whole.clone(), state, changed: Condvar::new(), _waker: waker }
        })
    }

    /// The switch of the present connection, all its channels; made if there is none.
    pub fn switch(&self) -> Result<Cancel> {
        let mut state = self.lock();
        if state.present.is_none() {
            state.present = Some(Switch::new(&self.whole)?);
        }
        Ok(state.present.as_ref().map_or_else(|| self.whole.clone(), |switch| switch.cancel.clone()))
    }

    /// Ends the present connection; one that is only being opened stays.
    pub fn cut(&self) {
        let state = self.lock();
        let present = if state.opening { None } else { state.present.as_ref().map(|switch| switch.cancel.clone()) };
        drop(state);
        present.iter().for_each(Cancel::set);
    }

    /// The present connection is lost: the same, and what was posted while it stood is forgotten. Called by who waits for the next.
    pub fn lose(&self) {
        let former = self.lock().next.take();
        drop(former);
        self.cut();
    }

    /// What shall open the next connection, instead of anything posted before.
    pub fn post(&self, next: T) {
        let mut state = self.lock();
        let opening = if state.opening { state.present.as_ref().map(|switch| switch.cancel.clone()) } else { None };
        let former = state.next.replace(next);
        drop(state);
        drop(former);
        if let Some(opening) = opening {
            opening.set();
        }
        self.changed.notify_all();
    }

    /// Takes back what was posted and is not connected yet; returns when nobody holds it any more.
    pub fn withdraw(&self) {
        let mut state = self.lock();
        let former = state.next.take();
        if state.opening
            && let Some(switch) = &state.present
        {
            let opening = switch.cancel.clone();
            drop(state);
            opening.set();
            state = self.lock();
        }
        while state.opening && state.next.is_none() {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        drop(state);
        drop(former);
    }

    /// Waits for something posted and opens it with the switch of a new connection; what cannot be opened is told to `refused`, and
    /// the waiting goes on. Fails as `cancelled` when the whole migration ends.
    pub fn wait<C>(&self, mut open: impl FnMut(T, &Cancel) -> Result<C>, mut refused: impl FnMut(Error)) -> Result<C> {
        loop {
            let (next, switch) = self.take()?;
            let opened = open(next, &switch);
            let mut state = self.lock();
            state.opening = false;
            let replaced = state.next.is_some();
            drop(state);
            self.changed.notify_all();
            match opened {
                Ok(channel) => return Ok(channel),
                Err(_) if self.whole.is_set() => return Err(cancelled()),
                Err(_) if replaced || switch.is_set() => {}
                Err(error) => refused(error),
            }
        }
    }

    fn take(&self) -> Result<(T, Cancel)> {
        let mut state = self.lock();
        loop {
            if self.whole.is_set() {
                return Err(cancelled());
            }
            if state.next.is_some() {
                let switch = Switch::new(&self.whole)?;
                let cancel = switch.cancel.clone();
                let former = state.present.replace(switch);
                state.opening = true;
                let next = state.next.take();
                drop(state);
                drop(former);
                if let Some(next) = next {
                    return Ok((next, cancel));
                }
                state = self.lock();
            } else {
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn cancelled() -> Error {
    Error::new(ErrorKind::Cancelled, "cancelled")
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    /// Opens what is odd; with anything else waits until it is given up.
    fn open(next: u32, switch: &Cancel, taken: &mpsc::Sender<u32>) -> Result<u32> {
        taken.send(next).unwrap();
        if next % 2 == 1 {
            return Ok(next);
        }
        assert!(switch.wait(std::time::Duration::from_secs(60)));
        Err(cancelled())
    }

    #[allow(clippy::needless_pass_by_value)] // the shape that is wanted
    fn unexpected(error: Error) {
        panic!("{error}");
    }

    #[test]
    fn the_last_one_posted_counts() {
        let whole = Cancel::new().unwrap();
        let links = Links::new(&whole);
        let (taken, waiting) = mpsc::channel();
        std::thread::scope(|scope| {
            let found = scope.spawn(|| links.wait(|next, switch| open(next, switch, &taken), unexpected));
            for next in [2, 4] {
                links.post(next);
                assert_eq!(waiting.recv().unwrap(), next);
            }
            links.cut(); // does not touch what is being opened
            links.withdraw();
            links.post(5);
            assert_eq!(found.join().unwrap().unwrap(), 5);
        });
        let switch = links.switch().unwrap();
        assert!(!switch.is_set());
        links.post(7);
        assert!(!switch.is_set(), "what stands is not touched");
        links.lose();
        assert!(switch.is_set());
        links.post(9);
        assert_eq!(
            links.wait(|next, switch| open(next, switch, &taken), unexpected).unwrap(),
            9,
            "7 was forgotten with the link it came too late for"
        );
    }

    #[test]
    fn the_end_of_the_whole_ends_every_wait() {
        for post in [false, true] {
            let whole = Cancel::new().unwrap();
            let links = Links::new(&whole);
            let (taken, waiting) = mpsc::channel();
            std::thread::scope(|scope| {
                let found = scope.spawn(|| links.wait(|next, switch| open(next, switch, &taken), unexpected));
                if post {
                    links.post(2);
                    waiting.recv().unwrap();
                }
                whole.set();
                assert_eq!(found.join().unwrap().unwrap_err().kind, ErrorKind::Cancelled);
            });
            assert!(links.switch().unwrap().is_set());
        }
    }

    #[test]
    fn what_cannot_be_opened_is_told_and_the_waiting_goes_on() {
        let links = Links::new(&Cancel::new().unwrap());
        let mut told = Vec::new();
        links.post(1);
        let opened = links.wait(
            |next, _| {
                links.post(next + 1);
                if next < 3 { Err(Error::new(ErrorKind::Connect, next.to_string())) } else { Ok(next) }
            },
            |error| told.push(error.message),
        );
        assert_eq!((opened.unwrap(), told.len()), (3, 0), "replaced ones are nobody's business");
        links.lose();
        links.post(1);
        let mut tries = 0;
        let opened = links.wait(
            |_, _| {
                tries += 1;
                if tries == 1 { Err(Error::new(ErrorKind::Connect, "refused")) } else { Ok(()) }
            },
            |error| {
                told.push(error.message);
                links.post(2);
            },
        );
        assert_eq!((opened, told), (Ok(()), vec!["refused".to_owned()]));
    }
}
