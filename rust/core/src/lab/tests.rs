//! A link with the speed that was asked for, and a toucher that sees what it touches.
#![allow(clippy::unwrap_used)]

use std::collections::HashSet;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use super::{Link, Order, Shaper, Toucher, Touches, fill};
use crate::ErrorKind;
use crate::ram::Block;

const PAGES: u32 = 300;

#[test]
fn orders_that_touch_each_page_once() {
    let all: HashSet<u32> = (0..PAGES).collect();
    for order in [Order::Seq, Order::Random] {
        let touched: Vec<u32> = Touches::new(order, PAGES, 7).collect();
        assert_eq!(touched.len(), all.len());
        assert_eq!(touched.iter().copied().collect::<HashSet<_>>(), all);
        assert_eq!(order == Order::Seq, touched.is_sorted());
    }
}

#[test]
fn zipf_touches_few_pages_often_and_many_rarely() {
    let mut counts = vec![0_u32; PAGES as usize];
    Touches::new(Order::Zipf, PAGES, 7).for_each(|page| counts[page as usize] += 1);
    counts.sort_unstable_by(|a, b| b.cmp(a));
    let total: u32 = counts.iter().sum();
    assert_eq!(total, 8 * PAGES);
    assert!(counts[0] * 20 > total, "the first of 9 octaves is one page: {counts:?}");
    assert!(counts[..30].iter().sum::<u32>() * 2 > total, "{counts:?}");
    assert!(counts.iter().filter(|&&count| count > 0).count() > 200, "{counts:?}");
}

#[test]
fn the_seed_alone_makes_the_order() {
    for order in [Order::Random, Order::Zipf] {
        let touched = |seed| Touches::new(order, PAGES, seed).collect::<Vec<_>>();
        assert_eq!(touched(1), touched(1));
        assert_ne!(touched(1), touched(2));
    }
    // Fixed for ever: experiments of different days are compared.
    assert_eq!(Touches::new(Order::Random, 8, 1).collect::<Vec<_>>(), [0, 3, 7, 1, 2, 6, 5, 4]);
}

#[test]
fn one_page_is_an_order_too() {
    for order in [Order::Seq, Order::Random, Order::Zipf] {
        assert!(Touches::new(order, 1, 3).all(|page| page == 0));
    }
}

#[test]
fn a_toucher_touches_all_and_sees_what_is_wrong() {
    let block = Block::anon("ram", u64::from(PAGES) * 4096).unwrap();
    fill(&block).unwrap();
    block.write(5 * 4096, &[0]).unwrap();
    for write in [false, true] {
        let toucher = Toucher::new(block.clone(), Order::Random, 1, 4096, write, 0).unwrap();
        toucher.start().unwrap();
        assert!(toucher.wait(Some(Duration::from_secs(20))));
        toucher.start().unwrap();
        toucher.stop();
        let record = toucher.record();
        assert_eq!(record["touches"], PAGES);
        assert_eq!(record["wrong"], 1, "write: {write}");
        assert!(record["seconds"].as_f64().unwrap() > 0.0);
        let mut word = [0; 8];
        block.read(9 * 4096 + 8, &mut word).unwrap();
        assert_eq!(u64::from_ne_bytes(word), if write { 9 * 4096 } else { u64::from_ne_bytes([10; 8]) });
    }
}

#[test]
fn a_toucher_ends_after_so_many_faults() {
    // Never touched before: the kernel's own faults take longer than a touch of what is there, some of them.
    let block = Block::anon("ram", 64 << 20).unwrap();
    let toucher = Toucher::new(block, Order::Random, 1, 4096, true, 1).unwrap();
    assert!(!toucher.wait(Some(Duration::ZERO)), "it has not begun");
    toucher.start().unwrap();
    assert!(toucher.wait(None));
    let record = toucher.record();
    assert_eq!(record["faults"]["count"], 1);
    assert!(record["touches"].as_u64().unwrap() < 16384);
}

#[test]
fn what_cannot_be_touched() {
    let block = Block::anon("ram", 8192).unwrap();
    for page in [0, 100, 16384] {
        let error = Toucher::new(block.clone(), Order::Seq, 1, page, false, 0).unwrap_err();
        assert_eq!(error.kind, ErrorKind::InvalidArgument, "{page}");
    }
    assert_eq!("walk".parse::<Order>().unwrap_err().kind, ErrorKind::InvalidArgument);
}

/// Both ends of a connection through a link.
fn through(link: Link) -> (Shaper, TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let shaper = Shaper::new(listener.local_addr().unwrap(), link).unwrap();
    let near = TcpStream::connect(shaper.address()).unwrap();
    let (far, _) = listener.accept().unwrap();
    for socket in [&near, &far] {
        socket.set_nodelay(true).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    }
    (shaper, near, far)
}

#[test]
fn a_round_trip_takes_both_delays() {
    let delay = Duration::from_millis(10);
    let (_shaper, mut near, mut far) = through(Link { delay, bits_per_second: 0 });
    let begun = Instant::now();
    near.write_all(b"there").unwrap();
    let mut there = [0; 5];
    far.read_exact(&mut there).unwrap();
    assert!(begun.elapsed() >= delay);
    far.write_all(b"and back").unwrap();
    let mut back = [0; 8];
    near.read_exact(&mut back).unwrap();
    assert!(begun.elapsed() >= 2 * delay);
    assert_eq!((&there, &back), (b"there", b"and back"));
}

#[test]
fn bandwidth_is_shared_and_nothing_is_lost() {
    let (size, rate) = (1_usize << 20, 80_000_000);
    let (_shaper, near, far) = through(Link { delay: Duration::ZERO, bits_per_second: rate });
    let bytes: Vec<u8> = (0..size).map(|at| (at * 31 % 251).to_le_bytes()[0]).collect();
    let begun = Instant::now();
    let sent = bytes.clone();
    let sender = std::thread::spawn(move || {
        (&near).write_all(&sent).unwrap();
        near.shutdown(std::net::Shutdown::Write).unwrap();
    });
    let mut arrived = Vec::new();
    (&far).read_to_end(&mut arrived).unwrap();
    sender.join().unwrap();
    assert!(arrived == bytes);
    // 1 MiB at 10 MB/s.
    assert!(begun.elapsed() >= Duration::from_millis(100), "{:?}", begun.elapsed());
}

#[test]
fn a_closed_link_ends_its_connections() {
    let (shaper, mut near, mut far) = through(Link::default());
    near.write_all(b"x").unwrap();
    far.read_exact(&mut [0]).unwrap();
    shaper.close();
    assert!(matches!(far.read(&mut [0]), Ok(0) | Err(_)));
    assert!(matches!(near.read(&mut [0]), Ok(0) | Err(_)));
    shaper.close();
}

#[test]
fn a_target_that_is_not_there_ends_the_connection() {
    let gone = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let shaper = Shaper::new(gone, Link::default()).unwrap();
    let mut near = TcpStream::connect(shaper.address()).unwrap();
    near.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    assert!(matches!(near.read(&mut [0]), Ok(0) | Err(_)));
}
