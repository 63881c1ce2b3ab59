//! One thread that touches the pages of a block in a seeded order, and what each touch cost it.
//!
//! The latency of a fault as a vCPU sees it: from before the touch to after it, in the touching thread. Which touch was a fault shows by
//! its time alone: no page comes from elsewhere within [`FAULT`], and no page that is there takes longer (but for an interrupt).

use std::str::FromStr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::postcopy::histogram::Histogram;
use crate::ram::{Block, TARGET_PAGE};
use crate::{Error, ErrorKind, Result};

/// A touch that took longer waited for its page.
const FAULT: Duration = Duration::from_micros(2);
/// Draws of `zipf` for each page, after which most pages that are ever drawn were.
const ZIPF_DRAWS: u64 = 8;

/// Which page comes next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// Each once, ascending.
    Seq,
    /// Each once, shuffled.
    Random,
    /// Few often and many rarely, as the model guest's: the page of rank `k` about `1/k` as often as that of rank 1. Ranks are shuffled.
    Zipf,
}

impl FromStr for Order {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "seq" => Ok(Self::Seq),
            "random" => Ok(Self::Random),
            "zipf" => Ok(Self::Zipf),
            _ => Err(Error::new(ErrorKind::InvalidArgument, format!("order {text:?} is unknown; there are seq, random and zipf"))),
        }
    }
}

/// The pages in the order in which they are touched. The same seed gives the same order on every host.
#[derive(Debug)]
pub struct Touches {
    order: Order,
    shuffled: Vec<u32>,
    random: u64,
    left: u64,
    next: usize,
}

/// The next number of a random state (splitmix64).
fn draw(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (*state ^ (*state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// A number below `bound`.
fn below(state: &mut u64, bound: u64) -> usize {
    // The upper half of the product is below the bound.
    usize::try_from((u128::from(draw(state)) * u128::from(bound)) >> 64).unwrap_or(0)
}

impl Touches {
    /// The order of `pages` pages.
    pub fn new(order: Order, pages: u32, seed: u64) -> Self {
        let mut random = seed;
        let mut shuffled: Vec<u32> = (0..pages).collect();
        if order != Order::Seq {
            for last in (1..shuffled.len()).rev() {
                let other = below(&mut random, last as u64 + 1);
                shuffled.swap(last, other);
            }
        }
        let left = u64::from(pages) * if order == Order::Zipf { ZIPF_DRAWS } else { 1 };
        Self { order, shuffled, random, left, next: 0 }
    }
}

impl Iterator for Touches {
    type Item = u32;

    fn next(&mut self) -> Option<u32> {
        self.left = self.left.checked_sub(1)?;
        let at = match self.order {
            Order::Seq | Order::Random => self.next,
            Order::Zipf => {
                // All octaves of the rank equally often, and all ranks within one: 1/k in steps.
                let pages = self.shuffled.len() as u64;
                let octave = below(&mut self.random, u64::from(u64::BITS - pages.leading_zeros()));
                let first = (1_u64 << octave) - 1;
                usize::try_from(first).unwrap_or(0) + below(&mut self.random, (first + 1).min(pages - first))
            }
        };
        self.next += 1;
        self.shuffled.get(at).copied()
    }
}

/// Every byte of a target page of an experiment.
fn content(page: u64) -> u8 {
    (page % 251).to_le_bytes()[0] + 1
}

/// Gives the block the content by which a toucher knows its pages: no page is zero, and none like its neighbours.
pub fn fill(block: &Block) -> Result<()> {
    (0..block.pages()).try_for_each(|page| block.fill((page * TARGET_PAGE) as u64, TARGET_PAGE, content(page as u64)))
}

/// Counts of one toucher, readable while it runs.
#[derive(Debug)]
struct Counts {
    stop: AtomicBool,
    touches: AtomicU64,
    wrong: AtomicU64,
    faults: Histogram,
}

/// The thread's life: none yet, running, over with its length.
#[derive(Debug, Default)]
struct State {
    thread: Option<JoinHandle<()>>,
    seconds: Option<f64>,
}

/// A thread that touches a block.
#[derive(Debug)]
pub struct Toucher {
    block: Arc<Block>,
    order: Order,
    seed: u64,
    page: u64,
    pages: u32,
    write: bool,
    faults: u64,
    counts: Arc<Counts>,
    state: Arc<(Mutex<State>, Condvar)>,
}

impl Toucher {
    /// A toucher that has not begun.
    ///
    /// It reads a word at the start of every `page` bytes, or writes the second one, and compares the first with what [`fill`] put
    /// there. It ends when every page was touched, or after `faults` faults (0: no limit).
    pub fn new(block: Arc<Block>, order: Order, seed: u64, page: u64, write: bool, faults: u64) -> Result<Self> {
        let bad = |text: String| Error::new(ErrorKind::InvalidArgument, text);
        if page == 0 || !page.is_multiple_of(TARGET_PAGE as u64) {
            return Err(bad(format!("pages of {page} bytes cannot be touched: a multiple of {TARGET_PAGE} is wanted")));
        }
        let pages =
            u32::try_from(block.used_length() / page).map_err(|_| bad(format!("{} bytes are too many to touch", block.used_length())))?;
        if pages == 0 {
            return Err(bad(format!("block {:?} has no page of {page} bytes", block.name())));
        }
        let counts =
            Counts { stop: AtomicBool::new(false), touches: AtomicU64::new(0), wrong: AtomicU64::new(0), faults: Histogram::new() };
        Ok(Self { block, order, seed, page, pages, write, faults, counts: Arc::new(counts), state: Arc::default() })
    }

    /// The pages in the order in which they are touched.
    pub fn touches(&self) -> Touches {
        Touches::new(self.order, self.pages, self.seed)
    }

    /// Begins. Nothing if it has begun already: what was touched once is not touched again.
    pub fn start(&self) -> Result<()> {
        // Made before the thread, so that its first touch comes at once.
        let touches = self.touches();
        let mut state = self.lock();
        if state.thread.is_some() || state.seconds.is_some() {
            return Ok(());
        }
        let (block, counts, shared) = (Arc::clone(&self.block), Arc::clone(&self.counts), Arc::clone(&self.state));
        let (page, write, faults) = (self.page, self.write, self.faults);
        let life = move || {
            let begun = Instant::now();
            run(&block, touches, page, write, faults, &counts);
            shared.0.lock().unwrap_or_else(PoisonError::into_inner).seconds = Some(begun.elapsed().as_secs_f64());
            shared.1.notify_all();
        };
        let thread = std::thread::Builder::new().name("toucher".into()).spawn(life);
        state.thread = Some(thread.map_err(|error| Error::io("starting the thread that touches memory", error))?);
        Ok(())
    }

    /// Ends it after the present touch, and returns then.
    pub fn stop(&self) {
        self.counts.stop.store(true, Ordering::Relaxed);
        let thread = self.lock().thread.take();
        if let Some(thread) = thread {
            let _ = thread.join();
        }
    }

    /// Waits for the end; false if it has not come within `timeout` (none: for ever).
    pub fn wait(&self, timeout: Option<Duration>) -> bool {
        let unfinished = |state: &mut State| state.seconds.is_none();
        match timeout {
            None => {
                drop(self.state.1.wait_while(self.lock(), unfinished));
                true
            }
            Some(timeout) => {
                let waited = self.state.1.wait_timeout_while(self.lock(), timeout, unfinished);
                !waited.unwrap_or_else(PoisonError::into_inner).1.timed_out()
            }
        }
    }

    /// So far: `touches`, `wrong` (pages with another content than `fill` gives), `seconds` (null until the end) and the latency of
    /// `faults` as other phases have it.
    pub fn record(&self) -> Value {
        json!({
            "touches": self.counts.touches.load(Ordering::Relaxed),
            "wrong": self.counts.wrong.load(Ordering::Relaxed),
            "seconds": self.lock().seconds,
            "faults": self.counts.faults.snapshot().record(),
        })
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Toucher {
    fn drop(&mut self) {
        // Not waited for: the thread may stand in a missing page. It holds the block, and ends when it gets out.
        self.counts.stop.store(true, Ordering::Relaxed);
    }
}

fn run(block: &Block, touches: Touches, page: u64, write: bool, wanted: u64, counts: &Counts) {
    let memory = block.view();
    let mut faults = 0;
    for touched in touches {
        if counts.stop.load(Ordering::Relaxed) || (wanted != 0 && faults == wanted) {
            return;
        }
        let offset = u64::from(touched) * page;
        let begun = Instant::now();
        let first = if write {
            memory.store_u64(offset + 8, offset);
            None
        } else {
            Some(memory.load_u64(offset))
        };
        let took = begun.elapsed();
        counts.touches.fetch_add(1, Ordering::Relaxed);
        if took > FAULT {
            faults += 1;
            counts.faults.add(u64::try_from(took.as_nanos()).unwrap_or(u64::MAX));
        }
        if write && block.wants_marks() {
            // The offset was just written, so it is inside the block.
            let _ = block.mark_dirty(offset + 8, 8);
        }
        if first.unwrap_or_else(|| memory.load_u64(offset)) != u64::from_ne_bytes([content(offset / TARGET_PAGE as u64); 8]) {
            counts.wrong.fetch_add(1, Ordering::Relaxed);
        }
    }
}
