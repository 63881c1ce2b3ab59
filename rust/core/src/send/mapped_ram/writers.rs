//! Threads that write runs of pages, each with its own open of the file. They sleep when there is nothing to write.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{Builder, JoinHandle};

use super::{Run, Written};
use crate::channel::Positioned;
use crate::{Error, Result};

/// Runs that wait, for each writer: enough to go on with, few enough that a rate limit is kept.
const WAITING: usize = 2;

/// The threads; dropping this ends them when what they have begun is written.
#[derive(Debug)]
pub struct Writers {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    queue: Mutex<Queue>,
    /// There is a run, or the end.
    work: Condvar,
    /// A run was taken or is written, or one has failed.
    done: Condvar,
}

#[derive(Debug, Default)]
struct Queue {
    runs: VecDeque<Run>,
    busy: usize,
    failure: Option<Error>,
    closed: bool,
}

impl Writers {
    /// `count` threads for pages of `file`.
    pub fn start(file: &Positioned, count: usize, written: &Arc<Written>) -> Result<Self> {
        let mut started = Self { shared: Arc::default(), threads: Vec::with_capacity(count) };
        started.shared.queue().runs.reserve(count * WAITING);
        for number in 0..count {
            let (shared, file, written) = (Arc::clone(&started.shared), file.another()?, Arc::clone(written));
            let thread = Builder::new().name(format!("mapped-ram {number}")).spawn(move || shared.work(&file, &written));
            started.threads.push(thread.map_err(|e| Error::io("starting a writer of the file", e))?);
        }
        Ok(started)
    }

    /// Gives a run to whoever is free; waits while too many wait already. Fails with what any writer failed with.
    pub fn push(&self, run: Run) -> Result<()> {
        let mut queue = self.wait(|queue| queue.runs.len() >= self.threads.len() * WAITING)?;
        queue.runs.push_back(run);
        drop(queue);
        self.shared.work.notify_one();
        Ok(())
    }

    /// Waits until every run is written.
    pub fn settle(&self) -> Result<()> {
        self.wait(|queue| !queue.runs.is_empty() || queue.busy > 0).map(drop)
    }

    /// Waits while `condition` holds and nobody has failed. A write to a file cannot be cancelled, but it ends.
    fn wait(&self, condition: impl Fn(&Queue) -> bool) -> Result<MutexGuard<'_, Queue>> {
        let waits = |queue: &mut Queue| queue.failure.is_none() && condition(queue);
        let queue = self.shared.done.wait_while(self.shared.queue(), waits).unwrap_or_else(PoisonError::into_inner);
        match &queue.failure {
            Some(error) => Err(error.clone()),
            None => Ok(queue),
        }
    }
}

impl Drop for Writers {
    fn drop(&mut self) {
        let mut queue = self.shared.queue();
        queue.closed = true;
        queue.runs.clear();
        drop(queue);
        self.shared.work.notify_all();
        for thread in self.threads.drain(..) {
            let _ = thread.join(); // one that panicked has failed the migration already
        }
    }
}

impl Shared {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What a writer does until the end.
    fn work(&self, file: &Positioned, written: &Written) {
        while let Some(run) = self.next() {
            // Who waits for it must hear of a panic, too.
            let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| run.write(file, written)));
            let done = done.unwrap_or_else(|_| Err(Error::io("a writer of the file", "it panicked")));
            drop(run);
            let mut queue = self.queue();
            queue.busy -= 1;
            if let Err(error) = done {
                queue.runs.clear();
                queue.failure.get_or_insert(error);
            }
            drop(queue);
            self.done.notify_all();
        }
    }

    fn next(&self) -> Option<Run> {
        let sleeps = |queue: &mut Queue| queue.runs.is_empty() && !queue.closed;
        let mut queue = self.work.wait_while(self.queue(), sleeps).unwrap_or_else(PoisonError::into_inner);
        let run = queue.runs.pop_front()?;
        queue.busy += 1;
        Some(run)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};

    use super::super::Place;
    use super::*;
    use crate::ErrorKind;
    use crate::channel::{Cancel, Uri, connect};
    use crate::ram::{AtomicBitmap, Block};

    /// A block of pages that are not zero, written one by one into a file by three threads.
    fn write(seals: SealFlags) -> (Arc<Place>, Arc<Written>, Result<()>) {
        let file = memfd_create("file", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).unwrap();
        let uri = Uri::parse("fd:file").unwrap();
        let channel = connect(&uri, Some(file.try_clone().unwrap()), &Cancel::new().unwrap()).unwrap();
        let block = Block::anon("ram", 512 * 4096).unwrap();
        block.fill(0, 512 * 4096, 7).unwrap();
        let place = Arc::new(Place { block, bitmap: 0, pages: 4096, present: AtomicBitmap::new(512) });
        let written = Arc::new(Written::default());
        let writers = Writers::start(&channel.writer.unwrap().positioned().unwrap().unwrap(), 3, &written).unwrap();
        fcntl_add_seals(&file, seals).unwrap();
        let pages = (0..512).map(|page| Run { place: Arc::clone(&place), pages: page..page + 1, looks: true });
        let done = pages.into_iter().try_for_each(|run| writers.push(run)).and_then(|()| writers.settle());
        (place, written, done)
    }

    #[test]
    fn settled_means_written() {
        let (place, written, done) = write(SealFlags::empty());
        done.unwrap();
        assert_eq!((written.normal.get(), written.zero.get()), (512, 0));
        assert_eq!(place.present.snapshot(512).count(), 512);
    }

    #[test]
    fn whoever_waits_hears_of_a_failure() {
        let (_place, written, done) = write(SealFlags::WRITE);
        assert_eq!(done.unwrap_err().kind, ErrorKind::Io);
        assert_eq!(written.normal.get(), 0);
    }
}
