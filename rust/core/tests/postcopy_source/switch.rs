//! Order and bytes of the switch, and what is refused before it.

use std::io::Read;
use std::os::unix::net::UnixStream;

use qmig_core::ErrorKind;
use qmig_core::control::Status;
use qmig_core::ram::{Backing, Block, BlockOptions};
use qmig_core::send::{Format, Step};
use qmig_core::wire::{Output, ReturnMessage};

use crate::peer::{Element, FULL, PAGE, Peer, Setting, Source, begun, block, control, filled, outgoing, package_bytes};

fn hex(text: &str) -> Vec<u8> {
    let digits: String = text.split_whitespace().collect();
    (0..digits.len()).step_by(2).map(|at| u8::from_str_radix(&digits[at..at + 2], 16).unwrap()).collect()
}

/// The bytes of spec/stream 9.4: one page of `pc.ram`, dirtied after the first round.
#[test]
fn the_switch_byte_by_byte() {
    let setting = Setting::new(Format::V7_2);
    let (control, session, _events) = control(&setting);
    let ram = block("pc.ram", 8);
    let (ours, theirs) = UnixStream::pair().unwrap();
    let mut outgoing = outgoing(&control, std::slice::from_ref(&ram), &setting);
    let source = std::thread::spawn({
        let (ram, control) = (ram.clone(), control.clone());
        move || {
            begun(&mut outgoing, &setting, Some(ours.into())).unwrap();
            assert_eq!(outgoing.run(0).unwrap(), Step::Switchover, "all was sent");
            control.start_postcopy().unwrap();
            ram.mark_dirty(3 * PAGE as u64, 1).unwrap();
            assert_eq!(outgoing.run(0).unwrap(), Step::Postcopy);
            let moved = outgoing.postcopy(&[], FULL);
            outgoing.close();
            moved
        }
    });
    let mut peer = Peer::new(theirs);
    peer.header();
    let setup = [peer.element(), peer.element(), peer.element()];
    assert_eq!(setup[0], Element::Command(1, vec![]));
    assert_eq!(setup[1], Element::Command(2, vec![0, 0, 0, 1]));
    assert_eq!(setup[2], Element::Command(3, hex("0000000000001000 0000000000001000")));
    assert_eq!([peer.element(), peer.element()], [Element::Section(1, 0), Element::Section(2, 8)]);

    let discard = hex("08 0006 0019 00 06 70632e72616d 00 0000000000003000 0000000000001000");
    assert_eq!(peer.bytes(discard.len()), discard);
    assert_eq!(peer.bytes(9), hex("08 0002 0004 00000002"));
    let mut package = hex("08 0007 0004");
    package.extend_from_slice(&(package_bytes().len() as u32).to_be_bytes());
    package.extend_from_slice(&package_bytes());
    package.truncate(package.len() - 5);
    assert_eq!(peer.bytes(package.len()), package);
    peer.socket.set_nonblocking(true).unwrap();
    assert!(peer.socket.read(&mut [0]).is_err(), "RUN before the answer");
    peer.socket.set_nonblocking(false).unwrap();
    assert!(session.owned());
    peer.say(&ReturnMessage::Pong(2));
    assert_eq!(peer.bytes(5), hex("08 0005 0000"));
    assert!(!session.owned());
    assert_eq!(peer.bytes(9), hex("08 0002 0004 00000004"));
    let mut part = hex("02 00000002 0000000000003008 06 70632e72616d 0000000000000003");
    part.resize(part.len() + PAGE - 8, 0);
    part.extend(hex("0000000000000010 7e 00000002"));
    assert_eq!(peer.bytes(part.len()), part);
    assert_eq!(peer.bytes(19), hex("03 00000002 0000000000000010 7e 00000002 00"));
    peer.say(&ReturnMessage::Shut(0));
    source.join().unwrap().unwrap();
    assert_eq!(session.finish(), Status::Completed);
    assert!(peer.ends(), "no description after a switch");
    let ram = &control.query_migrate()["ram"];
    assert_eq!((&ram["postcopy-bytes"], &ram["postcopy-requests"]), (&(8 + 7 + 4096).into(), &0.into()));
}

#[test]
fn every_page_is_sent_once_zeros_as_zeros() {
    let blocks = [block("large", 1000), block("small", 70)];
    let (mut peer, source) = Peer::with_source(&blocks, &Setting::new(Format::V7_2));
    peer.switched();
    peer.finish();
    let (moved, status) = source.end();
    moved.unwrap();
    assert_eq!(status, Status::Completed);
    assert_eq!(peer.pages.len(), 1070);
    let large: Vec<_> = peer.pages.iter().filter(|(name, ..)| name == "large").map(|(_, page, _)| *page).collect();
    assert_eq!(large, (0..1000).collect::<Vec<_>>(), "in order, for nobody asked");
}

#[test]
fn ends_of_others_come_first_and_10_0_says_so_before() {
    let setting = Setting::new(Format::V10_0);
    let (control, _session, _events) = control(&setting);
    control.start_postcopy().unwrap();
    let mut outgoing = outgoing(&control, &[block("ram", 4)], &setting);
    let (ours, theirs) = UnixStream::pair().unwrap();
    let source = std::thread::spawn(move || {
        begun(&mut outgoing, &setting, Some(ours.into())).unwrap();
        assert_eq!(outgoing.run(0).unwrap(), Step::Postcopy);
        let mut end = Output::new();
        end.section_end(7);
        end.put(b"end");
        end.footer(7);
        let moved = outgoing.postcopy(&[end.as_slice()], FULL);
        outgoing.close();
        moved
    });
    let mut peer = Peer::new(theirs);
    peer.header();
    // What is dirty is discarded while the machine still runs.
    peer.until(6);
    assert_eq!(peer.element(), Element::Command(11, vec![]));
    assert_eq!(peer.bytes(13), b"\x03\0\0\0\x07end\x7e\0\0\0\x07");
    assert_eq!(peer.element(), Element::Command(2, vec![0, 0, 0, 2]), "nothing is left to be discarded");
    peer.hang_up();
    assert!(source.join().unwrap().is_err());
}

/// Needs two reserved huge pages; says so where they are missing.
#[test]
fn huge_pages_are_discarded_and_sent_whole() {
    let options = BlockOptions { backing: Backing::Hugetlb, ..BlockOptions::default() };
    let Ok(huge) = Block::new("huge", 4 << 20, &options) else {
        crate::peer::no_huge_pages();
        return;
    };
    let huge = filled(huge);
    let setting = Setting::new(Format::V7_2);
    let (control, _session, _events) = control(&setting);
    let mut outgoing = outgoing(&control, std::slice::from_ref(&huge), &setting);
    let (ours, theirs) = UnixStream::pair().unwrap();
    let source = std::thread::spawn(move || {
        begun(&mut outgoing, &setting, Some(ours.into())).unwrap();
        assert_eq!(outgoing.run(0).unwrap(), Step::Switchover);
        control.start_postcopy().unwrap();
        huge.mark_dirty(600 * PAGE as u64, 1).unwrap();
        outgoing.run(0).unwrap();
        let moved = outgoing.postcopy(&[], FULL);
        outgoing.close();
        moved
    });
    let mut peer = Peer::new(theirs);
    peer.header();
    assert_eq!(peer.until(3), hex("0000000000200000 0000000000001000"));
    assert_eq!(peer.until(6), hex("00 04 68756765 00 0000000000200000 0000000000200000"));
    let size = peer.until(7);
    peer.bytes(u32::from_be_bytes(size.try_into().unwrap()) as usize);
    peer.pages.clear();
    peer.ask(Some("huge"), 2 << 20, 2 << 20);
    peer.finish();
    source.join().unwrap().unwrap();
    assert_eq!(peer.pages.iter().map(|(_, page, _)| *page).collect::<Vec<_>>(), (512..1024).collect::<Vec<_>>());
}

#[test]
fn a_way_without_answers_is_refused_before_anything_is_sent() {
    let folder = std::env::temp_dir().join(format!("qmig-one-way-{}", std::process::id()));
    for uri in [format!("file:{}", folder.display()), "exec:cat".into(), "fd:pipe".into()] {
        let setting = Setting { uri, ..Setting::new(Format::V7_2) };
        let (control, _session, _events) = control(&setting);
        let mut outgoing = outgoing(&control, &[block("ram", 4)], &setting);
        let (mut reader, writer) = std::io::pipe().unwrap();
        let pipe = setting.uri.starts_with("fd:").then_some(writer.into());
        let refused = begun(&mut outgoing, &setting, pipe).unwrap_err();
        assert_eq!(refused.kind, ErrorKind::BadUri);
        assert!(refused.message.contains("way back"), "{refused}");
        outgoing.close();
        drop(outgoing);
        if setting.uri.starts_with("fd:") {
            assert_eq!(reader.read(&mut [0]).unwrap(), 0);
        }
    }
    assert!(!folder.exists());
}

#[test]
fn a_package_that_is_too_large_for_its_format_is_refused_with_the_machine_here() {
    let setting = Setting::new(Format::V2_9);
    let (control, session, _events) = control(&setting);
    control.start_postcopy().unwrap();
    let mut outgoing = outgoing(&control, &[block("ram", 4)], &setting);
    let (ours, _theirs) = UnixStream::pair().unwrap();
    begun(&mut outgoing, &setting, Some(ours.into())).unwrap();
    outgoing.run(0).unwrap();
    let refused = outgoing.postcopy(&[], &vec![0; 16 << 20]).unwrap_err();
    assert_eq!(refused.kind, ErrorKind::LimitExceeded);
    assert!(session.owned());
    outgoing.close();
}

#[test]
fn postcopy_has_to_be_announced() {
    let setting = Setting { capabilities: Vec::new(), ..Setting::new(Format::V7_2) };
    let (control, _session, _events) = control(&setting);
    let mut outgoing = outgoing(&control, &[block("ram", 4)], &setting);
    let (ours, _theirs) = UnixStream::pair().unwrap();
    begun(&mut outgoing, &setting, Some(ours.into())).unwrap();
    assert_eq!(outgoing.postcopy(&[], FULL).unwrap_err().kind, ErrorKind::InvalidState);
    assert_eq!(control.start_postcopy().unwrap_err().kind, ErrorKind::InvalidState);
    outgoing.close();
}

#[test]
fn a_machine_that_does_not_stop_stays_here() {
    let ram = block("ram", 64);
    let (mut peer, source) = Peer::with_source(std::slice::from_ref(&ram), &Setting::new(Format::V7_2));
    peer.header();
    peer.until(6);
    assert_eq!(peer.element(), Element::Command(2, vec![0, 0, 0, 2]));
    ram.mark_dirty(9 * PAGE as u64, 1).unwrap();
    peer.say(&ReturnMessage::Pong(2));
    assert!(peer.ends_after_rest());
    let session = source.session.clone();
    let (moved, status) = source.end();
    let error = moved.unwrap_err();
    assert_eq!((error.kind, status), (ErrorKind::WriterNotStopped, Status::Failed));
    assert!(error.message.contains("ram 0x9000+0x1000"), "{error}");
    assert!(session.owned());
}

#[test]
fn memory_is_released_as_it_goes() {
    let ram = block("ram", 512);
    let (mut peer, source) = Peer::with_source(std::slice::from_ref(&ram), &Setting::new(Format::V7_2).with("release-ram"));
    peer.switched();
    peer.ask(Some("ram"), 100 * PAGE, PAGE);
    peer.finish();
    source.end().0.unwrap();
    assert_eq!(peer.sorted().len(), 512);
    assert!(ram.is_zero(0, 512 * PAGE).unwrap());
}

#[test]
fn a_switch_is_wanted_at_once() {
    // A megabyte a second, so that the first round sleeps most of the time.
    let setting = Setting::new(Format::V7_2);
    let (control, _session, _events) = control(&setting);
    control.set_parameters(qmig_core::control::Parameters { max_bandwidth: 1 << 20, ..Default::default() });
    let mut outgoing = outgoing(&control, &[block("ram", 4096)], &setting);
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    let reader = std::thread::spawn(move || std::io::copy(&mut theirs, &mut std::io::sink()));
    begun(&mut outgoing, &setting, Some(ours.into())).unwrap();
    let wanted = std::thread::spawn(move || {
        crate::peer::until("the first pages", || control.outgoing().unwrap().counters.transferred.get() > 4096);
        control.start_postcopy().unwrap();
        std::time::Instant::now()
    });
    assert_eq!(outgoing.run(0).unwrap(), Step::Postcopy);
    let late = wanted.join().unwrap().elapsed();
    assert!(late < std::time::Duration::from_millis(30), "{late:?}");
    outgoing.close();
    drop(outgoing);
    reader.join().unwrap().unwrap();
}

/// What the source needs of a peer is what `Source` shows: used by all files here.
#[test]
fn a_cancel_before_the_commit_keeps_the_machine() {
    let ram = block("ram", 64);
    let (mut peer, source): (Peer, Source) = Peer::with_source(std::slice::from_ref(&ram), &Setting::new(Format::V7_2));
    peer.header();
    peer.until(6);
    assert_eq!(peer.element(), Element::Command(2, vec![0, 0, 0, 2]));
    assert!(source.control.cancel());
    let session = source.session.clone();
    assert_eq!(source.end().1, Status::Cancelled);
    assert!(session.owned());
}
