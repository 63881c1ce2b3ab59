//! Signals as a descriptor, and the end of the process that asks nobody.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{FromRawFd, OwnedFd};

pub use libc::{SIGHUP, SIGINT, SIGTERM};

fn set_of(signals: &[i32]) -> io::Result<libc::sigset_t> {
    let mut set = MaybeUninit::uninit();
    // SAFETY: sigemptyset initialises the whole set that it is given.
    let mut set = unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        set.assume_init()
    };
    for signal in signals {
        // SAFETY: the set is initialised; a bad number is reported.
        if unsafe { libc::sigaddset(&raw mut set, *signal) } != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(set)
}

/// Masks `signals` in this thread and in those that it starts from now on.
pub fn block(signals: &[i32]) -> io::Result<()> {
    let set = set_of(signals)?;
    // SAFETY: the set is initialised; the old mask is not asked for.
    match unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()) } {
        0 => Ok(()),
        error => Err(io::Error::from_raw_os_error(error)),
    }
}

/// A descriptor that is readable when one of `signals`, which must be masked, is pending.
pub fn descriptor(signals: &[i32]) -> io::Result<OwnedFd> {
    let set = set_of(signals)?;
    // SAFETY: the set is initialised; -1 asks for a new descriptor.
    let fd = unsafe { libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is new and nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Waits for the next signal of `descriptor` and takes it.
pub fn take(descriptor: &OwnedFd) -> io::Result<i32> {
    const RECORD: usize = size_of::<libc::signalfd_siginfo>();
    let mut record = [0u8; RECORD];
    let mut filled = 0;
    while filled < RECORD {
        match rustix::io::read(descriptor, &mut record[filled..]) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(n) => filled += n,
            Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
    let [a, b, c, d, ..] = record;
    Ok(i32::from_ne_bytes([a, b, c, d]))
}

/// Ends the process now: no destructors, no exit handlers, which might wait for a thread that is stuck.
pub fn exit_now(status: i32) -> ! {
    // SAFETY: _exit has no preconditions.
    unsafe { libc::_exit(status) }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::cast_sign_loss)]
mod tests {
    use super::*;

    #[test]
    fn a_masked_signal_comes_through_the_descriptor() {
        std::thread::spawn(|| {
            block(&[libc::SIGUSR2]).unwrap();
            let fd = descriptor(&[libc::SIGUSR2]).unwrap();
            // SAFETY: sends a masked signal to this thread itself.
            assert_eq!(unsafe { libc::pthread_kill(libc::pthread_self(), libc::SIGUSR2) }, 0);
            assert_eq!(take(&fd).unwrap(), libc::SIGUSR2);
        })
        .join()
        .unwrap();
        assert!(block(&[1000]).is_err());
    }
}
