//! The channel for requested pages (`postcopy-preempt`): the second connection, whenever it comes.
//!
//! A source of 7.2 connects it at the start, one of 10.0 when the switch begins, and either again after a lost link. So it is accepted
//! at any time and left unread until there is memory to place its pages in.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use super::placing::{Came, Placing};
use super::silence::{Heard, Silence};
use crate::channel::{Cancel, Listener, ReadHalf};
use crate::postcopy::Requests;
use crate::wire::AnnouncedBlocks;
use crate::{Error, ErrorKind, Result};

/// What the channel needs to be read, once there is memory to place its pages in.
#[derive(Debug, Clone)]
pub struct Reading {
    /// The blocks, as the stream knows them.
    pub blocks: AnnouncedBlocks,
    /// For each of them its number in the memory.
    pub order: Arc<[usize]>,
    /// Where the pages go.
    pub requests: Arc<Requests>,
    /// Who waits for their coming, and for the end of the channel.
    pub came: Arc<dyn Came>,
    /// What its bytes break.
    pub silence: Arc<Silence>,
}

/// The second channel of one connection.
#[derive(Debug)]
pub struct Second {
    link: Cancel,
    shared: Arc<Shared>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

#[derive(Debug, Default)]
struct Shared {
    slot: Mutex<Slot>,
    /// It is at its end.
    over: AtomicBool,
    failure: Mutex<Option<Error>>,
}

#[derive(Debug, Default)]
enum Slot {
    /// Neither a channel nor anything to read it for.
    #[default]
    Empty,
    Channel(ReadHalf),
    Ready(Reading),
}

impl Second {
    /// Waits for it in a thread of its own; `link` ends that, and the channel.
    pub fn expect(listener: Arc<Listener>, link: &Cancel) -> Result<Self> {
        let second = Self { link: link.clone(), shared: Arc::default(), threads: Mutex::default() };
        let (shared, link) = (Arc::clone(&second.shared), link.clone());
        second.spawn(move || {
            match listener.accept(&link) {
                Ok(channel) => shared.connected(channel.split().0, &link),
                Err(error) if error.kind == ErrorKind::Cancelled => {}
                // The source finds out when it wants the channel; pages come without it, too.
                Err(error) => tracing::warn!(%error, "the channel for requested pages cannot be accepted"),
            }
        })?;
        Ok(second)
    }

    /// There is memory to place pages in: reading begins.
    pub fn ready(&self, reading: Reading) -> Result<()> {
        let former = std::mem::replace(&mut *self.shared.slot(), Slot::Ready(reading.clone()));
        if let Slot::Channel(reader) = former {
            let (shared, link) = (Arc::clone(&self.shared), self.link.clone());
            self.spawn(move || shared.read(reader, &reading, &link))?;
        }
        Ok(())
    }

    /// More may come through it, or it may still come.
    pub fn is_open(&self) -> bool {
        !self.shared.over.load(Ordering::Acquire)
    }

    /// Why it broke, if it did; the link was cut then.
    pub fn failure(&self) -> Option<Error> {
        self.shared.failure.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits for its end, by its EOS or by the link's.
    pub fn join(&self) {
        loop {
            let thread = self.threads.lock().unwrap_or_else(PoisonError::into_inner).pop();
            let Some(thread) = thread else { return };
            if thread.join().is_err() {
                tracing::error!("the thread of the channel for requested pages has panicked");
            }
        }
    }

    fn spawn(&self, work: impl FnOnce() + Send + 'static) -> Result<()> {
        let thread = std::thread::Builder::new().name("qmig-preempt".into()).spawn(work);
        let thread = thread.map_err(|e| Error::io("starting the thread of the channel for requested pages", e))?;
        self.threads.lock().unwrap_or_else(PoisonError::into_inner).push(thread);
        Ok(())
    }
}

impl Shared {
    fn slot(&self) -> MutexGuard<'_, Slot> {
        self.slot.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn connected(&self, reader: Option<ReadHalf>, link: &Cancel) {
        let Some(reader) = reader else { return };
        let mut slot = self.slot();
        if let Slot::Ready(reading) = &*slot {
            let reading = reading.clone();
            drop(slot);
            self.read(reader, &reading, link);
        } else {
            *slot = Slot::Channel(reader);
        }
    }

    /// Until EOS; anything else is the end of the whole link, for nobody knows what was lost.
    fn read(&self, reader: ReadHalf, reading: &Reading, link: &Cancel) {
        let mut pages = reading.blocks.channel(Heard { reader, silence: Arc::clone(&reading.silence) });
        let mut sink = Placing::urgent(&reading.requests, &reading.order, Arc::clone(&reading.came));
        let read = pages.run(&mut sink).and_then(|_| sink.finish());
        drop(sink);
        if let Err(error) = read {
            *self.failure.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
            link.set();
        }
        self.over.store(true, Ordering::Release);
        reading.came.came();
    }
}
