//! The monitor as a client sees it.

use std::io::{BufRead, BufReader, IoSlice, Read, Write};
use std::mem::MaybeUninit;
use std::net::TcpStream;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::atomic::AtomicU32;

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
use serde_json::json;

use super::*;
use crate::control::Status;

/// Longer than anything here may take; a test that waits this long has failed.
const PATIENCE: Duration = Duration::from_secs(20);

struct Fixture {
    control: Arc<Control>,
    monitor: Monitor,
    dir: PathBuf,
}

impl Fixture {
    fn new() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let dir = std::env::temp_dir().join(format!("qmig-mon-{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed)));
        std::fs::create_dir(&dir).unwrap();
        let control = Arc::new(Control::new(None));
        let monitor = Monitor::new(control.clone(), &["stop".to_owned(), "slow".to_owned()], "qmig_e2k 0.1.0");
        let fixture = Self { control, monitor, dir };
        assert_eq!(fixture.monitor.listen(&fixture.address()).unwrap(), fixture.address());
        fixture
    }

    fn address(&self) -> String {
        format!("unix:{}", self.dir.join("qmp").display())
    }

    /// A client that was greeted.
    fn greeted(&self) -> Peer<UnixStream> {
        let stream = UnixStream::connect(self.dir.join("qmp")).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        let mut peer = Peer { reader: BufReader::new(stream.try_clone().unwrap()), stream };
        let greeting = peer.read();
        assert_eq!(greeting["QMP"]["version"]["qemu"], json!({ "major": 7, "minor": 2, "micro": 0 }));
        assert_eq!(greeting["QMP"]["version"]["package"], "qmig_e2k 0.1.0");
        assert_eq!(greeting["QMP"]["capabilities"], json!(["oob"]));
        peer
    }

    /// A client in command mode.
    fn client(&self, enable: &[&str]) -> Peer<UnixStream> {
        let mut peer = self.greeted();
        let answer = peer.ask(&json!({ "execute": "qmp_capabilities", "arguments": { "enable": enable } }));
        assert_eq!(answer, json!({ "return": {} }));
        peer
    }

    fn command(&self) -> Command {
        self.monitor.next_command(Some(PATIENCE)).unwrap()
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        self.monitor.close();
        assert!(!self.dir.join("qmp").exists());
        std::fs::remove_dir_all(&self.dir).unwrap();
    }
}

struct Peer<S> {
    stream: S,
    reader: BufReader<S>,
}

impl<S: Read + Write> Peer<S> {
    fn send(&mut self, text: impl AsRef<[u8]>) {
        self.stream.write_all(text.as_ref()).unwrap();
    }

    fn read(&mut self) -> Value {
        let mut line = String::new();
        self.reader.read_line(&mut line).unwrap();
        assert!(line.ends_with("\r\n") && line.is_ascii(), "{line:?}");
        serde_json::from_str(&line).unwrap()
    }

    fn ask(&mut self, request: &Value) -> Value {
        self.send(request.to_string());
        self.read()
    }

    fn refused(&mut self, request: &Value) -> (String, String) {
        let answer = self.ask(request);
        assert_eq!(answer.get("id"), request.get("id"));
        (answer["error"]["class"].as_str().unwrap().to_owned(), answer["error"]["desc"].as_str().unwrap().to_owned())
    }

    fn at_end(&mut self) -> bool {
        matches!(self.reader.read(&mut [0; 1]), Ok(0)) || self.stream.write_all(b" ").is_err()
    }
}

#[test]
fn negotiation() {
    let f = Fixture::new();
    let mut peer = f.greeted();
    // Nothing but the answer comes between greeting and answer, whatever happens meanwhile.
    f.control.event("STOP", None);
    assert_eq!(peer.refused(&json!({ "execute": "query-status", "id": 1 })).0, "CommandNotFound");
    assert_eq!(peer.refused(&json!({ "execute": "nope", "id": 1 })).0, "CommandNotFound");
    assert_eq!(peer.refused(&json!({ "exec-oob": "query-status", "id": 1 })).0, "GenericError");
    let (class, text) = peer.refused(&json!({ "execute": "qmp_capabilities", "arguments": { "enable": ["x"] }, "id": 1 }));
    assert!(class == "GenericError" && text.contains("`x`"));
    assert_eq!(peer.refused(&json!({ "execute": "qmp_capabilities", "arguments": { "z": 1 } })).0, "GenericError");
    assert_eq!(peer.ask(&json!({ "execute": "qmp_capabilities", "arguments": {}, "id": 2 })), json!({ "return": {}, "id": 2 }));
    assert_eq!(peer.refused(&json!({ "execute": "qmp_capabilities" })).0, "CommandNotFound");
    f.control.event("STOP", None);
    assert_eq!(peer.read()["event"], "STOP");
}

#[test]
fn answers_of_its_own() {
    let f = Fixture::new();
    let mut peer = f.client(&[]);
    let status = json!({ "status": "prelaunch", "singlestep": false, "running": false });
    assert_eq!(peer.ask(&json!({ "execute": "query-status", "id": [1] })), json!({ "return": status, "id": [1] }));
    assert_eq!(peer.ask(&json!({ "execute": "query-migrate" })), json!({ "return": {} }));
    assert_eq!(peer.ask(&json!({ "execute": "query-version" }))["return"]["package"], "qmig_e2k 0.1.0");
    let names = peer.ask(&json!({ "execute": "query-commands" }))["return"].clone();
    assert_eq!(names.as_array().unwrap().len(), 13);
    assert!(names.as_array().unwrap().contains(&json!({ "name": "slow" })));
    assert_eq!(peer.ask(&json!({ "execute": "migrate_cancel" })), json!({ "return": {} }));
    for request in [
        json!({ "execute": "query-status", "arguments": { "x": 1 }, "id": 7 }),
        json!({ "execute": "migrate-recover", "id": 7 }),
        json!({ "execute": "migrate-recover", "arguments": { "uri": 1 }, "id": 7 }),
        json!({ "exec-oob": "query-status", "id": 7 }),
        json!({ "execute": "query-status", "id": 7, "x": 1 }),
    ] {
        assert_eq!(peer.refused(&request).0, "GenericError", "{request}");
    }
    assert_eq!(peer.refused(&json!({ "execute": "nope", "id": null })).0, "CommandNotFound");
    let (_, text) = peer.refused(&json!({ "execute": "migrate-pause" }));
    assert!(text.contains("postcopy-active"));
    let (_, text) = peer.refused(&json!({ "execute": "migrate-recover", "arguments": { "uri": "tcp:x:1" } }));
    assert!(text.contains("postcopy-paused"));
}

#[test]
fn bytes_packets_and_resets() {
    let f = Fixture::new();
    let mut peer = f.client(&[]);
    for byte in br#"{'execute': "query-status", 'id': 'it\'s'}"# {
        peer.send([*byte]);
    }
    assert_eq!(peer.read()["id"], "it's");
    peer.send(r#"{"execute":"query-status","id":1}{"execute":"query-status","id":2}  {"execute":"nope","id":3}"#);
    assert_eq!([peer.read()["id"].clone(), peer.read()["id"].clone(), peer.read()["id"].clone()], [1, 2, 3]);
    peer.send(b"{\"execute\": \"query-\xff{\"execute\":\"query-status\",\"id\":\"\xc3\xa9\"}");
    let error = peer.read();
    assert!(error["error"]["class"] == "GenericError" && error.get("id").is_none());
    assert_eq!(peer.read()["id"], "é");
}

#[test]
fn order_and_events() {
    let f = Fixture::new();
    let (mut peer, mut other) = (f.client(&[]), f.client(&[]));
    peer.send(r#"{"execute":"stop","arguments":{"a":1},"id":1}{"execute":"query-status","id":2}{"execute":"slow","id":3}"#);
    let stop = f.command();
    assert_eq!((stop.name(), Value::Object(stop.arguments().clone())), ("stop", json!({ "a": 1 })));
    // Its own next command waits, another client's does not.
    assert_eq!(other.ask(&json!({ "execute": "query-status", "id": 9 }))["id"], 9);
    assert!(f.monitor.next_command(Some(Duration::ZERO)).is_none());
    f.control.event("STOP", Some(json!({ "x": "ü" })));
    stop.reply(json!({})).unwrap();
    assert_eq!(stop.reply(json!({})).unwrap_err().kind, ErrorKind::InvalidState);
    let event = peer.read();
    assert_eq!((&event["event"], &event["data"]), (&json!("STOP"), &json!({ "x": "ü" })));
    assert!(event["timestamp"]["seconds"].as_u64().unwrap() > 1_600_000_000 && event["timestamp"]["microseconds"].is_u64());
    assert_eq!(peer.read(), json!({ "return": {}, "id": 1 }));
    assert_eq!(peer.read()["id"], 2);
    assert_eq!(other.read()["event"], "STOP");
    f.command().fail("DeviceNotFound", "no").unwrap();
    assert_eq!(peer.read(), json!({ "error": { "class": "DeviceNotFound", "desc": "no" }, "id": 3 }));
    // A command that Python loses is answered too.
    peer.send(r#"{"execute":"slow","id":4}"#);
    drop(f.command());
    assert!(peer.read()["error"]["desc"].as_str().unwrap().contains("given up"));
}

#[test]
fn cancel_tells_the_event_before_the_answer() {
    let f = Fixture::new();
    f.control.set_capabilities(["events".to_owned()]);
    let session = f.control.begin_outgoing().unwrap();
    let mut peer = f.client(&[]);
    assert_eq!(peer.ask(&json!({ "execute": "migrate_cancel" }))["data"]["status"], "cancelling");
    assert_eq!(peer.read(), json!({ "return": {} }));
    session.finish();
    assert_eq!(peer.read()["data"]["status"], "cancelled");
    assert_eq!(peer.ask(&json!({ "execute": "query-migrate" })), json!({ "return": { "status": Status::Cancelled.name() } }));
}

#[test]
fn out_of_band_overtakes() {
    let f = Fixture::new();
    let mut peer = f.client(&["oob"]);
    peer.send(r#"{"execute":"slow","id":1}{"execute":"query-status","id":2}{"exec-oob":"query-migrate","id":3}"#);
    assert_eq!(peer.read(), json!({ "return": {}, "id": 3 }));
    assert_eq!(peer.refused(&json!({ "exec-oob": "slow", "id": 4 })).0, "GenericError");
    assert_eq!(peer.refused(&json!({ "exec-oob": "getfd", "id": 4 })).0, "GenericError");
    assert_eq!(peer.refused(&json!({ "exec-oob": "nope", "id": 5 })).0, "CommandNotFound");
    assert!(peer.refused(&json!({ "exec-oob": "migrate-pause", "id": 6 })).1.contains("postcopy-active"));
    f.command().reply(json!(true)).unwrap();
    assert_eq!(peer.read(), json!({ "return": true, "id": 1 }));
    assert_eq!(peer.read()["id"], 2);
}

#[test]
fn commands_that_wait_while_memory_is_missing_are_counted_once() {
    let fixture = Fixture::new();
    assert!(fixture.control.set_incoming_status(Status::None, Status::PostcopyActive));
    let mut peers = [fixture.client(&[]), fixture.client(&[])];
    let commands = peers.each_mut().map(|peer| {
        peer.send(r#"{"execute":"slow"}"#);
        fixture.command()
    });
    let end = Instant::now() + PATIENCE;
    while fixture.control.commands_waited.get() < 2 {
        assert!(Instant::now() < end);
        std::thread::yield_now();
    }
    for (command, peer) in commands.iter().zip(&mut peers) {
        command.reply(json!({})).unwrap();
        assert_eq!(peer.read(), json!({ "return": {} }));
        assert_eq!(peer.ask(&json!({ "execute": "query-status" }))["return"]["running"], false);
    }
    assert_eq!(fixture.control.commands_waited.get(), 2);
}

#[test]
fn a_client_may_have_eight_commands_in_the_works() {
    let f = Fixture::new();
    let mut peer = f.client(&["oob"]);
    peer.send(r#"{"execute":"slow"}"#.repeat(QUEUE_LIMIT));
    peer.send(r#"{"exec-oob":"query-status","id":"late"}"#);
    let first = f.command();
    // With the queue full nothing is read: the probe is answered only once there is room.
    peer.stream.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
    assert!(peer.reader.fill_buf().is_err());
    peer.stream.set_read_timeout(Some(PATIENCE)).unwrap();
    first.reply(json!(1)).unwrap();
    assert_eq!(peer.read(), json!({ "return": 1 }));
    assert_eq!(peer.read()["id"], "late");
}

#[test]
fn a_disconnect_drops_what_was_queued() {
    let f = Fixture::new();
    let mut peer = f.client(&[]);
    peer.send(r#"{"execute":"stop"}{"execute":"slow"}"#);
    let stop = f.command();
    drop(peer);
    // The next client starts anew; by then the first one's end was seen, or is seen when its answer cannot be sent.
    let mut next = f.greeted();
    assert_eq!(next.refused(&json!({ "execute": "stop" })).0, "CommandNotFound");
    stop.reply(json!({})).unwrap();
    assert!(stop.take_fd("x").is_none());
    assert!(f.monitor.next_command(Some(Duration::ZERO)).is_none());
}

fn send_fd(peer: &Peer<UnixStream>, text: &str, fd: impl AsFd) {
    let fds = [fd.as_fd()];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    assert!(control.push(SendAncillaryMessage::ScmRights(&fds)));
    rustix::net::sendmsg(&peer.stream, &[IoSlice::new(text.as_bytes())], &mut control, SendFlags::empty()).unwrap();
}

#[test]
fn descriptors() {
    let f = Fixture::new();
    let (mut peer, mut other) = (f.client(&[]), f.client(&[]));
    let ok = json!({ "return": {} });
    let getfd = |name: &str| json!({ "execute": "getfd", "arguments": { "fdname": name } });
    let (mut first, given_first) = UnixStream::pair().unwrap();
    let (mut second, given_second) = UnixStream::pair().unwrap();
    first.set_read_timeout(Some(PATIENCE)).unwrap();
    send_fd(&peer, &getfd("m").to_string(), given_first);
    assert_eq!(peer.read(), ok);
    // The way of qemu.qmp: the descriptor rides on a space. The old one of that name is closed.
    send_fd(&peer, " ", given_second);
    assert_eq!(peer.ask(&getfd("m")), ok);
    assert_eq!(first.read(&mut [0; 1]).unwrap(), 0);

    assert!(peer.refused(&getfd("m")).1.contains("SCM_RIGHTS"));
    assert!(peer.refused(&getfd("1m")).1.contains("digit"));
    let closefd = json!({ "execute": "closefd", "arguments": { "fdname": "m" } });
    assert!(other.refused(&closefd).1.contains("`m`"));

    peer.send(r#"{"execute":"slow"}"#);
    let command = f.command();
    let taken = command.take_fd("m").unwrap();
    assert!(command.take_fd("m").is_none());
    rustix::io::write(&taken, b"x").unwrap();
    let mut byte = [0];
    second.read_exact(&mut byte).unwrap();
    command.reply(json!({})).unwrap();
    assert_eq!(peer.read(), ok);

    let (third, given_third) = UnixStream::pair().unwrap();
    send_fd(&peer, &getfd("n").to_string(), given_third);
    assert_eq!(peer.read(), ok);
    let closefd = json!({ "execute": "closefd", "arguments": { "fdname": "n" } });
    assert_eq!(peer.ask(&closefd), ok);
    assert_eq!((&third).read(&mut [0; 1]).unwrap(), 0);
    assert_eq!(peer.refused(&closefd).0, "GenericError");
}

#[test]
fn who_does_not_read_is_cut_off_and_nobody_else_notices() {
    let f = Fixture::new();
    let (mut lazy, mut good) = (f.client(&[]), f.client(&[]));
    let payload = json!({ "x": "y".repeat(100_000) });
    // Socket buffers take some, the limit takes 1 MiB, and then it is over. The good client reads in step.
    for _ in 0..64 {
        f.control.event("BIG", Some(payload.clone()));
        assert_eq!(good.read()["event"], "BIG");
    }
    let mut rest = Vec::new();
    let end = lazy.reader.read_to_end(&mut rest);
    assert!(end.is_ok() || end.is_err_and(|e| e.kind() == std::io::ErrorKind::ConnectionReset));
    assert!(rest.len() < 64 * 100_000);
    assert_eq!(good.ask(&json!({ "execute": "query-status", "id": 1 }))["id"], 1);
}

#[test]
fn who_asks_and_does_not_read_only_waits() {
    let f = Fixture::new();
    let mut peer = f.client(&[]);
    let mut writer = peer.stream.try_clone().unwrap();
    let count = 20_000;
    let asking = std::thread::spawn(move || writer.write_all(r#"{"execute":"query-commands"}"#.repeat(count).as_bytes()).unwrap());
    for _ in 0..count {
        assert!(peer.read()["return"].is_array());
    }
    asking.join().unwrap();
}

#[test]
fn tcp_and_many_clients() {
    let f = Fixture::new();
    let address = f.monitor.listen("tcp:127.0.0.1:0").unwrap();
    let connect = || {
        let stream = TcpStream::connect(address.strip_prefix("tcp:").unwrap()).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        Peer { reader: BufReader::new(stream.try_clone().unwrap()), stream }
    };
    let mut peers: Vec<_> = (0..server::CLIENT_LIMIT).map(|_| connect()).collect();
    for peer in &mut peers {
        assert!(peer.read()["QMP"].is_object());
        assert_eq!(peer.ask(&json!({ "execute": "qmp_capabilities" })), json!({ "return": {} }));
    }
    assert!(connect().at_end());
    f.control.event("RESUME", None);
    assert!(peers.iter_mut().all(|peer| peer.read()["event"] == "RESUME"));
    assert!(peers[0].refused(&json!({ "execute": "getfd", "arguments": { "fdname": "x" } })).1.contains("unix"));
    assert_eq!(f.monitor.listen(&address).unwrap_err().kind, ErrorKind::Listen);
}

#[test]
fn close_sends_the_last_answer_and_ends_every_wait() {
    let f = Fixture::new();
    let mut peer = f.client(&[]);
    let waiting = std::thread::scope(|scope| {
        peer.send(r#"{"execute":"stop"}"#);
        let stop = f.command();
        let waiter = scope.spawn(|| f.monitor.next_command(None).is_none());
        stop.reply(json!("bye")).unwrap();
        f.monitor.close();
        waiter.join().unwrap()
    });
    assert!(waiting);
    assert_eq!(peer.read(), json!({ "return": "bye" }));
    assert!(peer.at_end());
    assert_eq!(f.monitor.listen(&f.address()).unwrap_err().kind, ErrorKind::InvalidState);
    // A watch over the exit has nothing to do any more.
    f.monitor.arm_exit(Duration::from_secs(3600)).unwrap();
    f.monitor.close();
}
