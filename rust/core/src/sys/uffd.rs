//! userfaultfd: opening it, registering memory, reading faults, and putting pages where threads wait for them.
//!
//! What the kernel answers to a page that is to be placed is decided in one function, [`Refusal::from_errno`]; everybody
//! else sees a count and a word. See `userfaultfd(2)`, `ioctl_userfaultfd(2)`, `Documentation/admin-guide/mm/userfaultfd.rst`.

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;

use std::mem::offset_of;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use linux_raw_sys::general as raw;
use rustix::io::Errno;
use rustix::ioctl::{Opcode, Updater, ioctl, opcode};
use rustix::mm::UserfaultfdFlags;

use super::guest::GuestRange;
use crate::{Error, ErrorKind, Result};

const TYPE: u8 = 0xaa;
const API: Opcode = opcode::read_write::<raw::uffdio_api>(TYPE, 0x3f);
const REGISTER: Opcode = opcode::read_write::<raw::uffdio_register>(TYPE, 0x00);
// These two are "read" to the kernel's macro, though the kernel reads what we write.
const UNREGISTER: Opcode = opcode::read::<raw::uffdio_range>(TYPE, 0x01);
const WAKE: Opcode = opcode::read::<raw::uffdio_range>(TYPE, 0x02);
const COPY: Opcode = opcode::read_write::<raw::uffdio_copy>(TYPE, 0x03);
const ZEROPAGE: Opcode = opcode::read_write::<raw::uffdio_zeropage>(TYPE, 0x04);
const WRITEPROTECT: Opcode = opcode::read_write::<raw::uffdio_writeprotect>(TYPE, 0x06);
const CONTINUE: Opcode = opcode::read_write::<raw::uffdio_continue>(TYPE, 0x07);
const POISON: Opcode = opcode::read_write::<raw::uffdio_poison>(TYPE, 0x08);
/// Of `/dev/userfaultfd`: a descriptor as by the system call.
const DEV_NEW: Opcode = opcode::none(TYPE, 0x00);

// Under Miri rustix goes through libc, whose numbers of this kind are wider.
#[cfg(not(miri))]
const _: () = {
    assert!(API == linux_raw_sys::ioctl::UFFDIO_API);
    assert!(REGISTER == linux_raw_sys::ioctl::UFFDIO_REGISTER);
    assert!(UNREGISTER == linux_raw_sys::ioctl::UFFDIO_UNREGISTER);
    assert!(WAKE == linux_raw_sys::ioctl::UFFDIO_WAKE);
    assert!(COPY == linux_raw_sys::ioctl::UFFDIO_COPY);
    assert!(ZEROPAGE == linux_raw_sys::ioctl::UFFDIO_ZEROPAGE);
    assert!(WRITEPROTECT == linux_raw_sys::ioctl::UFFDIO_WRITEPROTECT);
    assert!(CONTINUE == linux_raw_sys::ioctl::UFFDIO_CONTINUE);
    assert!(POISON == 0xc020_aa08);
    assert!(DEV_NEW == 0xaa00);
    assert!(size_of::<raw::uffdio_api>() == 24 && size_of::<raw::uffdio_register>() == 32);
    assert!(size_of::<raw::uffdio_range>() == 16 && size_of::<raw::uffdio_writeprotect>() == 24);
    assert!(size_of::<raw::uffdio_copy>() == 40 && offset_of!(raw::uffdio_copy, copy) == 32);
    assert!(size_of::<raw::uffdio_zeropage>() == 32 && offset_of!(raw::uffdio_zeropage, zeropage) == 24);
    assert!(size_of::<raw::uffdio_continue>() == 32 && offset_of!(raw::uffdio_continue, mapped) == 24);
    assert!(size_of::<raw::uffdio_poison>() == 32 && offset_of!(raw::uffdio_poison, updated) == 24);
    assert!(size_of::<raw::uffd_msg>() == MESSAGE && offset_of!(raw::uffd_msg, arg) == 8);
    assert!(offset_of!(raw::uffd_msg__bindgen_ty_1__bindgen_ty_1, address) == 8);
    assert!(offset_of!(raw::uffd_msg__bindgen_ty_1__bindgen_ty_1, feat) == 16);
};

/// Bytes of a `struct uffd_msg`.
const MESSAGE: usize = 32;

bitflags::bitflags! {
    /// What a descriptor can do (`UFFD_FEATURE_*`), as far as this crate cares.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct Features: u64 {
        /// Missing pages of hugetlbfs.
        const MISSING_HUGETLBFS = raw::UFFD_FEATURE_MISSING_HUGETLBFS as u64;
        /// Missing pages of shared memory.
        const MISSING_SHMEM = raw::UFFD_FEATURE_MISSING_SHMEM as u64;
        /// A fault says which thread it stopped.
        const THREAD_ID = raw::UFFD_FEATURE_THREAD_ID as u64;
        /// Pages of hugetlbfs that exist and are not mapped.
        const MINOR_HUGETLBFS = raw::UFFD_FEATURE_MINOR_HUGETLBFS as u64;
        /// Pages of shared memory that exist and are not mapped.
        const MINOR_SHMEM = raw::UFFD_FEATURE_MINOR_SHMEM as u64;
        /// A place can be marked so that touching it is an error.
        const POISON = raw::UFFD_FEATURE_POISON as u64;
        /// Write protection of hugetlbfs and shared memory.
        const WP_HUGETLBFS_SHMEM = raw::UFFD_FEATURE_WP_HUGETLBFS_SHMEM as u64;
        /// Write protection of pages that do not exist yet.
        const WP_UNPOPULATED = raw::UFFD_FEATURE_WP_UNPOPULATED as u64;
        /// The kernel lifts write protection by itself and remembers it.
        const WP_ASYNC = raw::UFFD_FEATURE_WP_ASYNC as u64;
        const _ = !0;
    }
}

bitflags::bitflags! {
    /// What is watched in a registered range.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct Modes: u64 {
        /// Access to pages that do not exist.
        const MISSING = raw::UFFDIO_REGISTER_MODE_MISSING as u64;
        /// Writes to protected pages.
        const WP = raw::UFFDIO_REGISTER_MODE_WP as u64;
        /// Access to pages that exist in the file and not in the page table.
        const MINOR = raw::UFFDIO_REGISTER_MODE_MINOR as u64;
    }
}

/// Whose faults a descriptor sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Faults {
    /// Also those that the kernel takes on our behalf (a `read` into guest memory); needs a permission.
    All,
    /// Those of user code only; open to every process. The kernel's own touch of a missing page fails with `EFAULT`.
    User,
    /// All of them where that is permitted, else those of user code; [`Uffd::faults`] says which it is.
    Best,
}

/// Why a page could not be placed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// A page is there already.
    Exists,
    /// The kernel stopped half-way, or the address space was being changed: go on from where it stopped.
    Again,
    /// The range is not registered any more, or its process is ending.
    Gone,
    /// No memory for the page: none free, the limit of a control group, a full tmpfs or huge-page pool.
    NoMemory,
    /// A mistake of ours.
    Other(Errno),
}

impl Refusal {
    /// The one place that says what an error of COPY, ZEROPAGE, CONTINUE and POISON means.
    ///
    /// `EAGAIN` comes with a count of what was done before it; `ENOSPC` is a full file system in memory (that a process ended is
    /// `ESRCH` on every kernel this crate runs on); `ENOENT` is a range that was unregistered or unmapped.
    pub const fn from_errno(errno: Errno) -> Self {
        match errno {
            Errno::EXIST => Self::Exists,
            Errno::AGAIN | Errno::INTR => Self::Again,
            Errno::NOENT | Errno::SRCH => Self::Gone,
            Errno::NOMEM | Errno::NOSPC | Errno::DQUOT => Self::NoMemory,
            other => Self::Other(other),
        }
    }
}

/// What became of a range of pages: the first `done` bytes are placed, the rest is not, and this is why.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub struct Placed {
    /// Bytes placed, from the start.
    pub done: usize,
    /// Why it is not all of them; none if it is.
    pub why: Option<Refusal>,
}

impl Placed {
    /// From what the call returned and the count that the kernel left, which is a negative error number if nothing was done.
    fn new(returned: rustix::io::Result<()>, count: i64, len: usize) -> Self {
        match returned {
            Ok(()) => Self { done: len, why: None },
            Err(errno) => {
                let done = usize::try_from(count).unwrap_or(0).min(len);
                Self { done, why: Some(Refusal::from_errno(errno)) }
            }
        }
    }
}

/// A thread stopped at a missing page.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Fault {
    /// Where; the kernel rounds it down to a page.
    pub address: usize,
    /// It wanted to write.
    pub write: bool,
    /// The kernel's number of the thread; 0 without [`Features::THREAD_ID`].
    pub thread: u32,
}

/// Faults that one read takes at most.
pub const FAULTS: usize = 32;

/// One userfaultfd after its handshake.
#[derive(Debug)]
pub struct Uffd {
    fd: OwnedFd,
    faults: Faults,
}

impl Uffd {
    /// Opens a descriptor with exactly `wanted` switched on.
    pub fn open(wanted: Features, faults: Faults) -> Result<Self> {
        let (fd, faults) = open(faults)?;
        handshake(&fd, wanted).map_err(|errno| match errno {
            Errno::INVAL => {
                let names: Vec<_> = wanted.iter_names().map(|(name, _)| name).collect();
                Error::new(
                    ErrorKind::NotPermitted,
                    format!("this kernel's userfaultfd lacks one of {}; Linux 6.7 or newer has all", names.join(", ")),
                )
            }
            errno => Error::new(ErrorKind::NotPermitted, format!("userfaultfd handshake: {errno}")),
        })?;
        Ok(Self { fd, faults })
    }

    /// What this kernel and this process could ask for.
    pub fn features() -> Result<Features> {
        let (fd, _) = open(Faults::User)?;
        let bits = handshake(&fd, Features::empty())
            .map_err(|errno| Error::new(ErrorKind::NotPermitted, format!("userfaultfd handshake: {errno}")))?;
        Ok(Features::from_bits_retain(bits))
    }

    /// Whose faults a descriptor of this process sees at best: `All` or `User`.
    pub fn best() -> Result<Faults> {
        open(Faults::Best).map(|(_, faults)| faults)
    }

    /// Whose faults this one sees: `All` or `User`.
    pub fn faults(&self) -> Faults {
        self.faults
    }

    /// Watches `len` bytes at `address` (page-aligned).
    pub fn register(&self, address: usize, len: usize, modes: Modes) -> rustix::io::Result<()> {
        let mut arg = raw::uffdio_register { range: range(address, len), mode: modes.bits(), ioctls: 0 };
        // SAFETY: opcode and argument type agree; watching memory does not change what it holds.
        unsafe { ioctl(&self.fd, Updater::<{ REGISTER }, _>::new(&mut arg)) }
    }

    /// Stops watching: protection is lifted, waiting threads go on.
    pub fn unregister(&self, address: usize, len: usize) -> rustix::io::Result<()> {
        let mut arg = range(address, len);
        // SAFETY: opcode and argument type agree.
        unsafe { ioctl(&self.fd, Updater::<{ UNREGISTER }, _>::new(&mut arg)) }?;
        // The kernel wakes those who wait before it stops watching: a thread that touches a page between the two would wait for ever
        // (Linux 6.18: one in some thousand). From here on nobody comes to wait.
        self.wake(address, len)
    }

    /// Protects registered memory against writes, or lifts that.
    pub fn write_protect(&self, address: usize, len: usize, on: bool) -> rustix::io::Result<()> {
        let mut arg = raw::uffdio_writeprotect { range: range(address, len), mode: u64::from(on) };
        loop {
            // SAFETY: opcode and argument type agree; with WP_ASYNC a protected page only becomes slower to write once.
            match unsafe { ioctl(&self.fd, Updater::<{ WRITEPROTECT }, _>::new(&mut arg)) } {
                // The address space is just being changed by another thread.
                Err(Errno::AGAIN | Errno::INTR) => {}
                other => return other,
            }
        }
    }

    /// Places the bytes as pages at `to` and wakes who waits for them. Whole pages of the memory there; a page is placed whole or not.
    pub fn copy(&self, to: usize, from: &[u8]) -> Placed {
        self.copy_raw(to, from.as_ptr(), from.len())
    }

    /// The same from guest memory.
    pub fn copy_guest(&self, to: usize, from: GuestRange<'_>) -> Placed {
        self.copy_raw(to, from.as_ptr(), from.len())
    }

    fn copy_raw(&self, to: usize, from: *const u8, len: usize) -> Placed {
        let src = from.expose_provenance() as u64;
        let mut arg = raw::uffdio_copy { dst: to as u64, src, len: len as u64, mode: 0, copy: 0 };
        // SAFETY: opcode and argument type agree; the kernel reads `len` readable bytes and stores only where no page is and what we registered.
        let returned = unsafe { ioctl(&self.fd, Updater::<{ COPY }, _>::new(&mut arg)) };
        Placed::new(returned, arg.copy, len)
    }

    /// Places pages of zeros (not on huge pages) and wakes who waits for them.
    pub fn zeropage(&self, address: usize, len: usize) -> Placed {
        let mut arg = raw::uffdio_zeropage { range: range(address, len), mode: 0, zeropage: 0 };
        // SAFETY: opcode and argument type agree; the kernel stores only where no page is and what we registered.
        let returned = unsafe { ioctl(&self.fd, Updater::<{ ZEROPAGE }, _>::new(&mut arg)) };
        Placed::new(returned, arg.zeropage, len)
    }

    /// Maps pages that exist in the file of a range watched for [`Modes::MINOR`], and wakes who waits for them.
    pub fn continue_(&self, address: usize, len: usize) -> Placed {
        let mut arg = raw::uffdio_continue { range: range(address, len), mode: 0, mapped: 0 };
        // SAFETY: opcode and argument type agree; the kernel maps what the file holds already.
        let returned = unsafe { ioctl(&self.fd, Updater::<{ CONTINUE }, _>::new(&mut arg)) };
        Placed::new(returned, arg.mapped, len)
    }

    /// From now on touching these missing pages is an error (`SIGBUS`, `EFAULT`) instead of a wait.
    pub fn poison(&self, address: usize, len: usize) -> Placed {
        let mut arg = raw::uffdio_poison { range: range(address, len), mode: 0, updated: 0 };
        // SAFETY: opcode and argument type agree; only places without a page are marked.
        let returned = unsafe { ioctl(&self.fd, Updater::<{ POISON }, _>::new(&mut arg)) };
        Placed::new(returned, arg.updated, len)
    }

    /// Wakes who waits for a page of the range; a page that is still missing stops it again.
    pub fn wake(&self, address: usize, len: usize) -> rustix::io::Result<()> {
        let mut arg = range(address, len);
        // SAFETY: opcode and argument type agree.
        unsafe { ioctl(&self.fd, Updater::<{ WAKE }, _>::new(&mut arg)) }
    }

    /// Takes the faults that wait, at most as many as fit and [`FAULTS`]; 0 if there are none. Never blocks.
    pub fn read_faults(&self, into: &mut [Fault]) -> rustix::io::Result<usize> {
        let mut bytes = [0_u8; FAULTS * MESSAGE];
        let room = into.len().min(FAULTS) * MESSAGE;
        let got = match rustix::io::read(&self.fd, &mut bytes[..room]) {
            // No room is EINVAL.
            Err(Errno::AGAIN | Errno::INTR) => return Ok(0),
            Err(Errno::INVAL) if room == 0 => return Ok(0),
            got => got?,
        };
        let mut found = 0;
        for message in bytes[..got].chunks_exact(MESSAGE) {
            // Other events are never asked for.
            if u32::from(message[0]) == raw::UFFD_EVENT_PAGEFAULT {
                into[found] = Fault::parse(message);
                found += 1;
            }
        }
        Ok(found)
    }
}

impl AsFd for Uffd {
    /// Readable while faults wait.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Fault {
    /// From a `struct uffd_msg`, whose layout is asserted above.
    fn parse(message: &[u8]) -> Self {
        let word = |at: usize| u64::from_ne_bytes(std::array::from_fn(|i| message[at + i]));
        // Addresses of this process fit.
        let address = usize::try_from(word(16)).unwrap_or(usize::MAX);
        let thread = u32::from_ne_bytes(std::array::from_fn(|i| message[24 + i]));
        Self { address, write: word(8) & u64::from(raw::UFFD_PAGEFAULT_FLAG_WRITE) != 0, thread }
    }
}

fn range(address: usize, len: usize) -> raw::uffdio_range {
    raw::uffdio_range { start: address as u64, len: len as u64 }
}

fn handshake(fd: &OwnedFd, wanted: Features) -> rustix::io::Result<u64> {
    let mut arg = raw::uffdio_api { api: u64::from(raw::UFFD_API), features: wanted.bits(), ioctls: 0 };
    // SAFETY: opcode and argument type agree.
    unsafe { ioctl(fd, Updater::<{ API }, _>::new(&mut arg)) }?;
    Ok(arg.features)
}

/// What an unprivileged process does about it.
pub const REMEDY: &str = "run as root, or `sysctl vm.unprivileged_userfaultfd=1`, or `setfacl -m u:$USER:rw /dev/userfaultfd`";

/// By the device, which needs file permission; by the system call, which needs a privilege or a sysctl; or by the system call for
/// faults of user code only, which needs neither.
fn open(faults: Faults) -> Result<(OwnedFd, Faults)> {
    let flags = UserfaultfdFlags::CLOEXEC | UserfaultfdFlags::NONBLOCK;
    let user = flags | UserfaultfdFlags::from_bits_retain(raw::UFFD_USER_MODE_ONLY);
    let call = |flags| {
        // SAFETY: the descriptor can do nothing until memory of ours is registered with it.
        unsafe { rustix::mm::userfaultfd(flags) }
    };
    let mut opened = Err(Errno::PERM);
    if faults != Faults::User {
        opened = by_device(flags).map_or_else(|| call(flags), Ok).map(|fd| (fd, Faults::All));
    }
    if faults != Faults::All && opened.is_err() {
        // Where the system call is filtered out, as in containers, the device may still be there.
        opened = call(user).or_else(|errno| by_device(user).ok_or(errno)).map(|fd| (fd, Faults::User));
    }
    let errno = match opened {
        Ok(opened) => return Ok(opened),
        Err(errno) => errno,
    };
    let remedy = if errno == Errno::NOSYS { "this kernel was built without userfaultfd" } else { REMEDY };
    Err(Error::new(ErrorKind::NotPermitted, format!("cannot open a userfaultfd: {errno}; {remedy}")))
}

/// Through `/dev/userfaultfd`, if it is there and may be opened.
fn by_device(flags: UserfaultfdFlags) -> Option<OwnedFd> {
    let device = std::fs::OpenOptions::new().read(true).write(true).open("/dev/userfaultfd").ok()?;
    // SAFETY: opcode and argument agree: the flags are passed as the argument itself.
    unsafe { ioctl(&device, NewFromDevice(flags.bits())) }.ok()
}

/// `USERFAULTFD_IOC_NEW`: the argument is the flags, the result a descriptor.
struct NewFromDevice(u32);

// SAFETY: the kernel reads no memory for this opcode and returns a new descriptor that nobody else owns.
unsafe impl rustix::ioctl::Ioctl for NewFromDevice {
    type Output = OwnedFd;
    const IS_MUTATING: bool = false;

    fn opcode(&self) -> Opcode {
        DEV_NEW
    }

    fn as_ptr(&mut self) -> *mut std::ffi::c_void {
        std::ptr::without_provenance_mut(self.0 as usize)
    }

    unsafe fn output_from_ptr(out: rustix::ioctl::IoctlOutput, _: *mut std::ffi::c_void) -> rustix::io::Result<OwnedFd> {
        use std::os::fd::FromRawFd;
        // SAFETY: a descriptor that was just made for us.
        Ok(unsafe { OwnedFd::from_raw_fd(out) })
    }
}
