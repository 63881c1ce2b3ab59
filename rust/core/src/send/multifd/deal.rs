//! What the migration thread and the senders of multifd share: packets to be sent, empty ones, points of synchronisation.
//!
//! Any sender takes the next packet. A packet knows how many points of synchronisation came before it, and a sender takes it only
//! when its own channel has passed as many: so nothing of a round overtakes the round before, and nobody waits for it. One lock,
//! taken twice a packet; whoever has nothing to do sleeps.

use std::collections::VecDeque;
use std::mem;
use std::ops::AddAssign;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::wire::consts::MULTIFD_PAGES;
use crate::{Error, Result};

/// Packets for each channel: one under way and some waiting.
const PACKETS: usize = 3;

/// Pages of one block on their way.
#[derive(Debug)]
pub struct Packet {
    /// Number of the block.
    pub area: usize,
    /// Offsets of pages; those that turn out to be zero move to the other list.
    pub pages: Vec<u64>,
    /// Offsets of zero pages.
    pub zero: Vec<u64>,
    /// Bytes that were counted against the rate limit for it.
    pub charged: u64,
    /// Its number among all packets of all channels.
    pub number: u64,
    syncs: u64,
}

impl Packet {
    fn new() -> Self {
        let room = || Vec::with_capacity(MULTIFD_PAGES as usize);
        Self { area: 0, pages: room(), zero: room(), charged: 0, number: 0, syncs: 0 }
    }

    /// It has no room for another page.
    pub fn is_full(&self) -> bool {
        self.pages.len() + self.zero.len() == MULTIFD_PAGES as usize
    }
}

/// What was sent.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Tally {
    /// Pages with their content.
    pub normal: u64,
    /// Pages that were zero.
    pub zero: u64,
    /// Bytes of channels.
    pub bytes: u64,
    /// Of these, bytes of packets with pages.
    pub paged: u64,
    /// Bytes that had been counted against the rate limit for them.
    pub charged: u64,
}

impl AddAssign for Tally {
    fn add_assign(&mut self, more: Self) {
        self.normal += more.normal;
        self.zero += more.zero;
        self.bytes += more.bytes;
        self.paged += more.paged;
        self.charged += more.charged;
    }
}

/// What a sender does next.
#[derive(Debug)]
pub enum Job {
    /// Send this, then say so.
    Pages(Packet),
    /// Send a packet of this number that says SYNC.
    Sync(u64),
}

#[derive(Debug)]
struct State {
    queue: VecDeque<Packet>,
    free: Vec<Packet>,
    /// Packets under way.
    busy: usize,
    /// So many may wait or be under way.
    most: usize,
    /// Points of synchronisation so far, and how many of their packets were sent, one for each channel.
    syncs: u64,
    synced: u64,
    /// Packets so far, of both kinds.
    numbers: u64,
    tally: Tally,
    /// Senders asleep.
    idle: usize,
    /// What the migration thread waits for.
    awaited: Option<fn(&State, usize) -> bool>,
    error: Option<Error>,
    over: bool,
}

/// The shared state.
#[derive(Debug)]
pub struct Deal {
    channels: usize,
    state: Mutex<State>,
    work: Condvar,
    room: Condvar,
}

impl Deal {
    /// For so many channels.
    pub fn new(channels: usize) -> Self {
        let state = State {
            queue: VecDeque::with_capacity(PACKETS * channels + 1),
            free: (0..=PACKETS * channels).map(|_| Packet::new()).collect(),
            busy: 0,
            most: usize::MAX,
            syncs: 0,
            synced: 0,
            numbers: 0,
            tally: Tally::default(),
            idle: 0,
            awaited: None,
            error: None,
            over: false,
        };
        Self { channels, state: Mutex::new(state), work: Condvar::new(), room: Condvar::new() }
    }

    /// An empty packet, if there is one at once and no more than `most` wait or are under way.
    pub fn empty(&self, most: usize) -> Result<Option<Packet>> {
        let mut state = self.lock();
        state.error.clone().map_or(Ok(()), Err)?;
        state.most = most;
        Ok(if state.has_room() { state.free.pop() } else { None })
    }

    /// An empty packet, once the senders have little left: who fills them fills several then.
    pub fn wait_empty(&self, most: usize) -> Result<Packet> {
        loop {
            self.wait(|state, channels| state.has_room() && state.queue.len() <= channels, None)?;
            if let Some(packet) = self.empty(most)? {
                return Ok(packet);
            }
        }
    }

    /// Hand over a packet.
    pub fn give(&self, mut packet: Packet) -> Result<()> {
        let mut state = self.lock();
        state.error.clone().map_or(Ok(()), Err)?;
        packet.syncs = state.syncs;
        packet.number = state.take_number();
        state.queue.push_back(packet);
        if state.idle > 0 {
            self.work.notify_one();
        }
        Ok(())
    }

    /// A point of synchronisation: what was given before it arrives before what is given after it.
    pub fn sync(&self) -> Result<()> {
        let mut state = self.lock();
        state.error.clone().map_or(Ok(()), Err)?;
        state.syncs += 1;
        if state.idle > 0 {
            self.work.notify_all();
        }
        Ok(())
    }

    /// Whether everything has been written; waits for it, but not beyond `until`.
    pub fn settled(&self, until: Option<Instant>) -> Result<bool> {
        self.wait(|state, channels| state.queue.is_empty() && state.busy == 0 && state.synced == state.syncs * channels as u64, until)
    }

    /// What was sent since the last call.
    pub fn tally(&self) -> Tally {
        mem::take(&mut self.lock().tally)
    }

    /// No more work: the senders end when they look next.
    pub fn end(&self) {
        self.lock().over = true;
        self.work.notify_all();
    }

    /// The next job for a channel that has passed `seen` points of synchronisation; none at the end.
    pub fn next(&self, seen: &mut u64) -> Option<Job> {
        let mut state = self.lock();
        loop {
            if state.over || state.error.is_some() {
                return None;
            }
            if state.queue.front().is_some_and(|packet| packet.syncs == *seen)
                && let Some(packet) = state.queue.pop_front()
            {
                state.busy += 1;
                self.tell(&state);
                return Some(Job::Pages(packet));
            }
            if *seen < state.syncs {
                *seen += 1;
                return Some(Job::Sync(state.take_number()));
            }
            state.idle += 1;
            state = self.work.wait(state).unwrap_or_else(PoisonError::into_inner);
            state.idle -= 1;
        }
    }

    /// A packet was sent.
    pub fn sent(&self, mut packet: Packet, tally: Tally) {
        packet.pages.clear();
        packet.zero.clear();
        packet.charged = 0;
        let mut state = self.lock();
        state.busy -= 1;
        state.tally += tally;
        state.free.push(packet);
        self.tell(&state);
    }

    /// A packet with SYNC was sent.
    pub fn sent_sync(&self, tally: Tally) {
        let mut state = self.lock();
        state.synced += 1;
        state.tally += tally;
        self.tell(&state);
    }

    /// One channel is dead: everybody who waits wakes, and nothing more is sent.
    pub fn fail(&self, error: Error) {
        let mut state = self.lock();
        state.error.get_or_insert(error);
        self.work.notify_all();
        self.room.notify_all();
    }

    /// Ends when it is so, or when a channel has died; senders write with a deadline, and a cancel ends their writes.
    /// False: `until` came first.
    fn wait(&self, awaited: fn(&State, usize) -> bool, until: Option<Instant>) -> Result<bool> {
        let mut state = self.lock();
        loop {
            state.error.clone().map_or(Ok(()), Err)?;
            if awaited(&state, self.channels) {
                return Ok(true);
            }
            let left = until.map_or(Duration::MAX, |until| until.saturating_duration_since(Instant::now()));
            if left.is_zero() {
                return Ok(false);
            }
            state.awaited = Some(awaited);
            state = self.room.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
            state.awaited = None;
        }
    }

    fn tell(&self, state: &State) {
        if state.awaited.is_some_and(|awaited| awaited(state, self.channels)) {
            self.room.notify_one();
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn has_room(&self) -> bool {
        !self.free.is_empty() && self.queue.len() + self.busy < self.most
    }

    fn take_number(&mut self) -> u64 {
        self.numbers += 1;
        self.numbers - 1
    }
}
