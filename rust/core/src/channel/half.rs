//! The two halves of an open channel: blocking reads and writes that a [`Cancel`] ends at once.
//!
//! Sockets stay blocking, because one call then moves megabytes; what ends such a call is `shutdown(2)` by the registered
//! closer. Pipes and the like are non-blocking and polled together with the switch. Files never block for long.

use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::PollFlags;
use rustix::io::Errno;
use rustix::net::sockopt;

use super::cancel::Wake;
use super::exec::Command;
use super::link::{Kind, Link};
use super::tls::Broken;
use super::{Cancel, secured};
use crate::sys::io::{self, IoVec, IoVecMut};
use crate::wire::ByteSource;
use crate::{Error, ErrorKind, Result};

/// How soon a pipe that had bytes in it is looked at again; up to 16 times that later on.
const DRAIN_PAUSE: Duration = Duration::from_millis(1);

/// The same for bytes on their way through a socket, with the machine stopped; up to `DRAIN_PAUSE` later on.
const ARRIVE_PAUSE: Duration = Duration::from_micros(50);

/// The receiving half.
#[derive(Debug)]
pub struct ReadHalf {
    /// Before the link: it is ended before its pipe closes.
    command: Option<Command>,
    pub(super) link: Option<Arc<Link>>,
    pub(super) deadline: Option<Instant>,
    pub(super) alarm: Option<Cancel>,
    /// What was decrypted, on its way into several places.
    pub(super) plain: Vec<u8>,
}

impl ReadHalf {
    pub(super) fn new(link: Arc<Link>, command: Option<Command>) -> Self {
        Self { command, link: Some(link), deadline: None, alarm: None, plain: Vec::new() }
    }

    /// From here on `alarm` ends reading from a socket as `cancelled`, too. Writing to it goes on: there may be a last word.
    pub fn set_alarm(&mut self, alarm: &Cancel) {
        self.alarm = Some(alarm.clone());
    }

    /// From here on a read that has to wait longer fails as `timeout`: for what the peer may, but need not, say.
    pub fn set_deadline(&mut self, deadline: Instant) {
        self.deadline = Some(deadline);
    }

    /// From here on a read waits for as long as it takes.
    pub fn clear_deadline(&mut self) {
        self.deadline = None;
    }

    /// Acknowledges what was read now instead of a little later: a peer with small messages may not send the next before.
    pub fn acknowledge(&self) {
        if let Some(link) = self.link.as_ref().filter(|link| link.kind == Kind::Socket) {
            let _ = sockopt::set_tcp_quickack(&*link.fd, true); // for TCP only
        }
    }

    /// Bounds what the kernel keeps of bytes that nobody has read: a page that is waited for stands behind them.
    pub fn bound(&self, bytes: usize) {
        if let Some(link) = self.link.as_ref().filter(|link| link.kind == Kind::Socket) {
            // A socket that refuses is slower, not wrong.
            let _ = sockopt::set_socket_recv_buffer_size(&*link.fd, bytes);
        }
    }

    /// Reads and drops what still comes, until the peer ends or the deadline is over. Who closes a socket over unread bytes resets it,
    /// and the peer may lose the last word.
    pub fn drain(&mut self) {
        let mut dropped = [0; 1 << 14];
        self.alarm = None;
        while self.read(&mut dropped).is_ok_and(|got| got > 0) {}
    }

    /// The peer of this socket sends no more.
    pub(super) fn is_left(&self) -> bool {
        self.link.as_ref().is_some_and(|link| link.is_left())
    }

    /// Ends everything that moves bytes on this socket, also in other threads: for who reads that writing is of no use any more.
    pub fn cutter(&self) -> impl FnOnce() + Send + use<> {
        let socket = self.link.as_ref().filter(|link| link.kind == Kind::Socket).map(|link| Arc::clone(&link.fd));
        move || {
            if let Some(socket) = socket {
                let _ = rustix::net::shutdown(&*socket, rustix::net::Shutdown::Both);
            }
        }
    }

    /// One read into `buf`: what is there, waiting only if there is nothing; 0 at the end.
    ///
    /// The end of a command's output is an error if the command failed.
    pub fn read(&mut self, buf: &mut [u8]) -> Result<usize> {
        self.read_by(buf.is_empty(), |link| match &link.tls {
            Some(tls) => secured::read(link, tls, buf),
            None => Ok(rustix::io::read(&*link.fd, &mut *buf)?),
        })
    }

    /// The same into at most `MAX_IOV` places, one behind the other and not all empty.
    pub fn read_iov(&mut self, vectors: &mut [IoVecMut<'_>]) -> Result<usize> {
        if self.is_secured() {
            return self.scatter(vectors);
        }
        self.read_by(false, |link| Ok(io::read(link.fd.as_fd(), &mut *vectors)?))
    }

    fn read_by(&mut self, nothing: bool, mut read: impl FnMut(&Link) -> Result<usize, Broken>) -> Result<usize> {
        let Some(link) = &self.link else { return Ok(0) };
        loop {
            link.check()?;
            if link.tls.is_some() {
                // What is decrypted already makes no descriptor ready.
                self.in_time(link)?;
            } else if let Some(alarm) = &self.alarm {
                // A socket's read would not come back.
                link.wait_unless(alarm, PollFlags::IN, self.deadline)?;
            } else if self.deadline.is_some() {
                link.wait(PollFlags::IN, self.deadline)?;
            }
            match read(link) {
                Ok(0) if !nothing => break,
                Ok(got) => return Ok(got),
                Err(Broken::System(Errno::INTR)) => {}
                Err(Broken::System(Errno::AGAIN)) => {
                    let alarm = self.alarm.as_ref().filter(|_| link.tls.is_some());
                    link.wait_unless(alarm.unwrap_or(&link.cancel), PollFlags::IN, self.deadline)?;
                }
                Err(broken) => return Err(link.broken("reading", broken)),
            }
        }
        link.check()?;
        if let Some(command) = &mut self.command {
            command.succeeded(&link.cancel, false, self.deadline)?;
        }
        Ok(0)
    }

    /// Everything that was wanted has been read: lets a command end, until the deadline if there is one, and takes its status (dying of a closed
    /// pipe is no failure here). Anything else has nothing to say. Reads return 0 afterwards for a command.
    pub fn finish(&mut self) -> Result<()> {
        let Some(command) = &mut self.command else { return Ok(()) };
        let Some(link) = self.link.take() else { return Ok(()) };
        let cancel = link.cancel.clone();
        link.end(rustix::net::Shutdown::Both);
        drop(link); // closes the pipe: a command that still writes must not wait for us
        command.succeeded(&cancel, true, self.deadline)
    }
}

impl ByteSource for ReadHalf {
    fn read(&mut self, buf: &mut [u8]) -> Result<usize> {
        Self::read(self, buf)
    }

    fn skip(&mut self, n: u64) -> Result<u64> {
        self.pass(n)
    }
}

/// The sending half.
#[derive(Debug)]
pub struct WriteHalf {
    /// Before the link: a command that gets half a stream is ended before it could take that for the whole.
    command: Option<Command>,
    pub(super) link: Option<Arc<Link>>,
    /// The file whose name must be on disk when `finish` returns.
    created: Option<Box<Path>>,
    deadline: Option<Instant>,
    /// What is to be encrypted next.
    plain: Vec<u8>,
}

impl WriteHalf {
    pub(super) fn new(link: Arc<Link>, command: Option<Command>, created: Option<&Path>) -> Self {
        Self { command, link: Some(link), created: created.map(Into::into), deadline: None, plain: Vec::new() }
    }

    /// From here on a write that has to wait longer fails as `timeout`: for a time in which nothing can be cancelled.
    pub fn set_deadline(&mut self, deadline: Instant) {
        self.deadline = Some(deadline);
    }

    /// From here on a write of which the peer takes nothing for so long fails as `timeout`. Sockets only; others wait for as long as it takes.
    pub fn set_patience(&self, patience: Duration) {
        if let Some(link) = self.link.as_ref().filter(|link| link.kind == Kind::Socket) {
            // A socket that refuses waits for the end of the session.
            let _ = sockopt::set_socket_timeout(&*link.fd, sockopt::Timeout::Send, Some(patience));
        }
    }

    /// Bounds what the kernel keeps of bytes that were not even sent (`unsent`), and with those on their way (`whole`), so that what is
    /// written next is there soon. Sockets that do not know the difference get the first for both; anything else is left alone.
    pub fn bound(&self, unsent: u32, whole: usize) {
        if let Some(link) = self.link.as_ref().filter(|link| link.kind == Kind::Socket) {
            let knows = io::set_unsent_low_water(link.fd.as_fd(), unsent).is_ok();
            // A socket that refuses is slower, not wrong.
            let _ = sockopt::set_socket_send_buffer_size(&*link.fd, if knows { whole } else { unsent as usize });
        }
    }

    /// Bounds what the kernel keeps of bytes that were not even sent, where it knows the difference; what is on its way is not bounded.
    pub fn bound_unsent(&self, unsent: u32) {
        if let Some(link) = self.link.as_ref().filter(|link| link.kind == Kind::Socket) {
            let _ = io::set_unsent_low_water(link.fd.as_fd(), unsent);
        }
    }

    /// What is written goes through the records of TLS.
    pub fn is_secured(&self) -> bool {
        self.link.as_ref().is_some_and(|link| link.tls.is_some())
    }

    /// Waits until something can be written: who decides only then what it is, can still decide for what is urgent.
    pub fn room(&self) -> Result<()> {
        match &self.link {
            Some(link) if link.kind == Kind::Socket => link.wait(PollFlags::OUT, self.deadline),
            _ => Ok(()),
        }
    }

    /// The peer is on this machine.
    pub fn is_local(&self) -> bool {
        self.link.as_ref().is_some_and(|link| super::tcp::is_local(&link.fd))
    }

    /// Writes all of `bytes`.
    pub fn write_all(&mut self, bytes: &[u8]) -> Result<()> {
        self.write_iov(&[IoVec::from_slice(bytes)])
    }

    /// Writes all of `vectors`, any number of them, straight from where they point.
    pub fn write_iov(&mut self, vectors: &[IoVec<'_>]) -> Result<()> {
        let Some(link) = &self.link else {
            return Err(Error::new(ErrorKind::InvalidState, "writing to a channel that was finished"));
        };
        let written = match &link.tls {
            Some(tls) => secured::write(link, tls, &mut self.plain, vectors, self.deadline),
            None => write_iov(link, vectors, self.deadline),
        };
        match written {
            // A broken pipe only says that the command has gone; its status says why.
            Err(e) if e.kind == ErrorKind::Closed => match &mut self.command {
                Some(command) => Err(command.gone_early(&link.cancel)),
                None => Err(e),
            },
            done => done,
        }
    }

    /// Bytes written that the other side's kernel has not taken (socket) or that nobody has read yet (pipe); 0 for files.
    pub fn pending_unsent(&self) -> u64 {
        let Some(link) = &self.link else { return 0 };
        match link.kind {
            Kind::Socket => io::socket_unsent(link.fd.as_fd()).unwrap_or(0),
            Kind::Pipe => rustix::io::ioctl_fionread(&*link.fd).unwrap_or(0),
            Kind::File => 0,
        }
    }

    /// Waits until the other side's kernel has everything that was written to a socket (on this machine: until the peer has read it).
    /// Fails if the connection breaks, or does not get on by `deadline`.
    pub fn arrived(&self, deadline: Instant) -> Result<()> {
        let Some(link) = self.link.as_ref().filter(|link| link.kind == Kind::Socket) else { return Ok(()) };
        let mut pause = ARRIVE_PAUSE;
        loop {
            let arrived = self.pending_unsent() == 0;
            // No event tells of it; only a broken connection makes it ready, and one that has gone keeps nothing.
            match link.cancel.poll(link.fd.as_fd(), PollFlags::empty(), Some(if arrived { Duration::ZERO } else { pause })) {
                Wake::Cancelled => return Err(link.cancelled()),
                Wake::Ready => return Err(link.failed("writing", Errno::PIPE)),
                Wake::Timeout if arrived => return Ok(()),
                Wake::Timeout if Instant::now() >= deadline => {
                    return Err(link.uri.error(ErrorKind::Timeout, "the peer does not take what was sent"));
                }
                Wake::Timeout => pause = (2 * pause).min(DRAIN_PAUSE),
            }
        }
    }

    /// Waits until the reader of a pipe has taken everything that was written: before that its being there says nothing. Fails if it
    /// has gone, or does not get on by `deadline`. Anything but a pipe is not waited for.
    pub fn drained(&mut self, deadline: Instant) -> Result<()> {
        let Some(link) = &self.link else { return Ok(()) };
        if link.kind != Kind::Pipe || rustix::pipe::fcntl_getpipe_size(&*link.fd).is_err() {
            return Ok(());
        }
        let mut pause = Duration::ZERO;
        loop {
            // No event tells of an empty pipe; only a reader that has gone makes it ready.
            match link.cancel.poll(link.fd.as_fd(), PollFlags::empty(), Some(pause)) {
                Wake::Cancelled => return Err(link.cancelled()),
                Wake::Ready => {
                    return Err(match &mut self.command {
                        Some(command) => command.gone_early(&link.cancel),
                        None => link.failed("writing", Errno::PIPE),
                    });
                }
                Wake::Timeout if self.pending_unsent() == 0 => return Ok(()),
                Wake::Timeout if Instant::now() >= deadline => {
                    return Err(link.uri.error(ErrorKind::Timeout, "the peer does not read"));
                }
                Wake::Timeout => pause = (2 * pause).clamp(DRAIN_PAUSE, 16 * DRAIN_PAUSE),
            }
        }
    }

    /// Nothing more will be written: the peer of a socket reads its end behind the last word. Anything else has no way to say so.
    pub fn end(&self) {
        if let Some(link) = &self.link {
            link.end(rustix::net::Shutdown::Write);
        }
    }

    /// Everything was written. A command gets its end of input and must end with status 0; a file is on disk when this returns (an
    /// `fsync` cannot be cancelled); sockets and pipes have nothing to do. Only a command refuses writes afterwards.
    pub fn finish(&mut self) -> Result<()> {
        let Some(link) = &self.link else { return Ok(()) };
        link.check()?;
        if let Some(command) = &mut self.command {
            let cancel = link.cancel.clone();
            link.end(rustix::net::Shutdown::Write);
            self.link = None; // the last handle of a pipe: closes it
            return command.succeeded(&cancel, false, self.deadline);
        }
        if link.kind == Kind::File {
            rustix::fs::fsync(&*link.fd).map_err(|e| link.failed("writing to disk", e))?;
            if let Some(path) = &self.created {
                sync_directory(path);
            }
        }
        Ok(())
    }
}

fn write_iov(link: &Link, mut vectors: &[IoVec<'_>], deadline: Option<Instant>) -> Result<()> {
    while !vectors.is_empty() {
        let batch = &vectors[..vectors.len().min(io::MAX_IOV)];
        let mut taken = write_some(link, batch, deadline)?;
        let whole = batch
            .iter()
            .take_while(|v| {
                v.len() <= taken && {
                    taken -= v.len();
                    true
                }
            })
            .count();
        vectors = &vectors[whole..];
        if taken > 0 {
            // It stopped inside a vector: the rest of that alone, then on.
            let mut rest = vectors[0].after(taken);
            while !rest.is_empty() {
                rest = rest.after(write_some(link, std::slice::from_ref(&rest), deadline)?);
            }
            vectors = &vectors[1..];
        }
    }
    Ok(())
}

/// One write of at most `MAX_IOV` vectors, waiting until there is room.
fn write_some(link: &Link, vectors: &[IoVec<'_>], deadline: Option<Instant>) -> Result<usize> {
    loop {
        link.check()?;
        let written = match link.kind {
            Kind::Socket => io::send(link.fd.as_fd(), vectors, deadline.is_none()),
            Kind::Pipe | Kind::File => io::write(link.fd.as_fd(), vectors),
        };
        match written {
            // a device that takes nothing and says nothing would keep us for ever
            Ok(0) if vectors.iter().any(|v| !v.is_empty()) => return Err(link.failed("writing", Errno::IO)),
            Ok(taken) => return Ok(taken),
            Err(Errno::INTR) => {}
            // It waited in the call, and its patience has ended.
            Err(Errno::AGAIN) if link.kind == Kind::Socket && deadline.is_none() => return Err(link.stalled(PollFlags::OUT)),
            Err(Errno::AGAIN) => link.wait(PollFlags::OUT, deadline)?,
            Err(errno) => return Err(link.failed("writing", errno)),
        }
    }
}

/// Makes a new name durable. Not every file system can; the bytes themselves are safe by then.
fn sync_directory(path: &Path) {
    let parent = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if let Ok(directory) = std::fs::File::open(parent) {
        let _ = directory.sync_all();
    }
}
