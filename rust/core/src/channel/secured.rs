//! The halves of a channel that has TLS: the same calls, through records. Guest memory is copied in and out without the session's lock.

use std::os::fd::AsFd;
use std::time::Instant;

use rustix::event::PollFlags;
use rustix::io::Errno;
use rustix::net::sockopt;

use super::half::ReadHalf;
use super::link::Link;
use super::tls::{Broken, Session};
use crate::Result;
use crate::sys::io::{IoVec, IoVecMut};

/// Bytes that are encrypted, and decrypted, at once: four records.
const BATCH: usize = 64 << 10;

impl ReadHalf {
    pub(super) fn is_secured(&self) -> bool {
        self.link.as_ref().is_some_and(|link| link.tls.is_some())
    }

    /// Nobody has said that it is over, and the time is not.
    pub(super) fn in_time(&self, link: &Link) -> Result<()> {
        if self.alarm.as_ref().is_some_and(super::Cancel::is_set) {
            return Err(link.cancelled());
        }
        if self.deadline.is_some_and(|at| Instant::now() >= at) {
            return Err(link.stalled(PollFlags::IN));
        }
        Ok(())
    }

    /// One read into several places, not all empty.
    pub(super) fn scatter(&mut self, vectors: &mut [IoVecMut<'_>]) -> Result<usize> {
        let mut plain = std::mem::take(&mut self.plain);
        plain.resize(BATCH, 0);
        let wanted = vectors.iter().fold(0_usize, |sum, vector| sum.saturating_add(vector.len())).min(BATCH);
        let read = self.read(&mut plain[..wanted]);
        let mut rest = plain.get(..*read.as_ref().unwrap_or(&0)).unwrap_or_default();
        for vector in vectors {
            let (now, later) = rest.split_at(vector.len().min(rest.len()));
            vector.fill(now);
            rest = later;
        }
        self.plain = plain;
        read
    }
}

/// What is there, or `EAGAIN`.
pub(super) fn read(link: &Link, tls: &Session, into: &mut [u8]) -> Result<usize, Broken> {
    tls.read(link.fd.as_fd(), into)?.ok_or(Broken::System(Errno::AGAIN))
}

/// All of `vectors`, by way of `plain`. When this returns the kernel has everything.
pub(super) fn write(link: &Link, tls: &Session, plain: &mut Vec<u8>, vectors: &[IoVec<'_>], deadline: Option<Instant>) -> Result<()> {
    plain.resize(BATCH, 0);
    let mut filled = 0;
    for vector in vectors {
        let mut rest = *vector;
        while !rest.is_empty() {
            let count = rest.len().min(BATCH - filled);
            rest.copy_to(&mut plain[filled..filled + count]);
            rest = rest.after(count);
            filled += count;
            if filled == BATCH {
                put(link, tls, plain, deadline)?;
                filled = 0;
            }
        }
    }
    if filled > 0 { put(link, tls, &plain[..filled], deadline) } else { Ok(()) }
}

fn put(link: &Link, tls: &Session, plain: &[u8], deadline: Option<Instant>) -> Result<()> {
    let failed = |broken| link.broken("writing", broken);
    link.check()?;
    tls.seal(plain).map_err(failed)?;
    while !tls.flush(link.fd.as_fd()).map_err(failed)? {
        // As in a call that waits itself, the socket says for how long the peer may take nothing.
        let patience = || sockopt::socket_timeout(&*link.fd, sockopt::Timeout::Send).ok().flatten();
        link.wait(PollFlags::OUT, deadline.or_else(|| Instant::now().checked_add(patience()?)))?;
    }
    Ok(())
}
