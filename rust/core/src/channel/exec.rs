//! `exec:`: a shell command whose standard input (outgoing) or output (incoming) is the channel.
//!
//! The command has a process group of its own, so that all of a pipeline can be ended; its messages go to our standard
//! error. It is never left behind: a channel that is dropped before its command succeeded ends it.

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::PollFlags;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open};

use super::cancel::{Registration, Wake};
use super::{Cancel, Uri, reason};
use crate::{Error, ErrorKind, Result};

/// How long a command that was told to end may take to clean up.
const GRACE: Duration = Duration::from_secs(1);

/// Which end of the command is the channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    Input,
    Output,
    /// Both, through a socket: TLS talks both ways.
    Both,
}

/// A running command.
#[derive(Debug)]
pub(super) struct Command {
    uri: Uri,
    child: Arc<Mutex<Child>>,
    pid: Pid,
    /// Readable when the command has ended.
    ended: OwnedFd,
    closer: Option<Registration>,
    /// It has everything and may end when it likes.
    left_alone: bool,
}

impl Command {
    /// Starts `/bin/sh -c command`; returns it with our end of its pipe.
    pub(super) fn start(uri: &Uri, command: &str, side: Side, kind: ErrorKind) -> Result<(Self, OwnedFd)> {
        let failed = |e: &dyn std::fmt::Display| uri.error(kind, format!("starting /bin/sh: {e}"));
        let mut shell = std::process::Command::new("/bin/sh");
        shell.arg("-c").arg(command).process_group(0);
        let mut socket = None;
        match side {
            // What it prints must not get into our own output.
            Side::Input => shell.stdin(Stdio::piped()).stdout(std::io::stderr()),
            Side::Output => shell.stdin(Stdio::null()).stdout(Stdio::piped()),
            Side::Both => {
                let pair = socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None);
                let (ours, theirs) = pair.map_err(|e| failed(&reason(e)))?;
                socket = Some(ours);
                shell.stdin(theirs.try_clone().map_err(|e| failed(&e))?).stdout(theirs)
            }
        };
        let mut child = shell.spawn().map_err(|e| failed(&e))?;
        drop(shell); // with the command's end of a socket
        let end = match side {
            Side::Input => child.stdin.take().map(OwnedFd::from),
            Side::Output => child.stdout.take().map(OwnedFd::from),
            Side::Both => socket,
        };
        let pid = Pid::from_child(&child);
        let ended = pidfd_open(pid, PidfdFlags::empty()).map_err(|e| {
            let _ = (child.kill(), child.wait());
            failed(&reason(e))
        })?;
        let command = Self { uri: uri.clone(), child: Arc::new(Mutex::new(child)), pid, ended, closer: None, left_alone: false };
        let end = end.ok_or_else(|| failed(&"no pipe"))?;
        // Fewer turns per megabyte; what an unprivileged process may have by default. A socket refuses.
        let _ = rustix::pipe::fcntl_setpipe_size(&end, 1 << 20);
        Ok((command, end))
    }

    /// From here on the switch ends the command.
    pub(super) fn ends_with(&mut self, cancel: &Cancel) {
        let (child, pid) = (Arc::clone(&self.child), self.pid);
        self.closer = Some(cancel.register(Box::new(move || signal(&child, pid, Signal::TERM))));
    }

    /// Waits for the end, which must be status 0. With `closed` we closed its output first, and dying of that is no failure.
    ///
    /// One that has not ended at `deadline` has all it needs and is left to itself: ending it could only do harm.
    pub(super) fn succeeded(&mut self, cancel: &Cancel, closed: bool, deadline: Option<Instant>) -> Result<()> {
        let Some(status) = self.status(cancel, deadline)? else {
            self.closer = None;
            self.left_alone = true;
            return Err(self.uri.error(ErrorKind::Timeout, "the command has read everything and does not end"));
        };
        if status.success() || closed && (status.signal() == Some(SIGPIPE) || status.code() == Some(128 + SIGPIPE)) {
            return Ok(());
        }
        Err(self.uri.error(ErrorKind::Io, format!("the command {}", ending(status))))
    }

    /// The error for a command that closed its input while we still write. Most have ended with that; one that goes on is not waited for.
    pub(super) fn gone_early(&mut self, cancel: &Cancel) -> Error {
        let ending = match self.status(cancel, Some(Instant::now() + GRACE)) {
            Ok(Some(status)) => ending(status),
            Ok(None) => "closed its input".into(),
            Err(e) => return e,
        };
        self.uri.error(ErrorKind::Closed, format!("the command {ending} before it had read everything"))
    }

    /// How it ended; none if it has not by the deadline.
    fn status(&mut self, cancel: &Cancel, deadline: Option<Instant>) -> Result<Option<ExitStatus>> {
        let left = deadline.map(|at| at.saturating_duration_since(Instant::now()));
        match cancel.poll(self.ended.as_fd(), PollFlags::IN, left) {
            Wake::Ready => {}
            Wake::Cancelled => return Err(self.uri.error(ErrorKind::Cancelled, "cancelled")),
            Wake::Timeout => return Ok(None),
        }
        match lock(&self.child).wait() {
            Ok(status) => Ok(Some(status)),
            Err(e) => {
                Err(self.uri.error(ErrorKind::Io, format!("the command's status is lost ({e}); do not ignore SIGCHLD in this process")))
            }
        }
    }

    /// True once it has ended within `time`.
    fn ends_within(&self, time: Duration) -> bool {
        let Ok(timeout) = time.try_into() else { return false };
        let mut fds = [rustix::event::PollFd::new(&self.ended, PollFlags::IN)];
        rustix::event::poll(&mut fds, Some(&timeout)).is_ok_and(|ready| ready > 0)
    }
}

impl Drop for Command {
    fn drop(&mut self) {
        if self.left_alone {
            return;
        }
        for last_word in [Signal::TERM, Signal::KILL] {
            if !matches!(lock(&self.child).try_wait(), Ok(None)) {
                return; // it ended, and is reaped by that look
            }
            signal(&self.child, self.pid, last_word);
            self.ends_within(GRACE);
        }
        if matches!(lock(&self.child).try_wait(), Ok(None)) {
            tracing::warn!("{}: the command (process {}) does not end", self.uri, self.pid);
        }
    }
}

const SIGPIPE: i32 = Signal::PIPE.as_raw();

fn lock(child: &Mutex<Child>) -> MutexGuard<'_, Child> {
    child.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Signals the whole group, as long as its leader is not reaped: afterwards the number may be another's.
fn signal(child: &Mutex<Child>, pid: Pid, signal: Signal) {
    let mut child = lock(child);
    if matches!(child.try_wait(), Ok(None)) {
        let _ = kill_process_group(pid, signal);
    }
}

fn ending(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(126), _) => "ended with status 126 (not executable)".into(),
        (Some(127), _) => "ended with status 127 (not found)".into(),
        (Some(code), _) => format!("ended with status {code}"),
        (_, Some(number)) => format!("was killed by signal {number}"),
        _ => "ended".into(),
    }
}
