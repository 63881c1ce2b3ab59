//! One QMP connection: its bytes in and out, what it has asked for, and its descriptors. Decides nothing about commands.

use std::collections::{BTreeMap, VecDeque};
use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Instant;

use rustix::io::Errno;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendFlags};
use serde_json::Value;

use super::framing::Framer;
use super::request::{Answer, QmpError, Request, line, parse, reply};

/// Bytes that wait for a client that does not read. More, and it is cut off, so that it costs nobody else anything.
pub const OUTPUT_LIMIT: usize = 1 << 20;
/// Above this many waiting bytes no further command of the client is begun: only events can cut off who just reads slowly.
const OUTPUT_BACKLOG: usize = 64 << 10;
/// Commands that one client may have in the works; then its input waits in the socket.
pub const QUEUE_LIMIT: usize = 8;
/// Bytes taken from a socket at a time.
const READ_SIZE: usize = 64 << 10;
/// Descriptors accepted with one message.
const FDS_PER_MESSAGE: usize = 16;

/// What is done next for a client, in order.
#[derive(Debug)]
pub(super) enum Work {
    /// Say that a message was no request.
    Refuse { id: Option<Value>, error: QmpError },
    /// Run a command; `fd` came with it.
    Run { request: Request, fd: Option<OwnedFd> },
}

/// A command that was handed to Python.
#[derive(Debug, Clone, Copy)]
pub(super) struct Outstanding {
    pub(super) since: Instant,
    /// It has waited so long that it was counted.
    pub(super) counted: bool,
}

/// How far a connection has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mode {
    /// Only `qmp_capabilities` works, and no event is sent.
    Negotiation,
    /// Commands and events flow.
    InBand,
    /// The same, and `exec-oob` is allowed.
    OutOfBand,
}

/// One connection.
#[derive(Debug)]
pub(super) struct Client {
    pub(super) id: u64,
    pub(super) socket: Arc<OwnedFd>,
    pub(super) mode: Mode,
    /// A command that Python answers is on its way.
    pub(super) outstanding: Option<Outstanding>,
    /// To be closed; nothing more is done for it.
    pub(super) dead: bool,
    /// A `quit` waits behind a command that may never be answered.
    pub(super) quits: bool,
    /// Descriptors stored by `getfd`.
    pub(super) names: BTreeMap<String, OwnedFd>,
    /// Descriptors of the last message that carried some, not yet claimed.
    received: VecDeque<OwnedFd>,
    framer: Framer,
    input: Vec<u8>,
    consumed: usize,
    waiting: VecDeque<Work>,
    output: Vec<u8>,
    sent: usize,
}

impl Client {
    pub(super) fn new(id: u64, socket: OwnedFd) -> Self {
        Self {
            id,
            socket: Arc::new(socket),
            mode: Mode::Negotiation,
            outstanding: None,
            dead: false,
            quits: false,
            names: BTreeMap::new(),
            received: VecDeque::new(),
            framer: Framer::default(),
            input: Vec::new(),
            consumed: 0,
            waiting: VecDeque::new(),
            output: Vec::new(),
            sent: 0,
        }
    }

    /// Nothing more is taken from this client for now.
    fn full(&self) -> bool {
        self.waiting.len() + usize::from(self.outstanding.is_some()) >= QUEUE_LIMIT || self.output.len() - self.sent > OUTPUT_BACKLOG
    }

    /// There is input at hand and room for more commands.
    pub(super) fn can_go_on(&self) -> bool {
        !self.dead && self.consumed < self.input.len() && !self.full()
    }

    pub(super) fn wants_input(&self) -> bool {
        self.consumed == self.input.len() && !self.full()
    }

    pub(super) fn wants_output(&self) -> bool {
        self.sent < self.output.len()
    }

    /// Takes what the socket has. Only called when all earlier input was consumed, so that descriptors belong to this input.
    pub(super) fn receive(&mut self) {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_PER_MESSAGE))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        self.input.resize(READ_SIZE, 0);
        self.consumed = 0;
        let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
        let got = rustix::net::recvmsg(&self.socket, &mut [IoSliceMut::new(&mut self.input)], &mut control, flags);
        let fds = control.drain().filter_map(|m| if let RecvAncillaryMessage::ScmRights(fds) = m { Some(fds) } else { None });
        let fds: VecDeque<_> = fds.flatten().collect();
        if !fds.is_empty() {
            self.received = fds;
        }
        let length = match got {
            Ok(message) if message.flags.contains(ReturnFlags::CTRUNC) => {
                tracing::warn!(client = self.id, "too many descriptors in one message; connection closed");
                self.dead = true;
                0
            }
            Ok(message) => {
                self.dead |= message.bytes == 0;
                message.bytes
            }
            Err(Errno::AGAIN | Errno::INTR) => 0,
            Err(_) => {
                self.dead = true;
                0
            }
        };
        self.input.truncate(length);
        if length == 0 {
            self.input = Vec::new();
        }
    }

    /// The next thing to do in order; none while an earlier command is not answered or while the input ends in mid-message.
    /// Out-of-band commands overtake.
    pub(super) fn next_work(&mut self) -> Option<Work> {
        loop {
            if self.dead {
                return None;
            }
            if self.outstanding.is_none()
                && let Some(work) = self.waiting.pop_front()
            {
                return Some(work);
            }
            if self.full() {
                return None;
            }
            let mut rest = &self.input[self.consumed..];
            let frame = self.framer.next(&mut rest);
            self.consumed = self.input.len() - rest.len();
            let parsed = match frame? {
                Ok(message) => parse(message, self.mode == Mode::OutOfBand),
                Err(error) => Err((None, error.into())),
            };
            let work = match parsed {
                Ok(request) => {
                    self.quits |= self.outstanding.is_some() && request.quits();
                    let fd = if request.name == "getfd" { self.received.pop_front() } else { None };
                    Work::Run { request, fd }
                }
                Err((id, error)) => Work::Refuse { id, error },
            };
            if matches!(&work, Work::Run { request, .. } if request.oob) {
                return Some(work);
            }
            self.waiting.push_back(work);
        }
    }

    /// Queues the answer to a command.
    pub(super) fn answer(&mut self, answer: Answer, id: Option<Value>) {
        self.push(&line(&reply(answer, id)));
    }

    /// Queues a line; a client that leaves too much unread is given up.
    pub(super) fn push(&mut self, line: &[u8]) {
        if self.dead {
            return;
        }
        if self.output.len() - self.sent > OUTPUT_LIMIT {
            tracing::warn!(client = self.id, "a monitor client does not read; connection closed");
            self.dead = true;
            return;
        }
        self.output.extend_from_slice(line);
    }

    /// Sends what the socket takes now.
    pub(super) fn flush(&mut self) {
        while !self.dead && self.wants_output() {
            match rustix::net::send(&self.socket, &self.output[self.sent..], SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
                Ok(n) => self.sent += n,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => break,
                Err(_) => self.dead = true,
            }
        }
        if self.sent == self.output.len() {
            self.output = Vec::new();
            self.sent = 0;
        } else if self.sent > OUTPUT_BACKLOG {
            self.output.drain(..self.sent);
            self.sent = 0;
        }
    }
}
