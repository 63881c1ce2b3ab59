//! What a channel over TLS carries, and how it ends.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use qmig_core::ErrorKind;
use qmig_core::channel::{Cancel, Channel, Listener, Look, Porter, ReadHalf, Tls, Uri, connect, connect_over};
use qmig_core::ram::Block;
use qmig_core::sys::io::{IoVec, IoVecMut};

use crate::certs::pair;

/// More than every buffer on the way holds.
const MUCH: usize = 24 << 20;

const SOON: Duration = Duration::from_millis(50);
const GENEROUS: Duration = Duration::from_secs(60);

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|at| u8::try_from((at * 7 + at / 251) % 256).unwrap()).collect()
}

/// Both ends of one connection.
pub fn join(uri: &str, (client, server): (Arc<Tls>, Arc<Tls>), cancel: &Cancel) -> (Channel, Channel) {
    let listener = Listener::bind_over(&Uri::parse(uri).unwrap(), None, Some(server)).unwrap();
    let address = listener.addresses()[0].clone();
    let there = match (address["port"].as_str(), address["path"].as_str()) {
        (Some(port), _) => format!("tcp:127.0.0.1:{port}"),
        (_, path) => format!("unix:{}", path.unwrap()),
    };
    thread::scope(|scope| {
        let accepted = scope.spawn(|| listener.accept(cancel).unwrap());
        let connected = connect_over(&Uri::parse(&there).unwrap(), None, Some(&client), cancel).unwrap();
        (connected, accepted.join().unwrap())
    })
}

fn here() -> (Channel, Channel, Cancel) {
    let cancel = Cancel::new().unwrap();
    let (source, destination) = join("tcp:127.0.0.1:0", pair(), &cancel);
    (source, destination, cancel)
}

fn read_all(reader: &mut ReadHalf) -> Vec<u8> {
    let (mut all, mut piece) = (Vec::new(), vec![0; 100_000]);
    loop {
        match reader.read(&mut piece).unwrap() {
            0 => return all,
            got => all.extend_from_slice(&piece[..got]),
        }
    }
}

#[test]
fn both_ways_at_once_and_to_the_end() {
    let socket = std::env::temp_dir().join(format!("qmig-tls-{}", std::process::id()));
    for uri in ["tcp:127.0.0.1:0".to_owned(), format!("unix:{}", socket.display())] {
        let cancel = Cancel::new().unwrap();
        let (source, destination) = join(&uri, pair(), &cancel);
        assert!(source.two_way() && destination.two_way());
        let sent = pattern(MUCH);
        thread::scope(|scope| {
            for end in [source, destination] {
                let (reader, writer) = end.split();
                let (mut reader, mut writer, sent) = (reader.unwrap(), writer.unwrap(), &sent);
                scope.spawn(move || {
                    for piece in sent.chunks(1_000_003) {
                        writer.write_all(piece).unwrap();
                    }
                    writer.end();
                });
                scope.spawn(move || assert!(read_all(&mut reader) == *sent));
            }
        });
    }
}

#[test]
fn guest_memory_goes_from_its_place_to_its_place() {
    let (source, destination, _cancel) = here();
    let (mut writer, mut reader) = (source.writer.unwrap(), destination.reader.unwrap());
    let [from, into] = [(); 2].map(|()| Block::anon("ram", 1 << 20).unwrap());
    from.write(0, &pattern(1 << 20)).unwrap();
    let header = pattern(48);
    let vectors = [IoVec::from_slice(&header), IoVec::from_guest(from.range(4096, 300_000).unwrap()), IoVec::from_slice(b"tail")];
    writer.write_iov(&vectors).unwrap();
    let (mut first, mut last) = ([0; 48], [0; 4]);
    let (mut got, whole) = (0, 48 + 300_000 + 4);
    while got < whole {
        let mut vectors =
            [IoVecMut::from_slice(&mut first), IoVecMut::from_guest(into.range(8192, 300_000).unwrap()), IoVecMut::from_slice(&mut last)];
        let mut passed = got;
        for vector in &mut vectors {
            let skipped = passed.min(vector.len());
            vector.advance(skipped);
            passed -= skipped;
        }
        let count = reader.read_iov(&mut vectors).unwrap();
        assert!(count > 0 && count <= whole - got);
        got += count;
    }
    let mut bytes = vec![0; 300_000];
    into.read(8192, &mut bytes).unwrap();
    assert!(bytes == pattern(1 << 20)[4096..304_096]);
    assert_eq!((&first[..], &last), (&header[..], b"tail"));
}

#[test]
fn a_cancel_ends_who_reads_and_who_writes() {
    let (source, destination, cancel) = here();
    let (mut writer, mut reader, mut first) = (source.writer.unwrap(), source.reader.unwrap(), destination.reader.unwrap());
    thread::scope(|scope| {
        // Nobody reads there, and nobody writes.
        let sending = scope.spawn(|| writer.write_all(&pattern(MUCH)).unwrap_err().kind);
        let reads = scope.spawn(|| reader.read(&mut [0; 10]).unwrap_err().kind);
        first.read(&mut [0]).unwrap();
        cancel.set();
        assert_eq!([sending.join().unwrap(), reads.join().unwrap()], [ErrorKind::Cancelled; 2]);
    });
}

#[test]
fn deadlines_patience_and_alarms_hold() {
    let (source, destination, _cancel) = here();
    let (mut writer, mut reader) = (source.writer.unwrap(), source.reader.unwrap());
    let much = pattern(MUCH);
    reader.set_deadline(Instant::now() + SOON);
    assert_eq!(reader.read(&mut [0; 10]).unwrap_err().kind, ErrorKind::Timeout);
    reader.clear_deadline();
    let alarm = Cancel::new().unwrap();
    reader.set_alarm(&alarm);
    thread::scope(|scope| {
        let reads = scope.spawn(|| reader.read(&mut [0; 10]).unwrap_err().kind);
        alarm.set();
        assert_eq!(reads.join().unwrap(), ErrorKind::Cancelled);
    });
    writer.set_patience(SOON);
    assert_eq!(writer.write_all(&much).unwrap_err().kind, ErrorKind::Timeout);
    drop(destination);
    let (source, _destination, _cancel) = here();
    let mut writer = source.writer.unwrap();
    writer.set_deadline(Instant::now() + SOON);
    assert_eq!(writer.write_all(&much).unwrap_err().kind, ErrorKind::Timeout);
}

#[test]
fn what_is_decrypted_already_is_read_without_the_peer() {
    let (source, destination, _cancel) = here();
    let (mut writer, mut reader) = (source.writer.unwrap(), destination.reader.unwrap());
    writer.write_all(b"one record").unwrap();
    reader.set_deadline(Instant::now() + GENEROUS);
    for expected in b"one record" {
        let mut one = [0];
        assert_eq!(reader.read(&mut one).unwrap(), 1);
        assert_eq!(one[0], *expected);
    }
}

#[test]
fn a_dropped_channel_ends_for_its_peer() {
    let (source, destination, _cancel) = here();
    let (mut writer, mut reader) = (source.writer.unwrap(), destination.reader.unwrap());
    writer.write_all(b"last").unwrap();
    drop((writer, source.reader));
    assert_eq!(read_all(&mut reader), b"last");
}

#[test]
fn what_was_taken_is_known() {
    let (source, destination, _cancel) = here();
    let (mut writer, mut reader) = (source.writer.unwrap(), destination.reader.unwrap());
    writer.write_all(&pattern(1000)).unwrap();
    let mut got = 0;
    while got < 1000 {
        got += reader.read(&mut [0; 1000]).unwrap();
    }
    writer.arrived(Instant::now() + GENEROUS).unwrap();
    assert_eq!(writer.pending_unsent(), 0);
}

#[test]
fn descriptors_and_commands_carry_it() {
    let ((client, server), cancel) = (pair(), Cancel::new().unwrap());
    let (ours, theirs) = UnixStream::pair().unwrap();
    let uri = Uri::parse("fd:migration").unwrap();
    let listener = Listener::bind_over(&uri, Some(OwnedFd::from(theirs)), Some(server)).unwrap();
    // The command talks through two descriptors of ours, whose other end is the destination's.
    let command = format!("exec:cat <&{0} & cat >&{0}", std::os::fd::AsRawFd::as_raw_fd(&ours));
    rustix::io::fcntl_setfd(&ours, rustix::io::FdFlags::empty()).unwrap();
    thread::scope(|scope| {
        let accepted = scope.spawn(|| listener.accept(&cancel).unwrap());
        let channel = connect_over(&Uri::parse(&command).unwrap(), None, Some(&client), &cancel).unwrap();
        assert!(channel.two_way());
        let (mut here, mut there) = (channel, accepted.join().unwrap());
        here.writer.as_mut().unwrap().write_all(b"there").unwrap();
        there.writer.as_mut().unwrap().write_all(b"back").unwrap();
        let mut bytes = [0; 5];
        assert_eq!(there.reader.as_mut().unwrap().read(&mut bytes).unwrap(), 5);
        assert_eq!(&bytes, b"there");
        assert_eq!(here.reader.as_mut().unwrap().read(&mut bytes).unwrap(), 4);
        assert_eq!(&bytes[..4], b"back");
        drop(there);
    });
}

#[test]
fn what_cannot_answer_is_refused() {
    let ((client, server), cancel) = (pair(), Cancel::new().unwrap());
    let (_reader, writer) = std::io::pipe().unwrap();
    let fd = Uri::parse("fd:pipe").unwrap();
    let file = Uri::parse("file:/nowhere/at/all").unwrap();
    let local = Uri::parse("tcp:127.0.0.1:0").unwrap();
    for (error, text) in [
        (connect_over(&fd, Some(writer.into()), Some(&client), &cancel).unwrap_err(), "pass a connected socket"),
        (connect_over(&file, None, Some(&client), &cancel).unwrap_err(), "unset tls-creds"),
        (Listener::bind_over(&file, None, Some(Arc::clone(&server))).unwrap_err(), "unset tls-creds"),
        (connect_over(&local, None, Some(&server), &cancel).unwrap_err(), "a source needs endpoint=client"),
        (Listener::bind_over(&local, None, Some(Arc::clone(&client))).unwrap_err(), "a destination needs endpoint=server"),
    ] {
        assert_eq!(error.kind, ErrorKind::InvalidArgument);
        assert!(error.message.contains(text), "{error}");
    }
}

/// Knows three connections by their first byte.
struct Three(Vec<u8>);

impl Porter for Three {
    fn look(&mut self, first: &[u8]) -> qmig_core::Result<Look> {
        match first {
            [one, _, _, ..] => {
                self.0.push(*one);
                Ok(Look::Wanted)
            }
            _ => Ok(Look::Unclear),
        }
    }

    fn expected(&mut self) -> (usize, Duration) {
        (3, GENEROUS)
    }
}

#[test]
fn several_are_told_apart_by_their_first_words_behind_the_handshake() {
    let ((client, server), cancel) = (pair(), Cancel::new().unwrap());
    let listener = Listener::bind_over(&Uri::parse("tcp:127.0.0.1:0").unwrap(), None, Some(server)).unwrap();
    let uri = Uri::parse(&format!("tcp:127.0.0.1:{}", listener.addresses()[0]["port"].as_str().unwrap())).unwrap();
    thread::scope(|scope| {
        // One that says nothing, and one that speaks no TLS, keep nobody waiting.
        let _silent = connect(&uri, None, &cancel).unwrap();
        let mut plain = connect(&uri, None, &cancel).unwrap();
        plain.writer.as_mut().unwrap().write_all(b"QEVM and so on").unwrap();
        let gathered = scope.spawn(|| {
            let mut porter = Three(Vec::new());
            let channels = listener.gather(&cancel, &mut porter).unwrap();
            (channels, porter.0)
        });
        let mut sources: Vec<Channel> = (0..3).map(|_| connect_over(&uri, None, Some(&client), &cancel).unwrap()).collect();
        for (number, source) in sources.iter_mut().enumerate().rev() {
            // In two records: the first says too little.
            let writer = source.writer.as_mut().unwrap();
            writer.write_all(&[u8::try_from(number).unwrap()]).unwrap();
            writer.write_all(&pattern(80)).unwrap();
            writer.end();
        }
        let (channels, mut numbers) = gathered.join().unwrap();
        for (channel, number) in channels.into_iter().zip(&numbers) {
            let bytes = read_all(&mut channel.reader.unwrap());
            assert_eq!((bytes[0], bytes.len()), (*number, 81));
        }
        numbers.sort_unstable();
        assert_eq!(numbers, [0, 1, 2]);
    });
}

#[test]
fn the_second_may_come_before_it_is_waited_for() {
    let ((client, server), cancel) = (pair(), Cancel::new().unwrap());
    let listener = Listener::bind_over(&Uri::parse("tcp:127.0.0.1:0").unwrap(), None, Some(server)).unwrap();
    let uri = Uri::parse(&format!("tcp:127.0.0.1:{}", listener.addresses()[0]["port"].as_str().unwrap())).unwrap();
    thread::scope(|scope| {
        let sources: Vec<_> = (0..2).map(|_| scope.spawn(|| connect_over(&uri, None, Some(&client), &cancel).unwrap())).collect();
        let accepted = [listener.accept_first(&cancel).unwrap(), listener.accept(&cancel).unwrap()];
        for source in sources {
            source.join().unwrap().writer.unwrap().write_all(b"here").unwrap();
        }
        for channel in accepted {
            assert_eq!(read_all(&mut channel.reader.unwrap()), b"here");
        }
    });
}
