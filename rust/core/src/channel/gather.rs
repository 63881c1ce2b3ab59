//! Several connections of one migration, in whatever order they come: each is known by its first bytes.
//!
//! Nobody waits for one connection's bytes alone: one that never says what it is keeps none of the others from being taken. With TLS
//! that goes for its handshake, too, and its first bytes are those behind that.

use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::RecvFlags;

use super::cancel::Wake;
use super::listen::{accept_now, open};
use super::tls::{Session, Step};
use super::{Cancel, Channel, Listener, Tls, Uri, cancelled, reason};
use crate::repeats::Repeats;
use crate::{Error, ErrorKind, Result};

/// Most first bytes of a connection that can be looked at.
pub const FIRST_BYTES: usize = 64;

/// Connections that may wait to be looked at beside those that are wanted; for one more the oldest silent one has to go.
const STRANGERS: usize = 16;

/// How many are wanted at most, for as long as nobody knows.
const MOST: usize = 256;

/// While no source is here: when a connection that has not said what it is has to go.
const SILENCE: Duration = Duration::from_secs(10);

/// When a connection that has sent too little to tell is looked at again.
const LOOK_AGAIN: Duration = Duration::from_millis(5);

/// How often the connections that were let in are looked at for one that its source has closed.
const WATCH: Duration = Duration::from_millis(200);

/// How long the others are still waited for then: a source that leaves opens no more, but some may be on their way.
const PARTING: Duration = Duration::from_secs(1);

/// What the first bytes of a connection say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Look {
    /// Too little so far.
    Unclear,
    /// It is one of those that are wanted.
    Wanted,
    /// It is none of them.
    Stranger,
}

/// Knows the connections of one migration.
pub trait Porter {
    /// What a connection is by its first bytes, [`FIRST_BYTES`] at most; none so far only after a handshake. An error ends the gathering.
    fn look(&mut self, first: &[u8]) -> Result<Look>;
    /// The first was let in: how many there will be with it, and the time for all.
    fn expected(&mut self) -> (usize, Duration);
}

/// Takes whoever comes first with a good handshake.
pub(super) struct Anyone;

impl Porter for Anyone {
    fn look(&mut self, _: &[u8]) -> Result<Look> {
        Ok(Look::Wanted)
    }

    fn expected(&mut self) -> (usize, Duration) {
        (1, Duration::MAX)
    }
}

/// A connection of which nobody knows what it is.
#[derive(Debug)]
pub(super) struct Unknown {
    fd: OwnedFd,
    tls: Option<Session>,
    since: Instant,
    /// It has to be looked at again, though nothing new may come: it has sent too little, or takes nothing.
    begun: bool,
}

/// Connections that are still to be let in, or turned away.
#[derive(Debug, Default)]
struct Waiting {
    /// In the order in which they came.
    unknown: Vec<Unknown>,
    strangers: Repeats,
    refused: Repeats,
}

impl Waiting {
    /// Takes one more; there is `room` for so many.
    fn take(&mut self, fd: OwnedFd, tls: Option<&Tls>, room: usize, uri: &Uri) -> Result<()> {
        if self.unknown.len() >= room {
            let oldest = self.unknown.iter().position(|one| !one.begun).unwrap_or(0);
            self.turn_away(oldest, uri);
        }
        let tls = tls.map(|tls| tls.begin(uri)).transpose()?;
        self.unknown.push(Unknown { fd, tls, since: Instant::now(), begun: false });
        Ok(())
    }

    /// Closes those that have been here for too long, as nobody has come whom they could belong to; when the next one will have been.
    fn tire(&mut self, uri: &Uri) -> Option<Duration> {
        loop {
            let left = SILENCE.saturating_sub(self.unknown.first()?.since.elapsed());
            if !left.is_zero() {
                return Some(left);
            }
            self.turn_away(0, uri);
        }
    }

    fn turn_away(&mut self, index: usize, uri: &Uri) {
        self.unknown.remove(index);
        if let Some(times) = self.strangers.again() {
            tracing::warn!("{uri}: a connection that is none of this migration's was closed{times}");
        }
    }

    /// The same for one whose handshake did not go well.
    fn refuse(&mut self, index: usize, error: &Error) {
        self.unknown.remove(index);
        if let Some(times) = self.refused.again() {
            tracing::warn!(%error, "a connection was closed in its TLS handshake{times}");
        }
    }
}

impl Listener {
    /// Waits until `porter` wants as many connections as it expects, and opens these, in that order; their first bytes stay to be read.
    /// The first that is wanted is waited for as long as it takes; from then on time runs. Others are turned away, also later on.
    ///
    /// Raises `timeout`, `cancelled`, `listen`; `bad-uri` for what is no listening socket.
    pub fn gather(&self, cancel: &Cancel, porter: &mut impl Porter) -> Result<Vec<Channel>> {
        self.gather_some(cancel, porter, false)
    }

    /// The same; with `more` the others are not turned away but wait for the next call.
    pub(super) fn gather_some(&self, cancel: &Cancel, porter: &mut impl Porter, more: bool) -> Result<Vec<Channel>> {
        let uri = self.uri();
        let sockets = self.sockets().ok_or_else(|| uri.error(ErrorKind::BadUri, "one channel only; several need tcp: or unix:"))?;
        sockets.keep_further();
        let failed = |errno: Errno| uri.error(ErrorKind::Listen, format!("accepting: {}", reason(errno)));
        let (mut waiting, mut wanted) = (Waiting::default(), Vec::new());
        waiting.unknown = std::mem::take(&mut *sockets.further());
        let (mut count, mut patience, mut deadline, mut parting) = (MOST, Duration::ZERO, None, false);
        while wanted.len() < count {
            if !parting && wanted.iter().any(Channel::is_left) {
                parting = true;
                let at = Instant::now() + PARTING;
                deadline = Some(deadline.map_or(at, |before: Instant| before.min(at)));
            }
            let left = if wanted.is_empty() {
                waiting.tire(uri)
            } else {
                deadline.map(|at: Instant| at.saturating_duration_since(Instant::now()))
            };
            if left.is_some_and(|left| left.is_zero()) {
                return Err(if parting {
                    let text = format!("the source closed a connection when {} of {count} channels had come", wanted.len());
                    uri.error(ErrorKind::Closed, text)
                } else {
                    uri.error(ErrorKind::Timeout, format!("{} of {count} channels came within {patience:?}", wanted.len()))
                });
            }
            let begun = waiting.unknown.iter().any(|one| one.begun);
            let often = if begun { Some(LOOK_AGAIN) } else { (!wanted.is_empty()).then_some(WATCH) };
            let pause = left.into_iter().chain(often).min();
            let listening = sockets.fds().iter().map(AsFd::as_fd);
            let silent = waiting.unknown.iter().filter(|one| !one.begun).map(|one| one.fd.as_fd());
            if cancel.poll_each(listening.chain(silent), pause).map_err(failed)? == Wake::Cancelled {
                return Err(cancelled(uri));
            }
            for fd in sockets.fds() {
                if let Some(fd) = accept_now(fd).map_err(failed)? {
                    waiting.take(fd, self.tls(), count + STRANGERS, uri)?;
                }
            }
            let mut index = 0;
            while index < waiting.unknown.len() && wanted.len() < count {
                let one = &mut waiting.unknown[index];
                let look = match one.handshake() {
                    Ok(true) => one.look(porter)?,
                    Ok(false) => Look::Unclear,
                    Err(error) => {
                        waiting.refuse(index, &error);
                        continue;
                    }
                };
                match look {
                    Look::Unclear => index += 1,
                    Look::Stranger => waiting.turn_away(index, uri),
                    Look::Wanted => {
                        if wanted.is_empty() {
                            (count, patience) = porter.expected();
                            deadline = Instant::now().checked_add(patience);
                        }
                        let Unknown { fd, tls, .. } = waiting.unknown.remove(index);
                        wanted.push(open(uri, fd, cancel, tls)?);
                    }
                }
            }
        }
        if more {
            *sockets.further() = waiting.unknown;
        } else {
            // Who is through its handshake and has not said anything is one that the source has too many.
            let (channels, others) = waiting.unknown.into_iter().partition::<Vec<_>, _>(|one| count > 1 && one.is_secured());
            sockets.turn_away(uri, channels.len(), others.into_iter().map(|one| one.fd))?;
        }
        Ok(wanted)
    }
}

impl Unknown {
    /// True when there is none to be done any more.
    fn handshake(&mut self) -> Result<bool> {
        let Some(tls) = &self.tls else { return Ok(true) };
        let step = tls.step(self.fd.as_fd())?;
        self.begun = step == Step::Writes;
        Ok(step == Step::Done)
    }

    fn is_secured(&self) -> bool {
        self.tls.as_ref().is_some_and(|tls| matches!(tls.step(self.fd.as_fd()), Ok(Step::Done)))
    }

    fn look(&mut self, porter: &mut impl Porter) -> Result<Look> {
        let mut bytes = [0; FIRST_BYTES];
        let got = match &self.tls {
            // What has been decrypted does not make the descriptor ready again, but what comes behind it does.
            Some(tls) => {
                let Ok((got, ended)) = tls.peek(self.fd.as_fd(), &mut bytes) else { return Ok(Look::Stranger) };
                let look = porter.look(&bytes[..got])?;
                return Ok(if ended && look == Look::Unclear { Look::Stranger } else { look });
            }
            None => match rustix::net::recv(&self.fd, &mut bytes[..], RecvFlags::PEEK | RecvFlags::DONTWAIT) {
                Ok((got, _)) => got,
                Err(Errno::AGAIN | Errno::INTR) => return Ok(Look::Unclear),
                Err(_) => 0,
            },
        };
        if got == 0 {
            return Ok(Look::Stranger); // it has gone
        }
        self.begun = true;
        porter.look(&bytes[..got])
    }
}
