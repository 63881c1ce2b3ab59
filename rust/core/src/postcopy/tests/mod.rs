//! The destination's memory against the real kernel, with threads that touch what is missing.
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation, clippy::single_range_in_vec_init)]

mod memory;
mod placing;
mod random;
mod service;
#[path = "../../../tests/scripted/tmpfs.rs"]
mod tmpfs;

use std::fmt::Debug;
use std::io::Write;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tmpfs::Tmpfs;

use super::*;
use crate::ram::{Backing, Block, BlockOptions, TARGET_PAGE};
use crate::{ErrorKind, Result};

const PAGE: u64 = TARGET_PAGE as u64;
const HUGE: u64 = 2 << 20;

/// Nothing here takes as long, however busy the machine is.
const PATIENCE: Duration = Duration::from_secs(60);

/// Says that a test was left out, past the capture of test output. Where `QMIG_REQUIRE_HUGE_PAGES` is set that is a failure.
fn skip(test: &str, why: &str) {
    assert!(std::env::var_os("QMIG_REQUIRE_HUGE_PAGES").is_none(), "{test}: {why}");
    let _ = writeln!(std::io::stderr(), "SKIPPED {test}: {why}");
}

/// A block of huge pages. If none are reserved the pool may grow while they are used, if this process may say so.
fn huge(pages: u64) -> Option<Arc<Block>> {
    static GROW: Mutex<()> = Mutex::new(());
    let _one = GROW.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let options = BlockOptions { backing: Backing::Hugetlb, ..BlockOptions::default() };
    Block::new("ram", pages * HUGE, &options)
        .or_else(|error| {
            std::fs::write("/proc/sys/vm/nr_overcommit_hugepages", "256").map_err(|_| error)?;
            Block::new("ram", pages * HUGE, &options)
        })
        .ok()
}

fn block(name: &str, size: u64, backing: Backing, thp: bool) -> Arc<Block> {
    Block::new(name, size, &BlockOptions { backing, thp, ..BlockOptions::default() }).unwrap()
}

/// A block of each kind that can be made here.
fn kinds(test: &str, size: u64) -> Vec<(&'static str, Arc<Block>)> {
    let mut all = vec![
        ("anon", block("ram", size, Backing::Anon, false)),
        ("anon, thp", block("ram", size, Backing::Anon, true)),
        ("memfd", block("ram", size, Backing::Memfd, true)),
    ];
    match huge(size / HUGE) {
        Some(block) => all.push(("hugetlb", block)),
        None => skip(test, "no huge pages: sysctl vm.nr_hugepages=64"),
    }
    all
}

/// What a test sees of requests.
struct Told(Sender<(usize, u64, u32)>);

impl Requester for Told {
    fn request(&mut self, block: usize, offset: u64, len: u32) -> Result<()> {
        // A test that has seen enough does not listen any more.
        let _ = self.0.send((block, offset, len));
        Ok(())
    }
}

/// Armed memory with a fault thread, and the requests that it makes.
struct Rig {
    memory: Arc<Memory>,
    requests: Arc<Requests>,
    faults: Faults,
    asked: Receiver<(usize, u64, u32)>,
}

impl Rig {
    /// `before`: what happens between ADVISE and LISTEN.
    fn new(blocks: &[Arc<Block>], before: impl FnOnce(&Memory)) -> Self {
        let memory = Memory::new(blocks).unwrap();
        memory.prepare().unwrap();
        before(&memory);
        memory.arm().unwrap();
        let requests = Requests::new(Arc::clone(&memory), Arc::new(Latency::new()));
        let (tell, asked) = channel();
        requests.set_requester(Some(Box::new(Told(tell))));
        Self { faults: Faults::start(Arc::clone(&requests), drop).unwrap(), memory, requests, asked }
    }

    fn placer(&self) -> Placer {
        Placer::new(Arc::clone(&self.requests))
    }

    fn next_request(&self) -> (usize, u64, u32) {
        self.asked.recv_timeout(PATIENCE).unwrap()
    }

    /// All pages of value `value` for the host page at `offset`.
    fn serve(&self, placer: &mut Placer, block: usize, offset: u64, value: u8) -> Result<()> {
        for at in (offset..offset + self.memory.page_size(block)).step_by(TARGET_PAGE) {
            placer.page(block, at, &[value; TARGET_PAGE])?;
        }
        Ok(())
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        self.memory.disarm();
        let ended = self.faults.stop();
        if !std::thread::panicking() {
            ended.unwrap();
        }
    }
}

/// A thread reads `len` bytes at `offset`; they come when it has them.
fn touch(block: &Arc<Block>, offset: u64, len: usize) -> Receiver<Vec<u8>> {
    let (done, read) = channel();
    let block = Arc::clone(block);
    std::thread::spawn(move || {
        let mut bytes = vec![0; len];
        block.read(offset, &mut bytes).unwrap();
        let _ = done.send(bytes);
    });
    read
}

fn wait<T: Debug>(from: &Receiver<T>) -> T {
    from.recv_timeout(PATIENCE).unwrap()
}

fn bytes(block: &Block, offset: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    block.read(offset, &mut bytes).unwrap();
    bytes
}

fn refused<T: Debug>(kind: ErrorKind, words: &str, result: Result<T>) {
    let error = result.unwrap_err();
    assert!(error.kind == kind && error.to_string().contains(words), "{:?} {error} does not say {words:?}", error.kind);
}
