//! After LISTEN: the thread that has the main stream from there on, through any number of lost connections, to the end.
//!
//! ```text
//!   LISTEN ──► loading ──RUN──► running ──wait(), END, EOF, all pages here──► SHUT 0, completed (late)
//!                 │              │  │
//!     any failure │    finish(1) │  │ any failure, migrate-pause
//!                 ▼              ▼  └──► postcopy-paused ──migrate-recover──► postcopy-recover ──RESUME──► on
//!           SHUT 2: it never ran, unregistered
//! ```
//!
//! A connection that is lost when the PING of the package was answered is such a pause, too: the source has heard, or will never know,
//! that the machine is here, and RUN is.
//!
//! Before the machine runs everything can be undone, and whoever is stuck in a missing page goes on, in memory that is worth nothing.
//! Once it runs nothing is unregistered while a page is missing: a thread that waits for one waits until it comes. From RUN on a lost
//! connection is a pause, not a failure, and only whoever starts the machine can know that it did not run: `finish(1)` is that word,
//! and nothing else gives the machine back then. That holds even for a machine that is given up (`abandon`): zeros where data belongs
//! could be sent or written to a disk by whoever waits for it, so its threads wait on, until the process ends or `let_go`. Nothing here
//! ever needs Python.

mod recovery;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::back::Back;
use super::connection::{Connection, never_ran};
use super::deadlines::Deadlines;
use super::late::Late;
use super::main::{LINGER, Main, drain};
use super::placing::{Came, Placing};
use super::second::Second;
use super::silence::Silence;
use crate::channel::Listener;
use crate::control::{Control, Links, Status, Witness};
use crate::postcopy::{Faults, Requests};
use crate::repeats::Repeats;
use crate::wire::{AnnouncedBlocks, Command, Event, ReturnMessage};
use crate::{Error, ErrorKind, Result};

/// What the kernel keeps of a stream from this machine, unread: a page that is waited for stands behind it.
const UNREAD: usize = 64 << 10;

/// How far the machine has come. It never goes back.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Stage {
    #[default]
    Loading,
    /// The PING of the package is about to be answered: a source that has heard so never takes the machine back.
    Promised,
    /// RUN was obeyed: the machine may run here, whether or not anybody has said so.
    Running,
    /// Whoever started the machine has said that it runs: nothing is undone from here on.
    Settled,
}

/// Who may still end what, and what has been.
#[derive(Debug, Default)]
struct State {
    stage: Stage,
    /// Why the machine does not run here, or is given up.
    ended: Option<Error>,
    /// Somebody has told the source so.
    told: bool,
    /// The way back of the present connection.
    back: Option<Arc<Back>>,
    over: Option<Result<()>>,
}

impl State {
    fn running(&self) -> bool {
        self.stage >= Stage::Running
    }
}

/// The destination after LISTEN.
#[derive(Debug)]
pub struct Listening {
    control: Arc<Control>,
    links: Arc<Links<Arc<Listener>>>,
    requests: Arc<Requests>,
    faults: Mutex<Option<Faults>>,
    /// What the fault thread died of, until there is another.
    blind: Arc<Mutex<Option<Error>>>,
    deadlines: Deadlines,
    /// When whoever loads the devices has to have come to RUN.
    load_until: Instant,
    blocks: AnnouncedBlocks,
    order: Arc<[usize]>,
    state: Mutex<State>,
    changed: Condvar,
    /// The end of everything but requested pages is here, and those are waited for.
    draining: AtomicBool,
    /// RUN was obeyed: the source may take its time, as long as it owes nothing.
    patient: Arc<AtomicBool>,
    silence: Arc<Silence>,
    thread: Mutex<Option<JoinHandle<()>>>,
    /// Commands that had no effect, on all connections.
    passed_over: Repeats,
    /// Somebody watches over who waits in vain.
    guarded: AtomicBool,
}

impl Listening {
    /// Watches the memory of `requests` and takes over the stream: `order` says which of its blocks each announced one is.
    pub fn start(
        control: &Arc<Control>,
        links: &Arc<Links<Arc<Listener>>>,
        requests: Arc<Requests>,
        order: Vec<usize>,
        mut main: Main,
        connection: Connection,
        deadlines: Deadlines,
    ) -> Result<Arc<Self>> {
        main.listening();
        let this = Arc::new(Self {
            control: Arc::clone(control),
            links: Arc::clone(links),
            faults: Mutex::default(),
            blind: Arc::default(),
            deadlines,
            load_until: Instant::now() + deadlines.load,
            blocks: main.announced_blocks(),
            order: order.into(),
            state: Mutex::default(),
            changed: Condvar::new(),
            draining: AtomicBool::new(false),
            patient: Arc::default(),
            silence: Arc::new(Silence::new(Arc::clone(&requests), deadlines.stall)),
            thread: Mutex::default(),
            passed_over: Repeats::default(),
            guarded: AtomicBool::new(false),
            requests,
        });
        this.lock().back = Some(Arc::clone(&connection.back));
        this.watch()?;
        if connection.back.is_local() {
            main.input().source().bound(UNREAD);
        }
        main.input().source().bear(&this.silence);
        main.input().source().hurry(this.load_until, &this.patient);
        this.serve(&connection)?;
        this.ask(&connection);
        control.set_incoming_status(Status::Active, Status::PostcopyActive);
        let mut thread = this.thread.lock().unwrap_or_else(PoisonError::into_inner);
        let theirs = Arc::clone(&this);
        let started = std::thread::Builder::new().name("qmig-listen".into()).spawn(move || theirs.run(main, connection));
        *thread = Some(started.map_err(|e| Error::io("starting the listen thread", e))?);
        drop(thread);
        Ok(this)
    }

    /// The PING of the package can be answered: from here on a lost connection keeps the machine from running no more. What is left of the
    /// package is here.
    pub fn promise(&self) -> Result<()> {
        let mut state = self.lock();
        if let Some(error) = &state.ended {
            return Err(error.clone());
        }
        state.stage = state.stage.max(Stage::Promised);
        Ok(())
    }

    /// RUN: the machine may run here, unless something has failed already.
    pub fn run_machine(&self) -> Result<()> {
        let mut state = self.lock();
        if let Some(error) = &state.ended {
            return Err(error.clone());
        }
        state.stage = Stage::Running;
        self.patient.store(true, Ordering::Release);
        self.changed.notify_all();
        Ok(())
    }

    /// Fails if the machine will not run here any more.
    pub fn check(&self) -> Result<()> {
        self.lock().ended.clone().map_or(Ok(()), Err)
    }

    /// The machine runs here: wait until its memory is complete.
    pub fn wait(&self) -> Result<()> {
        let mut state = self.lock();
        if !state.running() {
            return Err(Error::new(ErrorKind::InvalidState, "waiting for a machine before RUN"));
        }
        state.stage = Stage::Settled;
        self.changed.notify_all();
        while state.over.is_none() {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        drop(state);
        self.join();
        self.lock().over.clone().unwrap_or(Ok(()))
    }

    /// Before RUN: the machine will never run here. Tells the source, and lets go of whoever waits for a page. False, and nothing
    /// happens, from RUN on.
    pub fn abort(&self, error: Error) -> bool {
        let state = self.lock();
        let before = !state.running();
        if before {
            self.give_back(state, error);
        }
        before
    }

    /// The word of whoever was to start the machine that it has not run and never will: the same, at any time. False, and nothing
    /// happens, after [`Self::wait`].
    pub fn not_started(&self, error: Error) -> bool {
        let state = self.lock();
        let possible = state.stage != Stage::Settled;
        if possible {
            self.give_back(state, error);
        }
        possible
    }

    fn give_back(&self, mut state: MutexGuard<'_, State>, error: Error) {
        state.ended.get_or_insert(error);
        let back = if std::mem::replace(&mut state.told, true) { None } else { state.back.clone() };
        drop(state);
        self.changed.notify_all();
        if let Some(back) = back {
            never_ran(&back);
        }
        // The source hangs up; if it does not, it is cut off.
        let mut state = self.lock();
        let deadline = Instant::now() + LINGER;
        while state.over.is_none() && Instant::now() < deadline {
            let left = deadline.saturating_duration_since(Instant::now());
            state = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        drop(state);
        self.links.cut();
    }

    /// The machine may have run, but never will again, and the source hears nothing more. Whoever waits for a page goes on waiting.
    pub fn abandon(&self) {
        self.lock()
            .ended
            .get_or_insert_with(|| Error::new(ErrorKind::Cancelled, "the machine was given up while its memory was incomplete"));
        self.changed.notify_all();
    }

    /// How many pages somebody waits for.
    pub fn waiting(&self) -> u64 {
        if self.requests.memory().uffd().is_ok() { self.requests.outstanding() } else { 0 }
    }

    /// True for the first who asks.
    pub fn is_unguarded(&self) -> bool {
        !self.guarded.swap(true, Ordering::SeqCst)
    }

    /// Waits so long; false, and at once, if nobody can wait for a page any more.
    pub fn rest(&self, time: Duration) -> bool {
        let deadline = Instant::now() + time;
        let mut state = self.lock();
        while self.requests.memory().uffd().is_ok() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return true;
            }
            state = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        false
    }

    /// After `abandon`: nobody acts on the memory any more. Whoever waits for a page all the same goes on, and finds zeros.
    pub fn let_go(&self) {
        if self.lock().ended.is_some() {
            self.release();
        }
    }

    /// Waits for the listen thread.
    pub fn join(&self) {
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if thread.is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the listen thread has panicked");
        }
    }

    /// Nothing more happens.
    pub fn is_over(&self) -> bool {
        self.lock().over.is_some()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The listen thread.
    fn run(self: Arc<Self>, mut main: Main, mut connection: Connection) {
        let mut sink = Placing::background(&self.requests, &self.order, &self.silence);
        let end = loop {
            let error = match self.receive(&mut main, &mut sink, &connection).and_then(|()| self.loaded()) {
                Ok(()) => break Ok(connection),
                Err(error) => self.blind().clone().unwrap_or_else(|| connection.reason(error)),
            };
            if self.fails(&error) {
                self.take_leave(&mut main, &connection);
                connection.close(&self.requests);
                break Err(self.lock().ended.clone().unwrap_or(error));
            }
            connection.close(&self.requests);
            sink.abandon();
            match self.reconnect(error, &mut main) {
                Ok(next) => connection = next,
                Err(error) => break Err(error),
            }
        };
        drop(sink);
        if end.is_err() && self.may_have_run() {
            self.requests.memory().keep();
        } else {
            self.release();
        }
        let over = end.map(|connection| {
            let memory = Arc::clone(self.requests.memory());
            let preempt = self.control.capability(super::PREEMPT);
            let late = Late::new(&self.control, memory, main, self.deadlines.recover, preempt);
            let mut main = late.main(); // until the source had its chance to hear the last word
            self.control.set_witness(Arc::clone(&late) as Arc<dyn Witness>);
            self.say_goodbye(&mut main, connection);
        });
        self.lock().over = Some(over);
        self.changed.notify_all();
    }

    /// Everything is here.
    fn say_goodbye(&self, main: &mut Main, connection: Connection) {
        if let Err(error) = connection.back.say(&ReturnMessage::Shut(0)) {
            tracing::warn!(%error, "everything has arrived, but the source could not be told");
        }
        self.control.set_socket_addresses(None);
        self.control.set_incoming_status(Status::PostcopyActive, Status::Completed);
        connection.back.end();
        // It still ends the other channel, and may not find that closed.
        drain(main);
        connection.close(&self.requests);
    }

    /// The machine has run, or may have, and lacks memory.
    fn may_have_run(&self) -> bool {
        let state = self.lock();
        state.running() && !state.told && self.requests.memory().check_complete().is_err()
    }

    /// Nobody waits for a page any more, or may.
    fn release(&self) {
        self.requests.memory().disarm();
        drop(self.faults().take());
        drop(self.lock()); // who has looked already waits by now
        self.changed.notify_all();
    }

    fn faults(&self) -> MutexGuard<'_, Option<Faults>> {
        self.faults.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn blind(&self) -> MutexGuard<'_, Option<Error>> {
        self.blind.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Up to the end of the stream, and until every page is here.
    fn receive(self: &Arc<Self>, main: &mut Main, sink: &mut Placing, connection: &Connection) -> Result<()> {
        loop {
            match main.next(sink)? {
                Event::RamSection { .. } => {}
                Event::Command(command, offset) => self.obey(&command, main, connection).map_err(|e| e.at(offset))?,
                Event::End { offset } => {
                    sink.finish()?;
                    return self.drained(connection).map_err(|e| e.at(offset));
                }
                _ => return Err(Error::new(ErrorKind::UnknownElement, "an element that has no place after POSTCOPY_LISTEN")),
            }
        }
    }

    fn obey(&self, command: &Command, main: &mut Main, connection: &Connection) -> Result<()> {
        let recovers = self.control.incoming_status() == Status::PostcopyRecover;
        match command {
            Command::Ping(token) => connection.back.say(&ReturnMessage::Pong(*token)),
            Command::OpenReturnPath => Ok(()),
            Command::RecvBitmap(name) if recovers => {
                let memory = self.requests.memory();
                let block = memory.asked_for(name)?;
                connection.back.received(name, memory.received(block).words())
            }
            Command::Resume if recovers => {
                if !self.control.resumed_incoming() {
                    return Err(super::postcopy::out_of_order(command, "not recovering"));
                }
                main.input().source().clear_deadline();
                connection.back.say(&ReturnMessage::ResumeAck)?;
                self.ask(connection);
                Ok(())
            }
            Command::RecvBitmap(_) | Command::Resume => {
                if let Some(times) = self.passed_over.again() {
                    tracing::warn!("{} is passed over: no recovery is under way{times}", command.name());
                }
                Ok(())
            }
            other => Err(super::postcopy::out_of_order(other, "LISTENING or later")),
        }
    }

    /// The background is over: waits for the requested pages that are still under way.
    fn drained(self: &Arc<Self>, connection: &Connection) -> Result<()> {
        if self.control.incoming_status() == Status::PostcopyRecover {
            return Err(Error::new(ErrorKind::BadCommand, "the stream ends before POSTCOPY_RESUME"));
        }
        let memory = self.requests.memory();
        let deadline = Instant::now() + self.deadlines.drain;
        self.draining.store(true, Ordering::SeqCst);
        let waiting = Arc::clone(self);
        let _wakes = connection.link.register(Box::new(move || waiting.came()));
        let drained = loop {
            // Asked before: what was open then may have brought the last page since.
            let more = connection.second.as_ref().is_some_and(Second::is_open) && Instant::now() < deadline;
            let state = self.lock();
            match memory.check_complete() {
                Err(_) if more && !connection.link.is_set() => {
                    let left = deadline.saturating_duration_since(Instant::now());
                    let _ = self.changed.wait_timeout(state, left);
                }
                complete => break complete,
            }
        };
        self.draining.store(false, Ordering::Relaxed);
        drained
    }

    /// All memory is here: waits until the machine is, too. Whoever loads its devices has a deadline for that; once they may run, it is
    /// not for this side to say that they do not.
    fn loaded(&self) -> Result<()> {
        let mut state = self.lock();
        loop {
            let left = self.load_until.saturating_duration_since(Instant::now());
            match &state.ended {
                Some(error) => return Err(error.clone()),
                None if state.stage == Stage::Settled => return Ok(()),
                None if state.running() => state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
                None if left.is_zero() => {
                    let text = format!("the devices were not loaded within {:?}; see what keeps the machine here", self.deadlines.load);
                    // At once: RUN comes too late now.
                    return Err(state.ended.insert(Error::new(ErrorKind::Timeout, text)).clone());
                }
                None => state = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0,
            }
        }
    }

    /// An error ends everything, or else only the connection: then the machine may run here already, or is about to.
    fn fails(&self, error: &Error) -> bool {
        let mut state = self.lock();
        let lost = matches!(error.kind, ErrorKind::Closed | ErrorKind::Truncated | ErrorKind::Io | ErrorKind::Timeout);
        while lost && state.stage == Stage::Promised && state.ended.is_none() {
            let left = self.load_until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            state = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        if !state.running() {
            state.ended.get_or_insert_with(|| error.clone());
        }
        state.ended.is_some()
    }

    /// The machine will not run here, or not any more: a source that may have it back is told, if that was not done, and may hang up.
    fn take_leave(&self, main: &mut Main, connection: &Connection) {
        let mut state = self.lock();
        let silent = state.running() || std::mem::replace(&mut state.told, true);
        drop(state);
        if !silent {
            never_ran(&connection.back);
        }
        drain(main);
    }
}

impl Came for Listening {
    fn came(&self) {
        if self.draining.load(Ordering::SeqCst) {
            drop(self.lock()); // who has looked already waits by now
            self.changed.notify_all();
        }
    }
}
