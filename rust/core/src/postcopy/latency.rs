//! The record of faults: how long each phase took, and how long threads stood still.
//!
//! The moment in which a thread touched the page is unknown here; it is at most a thread switch before the fault thread wakes up,
//! where a record begins. Each page that is asked for has one of a fixed number of slots from then until it is placed. The fault
//! thread alone takes slots; whoever places the page gives it back. There is no lock and no allocation on that way, and anybody may
//! read the figures at any time.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Instant;

use serde_json::{Map, Value, json};

use super::histogram::{Histogram, Snapshot};

/// Faults that can be outstanding at once and still be recorded: one a thread that touches guest memory, with room.
const SLOTS: usize = 1024;
/// Slots that are tried for a page before its record is given up.
const PROBES: usize = 16;
/// Threads whose standing still is recorded: the first that ever wait. Those beyond are in the phases alone.
const THREADS: usize = 64;

/// The parts of a fault, in order; together they are `Total`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// From the fault thread's waking up until it held this fault.
    Read,
    /// From there until its request was the next to be sent.
    Request,
    /// From there until the first byte of the page was in hand.
    FirstByte,
    /// From there until the page was placed and its threads woken.
    Place,
    /// All of it.
    Total,
}

impl Phase {
    /// All of them, in order.
    pub const ALL: [Self; 5] = [Self::Read, Self::Request, Self::FirstByte, Self::Place, Self::Total];

    /// The name in JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Request => "request",
            Self::FirstByte => "first-byte",
            Self::Place => "place",
            Self::Total => "total",
        }
    }
}

/// One outstanding fault: its page and its moments so far.
#[derive(Debug, Default)]
struct Slot {
    /// 0: free.
    key: AtomicU64,
    woken: AtomicU64,
    read: AtomicU64,
    requested: AtomicU64,
}

/// A thread that was stopped at least once.
#[derive(Debug, Default)]
struct Thread {
    id: AtomicU32,
    /// The page that it waits for (0: it does not) and since when.
    key: AtomicU64,
    since: AtomicU64,
    total: AtomicU64,
}

/// The record. All moments are nanoseconds since it was made.
#[derive(Debug)]
pub struct Latency {
    epoch: Instant,
    slots: Box<[Slot]>,
    phases: [Histogram; Phase::ALL.len()],
    unrecorded: AtomicU64,
    threads: [Thread; THREADS],
    /// Threads that the machine's processors run on; 0: unknown, then those that were seen.
    cpus: AtomicU32,
    stopped: AtomicU32,
    all_since: AtomicU64,
    all_total: AtomicU64,
}

/// A page as a number that is not 0.
fn key(block: usize, page: usize) -> u64 {
    ((block as u64) << 48) + page as u64 + 1
}

/// Where the search for a slot begins.
fn place(key: u64) -> usize {
    // The upper bits of a product with an odd constant; neighbours end up apart.
    usize::try_from(key.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32).unwrap_or(0)
}

impl Default for Latency {
    fn default() -> Self {
        Self::new()
    }
}

impl Latency {
    /// An empty record.
    pub fn new() -> Self {
        Self {
            epoch: Instant::now(),
            slots: (0..SLOTS).map(|_| Slot::default()).collect(),
            phases: std::array::from_fn(|_| Histogram::new()),
            unrecorded: AtomicU64::new(0),
            threads: std::array::from_fn(|_| Thread::default()),
            cpus: AtomicU32::new(0),
            stopped: AtomicU32::new(0),
            all_since: AtomicU64::new(0),
            all_total: AtomicU64::new(0),
        }
    }

    /// Now, in the record's time.
    pub fn now(&self) -> u64 {
        // 584 years.
        u64::try_from(self.epoch.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    /// How many threads make the machine stand still when all of them wait: its processors.
    pub fn set_cpus(&self, cpus: u32) {
        self.cpus.store(cpus, Ordering::Relaxed);
    }

    fn slots(&self, key: u64) -> impl Iterator<Item = &Slot> {
        let first = place(key);
        (0..PROBES).map(move |i| &self.slots[(first + i) % SLOTS])
    }

    fn slot(&self, key: u64) -> Option<&Slot> {
        self.slots(key).find(|slot| slot.key.load(Ordering::Acquire) == key)
    }

    /// The fault thread, which woke up at `woken`, has held since `held` a fault on a page that nobody waited for.
    pub(super) fn read(&self, block: usize, page: usize, woken: u64, held: u64) {
        let key = key(block, page);
        let Some(slot) = self.slots(key).find(|slot| slot.key.load(Ordering::Acquire) == 0) else {
            self.unrecorded.fetch_add(1, Ordering::Relaxed);
            return;
        };
        slot.woken.store(woken, Ordering::Relaxed);
        slot.read.store(held, Ordering::Relaxed);
        slot.requested.store(0, Ordering::Relaxed);
        slot.key.store(key, Ordering::Release);
    }

    /// The request for the page is about to be sent.
    pub(super) fn requested(&self, block: usize, page: usize) {
        if let Some(slot) = self.slot(key(block, page)) {
            slot.requested.store(self.now(), Ordering::Relaxed);
        }
    }

    /// The page is placed; its first byte came at `first` (none: nobody had to bring it, and that is no record).
    pub(super) fn placed(&self, block: usize, page: usize, first: Option<u64>) {
        let now = self.now();
        if let Some(slot) = self.slot(key(block, page)) {
            let moments = [&slot.woken, &slot.read, &slot.requested].map(|moment| moment.load(Ordering::Relaxed));
            slot.key.store(0, Ordering::Release);
            if let Some(first) = first {
                self.add(moments, first, now);
            }
        }
        self.let_go(key(block, page), now);
    }

    fn add(&self, [woken, read, requested]: [u64; 3], first: u64, now: u64) {
        // The page may have come by itself before its request was out, or while there was no link.
        let first = first.clamp(read, now);
        let requested = if requested == 0 { first } else { requested.min(first) };
        for (phase, time) in self.phases.iter().zip([read - woken, requested - read, first - requested, now - first, now - woken]) {
            phase.add(time);
        }
    }

    /// A thread waits for a page since `now`, or a little before. Nobody says which threads are processors, so each that waits for
    /// a page is taken for one, be it a command that reads memory.
    pub(super) fn blocked(&self, thread: u32, block: usize, page: usize, now: u64) {
        let free = |slot: &&Thread| {
            let id = slot.id.load(Ordering::Relaxed);
            id == thread || (id == 0 && slot.id.compare_exchange(0, thread, Ordering::Relaxed, Ordering::Relaxed).is_ok())
        };
        let Some(slot) = self.threads.iter().find(free).filter(|_| thread != 0) else { return };
        // A thread that faults again on a page that was taken away, or that we have not let go yet, waits once.
        slot.since.store(now, Ordering::Relaxed);
        if slot.key.swap(key(block, page), Ordering::AcqRel) == 0 && self.stopped.fetch_add(1, Ordering::AcqRel) + 1 == self.cpus() {
            self.all_since.store(now, Ordering::Release);
        }
    }

    /// The threads that wait for a page go on.
    fn let_go(&self, key: u64, now: u64) {
        for thread in self.threads.iter().take_while(|thread| thread.id.load(Ordering::Relaxed) != 0) {
            if thread.key.load(Ordering::Acquire) != key {
                continue;
            }
            let since = thread.since.load(Ordering::Relaxed);
            if thread.key.compare_exchange(key, 0, Ordering::AcqRel, Ordering::Relaxed).is_err() {
                continue;
            }
            thread.total.fetch_add(now.saturating_sub(since), Ordering::Relaxed);
            if self.stopped.fetch_sub(1, Ordering::AcqRel) == self.cpus() {
                let since = self.all_since.load(Ordering::Acquire);
                self.all_total.fetch_add(now.saturating_sub(since), Ordering::Relaxed);
            }
        }
    }

    fn cpus(&self) -> u32 {
        match self.cpus.load(Ordering::Relaxed) {
            0 => self.threads.iter().take_while(|thread| thread.id.load(Ordering::Relaxed) != 0).fold(0, |count, _| count + 1),
            cpus => cpus,
        }
    }

    fn each(&self, what: impl Fn(&Snapshot) -> Value) -> Value {
        let phase = |(phase, histogram): (Phase, &Histogram)| (phase.name().to_owned(), what(&histogram.snapshot()));
        Value::Object(Phase::ALL.into_iter().zip(&self.phases).map(phase).collect::<Map<_, _>>())
    }

    /// For QMP (`x-fault-latency`): phase -> {count, p50, p90, p99, p999, max} in nanoseconds.
    pub fn summary(&self) -> Value {
        self.each(|seen| {
            let at = |per_mille| seen.percentile(per_mille);
            json!({"count": seen.count, "p50": at(500), "p90": at(900), "p99": at(990), "p999": at(999), "max": seen.max})
        })
    }

    /// For records (`phases` of lab and bench): phase -> {count, `p50_ns`, `p90_ns`, `p99_ns`, `p999_ns`, `max_ns`, `mean_ns`, buckets};
    /// a bucket is [least value, how many values wide, count].
    pub fn snapshot(&self) -> Value {
        self.each(Snapshot::record)
    }

    /// What the record of one fault costs, in nanoseconds: the median of many short rounds. For benchmarks.
    pub fn cost() -> f64 {
        const FAULTS: u32 = 1000;
        let latency = Self::new();
        let mut rounds: Vec<f64> = (0..201)
            .map(|round: u32| {
                let started = Instant::now();
                for fault in 0..FAULTS {
                    // Pages far apart, as faults are; the calls are those of the fault thread and the placer, in their order.
                    let page = (round * FAULTS + fault).wrapping_mul(0x9e37_79b9) as usize >> 8;
                    let (woken, held) = (latency.now(), latency.now());
                    latency.blocked(1, 0, page, held);
                    latency.read(0, page, woken, held);
                    latency.requested(0, page);
                    let first = latency.now();
                    latency.placed(0, page, Some(first));
                }
                started.elapsed().as_secs_f64() * 1e9 / f64::from(FAULTS)
            })
            .collect();
        rounds.sort_unstable_by(f64::total_cmp);
        rounds[rounds.len() / 2]
    }

    /// Faults whose page came but for which there was no slot.
    pub fn unrecorded(&self) -> u64 {
        self.unrecorded.load(Ordering::Relaxed)
    }

    /// Nanoseconds in which all processors stood still at once, and of each thread that ever did: (kernel's thread number, nanoseconds),
    /// in the order in which they first did. `query-migrate` has them as `postcopy-blocktime` and `postcopy-vcpu-blocktime`, in ms.
    pub fn blocktime(&self) -> (u64, Vec<(u32, u64)>) {
        let threads = self.threads.iter().map(|thread| (thread.id.load(Ordering::Relaxed), thread.total.load(Ordering::Relaxed)));
        (self.all_total.load(Ordering::Relaxed), threads.take_while(|(id, _)| *id != 0).collect())
    }
}
