//! The incoming side: bound at once, accepted later, listening until dropped.
//!
//! After a channel was accepted, a thread of the listener closes and logs further connections, so that a stray peer gets
//! an end of file instead of waiting for ever in the kernel's queue.

use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::io::Errno;
use rustix::net::SocketFlags;
use serde_json::Value;

use super::gather::{Anyone, Unknown};
use super::surplus::{self, Surplus, TurnedAway};
use super::tls::Session;
use super::{Address, Cancel, Channel, Direction, Opened, Tls, Uri, cancelled, reason, tcp, unix};
use crate::{ErrorKind, Result};

/// Connections that wait to be accepted: a source with all its channels opens them at once.
pub(super) const BACKLOG: i32 = 260;

/// A bound incoming URI.
#[derive(Debug)]
pub struct Listener {
    uri: Uri,
    tls: Option<Arc<Tls>>,
    source: Source,
}

#[derive(Debug)]
enum Source {
    Sockets(Sockets),
    /// Opened when bound, handed out once.
    Once(Mutex<Option<Opened>>),
}

#[derive(Debug)]
pub(super) struct Sockets {
    fds: Arc<Vec<OwnedFd>>,
    addresses: Vec<Value>,
    surplus: Mutex<Option<Surplus>>,
    turned_away: Arc<Mutex<TurnedAway>>,
    /// Accepted, in the middle of their handshakes.
    further: Mutex<Vec<Unknown>>,
    /// Last: the name goes when nobody accepts any more.
    _file: Option<unix::SocketFile>,
}

impl Listener {
    /// Binds a socket, or opens what needs no listener. `descriptor` belongs to `fd:` URIs and to no other.
    ///
    /// Does not wait for a peer, but for the resolver if the host is a name. Raises `listen`, `bad-uri`.
    pub fn bind(uri: &Uri, descriptor: Option<OwnedFd>) -> Result<Self> {
        Self::bind_over(uri, descriptor, None)
    }

    /// The same over TLS, if there is any: a connection counts once its handshake is done.
    pub fn bind_over(uri: &Uri, descriptor: Option<OwnedFd>, tls: Option<Arc<Tls>>) -> Result<Self> {
        tls.as_ref().map_or(Ok(()), |tls| tls.suits(uri, Direction::Incoming))?;
        let source = match (uri.address(), descriptor) {
            (Address::Tcp(inet), None) => {
                let fds = tcp::listen(uri, inet)?;
                let addresses = fds.iter().map(tcp::describe).collect::<Result<_>>()?;
                Source::Sockets(Sockets {
                    fds: Arc::new(fds),
                    addresses,
                    surplus: Mutex::default(),
                    turned_away: TurnedAway::new(tls.is_some()),
                    further: Mutex::default(),
                    _file: None,
                })
            }
            (Address::Unix(path), None) => {
                let (fd, file) = unix::listen(uri, path)?;
                let addresses = vec![file.describe()];
                Source::Sockets(Sockets {
                    fds: Arc::new(vec![fd]),
                    addresses,
                    surplus: Mutex::default(),
                    turned_away: TurnedAway::new(tls.is_some()),
                    further: Mutex::default(),
                    _file: Some(file),
                })
            }
            (address, descriptor) => {
                Source::Once(Mutex::new(Some(Opened::once(uri, address, descriptor, Direction::Incoming, tls.is_some())?)))
            }
        };
        Ok(Self { uri: uri.clone(), tls, source })
    }

    /// What it was bound by.
    pub fn uri(&self) -> &Uri {
        &self.uri
    }

    /// Peers connect to it; anything else was opened when it was bound.
    pub fn is_socket(&self) -> bool {
        matches!(self.source, Source::Sockets(_))
    }

    /// How many connections were turned away so far.
    pub fn turned_away(&self) -> usize {
        self.sockets().map_or(0, |sockets| lock(&sockets.turned_away).all())
    }

    /// From here on `alarm` is set as soon as one of these says to be a multifd channel, or at once if one did.
    pub fn set_alarm(&self, alarm: &Cancel) {
        let Some(sockets) = self.sockets() else { return };
        lock(&sockets.turned_away).set_alarm(alarm);
    }

    /// From here on nothing is set; true if it was.
    pub fn end_alarm(&self) -> bool {
        let alarm = self.sockets().and_then(|sockets| lock(&sockets.turned_away).end_alarm());
        alarm.is_some_and(|alarm| alarm.is_set())
    }

    /// How many of these had said to be multifd channels; those that wait right now are turned away, too.
    pub fn surplus_channels(&self) -> usize {
        self.sockets().map_or(0, |sockets| surplus::channels(&sockets.turned_away, sockets.fds()))
    }

    /// The bound addresses as `query-migrate`'s `socket-address`; empty for what is no listening socket.
    pub fn addresses(&self) -> Value {
        match &self.source {
            Source::Sockets(sockets) => Value::Array(sockets.addresses.clone()),
            Source::Once(_) => Value::Array(Vec::new()),
        }
    }

    /// Waits for a peer (sockets) or for the first byte (descriptor, command), and opens the channel; `cancel` ends both
    /// the waiting and the channel. Connections beyond the one returned are turned away until the next call.
    pub fn accept(&self, cancel: &Cancel) -> Result<Channel> {
        self.accept_one(cancel, false)
    }

    /// The same, but further connections wait to be accepted.
    pub fn accept_first(&self, cancel: &Cancel) -> Result<Channel> {
        self.accept_one(cancel, true)
    }

    /// What its connections are secured with.
    pub(super) fn tls(&self) -> Option<&Tls> {
        self.tls.as_deref()
    }

    /// Its sockets, if peers connect to it.
    pub(super) fn sockets(&self) -> Option<&Sockets> {
        match &self.source {
            Source::Sockets(sockets) => Some(sockets),
            Source::Once(_) => None,
        }
    }

    fn accept_one(&self, cancel: &Cancel, more: bool) -> Result<Channel> {
        match &self.source {
            // A handshake takes time, and nobody waits for one connection's alone.
            Source::Sockets(_) if self.tls.is_some() => {
                let first = self.gather_some(cancel, &mut Anyone, more)?.pop();
                first.ok_or_else(|| self.uri.error(ErrorKind::Closed, "no connection came"))
            }
            Source::Sockets(sockets) => sockets.accept(&self.uri, cancel, more),
            Source::Once(opened) => {
                let opened = opened.lock().unwrap_or_else(PoisonError::into_inner).take();
                let opened = opened.ok_or_else(|| self.uri.error(ErrorKind::InvalidState, "it gives one channel only, which was taken"))?;
                opened.readable(&self.uri, cancel)?;
                opened.secured(&self.uri, self.tls(), cancel, Direction::Incoming)
            }
        }
    }
}

impl Sockets {
    fn accept(&self, uri: &Uri, cancel: &Cancel, more: bool) -> Result<Channel> {
        let mut surplus = self.surplus();
        *surplus = None; // stops it
        let fd = match accept(&self.fds, cancel) {
            Ok(Some(fd)) => fd,
            Ok(None) => return Err(cancelled(uri)),
            Err(errno) => return Err(uri.error(ErrorKind::Listen, format!("accepting: {}", reason(errno)))),
        };
        if !more {
            *surplus = Some(Surplus::start(uri, &self.fds, &self.turned_away)?);
        }
        drop(surplus);
        open(uri, fd, cancel, None)
    }

    /// Those that were accepted and not let in.
    pub(super) fn further(&self) -> MutexGuard<'_, Vec<Unknown>> {
        lock(&self.further)
    }

    /// The listening ones.
    pub(super) fn fds(&self) -> &[OwnedFd] {
        &self.fds
    }

    /// Nobody turns connections away any more.
    pub(super) fn keep_further(&self) {
        *self.surplus() = None;
    }

    /// Turns so many channels and these connections away, and from here on any further one.
    pub(super) fn turn_away(&self, uri: &Uri, channels: usize, others: impl Iterator<Item = OwnedFd>) -> Result<()> {
        let mut away = lock(&self.turned_away);
        (0..channels).for_each(|_| away.add_channel());
        others.for_each(|connection| away.add(connection));
        drop(away);
        *self.surplus() = Some(Surplus::start(uri, &self.fds, &self.turned_away)?);
        Ok(())
    }

    fn surplus(&self) -> MutexGuard<'_, Option<Surplus>> {
        lock(&self.surplus)
    }
}

/// An accepted connection as a channel.
pub(super) fn open(uri: &Uri, fd: OwnedFd, cancel: &Cancel, tls: Option<Session>) -> Result<Channel> {
    if matches!(uri.address(), Address::Tcp(_)) {
        tcp::tune(&fd);
    }
    Opened::socket(fd).channel(uri, cancel, Direction::Incoming, tls)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The next connection; none once the switch is set.
fn accept(fds: &[OwnedFd], cancel: &Cancel) -> rustix::io::Result<Option<OwnedFd>> {
    while let Some(index) = cancel.poll_any(fds)? {
        if let Some(fd) = accept_now(&fds[index])? {
            return Ok(Some(fd));
        }
    }
    Ok(None)
}

/// A connection, if one waits.
pub(super) fn accept_now(listening: &OwnedFd) -> rustix::io::Result<Option<OwnedFd>> {
    match rustix::net::accept_with(listening, SocketFlags::CLOEXEC) {
        Ok(fd) => Ok(Some(fd)),
        // gone again before we came
        Err(Errno::AGAIN | Errno::INTR | Errno::CONNABORTED | Errno::PROTO) => Ok(None),
        Err(errno) => Err(errno),
    }
}
