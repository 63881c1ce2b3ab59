//! The destination, seen from the other end of its channel: what it refuses, what ends its waiting, how it takes its leave.
#![allow(clippy::unwrap_used, missing_docs)]

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use qmig_core::channel::Uri;
use qmig_core::control::{Control, Status};
use qmig_core::ram::Block;
use qmig_core::recv::{Deadlines, Incoming};
use qmig_core::wire::{Advise, Command, DecoderOptions, Event, Output, ReturnMessage};
use qmig_core::{Error, ErrorKind};

const RAM: u64 = 4096;

struct Destination {
    control: Arc<Control>,
    incoming: Incoming,
}

impl Destination {
    fn new() -> Self {
        let control = Arc::new(Control::new(None));
        control.begin_incoming().unwrap();
        let incoming = Incoming::new(control.clone(), vec![Block::anon("ram", RAM).unwrap()], DecoderOptions::default()).unwrap();
        Self { control, incoming }
    }

    /// Accepts a source that has sent `stream` and has its other end still open.
    fn connected(stream: &Output) -> (Self, UnixStream) {
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        ours.write_all(stream.as_slice()).unwrap();
        let destination = Self::new();
        destination.incoming.listen(&Uri::parse("fd:test").unwrap(), Some(OwnedFd::from(theirs))).unwrap();
        destination.incoming.accept().unwrap();
        assert!(matches!(destination.incoming.next().unwrap(), Event::Configuration { .. }));
        (destination, ours)
    }
}

/// A stream up to what follows the return path.
fn head() -> Output {
    let mut stream = Output::new();
    stream.file_header();
    stream.configuration(b"none");
    stream.open_return_path();
    stream
}

/// The same with the announcement of RAM.
fn head_with_ram() -> Output {
    let mut stream = head();
    stream.section_start(2, b"ram", 0, 4);
    stream.mem_size(RAM);
    stream.block(b"ram", RAM);
    stream.eos();
    stream.footer(2);
    stream
}

/// The answers as they stand on the return path.
fn answers(messages: &[ReturnMessage]) -> Vec<u8> {
    let mut output = Output::new();
    for message in messages {
        message.write(&mut output);
    }
    output.as_slice().to_vec()
}

fn everything(mut from: impl Read) -> Vec<u8> {
    let mut bytes = Vec::new();
    from.read_to_end(&mut bytes).unwrap();
    bytes
}

/// What the destination says of a stream without any section, whose last words are `end`.
fn refusal(end: impl FnOnce(&mut Output)) -> Error {
    let mut stream = head();
    end(&mut stream);
    let (destination, _source) = Destination::connected(&stream);
    destination.incoming.next().unwrap_err()
}

#[test]
fn a_stream_without_ram_is_refused_at_the_fence_and_at_the_end() {
    for error in [refusal(|stream| stream.ping(2)), refusal(Output::eof)] {
        assert_eq!((error.kind, error.path.as_str()), (ErrorKind::MissingSection, "ram"), "{error}");
        assert!(error.offset.is_some());
    }
}

#[test]
fn a_command_of_a_feature_that_is_not_here_comes_with_its_remedy() {
    let advise = Command::PostcopyAdvise(Some(Advise { page_sizes: 4096, target_page: 4096 }));
    for (command, kind, remedy) in [
        (advise, ErrorKind::BadCommand, "`postcopy-ram` is off here; switch it on here, too, or off at the source"),
        (Command::PostcopyAdvise(None), ErrorKind::Unsupported, "switch `dirty-bitmaps` off at the source"),
        (Command::EnableColo, ErrorKind::Unsupported, "switch `x-colo` off at the source"),
    ] {
        let error = refusal(|stream| stream.command(&command));
        assert_eq!((error.kind, error.offset.is_some()), (kind, true));
        assert!(error.message.contains(remedy), "{error}");
    }
}

#[test]
fn a_cancel_ends_the_wait_for_a_silent_source() {
    let (destination, source) = Destination::connected(&head_with_ram());
    thread::scope(|scope| {
        let waiting = scope.spawn(|| destination.incoming.next());
        assert!(destination.control.cancel());
        assert_eq!(waiting.join().unwrap().unwrap_err().kind, ErrorKind::Cancelled);
    });
    assert!(!destination.control.cancel(), "there is nothing more to cancel");
    assert_eq!(everything(source), b"");
    destination.control.fail_incoming(Error::new(ErrorKind::Cancelled, "cancelled"));
    assert_eq!(destination.control.incoming_status(), Status::Failed);
    destination.control.begin_incoming().unwrap();
}

#[test]
fn a_cancel_ends_the_wait_for_the_first_byte_of_a_descriptor() {
    let (_source, theirs) = UnixStream::pair().unwrap();
    let destination = Destination::new();
    destination.incoming.listen(&Uri::parse("fd:test").unwrap(), Some(OwnedFd::from(theirs))).unwrap();
    thread::scope(|scope| {
        let waiting = scope.spawn(|| destination.incoming.accept());
        while !destination.control.cancel() {
            thread::yield_now();
        }
        assert_eq!(waiting.join().unwrap().unwrap_err().kind, ErrorKind::Cancelled);
    });
}

#[test]
fn a_cancel_does_not_end_listening() {
    let destination = Destination::new();
    let addresses = destination.incoming.listen(&Uri::parse("tcp:127.0.0.1:0").unwrap(), None).unwrap();
    assert!(!destination.control.cancel());
    let port = addresses[0]["port"].as_str().unwrap().parse().unwrap();
    let _source = TcpStream::connect(("127.0.0.1", port)).unwrap();
    destination.incoming.accept().unwrap();
    assert!(destination.control.cancel());
}

#[test]
fn the_fence_decides_between_a_cancel_and_a_promise() {
    let mut stream = head_with_ram();
    stream.ping(1);
    stream.ping(2);
    stream.ping(3);
    stream.eof();

    let (destination, source) = Destination::connected(&stream);
    assert!(matches!(destination.incoming.next().unwrap(), Event::Command(..)));
    assert!(destination.control.cancel());
    assert_eq!(destination.incoming.next().unwrap_err().kind, ErrorKind::Cancelled);
    assert_eq!(everything(source), answers(&[ReturnMessage::Pong(1)]), "the fence was not answered");

    let (destination, source) = Destination::connected(&stream);
    assert!(matches!(destination.incoming.next().unwrap(), Event::Command(..)));
    assert!(matches!(destination.incoming.next().unwrap(), Event::Command(..)));
    assert!(!destination.control.cancel(), "the source may have given the machine away");
    source.shutdown(Shutdown::Write).unwrap();
    assert_eq!(destination.incoming.next().unwrap(), Event::Finished);
    destination.incoming.finish(0).unwrap();
    let all = [ReturnMessage::Pong(1), ReturnMessage::Pong(2), ReturnMessage::Pong(3), ReturnMessage::Shut(0)];
    assert_eq!(everything(source), answers(&all));
}

#[test]
fn a_source_that_says_nothing_after_the_fence_is_not_waited_for_for_ever() {
    let mut stream = head_with_ram();
    stream.ping(1);
    stream.ping(2);
    let (destination, source) = Destination::connected(&stream);
    destination.incoming.set_deadlines(Deadlines { stall: Duration::from_millis(50), ..Deadlines::default() });
    assert!(matches!(destination.incoming.next().unwrap(), Event::Command(..)));
    let error = destination.incoming.next().unwrap_err();
    assert!(error.kind == ErrorKind::Timeout && error.message.contains("nothing for 50ms since it was told"), "{error}");
    drop(source);
}

#[test]
fn the_end_without_a_fence_is_a_promise_too() {
    let mut stream = head_with_ram();
    stream.eof();
    let (destination, source) = Destination::connected(&stream);
    source.shutdown(Shutdown::Write).unwrap();
    assert_eq!(destination.incoming.next().unwrap(), Event::Finished);
    assert!(!destination.control.cancel());
}

/// A source that has said everything that counts, and goes on with `description`.
fn end_followed_by(description: &[u8], more: impl Fn(&mut UnixStream) -> bool + Sync) {
    let mut stream = head_with_ram();
    stream.eof();
    stream.put(description);
    let (destination, mut source) = Destination::connected(&stream);
    thread::scope(|scope| {
        scope.spawn(|| while more(&mut source) {});
        assert_eq!(destination.incoming.next().unwrap(), Event::Finished);
        destination.incoming.close();
    });
}

#[test]
fn the_description_is_not_waited_for_for_ever() {
    end_followed_by(b"", |_| false);
}

#[test]
fn an_endless_description_is_not_read_for_ever() {
    end_followed_by(&[0x06, 0xff, 0xff, 0xff, 0xff], |source| source.write_all(b" ").is_ok());
}

#[test]
fn the_last_word_arrives_although_not_everything_was_read() {
    let destination = Destination::new();
    let addresses = destination.incoming.listen(&Uri::parse("tcp:127.0.0.1:0").unwrap(), None).unwrap();
    let port = addresses[0]["port"].as_str().unwrap().parse().unwrap();
    let mut source = TcpStream::connect(("127.0.0.1", port)).unwrap();
    let mut stream = head();
    stream.put(&[0xee]); // no element
    stream.zeros(16 << 20); // more than the two sockets hold
    thread::scope(|scope| {
        scope.spawn(|| {
            destination.incoming.accept().unwrap();
            destination.incoming.next().unwrap();
            assert_eq!(destination.incoming.next().unwrap_err().kind, ErrorKind::UnknownElement);
            destination.incoming.finish(1).unwrap();
        });
        source.write_all(stream.as_slice()).unwrap();
        assert_eq!(everything(&source), answers(&[ReturnMessage::Shut(1)]), "an end, and no reset");
        drop(source);
    });
}
