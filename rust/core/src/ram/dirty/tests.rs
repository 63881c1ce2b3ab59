//! The dirty logs against every kind of memory: nothing written is missed, nothing else is reported, and what is called
//! untouched reads zero.
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation, clippy::single_range_in_vec_init)]

use std::sync::atomic::{AtomicBool, Ordering};

use proptest::prelude::*;

use super::wp_async::WpAsync;
use super::*;
use crate::ram::{Backing, BlockOptions, TARGET_PAGE};
use crate::sys::mmap::Nature;

const HUGE: u64 = 2 << 20;
const NONE: [usize; 0] = [];

fn options(backing: Backing, thp: bool) -> BlockOptions {
    BlockOptions { backing, thp, ..BlockOptions::default() }
}

/// A block of each kind that this machine can make. Huge pages have to be reserved; without them that kind is left out.
fn kinds(size: u64) -> Vec<(&'static str, Arc<Block>)> {
    let made = |backing, thp| Block::new("ram", size, &options(backing, thp)).unwrap();
    let mut all =
        vec![("anon", made(Backing::Anon, false)), ("anon, thp", made(Backing::Anon, true)), ("memfd", made(Backing::Memfd, true))];
    if let Ok(block) = Block::new("ram", size, &options(Backing::Hugetlb, false)) {
        all.push(("hugetlb", block));
    }
    all
}

fn fill(block: &Block, pages: std::ops::Range<u64>, value: u8) {
    for page in pages {
        block.fill(page * TARGET_PAGE as u64, TARGET_PAGE, value).unwrap();
    }
}

fn start(block: &Arc<Block>) -> (Box<dyn DirtyLog>, Bitmap) {
    let mut log = open(block, DirtyMode::Auto).unwrap();
    let mut untouched = Bitmap::new(block.pages());
    log.start(&mut untouched).unwrap();
    (log, untouched)
}

/// The pages that a sync reports; its count must agree.
fn sync(log: &mut dyn DirtyLog, pages: usize) -> Vec<usize> {
    let mut dirty = Bitmap::new(pages);
    let new = log.sync(&mut dirty).unwrap();
    assert_eq!(new, dirty.count());
    dirty.runs().flatten().collect()
}

/// As runs, which a failed test can print.
fn runs(pages: &[usize]) -> Vec<std::ops::Range<usize>> {
    let mut map = Bitmap::new(1 << 16);
    for page in pages {
        map.set(*page);
    }
    map.runs().collect()
}

/// All the target pages that share a page of the memory with one of `pages`.
fn whole(block: &Block, pages: &[usize]) -> Vec<usize> {
    let each = block.page_size() as usize / TARGET_PAGE;
    let mut all: Vec<_> = pages.iter().flat_map(|page| (page - page % each)..(page - page % each) + each).collect();
    all.sort_unstable();
    all.dedup();
    all
}

#[test]
fn reports_exactly_what_was_written() {
    for (kind, block) in kinds(4 * HUGE) {
        let pages = block.pages();
        fill(&block, 0..1024, 1);
        let (mut log, untouched) = start(&block);
        assert_eq!(log.kind(), DirtyLogKind::WpAsync);
        assert_eq!(untouched.runs().collect::<Vec<_>>(), [1024..2048], "{kind}");
        assert_eq!(sync(&mut *log, pages), NONE, "{kind}: nothing yet");
        for round in 0..3 {
            // Existing pages, the edge, and pages that did not exist.
            let written = [0, 7, 511 + round, 1023, 1024, 1700 + round];
            for page in written {
                block.put_page(page as u64 * 4096 + 8, &[9]).unwrap();
            }
            block.is_zero(600 * 4096, 4096).unwrap();
            assert_eq!(sync(&mut *log, pages), whole(&block, &written), "{kind}, round {round}");
            assert_eq!(sync(&mut *log, pages), NONE, "{kind}: reported once");
        }
    }
}

#[test]
fn markers_are_no_pages_in_memory() {
    for (kind, block) in kinds(2 * HUGE).into_iter().filter(|(_, block)| block.memory().nature() == Nature::Private) {
        fill(&block, 0..512, 1);
        let (_log, untouched) = start(&block);
        assert_eq!(untouched.runs().collect::<Vec<_>>(), [512..1024], "{kind}");
        fill(&block, 700..701, 1);
        let mut found = Bitmap::new(1024);
        block.memory().resident(0..2 * HUGE as usize, |page| _ = found.set(page)).unwrap();
        let expected: Vec<_> = (0..512).chain(whole(&block, &[700])).collect();
        assert_eq!(found.runs().flatten().collect::<Vec<_>>(), expected, "{kind}");
    }
}

#[test]
fn what_is_marked_is_reported_too() {
    for (kind, block) in kinds(HUGE) {
        let (mut log, _) = start(&block);
        block.mark_dirty(5 * 4096 + 4095, 2).unwrap();
        block.mark_dirty(9 * 4096, 0).unwrap();
        assert_eq!(sync(&mut *log, 512), [5, 6], "{kind}");
    }
    let block = Block::anon("ram", HUGE).unwrap();
    block.mark_dirty(0, 4096).unwrap();
    let mut log = open(&block, DirtyMode::Explicit).unwrap();
    fill(&block, 100..101, 1);
    let mut untouched = Bitmap::new(512);
    log.start(&mut untouched).unwrap();
    assert!(log.kind() == DirtyLogKind::Explicit && !untouched.get(100) && untouched.count() == if block_is_thp(&block) { 0 } else { 511 });
    block.write(4096, &[1]).unwrap();
    block.put_page(0, &[1]).unwrap();
    assert_eq!(sync(&mut *log, 512), [1], "what was not said is not seen; what was said before the start is of the first pass");
}

/// Did one write bring a whole huge page in?
fn block_is_thp(block: &Block) -> bool {
    let mut untouched = Bitmap::new(512);
    block.untouched(&mut untouched).unwrap();
    untouched.count() == 0
}

#[test]
fn pages_that_vanish_are_not_lost() {
    for (kind, block) in kinds(4 * HUGE) {
        for seek_absent in [false, true] {
            fill(&block, 0..2048, 1);
            let mut log = WpAsync::open(Lease::take(&block).unwrap()).unwrap();
            log.seek_absent |= seek_absent;
            log.start(&mut Bitmap::new(2048)).unwrap();
            // Written, then dropped from the page table before anyone looked.
            fill(&block, 0..1024, 2);
            block.memory().zap(0, HUGE as usize);
            let seen = sync(&mut log, 2048);
            assert_eq!(runs(&seen), [0..1024], "{kind}: written, then dropped");
            // Dropped, then written.
            block.memory().zap(HUGE as usize, HUGE as usize);
            fill(&block, 513..514, 3);
            let seen = sync(&mut log, 2048);
            assert!(
                seen.contains(&513) && seen.iter().all(|page| (512..1024).contains(page)),
                "{kind}: dropped, then written: {:?}",
                runs(&seen)
            );
            if block.backing() != Backing::Memfd {
                assert_eq!(seen.len(), 512, "{kind}: private memory that was dropped reads zero now: all of it changed");
            }
            // Dropped and seen, then written.
            block.memory().zap(2 * HUGE as usize, HUGE as usize);
            sync(&mut log, 2048);
            fill(&block, 1500..1501, 4);
            assert_eq!(runs(&sync(&mut log, 2048)), runs(&whole(&block, &[1500])), "{kind}: dropped, seen, then written");
            log.stop();
        }
    }
}

#[test]
fn holes_in_shared_memory() {
    let block = Block::new("ram", 2 * HUGE, &options(Backing::Memfd, false)).unwrap();
    fill(&block, 0..1024, 1);
    let (mut log, _) = start(&block);
    fill(&block, 0..10, 2);
    block.discard(0, HUGE as usize).unwrap();
    assert_eq!(sync(&mut *log, 1024), (0..512).collect::<Vec<_>>(), "discard says what it changed");
    fill(&block, 3..4, 5);
    assert_eq!(sync(&mut *log, 1024), [3], "and a write into the hole is seen");
    let error = block.discard(100, 4096).unwrap_err();
    assert_eq!(error.kind, ErrorKind::InvalidArgument);
}

#[test]
fn pushed_out_pages_are_neither_lost_nor_untouched() {
    for (kind, block) in kinds(2 * HUGE) {
        if block.backing() == Backing::Hugetlb {
            continue;
        }
        fill(&block, 0..512, 1);
        block.memory().page_out(0, HUGE as usize);
        let (mut log, untouched) = start(&block);
        assert_eq!(untouched.runs().collect::<Vec<_>>(), [512..1024], "{kind}");
        fill(&block, 10..12, 2);
        block.memory().page_out(0, HUGE as usize);
        assert_eq!(sync(&mut *log, 1024), [10, 11], "{kind}");
        let mut byte = [0];
        block.read(11 * 4096, &mut byte).unwrap();
        assert_eq!((byte, sync(&mut *log, 1024)), ([2], vec![]), "{kind}: reading is not writing");
    }
}

#[test]
fn many_regions_do_not_fit_one_answer() {
    // More runs than one PAGEMAP_SCAN call reports.
    let pages = 3 * 4096;
    for (kind, block) in kinds(pages * 4096) {
        fill(&block, 0..pages, 1);
        let (mut log, _) = start(&block);
        let written: Vec<_> = (0..pages as usize).step_by(2).collect();
        for page in &written {
            fill(&block, *page as u64..*page as u64 + 1, 2);
        }
        assert_eq!(sync(&mut *log, pages as usize), whole(&block, &written), "{kind}");
        assert_eq!(sync(&mut *log, pages as usize), NONE, "{kind}");
    }
}

#[test]
fn arming_sees_gaps_of_every_shape() {
    // Alternating single pages, a whole missing table, a table with one page: in two chunks.
    let block = Block::new("ram", 80 << 20, &options(Backing::Anon, false)).unwrap();
    let pages = block.pages();
    let mut touched: Vec<u64> = (0..64).step_by(2).collect();
    touched.extend([1024 + 5, 16383, 16384, 20479]);
    for page in &touched {
        fill(&block, *page..*page + 1, 1);
    }
    let (mut log, untouched) = start(&block);
    let expected: Vec<_> = (0..pages).filter(|page| !touched.contains(&(*page as u64))).collect();
    assert_eq!(untouched.runs().flatten().collect::<Vec<_>>(), expected);
    for page in [1_u64, 2, 600, 1024 + 6, 16385] {
        fill(&block, page..page + 1, 1);
    }
    assert_eq!(sync(&mut *log, pages), [1, 2, 600, 1024 + 6, 16385]);
}

#[test]
fn one_log_at_a_time_and_no_resize_meanwhile() {
    let block = Block::new("ram", HUGE, &BlockOptions { max_size: Some(2 * HUGE), ..options(Backing::Anon, false) }).unwrap();
    let (log, _) = start(&block);
    assert_eq!(open(&block, DirtyMode::Explicit).unwrap_err().kind, ErrorKind::InvalidState);
    assert_eq!(block.resize(2 * HUGE).unwrap_err().kind, ErrorKind::InvalidState);
    drop(log);
    block.resize(2 * HUGE).unwrap();
    let (mut log, untouched) = start(&block);
    assert_eq!(untouched.len(), 1024);
    fill(&block, 1023..1024, 1);
    assert_eq!(sync(&mut *log, 1024), [1023]);
    log.stop();
    log.stop();
    assert_eq!(log.sync(&mut Bitmap::new(1024)).unwrap_err().kind, ErrorKind::InvalidState);
    // And again after a stop.
    log.start(&mut Bitmap::new(1024)).unwrap();
    fill(&block, 7..8, 1);
    assert_eq!(sync(&mut *log, 1024), [7]);
}

#[test]
fn a_file_on_disk_is_refused_with_the_remedy() {
    let path = std::path::PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(format!("../../target/ram-on-disk-{}", std::process::id()));
    let options = BlockOptions { path: Some(path.clone()), ..options(Backing::File, false) };
    let block = Block::new("ram", HUGE, &options).unwrap();
    let error = open(&block, DirtyMode::Auto).unwrap_err();
    assert!(error.kind == ErrorKind::NoDirtyLog && error.message.contains("/dev/shm") && error.message.contains("mark_dirty"), "{error}");
    assert_eq!(block.dirty_log(), DirtyLogKind::Explicit);
    let mut log = open(&block, DirtyMode::Explicit).unwrap();
    log.start(&mut Bitmap::new(512)).unwrap();
    block.write(0, &[1]).unwrap();
    assert_eq!(sync(&mut *log, 512), [0]);
    std::fs::remove_file(path).unwrap();
}

/// The whole promise: copy what is not untouched, then what each sync reports; when the writers have stopped and a last
/// sync was made, the copy equals the memory.
fn copy_follows(kind: &str, block: &Arc<Block>, mark: bool, log: &mut dyn DirtyLog, writers: u64) {
    let pages = block.pages();
    let mut copy = vec![0_u8; pages * TARGET_PAGE];
    let mut page = vec![0_u8; TARGET_PAGE];
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for writer in 0..writers {
            let stop = &stop;
            scope.spawn(move || {
                let mut x = 0x9e37_79b9_7f4a_7c15_u64.wrapping_mul(writer + 1);
                while !stop.load(Ordering::Relaxed) {
                    x ^= x << 13;
                    x ^= x >> 7;
                    x ^= x << 17;
                    let at = (x % pages as u64) * 4096 + writer * 64;
                    if mark { block.write(at, &x.to_ne_bytes()).unwrap() } else { block.put_page(at, &x.to_ne_bytes()).unwrap() }
                }
            });
        }
        let mut untouched = Bitmap::new(pages);
        log.start(&mut untouched).unwrap();
        let mut take = |dirty: &mut Bitmap| {
            for i in dirty.runs().flatten().collect::<Vec<_>>() {
                dirty.clear(i);
                block.read(i as u64 * 4096, &mut page).unwrap();
                copy[i * 4096..(i + 1) * 4096].copy_from_slice(&page);
            }
        };
        let mut dirty = Bitmap::full(pages);
        dirty.and_not(&untouched);
        take(&mut dirty);
        for _ in 0..6 {
            log.sync(&mut dirty).unwrap();
            take(&mut dirty);
        }
        stop.store(true, Ordering::Relaxed);
    });
    // The scope has joined the writers.
    let mut last = Bitmap::new(pages);
    log.sync(&mut last).unwrap();
    for i in last.runs().flatten() {
        block.read(i as u64 * 4096, &mut page).unwrap();
        copy[i * 4096..(i + 1) * 4096].copy_from_slice(&page);
    }
    for i in 0..pages {
        block.read(i as u64 * 4096, &mut page).unwrap();
        assert!(copy[i * 4096..(i + 1) * 4096] == page[..], "{kind}: page {i} was written unnoticed");
    }
}

#[test]
fn a_copy_follows_writers_that_never_pause() {
    // Often, for the start is where writers and log meet on memory that does not exist yet.
    for _ in 0..12 {
        for (kind, block) in kinds(8 * HUGE) {
            copy_follows(kind, &block, false, &mut *open(&block, DirtyMode::Auto).unwrap(), 3);
        }
        let block = Block::anon("ram", 8 * HUGE).unwrap();
        copy_follows("explicit", &block, true, &mut *open(&block, DirtyMode::Explicit).unwrap(), 3);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn any_sequence_of_touches_and_drops(before in prop::collection::vec(0_u64..1536, 0..40), steps in prop::collection::vec((0_u8..4, 0_u64..1536), 0..40), thp: bool, shared: bool) {
        let backing = if shared { Backing::Memfd } else { Backing::Anon };
        let block = Block::new("ram", 3 * HUGE, &options(backing, thp)).unwrap();
        let page = |block: &Block, i: u64| { let mut page = [0_u8; 8]; block.read(i * 4096, &mut page).unwrap(); page };
        for i in &before { block.put_page(i * 4096, &[1]).unwrap(); }
        let (mut log, untouched) = start(&block);
        let mut copy = vec![[0_u8; 8]; 1536];
        for i in (0..1536).filter(|i| !untouched.get(*i as usize)) { copy[i as usize] = page(&block, i); }
        for (step, (what, i)) in steps.into_iter().enumerate() {
            match what {
                0 => block.put_page(i * 4096, &[step as u8 + 2]).unwrap(),
                1 => { page(&block, i); }
                // What is dropped of private memory reads zero; a shared page stays in its file.
                2 => block.memory().zap(i as usize * 4096, (1536 - i as usize).min(600) * 4096),
                _ => for i in sync(&mut *log, 1536) { copy[i] = page(&block, i as u64); },
            }
        }
        for i in sync(&mut *log, 1536) { copy[i] = page(&block, i as u64); }
        for i in 0..1536 { prop_assert_eq!(copy[i as usize], page(&block, i), "page {}", i); }
    }
}
