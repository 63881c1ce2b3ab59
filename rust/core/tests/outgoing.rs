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
use qmig_core::control::{Control, Parameters};
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
