//! What a destination may not say: each ends the connection with a clear error, and the machine's memory stays.

use std::time::Duration;

use qmig_core::control::Status;
use qmig_core::ram::{Backing, Block, BlockOptions};
use qmig_core::send::Format;
use qmig_core::wire::{Output, ReturnMessage};
use qmig_core::{ErrorKind, Result};

use crate::peer::{Element, PAGE, Peer, Setting, Source, block};

fn request(name: Option<&str>, start: u64, length: u32) -> Vec<u8> {
    let mut out = Output::new();
    ReturnMessage::ReqPages { name: name.map(|name| name.as_bytes().to_vec()), start, length }.write(&mut out);
    out.into_vec()
}

#[test]
fn every_bad_word_pauses_and_says_why() {
    let page = PAGE as u32;
    let named = |start, length| request(Some("ram"), start, length);
    let cases: Vec<(Vec<u8>, &str)> = vec![
        (request(Some("nope"), 0, page), "block \"nope\" is not known"),
        (request(Some(""), 0, page), "block \"\" is not known"),
        (request(None, 0, page), "the first page request names no block"),
        (named(0x0100_0000, page), "the block has 0x1000000 bytes"),
        (named(0x00ff_f000, 2 * page), "the block has 0x1000000 bytes"),
        (named(u64::MAX - 4095, page), "whole pages"),
        (named(12, page), "whole pages"),
        (named(0, 100), "whole pages"),
        (named(0, 0), "whole pages"),
        (b"\0\x03\0\x0d\0\0\0\0\0\0\0\0\0\0\x10\0\x04".to_vec(), "the payload ends inside this field"),
        (b"\0\x03\0\x0f\0\0\0\0\0\0\0\0\0\0\x10\0\x01ab".to_vec(), "1 bytes too many"),
        (b"\0\x04\0\x0b".to_vec(), "payload of 11 bytes"),
        (b"\0\x03\x02\x01".to_vec(), "payload of 513 bytes"),
        (b"\0\0\0\0".to_vec(), "type 0 is not known"),
        (b"\0\x08\0\0".to_vec(), "type 8 is not known"),
        (b"\0\x05\0\x04\x03ram".to_vec(), "RECV_BITMAP has no place"),
        (b"\0\x06\0\x04\0\0\0\x01".to_vec(), "RESUME_ACK has no place"),
        (b"\0\x06\0\x04\0\0\0\x02".to_vec(), "RESUME_ACK with value 2"),
        (b"\0\x01\0\x04\0\0\0\0".to_vec(), "ended the migration before it was complete"),
    ];
    for (bytes, text) in cases {
        let (mut peer, source) = Peer::with_source(&[block("ram", 4096)], &Setting::new(Format::V7_2));
        peer.switched();
        peer.say_bytes(&bytes);
        let why = source.paused();
        assert!(why.contains(text), "{text}: {why}");
        assert_eq!(source.give_up(), Status::Failed);
    }
}

#[test]
fn half_a_message_and_silence_are_told_apart() {
    let (mut peer, source) = Peer::with_source(&[block("ram", 4096)], &Setting::new(Format::V7_2));
    peer.switched();
    peer.say_bytes(b"\0\x04\0");
    peer.hang_up();
    let why = source.paused();
    assert!(why.contains("return-path") || why.contains("closed"), "{why}");
    source.give_up();
}

#[test]
fn half_a_huge_page_cannot_be_asked_for() {
    let options = BlockOptions { backing: Backing::Hugetlb, ..BlockOptions::default() };
    let Ok(huge) = Block::new("huge", 4 << 20, &options) else {
        crate::peer::no_huge_pages();
        return;
    };
    for (start, length) in [(PAGE, 2 << 20), (0, PAGE)] {
        let (mut peer, source) = Peer::with_source(&[crate::peer::filled(huge.clone())], &Setting::new(Format::V7_2));
        peer.switched();
        peer.ask(Some("huge"), start, length);
        let why = source.paused();
        assert!(why.contains("whole pages of 0x200000 bytes"), "{why}");
        source.give_up();
    }
}

/// The peer has seen the first PING behind the discards, and the source waits for its answer.
fn at_the_fence() -> (Peer, Source) {
    at_the_fence_with(&Setting::new(Format::V7_2))
}

fn at_the_fence_with(setting: &Setting) -> (Peer, Source) {
    let (mut peer, source) = Peer::with_source(&[block("ram", 64)], setting);
    peer.header();
    peer.until(6);
    assert_eq!(peer.element(), Element::Command(2, vec![0, 0, 0, 2]));
    (peer, source)
}

fn stays_here(source: Source) -> Result<()> {
    let session = source.session.clone();
    let (moved, status) = source.end();
    assert_eq!(status, Status::Failed);
    assert!(session.owned(), "nothing was given away");
    moved
}

#[test]
fn before_the_commit_a_bad_word_leaves_the_machine_here() {
    let (mut peer, source) = at_the_fence();
    peer.ask(Some("ram"), 0, PAGE);
    let error = stays_here(source).unwrap_err();
    assert_eq!(error.kind, ErrorKind::ReturnPath);
    assert!(error.message.contains("a page request has no place"), "{error}");

    for status in [0, 1, 2] {
        let (mut peer, source) = at_the_fence();
        peer.say(&ReturnMessage::Shut(status));
        assert_eq!(stays_here(source).unwrap_err().kind, ErrorKind::ReturnPath);
    }

    // It says nothing at all, and does not hang up either.
    let (_peer, source) = at_the_fence_with(&Setting { patience: Some(Duration::from_millis(100)), ..Setting::new(Format::V7_2) });
    assert_eq!(stays_here(source).unwrap_err().kind, ErrorKind::Timeout);

    let (mut peer, source) = at_the_fence();
    peer.say(&ReturnMessage::Pong(2));
    peer.hang_up();
    // The answer is there, but the package has not arrived.
    assert!(stays_here(source).is_err());
}

#[test]
fn a_destination_that_never_ran_gives_the_machine_back() {
    let (mut peer, source) = Peer::with_source(&[block("ram", 4096)], &Setting::new(Format::V7_2));
    peer.switched();
    peer.say(&ReturnMessage::Shut(2));
    let error = stays_here(source).unwrap_err();
    assert!(error.message.contains("never ran"), "{error}");
}

#[test]
fn a_destination_that_failed_is_the_end() {
    let capable = [
        (Setting::new(Format::V7_2), 1),
        // What was released cannot be given back.
        (Setting::new(Format::V7_2).with("release-ram"), 2),
    ];
    for (setting, status) in capable {
        let (mut peer, source) = Peer::with_source(&[block("ram", 4096)], &setting);
        peer.switched();
        peer.say(&ReturnMessage::Shut(status));
        let session = source.session.clone();
        let (moved, status) = source.end();
        assert_eq!((moved.unwrap_err().kind, status), (ErrorKind::OwnershipUnknown, Status::Failed));
        assert!(!session.owned());
    }
}

#[test]
fn what_cannot_be_recovered_ends_with_its_connection() {
    for setting in [Setting::new(Format::V2_9), Setting::new(Format::V7_2).with("release-ram")] {
        let (mut peer, source) = Peer::with_source(&[block("ram", 4096)], &setting);
        peer.switched();
        peer.hang_up();
        let (moved, status) = source.end();
        assert_eq!((moved.unwrap_err().kind, status), (ErrorKind::OwnershipUnknown, Status::Failed));
    }
}
