//! What the page codecs cost beside `memcmp` of the same memory, for `qmig-e2k bench codec`.
//!
//! ```text
//! codec_loop [--mib N] [--runs N]
//! ```
//!
//! Two buffers of N MiB (64, as a cache of QEMU's default size): pages and their last version. In each run, for every instruction
//! set, `memcmp` compares them while they are equal, then some random bytes of each page change, and all pages are encoded; the
//! decoder brings the old ones up to date. Deltas lie one behind the other, as in a stream. The first run is dropped. Prints one
//! line of JSON: for each number of changed bytes GiB/s of pages of each `encode`, of `decode`, and of the `memcmp` just before
//! it, run by run, and the mean length of a delta; and of 16 times as much memory, all zero and in no cache, GiB/s of the zero test
//! page by page and of a loop that reads all of it.

use std::error::Error;
use std::hint::black_box;
use std::io::Write as _;
use std::time::Instant;

use qmig_core::page::{Delta, XbzrleEncoder, xbzrle_decode};
use qmig_core::ram::Block;
use qmig_core::sys::flips::Level;
use serde_json::{Value, json};

const PAGE: usize = 4096;
const CHANGED: [usize; 4] = [1, 8, 64, 512];

fn main() -> Result<(), Box<dyn Error>> {
    let (mut mib, mut runs) = (64_usize, 15_usize);
    let mut arguments = std::env::args().skip(1);
    while let Some(name) = arguments.next() {
        let value = arguments.next().ok_or_else(|| format!("{name} needs a value"))?;
        match name.as_str() {
            "--mib" => mib = value.parse()?,
            "--runs" => runs = value.parse()?,
            _ => return Err(format!("unknown option {name}").into()),
        }
    }
    let size = mib << 20;
    let mut random = Random(1);
    let old: Vec<u8> = (0..size / 8).flat_map(|_| random.next().to_le_bytes()).collect();
    let cases: Vec<Value> = CHANGED.iter().map(|changed| case(&old, *changed, runs, &mut random)).collect();
    let levels: Vec<String> = Level::all().iter().map(|level| format!("{level:?}").to_lowercase()).collect();
    writeln!(
        std::io::stdout(),
        "{}",
        json!({ "mib": mib, "runs": runs, "levels": levels, "xbzrle": cases, "zero": zero(16 * size, runs)? })
    )?;
    Ok(())
}

/// Everything for one number of changed bytes.
fn case(old: &[u8], changed: usize, runs: usize, random: &mut Random) -> Value {
    let levels = Level::all();
    let (mut encode, mut decode) = (vec![Pairs::default(); levels.len()], Pairs::default());
    let (mut new, mut patched) = (old.to_vec(), old.to_vec());
    let mut deltas = vec![0_u8; old.len()];
    let mut lengths = vec![0_usize; old.len() / PAGE];
    for _ in 0..=runs {
        for (level, pairs) in levels.iter().zip(&mut encode) {
            new.copy_from_slice(old);
            let limit = compare(old, &new);
            for page in new.chunks_exact_mut(PAGE) {
                for _ in 0..changed {
                    let number = random.next();
                    page[(number >> 16) as usize % PAGE] ^= (number & 0xff) as u8 | 1;
                }
            }
            let mut encoder = XbzrleEncoder::new(*level);
            let (begun, mut at) = (Instant::now(), 0);
            for ((a, b), length) in pages(old).zip(pages(&new)).zip(&mut lengths) {
                *length = match encoder.encode(a, b, &mut deltas[at..][..PAGE]) {
                    Delta::Length(length) => length,
                    Delta::Equal | Delta::Overflow => 0,
                };
                at += *length;
            }
            pairs.push(rate(old, begun), limit);
        }
        patched.copy_from_slice(old);
        let limit = compare(old, &patched);
        let (begun, mut rest) = (Instant::now(), &deltas[..]);
        for (page, length) in patched.chunks_exact_mut(PAGE).zip(&lengths) {
            let delta;
            (delta, rest) = rest.split_at(*length);
            black_box(xbzrle_decode(delta, page).unwrap_or_default());
        }
        decode.push(rate(old, begun), limit);
        assert!(patched == new, "what was decoded");
    }
    json!({
        "changed": changed, "encode": encode.iter().map(Pairs::value).collect::<Vec<_>>(), "decode": decode.value(),
        "delta_bytes": lengths.iter().sum::<usize>() / lengths.len(),
    })
}

/// GiB/s of a codec in each run, and of `memcmp` just before it: machines change their pace from one moment to the next.
#[derive(Debug, Clone, Default)]
struct Pairs {
    ours: Vec<f64>,
    memcmp: Vec<f64>,
}

impl Pairs {
    fn push(&mut self, ours: f64, memcmp: f64) {
        self.ours.push(ours);
        self.memcmp.push(memcmp);
    }

    /// All but the first run.
    fn value(&self) -> Value {
        json!({ "ours": self.ours[1..], "memcmp": self.memcmp[1..] })
    }
}

/// `memcmp` of equal memory, page by page.
fn compare(old: &[u8], new: &[u8]) -> f64 {
    let begun = Instant::now();
    for (a, b) in pages(old).zip(pages(new)) {
        assert!(black_box(a) == black_box(b), "copies");
    }
    rate(old, begun)
}

/// GiB/s.
#[allow(clippy::cast_precision_loss)] // a rate
fn rate(bytes: &[u8], begun: Instant) -> f64 {
    bytes.len() as f64 / begun.elapsed().as_secs_f64() / f64::from(1 << 30)
}

/// The zero test beside a plain reading of the same memory.
#[allow(clippy::cast_precision_loss)] // rates
fn zero(size: usize, runs: usize) -> Result<Value, Box<dyn Error>> {
    let block = Block::anon("zeros", size as u64)?;
    block.fill(0, size, 0)?;
    // Written, or the kernel would show one page of zeros everywhere.
    let mut words = vec![1_u64; size / 8];
    black_box(&mut words).fill(0);
    let words = black_box(&words[..]);
    let rate = |begun: Instant| size as f64 / begun.elapsed().as_secs_f64() / f64::from(1 << 30);
    let (mut test, mut read) = (Vec::new(), Vec::new());
    for _ in 0..=runs {
        let begun = Instant::now();
        let all = (0..size as u64).step_by(PAGE).all(|at| block.is_zero(at, PAGE).unwrap_or(false));
        assert!(black_box(all), "zeros");
        test.push(rate(begun));
        let begun = Instant::now();
        assert!(black_box(words.iter().fold(0, |any, word| any | word)) == 0, "zeros");
        read.push(rate(begun));
    }
    Ok(json!({ "ours": test[1..], "read": read[1..] }))
}

fn pages(bytes: &[u8]) -> std::slice::ChunksExact<'_, u8> {
    bytes.chunks_exact(PAGE)
}

/// xorshift64*: the same pages in every run of the program.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }
}
