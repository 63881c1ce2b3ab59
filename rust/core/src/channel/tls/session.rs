//! One connection's TLS: records in, records out, never waiting for the peer. Who has to wait does so without the lock.

use std::fmt;
use std::io::{self, BufRead as _, IoSlice, Read as _, Write as _};
use std::os::fd::BorrowedFd;
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::io::Errno;
use rustix::net::{RecvFlags, SendAncillaryBuffer, SendFlags};
use rustls::Connection;

use super::explain::Words;
use crate::channel::FIRST_BYTES;
use crate::{Error, ErrorKind};

/// Most bytes that are taken from the kernel at once: four records, and what fits the cache beside them.
const INPUT: usize = 64 << 10;

/// TLS beside a descriptor. Both halves of a channel use it.
pub struct Session {
    state: Mutex<State>,
    words: Words,
}

struct State {
    connection: Connection,
    input: Box<[u8]>,
    /// What of `input` is still to be read.
    start: usize,
    end: usize,
    /// The kernel has no more.
    eof: bool,
    /// First words of the peer that were looked at, and are still to be read.
    ahead: Vec<u8>,
    /// The peer has said something.
    heard: bool,
    failure: Option<Error>,
}

/// How far a handshake is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// It is over.
    Done,
    /// The peer has to say something.
    Reads,
    /// The peer has to take something.
    Writes,
}

/// Why something did not work.
#[derive(Debug)]
pub enum Broken {
    /// The system's error on the descriptor.
    System(Errno),
    /// TLS' own.
    Tls(Error),
}

enum Came {
    Something,
    Nothing,
    End,
}

impl Session {
    pub(super) fn new(mut connection: Connection, words: Words) -> Self {
        // Whoever writes flushes before it writes more.
        connection.set_buffer_limit(None);
        let input = vec![0; INPUT].into_boxed_slice();
        let state = State { connection, input, start: 0, end: 0, eof: false, ahead: Vec::new(), heard: false, failure: None };
        Self { state: Mutex::new(state), words }
    }

    /// The handshake, as far as it gets now.
    pub fn step(&self, fd: BorrowedFd<'_>) -> crate::Result<Step> {
        let mut state = self.lock();
        let stepped = state.step(fd, &self.words);
        drop(state);
        stepped.map_err(|broken| match broken {
            Broken::System(_) => self.words.ended(),
            Broken::Tls(error) => error,
        })
    }

    /// What is there, 0 at the end, nothing if the peer has to say more first.
    ///
    /// An end without TLS' own is an end, too: QEMU's multifd channels end so, and a stream knows itself whether it is whole.
    pub fn read(&self, fd: BorrowedFd<'_>, into: &mut [u8]) -> Result<Option<usize>, Broken> {
        self.lock().read(fd, into, &self.words)
    }

    /// How many of the first bytes are there, which stay to be read, and whether the peer has ended behind them.
    pub fn peek(&self, fd: BorrowedFd<'_>, into: &mut [u8; FIRST_BYTES]) -> Result<(usize, bool), Broken> {
        let mut state = self.lock();
        let mut known = std::mem::take(&mut state.ahead);
        let mut ended = false;
        while known.len() < FIRST_BYTES && !ended {
            let from = known.len();
            match state.read(fd, &mut into[from..], &self.words)? {
                Some(got) => {
                    known.extend_from_slice(&into[from..from + got]);
                    ended = got == 0;
                }
                None => break,
            }
        }
        into[..known.len()].copy_from_slice(&known);
        let count = known.len();
        state.ahead = known;
        Ok((count, ended))
    }

    /// Makes records of `plain`, which go out with the next flushes.
    pub fn seal(&self, plain: &[u8]) -> Result<(), Broken> {
        let mut state = self.lock();
        state.check()?;
        state.connection.writer().write_all(plain).map_err(|error| {
            Broken::Tls(Error::new(ErrorKind::Tls, format!("TLS: {error}"))) // its keys are used up (TLS 1.2)
        })
    }

    /// Sends what there is to send; false if the kernel takes no more now.
    pub fn flush(&self, fd: BorrowedFd<'_>) -> Result<bool, Broken> {
        let mut state = self.lock();
        state.flush(fd).map_err(|errno| {
            // Whoever refuses us says why before it closes. What is there for the reader is left to it.
            while state.connection.reader().fill_buf().is_err() && matches!(state.take_in(fd, &self.words), Ok(Came::Something)) {}
            state.failure.clone().map_or(Broken::System(errno), Broken::Tls)
        })
    }

    /// Says that nothing more will be written, if that can be said without waiting.
    pub fn close(&self, fd: BorrowedFd<'_>) {
        let mut state = self.lock();
        if state.connection.is_handshaking() || state.failure.is_some() {
            return;
        }
        state.connection.send_close_notify();
        let _ = state.flush(fd);
    }

    /// What may explain a connection that broke without a word.
    pub fn hint(&self) -> Option<String> {
        if self.lock().heard { None } else { self.words.hint() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn check(&self) -> Result<(), Broken> {
        self.failure.clone().map_or(Ok(()), |error| Err(Broken::Tls(error)))
    }

    fn step(&mut self, fd: BorrowedFd<'_>, words: &Words) -> Result<Step, Broken> {
        loop {
            self.check()?;
            if !self.flush(fd).map_err(Broken::System)? {
                return Ok(Step::Writes);
            }
            if !self.connection.is_handshaking() {
                return Ok(Step::Done);
            }
            match self.take_in(fd, words)? {
                Came::Something => {}
                Came::Nothing => return Ok(Step::Reads),
                Came::End => return Err(Broken::Tls(words.ended())),
            }
        }
    }

    fn read(&mut self, fd: BorrowedFd<'_>, into: &mut [u8], words: &Words) -> Result<Option<usize>, Broken> {
        if !self.ahead.is_empty() {
            let count = self.ahead.len().min(into.len());
            into[..count].copy_from_slice(&self.ahead[..count]);
            self.ahead.drain(..count);
            return Ok(Some(count));
        }
        loop {
            match self.connection.reader().read(into) {
                Ok(got) => {
                    self.heard |= got > 0;
                    return Ok(Some(got));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => return Ok(Some(0)), // it has ended without a word
            }
            self.check()?;
            match self.take_in(fd, words)? {
                Came::Something => {}
                Came::Nothing => return Ok(None),
                Came::End => return Ok(Some(0)),
            }
        }
    }

    /// Takes what the kernel has, up to the first bytes for the reader.
    fn take_in(&mut self, fd: BorrowedFd<'_>, words: &Words) -> Result<Came, Broken> {
        if self.start == self.end {
            if self.eof {
                return Ok(Came::End);
            }
            let got = rustix::io::retry_on_intr(|| rustix::net::recv(fd, &mut self.input[..], RecvFlags::DONTWAIT));
            (self.start, self.end) = match got {
                Ok((0, _)) => {
                    self.eof = true;
                    return Ok(Came::End);
                }
                Ok((got, _)) => (0, got),
                Err(Errno::AGAIN) => return Ok(Came::Nothing),
                Err(errno) => return Err(Broken::System(errno)),
            };
        }
        while self.start < self.end {
            let taken = self.connection.read_tls(&mut &self.input[self.start..self.end]).unwrap_or(0);
            let plain = self.connection.process_new_packets().map(|state| state.plaintext_bytes_to_read());
            // After the peer's end nothing counts.
            self.start = if taken == 0 { self.end } else { self.start + taken };
            match plain {
                Ok(0) => {}
                Ok(_) => break,
                Err(error) => {
                    let error = words.explain(&error);
                    self.failure = Some(error.clone());
                    let _ = self.flush(fd); // the alert
                    return Err(Broken::Tls(error));
                }
            }
        }
        Ok(Came::Something)
    }

    fn flush(&mut self, fd: BorrowedFd<'_>) -> Result<bool, Errno> {
        while self.connection.wants_write() {
            match self.connection.write_tls(&mut Socket(fd)) {
                Ok(_) => {}
                Err(error) => match Errno::from_io_error(&error) {
                    Some(Errno::AGAIN) => return Ok(false),
                    Some(Errno::INTR) => {}
                    errno => return Err(errno.unwrap_or(Errno::IO)),
                },
            }
        }
        Ok(true)
    }
}

/// Writes without waiting and without a signal.
struct Socket<'a>(BorrowedFd<'a>);

impl io::Write for Socket<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.write_vectored(&[IoSlice::new(bytes)])
    }

    fn write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        Ok(rustix::net::sendmsg(self.0, slices, &mut SendAncillaryBuffer::default(), flags)?)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session").field("words", &self.words).finish_non_exhaustive()
    }
}
