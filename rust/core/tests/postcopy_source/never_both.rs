//! The connection is cut after every byte of the switch, in either direction: at most one side may run the machine.

use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::thread;

use qmig_core::ErrorKind;
use qmig_core::control::{Ownership, Status};
use qmig_core::send::Format;
use qmig_core::wire::ReturnMessage;

use crate::cut::relay;
use crate::peer::{Peer, Setting, Source, block};

/// RUN: without all of it nothing has happened.
const LAST: usize = 5;

struct Outcome {
    runs_there: bool,
    runs_here: bool,
    /// Bytes up to and with RUN, and of answers, as far as they came.
    taken: usize,
    kind: Option<ErrorKind>,
}

fn migrate(forward: usize, back: usize) -> Outcome {
    let (ours, ours_relay) = UnixStream::pair().unwrap();
    let (theirs, theirs_relay) = UnixStream::pair().unwrap();
    let source = Source::start(&[block("ram", 2)], &Setting::new(Format::V7_2), Some(ours.into()));
    let ahead = (ours_relay.try_clone().unwrap(), theirs_relay.try_clone().unwrap());
    let ahead = thread::spawn(move || relay(ahead.0, ahead.1, forward, |_| ()));
    let behind = thread::spawn(move || relay(theirs_relay, ours_relay, back, |_| ()));
    // What does not come makes the script panic: then the destination has not run.
    let there = thread::spawn(move || {
        let mut peer = Peer::new(theirs);
        peer.quiet = true;
        peer.switched();
        let taken = peer.taken;
        peer.hang_up();
        taken
    });
    let ran = there.join();
    let session = source.session.clone();
    // Nothing waits in a source that failed; one that is paused is given up.
    crate::peer::until("an end", || session.status() == Status::PostcopyPaused || session.error().is_some());
    let committed = session.status() == Status::PostcopyPaused;
    assert_eq!(committed, !session.owned());
    source.give_up();
    let outcome =
        Outcome { runs_there: ran.is_ok(), runs_here: session.owned(), taken: ran.unwrap_or(0), kind: session.error().map(|e| e.kind) };
    ahead.join().unwrap();
    behind.join().unwrap();
    assert!(!(outcome.runs_there && outcome.runs_here), "both sides would run the machine");
    assert_eq!(outcome.runs_here, outcome.kind != Some(ErrorKind::OwnershipUnknown));
    outcome
}

#[test]
fn cut_after_every_byte() {
    let whole = migrate(usize::MAX, usize::MAX);
    assert!(whole.runs_there && !whole.runs_here);
    for forward in 0..=whole.taken {
        let outcome = migrate(forward, usize::MAX);
        assert_eq!(outcome.runs_there, forward == whole.taken, "cut after {forward} bytes");
        // A cut inside RUN may also be noticed in time.
        let before = forward < whole.taken - LAST;
        assert!(outcome.runs_here || !before, "cut after {forward} of {} bytes", whole.taken);
    }
}

#[test]
fn cut_after_every_byte_of_the_answers() {
    // PONG 1 and PONG 2.
    for back in 0..16 {
        let outcome = migrate(usize::MAX, back);
        assert!(outcome.runs_here && !outcome.runs_there, "cut after {back} bytes");
    }
}

/// The setup and the package as far as it is sent before the commit.
fn without_run(peer: &mut Peer) {
    peer.header();
    let size = peer.until(7);
    // The rest of the package is there; what is sent from here on is refused.
    peer.socket.shutdown(Shutdown::Read).unwrap();
    peer.bytes(u32::from_be_bytes(size.try_into().unwrap()) as usize - LAST);
}

#[test]
fn a_machine_whose_run_the_kernel_did_not_take_runs_on_here() {
    let (mut peer, source) = Peer::with_source(&[block("ram", 2)], &Setting::new(Format::V7_2));
    without_run(&mut peer);
    let session = source.session.clone();
    let (moved, status) = source.end();
    assert!(moved.is_err() && status == Status::Failed, "{moved:?}");
    assert_eq!((session.owned(), session.ownership()), (true, Ownership::Withdrawn), "after the commit, and back");
    assert_ne!(session.error().unwrap().kind, ErrorKind::OwnershipUnknown);
}

#[test]
fn a_destination_that_was_not_heard_since_can_be_given_up() {
    for heard in [false, true] {
        let (mut peer, source) = Peer::with_source(&[block("ram", 2)], &Setting::new(Format::V7_2));
        assert!(source.control.give_up_outgoing().unwrap_err().message.contains("postcopy-paused"));
        peer.switched();
        // What comes before RUN is obeyed says nothing.
        peer.say(&ReturnMessage::Pong(3));
        if heard {
            peer.say(&ReturnMessage::Pong(4));
        }
        peer.hang_up();
        let why = source.paused();
        assert_eq!(why.contains("x-migrate-give-up and then cont"), !heard, "{why}");
        let given_up = source.control.give_up_outgoing();
        if heard {
            let error = given_up.unwrap_err();
            assert!(error.kind == ErrorKind::InvalidState && error.message.contains("has answered"), "{error}");
            source.give_up();
            continue;
        }
        given_up.unwrap();
        let session = source.session.clone();
        let (moved, status) = source.end();
        assert_eq!((moved.unwrap_err().kind, status), (ErrorKind::OwnershipUnknown, Status::Failed));
        assert!(!session.owned(), "nobody has said that it may run here");
    }
}
