//! Descriptors and vectors for the kernel: what channels and the monitor need beyond rustix's safe calls.
//!
//! An [`IoVec`] is an address and a length that only the kernel follows, so a page goes from guest memory to a socket
//! without a Rust reference to it ever existing.

use std::ffi::c_int;
use std::io::{IoSlice, IoSliceMut};
use std::marker::PhantomData;
use std::mem::{align_of, size_of};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use rustix::io::{Errno, Result};
use rustix::net::{SendAncillaryBuffer, SendFlags};

use super::guest::GuestRange;

/// Most vectors that one system call takes (`UIO_MAXIOV`).
pub const MAX_IOV: usize = 1024;

/// Bytes that the kernel is to read, in our memory or the guest's.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct IoVec<'a> {
    base: *const u8,
    len: usize,
    memory: PhantomData<&'a ()>,
}

// Both are `struct iovec`: std promises it for IoSlice.
const _: () = assert!(size_of::<IoVec<'_>>() == size_of::<IoSlice<'_>>() && align_of::<IoVec<'_>>() == align_of::<IoSlice<'_>>());

// SAFETY: an address and a length; only the kernel reads there, and it may do so for any thread.
unsafe impl Send for IoVec<'_> {}
// SAFETY: as above.
unsafe impl Sync for IoVec<'_> {}

impl<'a> IoVec<'a> {
    /// Over ordinary memory.
    pub fn from_slice(bytes: &'a [u8]) -> Self {
        Self { base: bytes.as_ptr(), len: bytes.len(), memory: PhantomData }
    }

    /// Over guest memory, without a reference to it: what the guest writes meanwhile is sent as it is found.
    pub fn from_guest(range: GuestRange<'a>) -> Self {
        Self { base: range.as_ptr(), len: range.len(), memory: PhantomData }
    }

    /// Length in bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// No bytes at all.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The same without its first `count` bytes. Panics if it has fewer.
    #[must_use]
    pub fn after(&self, count: usize) -> Self {
        assert!(count <= self.len, "{count} bytes of a vector of {}", self.len);
        Self { base: self.base.wrapping_add(count), len: self.len - count, memory: PhantomData }
    }

    /// Copies its first bytes. Panics if it has fewer.
    pub fn copy_to(&self, into: &mut [u8]) {
        assert!(into.len() <= self.len, "{} bytes of a vector of {}", into.len(), self.len);
        // SAFETY: readable for its length by whoever made it; `into` is ours and no guest memory. What a guest tears is found dirty.
        unsafe { std::ptr::copy_nonoverlapping(self.base, into.as_mut_ptr(), into.len()) }
    }

    fn slices<'s>(vectors: &'s [IoVec<'a>]) -> &'s [IoSlice<'a>] {
        // SAFETY: same layout (asserted above), same lifetimes; the callers below hand it to the kernel and never dereference it.
        unsafe { std::slice::from_raw_parts(vectors.as_ptr().cast(), vectors.len()) }
    }
}

/// Bytes that the kernel is to store, in our memory or the guest's.
#[repr(C)]
#[derive(Debug)]
pub struct IoVecMut<'a> {
    base: *mut u8,
    len: usize,
    memory: PhantomData<&'a mut ()>,
}

// Both are `struct iovec`: std promises it for IoSliceMut.
const _: () =
    assert!(size_of::<IoVecMut<'_>>() == size_of::<IoSliceMut<'_>>() && align_of::<IoVecMut<'_>>() == align_of::<IoSliceMut<'_>>());

impl<'a> IoVecMut<'a> {
    /// Over ordinary memory.
    pub fn from_slice(bytes: &'a mut [u8]) -> Self {
        Self { base: bytes.as_mut_ptr(), len: bytes.len(), memory: PhantomData }
    }

    /// Over guest memory, without a reference to it.
    pub fn from_guest(range: GuestRange<'a>) -> Self {
        Self { base: range.as_ptr().cast_mut(), len: range.len(), memory: PhantomData }
    }

    /// Length in bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// No bytes at all.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Drops the first `count` bytes. Panics if it has fewer.
    pub fn advance(&mut self, count: usize) {
        assert!(count <= self.len, "{count} bytes of a vector of {}", self.len);
        self.base = self.base.wrapping_add(count);
        self.len -= count;
    }

    /// Copies to its beginning. Panics if it has less room.
    pub fn fill(&mut self, from: &[u8]) {
        assert!(from.len() <= self.len, "{} bytes for a vector of {}", from.len(), self.len);
        // SAFETY: writable for its length by whoever made it; `from` is ours and no guest memory.
        unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), self.base, from.len()) }
    }

    fn slices<'s>(vectors: &'s mut [IoVecMut<'a>]) -> &'s mut [IoSliceMut<'a>] {
        // SAFETY: same layout (asserted above), same lifetimes; the callers below hand it to the kernel and never dereference it.
        unsafe { std::slice::from_raw_parts_mut(vectors.as_mut_ptr().cast(), vectors.len()) }
    }
}

/// Reads what is there into at most [`MAX_IOV`] vectors, one behind the other; returns the bytes stored, 0 at the end.
///
/// See <https://man7.org/linux/man-pages/man2/readv.2.html>
pub fn read(fd: BorrowedFd<'_>, vectors: &mut [IoVecMut<'_>]) -> Result<usize> {
    rustix::io::readv(fd, IoVecMut::slices(vectors))
}

/// Sends from at most [`MAX_IOV`] vectors to a connected socket; returns the bytes taken. A gone peer is `EPIPE`, never a signal;
/// a full socket is `EAGAIN` if it must not `wait`.
///
/// See <https://man7.org/linux/man-pages/man2/sendmsg.2.html>
pub fn send(socket: BorrowedFd<'_>, vectors: &[IoVec<'_>], wait: bool) -> Result<usize> {
    let flags = if wait { SendFlags::NOSIGNAL } else { SendFlags::NOSIGNAL | SendFlags::DONTWAIT };
    rustix::net::sendmsg(socket, IoVec::slices(vectors), &mut SendAncillaryBuffer::default(), flags)
}

/// Writes from at most [`MAX_IOV`] vectors; returns the bytes taken. For what is no socket.
///
/// See <https://man7.org/linux/man-pages/man2/writev.2.html>
pub fn write(fd: BorrowedFd<'_>, vectors: &[IoVec<'_>]) -> Result<usize> {
    rustix::io::writev(fd, IoVec::slices(vectors))
}

/// Writes from at most [`MAX_IOV`] vectors at byte `at` of a file, whose own position stays; returns the bytes taken.
///
/// See <https://man7.org/linux/man-pages/man2/pwritev.2.html>
pub fn write_at(file: BorrowedFd<'_>, vectors: &[IoVec<'_>], at: u64) -> Result<usize> {
    rustix::io::pwritev(file, IoVec::slices(vectors), at)
}

/// Reads into guest memory from byte `at` of a file, whose own position stays; returns the bytes that came, 0 at the end.
///
/// See <https://man7.org/linux/man-pages/man2/pread.2.html>
pub fn read_guest_at(file: BorrowedFd<'_>, into: GuestRange<'_>, at: u64) -> Result<usize> {
    let at = i64::try_from(at).map_err(|_| Errno::OVERFLOW)?;
    // SAFETY: the range is mapped writable for as long as it is borrowed, and only the kernel writes there; no reference exists.
    let got = unsafe { libc::pread(file.as_raw_fd(), into.as_ptr().cast_mut().cast(), into.len(), at) };
    usize::try_from(got).map_err(|_| Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO))
}

/// Bytes that were put into a socket and that the peer's kernel has not taken yet (TCP: not acknowledged).
///
/// See <https://man7.org/linux/man-pages/man7/tcp.7.html> (`SIOCOUTQ`)
pub fn socket_unsent(socket: BorrowedFd<'_>) -> Result<u64> {
    const SIOCOUTQ: rustix::ioctl::Opcode = 0x5411;
    // SAFETY: SIOCOUTQ writes one int; on a descriptor that is no socket it is TIOCOUTQ, which writes one int or fails.
    let unsent = unsafe { rustix::ioctl::ioctl(socket, rustix::ioctl::Getter::<SIOCOUTQ, c_int>::new()) }?;
    Ok(u64::try_from(unsent).unwrap_or(0))
}

/// A TCP socket reports room, and takes bytes, only while it holds fewer than `bytes` that were not sent. Other sockets refuse.
///
/// See <https://man7.org/linux/man-pages/man7/tcp.7.html>, `TCP_NOTSENT_LOWAT` in linux/tcp.h
pub fn set_unsent_low_water(socket: BorrowedFd<'_>, bytes: u32) -> Result<()> {
    const SIZE: libc::socklen_t = 4;
    // SAFETY: the option reads four bytes, which live for the call.
    let done = unsafe { libc::setsockopt(socket.as_raw_fd(), libc::IPPROTO_TCP, libc::TCP_NOTSENT_LOWAT, (&raw const bytes).cast(), SIZE) };
    if done == 0 { Ok(()) } else { Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::INVAL)) }
}

/// Takes over a descriptor by its number and makes it close-on-exec. The caller gives up the number: nobody else may close it.
///
/// Raises `EBADF` for a number that is not open.
pub fn adopt(number: RawFd) -> Result<OwnedFd> {
    if number < 0 {
        return Err(Errno::BADF);
    }
    // SAFETY: the borrow lasts for one fcntl, which answers EBADF for a number that is not open.
    let borrowed = unsafe { BorrowedFd::borrow_raw(number) };
    let flags = rustix::io::fcntl_getfd(borrowed)?;
    rustix::io::fcntl_setfd(borrowed.as_fd(), flags | rustix::io::FdFlags::CLOEXEC)?;
    // SAFETY: it is open, and by this function's contract it is the caller's to give.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::os::fd::IntoRawFd;

    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

    use super::*;

    fn pair() -> (OwnedFd, OwnedFd) {
        socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None).unwrap()
    }

    #[test]
    fn vectors_arrive_in_order() {
        let (ours, theirs) = pair();
        let bytes = b"hello";
        let vectors = [IoVec::from_slice(&bytes[..2]), IoVec::from_slice(bytes).after(2), IoVec::from_slice(b"")];
        assert_eq!(send(ours.as_fd(), &vectors, true).unwrap(), 5);
        assert_eq!(write(ours.as_fd(), &vectors).unwrap(), 5);
        let mut got = [0; 16];
        assert_eq!(rustix::io::read(&theirs, &mut got).unwrap(), 10);
        assert_eq!(&got[..10], b"hellohello");
    }

    #[test]
    fn guest_memory_is_sent_from_where_it_is() {
        let (ours, theirs) = pair();
        let mut ram = vec![7; 64];
        let base = std::ptr::NonNull::new(ram.as_mut_ptr()).unwrap();
        // SAFETY: the vector outlives the view and is not touched meanwhile.
        let memory = unsafe { crate::sys::guest::GuestMem::new(base, 64) };
        let vector = IoVec::from_guest(memory.range(8, 16));
        assert_eq!((vector.len(), vector.base), (16, base.as_ptr().wrapping_add(8).cast_const()));
        assert_eq!(send(ours.as_fd(), &[vector], true).unwrap(), 16);
        let mut got = [0; 64];
        assert_eq!(rustix::io::read(&theirs, &mut got).unwrap(), 16);
        assert_eq!(got[..16], [7; 16]);
    }

    #[test]
    fn guest_memory_is_filled_where_it_is() {
        let (ours, theirs) = pair();
        let mut ram = vec![7; 64];
        let base = std::ptr::NonNull::new(ram.as_mut_ptr()).unwrap();
        // SAFETY: the view ends before the vector is looked at again.
        let memory = unsafe { crate::sys::guest::GuestMem::new(base, 64) };
        let mut behind = [0; 4];
        send(ours.as_fd(), &[IoVec::from_slice(b"abcdefgh")], true).unwrap();
        let (mut first, mut last) = (IoVecMut::from_guest(memory.range(8, 3)), IoVecMut::from_slice(&mut behind));
        first.advance(1);
        last.advance(0);
        let mut vectors = [first, IoVecMut::from_guest(memory.range(32, 4)), last];
        assert_eq!(vectors.each_ref().map(IoVecMut::len), [2, 4, 4]);
        assert!(!vectors[0].is_empty());
        assert_eq!(read(theirs.as_fd(), &mut vectors).unwrap(), 8);
        assert_eq!((&ram[7..12], &ram[31..37], &behind), (&b"\x07\x07ab\x07"[..], &b"\x07cdef\x07"[..], b"gh\0\0"));
        drop(ours);
        assert_eq!(read(theirs.as_fd(), &mut [IoVecMut::from_slice(&mut behind)]).unwrap(), 0);
    }

    #[test]
    fn a_gone_peer_is_an_error_and_no_signal() {
        let (ours, theirs) = pair();
        drop(theirs);
        assert_eq!(send(ours.as_fd(), &[IoVec::from_slice(b"x")], true), Err(Errno::PIPE));
    }

    #[test]
    fn unsent_bytes_are_counted() {
        let (ours, theirs) = pair();
        assert_eq!(socket_unsent(ours.as_fd()), Ok(0));
        send(ours.as_fd(), &[IoVec::from_slice(&[0; 100])], true).unwrap();
        assert!(socket_unsent(ours.as_fd()).unwrap() >= 100);
        rustix::io::read(&theirs, &mut [0; 100]).unwrap();
        assert_eq!(socket_unsent(ours.as_fd()), Ok(0));
    }

    #[test]
    fn only_open_numbers_are_adopted() {
        assert_eq!(adopt(-1).unwrap_err(), Errno::BADF);
        assert_eq!(adopt(1_000_000).unwrap_err(), Errno::BADF);
        let (ours, theirs) = pair();
        rustix::io::fcntl_setfd(&ours, rustix::io::FdFlags::empty()).unwrap();
        let adopted = adopt(ours.into_raw_fd()).unwrap();
        assert!(rustix::io::fcntl_getfd(&adopted).unwrap().contains(rustix::io::FdFlags::CLOEXEC));
        send(adopted.as_fd(), &[IoVec::from_slice(b"x")], true).unwrap();
        assert_eq!(rustix::io::read(&theirs, &mut [0; 4]).unwrap(), 1);
    }
}
