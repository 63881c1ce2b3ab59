//! Nothing is allocated for a page, in whatever form it travels: a whole migration in this process, counted.
#![allow(clippy::unwrap_used, missing_docs)]

use std::alloc::System;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread;

use qmig_core::channel::Uri;
use qmig_core::control::{Compression, Control, Parameters};
use qmig_core::ram::Block;
use qmig_core::ram::dirty::DirtyMode;
use qmig_core::recv::Incoming;
use qmig_core::send::{Format, Options, Outgoing, Step};
use qmig_core::wire::{DecoderOptions, Event, Output};
use rustix::fs::{MemfdFlags, memfd_create};
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};

#[global_allocator]
static MEMORY: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

const PAGE: usize = 4096;
const PAGES: usize = 1000;
/// Passes over all pages that are counted.
const PASSES: u64 = 3;
/// Other live handlers have so much left that the machine is never stopped.
const PENDING: u64 = 1 << 60;
const MAPPED: &str = "mapped-ram";

fn control(capabilities: &[&str], multifd_compression: Compression) -> Arc<Control> {
    let control = Arc::new(Control::new(None));
    control.set_parameters(Parameters { max_bandwidth: 0, compress_threads: 2, multifd_compression, ..Parameters::default() });
    control.set_capabilities(capabilities.iter().map(|name| (*name).to_owned()));
    control
}

/// Between the two sides: an address, and what each has of it if it is none.
fn road(capabilities: &[&str]) -> (Uri, Option<OwnedFd>, Option<OwnedFd>) {
    let fd = Uri::parse("fd:road").unwrap();
    if capabilities.contains(&MAPPED) {
        let file = memfd_create("file", MemfdFlags::CLOEXEC).unwrap();
        return (fd, Some(file.try_clone().unwrap()), Some(file));
    }
    if capabilities.contains(&"multifd") {
        let path = std::env::temp_dir().join(format!("qmig-allocations-{}", std::process::id()));
        return (Uri::parse(&format!("unix:{}", path.display())).unwrap(), None, None);
    }
    let (ours, theirs) = UnixStream::pair().unwrap();
    (fd, Some(ours.into()), Some(theirs.into()))
}

fn load(incoming: &Incoming) {
    incoming.accept().unwrap();
    while incoming.next().unwrap() != Event::Finished {}
    incoming.finish(0).unwrap();
    incoming.close();
}

/// Another content for every page: a text that shrinks, of which few bytes are new.
fn write(block: &Block, pass: u64) {
    for page in 0..PAGES as u64 {
        block.write(page * PAGE as u64 + pass * 8, &(pass * page + 1).to_le_bytes()).unwrap();
    }
    block.mark_dirty(0, PAGES * PAGE).unwrap();
}

/// Allocations for each page that is sent and received once everything is under way, and what query-migrate says in the end.
fn allocations(capabilities: &[&str], compression: Compression) -> (f64, serde_json::Value) {
    let (from, to) = (Block::anon("ram", (PAGES * PAGE) as u64).unwrap(), Block::anon("ram", (PAGES * PAGE) as u64).unwrap());
    for page in 0..PAGES as u64 {
        let text: Vec<u8> = (0..PAGE as u64 / 8).flat_map(|at| (page + at / 20).to_le_bytes()).collect();
        from.write(page * PAGE as u64, &text).unwrap();
    }
    let (uri, ours, theirs) = road(capabilities);
    let mapped = capabilities.contains(&MAPPED);
    let there = control(capabilities, compression);
    there.begin_incoming().unwrap();
    let options = DecoderOptions { description: false, ..DecoderOptions::default() };
    let incoming = Arc::new(Incoming::new(there, vec![Arc::clone(&to)], options).unwrap());
    let mut theirs = theirs;
    let reader = (!mapped).then(|| {
        incoming.listen(&uri, theirs.take()).unwrap();
        let incoming = Arc::clone(&incoming);
        thread::spawn(move || load(&incoming))
    });

    let here = control(capabilities, compression);
    here.begin_outgoing().unwrap();
    let options = Options { format: Format::V7_2, section_id: 2, footers: true, switchover_start: false, dirty: DirtyMode::Explicit };
    let mut outgoing = Outgoing::new(Arc::clone(&here), vec![Arc::clone(&from)], options).unwrap();
    outgoing.connect(&uri, ours).unwrap();
    let mut head = Output::new();
    head.file_header();
    head.configuration(b"none");
    if mapped {
        head.configuration_capabilities(&[MAPPED.as_bytes()]);
    }
    outgoing.setup(head.as_slice(), &[None]).unwrap();
    let session = here.outgoing().unwrap();
    let mut pass = |number: u64| {
        write(&from, number);
        let (counters, mut turns) = (&session.counters, 0);
        // Up to the sync that finds the pages, and until all of them are sent.
        let syncs = counters.dirty_sync_count.get();
        while counters.dirty_sync_count.get() == syncs || counters.remaining.get() > 0 {
            assert_eq!(outgoing.run(PENDING).unwrap(), Step::Iterate);
            turns += 1;
        }
        turns
    };
    // Everything is made by then, and the second pass has filled a cache.
    (0..3).for_each(|number| _ = pass(number));
    let counted = Region::new(MEMORY);
    let turns: u64 = (3..3 + PASSES).map(&mut pass).sum();
    let change = counted.change();
    let made = change.allocations + change.reallocations;

    outgoing.set_answer_deadline(std::time::Duration::from_secs(60));
    let mut tail = Output::new();
    tail.eof();
    outgoing.finish(&[None], &[], tail.as_slice()).unwrap();
    outgoing.close();
    if let Some(reader) = reader {
        reader.join().unwrap();
    } else {
        let file = theirs.unwrap();
        rustix::fs::seek(&file, rustix::fs::SeekFrom::Start(0)).unwrap();
        incoming.listen(&uri, Some(file)).unwrap();
        load(&incoming);
    }
    let (mut sent, mut found) = (vec![0; PAGES * PAGE], vec![0; PAGES * PAGE]);
    from.read(0, &mut sent).unwrap();
    to.read(0, &mut found).unwrap();
    assert!(sent == found);
    // A section has a few of its own, and so has a look at the dirty log.
    let own = 40 * turns;
    #[allow(clippy::cast_precision_loss)] // a quotient
    let each = made.saturating_sub(usize::try_from(own).unwrap()) as f64 / (PASSES * PAGES as u64) as f64;
    assert!(turns < PASSES * 100, "{turns} turns: the machine is too slow to tell pages from sections");
    (each, here.query_migrate())
}

/// One test, since all threads of this process are counted.
#[test]
fn nothing_is_allocated_for_a_page() {
    let none = Compression::None;
    let ways: [(&[&str], _, _, _); 8] = [
        (&["return-path"], none, "ram", "normal"),
        (&["compress"], none, "compression", "pages"),
        (&["xbzrle"], none, "xbzrle-cache", "pages"),
        (&["multifd"], none, "ram", "normal"),
        (&["multifd"], Compression::Zlib(1), "ram", "normal"),
        (&["multifd"], Compression::Zstd(1), "ram", "normal"),
        (&[MAPPED], none, "ram", "normal"),
        (&[MAPPED, "multifd"], none, "ram", "normal"),
    ];
    for (capabilities, compression, object, counter) in ways {
        let (each, answer) = allocations(capabilities, compression);
        // A packet of many pages has a few where it is received.
        assert!(each < 0.1, "{capabilities:?}, {compression:?}: {each} allocations a page");
        let pages = answer[object][counter].as_u64().unwrap();
        assert!(pages > PASSES * PAGES as u64, "{capabilities:?}: {pages} pages went that way");
    }
}
