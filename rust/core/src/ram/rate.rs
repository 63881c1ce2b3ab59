//! How fast the machine writes its memory: measured over a while, with no migration (spec/control-plane 15.3).
//!
//! Either the hashes of some pages are compared, which says how many of them changed, or a dirty log counts pages that were written.
//! The log is what a migration needs, too, and one has it at a time: who wants to migrate cuts the measurement short first.

use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use flate2::Crc;

use super::dirty::{self, DirtyLog, DirtyMode};
use super::{Bitmap, Block, TARGET_PAGE};
use crate::{Error, Result};

/// Smaller blocks are not looked at: they are firmware and tables.
const LEAST_BLOCK: u64 = 128 << 10;
const MIB: u128 = 1 << 20;
/// An odd constant with well-mixed bits (the golden ratio).
const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

/// How it is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    /// By hashes of so many pages for each GiB.
    Sampling(u64),
    /// By a dirty log for each block.
    Log(DirtyMode),
}

/// What came out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Measured {
    /// Between the two looks.
    pub time: Duration,
    /// MiB a second; none if there was nothing to look at, or if the log failed on the way.
    pub rate: Option<u64>,
}

/// One measurement, by a thread of its own.
#[derive(Debug)]
pub struct DirtyRate {
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
    cut: bool,
    measured: Option<Measured>,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for `time`, or until it is cut short; how long that was.
    fn wait(&self, time: Duration) -> Duration {
        let begun = Instant::now();
        let woken = self.changed.wait_timeout_while(self.state(), time, |state| !state.cut);
        drop(woken.unwrap_or_else(PoisonError::into_inner));
        begun.elapsed()
    }
}

impl DirtyRate {
    /// Begin to measure `blocks` for `time`. Fails if a block has another log, or none can be had.
    pub fn start(blocks: &[Arc<Block>], method: Method, time: Duration) -> Result<Self> {
        let looks: Box<dyn Looks> = match method {
            Method::Sampling(per_gib) => Box::new(Samples::choose(blocks, per_gib)),
            Method::Log(mode) => {
                let open = |block| Ok((dirty::open(block, mode)?, Bitmap::new(block.pages())));
                Box::new(Logs(blocks.iter().map(open).collect::<Result<_>>()?))
            }
        };
        let shared = Arc::<Shared>::default();
        let theirs = Arc::clone(&shared);
        let thread = std::thread::Builder::new().name("dirty-rate".into()).spawn(move || measure(looks, time, &theirs));
        let thread = thread.map_err(|error| Error::io("starting a thread that measures the dirty rate", error))?;
        Ok(Self { shared, thread: Mutex::new(Some(thread)) })
    }

    /// What came out; none yet while it measures.
    pub fn measured(&self) -> Option<Measured> {
        self.shared.state().measured
    }

    /// Measures no longer: the rate is that of the time until now. No log is held any more when this returns.
    pub fn cut(&self) {
        self.shared.state().cut = true;
        self.shared.changed.notify_all();
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread {
            let _ = thread.join();
        }
    }
}

impl Drop for DirtyRate {
    fn drop(&mut self) {
        self.cut();
    }
}

/// Two looks at memory, and what changed between them.
trait Looks: Send {
    fn first(&mut self) -> Result<()>;
    /// MiB a second after `milliseconds`; none if there was nothing to look at.
    fn second(&mut self, milliseconds: u128) -> Result<Option<u64>>;
}

fn measure(mut looks: Box<dyn Looks>, time: Duration, shared: &Shared) {
    let mut passed = Duration::ZERO;
    let rate = looks.first().and_then(|()| {
        passed = shared.wait(time);
        looks.second(passed.as_millis().max(1))
    });
    // Before anybody hears of it: then the logs are free again.
    drop(looks);
    let rate = rate.unwrap_or_else(|error| {
        tracing::warn!(%error, "the dirty rate cannot be measured");
        None
    });
    shared.state().measured = Some(Measured { time: passed, rate });
}

fn saturated(rate: u128) -> u64 {
    u64::try_from(rate).unwrap_or(u64::MAX)
}

struct Logs(Vec<(Box<dyn DirtyLog>, Bitmap)>);

impl Looks for Logs {
    fn first(&mut self) -> Result<()> {
        for (log, pages) in &mut self.0 {
            log.start(&mut Bitmap::new(pages.len()))?;
            // What a log reports of the time before its start is not of this measurement.
            log.sync(&mut Bitmap::new(pages.len()))?;
        }
        Ok(())
    }

    fn second(&mut self, milliseconds: u128) -> Result<Option<u64>> {
        let mut written = 0;
        for (log, pages) in &mut self.0 {
            written += u128::from(log.sync(pages)?);
        }
        let rate = saturated(written * 1000 * TARGET_PAGE as u128 / MIB / milliseconds);
        Ok((!self.0.is_empty()).then_some(rate))
    }
}

/// Pages of one block, chosen at random, with what they held.
struct Sample {
    block: Arc<Block>,
    /// As it was when they were chosen.
    length: u64,
    pages: Vec<(u64, u32)>,
}

struct Samples(Vec<Sample>);

impl Samples {
    fn choose(blocks: &[Arc<Block>], per_gib: u64) -> Self {
        let mut random = RandomState::new().hash_one(per_gib);
        let chosen = blocks.iter().filter(|block| block.used_length() >= LEAST_BLOCK).map(|block| {
            let length = block.used_length();
            let count = saturated((u128::from(length) * u128::from(per_gib)) >> 30);
            // As everywhere, the last page is never among them.
            let range = length / TARGET_PAGE as u64 - 1;
            let mut pick = |_| {
                random = random.wrapping_add(GOLDEN);
                let spread = (random ^ (random >> 32)).wrapping_mul(GOLDEN);
                (saturated((u128::from(spread) * u128::from(range)) >> 64), 0)
            };
            Sample { block: Arc::clone(block), length, pages: (0..count).map(&mut pick).collect() }
        });
        Self(chosen.collect())
    }
}

impl Looks for Samples {
    fn first(&mut self) -> Result<()> {
        for sample in &mut self.0 {
            for (page, hash) in &mut sample.pages {
                *hash = hash_of(&sample.block, *page)?;
            }
        }
        Ok(())
    }

    fn second(&mut self, milliseconds: u128) -> Result<Option<u64>> {
        let (mut looked, mut changed, mut bytes) = (0, 0, 0);
        for sample in self.0.iter().filter(|sample| sample.block.used_length() == sample.length) {
            bytes += u128::from(sample.length);
            looked += sample.pages.len() as u128;
            for (page, hash) in &sample.pages {
                changed += u128::from(hash_of(&sample.block, *page)? != *hash);
            }
        }
        Ok((looked > 0).then(|| saturated(changed * (bytes / MIB) * 1000 / (looked * milliseconds))))
    }
}

fn hash_of(block: &Block, page: u64) -> Result<u32> {
    let mut bytes = [0; TARGET_PAGE];
    block.read(page * TARGET_PAGE as u64, &mut bytes)?;
    let mut crc = Crc::new();
    crc.update(&bytes);
    Ok(crc.sum())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::ErrorKind;

    const SIZE: u64 = 8 << 20;
    const LONG: Duration = Duration::from_secs(60);
    const SAMPLING: Method = Method::Sampling(16384);
    const LOG: Method = Method::Log(DirtyMode::Explicit);

    fn block() -> Arc<Block> {
        Block::anon("ram", SIZE).unwrap()
    }

    /// The first look is over: what is written from now on counts.
    fn looks(blocks: &[Arc<Block>], method: Method) -> Box<dyn Looks> {
        let mut looks: Box<dyn Looks> = match method {
            Method::Sampling(per_gib) => Box::new(Samples::choose(blocks, per_gib)),
            Method::Log(mode) => {
                Box::new(Logs(blocks.iter().map(|block| (dirty::open(block, mode).unwrap(), Bitmap::new(block.pages()))).collect()))
            }
        };
        looks.first().unwrap();
        looks
    }

    #[test]
    fn what_changes_between_the_looks_is_the_rate() {
        for (method, all) in [(SAMPLING, 8), (LOG, 8)] {
            let block = block();
            let mut looks = looks(std::slice::from_ref(&block), method);
            assert_eq!(looks.second(1000).unwrap(), Some(0), "{method:?}");
            for page in 0..SIZE / TARGET_PAGE as u64 {
                block.write(page * TARGET_PAGE as u64, b"x").unwrap();
            }
            // 8 MiB in a quarter of a second.
            assert_eq!(looks.second(250).unwrap(), Some(all * 4), "{method:?}");
        }
    }

    #[test]
    fn a_log_counts_a_page_once_however_often_it_is_written() {
        let block = block();
        block.write(0, b"before").unwrap();
        let mut looks = looks(std::slice::from_ref(&block), LOG);
        for _ in 0..10 {
            block.fill(0, 1 << 20, 7).unwrap();
            block.mark_dirty(0, 1 << 20).unwrap();
        }
        assert_eq!(looks.second(10).unwrap(), Some(100));
    }

    #[test]
    fn samples_are_spread_and_spare_small_blocks_and_the_last_page() {
        let (large, small) = (block(), Block::anon("rom", LEAST_BLOCK - TARGET_PAGE as u64).unwrap());
        let chosen = Samples::choose(&[large, small], 16384).0;
        assert_eq!((chosen.len(), chosen[0].pages.len()), (1, 128));
        let last = SIZE / TARGET_PAGE as u64 - 1;
        assert!(chosen[0].pages.iter().all(|(page, _)| *page < last));
        let distinct: std::collections::BTreeSet<_> = chosen[0].pages.iter().collect();
        assert!(distinct.len() > 100, "{} of 128 pages are different ones", distinct.len());
        assert!(chosen[0].pages.iter().any(|(page, _)| *page > last / 2) && chosen[0].pages.iter().any(|(page, _)| *page < last / 2));
    }

    #[test]
    fn where_nothing_can_be_looked_at_there_is_no_rate() {
        let small = Block::anon("rom", LEAST_BLOCK - TARGET_PAGE as u64).unwrap();
        assert_eq!(looks(&[small], SAMPLING).second(1000).unwrap(), None);
        assert_eq!(looks(&[], LOG).second(1000).unwrap(), None);
        let block = Block::new("ram", SIZE, &crate::ram::BlockOptions { max_size: Some(2 * SIZE), ..Default::default() }).unwrap();
        let mut looks = looks(std::slice::from_ref(&block), SAMPLING);
        block.resize(2 * SIZE).unwrap();
        assert_eq!(looks.second(1000).unwrap(), None, "it is another block now");
    }

    #[test]
    fn a_cut_gives_the_log_back_and_a_rate_for_the_time_so_far() {
        let block = block();
        let rate = DirtyRate::start(std::slice::from_ref(&block), LOG, LONG).unwrap();
        let busy = DirtyRate::start(std::slice::from_ref(&block), LOG, LONG).unwrap_err();
        assert_eq!(busy.kind, ErrorKind::InvalidState);
        assert_eq!(rate.measured(), None);
        rate.cut();
        let measured = rate.measured().unwrap();
        assert!(measured.time < LONG && measured.rate.is_some(), "{measured:?}");
        drop(dirty::open(&block, DirtyMode::Explicit).unwrap());
    }

    #[test]
    fn it_ends_by_itself() {
        let rate = DirtyRate::start(&[block()], SAMPLING, Duration::from_millis(50)).unwrap();
        let end = Instant::now() + Duration::from_secs(20);
        while rate.measured().is_none() {
            assert!(Instant::now() < end, "it still measures");
            std::thread::yield_now();
        }
        let measured = rate.measured().unwrap();
        assert!(measured.time >= Duration::from_millis(50), "{measured:?}");
        assert_eq!(measured.rate, Some(0));
    }
}
