//! The second channel, by both rules.

use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use qmig_core::ErrorKind;
use qmig_core::channel::Uri;
use qmig_core::control::Status;
use qmig_core::send::Format;
use qmig_core::wire::ReturnMessage;

use crate::peer::{Element, PAGE, Peer, Setting, Source, begun, block, control, outgoing};

const PAGES: usize = 2000;

/// A listener that goes with its file.
struct Place(UnixListener, PathBuf);

impl Place {
    fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("qmig-preempt-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        Self(UnixListener::bind(&path).unwrap(), path)
    }

    fn setting(&self, format: Format) -> Setting {
        Setting { uri: format!("unix:{}", self.1.display()), ..Setting::new(format).with("postcopy-preempt") }
    }

    fn accept(&self) -> Peer {
        Peer::new(self.0.accept().unwrap().0)
    }

    fn nobody_waits(&self) -> bool {
        self.0.set_nonblocking(true).unwrap();
        let nobody = self.0.accept().is_err();
        self.0.set_nonblocking(false).unwrap();
        nobody
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.1);
    }
}

/// Ask for every tenth page; they come over the second channel with their name, the others over main, none twice.
fn serve(main: &mut Peer, second: &mut Peer) {
    let mut claimed = Vec::new();
    for page in (0..PAGES).rev().step_by(10) {
        main.ask(Some("ram"), page * PAGE, PAGE);
    }
    let mut pages = std::mem::take(&mut main.pages);
    std::thread::scope(|scope| {
        let urgent = scope.spawn(|| {
            // As many as have not gone over main already; the last is asked for first, before main is read at all.
            second.record();
            second.pages.clone()
        });
        claimed = urgent.join().unwrap();
    });
    assert_eq!(claimed[0].1, PAGES - 1);
    pages.append(&mut main.pages);
    main.pages = pages;
}

fn whole(format: Format) -> (Place, Source, Peer, Peer) {
    let place = Place::new();
    let (source, main, second) = switched(&place, &place.setting(format));
    (place, source, main, second)
}

/// A machine that runs at the destination, with both channels.
fn switched(place: &Place, setting: &Setting) -> (Source, Peer, Peer) {
    let source = Source::start(&[block("ram", PAGES)], setting, None);
    let mut main = place.accept();
    let mut second = None;
    if setting.format == Format::V7_2 {
        // Before anything is said on main.
        second = Some(place.accept());
    }
    main.header();
    main.until(2);
    assert!(place.nobody_waits(), "a connection too early");
    main.say(&ReturnMessage::Pong(1));
    if setting.format == Format::V10_0 {
        second = Some(place.accept());
    }
    let size = main.until(7);
    main.bytes(u32::from_be_bytes(size.try_into().unwrap()) as usize);
    main.pages.clear();
    (source, main, second.unwrap())
}

fn rest(second: &mut Peer, eos: bool) {
    while second.record_or_end() {}
    assert_eq!(second.saw_eos, eos);
}

#[test]
fn requested_pages_have_their_own_way() {
    for format in [Format::V7_2, Format::V10_0] {
        let (_place, source, mut main, mut second) = whole(format);
        serve(&mut main, &mut second);
        let urgent = std::thread::spawn(move || {
            rest(&mut second, format == Format::V7_2);
            second
        });
        main.finish();
        let (moved, status) = source.end();
        moved.unwrap();
        assert_eq!(status, Status::Completed);
        let mut second = urgent.join().unwrap();
        second.pages.append(&mut main.pages);
        assert_eq!(second.sorted(), (0..PAGES).collect::<Vec<_>>(), "{format:?}: each page once, over one of the two");
        assert!(second.named, "the name stands in front of every requested page");
    }
}

#[test]
fn a_recovery_brings_a_new_second_channel() {
    for format in [Format::V7_2, Format::V10_0] {
        let (place, source, mut main, mut second) = whole(format);
        serve(&mut main, &mut second);
        let received = second.pages[0].1;
        // One of the two is enough to lose both: the channel is full of pages that nobody reads.
        second.hang_up();
        source.paused();
        assert!(main.ends_after_rest());
        let uri = Uri::parse(&place.setting(format).uri).unwrap();
        source.control.resume_outgoing(&uri, None).unwrap();
        main = place.accept();
        if format == Format::V7_2 {
            second = place.accept();
        }
        assert_eq!(main.element(), Element::Command(10, b"\x03ram".to_vec()));
        assert!(place.nobody_waits());
        main.tell("ram", PAGES, |page| page == received);
        if format == Format::V10_0 {
            second = place.accept();
        }
        assert_eq!(main.element(), Element::Command(9, vec![]));
        main.say(&ReturnMessage::ResumeAck);
        main.ask(Some("ram"), 1000 * PAGE, PAGE);
        assert!(second.record());
        assert_eq!(second.pages[0].1, 1000);
        main.finish();
        source.end().0.unwrap();
        second.pages.append(&mut main.pages);
        assert_eq!(second.sorted(), (0..PAGES).filter(|page| *page != received).collect::<Vec<_>>());
    }
}

#[test]
fn no_second_connection_no_start() {
    for (uri, format, kind) in
        [("fd:peer", Format::V7_2, ErrorKind::InvalidArgument), ("tcp:[::1]:1", Format::V2_9, ErrorKind::Unsupported)]
    {
        let setting = Setting { uri: uri.into(), ..Setting::new(format).with("postcopy-preempt") };
        let (control, _session, _events) = control(&setting);
        let mut outgoing = outgoing(&control, &[block("ram", 4)], &setting);
        let refused = begun(&mut outgoing, &setting, None).unwrap_err();
        assert_eq!(refused.kind, kind, "{refused}");
    }
}

#[test]
fn a_second_channel_that_nobody_reads_ends_the_connection() {
    for format in [Format::V7_2, Format::V10_0] {
        let place = Place::new();
        let setting = Setting { stall: Some(Duration::from_millis(300)), bandwidth: PAGE as u64, ..place.setting(format) };
        let (source, mut main, second) = switched(&place, &setting);
        // More than a socket holds. Main goes on being read, so it is not main that is found out.
        main.ask(Some("ram"), 0, PAGES * PAGE);
        let reader = std::thread::spawn(move || main.ends_after_rest());
        let why = source.paused();
        assert!(why.contains("does not read"), "{why}");
        assert!(reader.join().unwrap(), "main is cut, too");
        drop(second);
        assert_eq!(source.give_up(), Status::Failed);
    }
}
