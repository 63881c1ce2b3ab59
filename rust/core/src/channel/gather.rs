//! Several connections of one migration, in whatever order they come: each is known by its first bytes.
//!
//! Nobody waits for one connection's bytes alone: one that never says what it is keeps none of the others from being taken.

use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::RecvFlags;

use super::cancel::Wake;
use super::listen::{accept_now, open};
use super::{Cancel, Channel, Listener, cancelled, reason};
use crate::repeats::Repeats;
use crate::{ErrorKind, Result};

/// Most first bytes of a connection that can be looked at.
pub const FIRST_BYTES: usize = 64;

/// Connections that may wait to be looked at beside those that are wanted; any more stay in the kernel's queue.
const STRANGERS: usize = 16;

/// When a connection that has sent too little to tell is looked at again.
const LOOK_AGAIN: Duration = Duration::from_millis(5);

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

/// A connection of which nobody knows what it is.
#[derive(Debug)]
struct Unknown {
    fd: OwnedFd,
    /// It has sent something, but too little.
    begun: bool,
}

impl Listener {
    /// Waits until `look` wants `count` connections, and opens these, in that order. It is given the first bytes of each, at least one and
    /// at most [`FIRST_BYTES`], which stay to be read; its error ends the gathering. The first connection is waited for as long as it
    /// takes, and told by `came`; after it, `patience` is the time for all. Others are turned away, also later on.
    ///
    /// Raises `timeout`, `cancelled`, `listen`; `bad-uri` for what is no listening socket.
    pub fn gather(
        &self,
        cancel: &Cancel,
        count: usize,
        patience: Duration,
        came: impl FnOnce(),
        mut look: impl FnMut(&[u8]) -> Result<Look>,
    ) -> Result<Vec<Channel>> {
        let uri = self.uri();
        let sockets = self.sockets().ok_or_else(|| uri.error(ErrorKind::BadUri, "one channel only; several need tcp: or unix:"))?;
        sockets.keep_further();
        let failed = |errno: Errno| uri.error(ErrorKind::Listen, format!("accepting: {}", reason(errno)));
        let mut came = Some(came);
        let mut deadline: Option<Instant> = None;
        let (mut unknown, mut wanted): (Vec<Unknown>, _) = (Vec::new(), Vec::with_capacity(count));
        let strangers = Repeats::default();
        while wanted.len() < count {
            let left = deadline.map(|at| at.saturating_duration_since(Instant::now()));
            if left.is_some_and(|left| left.is_zero()) {
                return Err(uri.error(ErrorKind::Timeout, format!("{} of {count} channels came within {patience:?}", wanted.len())));
            }
            let pause = if unknown.iter().any(|one| one.begun) { Some(LOOK_AGAIN.min(left.unwrap_or(LOOK_AGAIN))) } else { left };
            let room = unknown.len() < count + STRANGERS;
            let listening = sockets.fds().iter().filter(|_| room).map(AsFd::as_fd);
            let silent = unknown.iter().filter(|one| !one.begun).map(|one| one.fd.as_fd());
            if cancel.poll_each(listening.chain(silent), pause).map_err(failed)? == Wake::Cancelled {
                return Err(cancelled(uri));
            }
            for fd in sockets.fds().iter().filter(|_| room) {
                if let Some(fd) = accept_now(fd).map_err(failed)? {
                    unknown.push(Unknown { fd, begun: false });
                }
            }
            if let Some(came) = came.take_if(|_| !unknown.is_empty()) {
                came();
                deadline = Instant::now().checked_add(patience);
            }
            let mut index = 0;
            while index < unknown.len() && wanted.len() < count {
                match first_bytes(&mut unknown[index], &mut look)? {
                    Look::Unclear => index += 1,
                    Look::Wanted => wanted.push(open(uri, unknown.remove(index).fd, cancel)?),
                    Look::Stranger => {
                        if let Some(times) = strangers.again() {
                            tracing::warn!("{uri}: a connection that is none of this migration's was closed{times}");
                        }
                        unknown.remove(index);
                    }
                }
            }
        }
        sockets.turn_away(uri, unknown.len())?;
        Ok(wanted)
    }
}

fn first_bytes(one: &mut Unknown, look: &mut impl FnMut(&[u8]) -> Result<Look>) -> Result<Look> {
    let mut bytes = [0; FIRST_BYTES];
    let got = match rustix::net::recv(&one.fd, &mut bytes[..], RecvFlags::PEEK | RecvFlags::DONTWAIT) {
        Ok((got, _)) => got,
        Err(Errno::AGAIN | Errno::INTR) => return Ok(Look::Unclear),
        Err(_) => 0,
    };
    if got == 0 {
        return Ok(Look::Stranger); // it has gone
    }
    one.begun = true;
    look(&bytes[..got])
}
