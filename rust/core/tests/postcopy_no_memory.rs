//! A destination that has no memory for a page that comes: before RUN the machine goes back, after it the migration is paused, nobody
//! finds zeros, and a recovery goes on once there is memory.
#![allow(clippy::unwrap_used, missing_docs)]

mod scripted;

use std::net::Shutdown;
use std::sync::Arc;
use std::thread;

use qmig_core::ErrorKind;
use qmig_core::control::Status;
use qmig_core::ram::{Backing, Block, BlockOptions};
use qmig_core::wire::{Command, ReturnMessage};

use scripted::tmpfs::Tmpfs;
use scripted::*;

const PAGES: usize = 40;

/// A block whose file system has no room for any page of it.
fn full(name: &str) -> Option<(Tmpfs, Arc<Block>)> {
    let place = Tmpfs::mount("128k")?;
    std::fs::write(place.path().join("ballast"), vec![1; 128 << 10]).unwrap();
    let options = BlockOptions { backing: Backing::File, path: Some(place.path().join(name)), ..BlockOptions::default() };
    let block = Block::new(name, (PAGES * PAGE) as u64, &options).unwrap();
    Some((place, block))
}

#[test]
fn before_run_the_machine_goes_back() {
    let Some((_place, block)) = full("rom") else { return };
    let destination = Destination::new(vec![anon(&[("ram", 1)]).remove(0), block], &[]);
    // The device waits for a page, so that RUN does not come before this is over.
    let mut source = destination.connect(Manner::Peeks);
    source.send(&head(&destination.blocks));
    source.send(&packaged(&good_package()));
    assert_eq!(source.heard(), Some(ReturnMessage::Pong(1)));
    assert_eq!(source.request(PAGE), Some(("ram".to_owned(), 0)));
    source.send(&part(&[("rom".to_owned(), 0)]));
    assert_eq!(source.rest(), [ReturnMessage::Shut(2)]);
    source.stream.shutdown(Shutdown::Both).unwrap();
    let error = destination.outcome().unwrap_err();
    assert!(error.kind == ErrorKind::NoMemory && error.message.contains("no memory for page 0x0"), "{error}");
    assert_eq!(destination.control.incoming_status(), Status::Failed);
}

#[test]
fn after_run_it_is_paused_until_there_is_memory() {
    let Some((place, block)) = full("ram") else { return };
    let destination = Destination::new(vec![Arc::clone(&block)], &[]);
    let mut source = destination.connect(Manner::Good);
    source.send(&head(&destination.blocks));
    source.send(&packaged(&good_package()));
    for token in [1, 3] {
        assert_eq!(source.heard(), Some(ReturnMessage::Pong(token)));
    }
    destination.wait_started();
    thread::scope(|scope| {
        let _guard = destination.guard();
        let reading = scope.spawn(|| verify_page(&block, 9));
        assert_eq!(source.request(PAGE), Some(("ram".to_owned(), 9)));
        for turn in 0..3 {
            source.try_send(&part(&[("ram".to_owned(), 9)]));
            let why = destination.paused();
            assert!(why.contains("no memory for page 0x9000; free some") && why.contains("recover"), "{why}");
            assert!(!reading.is_finished(), "nobody finds zeros");
            if turn == 2 {
                place.resize("1m");
            }
            let path = Path::new("again");
            destination.control.recover_incoming(&path.uri(), None).unwrap();
            source = path.connect();
            destination.wait_status(Status::PostcopyRecover);
            source.say(|stream| stream.command(&Command::RecvBitmap(b"ram".to_vec())));
            assert_eq!(source.bitmap(&block), [false; PAGES], "nothing was received");
            source.say(|stream| stream.command(&Command::Resume));
            assert_eq!(source.heard(), Some(ReturnMessage::ResumeAck));
            assert_eq!(source.request(PAGE), Some(("ram".to_owned(), 9)), "asked for once more");
        }
        source.send(&part(&all_pages(&destination.blocks)));
        reading.join().unwrap();
    });
    source.send(&finish());
    assert_eq!(source.rest(), [ReturnMessage::Shut(0)]);
    source.stream.shutdown(Shutdown::Both).unwrap();
    destination.outcome().unwrap();
    destination.verify();
}
