//! Placing pages, requests across broken links, and the record.

use super::*;

#[test]
fn a_page_is_asked_for_once_and_wakes_all() {
    for (kind, block) in kinds("a_page_is_asked_for_once_and_wakes_all", 4 * HUGE) {
        let rig = Rig::new(std::slice::from_ref(&block), |_| {});
        let size = rig.memory.page_size(0);
        let reads: Vec<_> = (0..6).map(|i| touch(&block, 2 * size + i * 700, 1)).collect();
        assert_eq!(rig.next_request(), (0, 2 * size, size as u32), "{kind}");
        // Another page: once its request is here, those before it were read.
        let other = touch(&block, size, 1);
        assert_eq!(rig.next_request(), (0, size, size as u32), "{kind}");
        assert_eq!((rig.requests.outstanding(), rig.requests.sent()), (2, 2), "{kind}");
        let mut placer = rig.placer();
        rig.serve(&mut placer, 0, size, 1).unwrap();
        rig.serve(&mut placer, 0, 2 * size, 2).unwrap();
        assert!(reads.iter().all(|read| wait(read) == [2]) && wait(&other) == [1], "{kind}");
        assert_eq!(rig.requests.outstanding(), 0, "{kind}");
        assert!(rig.asked.try_recv().is_err(), "{kind}");
        let total = rig.requests.latency().summary()["total"]["count"].as_u64();
        assert_eq!((total, rig.requests.latency().unrecorded()), (Some(2), 0), "{kind}: one record a page that was asked for");
    }
}

#[test]
fn zero_pages_and_filled_ones() {
    for (kind, block) in kinds("zero_pages_and_filled_ones", 4 * HUGE) {
        for batched in [false, true] {
            let rig = Rig::new(std::slice::from_ref(&block), |_| {});
            let mut placer = if batched { Placer::batched(Arc::clone(&rig.requests)) } else { rig.placer() };
            for page in 0..block.pages() as u64 {
                match page / 512 {
                    1 => placer.zero(0, page * PAGE, 0xee),
                    // A page of data among zeros, the first or the last of its group in turn.
                    2 if page % 512 == 0 => placer.page(0, page * PAGE, &[6; TARGET_PAGE]),
                    3 if page % 512 == 511 => placer.page(0, page * PAGE, &[7; TARGET_PAGE]),
                    _ => placer.zero(0, page * PAGE, 0),
                }
                .unwrap();
            }
            placer.finish().unwrap();
            rig.memory.check_complete().unwrap();
            rig.memory.disarm();
            let mut expected = vec![0; 4 * HUGE as usize];
            expected[HUGE as usize..2 * HUGE as usize].fill(0xee);
            expected[2 * HUGE as usize..2 * HUGE as usize + TARGET_PAGE].fill(6);
            expected[4 * HUGE as usize - TARGET_PAGE..].fill(7);
            assert!(bytes(&block, 0, 4 * HUGE as usize) == expected, "{kind}, batched {batched}");
        }
    }
}

#[test]
fn what_comes_twice_or_astray_is_refused_and_changes_nothing() {
    for (kind, block) in kinds("what_comes_twice_or_astray_is_refused_and_changes_nothing", 2 * HUGE) {
        let rig = Rig::new(std::slice::from_ref(&block), |_| {});
        let (mut placer, mut other, size) = (rig.placer(), rig.placer(), rig.memory.page_size(0));
        rig.serve(&mut placer, 0, size, 1).unwrap();
        for placer in [&mut placer, &mut other] {
            refused(ErrorKind::BadAddress, "arrived twice", rig.serve(placer, 0, size, 2));
        }
        assert_eq!(bytes(&block, size, 1), [1], "{kind}");
        for offset in [1, PAGE - 1, 2 * HUGE, u64::MAX - 4095] {
            refused(ErrorKind::BadAddress, "misaligned or outside", placer.zero(0, offset, 0));
            refused(ErrorKind::BadAddress, "ram: page", placer.page(0, offset, &[1; TARGET_PAGE]));
        }
    }
}

#[test]
fn a_huge_page_comes_in_any_order_but_whole() {
    let Some(block) = huge(3) else { return skip("a_huge_page_comes_in_any_order_but_whole", "no huge pages") };
    let rig = Rig::new(std::slice::from_ref(&block), |_| {});
    let mut placer = rig.placer();
    let read = touch(&block, HUGE + 5 * PAGE, 1);
    assert_eq!(rig.next_request(), (0, HUGE, HUGE as u32));
    for part in (0..512).rev() {
        assert!(!rig.memory.is_received(0, HUGE + 3));
        placer.page(0, HUGE + part * PAGE, &[part as u8; TARGET_PAGE]).unwrap();
    }
    assert_eq!(wait(&read), [5]);
    // Half a page, then another: the half is named, and forgotten by `abandon`.
    placer.page(0, 0, &[1; TARGET_PAGE]).unwrap();
    refused(ErrorKind::BadAddress, "page 0x0 arrived twice", placer.page(0, 0, &[1; TARGET_PAGE]));
    refused(ErrorKind::BadAddress, "only 1 of the 512 parts of the page of 0x200000 bytes at 0x0 came", placer.zero(0, 2 * HUGE, 0));
    refused(ErrorKind::BadAddress, "only 1 of the 512", placer.finish());
    placer.flush().unwrap();
    placer.abandon();
    placer.finish().unwrap();
    rig.serve(&mut placer, 0, 2 * HUGE, 8).unwrap();
    assert_eq!(rig.memory.received(0).runs().collect::<Vec<_>>(), [512..1536]);
    // Two channels with the same page: one of them has it.
    let mut other = rig.placer();
    for part in 0..511 {
        placer.zero(0, part * PAGE, 4).unwrap();
        other.zero(0, part * PAGE, 5).unwrap();
    }
    other.zero(0, 511 * PAGE, 5).unwrap();
    refused(ErrorKind::BadAddress, "arrived twice", placer.zero(0, 511 * PAGE, 4));
    assert_eq!(bytes(&block, 511 * PAGE, 1), [5]);
}

#[test]
fn a_batch_is_placed_when_it_is_flushed_but_a_page_in_need_at_once() {
    let block = block("ram", HUGE, Backing::Anon, false);
    let rig = Rig::new(std::slice::from_ref(&block), |_| {});
    let mut placer = Placer::batched(Arc::clone(&rig.requests));
    let page = |placer: &mut Placer, page: u64| placer.page(0, page * PAGE, &[page as u8; TARGET_PAGE]).unwrap();
    (0..5).for_each(|i| page(&mut placer, i));
    assert_eq!(rig.memory.received(0).count(), 0);
    refused(ErrorKind::BadAddress, "arrived twice", placer.page(0, 2 * PAGE, &[9; TARGET_PAGE]));
    let read = touch(&block, 100 * PAGE, 1);
    rig.next_request();
    page(&mut placer, 100);
    assert_eq!(wait(&read), [100]);
    assert_eq!(rig.memory.received(0).runs().collect::<Vec<_>>(), [100..101]);
    // Not the next one: what was collected goes first.
    page(&mut placer, 7);
    assert_eq!(rig.memory.received(0).next_clear(0), Some(5));
    // Forgotten pages may come again.
    placer.abandon();
    page(&mut placer, 7);
    placer.zero(0, 8 * PAGE, 0).unwrap();
    assert!(rig.memory.received(0).get(7) && !rig.memory.received(0).get(8), "zeros and data do not go together");
    placer.flush().unwrap();
    assert_eq!(rig.memory.received(0).count(), 8);
    (200..232).for_each(|i| page(&mut placer, i));
    placer.finish().unwrap();
    assert_eq!(rig.memory.received(0).count(), 40);
    for i in (0..5).chain([7]).chain(200..232) {
        assert_eq!(bytes(&block, i * PAGE + 4095, 1), [i as u8]);
    }
}

#[test]
fn something_where_nothing_may_be_is_named() {
    for (kind, block) in kinds("something_where_nothing_may_be_is_named", 8 * HUGE) {
        let rig = Rig::new(std::slice::from_ref(&block), |_| {});
        let size = rig.memory.page_size(0);
        let uffd = rig.memory.uffd().unwrap();
        // As nobody can from outside: with the descriptor itself.
        let zeros = vec![0; size as usize];
        assert_eq!(uffd.copy(block.address() + 2 * size as usize, &zeros).why, None, "{kind}");
        let mut placer = Placer::batched(Arc::clone(&rig.requests));
        let mut served = Ok(());
        for host in 0..4 {
            served = served.and_then(|()| rig.serve(&mut placer, 0, host * size, 3));
        }
        refused(ErrorKind::BadAddress, &format!("something is at page {:#x} although", 2 * size), served.and_then(|()| placer.finish()));
        placer.abandon();
        // What came before it in the batch is placed.
        assert_eq!(rig.memory.received(0).count(), 2 * size / PAGE, "{kind}");
        assert_eq!(bytes(&block, size, 1), [3], "{kind}");
    }
}

#[test]
fn no_memory_is_said_and_cured() {
    // room for 32 pages
    let Some(place) = Tmpfs::mount("128k") else { return };
    let options = BlockOptions { backing: Backing::File, path: Some(place.path().join("ram")), ..BlockOptions::default() };
    let block = Block::new("ram", HUGE, &options).unwrap();
    let rig = Rig::new(std::slice::from_ref(&block), |_| {});
    let mut placer = Placer::batched(Arc::clone(&rig.requests));
    let page = |placer: &mut Placer, page: u64| placer.page(0, page * PAGE, &[page as u8 + 1; TARGET_PAGE]);
    let mut sent = 0;
    let error = loop {
        match page(&mut placer, sent) {
            Ok(()) => sent += 1,
            Err(error) => break error,
        }
    };
    placer.abandon();
    assert_eq!(error.kind, ErrorKind::NoMemory, "{error}");
    assert!(error.message.contains("free some"), "{error}");
    let there = rig.memory.received(0).next_clear(0).unwrap() as u64;
    assert!((16..=32).contains(&there) && there <= sent, "{there} of {sent}");
    // Nobody sees zeros: who touches the next page waits, until there is room.
    let read = touch(&block, there * PAGE, 1);
    assert_eq!(rig.next_request(), (0, there * PAGE, 4096));
    refused(ErrorKind::NoMemory, "no memory for page", page(&mut placer, there));
    place.resize("4m");
    page(&mut placer, there).unwrap();
    assert_eq!(wait(&read), [there as u8 + 1]);
}

/// A link that fails at once.
struct Broken;
impl Requester for Broken {
    fn request(&mut self, _: usize, _: u64, _: u32) -> Result<()> {
        Err(crate::Error::new(ErrorKind::Closed, "gone"))
    }
}

#[test]
fn requests_outlive_a_broken_link() {
    let block = block("ram", HUGE, Backing::Anon, false);
    let rig = Rig::new(std::slice::from_ref(&block), |_| {});
    let first = touch(&block, 9 * PAGE, 1);
    assert_eq!(rig.next_request().1, 9 * PAGE);
    // The link breaks: what is asked from here on is kept.
    rig.requests.set_requester(None);
    let others: Vec<_> = [3, 5].map(|page| touch(&block, page * PAGE, 1)).into();
    while rig.requests.outstanding() < 3 {
        std::thread::yield_now();
    }
    assert!(rig.asked.try_recv().is_err());
    // One that fails at once changes nothing.
    rig.requests.set_requester(Some(Box::new(Broken)));
    assert_eq!((rig.requests.outstanding(), rig.requests.sent()), (3, 1));
    // And with the next everything is asked again, in order.
    let (tell, asked) = channel();
    rig.requests.set_requester(Some(Box::new(Told(tell))));
    assert_eq!(asked.try_iter().map(|(_, offset, _)| offset / PAGE).collect::<Vec<_>>(), [3, 5, 9]);
    let mut placer = rig.placer();
    for page in [9, 5, 3] {
        rig.serve(&mut placer, 0, page * PAGE, page as u8).unwrap();
    }
    assert_eq!((wait(&first), wait(&others[0]), wait(&others[1])), (vec![9], vec![3], vec![5]));
    assert_eq!((rig.requests.outstanding(), rig.requests.sent()), (0, 4));
    assert!(format!("{:?}", rig.requests).contains("outstanding: 0"));
}

#[test]
fn the_record_adds_up() {
    let block = block("ram", HUGE, Backing::Anon, false);
    let rig = Rig::new(std::slice::from_ref(&block), |_| {});
    let latency = rig.requests.latency();
    latency.set_cpus(1);
    let mut placer = rig.placer();
    for page in 0..50 {
        let read = touch(&block, page * PAGE, 1);
        rig.next_request();
        placer.page(0, page * PAGE, &[1; TARGET_PAGE]).unwrap();
        wait(&read);
    }
    // Pages that nobody waited for are no faults.
    (60..80).for_each(|page| placer.page(0, page * PAGE, &[1; TARGET_PAGE]).unwrap());
    let record = latency.snapshot();
    let mean = |phase: Phase| record[phase.name()]["mean_ns"].as_u64().unwrap();
    for phase in Phase::ALL {
        let one = &record[phase.name()];
        assert_eq!(one["count"], 50, "{record}");
        assert_eq!(one["buckets"].as_array().unwrap().iter().map(|bucket| bucket[2].as_u64().unwrap()).sum::<u64>(), 50);
        let at = |name: &str| one[name].as_u64().unwrap();
        assert!(
            at("p50_ns") <= at("p90_ns") && at("p90_ns") <= at("p99_ns") && at("p99_ns") <= at("p999_ns") && at("p999_ns") <= at("max_ns")
        );
    }
    let parts = mean(Phase::Read) + mean(Phase::Request) + mean(Phase::FirstByte) + mean(Phase::Place);
    assert!(parts.abs_diff(mean(Phase::Total)) <= 4, "{parts} of {}", mean(Phase::Total));
    let keys: Vec<_> = latency.summary()["place"].as_object().unwrap().keys().cloned().collect();
    assert_eq!(keys, ["count", "p50", "p90", "p99", "p999", "max"]);
    // Each touch was by a thread of its own, and that was the only processor.
    let (all, threads) = latency.blocktime();
    assert_eq!(threads.len(), 50);
    let sum: u64 = threads.iter().map(|(_, time)| time).sum();
    assert_eq!(all, sum);
    assert!(sum > 0 && threads.iter().all(|(id, _)| *id != 0 && *id != std::process::id()));
}

#[test]
fn more_faults_than_slots_are_counted() {
    let latency = Latency::new();
    for page in 0..5000 {
        latency.read(0, page, 0, 0);
    }
    let lost = latency.unrecorded();
    assert!((5000 - 1024..5000).contains(&(lost as usize)), "{lost}");
    for page in 0..5000 {
        latency.requested(0, page);
        latency.placed(0, page, Some(latency.now()));
    }
    assert_eq!(latency.summary()["total"]["count"], 5000 - lost);
    // And all slots are free again.
    latency.read(1, 1, 0, 0);
    assert_eq!(latency.unrecorded(), lost);
}

#[test]
fn standing_still_together() {
    let latency = Latency::new();
    latency.set_cpus(2);
    let spin = |until: u64| while latency.now() < until {};
    latency.blocked(7, 0, 1, latency.now());
    spin(latency.now() + 1_000_000);
    latency.blocked(8, 0, 2, latency.now());
    let both = latency.now();
    spin(both + 1_000_000);
    latency.placed(0, 1, None);
    spin(latency.now() + 1_000_000);
    latency.placed(0, 2, None);
    let (all, threads) = latency.blocktime();
    let [(7, first), (8, second)] = threads[..] else { panic!("{threads:?}") };
    assert!(all >= 1_000_000 && all + 1_000_000 <= first && all + 1_000_000 <= second, "{all} {first} {second}");
    // Unknown threads (a kernel without their numbers) are left out.
    latency.blocked(0, 0, 3, latency.now());
    latency.placed(0, 3, None);
    assert_eq!(latency.blocktime().1.len(), 2);
}
