//! What channels may not say or do: one clear error each, with the channel and the packet, and the source hears that it failed.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::thread;

use qmig_core::channel::Uri;
use qmig_core::wire::multifd::Method;
use qmig_core::{Error, ErrorKind};

use super::source::{Destination, PAGE, Script, content, end, head, header, hello, part};

/// What the destination says of a channel that begins with these bytes.
fn at_the_door(bytes: &[u8]) -> Error {
    let mut destination = Destination::new(2, Method::None).start();
    let _good = destination.send(&hello(1));
    let _bad = destination.send(bytes);
    destination.refusal()
}

#[test]
fn at_the_door_each_has_its_error() {
    let changed = |at: usize, byte: u8| {
        let mut bytes = hello(0);
        bytes[at] = byte;
        bytes
    };
    for (bytes, kind, words) in [
        (changed(0, 0), ErrorKind::BadMagic, "begins with 0x00223344, like neither"),
        (changed(7, 2), ErrorKind::BadVersion, "version 2"),
        (changed(8, 0), ErrorKind::BadConfiguration, "UUID 00313233343536373839616263646566, and this one 30313233"),
        (changed(24, 2), ErrorKind::LimitExceeded, "channel 2 of 2; give both sides the same multifd-channels"),
        (hello(1), ErrorKind::DuplicateSection, "a second channel 1"),
    ] {
        let error = at_the_door(&bytes);
        assert_eq!(error.kind, kind, "{error}");
        assert!(error.message.contains(words) && error.offset.is_some(), "{error}");
    }
}

/// What the destination says of a channel that goes on like this, while the main channel is open and silent.
fn refusal(method: Method, script: impl FnOnce(Script) -> Script, after: impl FnOnce(TcpStream, &Destination)) -> Error {
    let mut destination = Destination::new(1, method).start();
    let main = destination.send(head(false).as_slice());
    let channel = destination.send(&script(Script::new(0, method).sync(false)).bytes);
    after(channel, &destination);
    destination.tells(main)
}

fn of_a_packet(method: Method, script: impl FnOnce(Script) -> Script) -> Error {
    let mut open = None;
    let error = refusal(method, script, |channel, _| open = Some(channel));
    assert!(error.path.starts_with("multifd/channel 0/packet 1"), "{error}");
    error
}

#[test]
fn each_bad_header_has_its_error() {
    const DATA: usize = PAGE;
    let pages = |flags, normal, zero, size, block: &[u8], offsets: &[u64]| header(flags, normal, zero, size, block, offsets);
    let changed = |at: usize, byte: u8| {
        let mut bytes = header(0, 1, 0, DATA, b"ram", &[0]);
        bytes[at] = byte;
        bytes
    };
    for (bytes, kind, words) in [
        (changed(0, 1), ErrorKind::BadMagic, "0x01223344"),
        (changed(7, 9), ErrorKind::BadVersion, "version 9"),
        (changed(8, 0x80), ErrorKind::BadFlags, "0x80000000 are not known"),
        (pages(6, 1, 0, DATA, b"ram", &[0]), ErrorKind::BadFlags, "several compressions"),
        (pages(0x20, 1, 0, DATA, b"ram", &[0]), ErrorKind::Unsupported, "QATzip"),
        (pages(2, 1, 0, 20, b"ram", &[0]), ErrorKind::BadFlags, "multifd-compression zlib there, which is none here"),
        (pages(2, 0, 1, 0, b"ram", &[0]), ErrorKind::BadFlags, "multifd-compression zlib there"),
        (pages(0, 129, 0, 129 * PAGE, b"ram", &[]), ErrorKind::LimitExceeded, "129 pages"),
        (pages(0, 64, 65, 64 * PAGE, b"ram", &[]), ErrorKind::LimitExceeded, "64 pages and 65 zero pages"),
        (pages(0, 1, 0, DATA + 1, b"ram", &[0]), ErrorKind::LimitExceeded, "4097 bytes for 4096"),
        (pages(2, 1, 0, 1 << 21, b"ram", &[0]), ErrorKind::LimitExceeded, "MULTIFD_DATA_MAX"),
        (pages(0, 1, 0, DATA, b"rom", &[0]), ErrorKind::UnknownBlock, "\"rom\""),
        (pages(0, 1, 0, DATA, b"ram", &[0x10000]), ErrorKind::BadAddress, "page at 0x10000 of a block of 0x10000"),
        (pages(0, 1, 0, DATA, b"ram", &[0x1001]), ErrorKind::BadAddress, "0x1001"),
        (pages(0, 0, 1, 0, b"ram", &[u64::MAX - 4095]), ErrorKind::BadAddress, "0xfffffffffffff000"),
        (pages(0, 2, 0, 2 * DATA, b"ram", &[0x1000, 0x1000]), ErrorKind::BadAddress, "page at 0x1000 twice"),
        (pages(0, 2, 1, 2 * DATA, b"ram", &[0, 0x1000, 0]), ErrorKind::BadAddress, "page at 0x0 twice"),
    ] {
        let error = of_a_packet(Method::None, |script| script.raw(&bytes));
        assert_eq!(error.kind, kind, "{error}");
        assert!(error.message.contains(words) && error.offset.is_some(), "{error}");
    }
    let mut device = header(0x40, 0, 0, 0, b"", &[]);
    device[12..20].copy_from_slice(b"some/dev");
    device[272..276].copy_from_slice(&[0, 0, 0, 9]);
    let error = of_a_packet(Method::None, |script| script.raw(&device));
    assert_eq!(error.kind, ErrorKind::Unsupported);
    assert!(error.message.contains("state of a device"), "{error}");
}

#[test]
fn each_bad_stream_has_its_error() {
    for (method, flags) in [(Method::Zlib, 2), (Method::Zstd, 4)] {
        let good = Script::new(0, method).pages(&[1, 2], 1, &[], false).bytes;
        let data = &good[hello(0).len() + header(0, 0, 0, 0, b"", &[]).len()..];
        let packet = |offsets: &[u64], data: &[u8]| {
            let mut bytes = header(flags, offsets.len(), 0, data.len(), b"ram", offsets);
            bytes.extend(data);
            bytes
        };
        let cut = &data[..data.len() / 2];
        for (bytes, words) in [
            (packet(&[0], data), "more than 4096 bytes come out"),
            (packet(&[0, 0x1000, 0x2000], data), "8192 bytes come out"),
            (packet(&[0, 0x1000], cut), "bytes come out"),
            (packet(&[0], b"garbage that is no stream"), ""),
        ] {
            let error = of_a_packet(method, |script| script.raw(&bytes));
            assert_eq!((error.kind, error.path.as_str()), (ErrorKind::BadPage, "multifd/channel 0/packet 1/ram"), "{error}");
            assert!(error.message.contains(words) && error.message.contains(method.name()), "{error}");
        }
        let other = of_a_packet(method, |script| script.raw(&header(0, 1, 0, PAGE, b"ram", &[0])));
        assert!(other.message.contains(&format!("compression none there, which is {} here", method.name())), "{other}");
    }
}

#[test]
fn a_channel_that_breaks_ends_the_load() {
    let one = |script: Script| script.pages(&[1, 2, 3], 1, &[], false);
    let half = |script: Script| {
        let mut script = one(script);
        script.bytes.truncate(script.bytes.len() - PAGE - 100);
        script
    };
    let header_only = |script: Script| script.raw(&header(0, 1, 0, PAGE, b"ram", &[0])[..700]);
    let error = refusal(Method::None, half, |channel, _| drop(channel));
    assert_eq!((error.kind, error.path.as_str()), (ErrorKind::Truncated, "multifd/channel 0/packet 1/ram"), "{error}");
    let error = refusal(Method::None, header_only, |channel, _| drop(channel));
    assert_eq!((error.kind, error.path.as_str()), (ErrorKind::Truncated, "multifd/channel 0/packet 1"), "{error}");
    let error = refusal(Method::None, half, |channel, destination| {
        while destination.page(1) != content(1, 1) {
            thread::yield_now();
        }
        rustix::net::sockopt::set_socket_linger(&channel, Some(std::time::Duration::ZERO)).unwrap();
    });
    assert_eq!((error.kind, error.path.as_str()), (ErrorKind::Closed, "multifd/channel 0/packet 1/ram"), "{error}");
}

#[test]
fn a_broken_channel_stays_open_until_the_source_can_have_heard_why() {
    let destination = Destination::new(1, Method::None);
    let main = destination.send(head(false).as_slice());
    let script = Script::new(0, Method::None).sync(false).raw(b"garbage").raw(&[0; 4096]);
    let mut channel = destination.send(&script.bytes);
    destination.incoming.accept().unwrap();
    let error = loop {
        if let Err(error) = destination.incoming.next() {
            break error;
        }
    };
    assert_eq!(error.kind, ErrorKind::BadMagic, "{error}");
    channel.set_nonblocking(true).unwrap();
    assert_eq!(channel.read(&mut [0]).unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
    destination.incoming.close();
    drop(main);
}

#[test]
fn a_channel_may_end_only_when_nobody_waits_for_it() {
    let mut destination = Destination::new(2, Method::None).start();
    let mut main = head(false);
    end(&mut main, false);
    let main = destination.send(main.as_slice());
    let _good = destination.send(&Script::new(0, Method::None).sync(false).sync(false).bytes);
    drop(destination.send(&Script::new(1, Method::None).sync(false).pages(&[3], 1, &[], false).bytes));
    let error = destination.tells(main);
    assert_eq!((error.kind, error.path.as_str()), (ErrorKind::Truncated, "ram/multifd/channel 1"), "{error}");
}

#[test]
fn the_marks_on_the_main_channel_stay_what_they_were() {
    let mut main = head(false);
    part(&mut main, &[], true);
    let mut destination = Destination::new(1, Method::None).start();
    let main = destination.send(main.as_slice());
    let _channel = destination.send(&Script::new(0, Method::None).sync(false).sync(false).bytes);
    let error = destination.tells(main);
    assert_eq!(error.kind, ErrorKind::BadFlags);
    assert!(error.message.contains("a stream whose first section has none"), "{error}");
}

#[test]
fn pages_behind_the_last_mark_are_refused() {
    let (before, mut main) = (head(true).len(), head(true));
    main.section_end(2);
    main.eos();
    main.footer(2);
    let mut destination = Destination::new(1, Method::None).start();
    let mut socket = destination.send(&main.as_slice()[..before]);
    // Begun, and never finished.
    let script = Script::new(0, Method::None).sync(false).raw(&header(0, 1, 0, PAGE, b"ram", &[0])).raw(&[1; 100]);
    let _channel = destination.send(&script.bytes);
    while destination.page(0)[0] == 0 {
        thread::yield_now();
    }
    socket.write_all(&main.as_slice()[before..]).unwrap();
    let error = destination.tells(socket);
    assert_eq!((error.kind, error.path.as_str()), (ErrorKind::TrailingData, "multifd"), "{error}");
}

#[test]
fn without_multifd_here_a_channel_says_what_it_is() {
    let destination = Destination::new(1, Method::None);
    destination.control.set_capabilities([]);
    let mut destination = destination.start();
    let _channel = destination.send(&hello(0));
    let error = destination.refusal();
    assert_eq!(error.kind, ErrorKind::BadMagic);
    assert!(error.message.contains("switch the capability multifd on here, too"), "{error}");
}

#[test]
fn what_is_one_channel_only_is_refused_when_it_is_asked_for() {
    let destination = Destination::new(1, Method::None);
    for uri in ["exec:cat", "file:/dev/null", "fd:0"] {
        let error = destination.incoming.listen(&Uri::parse(uri).unwrap(), None).unwrap_err();
        assert_eq!(error.kind, ErrorKind::InvalidArgument);
        assert!(error.message.starts_with(uri) && error.message.contains("use tcp: or unix:"), "{error}");
    }
}
