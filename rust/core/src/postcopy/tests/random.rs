//! The whole promise, for any order: threads touch what is missing while pages come in any order, some of them wrongly; what a thread
//! reads is what the source has, every thread ends, and after all is placed the memory equals the source's.

use std::sync::atomic::{AtomicUsize, Ordering};

use proptest::prelude::*;

use super::*;

const PAGES: usize = 1024;

/// What the source has at a page; some are zero.
fn value(page: usize) -> u8 {
    if page.is_multiple_of(5) { 0 } else { (page % 251) as u8 + 1 }
}

fn model() -> Vec<u8> {
    (0..PAGES).flat_map(|page| [value(page); TARGET_PAGE]).collect()
}

/// A small generator, the same on every run.
fn xorshift(state: &mut u64) -> usize {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    (*state >> 11) as usize
}

/// Sends target pages of one host page, in an order of its own for the larger ones.
fn send(placer: &mut Placer, host: usize, ratio: usize, salt: usize) -> Result<()> {
    for i in 0..ratio {
        let page = host * ratio + (i + salt) % ratio;
        let offset = (page * TARGET_PAGE) as u64;
        match value(page) {
            0 if salt.is_multiple_of(2) => placer.zero(0, offset, 0)?,
            value => placer.page(0, offset, &[value; TARGET_PAGE])?,
        }
    }
    Ok(())
}

fn run(kind: &str, block: &Arc<Block>, seed: u64, channels: usize, touchers: u64, batched: bool) {
    let ratio = block.page_size() as usize / TARGET_PAGE;
    let hosts = PAGES / ratio;
    let rig = Rig::new(std::slice::from_ref(block), |memory| {
        // Precopy has brought some, and left things behind elsewhere.
        block.fill(0, PAGES * TARGET_PAGE, 0xaa).unwrap();
        for page in (0..hosts).filter(|host| host.is_multiple_of(7)).flat_map(|host| host * ratio..(host + 1) * ratio) {
            block.fill((page * TARGET_PAGE) as u64, TARGET_PAGE, value(page)).unwrap();
            memory.note_received(0, page);
        }
    });
    let mut order: Vec<usize> = (0..hosts).filter(|host| !host.is_multiple_of(7)).collect();
    let mut state = seed | 1;
    for i in (1..order.len()).rev() {
        order.swap(i, xorshift(&mut state) % (i + 1));
    }
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for toucher in 0..touchers {
            let mut state = seed.wrapping_mul(toucher * 2 + 3) | 1;
            scope.spawn(move || {
                for _ in 0..200 {
                    let page = xorshift(&mut state) % PAGES;
                    let at = xorshift(&mut state) % TARGET_PAGE;
                    let found = bytes(block, (page * TARGET_PAGE + at) as u64, 1);
                    assert_eq!(found, [value(page)], "{kind}: page {page}, seed {seed}");
                }
            });
        }
        for channel in 0..channels {
            let (memory, requests, order, next) = (&rig.memory, &rig.requests, &order, &next);
            let mut placer = if batched { Placer::batched(Arc::clone(&rig.requests)) } else { rig.placer() };
            scope.spawn(move || {
                while let Some(host) = order.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let salt = host.wrapping_mul(31) + channel;
                    if salt % 6 == 4 {
                        placer.flush().unwrap();
                    }
                    send(&mut placer, *host, ratio, salt).unwrap();
                    match salt % 6 {
                        // Twice, also on the other channel's account; outside; between two pages; all without effect.
                        0 => refused(ErrorKind::BadAddress, "twice", send(&mut placer, *host, ratio, salt)),
                        1 => refused(ErrorKind::BadAddress, "outside", placer.zero(0, (PAGES * TARGET_PAGE) as u64, 0)),
                        2 => {
                            refused(
                                ErrorKind::BadAddress,
                                "misaligned",
                                placer.page(0, (host * TARGET_PAGE) as u64 + 8, &[1; TARGET_PAGE]),
                            );
                        }
                        3 => placer.flush().unwrap(),
                        // A link that breaks: what was not placed comes again.
                        4 => {
                            placer.abandon();
                            if !memory.is_received(0, (host * ratio * TARGET_PAGE) as u64) {
                                send(&mut placer, *host, ratio, salt).unwrap();
                            }
                        }
                        _ => {}
                    }
                    // Whoever waits for bytes flushes first; a page in a batch is of no use to who waits for it.
                    if requests.outstanding() > 0 {
                        placer.flush().unwrap();
                    }
                }
                placer.finish().unwrap();
            });
        }
    });
    rig.memory.check_complete().unwrap_or_else(|error| panic!("{kind}, seed {seed}: {error}"));
    assert_eq!(rig.requests.outstanding(), 0, "{kind}, seed {seed}");
    rig.memory.disarm();
    assert!(bytes(block, 0, PAGES * TARGET_PAGE) == model(), "{kind}, seed {seed}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn memory_equals_the_source(seed: u64, channels in 1_usize..3, touchers in 0_u64..5, batched: bool, shared: bool) {
        let backing = if shared { Backing::Memfd } else { Backing::Anon };
        let block = block("ram", (PAGES * TARGET_PAGE) as u64, backing, true);
        run(backing.name(), &block, seed, channels, touchers, batched);
    }

    #[test]
    fn memory_of_huge_pages_equals_the_source(seed: u64, channels in 1_usize..3, touchers in 0_u64..5) {
        match huge(2) {
            Some(block) => run("hugetlb", &block, seed, channels, touchers, true),
            None => skip("memory_of_huge_pages_equals_the_source", "no huge pages"),
        }
    }
}
