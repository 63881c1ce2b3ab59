//! What the source does between the first page and the commit, seen from the other end of its channel.
#![allow(clippy::unwrap_used, missing_docs)]

use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use qmig_core::ErrorKind;
use qmig_core::channel::Uri;
use qmig_core::control::{Control, DeadlineAction, Parameters};
use qmig_core::ram::Block;
use qmig_core::ram::dirty::DirtyMode;
use qmig_core::send::{Format, Options, Outgoing, Step};
use qmig_core::wire::{Decoder, DecoderOptions, Event, Input, Output, RecordingSink};

fn begun(block: &Arc<Block>, channel: OwnedFd) -> (Arc<Control>, Outgoing) {
    let control = Arc::new(Control::new(None));
    control.set_parameters(Parameters { max_bandwidth: 0, ..Parameters::default() });
    control.begin_outgoing().unwrap();
    let options = Options { format: Format::V7_2, section_id: 2, footers: true, switchover_start: false, dirty: DirtyMode::Explicit };
    let mut outgoing = Outgoing::new(Arc::clone(&control), vec![Arc::clone(block)], options).unwrap();
    outgoing.connect(&Uri::parse("fd:test").unwrap(), Some(channel)).unwrap();
    (control, outgoing)
}

fn head() -> Output {
    let mut head = Output::new();
    head.file_header();
    head.configuration(b"none");
    head
}

#[test]
fn what_is_dirty_at_the_fence_is_sent_whoever_forgot_it() {
    let block = Block::anon("ram", 16 * 4096).unwrap();
    let (mut ours, theirs) = std::io::pipe().unwrap();
    let (control, mut outgoing) = begun(&block, theirs.into());
    let reader = thread::spawn(move || {
        let mut stream = Vec::new();
        ours.read_to_end(&mut stream).unwrap();
        stream
    });
    outgoing.setup(head().as_slice(), &[None]).unwrap();
    assert_eq!(outgoing.run(0).unwrap(), Step::Switchover);
    block.write(5 * 4096, b"late").unwrap();
    let mut tail = Output::new();
    tail.eof();
    // No place for RAM among the ends: the write must travel all the same.
    outgoing.finish(&[], &[], tail.as_slice()).unwrap();
    outgoing.close();
    assert!(!control.owned());

    let stream = reader.join().unwrap();
    let mut sink = RecordingSink::default();
    let mut decoder = Decoder::new(Input::new(stream.as_slice()), DecoderOptions { description: false, ..DecoderOptions::default() });
    while decoder.next(&mut sink).unwrap() != Event::Finished {}
    let mut there = Vec::new();
    sink.read(0, |piece| there.extend_from_slice(piece));
    assert_eq!(&there[5 * 4096..5 * 4096 + 4], b"late");
}

#[test]
fn a_pass_without_limit_is_seen_and_steered_on_the_way() {
    const SIZE: u64 = 64 << 20;
    let block = Block::anon("ram", SIZE).unwrap();
    block.fill(0, usize::try_from(SIZE).unwrap(), 1).unwrap();
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    let (control, mut outgoing) = begun(&block, theirs.into());
    let session = control.outgoing().unwrap();
    let watcher = thread::spawn(move || {
        let (mut taken, mut piece) = (0, vec![0; 64 << 10]);
        while session.counters.transferred.get() == 0 {
            assert!(taken < SIZE / 2, "half of RAM is there, and nothing was told");
            taken += ours.read(&mut piece).unwrap() as u64;
            // A slow reader, so that the pass outlasts many turns.
            thread::park_timeout(Duration::from_millis(1));
        }
        // Nothing was dirtied, so there is nothing to estimate yet.
        assert_eq!(session.counters.expected_downtime.get(), Parameters::default().downtime_limit);
        assert!(session.request_cancel());
    });
    outgoing.setup(head().as_slice(), &[None]).unwrap();
    let ended = outgoing.run(0);
    outgoing.close();
    watcher.join().unwrap();
    assert_eq!(ended.unwrap_err().kind, ErrorKind::Cancelled);
}

#[test]
fn a_machine_that_writes_too_fast_is_slowed_down_without_waiting_for_the_end_of_a_round() {
    const SIZE: usize = 4 << 20;
    let block = Block::anon("ram", SIZE as u64).unwrap();
    block.fill(0, SIZE, 1).unwrap();
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    let (control, mut outgoing) = begun(&block, theirs.into());
    control.set_capabilities(["auto-converge".to_owned()]);
    let session = control.outgoing().unwrap();
    let reader = thread::spawn(move || std::io::copy(&mut ours, &mut std::io::sink()));
    let slow = Parameters { max_bandwidth: 1 << 18, downtime_limit: 0, ..Parameters::default() };
    control.set_parameters(Parameters { max_bandwidth: 0, ..slow.clone() });
    outgoing.set_longest_period(Duration::from_secs(1));
    outgoing.setup(head().as_slice(), &[None]).unwrap();
    let mut first_pass = None;
    loop {
        block.mark_dirty(0, SIZE).unwrap();
        let step = outgoing.run(1).unwrap();
        if first_pass.is_none() && session.counters.dirty_sync_count.get() > 1 {
            first_pass = Some(session.counters.transferred.get());
            control.set_parameters(slow.clone());
        }
        match step {
            Step::Throttle => break,
            step => assert_eq!(step, Step::Iterate),
        }
    }
    let second = session.counters.transferred.get() - first_pass.unwrap();
    assert!(second < SIZE as u64, "{second} bytes: the round came to its end first");
    assert_eq!(session.throttle(), 20);
    assert_eq!(control.query_migrate()["cpu-throttle-percentage"], 20);
    assert!(control.cancel());
    outgoing.close();
    reader.join().unwrap().unwrap();
}

#[test]
fn a_forced_switchover_does_not_wait_until_the_rest_is_small() {
    const SIZE: usize = 8 << 20;
    let block = Block::anon("ram", SIZE as u64).unwrap();
    block.fill(0, SIZE, 1).unwrap();
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    let (control, mut outgoing) = begun(&block, theirs.into());
    let session = control.outgoing().unwrap();
    let reader = thread::spawn(move || {
        let mut stream = Vec::new();
        ours.read_to_end(&mut stream).map(|_| stream)
    });
    let forced = Parameters { max_bandwidth: 1 << 20, deadline: 100, deadline_action: DeadlineAction::Force, ..Parameters::default() };
    control.set_parameters(forced);
    outgoing.setup(head().as_slice(), &[None]).unwrap();
    assert_eq!(outgoing.run(0).unwrap(), Step::Switchover);
    assert!(session.counters.remaining.get() > 0, "it has converged");
    assert!(session.owned() && !session.cancel.is_set());
    assert!(control.cancel());
    outgoing.close();
    assert!(reader.join().unwrap().unwrap().len() < SIZE);
}

#[test]
fn a_peer_that_does_not_read_cannot_hold_a_migration_beyond_its_deadline() {
    let block = Block::anon("ram", 8 << 20).unwrap();
    block.fill(0, 8 << 20, 1).unwrap();
    let (ours, theirs) = UnixStream::pair().unwrap();
    let (control, mut outgoing) = begun(&block, theirs.into());
    control.set_parameters(Parameters { max_bandwidth: 0, deadline: 100, ..Parameters::default() });
    let ended = outgoing.setup(head().as_slice(), &[None]).and_then(|()| outgoing.run(0)).unwrap_err();
    assert_eq!(ended.kind, ErrorKind::Cancelled);
    assert!(ended.message.contains("100 ms of `x-deadline`"), "{ended}");
    outgoing.close();
    drop(ours);
    assert_eq!(control.outgoing().unwrap().finish().name(), "cancelled");
    assert!(control.owned());
}
