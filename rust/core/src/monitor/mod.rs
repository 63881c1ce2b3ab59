//! QMP transport: listeners, clients, framing, negotiation, events, and the commands that must work while Python is stuck.
//!
//! Each listener has one thread of the core (`server`), which never attaches to the interpreter. A command that it does not
//! answer itself (`commands`) waits in one queue for whoever calls `next_command`, at most one per client, so each client's
//! order is kept. Python checks the arguments of its commands; the ones here are checked here.
//!
//! ```text
//! socket ─► Framer ─► Request ─┬─► Facts::run ──────────────► answer ─┐
//!                              └─► queue ─► Command (Python) ─► reply ┼─► client's output ─► socket
//! Control ─► event bus ───────────────────────────────────────────────┘
//! ```

mod address;
mod client;
mod commands;
mod framing;
mod request;
mod server;
#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

use serde_json::{Map, Value};

use self::address::SocketPath;
pub use self::client::{OUTPUT_LIMIT, QUEUE_LIMIT};
use self::commands::Facts;
pub use self::framing::{Framer, MAX_NESTING, MAX_TEXT, MAX_TOKENS};
use self::request::{Answer, QmpError, Request};
use self::server::{Listener, Wake};
use crate::control::Control;
use crate::sys::signal;
use crate::{Error, ErrorKind, Result};

/// How long a SIGTERM may take before the process is ended from here.
pub const SIGNAL_GRACE: Duration = Duration::from_secs(5);

#[derive(Debug, Default)]
struct Queue {
    commands: VecDeque<Command>,
    closed: bool,
}

/// What listeners, commands and the monitor share.
#[derive(Debug)]
struct Core {
    control: Arc<Control>,
    facts: Facts,
    queue: Mutex<Queue>,
    changed: Condvar,
    wakes: Mutex<Vec<Wake>>,
    paths: Mutex<Vec<Weak<SocketPath>>>,
    clients: AtomicU64,
    /// `handle_signals` was called: the process is ours, so `quit` ends it even if nobody takes the command.
    owns_process: AtomicBool,
}

impl Core {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_closed(&self) -> bool {
        self.queue().closed
    }

    fn next_client(&self) -> u64 {
        self.clients.fetch_add(1, Ordering::Relaxed) + 1
    }

    fn dispatch(self: &Arc<Self>, listener: Weak<Listener>, client: u64, request: Request) {
        if request.quits() {
            self.expect_exit();
        }
        let Request { name, arguments, id, .. } = request;
        self.enqueue(Command { name, arguments, client, id, listener, answered: AtomicBool::new(false) });
    }

    fn enqueue(&self, command: Command) {
        self.queue().commands.push_back(command);
        // All: those who watch over the exit wait here too.
        self.changed.notify_all();
    }

    /// Somebody said `quit`: if the process is ours, it ends within `SIGNAL_GRACE`, whoever is stuck, also where the monitor is closed
    /// by then: what the process waits for at its very end may be a thread that waits for a page.
    fn expect_exit(self: &Arc<Self>) {
        if !self.owns_process.load(Ordering::Acquire) {
            return;
        }
        if self.control.outgoing_status().in_postcopy() {
            let left = self.control.query_migrate()["ram"]["remaining"].as_u64().unwrap_or_default();
            tracing::warn!(
                "the destination still needs {left} bytes of memory from here: what is not sent within {} s is lost, and so is the machine",
                SIGNAL_GRACE.as_secs()
            );
        }
        let core = self.clone();
        if Builder::new().name("qmig-exit".into()).spawn(move || core.exit_after(SIGNAL_GRACE, false)).is_err() {
            signal::exit_now(0);
        }
    }

    /// Ends the process after `grace`; with `spared_by_close` not if the monitor is closed by then.
    fn exit_after(&self, grace: Duration, spared_by_close: bool) {
        let end = Instant::now() + grace;
        let mut queue = self.queue();
        while !(spared_by_close && queue.closed) {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                for path in self.paths.lock().unwrap_or_else(PoisonError::into_inner).iter().filter_map(Weak::upgrade) {
                    path.remove();
                }
                signal::exit_now(0);
            }
            queue = self.changed.wait_timeout(queue, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

/// QMP for any number of listeners and clients.
#[derive(Debug)]
pub struct Monitor {
    core: Arc<Core>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl Monitor {
    /// `commands`: the names that `next_command` will bring; `package`: the version text of this software.
    pub fn new(control: Arc<Control>, commands: &[String], package: &str) -> Self {
        let core = Core {
            control,
            facts: Facts::new(commands, package),
            queue: Mutex::default(),
            changed: Condvar::new(),
            wakes: Mutex::default(),
            paths: Mutex::default(),
            clients: AtomicU64::new(0),
            owns_process: AtomicBool::new(false),
        };
        Self { core: Arc::new(core), threads: Mutex::default() }
    }

    /// Listens on `unix:PATH` or `tcp:HOST:PORT` (port 0: chosen); returns the bound address. `listen` if that fails.
    pub fn listen(&self, address: &str) -> Result<String> {
        let bound = address::bind(address)?;
        let wake = Wake::new()?;
        let mut threads = self.threads();
        if self.core.is_closed() {
            return Err(Error::new(ErrorKind::InvalidState, "the monitor is closed"));
        }
        let address = bound.address.clone();
        let path = bound.path.as_ref().map(Arc::downgrade);
        let listener = Arc::new(Listener::new(self.core.clone(), wake.clone()));
        let thread = Builder::new().name("qmig-monitor".into()).stack_size(framing::STACK);
        let thread = thread.spawn(move || listener.run(&bound)).map_err(|e| Error::io("starting the thread of a monitor", e))?;
        self.core.wakes.lock().unwrap_or_else(PoisonError::into_inner).push(wake);
        self.core.paths.lock().unwrap_or_else(PoisonError::into_inner).extend(path);
        threads.push(thread);
        Ok(address)
    }

    /// The next command to answer; none after `timeout` (for ever without one) or once the monitor is closed.
    pub fn next_command(&self, timeout: Option<Duration>) -> Option<Command> {
        let end = timeout.and_then(|t| Instant::now().checked_add(t));
        let mut queue = self.core.queue();
        loop {
            if queue.closed {
                return None;
            }
            if let Some(command) = queue.commands.pop_front() {
                return Some(command);
            }
            queue = match end {
                None => self.core.changed.wait(queue).unwrap_or_else(PoisonError::into_inner),
                Some(end) => {
                    let left = end.checked_duration_since(Instant::now())?;
                    self.core.changed.wait_timeout(queue, left).unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
    }

    /// If `close` is not called within `grace`, the process ends with status 0.
    pub fn arm_exit(&self, grace: Duration) -> Result<()> {
        let core = self.core.clone();
        let thread = Builder::new().name("qmig-exit".into()).spawn(move || core.exit_after(grace, true));
        self.threads().push(thread.map_err(|e| Error::io("starting the thread that watches over the exit", e))?);
        Ok(())
    }

    /// Catches SIGTERM, SIGINT and SIGHUP, whichever threads the process has. Each becomes a `quit` command, and the process ends
    /// `SIGNAL_GRACE` later at most; once the monitor is closed, at once. From now on `quit` of a client has that limit, too.
    ///
    /// This thread, and those it starts later, mask them: they may be stuck in the kernel, on a page that does not come, when one
    /// would be theirs to handle.
    pub fn handle_signals(&self) -> Result<()> {
        const SIGNALS: &[i32] = &[signal::SIGTERM, signal::SIGINT, signal::SIGHUP];
        let failed = |e| Error::io("signals cannot be handled", e);
        signal::mask(SIGNALS, true).map_err(failed)?;
        signal::catch(SIGNALS).map_err(failed)?;
        self.core.owns_process.store(true, Ordering::Release);
        let core = Arc::downgrade(&self.core);
        let work = move || {
            // Where it fails nothing is lost but the certainty that a thread is free: another may be.
            let _ = signal::mask(SIGNALS, false);
            while signal::take().is_ok() {
                let Some(core) = core.upgrade().filter(|core| !core.is_closed()) else { signal::exit_now(0) };
                core.enqueue(Command::quit());
                core.expect_exit();
            }
        };
        // Not joined by close(): it watches until the process has ended.
        Builder::new().name("qmig-signals".into()).spawn(work).map(drop).map_err(failed)
    }

    /// Ends listeners and clients, sends what their sockets still take, and wakes `next_command`. Idempotent.
    pub fn close(&self) {
        let commands = {
            let mut queue = self.core.queue();
            queue.closed = true;
            std::mem::take(&mut queue.commands)
        };
        self.core.changed.notify_all();
        drop(commands);
        // Under this lock a `listen` is either complete or has not begun, and then it sees that we are closed.
        let mut threads = self.threads();
        for wake in self.core.wakes.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            wake.wake();
        }
        let threads = std::mem::take(&mut *threads);
        for thread in threads {
            if thread.join().is_err() {
                tracing::error!("a monitor thread has panicked");
            }
        }
    }

    /// True once `close` was called.
    pub fn is_closed(&self) -> bool {
        self.core.is_closed()
    }

    fn threads(&self) -> MutexGuard<'_, Vec<JoinHandle<()>>> {
        self.threads.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        self.close();
    }
}

/// One command that must be answered exactly once; dropped unanswered, it is answered with an error.
#[derive(Debug)]
pub struct Command {
    name: String,
    arguments: Map<String, Value>,
    client: u64,
    id: Option<Value>,
    listener: Weak<Listener>,
    answered: AtomicBool,
}

impl Command {
    /// `quit` from a signal: nobody waits for its answer.
    fn quit() -> Self {
        Self { name: "quit".into(), arguments: Map::new(), client: 0, id: None, listener: Weak::new(), answered: AtomicBool::new(false) }
    }

    /// The command's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its arguments, not checked.
    pub fn arguments(&self) -> &Map<String, Value> {
        &self.arguments
    }

    /// The connection's number; 0 for a signal.
    pub fn client(&self) -> u64 {
        self.client
    }

    /// Takes a descriptor that `getfd` stored on this connection.
    pub fn take_fd(&self, name: &str) -> Option<OwnedFd> {
        self.listener.upgrade()?.take_fd(self.client, name)
    }

    /// Answers `{"return": value}`. `invalid-state` if it was answered already.
    pub fn reply(&self, value: Value) -> Result<()> {
        self.answer(Ok(value))
    }

    /// Answers with an error of `class`. `invalid-state` if it was answered already.
    pub fn fail(&self, class: &str, text: &str) -> Result<()> {
        self.answer(Err(QmpError { class: class.to_owned(), text: text.to_owned() }))
    }

    fn answer(&self, answer: Answer) -> Result<()> {
        if self.answered.swap(true, Ordering::AcqRel) {
            return Err(Error::new(ErrorKind::InvalidState, format!("the command {} was answered already", self.name)));
        }
        if let Some(listener) = self.listener.upgrade() {
            listener.answer(self.client, answer, self.id.clone());
        }
        Ok(())
    }
}

impl Drop for Command {
    fn drop(&mut self) {
        if !*self.answered.get_mut() {
            let _ = self.answer(Err(QmpError::generic(format!("the command {} was given up without an answer", self.name))));
        }
    }
}
