//! Who connects to a migration that has its channels is turned away; one that says to be a multifd channel shows that its source has
//! more of them than there are here.
//!
//! Nobody waits for a stranger with the lock held, and an encrypted one is not listened to: it has not shown who it is.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;
use rustix::net::RecvFlags;

use super::cancel::{Wake, poll_until};
use super::listen::{BACKLOG, accept_now};
use super::{Cancel, Uri, reason};
use crate::repeats::Repeats;
use crate::wire::consts::MULTIFD_MAGIC;
use crate::{ErrorKind, Result};

/// How long a connection that is turned away may take to say that it is a multifd channel, which channels do at once.
const FIRST_WORD: Duration = Duration::from_secs(1);

/// The same at the end of RAM, when the machine stands still.
const LAST_LOOK: Duration = Duration::from_millis(100);

/// Connections that may be silent at a time; for one more the oldest has to go.
const SILENT: usize = 16;

/// The connections that were turned away.
#[derive(Debug, Default)]
pub(super) struct TurnedAway {
    /// What they say is encrypted.
    secured: bool,
    all: usize,
    /// Those that had said to be multifd channels.
    channels: usize,
    /// Set by the first channel.
    alarm: Option<Cancel>,
    /// Those that have said nothing yet, in the order in which they came.
    silent: Vec<(Arc<OwnedFd>, Instant)>,
}

impl TurnedAway {
    pub(super) fn new(secured: bool) -> Arc<Mutex<Self>> {
        Arc::new(Mutex::new(Self { secured, ..Self::default() }))
    }

    /// How many there were so far.
    pub(super) fn all(&self) -> usize {
        self.all
    }

    /// One more.
    pub(super) fn add(&mut self, connection: OwnedFd) {
        self.all += 1;
        if self.secured {
            return;
        }
        if self.silent.len() == SILENT {
            self.silent.remove(0);
        }
        self.silent.push((Arc::new(connection), Instant::now()));
    }

    /// One more, which is known to be a channel.
    pub(super) fn add_channel(&mut self) {
        self.all += 1;
        self.is_channel();
    }

    /// From here on `alarm` is set by the first channel, or at once if there was one.
    pub(super) fn set_alarm(&mut self, alarm: &Cancel) {
        self.alarm = Some(alarm.clone());
        if self.channels > 0 {
            alarm.set();
        }
    }

    /// From here on nothing is set.
    pub(super) fn end_alarm(&mut self) -> Option<Cancel> {
        self.alarm.take()
    }

    fn is_channel(&mut self) {
        self.channels += 1;
        self.alarm.iter().for_each(Cancel::set);
    }

    /// Takes in those that wait; an error (no descriptor left) leaves them where they are. Closes those that have spoken or tired.
    fn look(&mut self, listening: &[OwnedFd]) -> rustix::io::Result<usize> {
        let mut taken = 0;
        for fd in listening {
            while taken < BACKLOG as usize
                && let Some(connection) = accept_now(fd)?
            {
                self.add(connection);
                taken += 1;
            }
        }
        let mut channels = 0;
        self.silent.retain(|(fd, since)| match first_word(fd) {
            Some(word) => {
                channels += usize::from(word == MULTIFD_MAGIC);
                false
            }
            None => since.elapsed() < FIRST_WORD,
        });
        (0..channels).for_each(|_| self.is_channel());
        Ok(taken)
    }

    fn silent(&self) -> Vec<Arc<OwnedFd>> {
        self.silent.iter().map(|(fd, _)| Arc::clone(fd)).collect()
    }

    fn tires(&self) -> Option<Duration> {
        self.silent.first().map(|(_, since)| FIRST_WORD.saturating_sub(since.elapsed()))
    }
}

/// What a connection says first; 0 if it says too little, or has gone.
fn first_word(connection: &OwnedFd) -> Option<u32> {
    let mut first = [0; 4];
    match rustix::net::recv(connection, &mut first[..], RecvFlags::PEEK | RecvFlags::DONTWAIT) {
        Ok((4, _)) => Some(u32::from_be_bytes(first)),
        Err(Errno::AGAIN | Errno::INTR) => None,
        _ => Some(0),
    }
}

/// How many had said to be multifd channels, with those that wait right now, of which the silent ones are waited for a moment.
pub(super) fn channels(away: &Mutex<TurnedAway>, listening: &[OwnedFd]) -> usize {
    let end = Instant::now() + LAST_LOOK;
    loop {
        let mut seen = lock(away);
        let _ = seen.look(listening);
        if seen.silent.is_empty() || Instant::now() >= end {
            return seen.channels;
        }
        let silent = seen.silent();
        drop(seen);
        let mut polled: Vec<_> = silent.iter().map(|fd| PollFd::new(&**fd, PollFlags::IN)).collect();
        let _ = poll_until(&mut polled, Some(end));
    }
}

/// The thread that turns connections away.
#[derive(Debug)]
pub(super) struct Surplus {
    stop: Cancel,
    thread: Option<JoinHandle<()>>,
}

impl Surplus {
    pub(super) fn start(uri: &Uri, listening: &Arc<Vec<OwnedFd>>, away: &Arc<Mutex<TurnedAway>>) -> Result<Self> {
        let stop = Cancel::new()?;
        let (name, listening, away, until) = (uri.clone(), Arc::clone(listening), Arc::clone(away), stop.clone());
        let thread = std::thread::Builder::new()
            .name("qmig-surplus".into())
            .spawn(move || {
                let repeats = Repeats::default();
                loop {
                    let (silent, tires) = {
                        let seen = lock(&away);
                        (seen.silent(), seen.tires())
                    };
                    let fds = listening.iter().chain(silent.iter().map(|fd| &**fd)).map(AsFd::as_fd);
                    // An error here or in a look must not spin: the queue then simply stays as it is.
                    if !matches!(until.poll_each(fds, tires), Ok(Wake::Ready | Wake::Timeout)) {
                        break;
                    }
                    let Ok(taken) = lock(&away).look(&listening) else { break };
                    for times in (0..taken).filter_map(|_| repeats.again()) {
                        tracing::warn!("{name}: a further connection was closed; this migration has its channel{times}");
                    }
                }
            })
            .map_err(|e| uri.error(ErrorKind::Listen, format!("starting a thread: {}", reason(e))))?;
        Ok(Self { stop, thread: Some(thread) })
    }
}

impl Drop for Surplus {
    fn drop(&mut self) {
        self.stop.set();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn lock(away: &Mutex<TurnedAway>) -> MutexGuard<'_, TurnedAway> {
    away.lock().unwrap_or_else(PoisonError::into_inner)
}
