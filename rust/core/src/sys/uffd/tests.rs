//! Watched memory as the kernel really behaves.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use super::*;
use crate::sys::mmap::{Mapping, PAGE};

/// Where the kernel forgets a thread it does so once in some thousand.
const ROUNDS: u32 = 8000;

#[test]
fn every_error_has_one_meaning() {
    for (errno, meaning) in [
        (Errno::EXIST, Refusal::Exists),
        (Errno::AGAIN, Refusal::Again),
        (Errno::INTR, Refusal::Again),
        (Errno::NOENT, Refusal::Gone),
        (Errno::SRCH, Refusal::Gone),
        (Errno::NOMEM, Refusal::NoMemory),
        (Errno::NOSPC, Refusal::NoMemory),
        (Errno::DQUOT, Refusal::NoMemory),
        (Errno::INVAL, Refusal::Other(Errno::INVAL)),
        (Errno::FAULT, Refusal::Other(Errno::FAULT)),
    ] {
        assert_eq!(Refusal::from_errno(errno), meaning);
        // The kernel leaves a negative error number where the count goes.
        let count = -i64::from(errno.raw_os_error());
        assert_eq!(Placed::new(Err(errno), count, 8192), Placed { done: 0, why: Some(meaning) });
    }
    assert_eq!(Placed::new(Ok(()), 8192, 8192), Placed { done: 8192, why: None });
    assert_eq!(Placed::new(Err(Errno::AGAIN), 4096, 8192), Placed { done: 4096, why: Some(Refusal::Again) });
    assert_eq!(Placed::new(Err(Errno::AGAIN), i64::MAX, 8192).done, 8192, "never more than there was");
}

/// Registered memory of so many pages.
fn watched(pages: usize) -> (Uffd, Mapping, usize) {
    let uffd = Uffd::open(Features::empty(), Faults::Best).unwrap();
    let memory = Mapping::anon(pages * PAGE, false).unwrap();
    let address = memory.view().range(0, pages * PAGE).as_ptr().addr();
    uffd.register(address, pages * PAGE, Modes::MISSING).unwrap();
    (uffd, memory, address)
}

#[test]
fn a_batch_stops_where_a_page_is_and_says_so() {
    let (uffd, memory, address) = watched(6);
    assert_eq!(uffd.zeropage(address + 2 * PAGE, PAGE), Placed { done: PAGE, why: None });
    let bytes = vec![5; 6 * PAGE];
    assert_eq!(uffd.copy(address, &bytes), Placed { done: 2 * PAGE, why: Some(Refusal::Again) });
    assert_eq!(uffd.copy(address + 2 * PAGE, &bytes[..PAGE]), Placed { done: 0, why: Some(Refusal::Exists) });
    assert_eq!(uffd.zeropage(address + PAGE, 3 * PAGE).why, Some(Refusal::Exists));
    let source = memory.view().range(0, PAGE);
    assert_eq!(uffd.copy_guest(address + 5 * PAGE, source), Placed { done: PAGE, why: None });
    assert_eq!(uffd.copy(address + 1, &bytes[..PAGE]).why, Some(Refusal::Other(Errno::INVAL)));
    uffd.wake(address, PAGE).unwrap();
    uffd.unregister(address, 6 * PAGE).unwrap();
    assert_eq!(uffd.copy(address + 3 * PAGE, &bytes[..PAGE]), Placed { done: 0, why: Some(Refusal::Gone) });
    let mut back = vec![9; 6 * PAGE];
    memory.view().read(0, &mut back);
    let expected: Vec<u8> = [5, 5, 0, 0, 0, 5].into_iter().flat_map(|byte| [byte; PAGE]).collect();
    assert_eq!(back[..], expected[..]);
}

#[test]
fn a_fault_says_where_and_who() {
    let uffd = Uffd::open(Features::THREAD_ID, Faults::User).unwrap();
    assert_eq!(uffd.faults(), Faults::User);
    let memory = Mapping::anon(2 * PAGE, false).unwrap();
    let address = memory.view().range(0, PAGE).as_ptr().addr();
    uffd.register(address, 2 * PAGE, Modes::MISSING).unwrap();
    let mut faults = [Fault::default(); 4];
    assert_eq!(uffd.read_faults(&mut faults), Ok(0), "none yet, and no waiting");
    std::thread::scope(|scope| {
        let toucher = scope.spawn(|| {
            memory.view().fill(PAGE + 100, 1, 3);
            u32::try_from(rustix::thread::gettid().as_raw_nonzero().get()).unwrap()
        });
        rustix::event::poll(&mut [rustix::event::PollFd::new(&uffd, rustix::event::PollFlags::IN)], None).unwrap();
        assert_eq!(uffd.read_faults(&mut faults), Ok(1));
        assert_eq!(uffd.read_faults(&mut []), Ok(0));
        assert_eq!(uffd.zeropage(address + PAGE, PAGE).why, None);
        let thread = toucher.join().unwrap();
        assert_eq!(faults[0], Fault { address: address + PAGE, write: true, thread });
    });
    // The kernel's own touch is no fault for this descriptor, but an error.
    let error = memory.populate(0, PAGE, false).unwrap_err();
    assert!(error.kind == ErrorKind::NotPermitted && error.message.contains(REMEDY), "{error}");
}

#[test]
fn a_kernel_without_a_feature_says_so() {
    let error = Uffd::open(Features::from_bits_retain(1 << 62), Faults::User).unwrap_err();
    assert!(error.kind == ErrorKind::NotPermitted && error.message.contains("lacks one of"), "{error}");
}

#[test]
fn who_touches_a_page_while_the_watch_ends_is_not_forgotten() {
    let memory = Mapping::anon(PAGE, false).unwrap();
    let address = memory.view().range(0, PAGE).as_ptr().addr();
    let (round, seen) = (AtomicU32::new(0), AtomicU32::new(0));
    let wait = |word: &AtomicU32, at_least: u32| {
        let end = Instant::now() + Duration::from_secs(60);
        while word.load(Ordering::SeqCst) < at_least && Instant::now() < end {
            std::thread::yield_now();
        }
        word.load(Ordering::SeqCst) >= at_least
    };
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for number in 1..=ROUNDS {
                assert!(wait(&round, number));
                memory.view().read(0, &mut [0; 8]);
                seen.store(number, Ordering::SeqCst);
            }
        });
        for number in 1..=ROUNDS {
            memory.discard(0, PAGE).unwrap();
            let uffd = Uffd::open(Features::empty(), Faults::User).unwrap();
            uffd.register(address, PAGE, Modes::MISSING).unwrap();
            round.store(number, Ordering::SeqCst);
            (0..number * 7 % 2000).for_each(|_| std::hint::spin_loop());
            uffd.unregister(address, PAGE).unwrap();
            let went_on = wait(&seen, number);
            drop(uffd); // wakes it in any case
            assert!(went_on, "a thread still waits after the watch has ended, in round {number}");
        }
    });
}
