//! What a sync of the kernel's dirty log costs beside the bare `PAGEMAP_SCAN` call on the same memory.
//!
//! ```text
//! dirty_scan [--size BYTES] [--runs N] [--backing anon|thp|memfd]
//! ```
//!
//! All of the memory exists and none of it is written between scans: the common case of a round, where whatever the log
//! does beyond the call shows. The two alternate, the first pair is dropped, medians count. Prints one line of JSON:
//! `sync_ns`, `bare_ns`, their `ratio`, and what arming took (`start_ns`).

use std::error::Error;
use std::time::{Duration, Instant};

use qmig_core::ram::{Backing, Bitmap, Block, BlockOptions, DirtyMode, dirty};
use qmig_core::sys::pagemap::{Pagemap, Query};

fn main() -> Result<(), Box<dyn Error>> {
    let (mut size, mut runs, mut backing) = (1_u64 << 30, 31_usize, "anon".to_owned());
    let mut arguments = std::env::args().skip(1);
    while let Some(name) = arguments.next() {
        let value = arguments.next().ok_or_else(|| format!("{name} needs a value"))?;
        match name.as_str() {
            "--size" => size = value.parse()?,
            "--runs" => runs = value.parse()?,
            "--backing" => backing = value,
            _ => return Err(format!("unknown option {name}").into()),
        }
    }
    let options = match backing.as_str() {
        "anon" => BlockOptions { thp: false, ..BlockOptions::default() },
        "thp" => BlockOptions::default(),
        "memfd" => BlockOptions { backing: Backing::Memfd, ..BlockOptions::default() },
        other => return Err(format!("unknown backing {other}").into()),
    };
    let block = Block::new("ram", size, &options)?;
    let len = usize::try_from(size)?;
    block.fill(0, len, 1)?;

    let mut log = dirty::open(&block, DirtyMode::Auto)?;
    let begun = Instant::now();
    log.start(&mut Bitmap::new(block.pages()))?;
    let start = begun.elapsed();

    let mut pagemap = Pagemap::open()?;
    let mut dirty = Bitmap::new(block.pages());
    let (mut bare, mut sync) = (Vec::new(), Vec::new());
    for _ in 0..=runs {
        let begun = Instant::now();
        pagemap.scan(block.address(), len, Query::WRITTEN, |_, _| {})?;
        bare.push(begun.elapsed());
        let begun = Instant::now();
        log.sync(&mut dirty)?;
        sync.push(begun.elapsed());
    }
    let (bare, sync) = (median(&mut bare), median(&mut sync));
    let report = serde_json::json!({
        "backing": backing, "size": size, "runs": runs, "start_ns": nanoseconds(start), "bare_ns": nanoseconds(bare),
        "sync_ns": nanoseconds(sync), "ratio": sync.as_secs_f64() / bare.as_secs_f64(),
    });
    Ok(writeln(&report)?)
}

fn median(times: &mut Vec<Duration>) -> Duration {
    times.remove(0);
    times.sort_unstable();
    times[times.len() / 2]
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

fn writeln(report: &serde_json::Value) -> std::io::Result<()> {
    use std::io::Write;
    writeln!(std::io::stdout(), "{report}")
}
