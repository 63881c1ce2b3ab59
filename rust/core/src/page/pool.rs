//! Threads that compress or decompress pages for one owner, asleep when there is nothing to do.
//!
//! ```text
//! owner: room, put, put, ... ──queue──► workers ──done──► owner: taken, give_back
//! ```
//!
//! Pages go round in batches that are made once: handing one over costs about as much as compressing half a page. There are two for each
//! worker and one that is being filled, so a queue is never longer than that, and nothing is allocated for a page. Batches come back in the
//! order in which they are done.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};

use super::inflate::{PageDeflate, PageInflate};
use crate::room::zeroed;
use crate::wire::consts::PAGE_BYTES;
use crate::wire::limits::COMPRESSED_PAGE_MAX;
use crate::{Error, ErrorKind, Result};

/// Pages of a batch: so that handing it over is cheap beside the work, and all workers have some soon.
const BATCH: usize = 8;
/// Room for one compressed page.
const ROOM: usize = COMPRESSED_PAGE_MAX as usize;
/// A stream that is longer saves nothing: with its length the record would be as long as the page.
const WORTH: usize = PAGE_BYTES - 4;

/// One page of a batch that was worked on.
#[derive(Debug)]
pub enum Taken<'a> {
    /// Compressed to this stream.
    Packed(&'a [u8]),
    /// The page: decompressed, or one that does not shrink.
    Page(&'a [u8]),
    /// It did not decompress.
    Bad(Error),
}

/// How one page of a batch ended.
#[derive(Debug)]
enum Outcome {
    Packed(usize),
    Page,
    Bad(Error),
}

/// A few pages, each with its owner's word for it.
#[derive(Debug)]
pub struct Batch<T> {
    /// What the owner calls each page, and how long its stream is.
    pages: Vec<(T, usize)>,
    outcomes: Vec<Outcome>,
    plain: Box<[u8]>,
    packed: Box<[u8]>,
}

impl<T: Copy> Batch<T> {
    fn new() -> Result<Self> {
        let room = |bytes: usize| zeroed(BATCH * bytes, "a buffer of compressed pages").map(Vec::into_boxed_slice);
        let (pages, outcomes) = (Vec::with_capacity(BATCH), Vec::with_capacity(BATCH));
        Ok(Self { pages, outcomes, plain: room(PAGE_BYTES)?, packed: room(ROOM)? })
    }

    /// The pages with their owner's words, in the order in which they were put.
    pub fn pages(&self) -> impl Iterator<Item = (T, Taken<'_>)> {
        let rooms = self.plain.chunks_exact(PAGE_BYTES).zip(self.packed.chunks_exact(ROOM));
        self.pages.iter().zip(&self.outcomes).zip(rooms).map(|(((word, _), outcome), (plain, packed))| {
            let taken = match outcome {
                Outcome::Packed(length) => Taken::Packed(&packed[..*length]),
                Outcome::Page => Taken::Page(plain),
                Outcome::Bad(error) => Taken::Bad(error.clone()),
            };
            (*word, taken)
        })
    }
}

/// What a worker does.
#[derive(Debug)]
enum Tool {
    Deflate(PageDeflate),
    Inflate(PageInflate),
}

impl Tool {
    fn work<T>(&mut self, batch: &mut Batch<T>) {
        let rooms = batch.plain.chunks_exact_mut(PAGE_BYTES).zip(batch.packed.chunks_exact_mut(ROOM));
        batch.outcomes.extend(batch.pages.iter().zip(rooms).map(|((_, length), (plain, packed))| {
            let done = match self {
                Self::Deflate(deflate) => {
                    deflate.run(plain, &mut packed[..WORTH]).map(|length| length.map_or(Outcome::Page, Outcome::Packed))
                }
                Self::Inflate(inflate) => inflate.run_all(&packed[..*length], plain).map(|()| Outcome::Page),
            };
            done.unwrap_or_else(Outcome::Bad)
        }));
    }
}

#[derive(Debug)]
struct State<T> {
    queue: VecDeque<Batch<T>>,
    done: VecDeque<Batch<T>>,
    /// Workers that wait for a batch.
    asleep: usize,
    /// The owner waits for one that is done.
    awaited: bool,
    stop: bool,
    /// A worker has died, and its batch with it.
    broken: bool,
}

#[derive(Debug)]
struct Shared<T> {
    state: Mutex<State<T>>,
    work: Condvar,
    over: Condvar,
}

impl<T: Copy> Shared<T> {
    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn worker(&self, mut tool: Tool) {
        let alive = Alive(self);
        let mut state = self.lock();
        while !state.stop {
            let Some(mut batch) = state.queue.pop_front() else {
                state.asleep += 1;
                state = self.work.wait(state).unwrap_or_else(PoisonError::into_inner);
                state.asleep -= 1;
                continue;
            };
            drop(state);
            tool.work(&mut batch);
            state = self.lock();
            state.done.push_back(batch);
            if std::mem::take(&mut state.awaited) {
                self.over.notify_one();
            }
        }
        drop(state);
        std::mem::forget(alive);
    }
}

/// A worker that panics says so: its owner would wait for ever.
struct Alive<'a, T: Copy>(&'a Shared<T>);

impl<T: Copy> Drop for Alive<'_, T> {
    fn drop(&mut self) {
        self.0.lock().broken = true;
        self.0.over.notify_one();
    }
}

/// The workers, and the batches that are with none of them.
#[derive(Debug)]
pub struct Pool<T> {
    shared: Arc<Shared<T>>,
    threads: Vec<JoinHandle<()>>,
    idle: Vec<Batch<T>>,
    filling: Option<Batch<T>>,
    /// Batches that were handed over and are not back.
    away: usize,
}

impl<T: Copy + Send + 'static> Pool<T> {
    /// `threads` workers that compress at `level`, which zlib must have (0 to 9).
    pub fn deflate(threads: usize, level: i32) -> Result<Self> {
        Self::start(threads, "qmig-deflate", || PageDeflate::new(level).map(Tool::Deflate))
    }

    /// `threads` workers that decompress.
    pub fn inflate(threads: usize) -> Result<Self> {
        Self::start(threads, "qmig-inflate", || Ok(Tool::Inflate(PageInflate::default())))
    }

    fn start(threads: usize, name: &str, tool: impl Fn() -> Result<Tool>) -> Result<Self> {
        let batches = 2 * threads + 1;
        let queue = || VecDeque::with_capacity(batches);
        let state = State { queue: queue(), done: queue(), asleep: 0, awaited: false, stop: false, broken: false };
        let shared = Arc::new(Shared { state: Mutex::new(state), work: Condvar::new(), over: Condvar::new() });
        let idle = (0..batches).map(|_| Batch::new()).collect::<Result<_>>()?;
        let mut pool = Self { shared, threads: Vec::with_capacity(threads), idle, filling: None, away: 0 };
        for _ in 0..threads {
            let (shared, tool) = (Arc::clone(&pool.shared), tool()?);
            let started = thread::Builder::new().name(name.into()).spawn(move || shared.worker(tool));
            pool.threads.push(started.map_err(|e| Error::io("starting a thread for compressed pages", e))?);
        }
        Ok(pool)
    }

    /// A batch is being filled: there is room for a page.
    pub fn is_filling(&self) -> bool {
        self.filling.is_some()
    }

    /// Is there room for a page? If not, some [`Self::taken`] batch must be given back first.
    pub fn room(&mut self) -> bool {
        self.filling = self.filling.take().or_else(|| self.idle.pop());
        self.filling.is_some()
    }

    /// Put a page to be compressed, which `fill` writes; `word` comes back with it. Only where there is room.
    pub fn put_page<R>(&mut self, word: T, fill: impl FnOnce(&mut [u8]) -> Result<R>) -> Result<()> {
        let batch = self.open();
        let at = batch.pages.len() * PAGE_BYTES;
        fill(&mut batch.plain[at..at + PAGE_BYTES])?;
        batch.pages.push((word, 0));
        self.hand_over_if(|pages| pages == BATCH);
        Ok(())
    }

    /// Put a stream to be decompressed, at most `COMPRESSED_PAGE_MAX` bytes. Only where there is room.
    pub fn put_packed(&mut self, word: T, bytes: &[u8]) {
        let batch = self.open();
        let at = batch.pages.len() * ROOM;
        batch.packed[at..at + bytes.len()].copy_from_slice(bytes);
        batch.pages.push((word, bytes.len()));
        self.hand_over_if(|pages| pages == BATCH);
    }

    /// Hand over what was put, though the batch is not full.
    pub fn flush(&mut self) {
        self.hand_over_if(|pages| pages > 0);
    }

    /// A batch that is done. None if there is none; with `wait` only if none is away.
    pub fn taken(&mut self, wait: bool) -> Result<Option<Batch<T>>> {
        if self.away == 0 {
            return Ok(None);
        }
        let mut state = self.shared.lock();
        loop {
            if let Some(batch) = state.done.pop_front() {
                self.away -= 1;
                return Ok(Some(batch));
            }
            if state.broken {
                return Err(Error::new(ErrorKind::InvalidState, "a thread that compresses or decompresses pages has died"));
            }
            if !wait {
                return Ok(None);
            }
            state.awaited = true;
            state = self.shared.over.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// The owner has what it wanted of a batch.
    pub fn give_back(&mut self, mut batch: Batch<T>) {
        batch.pages.clear();
        batch.outcomes.clear();
        self.idle.push(batch);
    }

    /// As if all workers had died; for tests of those who use them.
    #[cfg(test)]
    pub(super) fn break_down(&mut self) {
        let mut state = self.shared.lock();
        (state.stop, state.broken) = (true, true);
        drop(state);
        self.shared.work.notify_all();
        self.threads.drain(..).for_each(|thread| thread.join().expect("a worker has panicked"));
    }

    fn open(&mut self) -> &mut Batch<T> {
        self.filling.as_mut().expect("a page was put where there was no room")
    }

    fn hand_over_if(&mut self, due: impl FnOnce(usize) -> bool) {
        if let Some(batch) = self.filling.take_if(|batch| due(batch.pages.len())) {
            self.away += 1;
            let mut state = self.shared.lock();
            state.queue.push_back(batch);
            if state.asleep > 0 {
                self.shared.work.notify_one();
            }
        }
    }
}

impl<T> Drop for Pool<T> {
    fn drop(&mut self) {
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner).stop = true;
        self.shared.work.notify_all();
        for thread in self.threads.drain(..) {
            // One that has panicked has said so.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;

    fn until(what: &str, condition: impl Fn() -> bool) {
        let end = Instant::now() + Duration::from_secs(60);
        while !condition() {
            assert!(Instant::now() < end, "waited too long: {what}");
            thread::yield_now();
        }
    }

    fn put(pool: &mut Pool<usize>, word: usize, fill: u8) {
        let filled = pool.put_page(word, |room| {
            room.fill(fill);
            Ok(())
        });
        filled.unwrap();
    }

    #[test]
    fn workers_sleep_when_there_is_nothing_to_do() {
        let mut pool = Pool::deflate(5, 1).unwrap();
        for round in 0..3 {
            until("all of them to sleep", || pool.shared.lock().asleep == 5);
            for page in 0..100 {
                while !pool.room() {
                    let batch = pool.taken(true).unwrap().unwrap();
                    pool.give_back(batch);
                }
                put(&mut pool, page, round);
            }
            pool.flush();
            while let Some(batch) = pool.taken(true).unwrap() {
                pool.give_back(batch);
            }
        }
        // One that is dropped in the middle of its work ends, too.
        assert!(pool.room());
        put(&mut pool, 0, 1);
        pool.flush();
    }

    #[test]
    fn a_worker_that_dies_is_not_waited_for() {
        let mut pool = Pool::inflate(2).unwrap();
        for _ in 0..2 {
            assert!(pool.room());
            // No record is as long: our own mistake.
            pool.open().pages.push(((), ROOM + 1));
            pool.flush();
        }
        let error = pool.taken(true).unwrap_err();
        assert_eq!(error.kind, ErrorKind::InvalidState, "{error}");
        assert!(pool.taken(false).is_err());
    }
}
