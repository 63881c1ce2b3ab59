//! userfaultfd: opening it, saying what we want of it, and registering memory.

use std::os::fd::OwnedFd;

use linux_raw_sys::general as raw;
use rustix::io::Errno;
use rustix::ioctl::{Opcode, Updater, ioctl, opcode};
use rustix::mm::UserfaultfdFlags;

use crate::{Error, ErrorKind, Result};

const TYPE: u8 = 0xaa;
const API: Opcode = opcode::read_write::<raw::uffdio_api>(TYPE, 0x3f);
const REGISTER: Opcode = opcode::read_write::<raw::uffdio_register>(TYPE, 0x00);
// These two are "read" to the kernel's macro, though the kernel reads what we write.
const UNREGISTER: Opcode = opcode::read::<raw::uffdio_range>(TYPE, 0x01);
const WRITEPROTECT: Opcode = opcode::read_write::<raw::uffdio_writeprotect>(TYPE, 0x06);
/// Of `/dev/userfaultfd`: a descriptor as by the system call.
const DEV_NEW: Opcode = opcode::none(TYPE, 0x00);

const _: () = {
    assert!(API == linux_raw_sys::ioctl::UFFDIO_API);
    assert!(REGISTER == linux_raw_sys::ioctl::UFFDIO_REGISTER);
    assert!(UNREGISTER == linux_raw_sys::ioctl::UFFDIO_UNREGISTER);
    assert!(WRITEPROTECT == linux_raw_sys::ioctl::UFFDIO_WRITEPROTECT);
    assert!(DEV_NEW == 0xaa00);
    assert!(size_of::<raw::uffdio_api>() == 24 && size_of::<raw::uffdio_register>() == 32);
    assert!(size_of::<raw::uffdio_range>() == 16 && size_of::<raw::uffdio_writeprotect>() == 24);
};

bitflags::bitflags! {
    /// What a descriptor can do (`UFFD_FEATURE_*`), as far as this crate cares.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct Features: u64 {
        /// Missing pages of hugetlbfs.
        const MISSING_HUGETLBFS = raw::UFFD_FEATURE_MISSING_HUGETLBFS as u64;
        /// Missing pages of shared memory.
        const MISSING_SHMEM = raw::UFFD_FEATURE_MISSING_SHMEM as u64;
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
    }
}

/// Whose faults a descriptor must see.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Faults {
    /// Also those that the kernel takes on our behalf (a `read` into guest memory); needs a permission.
    All,
    /// Those of user code are enough; open to every process.
    User,
}

/// One userfaultfd after its handshake.
#[derive(Debug)]
pub struct Uffd {
    fd: OwnedFd,
}

impl Uffd {
    /// Opens a descriptor with exactly `wanted` switched on.
    ///
    /// References: `userfaultfd(2)`, `ioctl_userfaultfd(2)`.
    pub fn open(wanted: Features, faults: Faults) -> Result<Self> {
        let fd = open(faults)?;
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
        Ok(Self { fd })
    }

    /// What this kernel and this process could ask for.
    pub fn features() -> Result<Features> {
        let fd = open(Faults::User)?;
        let bits = handshake(&fd, Features::empty())
            .map_err(|errno| Error::new(ErrorKind::NotPermitted, format!("userfaultfd handshake: {errno}")))?;
        Ok(Features::from_bits_retain(bits))
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
        unsafe { ioctl(&self.fd, Updater::<{ UNREGISTER }, _>::new(&mut arg)) }
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

/// By the system call, which needs a privilege or a sysctl, or by the device, which needs file permission.
fn open(faults: Faults) -> Result<OwnedFd> {
    let mut flags = UserfaultfdFlags::CLOEXEC | UserfaultfdFlags::NONBLOCK;
    if faults == Faults::User {
        flags |= UserfaultfdFlags::from_bits_retain(raw::UFFD_USER_MODE_ONLY);
    }
    // SAFETY: the descriptor can do nothing until memory of ours is registered with it.
    let by_call = unsafe { rustix::mm::userfaultfd(flags) };
    let errno = match by_call {
        Ok(fd) => return Ok(fd),
        Err(errno) => errno,
    };
    if let Ok(device) = std::fs::OpenOptions::new().read(true).write(true).open("/dev/userfaultfd") {
        // SAFETY: opcode and argument agree: the flags are passed as the argument itself.
        if let Ok(fd) = unsafe { ioctl(&device, NewFromDevice(flags.bits())) } {
            return Ok(fd);
        }
    }
    let remedy = if errno == Errno::NOSYS {
        "this kernel was built without userfaultfd"
    } else {
        "run as root, or `sysctl vm.unprivileged_userfaultfd=1`, or `setfacl -m u:$USER:rw /dev/userfaultfd`"
    };
    Err(Error::new(ErrorKind::NotPermitted, format!("cannot open a userfaultfd: {errno}; {remedy}")))
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
