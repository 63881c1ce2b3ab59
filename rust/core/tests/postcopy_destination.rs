//! The destination of postcopy against a scripted source: the whole way, every word out of order, every bad page, every cut.
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation, missing_docs)]

mod scripted;

use std::collections::BTreeSet;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use qmig_core::ErrorKind;
use qmig_core::control::Status;
use qmig_core::ram::{Backing, Block, BlockOptions};
use qmig_core::recv::Deadlines;
use qmig_core::wire::limits::PACKAGE_MAX;
use qmig_core::wire::{Advise, Command, Output, ReturnMessage};

use scripted::*;

const PONGS: [ReturnMessage; 2] = [ReturnMessage::Pong(1), ReturnMessage::Pong(2)];

/// A machine that runs at the destination, with pages 0, 1 and 2 of its 40 in place.
fn running(capabilities: &[&str]) -> (Destination, Source) {
    let destination = Destination::new(anon(&[("ram", 40)]), capabilities);
    let mut source = destination.connect(Manner::Good);
    switch(&destination, &mut source);
    (destination, source)
}

fn first_three() -> Vec<(String, usize)> {
    (0..3).map(|page| ("ram".to_owned(), page)).collect()
}

fn switch(destination: &Destination, source: &mut Source) {
    source.send(&head(&destination.blocks));
    source.send(&part(&first_three()));
    source.say(|stream| stream.ping(2));
    source.send(&packaged(&good_package()));
    for token in 1..=3 {
        assert_eq!(source.heard(), Some(ReturnMessage::Pong(token)));
    }
    destination.wait_started();
}

/// Sends all but what is in `there`, and the end; the destination must then be complete.
fn complete(destination: &Destination, source: &mut Source, there: &BTreeSet<(String, usize)>) {
    let left: Vec<_> = all_pages(&destination.blocks).into_iter().filter(|page| !there.contains(page)).collect();
    source.send(&part(&left));
    source.send(&finish());
    assert_eq!(source.rest(), [ReturnMessage::Shut(0)]);
    source.stream.shutdown(Shutdown::Both).unwrap();
    destination.outcome().unwrap();
    assert_eq!(destination.control.incoming_status(), Status::Completed);
    destination.verify();
}

/// The whole switch: precopy, a stale half discarded, threads that touch everything, requests served in their order.
fn whole_switch(blocks: Vec<Arc<Block>>, capabilities: &[&str]) -> Destination {
    let destination = Destination::new(blocks, capabilities);
    let blocks = destination.blocks.clone();
    let mut source = destination.connect(Manner::Touches);
    source.send(&head(&blocks));
    // Everything was sent in precopy, but the even host pages have changed since.
    let mut stale = Output::new();
    stale.section_part(2);
    for (block, page) in all_pages(&blocks) {
        record(&mut stale, &block, page, &[page as u8 | 1; PAGE]);
    }
    stale.eos();
    stale.footer(2);
    source.send(&stale);
    let host = |name: &str| blocks.iter().find(|block| block.name() == name).unwrap().page_size() as usize / PAGE;
    let fresh = |(block, page): &(String, usize)| page / host(block) % 2 == 1;
    let fresh_pages: Vec<_> = all_pages(&blocks).into_iter().filter(fresh).collect();
    source.send(&part(&fresh_pages));
    for block in &blocks {
        let size = block.page_size();
        for range in (0..block.used_length()).step_by(2 * size as usize) {
            source.say(|s| s.command(&Command::RamDiscard { name: block.name().as_bytes().to_vec(), ranges: vec![(range, size)] }));
        }
    }
    source.say(|stream| stream.ping(2));
    for pong in PONGS {
        assert_eq!(source.heard(), Some(pong));
    }
    source.send(&packaged(&good_package()));

    // The device touches the first page before RUN.
    let size = blocks[0].page_size() as usize;
    let asked = source.request(size).unwrap();
    assert_eq!(asked, (blocks[0].name().to_owned(), 0));
    let whole =
        |name: &str, page: usize| (0..host(name)).map(|part| (name.to_owned(), page / host(name) * host(name) + part)).collect::<Vec<_>>();
    source.send(&part(&whole(&asked.0, asked.1)));
    let mut sent: BTreeSet<_> = whole(&asked.0, asked.1).into_iter().collect();
    source.say(|stream| stream.ping(4));
    let mut pongs = vec![source.heard(), source.heard()];
    pongs.sort_by_key(|pong| format!("{pong:?}"));
    assert_eq!(pongs, [Some(ReturnMessage::Pong(3)), Some(ReturnMessage::Pong(4))]);
    destination.wait_started();

    let needed: Vec<_> = all_pages(&blocks).into_iter().filter(|page| !fresh(page)).collect();
    let touched = blocks.len() * 4;
    thread::scope(|scope| {
        let _guard = destination.guard();
        for thread in 0..4 {
            let blocks = &blocks;
            scope.spawn(move || {
                for block in blocks {
                    let pages = block.pages();
                    (0..pages).for_each(|i| verify_page(block, (i * 7 + thread * pages / 4) % pages));
                }
            });
        }
        // Some are served as they are asked for, the rest comes by itself.
        for _ in 0..touched {
            let Some((block, page)) = needed.iter().find(|page| !sent.contains(page)).and_then(|_| source.request(size)) else { break };
            let pages = whole(&block, page);
            if sent.insert(pages[0].clone()) {
                sent.extend(pages.iter().cloned());
                source.send(&part(&pages));
            }
        }
        let left: Vec<_> = needed.iter().filter(|page| !sent.contains(page)).cloned().collect();
        source.send(&part(&left));
    });
    source.send(&finish());
    assert_eq!(source.rest(), [ReturnMessage::Shut(0)]);
    source.stream.shutdown(Shutdown::Both).unwrap();
    destination.outcome().unwrap();
    destination.verify();
    assert_eq!(destination.statuses(), ["active", "postcopy-active", "completed"]);
    let answer = destination.control.query_migrate();
    assert!(answer["x-fault-latency"]["total"]["count"].as_u64().unwrap() >= 1, "{answer}");
    destination
}

#[test]
fn the_whole_switch() {
    let destination = whole_switch(anon(&[("ram", 256), ("rom", 8)]), &["postcopy-blocktime"]);
    let answer = destination.control.query_migrate();
    assert!(answer["postcopy-blocktime"].is_u64() && !answer["postcopy-vcpu-blocktime"].as_array().unwrap().is_empty(), "{answer}");
    // and the same memory once more
    whole_switch(destination.blocks.clone(), &[]);
}

#[test]
fn the_whole_switch_in_shared_memory() {
    let options = BlockOptions { backing: Backing::Memfd, ..BlockOptions::default() };
    let answer = whole_switch(vec![Block::new("ram", 256 << 12, &options).unwrap()], &[]).control.query_migrate();
    assert!(answer.get("postcopy-blocktime").is_none(), "nobody asked for it");
}

const HUGE_PAGES: &str = "/proc/sys/vm/nr_hugepages";

fn reserved() -> Option<u64> {
    std::fs::read_to_string(HUGE_PAGES).ok()?.trim().parse().ok()
}

/// Reserves huge pages where it may, and says how many there were; none, with a word on standard error, where it may not.
fn huge(name: &str, pages: u64) -> Option<(Arc<Block>, u64)> {
    let options = BlockOptions { backing: Backing::Hugetlb, ..BlockOptions::default() };
    let former = reserved().unwrap_or_default();
    // Others may have taken theirs: ask for more until it works.
    for more in [0, pages, 2 * pages, 4 * pages] {
        let _ = std::fs::write(HUGE_PAGES, (former + more).to_string());
        if let Ok(block) = Block::new(name, pages << 21, &options) {
            return Some((block, former));
        }
    }
    assert!(std::env::var_os("QMIG_REQUIRE_HUGE_PAGES").is_none(), "huge pages are required here and cannot be reserved");
    eprintln!("SKIPPED: no huge pages can be reserved here; run as root with 64 MiB of free memory");
    None
}

#[test]
fn huge_pages() {
    let Some((block, former)) = huge("ram", 4) else { return };
    let destination = whole_switch(vec![block], &[]);

    // half a page, and then nothing more
    let destination = destination.again(&[]);
    let mut source = destination.connect(Manner::Good);
    source.send(&head(&destination.blocks));
    source.send(&packaged(&good_package()));
    destination.wait_started();
    let half: Vec<_> = (0..256).map(|page| ("ram".to_owned(), page)).collect();
    source.send(&part(&half));
    source.stream.shutdown(Shutdown::Both).unwrap();
    destination.paused();
    let mut source = recover(&destination, "half");
    source.say(|stream| stream.command(&Command::RecvBitmap(b"ram".to_vec())));
    assert_eq!(source.bitmap(&destination.blocks[0]).iter().filter(|bit| **bit).count(), 0, "half a page is none");
    source.say(|stream| stream.command(&Command::Resume));
    assert_eq!(source.heard(), Some(ReturnMessage::ResumeAck));
    // a part of the first, and then one of the second
    source.send(&part(&[("ram".to_owned(), 0), ("ram".to_owned(), 512)]));
    let why = destination.paused();
    assert!(why.contains("only 1 of the 512 parts"), "{why}");
    let mut source = recover(&destination, "half");
    source.say(|stream| stream.command(&Command::Resume));
    assert_eq!(source.heard(), Some(ReturnMessage::ResumeAck));
    complete(&destination, &mut source, &BTreeSet::new());

    // half a page, and silence
    let destination = destination.again(&[]);
    destination.incoming.set_deadlines(Deadlines { stall: Duration::from_millis(50), ..Deadlines::default() });
    let mut source = destination.connect(Manner::Good);
    source.send(&head(&destination.blocks));
    source.send(&packaged(&good_package()));
    destination.wait_started();
    source.try_send(&part(&half));
    let why = destination.paused();
    assert!(why.contains("sent nothing for 50ms while a host page has come in part"), "{why}");
    destination.incoming.abandon();
    destination.outcome().unwrap_err();
    drop(destination);
    let _ = std::fs::write(HUGE_PAGES, former.to_string());
}

fn recover(destination: &Destination, name: &str) -> Source {
    let path = Path::new(name);
    destination.control.recover_incoming(&path.uri(), None).unwrap();
    let source = path.connect();
    destination.wait_status(Status::PostcopyRecover);
    source
}

// ---- out of order ----------------------------------------------------------------------------------------------------

/// What the destination makes of a stream that goes wrong before RUN: its error, and what it said.
fn refusal(manner: Manner, write: impl FnOnce(&mut Output, &[Arc<Block>])) -> (qmig_core::Error, Vec<ReturnMessage>) {
    let destination = Destination::new(anon(&[("ram", 40)]), &[]);
    let mut source = destination.connect(manner);
    let mut stream = Output::new();
    write(&mut stream, &destination.blocks);
    source.try_send(&stream);
    if manner == Manner::Good && stream.as_slice().ends_with(good_package().as_slice()) {
        source.stream.shutdown(Shutdown::Write).unwrap(); // only half of what was announced
    }
    let said = source.rest();
    source.stream.shutdown(Shutdown::Both).unwrap();
    let error = destination.outcome().unwrap_err();
    assert_eq!(destination.control.incoming_status(), Status::Failed);
    assert!(!destination.started.load(std::sync::atomic::Ordering::SeqCst));
    // Nobody watches the memory any more, and another load works in the same process.
    let again = destination.again(&[]);
    let mut source = again.connect(Manner::Good);
    switch(&again, &mut source);
    complete(&again, &mut source, &first_three().into_iter().collect());
    (error, said)
}

fn discard(ranges: &[(u64, u64)]) -> Command {
    Command::RamDiscard { name: b"ram".to_vec(), ranges: ranges.to_vec() }
}

fn in_package(commands: &[Command]) -> Output {
    let mut package = Output::new();
    for command in commands {
        package.command(command);
    }
    packaged(&package)
}

#[test]
fn every_command_out_of_order() {
    let page = discard(&[(0, 4096)]);
    let advise = advise(&anon(&[("ram", 1)]));
    let listen = Command::Listen;
    let cases: Vec<(&str, Vec<Command>, bool)> = vec![
        // what follows head(), which has ADVISE
        ("POSTCOPY_ADVISE is out of order: postcopy is ADVISE", vec![advise.clone()], false),
        ("POSTCOPY_ADVISE is out of order: postcopy is DISCARD", vec![page.clone(), advise.clone()], false),
        ("POSTCOPY_RUN is out of order: postcopy is ADVISE", vec![Command::Run], false),
        ("POSTCOPY_RUN is out of order: postcopy is DISCARD", vec![page.clone(), Command::Run], false),
        ("POSTCOPY_LISTEN outside a package", vec![listen.clone()], false),
        ("POSTCOPY_RUN is out of order: postcopy is ADVISE", vec![Command::Run], true),
        ("POSTCOPY_LISTEN is out of order: postcopy is LISTENING", vec![listen.clone(), listen.clone()], true),
        ("POSTCOPY_RAM_DISCARD is out of order: postcopy is LISTENING", vec![listen.clone(), page.clone()], true),
        ("POSTCOPY_ADVISE is out of order: postcopy is LISTENING", vec![listen.clone(), advise.clone()], true),
    ];
    for (text, commands, package) in cases {
        let (error, said) = refusal(Manner::Good, |stream, blocks| {
            stream.put(head(blocks).as_slice());
            if package {
                stream.put(in_package(&commands).as_slice());
            } else {
                for command in &commands {
                    stream.command(command);
                }
            }
        });
        assert_eq!((error.kind, error.offset.is_some()), (ErrorKind::BadCommand, true), "{error}");
        assert!(error.message.contains(text), "{error}, not {text}");
        // Once the package is here the source has let go of the machine.
        assert_eq!(said, [ReturnMessage::Pong(1), ReturnMessage::Shut(if package { 2 } else { 1 })], "{text}");
    }
    for command in [page, Command::Packaged(5), Command::Run] {
        let (error, _) = refusal(Manner::Good, |stream, blocks| {
            stream.file_header();
            stream.configuration(b"none");
            stream.open_return_path();
            announce(stream, blocks);
            stream.command(&command);
        });
        assert!(error.message.contains("out of order: postcopy is NONE"), "{error}");
    }
}

#[test]
fn an_advice_must_fit() {
    let advise = |page_sizes, target_page| Command::PostcopyAdvise(Some(Advise { page_sizes, target_page }));
    for (command, text) in [
        (advise(0x20_1000, 4096), "page sizes 0x201000 in all, and this machine's has 0x1000"),
        (advise(4096, 8192), "target pages of 0x2000 bytes there"),
    ] {
        let (error, said) = refusal(Manner::Good, |stream, _| {
            stream.file_header();
            stream.configuration(b"none");
            stream.open_return_path();
            stream.command(&command);
        });
        assert_eq!(error.kind, ErrorKind::BlockMismatch);
        assert!(error.message.contains(text), "{error}");
        assert_eq!(said, [ReturnMessage::Shut(1)]);
    }
}

#[test]
fn discards_are_checked() {
    for (command, kind) in [
        (discard(&[(39 * 4096, 8192)]), ErrorKind::BadAddress),
        (discard(&[(0, 4096), (40 * 4096, 4096)]), ErrorKind::BadAddress),
        (Command::RamDiscard { name: b"rom".to_vec(), ranges: vec![(0, 4096)] }, ErrorKind::UnknownBlock),
    ] {
        let (error, _) = refusal(Manner::Good, |stream, blocks| {
            stream.put(head(blocks).as_slice());
            stream.command(&command);
        });
        assert_eq!(error.kind, kind, "{error}");
    }
}

#[test]
fn every_bad_package() {
    let with = |write: &dyn Fn(&mut Output)| {
        let mut package = Output::new();
        package.command(&Command::Listen);
        write(&mut package);
        packaged(&package)
    };
    let mut large = Output::new();
    large.command(&Command::Packaged(PACKAGE_MAX + 1));
    let mut truncated = Output::new();
    truncated.command(&Command::Packaged(1000));
    truncated.put(good_package().as_slice());
    let run_and_more = with(&|p| {
        p.command(&Command::Run);
        p.u8(0);
    });
    let half_device = with(&|p| {
        p.section_full(7, b"device", 0, 1);
        p.put(b"thest");
    });
    let cases = [
        ("too large", large, ErrorKind::LimitExceeded, "PACKAGE_MAX", 1),
        ("truncated", truncated, ErrorKind::Truncated, "", 2),
        ("nested", with(&|p| p.command(&Command::Packaged(0))), ErrorKind::BadCommand, "inside a package", 2),
        ("RAM again", with(&|p| p.section_part(2)), ErrorKind::UnknownElement, "RAM inside a package", 2),
        ("without RUN", with(&|p| device(p)), ErrorKind::Truncated, "without POSTCOPY_RUN", 2),
        ("an end instead of RUN", with(&|p| p.eof()), ErrorKind::Truncated, "without POSTCOPY_RUN", 2),
        ("more after RUN", run_and_more, ErrorKind::TrailingData, "1 bytes after POSTCOPY_RUN", 2),
        ("half a device", half_device, ErrorKind::Truncated, "", 2),
        ("a fence without devices", with(&|p| p.ping(3)), ErrorKind::MissingSection, "no device", 2),
        ("nothing", packaged(&Output::new()), ErrorKind::Truncated, "without POSTCOPY_RUN", 2),
    ];
    for (what, package, kind, text, status) in cases {
        let (error, said) = refusal(Manner::Good, |stream, blocks| {
            stream.put(head(blocks).as_slice());
            stream.put(package.as_slice());
        });
        assert_eq!(error.kind, kind, "{what}: {error}");
        assert!(error.message.contains(text), "{what}: {error}");
        assert_eq!(said, [ReturnMessage::Pong(1), ReturnMessage::Shut(status)], "{what}");
    }
}

#[test]
fn a_machine_that_cannot_run_here_is_given_back() {
    for (manner, pong) in [(Manner::Refuses, None), (Manner::CannotStart, Some(ReturnMessage::Pong(3)))] {
        let (error, said) = refusal(manner, |stream, blocks| {
            stream.put(head(blocks).as_slice());
            stream.put(packaged(&good_package()).as_slice());
        });
        assert_eq!(error.kind, ErrorKind::DeviceState);
        let expected: Vec<_> = [Some(ReturnMessage::Pong(1)), pong, Some(ReturnMessage::Shut(2))].into_iter().flatten().collect();
        assert_eq!(said, expected);
    }
}

#[test]
fn a_load_that_waits_for_a_page_can_be_ended() {
    type End = fn(&Destination, &Source);
    let ends: [(End, bool); 5] = [
        (|destination, _| destination.control.pause().unwrap(), false),
        (|destination, _| destination.incoming.close(), true),
        (|destination, _| destination.incoming.abandon(), true),
        (|destination, _| destination.incoming.finish(1).unwrap(), true),
        (|_, source| source.stream.shutdown(Shutdown::Both).unwrap(), false),
    ];
    for (end, back) in ends {
        let destination = Destination::new(vec![Block::anon("ram", 40 << 12).unwrap()], &[]);
        let mut source = destination.connect(Manner::Touches);
        source.send(&head(&destination.blocks));
        source.send(&packaged(&good_package()));
        assert_eq!(source.heard(), Some(ReturnMessage::Pong(1)));
        assert_eq!(source.request(PAGE), Some(("ram".to_owned(), 0)));
        end(&destination, &source);
        if back {
            assert_eq!(source.heard(), Some(ReturnMessage::Shut(2)), "the source gets its machine back");
        }
        // What it read is worth nothing, which the driver's check notices; it must not be stuck.
        until("the end of the driver", || destination.incoming.next().is_err());
        until("the memory to be free", || destination.blocks[0].read(4096, &mut [0; 8]).is_ok());
    }
}

#[test]
fn a_load_that_waits_for_a_page_has_a_deadline() {
    let destination = Destination::new(anon(&[("ram", 40)]), &[]);
    destination.incoming.set_deadlines(Deadlines { load: Duration::from_millis(50), ..Deadlines::default() });
    let mut source = destination.connect(Manner::Touches);
    source.send(&head(&destination.blocks));
    source.send(&packaged(&good_package()));
    assert_eq!(source.heard(), Some(ReturnMessage::Pong(1)));
    assert_eq!(source.rest(), [ReturnMessage::Shut(2)], "the source does not answer, and gets the machine back");
    until("the end of the driver", || destination.incoming.next().is_err());
    let error = destination.incoming.next().unwrap_err();
    assert_eq!(error.kind, ErrorKind::Timeout, "{error}");
}

// ---- after RUN -------------------------------------------------------------------------------------------------------

/// What is wrong, what the error says of it, and how it is written.
type Case = (&'static str, &'static str, Box<dyn Fn(&mut Output)>);

#[test]
fn what_is_wrong_after_run_pauses_and_loses_nothing() {
    let zero_at = |offset: u64| {
        move |s: &mut Output| {
            s.section_part(2);
            s.page_record(offset, qmig_core::wire::consts::RAM_ZERO, Some(b"ram"));
            s.u8(0);
            s.eos();
            s.footer(2);
        }
    };
    let difference = |s: &mut Output| {
        s.section_part(2);
        s.page_record(0, qmig_core::wire::consts::RAM_XBZRLE, Some(b"ram"));
        s.put(&[1, 0, 3, 0, 1, 1]);
    };
    let compressed = |length: u32, bytes: &'static [u8]| {
        move |s: &mut Output| {
            s.section_part(2);
            s.page_record(0x5000, qmig_core::wire::consts::RAM_COMPRESS_PAGE, Some(b"ram"));
            s.be32(length);
            s.put(bytes);
        }
    };
    let cases: Vec<Case> = vec![
        ("a compressed page of nothing", "a compressed page of 0 bytes", Box::new(compressed(0, b""))),
        ("a compressed page without end", "a compressed page of 4294967295 bytes", Box::new(compressed(u32::MAX, b""))),
        ("garbage for a compressed page", "zlib", Box::new(compressed(9, &[0x55; 9]))),
        ("a compressed page that ends too early", "zlib", Box::new(compressed(8, b"\x78\x9c\x03\0\0\0\0\x01"))),
        ("a page twice", "arrived twice", Box::new(zero_at(0x1000))),
        ("a difference", "an XBZRLE page after POSTCOPY_LISTEN", Box::new(difference)),
        ("outside", "page at 0x28000 of a block of 0x28000 bytes", Box::new(zero_at(0x28000))),
        ("a discard", "POSTCOPY_RAM_DISCARD is out of order", Box::new(|s| s.command(&discard(&[(0, 4096)])))),
        ("LISTEN", "POSTCOPY_LISTEN is out of order", Box::new(|s| s.command(&Command::Listen))),
        ("RUN", "POSTCOPY_RUN is out of order", Box::new(|s| s.command(&Command::Run))),
        ("a package", "PACKAGED is out of order", Box::new(|s| s.command(&Command::Packaged(5)))),
        ("a device", "after POSTCOPY_LISTEN", Box::new(device)),
        ("the block list", "after POSTCOPY_LISTEN", Box::new(|s| s.section_start(2, b"ram", 0, 4))),
        ("the end too early", "pages never came, the first at 0x3000", Box::new(|s| s.put(finish().as_slice()))),
        ("nonsense", "no element type", Box::new(|s| s.u8(0xee))),
    ];
    let (destination, mut source) = running(&["compress"]);
    let mut there: BTreeSet<_> = first_three().into_iter().collect();
    for (turn, (what, text, write)) in cases.into_iter().enumerate() {
        // something good comes before it, and stays
        let good = ("ram".to_owned(), 10 + turn);
        source.send(&part(std::slice::from_ref(&good)));
        there.insert(good);
        source.say(write);
        let why = destination.paused();
        assert!(why.contains(text), "{what}: {why}");
        assert!(source.rest().is_empty(), "{what}: the connection is closed without a word");
        source = recover(&destination, "wrong");
        source.say(|stream| stream.command(&Command::RecvBitmap(b"ram".to_vec())));
        let bits = source.bitmap(&destination.blocks[0]);
        let found: BTreeSet<_> = (0..40).filter(|page| bits[*page]).map(|page| ("ram".to_owned(), page)).collect();
        assert_eq!(found, there, "{what}");
        source.say(|stream| stream.command(&Command::Resume));
        assert_eq!(source.heard(), Some(ReturnMessage::ResumeAck));
        destination.wait_status(Status::PostcopyActive);
        assert_eq!(destination.error_desc(), "");
    }
    complete(&destination, &mut source, &there);
}

#[test]
fn eight_cuts_and_recoveries_with_threads_that_wait() {
    let (destination, mut source) = running(&[]);
    let block = destination.blocks[0].clone();
    let mut there: BTreeSet<_> = first_three().into_iter().collect();
    thread::scope(|scope| {
        let _guard = destination.guard();
        for page in [20, 30] {
            let block = block.clone();
            scope.spawn(move || verify_page(&block, page));
        }
        let mut asked: Vec<_> = (0..2).map(|_| source.request(PAGE).unwrap()).collect();
        asked.sort_unstable();
        for cut in 0..8 {
            if cut % 2 == 0 {
                // in the middle of a page
                let bytes = part(&[("ram".to_owned(), 5)]);
                let mut half = Output::new();
                half.put(&bytes.as_slice()[..2000 + cut]);
                source.send(&half);
                source.stream.shutdown(Shutdown::Both).unwrap();
            } else {
                destination.control.pause().unwrap();
            }
            let why = destination.paused();
            assert!(!why.is_empty());
            assert_eq!(why.contains("migrate-pause"), cut % 2 == 1, "{why}");
            assert_eq!(destination.control.pause().unwrap_err().kind, ErrorKind::InvalidState);
            source = recover(&destination, "cuts");
            if cut == 3 {
                // a source that gives up before it resumes
                source.stream.shutdown(Shutdown::Both).unwrap();
                destination.paused();
                source = recover(&destination, "cuts");
            }
            source.say(|stream| {
                stream.command(&Command::RecvBitmap(b"ram".to_vec()));
                stream.command(&Command::Resume);
            });
            // What was under way is lost with a connection; whatever the destination says it has, it has.
            let bits = source.bitmap(&block);
            let found: BTreeSet<_> = (0..40).filter(|page| bits[*page]).map(|page| ("ram".to_owned(), page)).collect();
            assert!(found.is_superset(&there), "{found:?} {there:?}");
            there = found;
            assert_eq!(source.heard(), Some(ReturnMessage::ResumeAck));
            // everything that was outstanding is asked for again, the first with its name
            assert_eq!([source.request(PAGE).unwrap(), source.request(PAGE).unwrap()], [asked[0].clone(), asked[1].clone()]);
            source.send(&part(&[("ram".to_owned(), 6 + cut)]));
        }
        there.insert(("ram".to_owned(), 13));
        source.send(&part(&asked));
        there.extend(asked);
    });
    complete(&destination, &mut source, &there);
    let statuses = destination.statuses();
    assert_eq!(statuses.iter().filter(|status| *status == "postcopy-recover").count(), 9, "{statuses:?}");
    assert_eq!(statuses.last().map(String::as_str), Some("completed"));
}

#[test]
fn a_recovery_listens_where_it_was_told_last() {
    let (destination, source) = running(&[]);
    let (first, second) = (Path::new("first"), Path::new("second"));
    assert_eq!(destination.control.recover_incoming(&first.uri(), None).unwrap_err().kind, ErrorKind::InvalidState);
    drop(source);
    destination.paused();
    destination.control.recover_incoming(&first.uri(), None).unwrap();
    destination.control.recover_incoming(&second.uri(), None).unwrap();
    assert!(destination.control.query_migrate()["socket-address"][0]["path"].as_str().unwrap().ends_with("second"));
    assert!(std::os::unix::net::UnixStream::connect(first.uri().to_string().trim_start_matches("unix:")).is_err());
    destination.control.recover_incoming(&second.uri(), None).unwrap();
    let mut source = second.connect();
    destination.wait_status(Status::PostcopyRecover);
    // a pause gives it up again
    destination.control.pause().unwrap();
    destination.paused();
    assert!(source.rest().is_empty());
    let mut source = recover(&destination, "third");
    source.say(|stream| stream.command(&Command::Resume));
    assert_eq!(source.heard(), Some(ReturnMessage::ResumeAck));
    complete(&destination, &mut source, &first_three().into_iter().collect());
}

#[test]
fn a_source_that_says_nothing_in_a_recovery_is_not_waited_for() {
    let destination = Destination::new(anon(&[("ram", 40)]), &[]);
    destination.incoming.set_deadlines(Deadlines { recover: Duration::from_millis(50), ..Deadlines::default() });
    let mut source = destination.connect(Manner::Good);
    switch(&destination, &mut source);
    drop(source);
    destination.paused();
    let path = Path::new("silent");
    destination.control.recover_incoming(&path.uri(), None).unwrap();
    let mut source = path.connect();
    assert!(source.rest().is_empty());
    let why = destination.paused();
    assert!(why.contains("the peer does not send"), "{why}");
    destination.incoming.abandon();
    destination.outcome().unwrap_err();
}

#[test]
fn a_source_that_owes_a_page_and_says_nothing_is_not_waited_for() {
    let destination = Destination::new(anon(&[("ram", 40)]), &[]);
    destination.incoming.set_deadlines(Deadlines { stall: Duration::from_millis(50), ..Deadlines::default() });
    let mut source = destination.connect(Manner::Good);
    switch(&destination, &mut source);
    thread::scope(|scope| {
        let _guard = destination.guard();
        scope.spawn(|| destination.blocks[0].read(0x9000, &mut [0; 8]));
        assert_eq!(source.request(PAGE), Some(("ram".to_owned(), 9)));
        // The connection stays whole: it is the silence that ends it.
        let why = destination.paused();
        assert!(why.contains("sent nothing for 50ms while 1 requested pages are outstanding") && why.contains("migrate-recover"), "{why}");
        assert!(source.rest().is_empty());
        destination.incoming.abandon();
        destination.incoming.let_go();
    });
    destination.outcome().unwrap_err();
}

#[test]
fn what_belongs_to_a_recovery_is_passed_over_elsewhere() {
    let (destination, mut source) = running(&[]);
    source.say(|stream| {
        stream.command(&Command::Resume);
        stream.command(&Command::RecvBitmap(b"nobody".to_vec()));
        stream.ping(9);
    });
    assert_eq!(source.heard(), Some(ReturnMessage::Pong(9)));
    drop(source);
    destination.paused();
    let mut source = recover(&destination, "unknown");
    source.say(|stream| stream.command(&Command::RecvBitmap(b"nobody".to_vec())));
    assert!(destination.paused().contains("RECV_BITMAP for block \"nobody\""));
    drop(source);
    source = recover(&destination, "unknown");
    source.send(&finish());
    assert!(destination.paused().contains("before POSTCOPY_RESUME"));
    source = recover(&destination, "unknown");
    source.say(|stream| stream.command(&Command::Resume));
    assert_eq!(source.heard(), Some(ReturnMessage::ResumeAck));
    complete(&destination, &mut source, &first_three().into_iter().collect());
}

#[test]
fn a_source_that_does_not_read_is_given_up() {
    let (destination, mut source) = running(&[]);
    let mut pings = Output::new();
    (0..4000).for_each(|token| pings.ping(token));
    source.try_send(&pings);
    let why = destination.paused();
    assert!(why.contains("return-path") && why.contains("does not read"), "{why}");
    drop(source);
    let mut source = recover(&destination, "deaf");
    source.say(|stream| stream.command(&Command::Resume));
    assert_eq!(source.heard(), Some(ReturnMessage::ResumeAck));
    complete(&destination, &mut source, &first_three().into_iter().collect());
}

#[test]
fn the_threads_of_a_machine_that_is_given_up_find_no_zeros() {
    let (destination, mut source) = running(&[]);
    thread::scope(|scope| {
        let _guard = destination.guard();
        let block = &destination.blocks[0];
        let stuck = scope.spawn(|| block.read(0x9000, &mut [0; 8]));
        assert_eq!(source.request(PAGE), Some(("ram".to_owned(), 9)));
        destination.incoming.close();
        destination.paused();
        assert!(!stuck.is_finished(), "nothing is let go while a page is outstanding");
        assert_eq!(destination.incoming.finish(1), Ok(()), "it runs: nothing is given back");
        destination.incoming.let_go();
        destination.incoming.abandon();
        assert_eq!(destination.outcome().unwrap_err().kind, ErrorKind::Cancelled);
        assert_eq!((stuck.is_finished(), destination.incoming.waiting()), (false, 1));
        // Whoever knows that nobody acts on it lets go.
        destination.incoming.let_go();
        stuck.join().unwrap().unwrap();
    });
    assert!(source.rest().is_empty(), "a source must never hear that a machine did not run that did");
}

/// RUN was handed out and everything is here, but whoever starts the machine has not come back yet: it may well run.
#[test]
fn only_its_driver_gives_a_machine_back_after_run() {
    type End = fn(&Destination);
    let ends: [(End, bool); 3] = [
        (|destination| destination.incoming.abandon(), false),
        (|destination| destination.incoming.close(), false),
        (|destination| destination.incoming.finish(1).unwrap(), true),
    ];
    for (turn, (end, back)) in ends.into_iter().enumerate() {
        let destination = Destination::new(anon(&[("ram", 4)]), &[]);
        let (incoming, (ours, theirs)) = (&destination.incoming, UnixStream::pair().unwrap());
        incoming.listen(&qmig_core::channel::Uri::parse("fd:test").unwrap(), Some(theirs.into())).unwrap();
        let mut source = Source::new(ours);
        source.send(&head(&destination.blocks));
        source.send(&packaged(&good_package()));
        source.send(&part(&all_pages(&destination.blocks)));
        source.send(&finish());
        incoming.accept().unwrap();
        destination.control.set_incoming_status(Status::None, Status::Active);
        assert!(load(incoming, &destination.blocks, Manner::Good).unwrap());
        for token in [1, 3] {
            assert_eq!(source.heard(), Some(ReturnMessage::Pong(token)));
        }
        thread::scope(|scope| {
            let said = scope.spawn(|| source.rest());
            end(&destination);
            let expected = if back { vec![ReturnMessage::Shut(2)] } else { Vec::new() };
            assert_eq!(said.join().unwrap(), expected, "end {turn}");
        });
        if !back {
            // It has run meanwhile, which must not be denied either.
            incoming.abandon();
            incoming.wait().unwrap_err();
            incoming.finish(1).unwrap();
        }
    }
}

/// Cuts the connection behind each byte of all that comes before pages do.
#[test]
fn a_cut_at_every_byte() {
    let blocks = anon(&[("ram", 40)]);
    let mut stream = head(&blocks);
    stream.command(&discard(&[(0, 4096), (8192, 4096)]));
    stream.ping(2);
    let before_package = stream.len() + packaged(&Output::new()).len();
    stream.put(packaged(&good_package()).as_slice());
    let before_run = stream.len();
    stream.ping(4);
    stream.section_part(2);
    stream.eos();
    stream.footer(2);
    stream.put(&finish().as_slice()[..10]);
    for cut in 0..=stream.len() {
        let destination = Destination::new(blocks.clone(), &[]);
        let mut source = destination.connect(Manner::Good);
        let mut sent = Output::new();
        sent.put(&stream.as_slice()[..cut]);
        source.send(&sent);
        source.stream.shutdown(Shutdown::Write).unwrap();
        if cut < before_run {
            let error = destination.outcome().unwrap_err();
            assert!(matches!(error.kind, ErrorKind::Truncated | ErrorKind::BadMagic | ErrorKind::Closed), "{cut}: {error}");
            // A source that misses only the end of the package may have let go of the machine.
            assert_eq!(source.rest().contains(&ReturnMessage::Shut(2)), cut >= before_package, "{cut}");
            assert_eq!(destination.control.incoming_status(), Status::Failed);
        } else {
            // The machine may run before or after the cut is noticed.
            until("an end", || {
                destination.control.incoming_status() == Status::PostcopyPaused || destination.control.incoming_status() == Status::Failed
            });
            if destination.control.incoming_status() == Status::PostcopyPaused {
                destination.wait_started();
                destination.incoming.abandon();
            } else {
                assert!(source.rest().contains(&ReturnMessage::Shut(2)), "{cut}: it never ran");
            }
            destination.outcome().unwrap_err();
        }
    }
}

// ---- the second channel ----------------------------------------------------------------------------------------------

fn urgent(pages: &[(String, usize)]) -> Output {
    let mut stream = Output::new();
    for (block, page) in pages {
        record(&mut stream, block, *page, &content(block, *page));
    }
    stream
}

#[test]
fn a_second_channel_from_the_start_or_from_the_switch() {
    for from_the_start in [true, false] {
        let destination = Destination::new(anon(&[("ram", 40)]), &["postcopy-preempt"]);
        let path = Path::new(if from_the_start { "start" } else { "late" });
        let mut source = destination.listen(&path);
        let early = from_the_start.then(|| path.connect());
        switch(&destination, &mut source);
        let mut second = early.unwrap_or_else(|| path.connect());
        let block = destination.blocks[0].clone();
        thread::scope(|scope| {
            let _guard = destination.guard();
            for page in [7, 8, 9] {
                let block = block.clone();
                scope.spawn(move || verify_page(&block, page));
            }
            for _ in 0..3 {
                let asked = source.request(PAGE).unwrap();
                second.send(&urgent(&[asked]));
            }
        });
        // lost, and found again, with a second channel that comes when it likes
        if from_the_start {
            second.stream.shutdown(Shutdown::Both).unwrap();
            assert!(destination.paused().starts_with("preempt"), "{}", destination.error_desc());
        } else {
            source.stream.shutdown(Shutdown::Both).unwrap();
            destination.paused();
            assert!(second.rest().is_empty(), "both are cut");
        }
        let path = Path::new("again");
        destination.control.recover_incoming(&path.uri(), None).unwrap();
        let mut source = path.connect();
        destination.wait_status(Status::PostcopyRecover);
        let early = from_the_start.then(|| path.connect());
        source.say(|stream| stream.command(&Command::Resume));
        assert_eq!(source.heard(), Some(ReturnMessage::ResumeAck));
        let mut second = early.unwrap_or_else(|| path.connect());
        // The end of the background overtakes the last urgent pages.
        let late: Vec<_> = (30..40).map(|page| ("ram".to_owned(), page)).collect();
        let rest: Vec<_> = (3..30).filter(|page| !(7..10).contains(page)).map(|page| ("ram".to_owned(), page)).collect();
        source.send(&part(&rest));
        source.send(&finish());
        thread::scope(|scope| {
            let _guard = destination.guard();
            scope.spawn(|| verify_page(&block, 30));
            assert_eq!(source.request(PAGE), Some(("ram".to_owned(), 30)));
            second.send(&urgent(&late[..1]));
        });
        assert_eq!(destination.control.incoming_status(), Status::PostcopyActive);
        second.send(&urgent(&late[1..]));
        if from_the_start {
            second.say(Output::eos);
        }
        assert_eq!(source.rest(), [ReturnMessage::Shut(0)]);
        source.stream.shutdown(Shutdown::Both).unwrap();
        destination.outcome().unwrap();
        destination.verify();
        assert!(second.rest().is_empty());
    }
}

#[test]
fn requested_pages_have_a_deadline_once_all_else_is_over() {
    let destination = Destination::new(anon(&[("ram", 40)]), &["postcopy-preempt"]);
    destination.incoming.set_deadlines(Deadlines { drain: Duration::from_millis(50), ..Deadlines::default() });
    let path = Path::new("drain");
    let mut source = destination.listen(&path);
    switch(&destination, &mut source);
    let second = path.connect();
    let but_one: Vec<_> = (3..39).map(|page| ("ram".to_owned(), page)).collect();
    source.send(&part(&but_one));
    source.send(&finish());
    let why = destination.paused();
    assert!(why.contains("never came, the first at 0x27000"), "{why}");
    drop(second);
    destination.incoming.abandon();
    destination.outcome().unwrap_err();
}

#[test]
fn a_bad_second_channel_pauses_both() {
    type Case = (&'static str, fn(&mut Output));
    let bad: [Case; 4] = [
        ("arrived twice", |s| record(s, "ram", 1, &content("ram", 1))),
        ("which the block list does not have", |s| record(s, "nobody", 1, &content("ram", 1))),
        ("no legal combination", |s| s.be64(0xfff)),
        ("without a block name", |s| s.be64(0x3000 | 0x28)),
    ];
    for (text, write) in bad {
        let destination = Destination::new(anon(&[("ram", 40)]), &["postcopy-preempt"]);
        let path = Path::new("bad");
        let mut source = destination.listen(&path);
        switch(&destination, &mut source);
        let mut second = path.connect();
        second.say(write);
        let why = destination.paused();
        assert!(why.starts_with("preempt") && why.contains(text), "{why}");
        assert!(source.rest().is_empty());
        destination.incoming.abandon();
        destination.outcome().unwrap_err();
    }
}

#[test]
fn precopy_that_was_only_advised_completes() {
    let destination = Destination::new(anon(&[("ram", 40), ("rom", 3)]), &[]);
    let mut source = destination.connect(Manner::Good);
    source.send(&head(&destination.blocks));
    source.send(&part(&all_pages(&destination.blocks)));
    source.say(|stream| {
        stream.section_end(2);
        stream.eos();
        stream.footer(2);
        device(stream);
        stream.ping(2);
        stream.eof();
    });
    source.stream.shutdown(Shutdown::Write).unwrap();
    assert_eq!(source.rest(), [ReturnMessage::Pong(1), ReturnMessage::Pong(2), ReturnMessage::Shut(0)]);
    destination.outcome().unwrap();
    destination.verify();
    assert_eq!(destination.statuses(), ["active", "completed"]);
    assert!(destination.control.query_migrate().get("x-fault-latency").is_none());
}
