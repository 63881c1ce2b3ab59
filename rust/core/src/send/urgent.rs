//! Pages that a fault waits for.
//!
//! The return-path thread brings the requests. On one channel it queues them, and the background sender, which keeps little under
//! way, serves them before anything else. With a second channel it sends the page itself, at once. Either way a host page goes to
//! whoever claims it, and the search of the background goes on behind the page that was asked for: its neighbours are next.

use std::collections::{HashSet, VecDeque};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::records::Records;
use super::stream::Stream;
use super::unsent::{Place, Unsent};
use crate::wire::limits::REQUESTS_MAX;
use crate::{Error, ErrorKind, Result};

/// A request, as far as it is not served: target pages of a block.
type Request = (usize, Range<usize>);

#[derive(Debug, Default)]
struct Queue {
    waiting: VecDeque<Request>,
    /// What stands in the queue, so that nothing does twice.
    known: HashSet<Request>,
    /// Behind the last page that the second channel was asked for.
    moved: Option<Place>,
    closed: bool,
}

/// The requests of one connection.
#[derive(Debug)]
pub struct Urgent {
    unsent: Arc<Unsent>,
    queue: Mutex<Queue>,
    /// The queue holds something: asked between any two batches.
    any: AtomicBool,
    changed: Condvar,
    /// The background sleeps.
    resting: AtomicBool,
    second: Option<Mutex<(Stream, Records)>>,
    /// How long a peer may not read what it waits for.
    stall: Duration,
}

impl Urgent {
    /// Requests for pages of `unsent`, served over `second` if there is one, which the peer has to read within `stall`.
    pub fn new(unsent: Arc<Unsent>, second: Option<(Stream, Records)>, stall: Duration) -> Arc<Self> {
        let second = second.map(Mutex::new);
        Arc::new(Self {
            unsent,
            queue: Mutex::default(),
            any: AtomicBool::new(false),
            changed: Condvar::new(),
            resting: AtomicBool::new(false),
            second,
            stall,
        })
    }

    /// A request for target pages that lie inside block number `block`. Those that were sent before are passed over. True if
    /// the background rests: then nothing on its channel carries the acknowledgement of the request.
    pub fn request(&self, block: usize, pages: Range<usize>) -> Result<bool> {
        let behind = Place { block, page: pages.end };
        if let Some(second) = &self.second {
            let mut second = second.lock().unwrap_or_else(PoisonError::into_inner);
            let (stream, records) = &mut *second;
            stream.set_deadline(Instant::now() + self.stall);
            let mut sent = false;
            for page in pages {
                if let Some(claimed) = self.unsent.claim(block, page) {
                    records.put(stream, block, claimed)?;
                    sent = true;
                }
            }
            if sent {
                records.flush(stream)?;
                self.lock().moved = Some(behind);
                self.any.store(true, Ordering::Release);
            }
            return Ok(self.resting.load(Ordering::Relaxed));
        }
        let mut queue = self.lock();
        if !queue.known.insert((block, pages.clone())) {
            return Ok(false);
        }
        if queue.waiting.len() == REQUESTS_MAX {
            let text = format!("more than {REQUESTS_MAX} page requests at a time (REQUESTS_MAX)");
            return Err(Error::new(ErrorKind::LimitExceeded, text));
        }
        queue.waiting.push_back((block, pages));
        self.any.store(true, Ordering::Release);
        drop(queue);
        self.changed.notify_all();
        Ok(false)
    }

    /// Something may have been asked for.
    pub fn any(&self) -> bool {
        self.any.load(Ordering::Acquire)
    }

    /// The next host page that was asked for and is claimed herewith. `place` moves behind it, or behind what went over the second
    /// channel.
    pub fn next(&self, place: &mut Place) -> Option<(usize, Range<usize>)> {
        if !self.any() {
            return None;
        }
        let mut queue = self.lock();
        if let Some(moved) = queue.moved.take() {
            *place = moved;
        }
        while let Some((block, pages)) = queue.waiting.pop_front() {
            queue.known.remove(&(block, pages.clone()));
            for page in pages.clone() {
                if let Some(claimed) = self.unsent.claim(block, page) {
                    *place = Place { block, page: claimed.end };
                    if claimed.end < pages.end {
                        let rest = (block, claimed.end..pages.end);
                        queue.known.insert(rest.clone());
                        queue.waiting.push_front(rest);
                    }
                    return Some((block, claimed));
                }
            }
        }
        self.any.store(false, Ordering::Release);
        None
    }

    /// Sleep for `time`, or until something is asked for, or `close`.
    pub fn sleep(&self, time: Duration) {
        let queue = self.lock();
        let idle = |queue: &mut Queue| queue.waiting.is_empty() && !queue.closed;
        self.resting.store(true, Ordering::Relaxed);
        drop(self.changed.wait_timeout_while(queue, time, idle).unwrap_or_else(PoisonError::into_inner));
        self.resting.store(false, Ordering::Relaxed);
    }

    /// Nothing more will be asked for: ends the sleep, now and from now on. False if there still is something to send.
    pub fn close(&self) -> bool {
        self.lock().closed = true;
        self.changed.notify_all();
        self.unsent.left() == 0
    }

    /// What has been claimed for the second channel has been written to it; with `end` so is the word that ends it.
    pub fn settle(&self, end: Option<&[u8]>) -> Result<()> {
        let Some(second) = &self.second else { return Ok(()) };
        let mut second = second.lock().unwrap_or_else(PoisonError::into_inner);
        let (stream, _) = &mut *second;
        let Some(end) = end else { return Ok(()) };
        stream.set_deadline(Instant::now() + self.stall);
        stream.put(end)?;
        stream.flush()
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::ram::{Bitmap, Block};

    fn urgent(pages: usize) -> (Arc<Unsent>, Arc<Urgent>) {
        let block = Block::anon("ram", pages as u64 * 4096).unwrap();
        let unsent = Arc::new(Unsent::new(&[block], vec![Bitmap::full(pages)]));
        (Arc::clone(&unsent), Urgent::new(unsent, None, Duration::from_secs(60)))
    }

    #[test]
    fn first_come_first_served_and_nothing_twice() {
        let (unsent, urgent) = urgent(64);
        let mut place = Place::default();
        assert_eq!(urgent.next(&mut place), None);
        for pages in [7..8, 3..6, 7..8] {
            urgent.request(0, pages).unwrap();
        }
        unsent.claim(0, 4).unwrap();
        let served: Vec<_> = std::iter::from_fn(|| urgent.next(&mut place)).map(|(_, pages)| pages).collect();
        assert_eq!(served, [7..8, 3..4, 5..6]);
        assert_eq!(place, Place { block: 0, page: 6 });
        urgent.request(0, 7..8).unwrap();
        assert_eq!(urgent.next(&mut place), None, "sent already");
        assert_eq!(unsent.left(), 60);
    }

    #[test]
    fn the_queue_is_bounded() {
        let (_, urgent) = urgent(2);
        for last in 0..REQUESTS_MAX {
            urgent.request(0, 0..last + 1).unwrap();
        }
        assert!(!urgent.request(0, 0..1).unwrap(), "known already");
        assert_eq!(urgent.request(0, 1..2).unwrap_err().kind, ErrorKind::LimitExceeded);
    }

    #[test]
    fn a_request_and_the_end_wake_the_sleeper() {
        const LONG: Duration = Duration::from_secs(60);
        let (_, urgent) = urgent(2);
        let begun = Instant::now();
        std::thread::scope(|scope| {
            scope.spawn(|| urgent.sleep(LONG));
            urgent.request(0, 0..1).unwrap();
        });
        urgent.next(&mut Place::default()).unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| urgent.sleep(LONG));
            urgent.close();
        });
        assert!(begun.elapsed() < LONG);
    }
}
