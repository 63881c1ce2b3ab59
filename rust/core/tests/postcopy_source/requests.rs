//! Requests: first, once, and whatever the background does.

use std::time::Instant;

use qmig_core::control::Status;
use qmig_core::send::Format;

use crate::peer::{Element, PAGE, Peer, Setting, block, until};

const PAGES: usize = 4096;

#[test]
fn what_is_asked_for_comes_first_and_its_neighbours_next() {
    let (mut peer, source) = Peer::with_source(&[block("ram", PAGES)], &Setting::new(Format::V7_2));
    peer.switched();
    peer.ask(Some("ram"), 3000 * PAGE, PAGE);
    peer.ask(None, 2000 * PAGE, PAGE);
    until("the requests", || source.session.counters.postcopy_requests.get() == 2);
    peer.finish();
    source.end().0.unwrap();
    assert_eq!(peer.sorted(), (0..PAGES).collect::<Vec<_>>());
    let at = |page| peer.pages.iter().position(|(_, found, _)| *found == page).unwrap();
    // Only what the channel held already is before it.
    assert!(at(3000) < 64, "behind {} pages", at(3000));
    assert!(at(2000) < 128, "behind {} pages", at(2000));
    assert_eq!(at(2001), at(2000) + 1);
}

#[test]
fn a_page_is_sent_once_however_often_it_is_asked_for() {
    let (mut peer, source) = Peer::with_source(&[block("ram", 256), block("other", 8)], &Setting::new(Format::V7_2));
    peer.switched();
    peer.ask(Some("ram"), 200 * PAGE, PAGE);
    peer.ask(None, 200 * PAGE, PAGE);
    peer.ask(Some("other"), 0, PAGE);
    // Several host pages at once are legal.
    peer.ask(Some("ram"), 190 * PAGE, 20 * PAGE);
    while !matches!(peer.element(), Element::Section(..)) {}
    let (name, first, _) = peer.pages[0].clone();
    peer.ask(Some(&name), first * PAGE, PAGE);
    peer.finish();
    let session = source.session.clone();
    assert_eq!(source.end().1, Status::Completed);
    assert_eq!(peer.pages.len(), 264);
    assert!(session.counters.postcopy_requests.get() >= 4);
}

#[test]
fn a_slow_background_does_not_hold_up_requests() {
    // Five pages a second: the whole would take a quarter of an hour.
    let setting = Setting { bandwidth: 20 << 10, ..Setting::new(Format::V7_2) };
    let (mut peer, source) = Peer::with_source(&[block("ram", PAGES)], &setting);
    peer.switched();
    let begun = Instant::now();
    for page in (0..100).map(|n| n * 40 + 7) {
        peer.ask(Some("ram"), page * PAGE, PAGE);
        while peer.pages.last().is_none_or(|(_, found, _)| *found != page) {
            peer.element();
        }
    }
    let most = 20 + 5 * usize::try_from(begun.elapsed().as_secs() + 1).unwrap();
    assert!(peer.pages.len() < 100 + most, "the background sent {} pages", peer.pages.len() - 100);
    let parameters = (*source.control.parameters()).clone();
    source.control.set_parameters(qmig_core::control::Parameters { max_postcopy_bandwidth: 0, ..parameters });
    peer.finish();
    source.end().0.unwrap();
    assert_eq!(peer.sorted().len(), PAGES);
}
