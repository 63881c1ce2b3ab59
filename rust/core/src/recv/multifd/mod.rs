//! Pages on several channels (spec/stream 12): one thread a channel, and the barrier at which the main channel waits for all of them.
//!
//! ```text
//!   main channel     ... pages of round 1 are sent ──marker── round 2 ──marker── ... END
//!   channel 0        data data SYNC ─┐ waits         data SYNC ─┐
//!   channel 1        data SYNC ──────┘ released    data data SYNC┘
//! ```
//!
//! A page that travels again on another channel must not be overtaken, so at a marker everything before it is in its place. The marker
//! is the word FLUSH where the stream uses that, which its first section shows, and the end of each section of RAM else. A channel that
//! breaks breaks the barrier: whoever waits there, or for the main channel, gets its error.
//!
//! From the section END on the source may give the machine away at any time: pages wait then until main brings one more section of RAM,
//! and a channel that breaks is missed by that section only. Once the stream has ended nobody cares for the channels any more.

mod channel;
mod door;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::places::Places;
use crate::channel::{Cancel, Channel, Listener, ReadHalf, Registration};
use crate::control::Counter;
use crate::wire::multifd::Method;
use crate::{Error, ErrorKind, Result};

use channel::Receiver;
use door::Door;

/// What both sides must agree on.
#[derive(Debug, Clone, Copy)]
pub struct Terms {
    /// Channels beside the main one.
    pub channels: u8,
    /// How their pages are compressed.
    pub method: Method,
    /// UUID of this machine; zeros if it has none.
    pub uuid: [u8; 16],
    /// From the first connection to the last.
    pub connect: Duration,
    /// For the next byte of a channel that the main one waits for.
    pub stall: Duration,
}

/// All channels beside the main one.
#[derive(Debug)]
pub struct FanIn {
    shared: Arc<Shared>,
    threads: Mutex<Vec<JoinHandle<Receiver>>>,
    _with_link: Registration,
}

/// What the threads of the channels and that of the main channel share.
#[derive(Debug)]
struct Shared {
    method: Method,
    stall: Duration,
    /// Ends all channels, and every wait for one.
    cut: Cancel,
    state: Mutex<State>,
    changed: Condvar,
    /// By channel: bytes that came.
    heard: Vec<AtomicU64>,
    /// The same of all, and of the main channel.
    received: Arc<Counter>,
    _with_cut: Registration,
}

/// Which marks there are on the main channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Marks {
    Unknown,
    /// A word of their own.
    Flushes,
    /// The end of each section of RAM.
    Sections,
}

/// How far a channel is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum At {
    /// On its way.
    Pages,
    /// Behind a packet of synchronisation.
    Sync,
    /// At its end.
    Over,
}

#[derive(Debug)]
struct State {
    marks: Marks,
    /// Since the block list.
    places: Option<Arc<Places>>,
    /// By channel.
    at: Vec<At>,
    /// How often all of them were released.
    released: u64,
    /// Packets that are being put in their place.
    placing: usize,
    /// All of RAM is here, unless main brings more: until then no packet is put in its place.
    held: bool,
    /// No more RAM comes.
    ended: bool,
    /// What broke first.
    failure: Option<Error>,
}

impl FanIn {
    /// Accepts all channels of one migration, in whatever order they come, and the main one, which is the second result. `agree` is
    /// asked when a source is here; `link` ends everything, and `tally` counts what comes.
    pub fn gather(listener: &Listener, link: &Cancel, tally: &Arc<Counter>, agree: &dyn Fn() -> Terms) -> Result<(Arc<Self>, Channel)> {
        let mut door = Door::new(agree);
        let gathered = listener.gather(link, &mut door);
        let channels = gathered.map_err(|error| door.explain(error))?;
        let terms = door.terms();
        let (mut readers, mut main) = (Vec::new(), None);
        for (channel, number) in channels.into_iter().zip(door.numbers()) {
            match number {
                Some(number) => readers.extend(channel.split().0.map(|reader| (usize::from(number), reader))),
                None => main = Some(channel),
            }
        }
        let main = main.ok_or_else(|| Error::new(ErrorKind::Closed, "there is no main channel"))?; // the door has seen it
        Ok((Self::start(readers, link, &terms, tally)?, main))
    }

    fn start(readers: Vec<(usize, ReadHalf)>, link: &Cancel, terms: &Terms, tally: &Arc<Counter>) -> Result<Arc<Self>> {
        let cut = Cancel::new()?;
        let shared = Arc::new_cyclic(|this: &Weak<Shared>| Shared::new(terms, tally, cut.clone(), this.clone()));
        let with_link = link.register(Box::new(move || cut.set()));
        let this = Arc::new(Self { shared, threads: Mutex::default(), _with_link: with_link });
        for (index, reader) in readers {
            let receiver = Receiver::new(Arc::clone(&this.shared), index, reader);
            let thread = std::thread::Builder::new().name(format!("qmig-multifd-{index}")).spawn(move || receiver.run());
            match thread {
                Ok(thread) => this.threads().push(thread),
                Err(error) => {
                    this.close();
                    return Err(Error::io("starting the thread of a multifd channel", error));
                }
            }
        }
        Ok(this)
    }

    /// Set when a channel has broken.
    pub fn broken(&self) -> &Cancel {
        &self.shared.cut
    }

    /// What broke, if something did before RAM had ended.
    pub fn failure(&self) -> Option<Error> {
        self.shared.lock().failure.clone()
    }

    /// The block list is here: pages can be placed.
    pub fn announce(&self, places: &Arc<Places>) {
        self.shared.lock().places = Some(Arc::clone(places));
        self.shared.changed.notify_all();
    }

    /// The word FLUSH.
    pub fn flush(&self) -> Result<()> {
        let mut state = self.shared.lock();
        if state.marks == Marks::Sections {
            let text = "a multifd flush in a stream whose first section has none: its marks are the ends of the sections";
            return Err(Error::new(ErrorKind::BadFlags, text));
        }
        state.marks = Marks::Flushes;
        self.shared.catch_up(state)
    }

    /// The end of a section of RAM.
    pub fn section_end(&self) -> Result<()> {
        let mut state = self.shared.lock();
        if state.marks == Marks::Flushes {
            return Ok(());
        }
        state.marks = Marks::Sections;
        self.shared.catch_up(state)
    }

    /// All of RAM is here: what still comes waits for `go_on`.
    pub fn hold(&self) -> Result<()> {
        let mut state = self.shared.lock();
        if let Some(error) = &state.failure {
            return Err(error.clone());
        }
        if state.placing > 0 {
            let text = "pages come on a multifd channel behind the last point of synchronisation";
            return Err(Error::new(ErrorKind::TrailingData, text).within("multifd"));
        }
        state.held = true;
        Ok(())
    }

    /// A section of RAM begins on main: what comes is placed (again). Fails with what broke in the meantime.
    pub fn go_on(&self) -> Result<()> {
        let mut state = self.shared.lock();
        if let Some(error) = &state.failure {
            return Err(error.clone());
        }
        if std::mem::take(&mut state.held) {
            drop(state);
            self.shared.changed.notify_all();
        }
        Ok(())
    }

    /// No more RAM comes.
    pub fn ram_ended(&self) {
        self.shared.lock().ended = true;
        self.shared.changed.notify_all();
    }

    /// Cuts the channels and waits for their threads.
    pub fn close(&self) {
        self.shared.cut.set();
        let threads = std::mem::take(&mut *self.threads());
        for thread in threads {
            if thread.join().is_err() {
                tracing::error!("the thread of a multifd channel has panicked");
            }
        }
    }

    fn threads(&self) -> MutexGuard<'_, Vec<JoinHandle<Receiver>>> {
        self.threads.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for FanIn {
    fn drop(&mut self) {
        self.close();
    }
}

impl Shared {
    fn new(terms: &Terms, tally: &Arc<Counter>, cut: Cancel, this: Weak<Self>) -> Self {
        let channels = usize::from(terms.channels);
        let with_cut = cut.register(Box::new(move || {
            if let Some(this) = this.upgrade() {
                let _order = this.lock(); // whoever has looked already waits by now
                this.changed.notify_all();
            }
        }));
        let state = State {
            marks: Marks::Unknown,
            places: None,
            at: vec![At::Pages; channels],
            released: 0,
            placing: 0,
            held: false,
            ended: false,
            failure: None,
        };
        Self {
            method: terms.method,
            stall: terms.stall,
            cut,
            state: Mutex::new(state),
            changed: Condvar::new(),
            heard: (0..channels).map(|_| AtomicU64::new(0)).collect(),
            received: Arc::clone(tally),
            _with_cut: with_cut,
        }
    }

    /// The main channel is at a mark: waits until every channel is at its packet of synchronisation, and releases all.
    fn catch_up(&self, mut state: MutexGuard<'_, State>) -> Result<()> {
        let (mut heard, mut since) = (self.heard(), Instant::now());
        while !state.at.iter().all(|at| *at == At::Sync) {
            if let Some(error) = &state.failure {
                return Err(error.clone());
            }
            if self.cut.is_set() {
                return Err(cancelled());
            }
            if let Some(index) = state.at.iter().position(|at| *at == At::Over) {
                let text = "the channel has ended where the main channel waits for it once more";
                return Err(Error::new(ErrorKind::Truncated, text).within(&path(index)));
            }
            state = self.changed.wait_timeout(state, self.stall / 8).unwrap_or_else(PoisonError::into_inner).0;
            let now = self.heard();
            if now != heard {
                (heard, since) = (now, Instant::now());
            } else if since.elapsed() >= self.stall && state.at.contains(&At::Pages) {
                return Err(self.late(&state));
            }
        }
        state.at.fill(At::Pages);
        state.released += 1;
        drop(state);
        self.changed.notify_all();
        Ok(())
    }

    fn late(&self, state: &State) -> Error {
        let late = (0..state.at.len()).filter(|index| state.at[*index] == At::Pages).map(|index| index.to_string());
        let text = format!(
            "the main channel waits for a point of synchronisation of channel {}, and nothing has come for {:?}; see whether the source hangs",
            late.collect::<Vec<_>>().join(", "),
            self.stall
        );
        Error::new(ErrorKind::Timeout, text).within("multifd")
    }

    /// Bytes that came on all channels.
    fn heard(&self) -> u64 {
        self.heard.iter().map(|bytes| bytes.load(Ordering::Relaxed)).sum()
    }

    /// A packet with pages is here: waits until they may be placed. None when RAM has ended, to whose memory nothing is added.
    fn begin(&self) -> Result<Option<Arc<Places>>> {
        let mut state = self.lock();
        loop {
            if self.cut.is_set() {
                return Err(cancelled());
            }
            if state.ended {
                return Ok(None);
            }
            if let Some(places) = state.places.clone().filter(|_| !state.held) {
                state.placing += 1;
                return Ok(Some(places));
            }
            state = self.wait(state);
        }
    }

    /// Its pages are in their places.
    fn placed(&self) {
        self.lock().placing -= 1;
    }

    /// Channel `index` is at a packet of synchronisation: waits until the main channel is, too. False when RAM has ended.
    fn arrive(&self, index: usize) -> Result<bool> {
        let mut state = self.lock();
        state.at[index] = At::Sync;
        self.changed.notify_all();
        let released = state.released;
        while state.released == released && !state.ended {
            if self.cut.is_set() {
                return Err(cancelled());
            }
            state = self.wait(state);
        }
        Ok(state.released != released)
    }

    /// Channel `index` is at its end.
    fn over(&self, index: usize, outcome: Result<()>) {
        let mut state = self.lock();
        state.at[index] = At::Over;
        // Once all are cut, one that breaks says nothing new.
        let mut broken = false;
        if let Some(error) = outcome.err().filter(|_| !state.ended && !self.cut.is_set()) {
            state.failure.get_or_insert(error);
            broken = !state.held;
        }
        drop(state);
        self.changed.notify_all();
        if broken {
            self.cut.set();
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        self.changed.wait(state).unwrap_or_else(PoisonError::into_inner)
    }
}

/// Where errors of a channel are.
fn path(index: usize) -> String {
    format!("multifd/channel {index}")
}

fn cancelled() -> Error {
    Error::new(ErrorKind::Cancelled, "cancelled")
}
