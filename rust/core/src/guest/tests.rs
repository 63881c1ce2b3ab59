#![allow(clippy::unwrap_used, clippy::cast_possible_truncation)]

use std::time::Duration;

use super::*;
use crate::ram::dirty::{self, DirtyMode};

const SIZE: u64 = 4 << 20;

fn guest_over(block: &Arc<Block>, spec: &str, vcpus: usize) -> Guest {
    Guest::new(Arc::clone(block), &spec.parse().unwrap(), 42, vcpus).unwrap()
}

fn guest(spec: &str, vcpus: usize) -> (Arc<Block>, Guest) {
    let block = Block::anon("ram", SIZE).unwrap();
    let guest = guest_over(&block, spec, vcpus);
    (block, guest)
}

/// Runs until at least `steps` more steps were done.
fn run_for(guest: &Guest, steps: u64) {
    let wanted = guest.steps() + steps;
    let end = Instant::now() + Duration::from_secs(30);
    guest.start().unwrap();
    while guest.steps() < wanted {
        assert!(Instant::now() < end, "{} of {wanted} steps", guest.steps());
        std::thread::yield_now();
    }
    guest.stop().unwrap();
}

/// Exactly `count` steps of every vCPU, one vCPU after the other.
fn step(guest: &Guest, count: u64) {
    let mut vcpus = guest.lock();
    for plan in guest.plans(&vcpus.registers).unwrap() {
        vcpu::note_began_zero(&mut vcpus.registers[plan.vcpu]);
        vcpu::run(&plan, &mut vcpus.registers[plan.vcpu], guest.block.view(), count, &AtomicBool::new(false), |_| {});
        guest.run.steps[plan.vcpu].store(vcpus.registers[plan.vcpu][STEPS], Ordering::Relaxed);
    }
}

fn bytes(block: &Block) -> Vec<u8> {
    let mut all = vec![0; block.used_length() as usize];
    block.read(0, &mut all).unwrap();
    all
}

fn all_registers(guest: &Guest) -> Vec<Registers> {
    (0..guest.vcpus()).map(|vcpu| guest.registers(vcpu).unwrap()).collect()
}

const SPECS: [&str; 5] = ["seq", "random", "zipf", "random,read=0.5", "zipf,wss=100K,threads=2"];

#[test]
fn a_step_count_from_elsewhere_may_wrap() {
    let (_, guest) = guest("seq,rate=1000000", 1);
    let mut registers = guest.registers(0).unwrap();
    registers[STEPS] = u64::MAX - 1;
    guest.set_registers(0, &registers).unwrap();
    let end = Instant::now() + Duration::from_secs(30);
    guest.start().unwrap();
    while guest.steps() >= u64::MAX - 1 {
        assert!(Instant::now() < end, "no step");
        std::thread::yield_now();
    }
    guest.stop().unwrap();
}

#[test]
fn what_ran_verifies() {
    for spec in SPECS {
        let (_, guest) = guest(spec, 3);
        run_for(&guest, 20_000);
        run_for(&guest, 20_000);
        let verdict = guest.verify().unwrap();
        assert_eq!(verdict, Verdict { steps: guest.steps(), first_difference: None }, "{spec}");
        assert!(verdict.equal() && verdict.steps >= 40_000);
    }
}

#[test]
fn stopping_anywhere_changes_nothing() {
    for spec in SPECS {
        let (ram_a, a) = guest(spec, 3);
        let (ram_b, b) = guest(spec, 3);
        step(&a, 10_000);
        for part in [1, 2, 997, 4000, 5000] {
            step(&b, part);
        }
        assert_eq!(all_registers(&a), all_registers(&b), "{spec}");
        assert!(bytes(&ram_a) == bytes(&ram_b), "{spec}");
    }
}

#[test]
fn it_goes_on_after_a_move() {
    for spec in SPECS {
        let (ram, source) = guest(spec, 3);
        run_for(&source, 10_000);
        let moved = Block::anon("ram", SIZE).unwrap();
        moved.write(0, &bytes(&ram)).unwrap();
        let destination = guest_over(&moved, "idle", 3);
        for (vcpu, registers) in all_registers(&source).iter().enumerate() {
            destination.set_registers(vcpu, registers).unwrap();
        }
        assert_eq!(destination.steps(), source.steps());
        run_for(&destination, 10_000);
        assert_eq!(destination.verify().unwrap(), Verdict { steps: destination.steps(), first_difference: None }, "{spec}");
    }
}

#[test]
fn one_flipped_byte_anywhere_shows() {
    let (ram, guest) = guest("random,wss=1M", 2);
    step(&guest, 50_000);
    // First and last byte of the working set, where two shares meet, and behind it.
    for offset in [0, (512 << 10) - 1, 512 << 10, (1 << 20) - 1, 1 << 20, SIZE - 1] {
        let mut byte = [0];
        ram.read(offset, &mut byte).unwrap();
        ram.write(offset, &[byte[0] ^ 1]).unwrap();
        assert_eq!(guest.verify().unwrap().first_difference, Some(offset));
        ram.write(offset, &byte).unwrap();
    }
    assert!(guest.verify().unwrap().equal());
}

/// The slot that the last step of a one-vCPU guest changed, with its content before and after.
fn last_write(ram: &Block, guest: &Guest) -> (u64, [u8; 8], [u8; 8]) {
    let before = bytes(ram);
    step(guest, 1);
    let after = bytes(ram);
    let offset = before.iter().zip(&after).position(|(a, b)| a != b).unwrap() / 8 * 8;
    let slot = |of: &[u8]| of[offset..offset + 8].try_into().unwrap();
    (offset as u64, slot(&before), slot(&after))
}

#[test]
fn one_lost_write_shows() {
    for spec in ["seq", "random", "zipf"] {
        let (ram, guest) = guest(spec, 1);
        step(&guest, 5000);
        let (offset, before, after) = last_write(&ram, &guest);
        ram.write(offset, &before).unwrap();
        let found = guest.verify().unwrap().first_difference.unwrap();
        assert_eq!(found, offset + before.iter().zip(&after).position(|(a, b)| a != b).unwrap() as u64);
        // A write that was lost shows even where the guest has written the same place again since.
        step(&guest, 2_000_000);
        assert!(!guest.verify().unwrap().equal(), "{spec}");
    }
}

#[test]
fn one_doubled_write_shows() {
    for spec in ["seq", "random", "zipf"] {
        let (ram, guest) = guest(spec, 1);
        step(&guest, 5000);
        let earlier = guest.registers(0).unwrap();
        let (offset, ..) = last_write(&ram, &guest);
        let later = guest.registers(0).unwrap();
        // The step is done again on what it wrote, as by a source that runs on after its registers have left.
        guest.set_registers(0, &earlier).unwrap();
        step(&guest, 1);
        let doubled = guest.verify().unwrap().first_difference.unwrap();
        assert_eq!(doubled / 8 * 8, offset, "{spec}");
        // The same with the right registers: memory alone says it.
        guest.set_registers(0, &later).unwrap();
        assert_eq!(guest.verify().unwrap().first_difference, Some(doubled), "{spec}");
    }
}

#[test]
fn one_wrong_read_shows_in_the_registers() {
    let (ram, guest) = guest("seq,read=1", 2);
    step(&guest, 100);
    assert!(guest.verify().unwrap().equal() && ram.is_zero(0, SIZE as usize).unwrap());
    ram.write(0, &[1; 4096]).unwrap();
    ram.write(SIZE / 2, &[1; 4096]).unwrap();
    step(&guest, (SIZE / 2) / 4096);
    ram.write(0, &[0; 4096]).unwrap();
    ram.write(SIZE / 2, &[0; 4096]).unwrap();
    // The digest (register 7) of vCPU 0 is the first that differs.
    assert_eq!(guest.verify().unwrap().first_difference, Some(SIZE + 8 * 7));
}

#[test]
fn a_changed_register_shows() {
    let (_, guest) = guest("random,wss=64K", 2);
    step(&guest, 5000);
    let right = guest.registers(1).unwrap();
    for register in [5, 6, 7, 8, 15] {
        let mut wrong = right;
        wrong[register] ^= 1 << 40;
        guest.set_registers(1, &wrong).unwrap();
        assert_eq!(guest.verify().unwrap().first_difference, Some(SIZE + 8 * (16 + register as u64)));
    }
    // One step more or less is a difference in memory already.
    for steps in [right[STEPS] - 1, right[STEPS] + 1] {
        let mut wrong = right;
        wrong[STEPS] = steps;
        guest.set_registers(1, &wrong).unwrap();
        assert!(guest.verify().unwrap().first_difference.unwrap() < SIZE);
    }
}

#[test]
fn registers_that_are_no_state_are_refused() {
    let (_, guest) = guest("zipf,wss=64K", 2);
    step(&guest, 10);
    let right = guest.registers(0).unwrap();
    let change = |register: usize, value: u64| {
        let mut r = right;
        r[register] = value;
        r
    };
    let cursor = 16;
    for wrong in [
        change(0, 0),
        change(0, right[0] ^ 1),             // layout
        change(0, right[0] | 0xff << 8),     // pattern
        change(0, right[0] & !(0xff << 8)),  // pattern: idle
        change(0, right[0] ^ 1 << 16),       // another vCPU's
        change(0, right[0] & !(0xff << 24)), // no threads
        change(0, right[0] | 0xff << 48),    // read share above 1
        change(0, right[0] | 1 << 60),       // a bit without meaning
        change(1, 0),
        change(1, 1),
        change(1, SIZE / 4096 + 1),
        change(1, u64::MAX),
        change(3, u64::MAX),
        change(6, cursor),
    ] {
        let error = guest.set_registers(0, &wrong).unwrap_err();
        assert_eq!(error.kind, ErrorKind::InvalidArgument, "{wrong:x?}");
    }
    assert_eq!(guest.registers(2).unwrap_err().kind, ErrorKind::InvalidArgument);
    assert_eq!(guest.set_registers(2, &[0; REGISTERS]).unwrap_err().kind, ErrorKind::InvalidArgument);
    // Each alone is fine, together they are not one guest.
    guest.set_registers(0, &change(2, 7)).unwrap();
    assert_eq!(guest.start().unwrap_err().kind, ErrorKind::InvalidState);
    guest.set_registers(0, &[0; REGISTERS]).unwrap();
    assert_eq!(guest.verify().unwrap_err().kind, ErrorKind::InvalidState);
    guest.set_registers(0, &right).unwrap();
    assert!(guest.verify().unwrap().equal());
}

#[test]
fn what_cannot_be_replayed_says_why() {
    let why = |guest: &Guest| {
        let error = guest.verify().unwrap_err();
        assert_eq!(error.kind, ErrorKind::InvalidState);
        error.message
    };
    let (_, idle) = guest("idle", 1);
    assert!(why(&idle).contains("idle"));
    let (ram, busy) = guest("random", 1);
    assert!(why(&busy).contains("not made a step"));
    ram.write(5, &[1]).unwrap();
    busy.start().unwrap();
    assert!(why(&busy).contains("runs"));
    assert!(busy.registers(0).unwrap_err().message.contains("runs"));
    assert!(busy.set_registers(0, &[0; REGISTERS]).unwrap_err().message.contains("runs"));
    busy.stop().unwrap();
    run_for(&busy, 1);
    assert!(why(&busy).contains("not all zero"));
    let (_, long) = guest("random", 1);
    step(&long, 1);
    let mut registers = long.registers(0).unwrap();
    registers[STEPS] = verify::STEPS_MAX + 1;
    long.set_registers(0, &registers).unwrap();
    assert!(why(&long).contains("too many"));
}

#[test]
fn a_guest_that_does_not_fit_is_refused() {
    let block = Block::anon("ram", SIZE).unwrap();
    for (spec, vcpus, word) in [
        ("seq", 0, "1 to 255"),
        ("seq", 256, "1 to 255"),
        ("seq,threads=3", 2, "2 vCPUs"),
        ("seq,wss=5M", 2, "does not fit"),
        ("seq,wss=4K", 2, "does not fit"),
    ] {
        let error = Guest::new(Arc::clone(&block), &spec.parse().unwrap(), 0, vcpus).unwrap_err();
        assert_eq!(error.kind, ErrorKind::InvalidArgument);
        assert!(error.message.contains(word), "{spec}: {}", error.message);
    }
}

#[test]
fn start_and_stop_may_be_said_twice_and_idle_does_nothing() {
    let (ram, guest) = guest("idle", 2);
    guest.stop().unwrap();
    for _ in 0..2 {
        guest.start().unwrap();
        assert!(guest.running());
    }
    for _ in 0..2 {
        guest.stop().unwrap();
        assert!(!guest.running());
    }
    assert_eq!((guest.steps(), all_registers(&guest)), (0, vec![[0; REGISTERS]; 2]));
    assert!(ram.is_zero(0, SIZE as usize).unwrap());
}

#[test]
fn a_slow_guest_stops_at_once() {
    let (_, guest) = guest("random,rate=1,threads=2", 2);
    guest.start().unwrap();
    let begin = Instant::now();
    guest.stop().unwrap();
    assert!(begin.elapsed() < Duration::from_millis(500));
}

#[test]
fn a_rate_is_kept_and_a_throttled_guest_still_moves() {
    let (_, guest) = guest("random,rate=100000,threads=2", 2);
    guest.throttle(500);
    let begin = Instant::now();
    run_for(&guest, 2_000);
    guest.throttle(0);
    run_for(&guest, 20_000);
    // 22000 steps at 100000 a second take 220 ms; forgiven backlog makes it longer, never shorter.
    assert!(begin.elapsed() > Duration::from_millis(200), "{:?}", begin.elapsed());
    assert!(guest.verify().unwrap().equal());
}

#[test]
fn shares_are_disjoint_and_whole() {
    for (wss_pages, threads) in [(8, 8), (9, 8), (1000, 7), (u64::from(u32::MAX), 255)] {
        let mut next = 0;
        for vcpu in 0..threads {
            let plan = Plan { pattern: Pattern::Seq, vcpu, threads, wss_pages, seed: 0, rate: 1000, read_share: 0, began_zero: false };
            let (first, pages) = plan.share();
            assert_eq!(first, next);
            next = first + pages;
        }
        assert_eq!(next, wss_pages);
    }
}

#[test]
fn patterns_reach_every_page_and_zipf_prefers_the_first() {
    for pattern in ["seq", "random", "zipf"] {
        let (ram, guest) = guest(&format!("{pattern},wss=1200K"), 1);
        step(&guest, 200_000);
        let written = (0..300).filter(|page| !ram.is_zero(page * 4096, 4096).unwrap()).count();
        assert_eq!(written, 300, "{pattern}");
    }
    let (ram, zipf) = guest("zipf", 1);
    step(&zipf, 1000);
    let words = |page: u64| (0..512).filter(|slot| !ram.is_zero(page * 4096 + slot * 8, 8).unwrap()).count();
    // Eleven octaves: each has one eleventh of the steps, the first of them one page.
    assert!((50..140).contains(&words(0)), "{}", words(0));
    assert!(words(900) < 5);
}

#[test]
fn an_explicit_log_hears_of_every_write() {
    let (ram, guest) = guest("random,wss=256K", 2);
    run_for(&guest, 1000);
    let mut log = dirty::open(&ram, DirtyMode::Explicit).unwrap();
    guest.start().unwrap();
    log.start(&mut Bitmap::new(ram.pages())).unwrap();
    let mut copy = bytes(&ram);
    let mut round = 0;
    loop {
        round += 1;
        if round == 20 {
            guest.stop().unwrap();
        }
        let mut dirty = Bitmap::new(ram.pages());
        log.sync(&mut dirty).unwrap();
        for page in (0..ram.pages()).filter(|&page| dirty.get(page)) {
            ram.read((page * TARGET_PAGE) as u64, &mut copy[page * TARGET_PAGE..][..TARGET_PAGE]).unwrap();
        }
        if round == 20 {
            break;
        }
    }
    assert!(copy == bytes(&ram));
    log.stop();
    run_for(&guest, 1000);
    assert!(guest.verify().unwrap().equal());
}

#[test]
fn dropping_a_running_guest_ends_its_threads() {
    let (ram, guest) = guest("random", 2);
    guest.start().unwrap();
    let watched = Arc::downgrade(&ram);
    drop((guest, ram));
    let end = Instant::now() + Duration::from_secs(10);
    while watched.strong_count() > 0 {
        assert!(Instant::now() < end);
        std::thread::yield_now();
    }
}
