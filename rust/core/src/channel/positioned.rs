//! A file that is read and written at positions which every call names: pages have their places in it, whatever stands where.
//!
//! A channel to a regular file gives one beside its halves, and each thread may have another: an open of its own, with its own
//! read-ahead. None of them moves the position of the stream.

use std::os::fd::{AsFd, AsRawFd};
use std::path::PathBuf;
use std::sync::Arc;

use rustix::fs::{Mode, OFlags, SeekFrom};
use rustix::io::Errno;

use super::link::{Kind, Link};
use super::{ReadHalf, Uri, WriteHalf};
use crate::sys::guest::GuestRange;
use crate::sys::io::{self, IoVec};
use crate::{Error, ErrorKind, Result};

/// The largest position that the kernel takes.
const POSITION_MAX: u64 = u64::MAX >> 1;

/// An open file. Calls end, between two pieces, when its channel is cancelled.
#[derive(Debug)]
pub struct Positioned(Arc<Link>);

impl Positioned {
    fn over(link: &Arc<Link>) -> Result<Self> {
        let flags = rustix::fs::fcntl_getfl(&*link.fd).map_err(|e| link.failed("looking at its flags", e))?;
        if flags.contains(OFlags::APPEND) {
            let text = "the descriptor was opened for appending (O_APPEND), so pages cannot be given their places; open it without";
            return Err(link.uri.error(ErrorKind::InvalidArgument, text));
        }
        Ok(Self(Arc::clone(link)))
    }

    /// Another open of the same file, or the same one where opening it again is not allowed.
    pub fn another(&self) -> Result<Self> {
        let flags = rustix::fs::fcntl_getfl(&*self.0.fd).map_err(|e| self.0.failed("looking at its flags", e))? & OFlags::RWMODE;
        let path = PathBuf::from(format!("/proc/self/fd/{}", self.0.fd.as_raw_fd()));
        Ok(Self(match rustix::fs::open(path, flags | OFlags::CLOEXEC, Mode::empty()) {
            Ok(fd) => Arc::new(Link::new(fd, Kind::File, &self.0.uri, &self.0.cancel)),
            Err(_) => Arc::clone(&self.0),
        }))
    }

    /// What it was opened by.
    pub fn uri(&self) -> &Uri {
        &self.0.uri
    }

    /// Fills `into` from byte `at` on. `truncated` where the file ends before.
    pub fn read(&self, mut into: &mut [u8], mut at: u64) -> Result<()> {
        while !into.is_empty() {
            let got = self.call("reading", at, || rustix::io::pread(&*self.0.fd, &mut *into, at))?;
            into = &mut into[got..];
            at += self.some(got, at)?;
        }
        Ok(())
    }

    /// Fills guest memory from byte `at` on. `truncated` where the file ends before.
    pub fn read_guest(&self, mut into: GuestRange<'_>, mut at: u64) -> Result<()> {
        while !into.is_empty() {
            let got = self.call("reading", at, || io::read_guest_at(self.0.fd.as_fd(), into, at))?;
            into = into.part(got, into.len() - got);
            at += self.some(got, at)?;
        }
        Ok(())
    }

    /// Writes all of `from` from byte `at` on.
    pub fn write(&self, mut from: IoVec<'_>, mut at: u64) -> Result<()> {
        while !from.is_empty() {
            let taken = self.call("writing", at, || io::write_at(self.0.fd.as_fd(), &[from], at))?;
            if taken == 0 {
                return Err(self.0.failed("writing", Errno::IO));
            }
            from = from.after(taken);
            at += taken as u64;
        }
        Ok(())
    }

    fn call(&self, doing: &str, at: u64, act: impl FnMut() -> rustix::io::Result<usize>) -> Result<usize> {
        self.0.check()?;
        if at > POSITION_MAX {
            return Err(self.0.uri.error(ErrorKind::BadAddress, format!("there is no position {at:#x} in a file")));
        }
        rustix::io::retry_on_intr(act).map_err(|e| self.0.failed(doing, e))
    }

    fn some(&self, got: usize, at: u64) -> Result<u64> {
        if got > 0 { Ok(got as u64) } else { Err(self.0.uri.error(ErrorKind::Truncated, format!("the file ends before its byte {at:#x}"))) }
    }
}

impl Link {
    fn positioned(self: &Arc<Self>) -> Option<Result<Positioned>> {
        (self.kind == Kind::File).then(|| Positioned::over(self))
    }

    /// Where the stream goes on.
    fn position(&self) -> Result<u64> {
        rustix::fs::seek(&*self.fd, SeekFrom::Current(0)).map_err(|e| self.failed("looking for its position", e))
    }

    fn go(&self, to: u64) -> Result<()> {
        let failed = |e| self.failed("going to a position", e);
        if to > POSITION_MAX {
            Err(failed(Errno::OVERFLOW))
        } else {
            rustix::fs::seek(&*self.fd, SeekFrom::Start(to)).map(drop).map_err(failed)
        }
    }
}

impl ReadHalf {
    /// The file that is read, for what stands at fixed positions; none where this is no regular file and no block device.
    pub fn positioned(&self) -> Option<Result<Positioned>> {
        self.link.as_ref()?.positioned()
    }

    /// Position of the next byte in its file.
    pub fn position(&self) -> Result<u64> {
        self.link.as_ref().ok_or_else(over)?.position()
    }

    /// Passes over at most `n` bytes of a file; says how many. 0 for what is no file, and at the end.
    pub(super) fn pass(&self, n: u64) -> Result<u64> {
        let Some(link) = self.link.as_ref().filter(|link| link.kind == Kind::File) else { return Ok(0) };
        let here = link.position()?;
        let end = rustix::fs::seek(&*link.fd, SeekFrom::End(0)).map_err(|e| link.failed("looking for its end", e))?;
        let passed = n.min(end.saturating_sub(here));
        link.go(here + passed)?;
        Ok(passed)
    }
}

impl WriteHalf {
    /// The file that is written, for what has fixed positions; none where this is no regular file and no block device.
    pub fn positioned(&self) -> Option<Result<Positioned>> {
        self.link.as_ref()?.positioned()
    }

    /// What is written is a file: nobody reads it yet.
    pub fn is_file(&self) -> bool {
        self.link.as_ref().is_some_and(|link| link.kind == Kind::File)
    }

    /// Position of the next byte in its file.
    pub fn position(&self) -> Result<u64> {
        self.link.as_ref().ok_or_else(over)?.position()
    }

    /// The stream goes on at this position of its file.
    pub fn go(&self, to: u64) -> Result<()> {
        self.link.as_ref().ok_or_else(over)?.go(to)
    }
}

fn over() -> Error {
    Error::new(ErrorKind::InvalidState, "a channel that was finished has no position")
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::fs::OpenOptions;
    use std::os::fd::OwnedFd;

    use super::super::{Cancel, connect};
    use super::*;
    use crate::ram::Block;

    fn file() -> std::fs::File {
        let fd = rustix::fs::memfd_create("file", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        fd.into()
    }

    fn opened(fd: impl Into<OwnedFd>, cancel: &Cancel) -> WriteHalf {
        connect(&Uri::parse("fd:file").unwrap(), Some(fd.into()), cancel).unwrap().writer.unwrap()
    }

    #[test]
    fn pages_have_their_places_and_the_stream_its_own() {
        let (cancel, here) = (Cancel::new().unwrap(), file());
        let mut stream = opened(here.try_clone().unwrap(), &cancel);
        stream.write_all(b"head").unwrap();
        let pages = stream.positioned().unwrap().unwrap();
        let block = Block::anon("ram", 4096).unwrap();
        block.write(0, b"page").unwrap();
        pages.another().unwrap().write(IoVec::from_guest(block.range(0, 4).unwrap()), 100).unwrap();
        assert_eq!(stream.position().unwrap(), 4);
        stream.go(104).unwrap();
        stream.write_all(b"tail").unwrap();

        let mut got = [0; 8];
        pages.read(&mut got, 100).unwrap();
        assert_eq!(&got, b"pagetail");
        pages.another().unwrap().read_guest(block.range(8, 8).unwrap(), 100).unwrap();
        block.read(8, &mut got).unwrap();
        assert_eq!(&got, b"pagetail");
        for error in [pages.read(&mut got, 101).unwrap_err(), pages.read_guest(block.range(0, 8).unwrap(), 101).unwrap_err()] {
            assert_eq!((error.kind, error.message.as_str()), (ErrorKind::Truncated, "fd:file: the file ends before its byte 0x6c"));
        }
        assert_eq!(pages.read(&mut got, u64::MAX).unwrap_err().kind, ErrorKind::BadAddress);
        cancel.set();
        assert_eq!(pages.read(&mut got, 100).unwrap_err().kind, ErrorKind::Cancelled);
    }

    #[test]
    fn only_files_have_positions() {
        let cancel = Cancel::new().unwrap();
        let (_reader, writer) = std::io::pipe().unwrap();
        let pipe = opened(writer, &cancel);
        assert!(pipe.positioned().is_none() && !pipe.is_file());
        let path = std::env::temp_dir().join(format!("qmig-append-{}", std::process::id()));
        let append = OpenOptions::new().append(true).create(true).open(&path).unwrap();
        std::fs::remove_file(path).unwrap();
        let refused = opened(append, &cancel).positioned().unwrap().unwrap_err();
        assert!(refused.message.contains("O_APPEND"), "{refused}");
    }

    #[test]
    fn what_is_passed_over_is_there() {
        let (cancel, here) = (Cancel::new().unwrap(), file());
        opened(here.try_clone().unwrap(), &cancel).write_all(&[7; 100]).unwrap();
        let stream = opened(here.try_clone().unwrap(), &cancel);
        stream.go(10).unwrap();
        let channel = super::super::Listener::bind(&Uri::parse("fd:file").unwrap(), Some(here.into())).unwrap().accept(&cancel).unwrap();
        let reader = channel.reader.unwrap();
        assert_eq!(
            (reader.position().unwrap(), reader.pass(60).unwrap(), reader.pass(60).unwrap(), reader.pass(1).unwrap()),
            (10, 60, 30, 0)
        );
    }
}
