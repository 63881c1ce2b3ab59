//! Byte transports behind one face: tcp, unix, fd, exec, file.
//!
//! [`connect`] opens the outgoing side, a [`Listener`] the incoming one; both give a [`Channel`] of one or two halves.
//! Every call that waits ends at once when its [`Cancel`] is set, with kind `cancelled`, and so does every later one; every
//! error names the URI and the cause. A channel carries bytes and knows nothing of the stream in them.
//!
//! | URI | outgoing | incoming | return path |
//! |---|---|---|---|
//! | `tcp:host:port` | connects | listens | yes |
//! | `unix:path` | connects | listens | yes |
//! | `fd:name` | a connected socket, or what can be written | a connected socket, or what can be read | sockets |
//! | `exec:command` | its standard input | its standard output | no |
//! | `file:path` | created 0600, cut off at the offset | read from the offset | no |
//!
//! With [`Tls`] all but files carry records of TLS instead, and a command's input and output are both ours, as a handshake needs.

mod cancel;
mod exec;
mod fd;
mod file;
mod gather;
mod half;
mod link;
mod listen;
mod positioned;
mod rate;
mod secured;
mod surplus;
mod tcp;
#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::cast_possible_truncation)]
mod tests;
pub mod tls;
mod unix;
mod uri;

use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;

use rustix::event::PollFlags;

pub use cancel::{Cancel, Closer, Registration, Wake};
pub use gather::{FIRST_BYTES, Look, Porter};
pub use half::{ReadHalf, WriteHalf};
pub use listen::Listener;
pub use positioned::Positioned;
pub use rate::{Clock, Monotonic, RateLimit, WINDOW};
pub use tls::Tls;
pub use uri::{Address, Inet, Uri};

use crate::{Error, ErrorKind, Result};

/// An open transport. Dropping both halves closes it.
#[derive(Debug)]
pub struct Channel {
    /// Bytes from the peer; none on a one-way outgoing channel.
    pub reader: Option<ReadHalf>,
    /// Bytes to the peer; none on a one-way incoming channel.
    pub writer: Option<WriteHalf>,
    uri: Uri,
}

impl Channel {
    /// What it was opened by.
    pub fn uri(&self) -> &Uri {
        &self.uri
    }

    /// Both directions are there, so a return path can be.
    pub fn two_way(&self) -> bool {
        self.reader.is_some() && self.writer.is_some()
    }

    /// The peer of a socket sends no more; what it has sent may still be unread.
    fn is_left(&self) -> bool {
        self.reader.as_ref().is_some_and(ReadHalf::is_left)
    }

    /// The halves, to go to different threads.
    pub fn split(self) -> (Option<ReadHalf>, Option<WriteHalf>) {
        (self.reader, self.writer)
    }
}

/// Opens the outgoing side of `uri`. `descriptor` belongs to `fd:` URIs and to no other.
///
/// Blocks for sockets until the peer accepts, refuses, or `cancel` is set. Raises `connect`, `bad-uri`, `timeout`, `cancelled`.
pub fn connect(uri: &Uri, descriptor: Option<OwnedFd>, cancel: &Cancel) -> Result<Channel> {
    connect_over(uri, descriptor, None, cancel)
}

/// The same over TLS, if there is any, with the handshake done. Raises `tls`, too.
pub fn connect_over(uri: &Uri, descriptor: Option<OwnedFd>, tls: Option<&Tls>, cancel: &Cancel) -> Result<Channel> {
    tls.map_or(Ok(()), |tls| tls.suits(uri, Direction::Outgoing))?;
    let opened = match (uri.address(), descriptor) {
        (Address::Tcp(inet), None) => Opened::socket(tcp::connect(uri, inet, cancel)?),
        (Address::Unix(path), None) => Opened::socket(unix::connect(uri, path, cancel)?),
        (address, descriptor) => Opened::once(uri, address, descriptor, Direction::Outgoing, tls.is_some())?,
    };
    opened.secured(uri, tls, cancel, Direction::Outgoing)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Direction {
    Outgoing,
    Incoming,
}

impl Direction {
    /// The kind of an opening that failed.
    fn kind(self) -> ErrorKind {
        match self {
            Self::Outgoing => ErrorKind::Connect,
            Self::Incoming => ErrorKind::Listen,
        }
    }
}

/// What was opened, before it has a switch.
#[derive(Debug)]
struct Opened {
    /// Before the descriptor: it is told to end before it sees the end of its input.
    command: Option<exec::Command>,
    fd: OwnedFd,
    created: Option<PathBuf>,
}

impl Opened {
    fn socket(fd: OwnedFd) -> Self {
        Self { command: None, fd, created: None }
    }

    /// Transports that need no listener: fd, exec, file.
    fn once(uri: &Uri, address: &Address, descriptor: Option<OwnedFd>, direction: Direction, secure: bool) -> Result<Self> {
        match (address, descriptor) {
            (Address::Fd(_), Some(fd)) => Ok(Self::socket(fd::check(uri, fd, direction)?)),
            (Address::Fd(name), None) => {
                Err(uri.error(ErrorKind::InvalidArgument, format!("no descriptor named {name:?}; pass it with getfd")))
            }
            (_, Some(_)) => Err(uri.error(ErrorKind::InvalidArgument, "only fd: takes a descriptor")),
            (Address::Exec(command), None) => {
                let side = match direction {
                    _ if secure => exec::Side::Both,
                    Direction::Outgoing => exec::Side::Input,
                    Direction::Incoming => exec::Side::Output,
                };
                let (command, fd) = exec::Command::start(uri, command, side, direction.kind())?;
                Ok(Self { command: Some(command), fd, created: None })
            }
            (Address::File { path, offset }, None) => {
                let fd = file::open(uri, path, *offset, direction)?;
                Ok(Self { command: None, fd, created: Some(path.clone()) })
            }
            (Address::Tcp(_) | Address::Unix(_), None) => unreachable!("sockets are connected or listened on"),
        }
    }

    /// Waits for the first byte, or the end.
    fn readable(&self, uri: &Uri, cancel: &Cancel) -> Result<()> {
        match cancel.poll(self.fd.as_fd(), PollFlags::IN, None) {
            Wake::Cancelled => Err(cancelled(uri)),
            Wake::Ready | Wake::Timeout => Ok(()),
        }
    }

    /// The channel, after the handshake if there is one to be done.
    fn secured(self, uri: &Uri, tls: Option<&Tls>, cancel: &Cancel, direction: Direction) -> Result<Channel> {
        let Some(tls) = tls else { return self.channel(uri, cancel, direction, None) };
        let socket = link::Kind::prepare(self.fd.as_fd()).map_err(|e| uri.error(direction.kind(), reason(e)))? == link::Kind::Socket;
        if !socket {
            return Err(uri.error(ErrorKind::InvalidArgument, "TLS talks both ways; pass a connected socket"));
        }
        let session = tls.secure(self.fd.as_fd(), uri, cancel)?;
        self.channel(uri, cancel, direction, Some(session))
    }

    fn channel(mut self, uri: &Uri, cancel: &Cancel, direction: Direction, tls: Option<tls::Session>) -> Result<Channel> {
        let kind = link::Kind::prepare(self.fd.as_fd()).map_err(|e| uri.error(direction.kind(), reason(e)))?;
        if let Some(command) = &mut self.command {
            command.ends_with(cancel);
        }
        let link = Arc::new(link::Link::new(self.fd, kind, uri, cancel).secured(tls));
        let two_way = kind == link::Kind::Socket;
        let (reader, writer) = match direction {
            Direction::Incoming => {
                let writer = two_way.then(|| WriteHalf::new(Arc::clone(&link), None, None));
                (Some(ReadHalf::new(link, self.command)), writer)
            }
            Direction::Outgoing => {
                let reader = two_way.then(|| ReadHalf::new(Arc::clone(&link), None));
                (reader, Some(WriteHalf::new(link, self.command, self.created.as_deref())))
            }
        };
        Ok(Channel { reader, writer, uri: uri.clone() })
    }
}

/// The system's words for an error, without its number.
fn reason(error: impl Into<std::io::Error>) -> String {
    let text = error.into().to_string();
    match text.split_once(" (os error ") {
        Some((words, _)) => words.to_owned(),
        None => text,
    }
}

fn cancelled(uri: &Uri) -> Error {
    uri.error(ErrorKind::Cancelled, "cancelled")
}
