//! The destination with several channels, seen from the other end: order, bad input, channels that break, hang or are not there.
#![allow(clippy::unwrap_used, missing_docs, missing_debug_implementations)]

mod damage;
mod golden;
mod refusals;
mod source;

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::thread;
use std::time::Duration;

use qmig_core::ErrorKind;
use qmig_core::control::{Parameters, Status};
use qmig_core::recv::Deadlines;
use qmig_core::wire::multifd::Method;
use qmig_core::wire::{Output, ReturnMessage};

use source::{Destination, PAGE, PAGES, Script, content, end, everything, head, hello, last, part};

const METHODS: [Method; 3] = [Method::None, Method::Zlib, Method::Zstd];

/// Version of each page after `two_rounds`; none: zero.
fn after_two_rounds(page: u64) -> Option<u64> {
    match page {
        3 | 7 | 12 => None,
        _ if page < 4 => Some(2),
        _ => Some(1),
    }
}

/// Three rounds over two channels: all pages; some again, by the other channel; zeros where something was.
fn two_rounds(method: Method, flushes: bool) -> (Vec<u8>, [Script; 2]) {
    let mut main = head(flushes);
    part(&mut main, &[12], flushes);
    part(&mut main, &[], flushes);
    part(&mut main, if flushes { &[] } else { &[3, 7] }, flushes);
    end(&mut main, flushes);
    let scripts = [Script::new(0, method), Script::new(1, method)];
    let [zero, one] = scripts.map(|script| script.sync(false));
    let zero = zero.pages(&[0, 2, 4, 6], 1, &[], false).pages(&[8, 10, 14], 1, &[], false).sync(true);
    // With its synchronisation in the packet, which an empty one follows.
    let one = one.pages(&[15, 13, 11, 9, 7, 5, 3, 1], 1, &[], true).pages(&[], 0, &[], false);
    let zero = zero.pages(&[1, 3], 2, &[], false).sync(true);
    let one = one.pages(&[0, 2], 2, &[], true);
    let zero = zero.pages(&[], 0, if flushes { &[3, 7] } else { &[] }, true);
    (main.into_vec(), [zero.sync(true), one.sync(false).sync(true)])
}

#[test]
fn pages_are_in_their_last_version_whichever_channel_comes_first() {
    for (method, flushes) in METHODS.into_iter().flat_map(|method| [(method, false), (method, true)]) {
        let (main, scripts) = two_rounds(method, flushes);
        let mut destination = Destination::new(2, method);
        destination.block.fill(12 * PAGE as u64, PAGE, 0xee).unwrap();
        destination = destination.start();
        let one = destination.send(&scripts[1].bytes); // ahead of everything, as far as it may be
        let main = destination.send(&main);
        let zero = destination.send(&scripts[0].bytes);
        for socket in [&main, &zero, &one] {
            socket.shutdown(Shutdown::Write).unwrap();
        }
        destination.outcome().unwrap_or_else(|error| panic!("{method:?} {flushes}: {error}"));
        for page in 0..PAGES as u64 {
            let wanted = after_two_rounds(page).map_or(vec![0; PAGE], |version| content(page, version));
            assert!(destination.page(page) == wanted, "page {page} with {method:?}, {flushes}");
        }
    }
}

#[test]
fn pages_arrive_in_pieces() {
    let mut main = head(false);
    part(&mut main, &[], false);
    end(&mut main, false);
    let pages: Vec<u64> = (0..PAGES as u64).rev().collect();
    let script = Script::new(0, Method::None).sync(false).pages(&pages, 1, &[], false).pages(&[2, 3, 9], 2, &[], true).sync(true);
    let mut destination = Destination::new(1, Method::None).start();
    let main = destination.send(main.as_slice());
    let mut channel = destination.connect();
    channel.set_nodelay(true).unwrap();
    script.bytes.chunks(1733).for_each(|piece| channel.write_all(piece).unwrap());
    main.shutdown(Shutdown::Write).unwrap();
    destination.outcome().unwrap();
    for page in 0..PAGES as u64 {
        assert!(destination.page(page) == content(page, if [2, 3, 9].contains(&page) { 2 } else { 1 }), "page {page}");
    }
}

#[test]
fn as_many_channels_as_there_can_be() {
    let mut destination = Destination::new(255, Method::None).start();
    let mut main = head(false);
    end(&mut main, false);
    let channels: Vec<_> = (0..255_u8)
        .map(|number| {
            let script = Script::new(number, Method::None).sync(false);
            let page = u64::from(number);
            destination.send(&if page < PAGES as u64 { script.pages(&[page], 3, &[], true) } else { script.sync(false) }.bytes)
        })
        .collect();
    let main = destination.send(main.as_slice());
    main.shutdown(Shutdown::Write).unwrap();
    destination.outcome().unwrap();
    assert!((0..PAGES as u64).all(|page| destination.page(page) == content(page, 3)));
    drop(channels);
}

/// Waits until the fence `token` is answered.
fn fence(mut main: &TcpStream, token: u32) {
    let mut pong = Output::new();
    ReturnMessage::Pong(token).write(&mut pong);
    let mut heard = vec![0; pong.len()];
    main.read_exact(&mut heard).unwrap();
    assert_eq!(heard, pong.as_slice());
}

/// What follows on a channel that is open already.
fn later(script: &Script) -> Vec<u8> {
    script.bytes[hello(0).len()..].to_vec()
}

#[test]
fn when_the_fence_is_answered_all_pages_are_here_and_nothing_changes_them() {
    let mut main = head(false);
    end(&mut main, false);
    let mut destination = Destination::new(1, Method::None).start();
    let main = destination.send(main.as_slice());
    let mut channel = destination.send(&Script::new(0, Method::None).sync(false).bytes);
    thread::scope(|scope| {
        let answered = scope.spawn(|| fence(&main, 2));
        channel.write_all(&later(&Script::new(0, Method::None).pages(&[5], 1, &[], true))).unwrap();
        answered.join().unwrap();
        assert!(destination.page(5) == content(5, 1));
    });
    let _ = channel.write_all(&later(&Script::new(0, Method::None).pages(&[5], 2, &[], true).raw(b"garbage")));
    main.shutdown(Shutdown::Write).unwrap();
    destination.outcome().unwrap();
    assert!(destination.page(5) == content(5, 1));
}

/// What the main channel brings when something was written behind the first fence.
fn late_pass(flushes: bool) -> Output {
    let mut main = Output::new();
    part(&mut main, &[], flushes);
    main.ping(3);
    main.eof();
    main
}

#[test]
fn pages_that_come_late_are_placed_when_the_main_channel_says_so() {
    for flushes in [false, true] {
        let mut destination = Destination::new(1, Method::None).start();
        let mut start = head(flushes);
        last(&mut start, flushes);
        let mut main = destination.send(start.as_slice());
        let mut channel = destination.send(&Script::new(0, Method::None).sync(false).pages(&[5], 1, &[], true).bytes);
        fence(&main, 2);
        channel.write_all(&later(&Script::new(0, Method::None).pages(&[5, 6], 2, &[], true))).unwrap();
        main.write_all(late_pass(flushes).as_slice()).unwrap();
        fence(&main, 3);
        assert!(destination.page(5) == content(5, 2) && destination.page(6) == content(6, 2), "{flushes}");
        main.shutdown(Shutdown::Write).unwrap();
        destination.outcome().unwrap_or_else(|error| panic!("{flushes}: {error}"));
    }
}

#[test]
fn a_channel_that_breaks_behind_the_fence_is_missed_only_if_more_ram_comes() {
    for late in [false, true] {
        let mut destination = Destination::new(1, Method::None).start();
        let mut start = head(false);
        last(&mut start, false);
        let mut main = destination.send(start.as_slice());
        let mut channel = destination.send(&Script::new(0, Method::None).sync(false).sync(false).bytes);
        fence(&main, 2);
        channel.write_all(b"garbage!").unwrap();
        channel.shutdown(Shutdown::Write).unwrap();
        if late {
            main.write_all(late_pass(false).as_slice()).unwrap();
            let error = destination.tells(main);
            assert!(error.kind == ErrorKind::BadMagic && error.path.ends_with("multifd/channel 0/packet 2"), "{error}");
        } else {
            let mut rest = Output::new();
            rest.eof();
            main.write_all(rest.as_slice()).unwrap();
            main.shutdown(Shutdown::Write).unwrap();
            destination.outcome().unwrap();
        }
    }
}

#[test]
fn strangers_are_turned_away() {
    let mut destination = Destination::new(1, Method::None).start();
    let silent = destination.connect();
    let short = destination.send(b"QE");
    drop(destination.connect());
    let mut main = head(false);
    end(&mut main, false);
    let main = destination.send(main.as_slice());
    let other = destination.send(head(false).as_slice());
    let channel = destination.send(&Script::new(0, Method::None).sync(false).sync(false).bytes);
    for stranger in [silent, short, other] {
        assert_eq!(everything(stranger), b"");
    }
    assert_eq!(everything(destination.connect()), b"", "one too many, which is no channel");
    main.shutdown(Shutdown::Write).unwrap();
    destination.outcome().unwrap();
    drop(channel);
}

#[test]
fn nothing_begins_before_a_source_comes() {
    let soon = Deadlines { connect: Duration::from_secs(1), ..Deadlines::default() };
    let mut destination = Destination::new(1, Method::None).impatient(soon).start();
    // A probe of the port, one with other words, and as many that say nothing as there is room for, and more.
    drop(destination.connect());
    assert_eq!(everything(destination.send(b"GET / HTTP/1.0\r\n\r\n")), b"");
    let mut silent: Vec<_> = (0..280).map(|_| destination.connect()).collect();
    assert_eq!(everything(silent.remove(0)), b"", "the oldest has to go");
    assert_eq!(destination.control.incoming_status(), Status::None);
    // What is agreed on is read now, not when listening began.
    destination.control.set_parameters(Parameters { multifd_channels: 2, ..Parameters::default() });
    let mut main = head(false);
    end(&mut main, false);
    let channels = [0, 1].map(|number| destination.send(&Script::new(number, Method::None).sync(false).sync(false).bytes));
    let main = destination.send(main.as_slice());
    main.shutdown(Shutdown::Write).unwrap();
    destination.outcome().unwrap();
    drop((channels, silent));
}

#[test]
fn a_source_with_more_channels_hears_why_it_was_left() {
    let mut destination = Destination::new(1, Method::None).start();
    let main = destination.send(head(false).as_slice());
    let channel = destination.send(&Script::new(0, Method::None).sync(false).bytes);
    assert_eq!(everything(destination.send(&hello(1))), b"");
    // The source may wait for an answer now: it is not waited for.
    let error = destination.refusal();
    assert_eq!(error.kind, ErrorKind::LimitExceeded, "{error}");
    assert!(error.message.contains("1 more channels were turned away: give both sides the same multifd-channels"), "{error}");
    drop((main, channel));
}

#[test]
fn a_source_with_channels_where_none_is_expected_is_not_waited_for() {
    let mut destination = Destination::new(1, Method::None);
    destination.control.set_capabilities([]);
    destination = destination.start();
    let main = destination.send(head(false).as_slice());
    assert_eq!(everything(destination.send(&hello(0))), b"");
    let error = destination.refusal();
    assert_eq!((error.kind, error.path.as_str()), (ErrorKind::Unsupported, "multifd"), "{error}");
    assert!(error.message.contains("switch multifd on on both sides"), "{error}");
    drop(main);
}

#[test]
fn pages_of_a_channel_too_many_are_missed() {
    let destination = Destination::new(1, Method::None);
    // All of it is under way, also what goes to the channel that is not let in, before the source can notice.
    let mut main = head(false);
    end(&mut main, false);
    let main = destination.send(main.as_slice());
    let bytes = |number: u8| Script::new(number, Method::None).sync(false).pages(&[5 + u64::from(number)], 1, &[], true).bytes;
    let _channels = [0, 1].map(|number| destination.send(&bytes(number)));
    let error = destination.start().refusal();
    assert!(error.path == "multifd" && error.message.contains("give both sides the same multifd-channels"), "{error}");
    // Whether the way back is open by then depends on which of the channels is seen first; that all is well it never says.
    let mut shut = Output::new();
    ReturnMessage::Shut(1).write(&mut shut);
    let heard = everything(main);
    assert!(heard.is_empty() || heard == shut.as_slice(), "{heard:?}");
}

#[test]
fn a_missing_channel_is_named() {
    let soon = Deadlines { connect: Duration::from_secs(1), ..Deadlines::default() };
    for (numbers, with_main, missing) in [(&[1][..], true, "missing: 0, 2."), (&[0, 1, 2], false, "missing: main.")] {
        let mut destination = Destination::new(3, Method::None).impatient(soon).start();
        let _main = with_main.then(|| destination.send(head(false).as_slice()));
        let _channels: Vec<_> = numbers.iter().map(|number| destination.send(&hello(*number))).collect();
        let error = destination.refusal();
        assert_eq!(error.kind, ErrorKind::Timeout);
        assert!(error.message.contains(missing) && error.message.contains("multifd-channels"), "{error}");
    }
}

#[test]
fn a_channel_that_hangs_is_not_waited_for_for_ever() {
    let soon = Deadlines { stall: Duration::from_millis(500), ..Deadlines::default() };
    let mut destination = Destination::new(2, Method::None).impatient(soon).start();
    let main = destination.send(head(false).as_slice());
    let _good = destination.send(&Script::new(1, Method::None).sync(false).bytes);
    let _bad = destination.send(&hello(0));
    let error = destination.tells(main);
    assert_eq!((error.kind, error.path.as_str()), (ErrorKind::Timeout, "ram/multifd"), "{error}");
    assert!(error.message.contains("of channel 0, and nothing has come for 500ms"), "{error}");
}

#[test]
fn a_cancel_ends_every_wait() {
    // At the barrier, and for the main channel.
    for synchronised in [false, true] {
        let mut destination = Destination::new(2, Method::None).start();
        let _main = destination.send(head(false).as_slice());
        let _zero = destination.send(&Script::new(0, Method::None).sync(false).bytes);
        let one = if synchronised { Script::new(1, Method::None).sync(false).bytes } else { hello(1) };
        let _one = destination.send(&one);
        while !destination.control.cancel() {
            thread::yield_now();
        }
        assert_eq!(destination.refusal().kind, ErrorKind::Cancelled);
    }
}

#[test]
fn a_close_ends_the_wait_for_a_source() {
    let mut destination = Destination::new(2, Method::None).start();
    destination.incoming.close();
    let kind = destination.refusal().kind;
    assert!([ErrorKind::Cancelled, ErrorKind::InvalidState].contains(&kind), "{kind:?}");
}
