//! Lost connections after the commit: paused, and on from what the destination has.

use std::time::Duration;

use qmig_core::channel::Uri;
use qmig_core::control::Status;
use qmig_core::send::Format;
use qmig_core::wire::ReturnMessage;

use crate::peer::{Element, PAGE, Peer, Setting, Source, block};

const PAGES: usize = 1000;

/// The questions that a recovery begins with.
fn asked(peer: &mut Peer, names: &[&str]) {
    for name in names {
        let name = [&[u8::try_from(name.len()).unwrap()], name.as_bytes()].concat();
        assert_eq!(peer.element(), Element::Command(10, name));
    }
}

fn resumed(peer: &mut Peer, source: &Source) {
    assert_eq!(peer.element(), Element::Command(9, vec![]));
    assert_eq!(source.status(), Status::PostcopyRecover);
    peer.say(&ReturnMessage::ResumeAck);
    source.wait(Status::PostcopyActive);
}

#[test]
fn on_from_what_was_received_any_number_of_times() {
    let (mut peer, source) = Peer::with_source(&[block("ram", PAGES), block("other", 70)], &Setting::new(Format::V7_2));
    peer.switched();
    source.wait(Status::PostcopyActive);
    let mut received: Vec<(String, usize)> = Vec::new();
    for round in 0..8 {
        // Some pages, of which the last gets lost.
        peer.ask(Some("ram"), (round * 100 + 50) * PAGE, PAGE);
        assert_eq!(peer.bytes(if round == 0 { 9 + 5 } else { 5 }).len() % 9, 5, "PING 4 and the head of a PART");
        for _ in 0..3 {
            assert!(peer.record());
        }
        peer.pages.pop();
        received.extend(peer.pages.iter().map(|(name, page, _)| (name.clone(), *page)));
        peer.hang_up();
        source.paused();
        peer = source.resume();
        asked(&mut peer, &["ram", "other"]);
        for (name, pages) in [("ram", PAGES), ("other", 70)] {
            peer.tell(name, pages, |page| received.contains(&(name.to_owned(), page)));
        }
        resumed(&mut peer, &source);
    }
    peer.finish();
    let (moved, status) = source.end();
    moved.unwrap();
    assert_eq!(status, Status::Completed);
    received.extend(peer.pages.iter().map(|(name, page, _)| (name.clone(), *page)));
    received.sort();
    let all = |name: &str, pages| (0..pages).map(|page| (name.to_owned(), page)).collect::<Vec<_>>();
    assert_eq!(received, [all("other", 70), all("ram", PAGES)].concat(), "each page once");
}

#[test]
fn bits_past_the_end_and_zero_pages_are_no_matter() {
    let (mut peer, source) = Peer::with_source(&[block("ram", 70)], &Setting::new(Format::V7_2));
    peer.switched();
    peer.hang_up();
    source.paused();
    peer = source.resume();
    asked(&mut peer, &["ram"]);
    peer.tell("ram", 128, |page| page != 5);
    resumed(&mut peer, &source);
    peer.finish();
    source.end().0.unwrap();
    assert_eq!(peer.pages, [("ram".to_owned(), 5, true)]);
}

#[test]
fn requests_begin_anew_with_a_name() {
    let (mut peer, source) = Peer::with_source(&[block("ram", PAGES)], &Setting::new(Format::V7_2));
    peer.switched();
    peer.ask(Some("ram"), 0, PAGE);
    peer.hang_up();
    source.paused();
    peer = source.resume();
    asked(&mut peer, &["ram"]);
    peer.tell("ram", PAGES, |_| false);
    resumed(&mut peer, &source);
    peer.ask(None, 0, PAGE);
    assert!(source.paused().contains("names no block"));
    source.give_up();
}

#[test]
fn a_recovery_that_fails_leads_back_to_paused() {
    let end = 0x0123_4567_89ab_cdef_u64.to_be_bytes();
    let size = 128_u64.to_be_bytes();
    let head = b"\0\x05\0\x04\x03ram";
    let cases: Vec<(Vec<u8>, &str)> = vec![
        (b"\0\x05\0\x05\x04nope".to_vec(), "block \"nope\" is not known"),
        (b"\0\x05\0\x05\x03ram!".to_vec(), "1 bytes too many"),
        ([&head[..], &[0, 0, 0, 0, 0, 0, 0, 136]].concat(), "a bitmap of 0x88 bytes"),
        ([&head[..], &size, &[0; 128], &[0; 8]].concat(), "end mark is wrong"),
        ([&head[..], &size, &[0; 128], &end, head, &size, &[0; 128], &end].concat(), "came twice"),
        (b"\0\x06\0\x04\0\0\0\x01".to_vec(), "RESUME_ACK has no place"),
        (b"\0\x04\0\x0c\0\0\0\0\0\0\0\0\0\0\x10\0".to_vec(), "a page request has no place"),
        // Whoever this is, it does not end what it never had.
        (b"\0\x01\0\x04\0\0\0\x01".to_vec(), "refused the migration (status 1)"),
        (b"\0\x01\0\x04\0\0\0\x02".to_vec(), "refused the migration (status 2)"),
    ];
    let (mut peer, source) = Peer::with_source(&[block("ram", PAGES), block("other", 70)], &Setting::new(Format::V7_2));
    peer.switched();
    peer.hang_up();
    source.paused();
    for (bytes, text) in cases {
        peer = source.resume();
        asked(&mut peer, &["ram", "other"]);
        peer.say_bytes(&bytes);
        let why = source.paused();
        assert!(why.contains(text), "{text}: {why}");
    }
    peer = source.resume();
    asked(&mut peer, &["ram", "other"]);
    peer.tell("other", 70, |_| true);
    peer.tell("ram", PAGES, |page| page > 0);
    resumed(&mut peer, &source);
    peer.finish();
    source.end().0.unwrap();
    assert_eq!(peer.sorted(), [0]);
}

#[test]
fn a_destination_that_says_nothing_in_a_recovery_is_not_waited_for() {
    // long enough for an answer that does come, on any machine
    let setting = Setting { patience: Some(Duration::from_secs(1)), ..Setting::new(Format::V7_2) };
    let (mut peer, source) = Peer::with_source(&[block("ram", PAGES)], &setting);
    peer.switched();
    peer.hang_up();
    source.paused();
    for (answers, text) in [(false, "waited too long for the bitmaps"), (true, "waited too long for the destination to go on")] {
        peer = source.resume();
        asked(&mut peer, &["ram"]);
        if answers {
            peer.tell("ram", PAGES, |_| true);
            assert_eq!(peer.element(), Element::Command(9, vec![]));
        }
        let why = source.paused();
        assert!(why.contains(text), "{why}");
    }
    // nor for its last word
    peer = source.resume();
    asked(&mut peer, &["ram"]);
    peer.tell("ram", PAGES, |_| true);
    resumed(&mut peer, &source);
    let why = source.paused();
    assert!(why.contains("waited too long for the destination's last word"), "{why}");
    source.give_up();
}

#[test]
fn a_destination_that_does_not_read_is_a_pause() {
    let setting = Setting { patience: Some(Duration::from_secs(1)), ..Setting::new(Format::V7_2) };
    let (mut peer, source) = Peer::with_source(&[block("ram", PAGES)], &setting);
    peer.switched(); // and from here on it is only still there
    let why = source.paused();
    assert!(why.contains("the peer does not read"), "{why}");
    assert_eq!(source.status(), Status::PostcopyPaused);
    source.give_up();
}

#[test]
fn who_cannot_be_reached_is_told_and_another_is_waited_for() {
    let (mut peer, source) = Peer::with_source(&[block("ram", PAGES)], &Setting::new(Format::V7_2));
    peer.switched();
    source.wait(Status::PostcopyActive);
    source.control.pause().unwrap();
    assert!(source.paused().contains("migrate-pause"));
    source.control.resume_outgoing(&Uri::parse("unix:/nowhere/at/all").unwrap(), None).unwrap();
    crate::peer::until("the refusal", || source.control.query_migrate()["error-desc"].to_string().contains("/nowhere/at/all"));
    assert_eq!(source.status(), Status::PostcopyPaused);
    peer = source.resume();
    asked(&mut peer, &["ram"]);
    peer.tell("ram", PAGES, |_| true);
    resumed(&mut peer, &source);
    peer.finish();
    source.end().0.unwrap();
    assert!(peer.pages.is_empty());
}

#[test]
fn a_lost_last_word_is_no_end() {
    let (mut peer, source) = Peer::with_source(&[block("ram", 64)], &Setting::new(Format::V7_2));
    peer.switched();
    while peer.element() != Element::Eof {}
    peer.hang_up();
    source.paused();
    peer = source.resume();
    asked(&mut peer, &["ram"]);
    peer.tell("ram", 64, |page| page != 63);
    resumed(&mut peer, &source);
    peer.finish();
    let (moved, status) = source.end();
    moved.unwrap();
    assert_eq!((peer.sorted(), status), (vec![63], Status::Completed));
}
