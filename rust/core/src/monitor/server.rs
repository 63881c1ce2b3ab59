//! The thread of one listener: a poll loop over its clients. It never waits for Python and never holds its lock while it waits.
//!
//! Everything a client gets is queued under that one lock, and the events that wait are queued before every answer: a client
//! sees the events that a command caused before the command's answer, whichever thread answers.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, UNIX_EPOCH};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::io::Errno;
use rustix::net::SocketFlags;
use serde_json::{Map, Value, json};

use super::Core;
use super::address::Bound;
use super::client::{Client, Mode, Outstanding, Work};
use super::commands::Facts;
use super::request::{Answer, Arguments, QmpError, line};
use crate::control::{Event, Subscription};
use crate::{Error, Result};

/// Connections of one listener; more are closed at once.
pub const CLIENT_LIMIT: usize = 64;
/// Pause after a failed accept (no descriptors left), so that the loop does not spin.
const ACCEPT_PAUSE: Timespec = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };

/// An ordinary command that takes longer while memory is missing is taken to wait behind a fault, and counted.
const WAITS: Duration = Duration::from_millis(100);

/// Ends a poll from any thread.
#[derive(Debug, Clone)]
pub(super) struct Wake(Arc<OwnedFd>);

impl Wake {
    pub(super) fn new() -> Result<Self> {
        let fd = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).map_err(|e| Error::io("eventfd", e))?;
        Ok(Self(Arc::new(fd)))
    }

    pub(super) fn wake(&self) {
        // Fails only if the counter is full, and then the descriptor is readable anyway.
        let _ = rustix::io::write(&self.0, &1u64.to_ne_bytes());
    }

    fn clear(&self) {
        let _ = rustix::io::read(&self.0, &mut [0; 8]);
    }
}

/// What the thread of a listener shares with those who answer.
pub(super) struct Listener {
    core: Arc<Core>,
    wake: Wake,
    state: Mutex<State>,
}

struct State {
    clients: Vec<Client>,
    events: Subscription,
}

impl std::fmt::Debug for Listener {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Listener").finish_non_exhaustive()
    }
}

impl Listener {
    pub(super) fn new(core: Arc<Core>, wake: Wake) -> Self {
        let waker = wake.clone();
        let events = core.control.subscribe(Some(Box::new(move || waker.wake())));
        Self { core, wake, state: Mutex::new(State { clients: Vec::new(), events }) }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The answer to the command that a client waits for; nothing happens if the client has gone.
    pub(super) fn answer(&self, client: u64, answer: Answer, id: Option<Value>) {
        let mut state = self.lock();
        state.pump();
        if let Some(client) = state.find(client) {
            client.outstanding = None;
            client.answer(answer, id);
            drop(state);
            self.wake.wake();
        }
    }

    /// Takes a descriptor that a client stored.
    pub(super) fn take_fd(&self, client: u64, name: &str) -> Option<OwnedFd> {
        self.lock().find(client)?.names.remove(name)
    }

    /// The loop; ends when the monitor is closed.
    pub(super) fn run(self: &Arc<Self>, bound: &Bound) {
        let mut accept_failed = false;
        while !self.core.is_closed() {
            let sockets = self.turn();
            let mut polled = vec![PollFd::new(&self.wake.0, PollFlags::IN)];
            polled.push(PollFd::new(&bound.socket, if accept_failed { PollFlags::empty() } else { PollFlags::IN }));
            polled.extend(sockets.iter().map(|(_, socket, interest)| PollFd::from_borrowed_fd(socket.as_fd(), *interest)));
            let pause = if accept_failed { Some(ACCEPT_PAUSE) } else { self.count_waiting() };
            match poll(&mut polled, pause.as_ref()) {
                Ok(_) => {}
                Err(Errno::INTR) => continue,
                Err(error) => {
                    tracing::error!(%error, "a monitor cannot wait for its clients; it ends");
                    break;
                }
            }
            let ready: Vec<_> = polled.iter().map(PollFd::revents).collect();
            if !ready[0].is_empty() {
                self.wake.clear();
            }
            let mut state = self.lock();
            for ((id, ..), ready) in sockets.iter().zip(&ready[2..]) {
                if let Some(client) = state.find(*id) {
                    if ready.intersects(PollFlags::IN) {
                        client.receive();
                    } else if ready.intersects(PollFlags::HUP | PollFlags::ERR | PollFlags::NVAL) {
                        client.dead = true;
                    }
                }
            }
            drop(state);
            accept_failed = !ready[1].is_empty() && !self.accept(bound);
        }
        // The answer to `quit` and the last events, as far as the sockets take them.
        self.turn();
        self.lock().clients.clear();
    }

    /// Counts the commands that wait behind a fault; says when to look again.
    fn count_waiting(&self) -> Option<Timespec> {
        if !self.core.control.incoming_status().in_postcopy() {
            return None;
        }
        let mut next = None;
        for waiting in self.lock().clients.iter_mut().filter_map(|client| client.outstanding.as_mut()).filter(|waiting| !waiting.counted) {
            let left = WAITS.saturating_sub(waiting.since.elapsed());
            if left.is_zero() {
                waiting.counted = true;
                self.core.control.commands_waited.add(1);
            } else {
                next = Some(next.map_or(left, |next: Duration| next.min(left)));
            }
        }
        next.and_then(|left| left.try_into().ok())
    }

    /// Does everything that can be done now; says what to wait for.
    fn turn(self: &Arc<Self>) -> Vec<(u64, Arc<OwnedFd>, PollFlags)> {
        let mut state = self.lock();
        state.pump();
        for index in 0..state.clients.len() {
            loop {
                while let Some(work) = state.clients[index].next_work() {
                    self.perform(&mut state, index, work);
                }
                if std::mem::take(&mut state.clients[index].quits) {
                    self.core.expect_exit();
                }
                state.clients[index].flush();
                // Flushing may have made room for input that is here already; nobody would wake us for that.
                if !state.clients[index].can_go_on() {
                    break;
                }
            }
        }
        state.clients.iter_mut().for_each(Client::flush);
        state.clients.retain(|client| !client.dead);
        let interest = |client: &Client| {
            let mut flags = PollFlags::empty();
            flags.set(PollFlags::IN, client.wants_input());
            flags.set(PollFlags::OUT, client.wants_output());
            flags
        };
        state.clients.iter().map(|client| (client.id, client.socket.clone(), interest(client))).collect()
    }

    fn perform(self: &Arc<Self>, state: &mut State, index: usize, work: Work) {
        let (request, fd) = match work {
            Work::Refuse { id, error } => return state.clients[index].answer(Err(error), id),
            Work::Run { request, fd } => (request, fd),
        };
        let client = &mut state.clients[index];
        let name = request.name.as_str();
        let answer = if client.mode == Mode::Negotiation && name != "qmp_capabilities" {
            Err(QmpError::not_found("capabilities come first: send qmp_capabilities"))
        } else if !self.core.facts.knows(name) {
            Err(QmpError::not_found(format!("the command {name} has not been found")))
        } else if request.oob && !Facts::allows_oob(name) {
            Err(QmpError::generic(format!("the command {name} cannot be run out of band")))
        } else if Facts::answers(name) {
            self.core.facts.run(&self.core.control, client, name, Arguments(request.arguments), fd)
        } else {
            client.outstanding = Some(Outstanding { since: Instant::now(), counted: false });
            self.core.dispatch(Arc::downgrade(self), client.id, request);
            return;
        };
        // Events first: those that this command caused, and those before.
        if name != "qmp_capabilities" {
            state.pump();
        }
        state.clients[index].answer(answer, request.id);
    }

    /// Takes every connection that waits; false if the system refused.
    fn accept(&self, bound: &Bound) -> bool {
        loop {
            match rustix::net::accept_with(&bound.socket, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK) {
                Ok(socket) => {
                    // Answers are small; on a unix socket this does not apply.
                    let _ = rustix::net::sockopt::set_tcp_nodelay(&socket, true);
                    let mut state = self.lock();
                    if state.clients.len() == CLIENT_LIMIT {
                        tracing::warn!("too many monitor clients; connection closed");
                        continue;
                    }
                    let mut client = Client::new(self.core.next_client(), socket);
                    client.push(&line(&self.core.facts.greeting()));
                    state.clients.push(client);
                }
                Err(Errno::AGAIN) => return true,
                Err(Errno::INTR | Errno::CONNABORTED) => {}
                Err(error) => {
                    tracing::warn!(%error, "a monitor cannot accept a connection; trying again");
                    return false;
                }
            }
        }
    }
}

impl State {
    fn find(&mut self, id: u64) -> Option<&mut Client> {
        self.clients.iter_mut().find(|client| client.id == id && !client.dead)
    }

    /// Queues the events that wait for every client in command mode.
    fn pump(&mut self) {
        while let Some(event) = self.events.try_next() {
            let line = line(&render(&event));
            self.clients.iter_mut().filter(|client| client.mode != Mode::Negotiation).for_each(|client| client.push(&line));
        }
    }
}

fn render(event: &Event) -> Value {
    let mut message = Map::new();
    message.insert(
        "timestamp".into(),
        match event.time.duration_since(UNIX_EPOCH) {
            Ok(time) => stamp(time),
            Err(_) => json!({ "seconds": -1, "microseconds": -1 }),
        },
    );
    message.insert("event".into(), event.name.as_str().into());
    if let Some(data) = &event.data {
        message.insert("data".into(), data.clone());
    }
    Value::Object(message)
}

fn stamp(time: Duration) -> Value {
    json!({ "seconds": time.as_secs(), "microseconds": time.subsec_micros() })
}
