//! `tcp:`: names to addresses, connecting and listening on them, and the options every TCP channel gets.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use rustix::event::PollFlags;
use rustix::io::Errno;
use rustix::net::addr::SocketAddrArg;
use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};

use super::cancel::Wake;
use super::uri::Inet;
use super::{Cancel, Uri, cancelled, reason};
use crate::{Error, ErrorKind, Result};

/// How long a peer may take to accept.
pub(super) const CONNECT_TIMEOUT: Duration = Duration::from_secs(60);
/// How long a full queue of a listener is tried again.
const RETRY: Duration = Duration::from_millis(10);
/// How long sent bytes may stay unacknowledged, or the peer may not read, before the connection counts as dead.
const USER_TIMEOUT_MS: u32 = 60_000;
/// When a silent connection is asked whether it lives, and how often until `USER_TIMEOUT_MS` ends it.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(20);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
/// Socket buffers towards a peer on this machine. Left alone they grow until pages fall out of the cache before the receiver
/// copies them: a GiB through `examples/bare_loop` cost 0.45 to 0.57 CPU seconds so, 0.32 to 0.40 with 512 KiB or 1 MiB.
/// A migration is steadier with 1 MiB (3.0 to 3.3 GiB/s in five runs) than with 512 KiB (1.4 to 3.8), whose two ends sleep
/// in turn. A network's delay needs the kernel's own growth.
const LOCAL_BUFFER: usize = 1 << 20;
/// Tries to find one free port for all address families.
const PORT_TRIES: u32 = 16;

/// What a look-up gives: addresses (their port means nothing), or the resolver's words.
type Found = Result<Vec<SocketAddr>, String>;

/// Connects to the first address that answers.
pub(super) fn connect(uri: &Uri, inet: &Inet, cancel: &Cancel) -> Result<OwnedFd> {
    for (wrong, cause) in [
        (inet.host.is_empty(), "the host is missing; connecting needs tcp:HOST:PORT"),
        (inet.port == 0, "port 0 is for listening only"),
        (inet.to.is_some(), "to= is for listening only"),
    ] {
        if wrong {
            return Err(uri.error(ErrorKind::BadUri, cause));
        }
    }
    connect_by(uri, inet, cancel, |host| look_up(&host))
}

/// The same with a given resolver.
pub(super) fn connect_by(
    uri: &Uri,
    inet: &Inet,
    cancel: &Cancel,
    look_up: impl FnOnce(String) -> Found + Send + 'static,
) -> Result<OwnedFd> {
    let addresses = resolve(uri, inet, cancel, look_up)?;
    let mut causes = Vec::new();
    let mut kind = ErrorKind::Connect;
    for address in &addresses {
        match open(*address).map_err(Refusal::System).and_then(|fd| connect_within(fd, address, cancel, CONNECT_TIMEOUT)) {
            Ok(fd) => {
                tune(&fd);
                return Ok(fd);
            }
            Err(refusal) => {
                kind = refusal.kind();
                causes.push(if addresses.len() > 1 { format!("{refusal} ({address})") } else { refusal.to_string() });
            }
        }
        if kind == ErrorKind::Cancelled {
            return Err(cancelled(uri));
        }
    }
    Err(uri.error(kind, causes.join(", ")))
}

/// Listens on every address of the host, all on one port: the first of the range that is free.
pub(super) fn listen(uri: &Uri, inet: &Inet) -> Result<Vec<OwnedFd>> {
    let addresses = if inet.host.is_empty() {
        family([IpAddr::V6(Ipv6Addr::UNSPECIFIED), IpAddr::V4(Ipv4Addr::UNSPECIFIED)].map(|ip| SocketAddr::new(ip, 0)), inet)
    } else {
        let found = literal(&inet.host).map_or_else(|| look_up(&inet.host), |a| Ok(vec![a]));
        usable(uri, inet, found, ErrorKind::Listen)?
    };
    let mut tries: Vec<u16> = (inet.port..=inet.to.unwrap_or(inet.port)).collect();
    if inet.port == 0 {
        tries.extend((1..PORT_TRIES).map(|_| 0));
    }
    let mut last = Errno::ADDRINUSE;
    for port in tries {
        match listen_all(&addresses, port) {
            Ok(fds) => return Ok(fds),
            Err(errno) => last = errno,
        }
        if last != Errno::ADDRINUSE {
            break;
        }
    }
    let remedy = match last {
        Errno::ADDRINUSE => "; choose another port or a range with to=",
        Errno::ACCESS => "; ports below 1024 need privileges",
        Errno::ADDRNOTAVAIL => "; the host must be an address of this machine",
        _ => "",
    };
    Err(uri.error(ErrorKind::Listen, format!("{}{remedy}", reason(last))))
}

/// Options of a connected TCP socket. None of them decides whether it works, so a refusal is no error.
pub(super) fn tune(fd: &OwnedFd) {
    let _ = sockopt::set_tcp_nodelay(fd, true);
    let _ = sockopt::set_socket_keepalive(fd, true);
    let _ = sockopt::set_tcp_keepidle(fd, KEEPALIVE_IDLE);
    let _ = sockopt::set_tcp_keepintvl(fd, KEEPALIVE_INTERVAL);
    let _ = sockopt::set_tcp_user_timeout(fd, USER_TIMEOUT_MS);
    if is_local(fd) {
        let _ = sockopt::set_socket_send_buffer_size(fd, LOCAL_BUFFER);
        let _ = sockopt::set_socket_recv_buffer_size(fd, LOCAL_BUFFER);
    }
}

/// The peer is on this machine.
pub(super) fn is_local(fd: &OwnedFd) -> bool {
    if sockopt::socket_domain(fd) == Ok(AddressFamily::UNIX) {
        return true;
    }
    let ip = |name| SocketAddr::try_from(name).ok().map(|address: SocketAddr| address.ip());
    let here = rustix::net::getsockname(fd).ok().and_then(ip);
    let there = rustix::net::getpeername(fd).ok().flatten().and_then(ip);
    here.is_some() && here == there
}

/// Why a connection did not come about.
#[derive(Debug)]
pub(super) enum Refusal {
    Cancelled,
    Silent,
    System(Errno),
}

impl Refusal {
    pub(super) fn kind(&self) -> ErrorKind {
        match self {
            Self::Cancelled => ErrorKind::Cancelled,
            Self::Silent => ErrorKind::Timeout,
            Self::System(_) => ErrorKind::Connect,
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cancelled => f.write_str("cancelled"),
            Self::Silent => write!(f, "no answer within {} s", CONNECT_TIMEOUT.as_secs()),
            Self::System(errno) => f.write_str(&reason(*errno)),
        }
    }
}

/// Connects a non-blocking socket, waiting at most `timeout`.
pub(super) fn connect_within(fd: OwnedFd, address: &impl SocketAddrArg, cancel: &Cancel, timeout: Duration) -> Result<OwnedFd, Refusal> {
    let deadline = Instant::now() + timeout;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        match rustix::net::connect(&fd, address) {
            Ok(()) => return Ok(fd),
            Err(Errno::INPROGRESS | Errno::INTR) => match cancel.poll(fd.as_fd(), PollFlags::OUT, Some(left)) {
                Wake::Cancelled => return Err(Refusal::Cancelled),
                Wake::Timeout => return Err(Refusal::Silent),
                Wake::Ready => return sockopt::socket_error(&fd).and_then(|e| e).map(|()| fd).map_err(Refusal::System),
            },
            // a unix listener whose queue is full
            Err(Errno::AGAIN) if left.is_zero() => return Err(Refusal::Silent),
            Err(Errno::AGAIN) => {
                if cancel.wait(RETRY.min(left)) {
                    return Err(Refusal::Cancelled);
                }
            }
            Err(errno) => return Err(Refusal::System(errno)),
        }
    }
}

fn open(address: SocketAddr) -> rustix::io::Result<OwnedFd> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    rustix::net::socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK, None)
}

fn listen_all(addresses: &[SocketAddr], mut port: u16) -> rustix::io::Result<Vec<OwnedFd>> {
    let mut fds = Vec::new();
    let mut unusable = Errno::ADDRNOTAVAIL;
    for address in addresses {
        match listen_one(SocketAddr::new(address.ip(), port), *address) {
            Ok(fd) => {
                if port == 0 {
                    port = SocketAddr::try_from(rustix::net::getsockname(&fd)?).map_or(0, |a| a.port());
                }
                fds.push(fd);
            }
            // a family that this machine does not have
            Err(errno @ (Errno::AFNOSUPPORT | Errno::ADDRNOTAVAIL)) => unusable = errno,
            Err(errno) => return Err(errno),
        }
    }
    if fds.is_empty() { Err(unusable) } else { Ok(fds) }
}

fn listen_one(mut address: SocketAddr, found: SocketAddr) -> rustix::io::Result<OwnedFd> {
    if let (SocketAddr::V6(address), SocketAddr::V6(found)) = (&mut address, found) {
        address.set_scope_id(found.scope_id());
    }
    let fd = open(address)?;
    sockopt::set_socket_reuseaddr(&fd, true)?;
    if address.is_ipv6() {
        sockopt::set_ipv6_v6only(&fd, true)?; // IPv4 has a socket of its own
    }
    rustix::net::bind(&fd, &address)?;
    rustix::net::listen(&fd, super::listen::BACKLOG)?;
    Ok(fd)
}

/// The addresses of the host. A name is looked up by a thread of its own, because a resolver cannot be interrupted: after a
/// cancel that thread ends by itself and its answer is dropped.
fn resolve(uri: &Uri, inet: &Inet, cancel: &Cancel, look_up: impl FnOnce(String) -> Found + Send + 'static) -> Result<Vec<SocketAddr>> {
    if let Some(address) = literal(&inet.host) {
        return usable(uri, inet, Ok(vec![address]), ErrorKind::Connect);
    }
    let (answer, answered) = mpsc::channel();
    let done = Cancel::new()?;
    let (host, signal) = (inet.host.clone(), done.clone());
    std::thread::Builder::new()
        .name("qmig-resolve".into())
        .spawn(move || {
            let _ = answer.send(look_up(host));
            signal.set();
        })
        .map_err(|e| uri.error(ErrorKind::Connect, format!("starting a thread: {}", reason(e))))?;
    if cancel.poll(done.as_fd(), PollFlags::IN, None) == Wake::Cancelled {
        return Err(cancelled(uri));
    }
    usable(uri, inet, answered.try_recv().unwrap_or(Err("the look-up gave no answer".into())), ErrorKind::Connect)
}

fn literal(host: &str) -> Option<SocketAddr> {
    host.parse().ok().map(|ip: IpAddr| SocketAddr::new(ip, 0))
}

fn look_up(host: &str) -> Found {
    match (host, 0).to_socket_addrs() {
        Ok(addresses) => Ok(addresses.collect()),
        Err(e) => Err(reason(e).trim_start_matches("failed to lookup address information: ").to_owned()),
    }
}

/// The addresses of the wanted families, each once, with the URI's port.
fn usable(uri: &Uri, inet: &Inet, found: Found, kind: ErrorKind) -> Result<Vec<SocketAddr>> {
    let found = found.map_err(|cause| uri.error(kind, format!("the name {:?} is unknown: {cause}", inet.host)))?;
    let addresses = family(found, inet);
    if addresses.is_empty() {
        let wanted = if inet.ipv4 { "IPv4" } else { "IPv6" };
        return Err(uri.error(kind, format!("{:?} has no {wanted} address", inet.host)));
    }
    Ok(addresses)
}

fn family(found: impl IntoIterator<Item = SocketAddr>, inet: &Inet) -> Vec<SocketAddr> {
    let mut addresses: Vec<SocketAddr> = Vec::new();
    for mut address in found {
        address.set_port(inet.port);
        let wanted = if address.is_ipv4() { inet.ipv4 } else { inet.ipv6 };
        if wanted && !addresses.contains(&address) {
            addresses.push(address);
        }
    }
    addresses
}

/// How `query-migrate` names a bound socket.
pub(super) fn describe(fd: &OwnedFd) -> Result<serde_json::Value> {
    let name = rustix::net::getsockname(fd).and_then(SocketAddr::try_from);
    let address = name.map_err(|e| Error::io("asking for a socket's address", reason(e)))?;
    let family = if address.is_ipv4() { "ipv4" } else { "ipv6" };
    Ok(serde_json::json!({"type": "inet", "host": address.ip().to_string(), "port": address.port().to_string(), family: true}))
}
