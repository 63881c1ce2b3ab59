//! The floor of a fault: one thread touches missing pages of this process, another puts them there, from a buffer.
//!
//! ```text
//! fault_floor [--pages N] [--runs N] [--seed N]
//! ```
//!
//! Two ways in turn: ours (`Faults`, `Requests`, `Placer`, latency record: a `Service`), and a bare loop of the same two threads that
//! polls, reads the fault, and copies the page. The toucher reads each page once in random order (the same for the same seed) and
//! times each touch. Prints one line of JSON: for each way the medians over the runs of its percentiles, their ratios, and what the
//! record of one fault costs. The first run of each is dropped; run it with `chrt -f 50` on a busy machine.

use std::error::Error;
use std::io::Write;
use std::sync::Arc;
use std::time::Instant;

use qmig_core::postcopy::Latency;
use qmig_core::postcopy::local::{BlockSource, Service, Source};
use qmig_core::ram::{Backing, Block, BlockOptions, TARGET_PAGE};
use qmig_core::sys::uffd::{FAULTS, Fault, Faults, Features, Modes, Uffd};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use serde_json::json;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

fn main() -> Result<()> {
    let (mut pages, mut runs, mut seed) = (20_000, 11, 1);
    let mut arguments = std::env::args().skip(1);
    while let Some(name) = arguments.next() {
        let value = arguments.next().ok_or_else(|| format!("{name} needs a value"))?.parse()?;
        match name.as_str() {
            "--pages" => pages = value,
            "--runs" => runs = value,
            "--seed" => seed = value,
            _ => return Err(format!("unknown option {name}").into()),
        }
    }
    if pages == 0 || runs == 0 {
        return Err("--pages and --runs are at least 1".into());
    }
    let order = order(pages, seed);
    let options = BlockOptions { backing: Backing::Anon, thp: false, ..BlockOptions::default() };
    let make = |name: &str| Block::new(name, (order.len() * TARGET_PAGE) as u64, &options);
    let source = make("source")?;
    source.fill(0, order.len() * TARGET_PAGE, 7)?;
    let (mut ours, mut bare) = (Vec::new(), Vec::new());
    for run in 0..=runs {
        let pair = [self::ours(&make("ours")?, &source, &order)?, self::bare(&*make("bare")?, &source, &order)?];
        if run > 0 {
            ours.push(pair[0]);
            bare.push(pair[1]);
        }
    }
    let record = Latency::cost();
    let fault = median(&ours, 0);
    let ratio = |at: usize| median(&ours, at) / median(&bare, at);
    let way = |runs: &[[f64; 3]]| json!({"p50_ns": median(runs, 0), "p99_ns": median(runs, 1), "mean_ns": median(runs, 2)});
    let line = json!({
        "pages": pages, "runs": runs, "seed": seed,
        "ours": way(&ours), "bare": way(&bare),
        "ratio": {"p50": ratio(0), "p99": ratio(1), "mean": ratio(2)},
        "record": {"ns": record, "share_of_fault": record / fault},
    });
    Ok(writeln!(std::io::stdout(), "{line}")?)
}

/// The pages in random order.
fn order(pages: u64, seed: u64) -> Vec<u64> {
    let mut order: Vec<u64> = (0..pages).collect();
    let mut state = seed | 1;
    for i in (1..order.len()).rev() {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        order.swap(i, usize::try_from(state % (i as u64 + 1)).unwrap_or(0));
    }
    order
}

/// Touches the pages in order; p50, p99 and mean in nanoseconds.
fn touch(block: &Block, order: &[u64]) -> Result<[f64; 3]> {
    let mut times = Vec::with_capacity(order.len());
    for page in order {
        let mut byte = [0];
        let before = Instant::now();
        block.read(page * TARGET_PAGE as u64, &mut byte)?;
        times.push(before.elapsed().as_secs_f64() * 1e9);
        if byte != [7] {
            return Err(format!("page {page} was read as {byte:?}").into());
        }
    }
    times.sort_unstable_by(f64::total_cmp);
    let mean = times.iter().sum::<f64>() / f64::from(u32::try_from(times.len())?);
    Ok([times[times.len() / 2], times[times.len() * 99 / 100], mean])
}

fn ours(block: &Arc<Block>, source: &Arc<Block>, order: &[u64]) -> Result<[f64; 3]> {
    let service = Service::arm(block, Source::Pages(Box::new(BlockSource(Arc::clone(source)))))?;
    let times = touch(block, order)?;
    service.close(false)?;
    Ok(times)
}

fn bare(block: &Block, source: &Block, order: &[u64]) -> Result<[f64; 3]> {
    let uffd = Uffd::open(Features::empty(), Faults::Best)?;
    let (address, len) = (block.address(), order.len() * TARGET_PAGE);
    uffd.register(address, len, Modes::MISSING)?;
    std::thread::scope(|scope| {
        let server = scope.spawn(|| -> rustix::io::Result<()> {
            let mut served = 0;
            let mut faults = [Fault::default(); FAULTS];
            while served < order.len() {
                poll(&mut [PollFd::new(&uffd, PollFlags::IN)], None)?;
                let found = uffd.read_faults(&mut faults)?;
                for fault in &faults[..found] {
                    let at = (fault.address - address) & !(TARGET_PAGE - 1);
                    let page = source.range(at as u64, TARGET_PAGE).map_err(|_| Errno::FAULT)?;
                    if uffd.copy_guest(address + at, page).why.is_some() {
                        return Err(Errno::IO);
                    }
                }
                served += found;
            }
            Ok(())
        });
        let times = touch(block, order);
        server.join().map_err(|_| "the server panicked")??;
        times
    })
}

/// The median over runs of one of their figures.
fn median(runs: &[[f64; 3]], at: usize) -> f64 {
    let mut values: Vec<f64> = runs.iter().map(|run| run[at]).collect();
    values.sort_unstable_by(f64::total_cmp);
    values[values.len() / 2]
}
