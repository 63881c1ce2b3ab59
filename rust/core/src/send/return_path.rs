//! The return path of the source: a thread that reads the destination's messages, and the waits on what it has heard.
//!
//! The thread never attaches to Python and holds no lock while it reads. It ends when the channel ends, so closing the channel
//! (cancel, failure, pause, the end of the migration) is how it is stopped. What a message may say depends on the phase: before the
//! commit there are answers only, after it requests for pages, and in a recovery bitmaps first.

use std::ops::Range;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::discard;
use super::postcopy::PING_RUNNING;
use super::urgent::Urgent;
use crate::channel::ReadHalf;
use crate::control::Session;
use crate::ram::{Bitmap, Block};
use crate::wire::consts::{PAGE_BYTES, PAGE_SIZE};
use crate::wire::{Input, ReturnMessage, read_bitmap};
use crate::{Error, ErrorKind, Result};

#[derive(Debug, Default)]
struct Heard {
    pong: Option<u32>,
    shut: Option<u32>,
    /// Pages that the destination has, block by block; none for one that was not told yet, and no list before they are asked for.
    received: Option<Vec<Option<Bitmap>>>,
    resumed: bool,
    /// The devices there are ready for the switchover.
    ready: bool,
    ended: Option<Result<()>>,
}

#[derive(Debug)]
struct Shared {
    heard: Mutex<Heard>,
    changed: Condvar,
    session: Arc<Session>,
    blocks: Vec<Arc<Block>>,
    /// Who serves requests; none while the destination cannot have any.
    urgent: OnceLock<Arc<Urgent>>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Heard> {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note(&self, change: impl FnOnce(&mut Heard)) {
        change(&mut self.lock());
        self.changed.notify_all();
    }
}

/// The reading thread and what it has heard.
#[derive(Debug)]
pub struct ReturnPath {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl ReturnPath {
    /// Start reading `reader`; requests are for pages of `blocks`.
    pub fn start(reader: ReadHalf, session: Arc<Session>, blocks: Vec<Arc<Block>>) -> Result<Self> {
        let shared = Arc::new(Shared { heard: Mutex::default(), changed: Condvar::new(), session, blocks, urgent: OnceLock::new() });
        let theirs = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name("qmig-return".into())
            .spawn(move || {
                let cut = reader.cutter();
                let end = theirs.listen(reader);
                theirs.note(|heard| heard.ended = Some(end));
                let too_early = theirs.urgent.get().is_some_and(|urgent| !urgent.close());
                // Who does not listen any more may still hold the connection open, with a writer of ours stuck in it.
                if too_early || theirs.lock().shut != Some(0) {
                    cut();
                }
            })
            .map_err(|e| Error::io("starting the return-path thread", e))?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// From here on the destination may ask for pages. Once for each connection.
    pub fn serve(&self, urgent: &Arc<Urgent>) {
        let _ = self.shared.urgent.set(Arc::clone(urgent));
    }

    /// For threads whose channels the destination may close, too.
    pub fn ear(&self) -> Ear {
        Ear(Arc::clone(&self.shared))
    }

    /// From here on the destination may tell what it has received.
    pub fn expect_bitmaps(&self) {
        self.shared.note(|heard| heard.received = Some(vec![None; self.shared.blocks.len()]));
    }

    /// Wait for the bitmaps of all blocks.
    pub fn wait_bitmaps(&self, deadline: Instant) -> Result<Vec<Bitmap>> {
        self.wait(deadline, "the bitmaps of what has been received", |heard| {
            failure(heard).map(Err).or_else(|| Some(Ok(heard.received.as_ref()?.iter().cloned().collect::<Option<Vec<_>>>()?)))
        })
    }

    /// Wait until the destination goes on.
    pub fn wait_resumed(&self, deadline: Instant) -> Result<()> {
        self.wait(deadline, "the destination to go on (RESUME_ACK)", |heard| {
            failure(heard).map(Err).or_else(|| heard.resumed.then_some(Ok(())))
        })
    }

    /// What the destination had to say at the end, if it still said anything by `deadline`: the status of its SHUT.
    pub fn last_word(&self, deadline: Instant) -> Option<u32> {
        let said = self.wait(deadline, "", |heard| (heard.shut.is_some() || heard.ended.is_some()).then_some(Ok(heard.shut)));
        said.ok().flatten()
    }

    /// The failure that the destination has reported or that ended the path, if any. For the source's loop before the commit.
    pub fn failure(&self) -> Option<Error> {
        failure(&self.shared.lock())
    }

    /// Wait until the destination has answered PING `token`. An answer counts only while the destination has not given up since.
    pub fn wait_pong(&self, token: u32, deadline: Instant) -> Result<()> {
        self.wait(deadline, "the answer to the last PING", |heard| {
            failure(heard).map(Err).or_else(|| (heard.pong == Some(token)).then_some(Ok(())))
        })
    }

    /// The destination has said that it is ready for the switchover; waits for that until `deadline`, or until it says no more.
    pub fn ready(&self, deadline: Instant) -> bool {
        let over = |heard: &Heard| heard.ready || heard.shut.is_some() || heard.ended.is_some();
        self.wait(deadline, "SWITCHOVER_ACK", |heard| over(heard).then_some(Ok(heard.ready))).unwrap_or(false)
    }

    /// Wait for the destination's SHUT. `Ok(None)`: the channel ended cleanly without one, as 2.9 does.
    pub fn wait_shut(&self, deadline: Instant) -> Result<Option<u32>> {
        self.wait(deadline, "the destination's last word (SHUT)", |heard| match (heard.shut, &heard.ended) {
            (Some(status), _) => Some(Ok(Some(status))),
            (None, Some(Ok(()))) => Some(Ok(None)),
            (None, Some(Err(e))) => Some(Err(e.clone())),
            (None, None) => None,
        })
    }

    fn wait<T>(&self, deadline: Instant, what: &str, mut look: impl FnMut(&Heard) -> Option<Result<T>>) -> Result<T> {
        let mut heard = self.shared.lock();
        loop {
            if let Some(answer) = look(&heard) {
                return answer;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(Error::new(ErrorKind::Timeout, format!("waited too long for {what}; is the destination stuck?")));
            }
            heard = self.shared.changed.wait_timeout(heard, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Wait for the thread. The channel must have been closed.
    pub fn join(&mut self) {
        if let Some(thread) = self.thread.take() {
            // The thread only stores what it heard; a panic in it has been reported already and left nothing to clean.
            let _ = thread.join();
        }
    }
}

/// Hears, in another thread, whether the destination has given up.
#[derive(Debug, Clone)]
pub struct Ear(Arc<Shared>);

impl Ear {
    /// That it has, if it says so within `patience`.
    pub fn refusal(&self, patience: Duration) -> Option<Error> {
        let deadline = Instant::now() + patience;
        let mut heard = self.0.lock();
        while heard.shut.is_none() && heard.ended.is_none() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return None;
            }
            heard = self.0.changed.wait_timeout(heard, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        heard.shut.and_then(|_| failure(&heard))
    }
}

fn failure(heard: &Heard) -> Option<Error> {
    match (heard.shut, &heard.ended) {
        (Some(0), _) => Some(Error::new(ErrorKind::ReturnPath, "the destination ended the migration before it was complete")),
        (Some(status), _) => Some(Error::new(
            ErrorKind::ReturnPath,
            format!("the destination refused the migration (status {status}); its log or query-migrate says why"),
        )),
        (None, Some(Ok(()))) => {
            Some(Error::new(ErrorKind::Closed, "the destination closed the channel; its log or query-migrate says why"))
        }
        (None, Some(Err(e))) => Some(e.clone()),
        (None, None) => None,
    }
}

impl Shared {
    fn listen(&self, reader: ReadHalf) -> Result<()> {
        // A message is at most a few hundred bytes.
        let mut input = Input::with_capacity(reader, 4096);
        // The block of the last request that named one.
        let mut last = None;
        loop {
            let at = input.offset();
            match ReturnMessage::read(&mut input)? {
                None => return Ok(()),
                Some(ReturnMessage::Pong(token)) => {
                    // It came behind RUN, so who answers has that; a destination may still be loading devices then, and fail.
                    if token == PING_RUNNING {
                        self.session.heard();
                    }
                    self.note(|heard| heard.pong = Some(token));
                }
                Some(ReturnMessage::Shut(status)) => {
                    self.note(|heard| heard.shut = Some(status));
                    return Ok(());
                }
                Some(ReturnMessage::ReqPages { name, start, length }) => {
                    self.session.counters.postcopy_requests.add(1);
                    let urgent = self.urgent.get().ok_or_else(|| out_of_place("a page request").at(at))?;
                    let wanted = self.find(name.as_deref(), &mut last).and_then(|block| Ok((block, self.pages(block, start, length)?)));
                    let (block, pages) = wanted.map_err(|e| e.at(at).within("return-path"))?;
                    if urgent.request(block, pages)? {
                        input.source().acknowledge();
                    }
                }
                Some(ReturnMessage::RecvBitmap(name)) => {
                    let block = self.awaited(&name).map_err(|e| e.at(at).within("return-path"))?;
                    self.session.heard();
                    let pages = self.blocks[block].pages();
                    let bytes = read_bitmap(&mut input, pages as u64)?;
                    self.note(|heard| {
                        if let Some(received) = &mut heard.received {
                            received[block] = Some(bits(&bytes, pages));
                        }
                    });
                }
                Some(ReturnMessage::ResumeAck) => {
                    let mut heard = self.lock();
                    if self.urgent.get().is_none() || heard.received.take().is_none() {
                        return Err(out_of_place("RESUME_ACK").at(at));
                    }
                    heard.resumed = true;
                    drop(heard);
                    self.changed.notify_all();
                }
                // Unasked, it does no harm.
                Some(ReturnMessage::SwitchoverAck) => self.note(|heard| heard.ready = true),
            }
        }
    }

    fn find(&self, name: Option<&[u8]>, last: &mut Option<usize>) -> Result<usize> {
        if let Some(name) = name {
            let found = self.blocks.iter().position(|block| block.name().as_bytes() == name);
            *last = Some(found.ok_or_else(|| bad(format!("block \"{}\" is not known", name.escape_ascii())))?);
        }
        last.ok_or_else(|| bad("the first page request names no block".into()))
    }

    /// The target pages of a request that is right.
    fn pages(&self, block: usize, start: u64, length: u32) -> Result<Range<usize>> {
        let block = &self.blocks[block];
        let host_page = discard::ratio(block) as u64 * PAGE_SIZE;
        let refuse = |why: &str| Err(bad(format!("request for {length:#x} bytes at {start:#x} of block {:?}: {why}", block.name())));
        if length == 0 || !start.is_multiple_of(host_page) || !u64::from(length).is_multiple_of(host_page) {
            return refuse(&format!("whole pages of {host_page:#x} bytes, at least one, are right"));
        }
        match start.checked_add(length.into()) {
            // Below the length of mapped memory.
            Some(end) if end <= block.used_length() => Ok(page(start)..page(end)),
            _ => refuse(&format!("the block has {:#x} bytes", block.used_length())),
        }
    }

    /// The block whose bitmap is asked for and has not come yet.
    fn awaited(&self, name: &[u8]) -> Result<usize> {
        let heard = self.lock();
        let Some(received) = &heard.received else { return Err(out_of_place("RECV_BITMAP")) };
        let block = self.find(Some(name), &mut None)?;
        if received[block].is_some() {
            return Err(bad(format!("the bitmap of block {:?} came twice", self.blocks[block].name())));
        }
        Ok(block)
    }
}

#[allow(clippy::cast_possible_truncation)] // the caller has checked that it lies in mapped memory
fn page(offset: u64) -> usize {
    offset as usize / PAGE_BYTES
}

/// A bitmap from its bytes, lowest bit first.
fn bits(bytes: &[u8], pages: usize) -> Bitmap {
    let mut bits = Bitmap::new(pages);
    for page in (0..pages).filter(|page| bytes[page / 8] >> (page % 8) & 1 != 0) {
        bits.set(page);
    }
    bits
}

fn bad(text: String) -> Error {
    Error::new(ErrorKind::ReturnPath, text)
}

fn out_of_place(what: &str) -> Error {
    bad(format!("{what} has no place at this stage of the migration"))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::io::Write;
    use std::os::unix::net::UnixStream;
    use std::time::Duration;

    use super::*;
    use crate::channel::{self, Cancel, Uri};
    use crate::control::Control;
    use crate::wire::Output;

    #[test]
    fn the_word_that_the_devices_are_ready() {
        for (word, ready) in [(ReturnMessage::SwitchoverAck, true), (ReturnMessage::Shut(1), false)] {
            let (ours, mut theirs) = UnixStream::pair().unwrap();
            let cancel = Cancel::new().unwrap();
            let channel = channel::connect(&Uri::parse("fd:test").unwrap(), Some(ours.into()), &cancel).unwrap();
            let (reader, _writer) = channel.split();
            let session = Control::new(None).begin_outgoing().unwrap();
            let mut path = ReturnPath::start(reader.unwrap(), session, Vec::new()).unwrap();
            assert!(!path.ready(Instant::now()), "nothing was said");
            let mut words = Output::new();
            word.write(&mut words);
            word.write(&mut words);
            theirs.write_all(words.as_slice()).unwrap();
            // Whoever says no more is not waited for.
            let begun = Instant::now();
            assert_eq!(path.ready(begun + Duration::from_secs(60)), ready);
            assert!(begun.elapsed() < Duration::from_secs(50));
            cancel.set();
            path.join();
        }
    }

    #[test]
    fn an_answer_does_not_outweigh_a_refusal() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let cancel = Cancel::new().unwrap();
        let channel = channel::connect(&Uri::parse("fd:test").unwrap(), Some(ours.into()), &cancel).unwrap();
        let (reader, _writer) = channel.split();
        let session = Control::new(None).begin_outgoing().unwrap();
        let mut path = ReturnPath::start(reader.unwrap(), session, Vec::new()).unwrap();
        let mut words = Output::new();
        ReturnMessage::Pong(2).write(&mut words);
        ReturnMessage::Shut(1).write(&mut words);
        theirs.write_all(words.as_slice()).unwrap();
        let deadline = Instant::now() + Duration::from_secs(20);
        assert_eq!(path.wait_shut(deadline).unwrap(), Some(1));
        assert_eq!(path.wait_pong(2, deadline).unwrap_err().kind, ErrorKind::ReturnPath);
        cancel.set();
        path.join();
    }
}
