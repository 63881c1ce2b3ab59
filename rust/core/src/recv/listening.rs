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
//! Before the machine runs everything can be undone, and whoever is stuck in a missing page goes on, in memory that is worth nothing.
//! Once it runs nothing is unregistered while a page is missing: a thread that waits for one waits until it comes. From RUN on a lost
//! connection is a pause, not a failure, and only whoever starts the machine can know that it did not run: `finish(1)` is that word,
//! and nothing else gives the machine back then. That holds even for a machine that is given up (`abandon`): zeros where data belongs
//! could be sent or written to a disk by whoever waits for it, so its threads wait on, until the process ends or `let_go`. Nothing here
//! ever needs Python.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::back::{Asking, Back};
use super::late::Late;
use super::main::{LINGER, Main, Source, drain};
use super::placing::{Came, Placing};
use super::second::{Reading, Second};
use super::silence::Silence;
use crate::channel::{Cancel, Channel, Listener};
use crate::control::{Control, Links, Status, Witness};
use crate::postcopy::{Faults, Requests};
use crate::repeats::Repeats;
use crate::wire::{AnnouncedBlocks, Command, Event, ReturnMessage};
use crate::{Error, ErrorKind, Result};

/// SHUT: the machine was not run here and never will be. Our own extension; to QEMU it is a failure like any other.
pub const NEVER_RAN: u32 = 2;
/// What the kernel keeps of a stream from this machine, unread: a page that is waited for stands behind it.
const UNREAD: usize = 64 << 10;

/// How long the source may take.
#[derive(Debug, Clone, Copy)]
pub struct Deadlines {
    /// From the first connection of several to the last.
    pub connect: Duration,
    /// For the machine's device state, with the pages that it touches while it is loaded: nobody runs the machine meanwhile.
    pub load: Duration,
    /// For each step of a recovery.
    pub recover: Duration,
    /// For the last requested pages after the end of everything else.
    pub drain: Duration,
    /// For the next byte, while requested pages are outstanding, a host page has come in part, or the main channel waits for another.
    pub stall: Duration,
}

impl Deadlines {
    /// What holds unless somebody says otherwise. A source waits for the last word longer than `load` and `drain` together.
    pub const DEFAULT: Self = Self {
        connect: Duration::from_secs(30),
        load: Duration::from_secs(60),
        recover: Duration::from_secs(30),
        drain: Duration::from_secs(30),
        stall: Duration::from_secs(60),
    };
}

impl Default for Deadlines {
    fn default() -> Self {
        Self::DEFAULT
    }
}

/// One connection: what was opened together and is cut together.
#[derive(Debug)]
pub struct Connection {
    /// The way back.
    pub back: Arc<Back>,
    /// Ends all of it.
    pub link: Cancel,
    /// The channel for requested pages, if there may be one.
    pub second: Option<Second>,
    /// Keeps the address, and turns strangers away.
    pub listener: Option<Arc<Listener>>,
}

/// Who may still end what, and what has been.
#[derive(Debug, Default)]
struct State {
    /// RUN was obeyed: the machine may run here, whether or not anybody has said so.
    running: bool,
    /// Whoever started the machine has said that it runs: nothing is undone from here on.
    settled: bool,
    /// Why the machine does not run here, or is given up.
    ended: Option<Error>,
    /// Somebody has told the source so.
    told: bool,
    /// The way back of the present connection.
    back: Option<Arc<Back>>,
    over: Option<Result<()>>,
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

    /// RUN: the machine may run here, unless something has failed already.
    pub fn run_machine(&self) -> Result<()> {
        let mut state = self.lock();
        if let Some(error) = &state.ended {
            return Err(error.clone());
        }
        state.running = true;
        self.patient.store(true, Ordering::Release);
        Ok(())
    }

    /// Fails if the machine will not run here any more.
    pub fn check(&self) -> Result<()> {
        self.lock().ended.clone().map_or(Ok(()), Err)
    }

    /// The machine runs here: wait until its memory is complete.
    pub fn wait(&self) -> Result<()> {
        let mut state = self.lock();
        if !state.running {
            return Err(Error::new(ErrorKind::InvalidState, "waiting for a machine before RUN"));
        }
        state.settled = true;
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
        let before = !state.running;
        if before {
            self.give_back(state, error);
        }
        before
    }

    /// The word of whoever was to start the machine that it has not run and never will: the same, at any time. False, and nothing
    /// happens, after [`Self::wait`].
    pub fn not_started(&self, error: Error) -> bool {
        let state = self.lock();
        let possible = !state.settled;
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
        state.running && !state.told && self.requests.memory().check_complete().is_err()
    }

    /// Nobody waits for a page any more, or may.
    fn release(&self) {
        self.requests.memory().disarm();
        drop(self.faults().take());
    }

    /// The fault thread, if none is alive.
    fn watch(self: &Arc<Self>) -> Result<()> {
        let mut faults = self.faults();
        if faults.is_some() && self.blind().is_none() {
            return Ok(());
        }
        *faults = None;
        *self.blind() = None;
        let this = Arc::downgrade(self);
        let failed = move |error| {
            if let Some(this) = this.upgrade() {
                this.went_blind(error);
            }
        };
        *faults = Some(Faults::start(Arc::clone(&self.requests), failed)?);
        Ok(())
    }

    /// The fault thread has died of `error`: the end of a machine that does not run yet, and for one that runs the reason of a pause,
    /// whose end brings another thread.
    fn went_blind(&self, error: Error) {
        tracing::error!(%error, "nobody notices who waits for a page");
        *self.blind() = Some(error.clone());
        if !self.abort(error) {
            self.links.cut();
        }
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
                None if state.settled => return Ok(()),
                None if state.running => state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
                None if left.is_zero() => {
                    let text = format!("the devices were not loaded within {:?}; see what keeps the machine here", self.deadlines.load);
                    // At once: RUN comes too late now.
                    return Err(state.ended.insert(Error::new(ErrorKind::Timeout, text)).clone());
                }
                None => state = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0,
            }
        }
    }

    /// An error ends everything, or else only the connection: then the machine may run here already.
    fn fails(&self, error: &Error) -> bool {
        let mut state = self.lock();
        if !state.running {
            state.ended.get_or_insert_with(|| error.clone());
        }
        state.ended.is_some()
    }

    /// The machine will not run here, or not any more: a source that may have it back is told, if that was not done, and may hang up.
    fn take_leave(&self, main: &mut Main, connection: &Connection) {
        let mut state = self.lock();
        let silent = state.running || std::mem::replace(&mut state.told, true);
        drop(state);
        if !silent {
            never_ran(&connection.back);
        }
        drain(main);
    }

    /// Pauses, and waits for the next connection.
    fn reconnect(self: &Arc<Self>, error: Error, main: &mut Main) -> Result<Connection> {
        self.lock().back = None;
        if !self.control.pause_incoming(error.clone()) {
            return Err(error);
        }
        loop {
            let accept = |listener: Arc<Listener>, link: &Cancel| {
                let preempt = self.control.capability(super::PREEMPT) && listener.is_socket();
                let channel = if preempt { listener.accept_first(link) } else { listener.accept(link) }?;
                Ok((channel, listener, link.clone(), preempt))
            };
            let refused = |error| self.control.note_incoming_error(error);
            let (channel, listener, link, preempt) = self.links.wait(accept, refused)?;
            match self.connect(channel, listener, &link, preempt, main) {
                Ok(connection) => return Ok(connection),
                Err(error) => {
                    link.set();
                    refused(error);
                }
            }
        }
    }

    fn connect(
        self: &Arc<Self>,
        channel: Channel,
        listener: Arc<Listener>,
        link: &Cancel,
        preempt: bool,
        main: &mut Main,
    ) -> Result<Connection> {
        let (Some(reader), Some(writer)) = channel.split() else {
            return Err(Error::new(ErrorKind::BadUri, "a recovery needs a connection with a way back"));
        };
        self.watch()?;
        let second = if preempt { Some(Second::expect(Arc::clone(&listener), link)?) } else { None };
        let back = Arc::new(Back::new(writer, link.clone()));
        let connection = Connection { back, link: link.clone(), second, listener: Some(listener) };
        self.serve(&connection)?;
        if connection.back.is_local() {
            reader.bound(UNREAD);
        }
        main.replace_source(Source::new(reader, &self.control.received));
        main.input().source().bear(&self.silence);
        main.input().source().set_deadline(Instant::now() + self.deadlines.recover);
        let mut state = self.lock();
        if let Some(error) = &state.ended {
            return Err(error.clone());
        }
        state.back = Some(Arc::clone(&connection.back));
        drop(state);
        self.control.set_incoming_status(Status::PostcopyPaused, Status::PostcopyRecover);
        Ok(connection)
    }
}

impl Listening {
    /// The second channel, if there is one, has somewhere to put its pages.
    fn serve(self: &Arc<Self>, connection: &Connection) -> Result<()> {
        let Some(second) = &connection.second else { return Ok(()) };
        second.ready(Reading {
            blocks: self.blocks.clone(),
            order: Arc::clone(&self.order),
            requests: Arc::clone(&self.requests),
            came: Arc::clone(self) as Arc<dyn Came>,
            silence: Arc::clone(&self.silence),
        })
    }

    /// Pages are asked for over this connection, those first that were asked for before.
    fn ask(&self, connection: &Connection) {
        let asking = Asking::new(Arc::clone(&connection.back), Arc::clone(self.requests.memory()));
        self.requests.set_requester(Some(Box::new(asking)));
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

impl Connection {
    /// Cuts it; nobody uses any of it when this returns.
    fn close(self, requests: &Requests) {
        self.link.set();
        requests.set_requester(None);
        if let Some(second) = &self.second {
            second.join();
        }
        // The next connection may come to the same address.
        drop(self.listener);
    }

    /// What really broke it, if `error` is what was noticed.
    fn reason(&self, error: Error) -> Error {
        let cut = error.kind == ErrorKind::Cancelled;
        match self.second.as_ref().and_then(Second::failure) {
            Some(theirs) if cut => theirs,
            _ if cut && self.back.failed() => {
                Error::new(ErrorKind::Timeout, "the source does not take page requests").within("return-path")
            }
            _ if cut => Error::new(ErrorKind::Cancelled, "the connection was ended on request (migrate-pause)"),
            _ => error,
        }
    }
}

/// Tells a source that has given the machine away that it may have it back.
fn never_ran(back: &Back) {
    if let Err(error) = back.say(&ReturnMessage::Shut(NEVER_RAN)) {
        tracing::warn!(%error, "the source could not be told that the machine never ran here");
    }
    back.end();
}
