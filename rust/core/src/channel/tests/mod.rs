//! All transports from outside: what every one of them promises, and the helpers for what each adds.

mod one_way;
mod sockets;

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair, sockopt};

use super::*;
use crate::sys::io::{IoVec, MAX_IOV};

/// Longer than any of this takes, shorter than a patient person.
const SOON: Duration = Duration::from_secs(20);

/// A directory that goes with the test.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("qmig-channel-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir(&path).unwrap();
        Self(path)
    }

    fn join(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn uri(text: &str) -> Uri {
    Uri::parse(text).unwrap()
}

fn cancel() -> Cancel {
    Cancel::new().unwrap()
}

fn open(text: &str) -> Result<Channel> {
    connect(&uri(text), None, &cancel())
}

fn bind(text: &str) -> Result<Listener> {
    Listener::bind(&uri(text), None)
}

fn accept(text: &str) -> Result<Channel> {
    bind(text)?.accept(&cancel())
}

fn pair() -> (OwnedFd, OwnedFd) {
    socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None).unwrap()
}

/// As all descriptors here: not for the commands of tests that run beside.
fn pipe() -> (OwnedFd, OwnedFd) {
    rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap()
}

fn unix_socket(kind: SocketType) -> OwnedFd {
    rustix::net::socket_with(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None).unwrap()
}

/// Both ends of a channel over a socket pair.
fn ends(cancel: &Cancel) -> (Channel, Channel) {
    let (a, b) = pair();
    (connect(&uri("fd:a"), Some(a), cancel).unwrap(), connect(&uri("fd:b"), Some(b), &super::Cancel::new().unwrap()).unwrap())
}

fn read_to_end(half: &mut ReadHalf) -> Result<Vec<u8>> {
    let (mut all, mut buf) = (Vec::new(), vec![0; 70_000]);
    loop {
        match half.read(&mut buf)? {
            0 => return Ok(all),
            got => all.extend_from_slice(&buf[..got]),
        }
    }
}

/// Bytes that differ everywhere, so that a lost or doubled piece shows.
fn pattern(len: usize) -> Vec<u8> {
    (0..len as u64).flat_map(|i| (i.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32).to_le_bytes()).take(len).collect()
}

/// The error has the kind, names the URI and says the cause.
fn refused<T: std::fmt::Debug>(result: Result<T>, kind: ErrorKind, text: &str, cause: &str) {
    let e = result.unwrap_err();
    assert_eq!(e.kind, kind, "{e}");
    assert!(e.message.contains(text) && e.message.contains(cause), "{:?} lacks {text:?} or {cause:?}", e.message);
}

/// Sends each way through channels of `listener`, and closes.
fn converse(listener: &Listener, to: &str) {
    let outgoing = open(to).unwrap();
    let incoming = listener.accept(&cancel()).unwrap();
    assert!(outgoing.two_way() && incoming.two_way());
    assert_eq!(outgoing.uri().to_string(), to);
    let ((Some(mut from_dst), Some(mut to_dst)), (Some(mut from_src), Some(mut to_src))) = (outgoing.split(), incoming.split()) else {
        panic!("a half is missing")
    };
    to_dst.write_all(b"there").unwrap();
    to_src.write_all(b"back").unwrap();
    to_dst.finish().unwrap();
    let mut buf = [0; 16];
    assert_eq!(from_dst.read(&mut buf).unwrap(), 4);
    assert_eq!(&buf[..4], b"back");
    drop((from_dst, to_dst));
    assert_eq!(read_to_end(&mut from_src).unwrap(), b"there");
}

#[test]
fn any_number_of_vectors_arrives_in_order() {
    let (a, b) = ends(&cancel());
    let bytes = pattern(3 * MAX_IOV * 1000 + 17);
    let expected = bytes.clone();
    let reader = std::thread::spawn(move || read_to_end(&mut b.reader.unwrap()).unwrap());
    let mut vectors: Vec<_> = bytes.chunks(1000).map(IoVec::from_slice).collect();
    assert!(vectors.len() > 3 * MAX_IOV);
    vectors.insert(5, IoVec::from_slice(b""));
    vectors.push(IoVec::from_slice(b""));
    let mut writer = a.writer.unwrap();
    writer.write_iov(&vectors).unwrap();
    writer.write_iov(&[]).unwrap();
    writer.write_all(b"").unwrap();
    drop((writer, a.reader));
    assert_eq!(reader.join().unwrap(), expected);
}

#[test]
fn short_writes_are_resumed_inside_a_vector() {
    // A pipe of one page takes odd pieces, and writes wait for room.
    let (reader, writer) = pipe();
    rustix::pipe::fcntl_setpipe_size(&writer, 4096).unwrap();
    let bytes = pattern(1 << 20);
    let expected = bytes.clone();
    let incoming = Listener::bind(&uri("fd:r"), Some(reader)).unwrap();
    let reader = std::thread::spawn(move || read_to_end(&mut incoming.accept(&cancel()).unwrap().reader.unwrap()).unwrap());
    let mut half = connect(&uri("fd:w"), Some(writer), &cancel()).unwrap().writer.unwrap();
    half.write_iov(&bytes.chunks(777).map(IoVec::from_slice).collect::<Vec<_>>()).unwrap();
    half.finish().unwrap();
    drop(half);
    assert_eq!(reader.join().unwrap(), expected);
}

#[test]
fn a_read_returns_what_is_there() {
    let (a, b) = ends(&cancel());
    a.writer.unwrap().write_all(b"xy").unwrap();
    assert_eq!(b.reader.unwrap().read(&mut [0; 4096]).unwrap(), 2);
}

#[test]
fn a_reading_half_feeds_the_decoder() {
    let (a, b) = ends(&cancel());
    a.writer.unwrap().write_all(b"\x12\x34").unwrap();
    let mut input = crate::wire::Input::new(b.reader.unwrap());
    assert_eq!(input.be16().unwrap(), 0x1234);
}

#[test]
fn a_gone_peer_is_closed() {
    let (a, b) = ends(&cancel());
    drop(b);
    refused(a.writer.unwrap().write_all(b"x"), ErrorKind::Closed, "fd:a", "the peer closed the channel");
    assert_eq!(a.reader.unwrap().read(&mut [0; 4]).unwrap(), 0);
}

#[test]
fn unsent_bytes_are_known() {
    let (a, b) = ends(&cancel());
    let mut writer = a.writer.unwrap();
    assert_eq!(writer.pending_unsent(), 0);
    writer.write_all(&[1; 500]).unwrap();
    assert!(writer.pending_unsent() >= 500);
    assert_eq!(b.reader.unwrap().read(&mut [0; 1000]).unwrap(), 500);
    assert_eq!(writer.pending_unsent(), 0);
}

#[test]
fn what_has_arrived_is_known_and_so_is_a_peer_that_has_gone() {
    let (a, b) = ends(&cancel());
    let (mut writer, mut reader) = (a.writer.unwrap(), b.reader.unwrap());
    let soon = || Instant::now() + SOON;
    writer.arrived(soon()).unwrap();
    writer.write_all(&[1; 500]).unwrap();
    refused(writer.arrived(Instant::now()), ErrorKind::Timeout, "fd:a", "does not take");
    let taker = std::thread::spawn(move || {
        assert_eq!(reader.read(&mut [0; 1000]).unwrap(), 500);
        (reader, b.writer)
    });
    writer.arrived(soon()).unwrap();
    drop(taker.join().unwrap());
    refused(writer.arrived(soon()), ErrorKind::Closed, "fd:a", "the peer closed the channel");
}

#[test]
fn who_waits_for_room_is_told_of_it_or_of_the_deadline() {
    let (a, b) = ends(&cancel());
    let (mut writer, mut reader) = (a.writer.unwrap(), b.reader.unwrap());
    assert!(writer.is_local());
    writer.bound(16 << 10, 1 << 20);
    writer.room().unwrap();
    writer.set_deadline(Instant::now() + Duration::from_millis(10));
    refused(writer.write_all(&vec![0; 1 << 20]), ErrorKind::Timeout, "fd:a", "the peer does not read");
    assert!(writer.pending_unsent() <= 64 << 10, "the bound is kept");
    writer.set_deadline(Instant::now() + Duration::from_millis(10));
    refused(writer.room(), ErrorKind::Timeout, "fd:a", "the peer does not read");
    writer.set_deadline(Instant::now() + SOON);
    let taker = std::thread::spawn(move || while reader.read(&mut vec![0; 1 << 16]).unwrap() > 0 {});
    writer.room().unwrap();
    drop(writer);
    drop(a.reader);
    taker.join().unwrap();
}

/// Cancels `wait` once `begun` says that it is about to wait; it must end soon, as cancelled.
fn ends_by_cancel(wait: impl FnOnce(&Cancel, &dyn Fn()) -> Result<()> + Send + 'static) {
    let cancel = cancel();
    let (tell, told) = std::sync::mpsc::channel();
    let waiter = {
        let cancel = cancel.clone();
        std::thread::spawn(move || wait(&cancel, &|| tell.send(()).unwrap()))
    };
    told.recv().unwrap();
    let before = Instant::now();
    cancel.set();
    let e = waiter.join().unwrap().unwrap_err();
    assert_eq!(e.kind, ErrorKind::Cancelled, "{e}");
    assert!(before.elapsed() < SOON);
}

#[test]
fn cancel_ends_a_blocked_socket_read() {
    ends_by_cancel(|cancel, begin| {
        let (a, _b) = ends(cancel);
        begin();
        a.reader.unwrap().read(&mut [0; 1]).map(drop)
    });
}

#[test]
fn cancel_ends_a_blocked_socket_write() {
    ends_by_cancel(|cancel, begin| {
        let (a, _b) = ends(cancel);
        let mut writer = a.writer.unwrap();
        begin();
        writer.write_all(&vec![0; 64 << 20])
    });
}

#[test]
fn a_deadline_ends_a_blocked_write() {
    let cancel = cancel();
    let (ours, _theirs) = pair();
    let (reader, theirs) = pipe();
    for fd in [ours, theirs] {
        let mut writer = connect(&uri("fd:test"), Some(fd), &cancel).unwrap().writer.unwrap();
        writer.set_deadline(Instant::now() + Duration::from_millis(20));
        let error = writer.write_all(&vec![1; 16 << 20]).unwrap_err();
        assert_eq!((error.kind, error.message.as_str()), (ErrorKind::Timeout, "fd:test: the peer does not read"));
    }
    drop(reader);
}

#[test]
fn cancel_ends_a_blocked_pipe() {
    ends_by_cancel(|cancel, begin| {
        let (_reader, writer) = pipe();
        let mut writer = connect(&uri("fd:w"), Some(writer), cancel).unwrap().writer.unwrap();
        begin();
        writer.write_all(&vec![0; 64 << 20])
    });
    ends_by_cancel(|cancel, begin| {
        let (reader, writer) = pipe();
        rustix::io::write(&writer, b"x").unwrap();
        let mut reader = Listener::bind(&uri("fd:r"), Some(reader)).unwrap().accept(cancel).unwrap().reader.unwrap();
        assert_eq!(reader.read(&mut [0; 4]).unwrap(), 1);
        begin();
        reader.read(&mut [0; 4]).map(drop)
    });
}

#[test]
fn after_cancel_everything_is_cancelled_at_once() {
    let cancel = cancel();
    let (a, _b) = ends(&cancel);
    let (mut reader, mut writer) = (a.reader.unwrap(), a.writer.unwrap());
    cancel.set();
    refused(reader.read(&mut [0; 1]), ErrorKind::Cancelled, "fd:a", "cancelled");
    refused(writer.write_all(b"x"), ErrorKind::Cancelled, "fd:a", "cancelled");
    refused(writer.finish(), ErrorKind::Cancelled, "fd:a", "cancelled");
    let (late, _) = ends(&cancel);
    refused(late.writer.unwrap().write_all(b"x"), ErrorKind::Cancelled, "fd:a", "cancelled");
}

#[test]
fn descriptors_belong_to_fd_uris() {
    refused(connect(&uri("fd:mig"), None, &cancel()), ErrorKind::InvalidArgument, "fd:mig", "getfd");
    refused(connect(&uri("tcp:h:1"), Some(pair().0), &cancel()), ErrorKind::InvalidArgument, "tcp:h:1", "only fd:");
    refused(Listener::bind(&uri("exec:true"), Some(pair().0)), ErrorKind::InvalidArgument, "exec:true", "only fd:");
}

#[test]
fn an_fd_is_taken_as_what_it_is() {
    let (a, b) = pair();
    rustix::io::ioctl_fionbio(&a, true).unwrap(); // as asyncio makes them
    let incoming = Listener::bind(&uri("fd:in"), Some(a)).unwrap();
    assert_eq!(incoming.addresses(), serde_json::json!([]));
    rustix::io::write(&b, b"x").unwrap();
    let channel = incoming.accept(&cancel()).unwrap();
    assert!(channel.two_way());
    refused(incoming.accept(&cancel()), ErrorKind::InvalidState, "fd:in", "one channel only");
    let (reader, writer) = pipe();
    let outgoing = connect(&uri("fd:w"), Some(writer), &cancel()).unwrap();
    assert!(!outgoing.two_way() && outgoing.reader.is_none());
    rustix::io::fcntl_setfd(&reader, rustix::io::FdFlags::empty()).unwrap();
    let incoming = Opened::once(&uri("fd:r"), uri("fd:r").address(), Some(reader), Direction::Incoming, false).unwrap();
    assert!(rustix::io::fcntl_getfd(&incoming.fd).unwrap().contains(rustix::io::FdFlags::CLOEXEC));
}

#[test]
fn an_fd_that_cannot_be_it_is_refused() {
    let (reader, writer) = pipe();
    refused(connect(&uri("fd:r"), Some(reader), &cancel()), ErrorKind::Connect, "fd:r", "not open for writing");
    refused(Listener::bind(&uri("fd:w"), Some(writer)), ErrorKind::Listen, "fd:w", "not open for reading");
    refused(connect(&uri("fd:d"), Some(unix_socket(SocketType::DGRAM)), &cancel()), ErrorKind::Connect, "fd:d", "no stream socket");
    let listening = std::os::unix::net::UnixListener::bind(Scratch::new().join("s")).unwrap();
    refused(connect(&uri("fd:l"), Some(listening.into()), &cancel()), ErrorKind::Connect, "fd:l", "listening socket");
    let directory = std::fs::File::open(std::env::temp_dir()).unwrap();
    refused(
        Listener::bind(&uri("fd:dir"), Some(directory.into())).and_then(|l| l.accept(&cancel())),
        ErrorKind::Listen,
        "fd:dir",
        "directory",
    );
}

#[test]
fn cancel_ends_waiting_for_an_fd() {
    ends_by_cancel(|cancel, begin| {
        let (reader, _writer) = pipe();
        let listener = Listener::bind(&uri("fd:r"), Some(reader)).unwrap();
        begin();
        listener.accept(cancel).map(drop)
    });
}
