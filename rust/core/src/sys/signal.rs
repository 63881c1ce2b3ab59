//! Signals as a descriptor, whichever threads there are, and the end of the process that asks nobody.
//!
//! The kernel gives a signal to any thread that does not mask it, and the libraries of a Python process start threads as they like. So
//! a handler catches it wherever it comes, and does no more than wake the thread that waits here. That thread leaves the signals
//! unmasked and is always free to take one; a thread that may be stuck in the kernel should mask them.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::OnceLock;

pub use libc::{SIGHUP, SIGINT, SIGTERM};
use rustix::event::{EventfdFlags, eventfd};

/// Counts the signals caught and not yet taken. For ever: a handler may run at any time.
static CAUGHT: OnceLock<OwnedFd> = OnceLock::new();

extern "C" fn caught(_signal: i32) {
    let Some(event) = CAUGHT.get() else { return };
    let one = 1u64;
    // SAFETY: eight bytes of our own to a descriptor that is never closed; write may be called in a handler, and errno, which belongs to
    // whoever was interrupted, is put back.
    unsafe {
        let errno = *libc::__errno_location();
        libc::write(event.as_raw_fd(), (&raw const one).cast(), size_of::<u64>());
        *libc::__errno_location() = errno;
    }
}

/// From now on each of `signals` is caught, in whatever thread it arrives, for `take`. Calls that it interrupts go on.
pub fn catch(signals: &[i32]) -> io::Result<()> {
    if CAUGHT.get().is_none() {
        let _ = CAUGHT.set(eventfd(0, EventfdFlags::CLOEXEC)?); // another thread's is as good
    }
    let handler: extern "C" fn(i32) = caught;
    for signal in signals {
        let action =
            libc::sigaction { sa_sigaction: handler as usize, sa_mask: set_of(signals)?, sa_flags: libc::SA_RESTART, sa_restorer: None };
        // SAFETY: the action is initialised, and its handler does only what a handler may do; the old one is not asked for.
        if unsafe { libc::sigaction(*signal, &raw const action, std::ptr::null_mut()) } != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// Waits until a signal that `catch` was told of has come since the last call.
pub fn take() -> io::Result<()> {
    let event = CAUGHT.get().ok_or(io::ErrorKind::NotFound)?;
    let mut count = [0; size_of::<u64>()];
    loop {
        match rustix::io::read(event, &mut count) {
            Ok(_) => return Ok(()),
            Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
}

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

/// Whether this thread, and those that it starts from now on, may be given `signals`.
pub fn mask(signals: &[i32], masked: bool) -> io::Result<()> {
    let how = if masked { libc::SIG_BLOCK } else { libc::SIG_UNBLOCK };
    let set = set_of(signals)?;
    // SAFETY: the set is initialised; the old mask is not asked for.
    match unsafe { libc::pthread_sigmask(how, &raw const set, std::ptr::null_mut()) } {
        0 => Ok(()),
        error => Err(io::Error::from_raw_os_error(error)),
    }
}

/// Ends the process now: no destructors, no exit handlers, which might wait for a thread that is stuck.
pub fn exit_now(status: i32) -> ! {
    // SAFETY: _exit has no preconditions.
    unsafe { libc::_exit(status) }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_signal_is_taken_whichever_thread_it_comes_to() {
        catch(&[libc::SIGUSR2]).unwrap();
        let taker = std::thread::spawn(take);
        std::thread::spawn(|| {
            // SAFETY: sends a signal that has a handler to this thread itself.
            assert_eq!(unsafe { libc::pthread_kill(libc::pthread_self(), libc::SIGUSR2) }, 0);
        })
        .join()
        .unwrap();
        taker.join().unwrap().unwrap();
        assert!(catch(&[1000]).is_err());
    }

    #[test]
    fn a_masked_signal_waits() {
        let set = |signal, wanted| {
            let mut pending = MaybeUninit::uninit();
            // SAFETY: sigpending fills the set, which sigismember then reads.
            wanted == unsafe { libc::sigpending(pending.as_mut_ptr()) == 0 && libc::sigismember(pending.as_ptr(), signal) == 1 }
        };
        std::thread::spawn(move || {
            catch(&[libc::SIGUSR1]).unwrap();
            mask(&[libc::SIGUSR1], true).unwrap();
            // SAFETY: sends a signal that has a handler to this thread itself.
            assert_eq!(unsafe { libc::pthread_kill(libc::pthread_self(), libc::SIGUSR1) }, 0);
            assert!(set(libc::SIGUSR1, true));
            mask(&[libc::SIGUSR1], false).unwrap();
            assert!(set(libc::SIGUSR1, false));
        })
        .join()
        .unwrap();
        assert!(mask(&[1000], true).is_err());
    }
}
