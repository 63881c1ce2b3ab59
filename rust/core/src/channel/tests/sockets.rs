//! tcp and unix: names, addresses, listeners and how they fail.

use std::io::Read;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};

use serde_json::{Value, json};

use super::*;

/// The port of a bound listener's first address.
fn port(listener: &Listener) -> u16 {
    listener.addresses()[0]["port"].as_str().unwrap().parse().unwrap()
}

fn is_closed(mut stream: impl Read) -> bool {
    matches!(stream.read(&mut [0; 1]), Ok(0) | Err(_))
}

#[test]
fn tcp_both_ways() {
    for host in ["127.0.0.1", "[::1]", "localhost"] {
        let listener = bind(&format!("tcp:{host}:0")).unwrap();
        converse(&listener, &format!("tcp:{host}:{}", port(&listener)));
    }
}

#[test]
fn any_address_is_one_port_for_both_families() {
    for host in ["", "0"] {
        let listener = bind(&format!("tcp:{host}:0")).unwrap();
        converse(&listener, &format!("tcp:127.0.0.1:{}", port(&listener)));
    }
    let listener = bind("tcp::0").unwrap();
    let port = port(&listener).to_string();
    let v6 = json!({"type": "inet", "host": "::", "port": port, "ipv6": true});
    let v4 = json!({"type": "inet", "host": "0.0.0.0", "port": port, "ipv4": true});
    assert_eq!(listener.addresses(), json!([v6, v4]));
    converse(&listener, &format!("tcp:[::1]:{port}"));
    let only = |text: &str| bind(text).unwrap().addresses().as_array().map(Vec::len);
    assert_eq!((only("tcp::0,ipv4"), only("tcp::0,ipv6=off"), only("tcp::0,ipv6=on")), (Some(1), Some(1), Some(1)));
}

#[test]
fn addresses_have_qemus_shape() {
    let listener = bind("tcp:127.0.0.1:0").unwrap();
    let port = port(&listener).to_string();
    assert_eq!(listener.addresses(), json!([{"type": "inet", "host": "127.0.0.1", "port": port, "ipv4": true}]));
    let scratch = Scratch::new();
    let path = scratch.join("s");
    let listener = bind(&format!("unix:{}", path.display())).unwrap();
    assert_eq!(listener.addresses(), json!([{"type": "unix", "path": path.to_str().unwrap()}]));
}

#[test]
fn tcp_options_are_set() {
    let listener = bind("tcp:127.0.0.1:0").unwrap();
    let address: SocketAddr = ([127, 0, 0, 1], port(&listener)).into();
    let fd = tcp::connect(&uri("tcp:x:1"), &inet(&format!("tcp:{address}")), &cancel()).unwrap();
    assert!(sockopt::tcp_nodelay(&fd).unwrap() && sockopt::socket_keepalive(&fd).unwrap());
    assert_eq!(sockopt::tcp_user_timeout(&fd).unwrap(), 60_000);
    // The kernel doubles what it is asked for, within its own bounds.
    let untouched = TcpStream::connect(address).unwrap();
    assert_ne!(sockopt::socket_send_buffer_size(&fd).unwrap(), sockopt::socket_send_buffer_size(&untouched).unwrap());
    assert!(rustix::io::fcntl_getfd(&fd).unwrap().contains(rustix::io::FdFlags::CLOEXEC));
}

fn inet(text: &str) -> Inet {
    match uri(text).address() {
        Address::Tcp(inet) => inet.clone(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_range_takes_the_first_free_port() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let first = taken.local_addr().unwrap().port();
    let listener = bind(&format!("tcp:127.0.0.1:{first},to={}", first.saturating_add(20))).unwrap();
    assert!(port(&listener) > first);
    converse(&listener, &format!("tcp:127.0.0.1:{}", port(&listener)));
}

#[test]
fn connecting_that_fails_says_why() {
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let text = format!("tcp:{closed}");
    refused(open(&text), ErrorKind::Connect, &text, "Connection refused");
    // Broadcast is an address that no TCP reaches, on any machine.
    refused(open("tcp:255.255.255.255:4444"), ErrorKind::Connect, "tcp:255.255.255.255:4444", "unreachable");
    refused(open("tcp::4444"), ErrorKind::BadUri, "tcp::4444", "the host is missing");
    refused(open("tcp:127.0.0.1:0"), ErrorKind::BadUri, "tcp:127.0.0.1:0", "port 0");
    refused(open("tcp:127.0.0.1:1,to=2"), ErrorKind::BadUri, "to=2", "listening only");
    refused(open("tcp:127.0.0.1:1,ipv6"), ErrorKind::Connect, "ipv6", "no IPv6 address");
    let scratch = Scratch::new();
    let path = scratch.join("s");
    let text = format!("unix:{}", path.display());
    refused(open(&text), ErrorKind::Connect, &text, "No such file");
    drop(UnixListener::bind(&path).unwrap());
    refused(open(&text), ErrorKind::Connect, &text, "Connection refused");
    let long = format!("unix:/{}", "x".repeat(120));
    refused(open(&long), ErrorKind::BadUri, &long, "too long");
    refused(bind(&long), ErrorKind::BadUri, &long, "too long");
}

#[test]
fn an_unknown_name_is_named() {
    // A label of 64 characters is no name anywhere, so nobody is asked.
    let text = format!("tcp:{}:1", "h".repeat(64));
    refused(open(&text), ErrorKind::Connect, &text, "is unknown");
    refused(bind(&text), ErrorKind::Listen, &text, "is unknown");
}

#[test]
fn every_address_that_failed_is_named() {
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let addresses = |_| Ok(vec![([127, 0, 0, 1], 0).into(), ([127, 0, 0, 2], 0).into(), ([127, 0, 0, 1], 0).into()]);
    let text = format!("tcp:name:{closed}");
    let e = tcp::connect_by(&uri(&text), &inet(&text), &cancel(), addresses).unwrap_err();
    assert_eq!(e.message, format!("{text}: Connection refused (127.0.0.1:{closed}), Connection refused (127.0.0.2:{closed})"));
}

#[test]
fn the_next_address_is_tried() {
    let listener = bind("tcp:127.0.0.1:0").unwrap();
    let text = format!("tcp:name:{}", port(&listener));
    let addresses = |_| Ok(vec![([127, 0, 0, 2], 0).into(), ([127, 0, 0, 1], 0).into()]);
    tcp::connect_by(&uri(&text), &inet(&text), &cancel(), addresses).unwrap();
}

#[test]
fn cancel_ends_a_look_up() {
    let (silence, answer) = std::sync::mpsc::channel::<()>();
    ends_by_cancel(move |cancel, begin| {
        begin();
        tcp::connect_by(&uri("tcp:slow:1"), &inet("tcp:slow:1"), cancel, move |_| {
            let _ = answer.recv(); // a resolver that does not answer
            Err("too late".into())
        })
        .map(drop)
    });
    drop(silence);
}

#[test]
fn cancel_ends_connecting_to_a_full_listener() {
    let scratch = Scratch::new();
    let path = scratch.join("s");
    let full = unix_socket(SocketType::STREAM);
    rustix::net::bind(&full, &rustix::net::SocketAddrUnix::new(&path).unwrap()).unwrap();
    rustix::net::listen(&full, 0).unwrap();
    let _first = UnixStream::connect(&path).unwrap();
    let text = format!("unix:{}", path.display());
    ends_by_cancel(move |cancel, begin| {
        begin();
        connect(&uri(&text), None, cancel).map(drop)
    });
}

#[test]
fn a_silent_peer_is_given_up() {
    let scratch = Scratch::new();
    let path = scratch.join("s");
    let full = unix_socket(SocketType::STREAM);
    let address = rustix::net::SocketAddrUnix::new(&path).unwrap();
    rustix::net::bind(&full, &address).unwrap();
    rustix::net::listen(&full, 0).unwrap();
    let _first = UnixStream::connect(&path).unwrap();
    let fd = unix_socket(SocketType::STREAM);
    rustix::io::ioctl_fionbio(&fd, true).unwrap();
    let refusal = tcp::connect_within(fd, &address, &cancel(), Duration::ZERO).unwrap_err();
    assert_eq!((refusal.kind(), refusal.to_string().as_str()), (ErrorKind::Timeout, "no answer within 60 s"));
}

#[test]
fn listening_that_fails_says_why() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let taken = TcpListener::bind(taken).unwrap();
    let text = format!("tcp:{}", taken.local_addr().unwrap());
    refused(bind(&text), ErrorKind::Listen, &text, "Address already in use");
    refused(bind("tcp:192.0.2.1:0"), ErrorKind::Listen, "tcp:192.0.2.1:0", "an address of this machine");
    refused(bind("tcp:127.0.0.1:0,ipv6"), ErrorKind::Listen, "ipv6", "no IPv6 address");
    refused(bind("unix:/nowhere/s"), ErrorKind::Listen, "unix:/nowhere/s", "No such file");
}

#[test]
fn unix_both_ways_and_the_name_goes() {
    let scratch = Scratch::new();
    let path = scratch.join("s");
    let text = format!("unix:{}", path.display());
    let listener = bind(&text).unwrap();
    converse(&listener, &text);
    drop(listener);
    assert!(!path.exists());
}

#[test]
fn a_stale_socket_is_replaced_a_live_one_is_not_touched() {
    let scratch = Scratch::new();
    let path = scratch.join("s");
    let text = format!("unix:{}", path.display());
    drop(UnixListener::bind(&path).unwrap()); // std leaves the file behind
    let listener = bind(&text).unwrap();
    refused(bind(&text), ErrorKind::Listen, &text, "another process listens");
    // The question left no connection in the listener's queue: the first to be accepted is a real one.
    converse(&listener, &text);
}

#[test]
fn a_file_is_no_stale_socket() {
    let scratch = Scratch::new();
    let path = scratch.join("s");
    std::fs::write(&path, "precious").unwrap();
    let text = format!("unix:{}", path.display());
    refused(bind(&text), ErrorKind::Listen, &text, "no socket");
    assert_eq!(std::fs::read(&path).unwrap(), b"precious");
}

#[test]
fn a_name_that_is_anothers_by_now_stays() {
    let scratch = Scratch::new();
    let path = scratch.join("s");
    let listener = bind(&format!("unix:{}", path.display())).unwrap();
    std::fs::remove_file(&path).unwrap();
    let _other = UnixListener::bind(&path).unwrap();
    drop(listener);
    assert!(path.exists());
}

#[test]
fn surplus_connections_are_closed_and_the_first_lives() {
    let listener = bind("tcp:127.0.0.1:0").unwrap();
    let address: SocketAddr = ([127, 0, 0, 1], port(&listener)).into();
    let mut outgoing = open(&format!("tcp:{address}")).unwrap();
    let incoming = listener.accept(&cancel()).unwrap();
    for _ in 0..3 {
        assert!(is_closed(TcpStream::connect(address).unwrap()));
    }
    outgoing.writer.as_mut().unwrap().write_all(b"still here").unwrap();
    assert_eq!(incoming.reader.unwrap().read(&mut [0; 32]).unwrap(), 10);
    // Another call gets the next one.
    let next = {
        let text = format!("tcp:{address}");
        std::thread::spawn(move || open(&text).unwrap())
    };
    drop(next.join().unwrap());
    drop(listener);
    assert_eq!(TcpStream::connect(address).unwrap_err().kind(), std::io::ErrorKind::ConnectionRefused);
}

#[test]
fn a_listener_can_be_used_again() {
    let listener = bind("tcp:127.0.0.1:0").unwrap();
    let to = format!("tcp:127.0.0.1:{}", port(&listener));
    converse(&listener, &to);
    let aborted = cancel();
    aborted.set();
    refused(listener.accept(&aborted), ErrorKind::Cancelled, "tcp:127.0.0.1:0", "cancelled");
    converse(&listener, &to);
}

#[test]
fn cancel_ends_accept() {
    ends_by_cancel(|cancel, begin| {
        let listener = bind("tcp:127.0.0.1:0").unwrap();
        begin();
        listener.accept(cancel).map(drop)
    });
}

#[test]
fn a_reset_connection_is_closed() {
    let listener = bind("tcp:127.0.0.1:0").unwrap();
    let peer = TcpStream::connect(("127.0.0.1", port(&listener))).unwrap();
    let channel = listener.accept(&cancel()).unwrap();
    sockopt::set_socket_linger(&peer, Some(Duration::ZERO)).unwrap();
    drop(peer); // resets
    refused(channel.reader.unwrap().read(&mut [0; 1]), ErrorKind::Closed, "tcp:127.0.0.1:0", "the peer closed the channel");
}

#[test]
fn no_addresses_but_sockets() {
    assert_eq!(bind("exec:true").unwrap().addresses(), Value::Array(vec![]));
}
