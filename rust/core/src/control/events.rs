//! The event bus: what happens is told to every subscriber in the order in which it happened.
//!
//! The emitter never waits: each subscriber has a bounded queue, and one that does not read loses its oldest events, counted.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant, SystemTime};

use serde_json::Value;

/// How many events wait for one subscriber. A migration makes some ten events a second; this is minutes of not reading.
pub const QUEUE_LIMIT: usize = 4096;

/// One QMP event.
#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    /// Name, e.g. `MIGRATION`.
    pub name: String,
    /// Its data object, if the event has any.
    pub data: Option<Value>,
    /// Wall clock at the moment of emission.
    pub time: SystemTime,
}

/// Called after an event was queued; must not block.
pub type Waker = Box<dyn Fn() + Send + Sync>;

#[derive(Default)]
struct State {
    waiting: VecDeque<Arc<Event>>,
    lost: u64,
    closed: bool,
}

struct Queue {
    state: Mutex<State>,
    changed: Condvar,
    waker: Option<Waker>,
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Where events are emitted.
#[derive(Default)]
pub struct Bus {
    queues: Mutex<Vec<Weak<Queue>>>,
}

impl Bus {
    /// Sends an event to everybody who subscribed before.
    pub fn emit(&self, name: &str, data: Option<Value>) {
        // The time is taken under the lock, so that it grows in the order of the events.
        let mut queues = self.queues.lock().unwrap_or_else(PoisonError::into_inner);
        let event = Arc::new(Event { name: name.to_owned(), data, time: SystemTime::now() });
        queues.retain(|queue| {
            let Some(queue) = queue.upgrade() else { return false };
            let mut state = queue.lock();
            if state.waiting.len() == QUEUE_LIMIT {
                state.waiting.pop_front();
                state.lost += 1;
            }
            state.waiting.push_back(event.clone());
            drop(state);
            queue.changed.notify_all();
            if let Some(wake) = &queue.waker {
                wake();
            }
            true
        });
    }

    /// Events from now on; `waker` is called after each.
    pub fn subscribe(&self, waker: Option<Waker>) -> Subscription {
        let queue = Arc::new(Queue { state: Mutex::default(), changed: Condvar::new(), waker });
        self.queues.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::downgrade(&queue));
        Subscription(queue)
    }
}

impl fmt::Debug for Bus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bus").finish_non_exhaustive()
    }
}

/// One subscriber's queue; dropping it ends the subscription.
pub struct Subscription(Arc<Queue>);

impl Subscription {
    /// The oldest event that waits; none if there is none now.
    pub fn try_next(&self) -> Option<Arc<Event>> {
        self.0.lock().waiting.pop_front()
    }

    /// The next event; none after `timeout` (for ever without one) or once the subscription is closed and read empty.
    pub fn next(&self, timeout: Option<Duration>) -> Option<Arc<Event>> {
        let end = timeout.and_then(|t| Instant::now().checked_add(t));
        let mut state = self.0.lock();
        loop {
            if let Some(event) = state.waiting.pop_front() {
                return Some(event);
            }
            if state.closed {
                return None;
            }
            state = match end {
                None => self.0.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
                Some(end) => {
                    let left = end.checked_duration_since(Instant::now())?;
                    self.0.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
    }

    /// How many events were dropped because this subscriber did not read.
    pub fn lost(&self) -> u64 {
        self.0.lock().lost
    }

    /// True once `close` was called.
    pub fn is_closed(&self) -> bool {
        self.0.lock().closed
    }

    /// Ends every `next` that waits; events that wait already can still be read.
    pub fn close(&self) {
        self.0.lock().closed = true;
        self.0.changed.notify_all();
    }
}

impl fmt::Debug for Subscription {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Subscription").field("lost", &self.lost()).finish_non_exhaustive()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn everyone_sees_the_same_order_and_rising_times() {
        let bus = Arc::new(Bus::default());
        let (a, b) = (bus.subscribe(None), bus.subscribe(None));
        let threads: Vec<_> = (0..4)
            .map(|t| {
                let bus = bus.clone();
                std::thread::spawn(move || (0..100).for_each(|i| bus.emit("E", Some(json!([t, i])))))
            })
            .collect();
        for thread in threads {
            thread.join().unwrap();
        }
        let read = |s: &Subscription| std::iter::from_fn(|| s.try_next()).collect::<Vec<_>>();
        let (a, b) = (read(&a), read(&b));
        assert_eq!(a.len(), 400);
        assert_eq!(a, b);
        assert!(a.windows(2).all(|w| w[0].time <= w[1].time));
    }

    #[test]
    fn a_subscriber_that_sleeps_loses_the_oldest() {
        let bus = Bus::default();
        let lazy = bus.subscribe(None);
        for i in 0..QUEUE_LIMIT + 3 {
            bus.emit("E", Some(json!(i)));
        }
        assert_eq!(lazy.lost(), 3);
        assert_eq!(lazy.try_next().unwrap().data, Some(json!(3)));
    }

    #[test]
    fn close_ends_a_wait_and_drop_ends_the_subscription() {
        let bus = Bus::default();
        let s = Arc::new(bus.subscribe(None));
        let waiter = {
            let s = s.clone();
            std::thread::spawn(move || s.next(None))
        };
        s.close();
        assert_eq!(waiter.join().unwrap(), None);
        drop(s);
        bus.emit("E", None);
        assert!(bus.queues.lock().unwrap().is_empty());
        assert_eq!(bus.subscribe(None).next(Some(Duration::from_millis(1))), None);
    }
}
