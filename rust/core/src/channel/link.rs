//! An open descriptor with its name and its switch: how it waits, what its errors mean, and what goes out when it closes.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FileType, OFlags};
use rustix::io::Errno;

use super::cancel::{Registration, Wake};
use super::tls::{Broken, Session};
use super::{Cancel, Uri, reason};
use crate::{Error, ErrorKind, Result};

/// How a descriptor waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Socket,
    /// Pipe, FIFO, character device: non-blocking and polled.
    Pipe,
    /// Regular file or block device.
    File,
}

impl Kind {
    /// By what `fstat` says; sets the blocking mode that goes with it.
    pub(super) fn prepare(fd: BorrowedFd<'_>) -> rustix::io::Result<Self> {
        let kind = match FileType::from_raw_mode(rustix::fs::fstat(fd)?.st_mode) {
            FileType::Socket => Self::Socket,
            FileType::RegularFile | FileType::BlockDevice => Self::File,
            FileType::Directory => return Err(Errno::ISDIR),
            _ => Self::Pipe,
        };
        let flags = rustix::fs::fcntl_getfl(fd)?;
        let wanted = if kind == Self::Pipe { flags | OFlags::NONBLOCK } else { flags - OFlags::NONBLOCK };
        if wanted != flags {
            rustix::fs::fcntl_setfl(fd, wanted)?;
        }
        Ok(kind)
    }
}

/// An open descriptor with its name and its switch, shared by the halves.
#[derive(Debug)]
pub(super) struct Link {
    pub fd: Arc<OwnedFd>,
    pub kind: Kind,
    pub uri: Uri,
    pub cancel: Cancel,
    /// A socket may have it.
    pub tls: Option<Session>,
    _closer: Option<Registration>,
}

impl Link {
    pub(super) fn new(fd: OwnedFd, kind: Kind, uri: &Uri, cancel: &Cancel) -> Self {
        let fd = Arc::new(fd);
        let closer = (kind == Kind::Socket).then(|| {
            let fd = Arc::clone(&fd);
            // A socket that is not connected any more is as good as shut down.
            cancel.register(Box::new(move || {
                let _ = rustix::net::shutdown(&*fd, rustix::net::Shutdown::Both);
            }))
        });
        Self { fd, kind, uri: uri.clone(), cancel: cancel.clone(), tls: None, _closer: closer }
    }

    /// The same with TLS around every byte.
    pub(super) fn secured(mut self, tls: Option<Session>) -> Self {
        self.tls = tls;
        self
    }

    pub(super) fn cancelled(&self) -> Error {
        self.uri.error(ErrorKind::Cancelled, "cancelled")
    }

    pub fn check(&self) -> Result<()> {
        if self.cancel.is_set() { Err(self.cancelled()) } else { Ok(()) }
    }

    pub(super) fn wait(&self, events: PollFlags, deadline: Option<Instant>) -> Result<()> {
        self.wait_unless(&self.cancel, events, deadline)
    }

    pub(super) fn wait_unless(&self, cancel: &Cancel, events: PollFlags, deadline: Option<Instant>) -> Result<()> {
        let left = deadline.map(|at| at.saturating_duration_since(Instant::now()));
        match cancel.poll(self.fd.as_fd(), events, left) {
            Wake::Cancelled => Err(self.cancelled()),
            // A peer that is always ready does not get more time than a silent one.
            Wake::Ready if left != Some(Duration::ZERO) => Ok(()),
            Wake::Ready | Wake::Timeout => Err(self.stalled(events)),
        }
    }

    pub(super) fn stalled(&self, events: PollFlags) -> Error {
        if self.cancel.is_set() {
            return self.cancelled();
        }
        let what = if events.contains(PollFlags::IN) { "the peer does not send" } else { "the peer does not read" };
        self.uri.error(ErrorKind::Timeout, what)
    }

    /// The peer of a socket sends no more.
    pub(super) fn is_left(&self) -> bool {
        let mut fds = [PollFd::new(&*self.fd, PollFlags::RDHUP)];
        // A poll that fails says nothing; whoever reads finds out.
        matches!(poll(&mut fds, Some(&Timespec::default())), Ok(1..))
    }

    /// The peer of a socket reads the end behind the last word. Anything else has no way to say so.
    pub(super) fn end(&self, how: rustix::net::Shutdown) {
        if self.kind == Kind::Socket {
            self.close_tls();
            // One that is not connected any more has ended already.
            let _ = rustix::net::shutdown(&*self.fd, how);
        }
    }

    /// What a failed call means; a cancelled one means nothing else.
    pub fn failed(&self, doing: &str, errno: Errno) -> Error {
        if self.cancel.is_set() {
            return self.cancelled();
        }
        let kind = match errno {
            Errno::PIPE | Errno::CONNRESET | Errno::CONNABORTED => {
                return self.uri.error(ErrorKind::Closed, format!("the peer closed the channel ({})", reason(errno)));
            }
            Errno::TIMEDOUT | Errno::HOSTUNREACH | Errno::NETUNREACH => ErrorKind::Timeout,
            _ => ErrorKind::Io,
        };
        let remedy = match errno {
            Errno::NOSPC | Errno::DQUOT => "; free some and try again",
            Errno::FBIG => "; raise the limit (ulimit -f) or choose another file system",
            _ => "",
        };
        self.uri.error(kind, format!("{doing}: {}{remedy}", reason(errno)))
    }
}

impl From<Errno> for Broken {
    fn from(errno: Errno) -> Self {
        Self::System(errno)
    }
}

impl Link {
    /// What a failure means; after a cancel nothing else.
    pub(super) fn broken(&self, doing: &str, broken: Broken) -> Error {
        match broken {
            Broken::System(errno) => {
                let mut error = self.failed(doing, errno);
                if error.kind == ErrorKind::Closed
                    && let Some(hint) = self.tls.as_ref().and_then(Session::hint)
                {
                    error.message += &hint;
                }
                error
            }
            Broken::Tls(_) if self.cancel.is_set() => self.cancelled(),
            Broken::Tls(error) => error,
        }
    }

    /// The peer is told that this was all: it could not tell it from a connection that somebody cut.
    pub(super) fn close_tls(&self) {
        if let Some(tls) = &self.tls {
            tls.close(self.fd.as_fd());
        }
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.close_tls();
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn failures_have_their_kind_and_remedy() {
        let (_reader, writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
        let cancel = Cancel::new().unwrap();
        let link = Link::new(writer, Kind::File, &Uri::parse("file:/f").unwrap(), &cancel);
        for (errno, kind, text) in [
            (Errno::CONNRESET, ErrorKind::Closed, "file:/f: the peer closed the channel (Connection reset by peer)"),
            (Errno::TIMEDOUT, ErrorKind::Timeout, "file:/f: writing: Connection timed out"),
            (Errno::NOSPC, ErrorKind::Io, "file:/f: writing: No space left on device; free some and try again"),
            (Errno::DQUOT, ErrorKind::Io, "file:/f: writing: Disk quota exceeded; free some and try again"),
            (Errno::FBIG, ErrorKind::Io, "file:/f: writing: File too large; raise the limit (ulimit -f) or choose another file system"),
            (Errno::IO, ErrorKind::Io, "file:/f: writing: Input/output error"),
        ] {
            let e = link.failed("writing", errno);
            assert_eq!((e.kind, e.message.as_str()), (kind, text));
        }
        cancel.set();
        assert_eq!(link.failed("writing", Errno::NOSPC).kind, ErrorKind::Cancelled);
    }
}
