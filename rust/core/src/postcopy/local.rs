//! A block whose missing pages come from a page source of this machine: the machinery of postcopy without a migration.
//!
//! The source is memory, a file, or a socket with the pages at its other end. What it speaks there is all there is to it: a request
//! is 16 bytes, offset and length in big-endian order, the length being the block's page size; an answer is the offset (8 bytes,
//! big-endian) and as many bytes as the page has. Answers may come in any order, and pages may come that nobody asked for, once each.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, OnceLock, PoisonError};
use std::thread::JoinHandle;

use serde_json::{Value, json};

use super::memory::Content;
use super::{Faults, Latency, Memory, Placer, Requester, Requests};
use crate::channel::{Cancel, ReadHalf, Uri, WriteHalf, connect};
use crate::ram::{Block, GuestRange, TARGET_PAGE};
use crate::sys::guest::GuestMem;
use crate::wire::Input;
use crate::{Error, ErrorKind, Result};

/// Where the pages are. Asked by the fault thread: an answer that takes long keeps every other fault waiting.
pub trait PageSource: Send {
    /// How many bytes there are.
    fn size(&self) -> Result<u64>;

    /// Copies the bytes at `offset` to `into`, all of them.
    fn fetch(&mut self, offset: u64, into: &mut [u8]) -> Result<()>;

    /// Where the bytes at `offset` lie, if they are in memory: then nothing is copied on the way.
    fn lies_at(&self, _offset: u64, _len: usize) -> Option<GuestRange<'_>> {
        None
    }
}

/// Pages in memory.
#[derive(Debug, Clone, Copy)]
pub struct BufferSource(GuestMem<'static>);

impl BufferSource {
    /// From memory that stays mapped as long as it serves.
    pub fn new(memory: GuestMem<'static>) -> Self {
        Self(memory)
    }
}

impl PageSource for BufferSource {
    fn size(&self) -> Result<u64> {
        Ok(self.0.len() as u64)
    }

    fn fetch(&mut self, offset: u64, into: &mut [u8]) -> Result<()> {
        self.0.read(usize::try_from(offset).unwrap_or(usize::MAX), into);
        Ok(())
    }

    fn lies_at(&self, offset: u64, len: usize) -> Option<GuestRange<'_>> {
        Some(self.0.range(usize::try_from(offset).ok()?, len))
    }
}

/// Pages of another block.
#[derive(Debug, Clone)]
pub struct BlockSource(pub Arc<Block>);

impl PageSource for BlockSource {
    fn size(&self) -> Result<u64> {
        Ok(self.0.used_length())
    }

    fn fetch(&mut self, offset: u64, into: &mut [u8]) -> Result<()> {
        self.0.read(offset, into)
    }

    fn lies_at(&self, offset: u64, len: usize) -> Option<GuestRange<'_>> {
        self.0.range(offset, len).ok()
    }
}

/// Pages in a file, from its beginning.
#[derive(Debug)]
pub struct FileSource(pub File);

impl PageSource for FileSource {
    fn size(&self) -> Result<u64> {
        self.0.metadata().map(|meta| meta.len()).map_err(|e| Error::io("the file with the pages", e))
    }

    fn fetch(&mut self, offset: u64, into: &mut [u8]) -> Result<()> {
        self.0.read_exact_at(into, offset).map_err(|error| {
            let kind = if error.kind() == io::ErrorKind::UnexpectedEof { ErrorKind::Truncated } else { ErrorKind::Io };
            Error::new(kind, format!("the file with the pages, at {offset:#x}: {error}"))
        })
    }
}

/// Where a service gets its pages.
pub enum Source {
    /// At hand.
    Pages(Box<dyn PageSource>),
    /// At the other end of a connected stream socket, which is the service's from now on.
    Socket(OwnedFd),
}

impl std::fmt::Debug for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Pages(_) => "Source::Pages",
            Self::Socket(_) => "Source::Socket",
        })
    }
}

/// An armed block and those who serve it. Dropping it is `close` without filling.
#[derive(Debug)]
pub struct Service {
    requests: Arc<Requests>,
    faults: Faults,
    /// Cuts a socket source.
    cancel: Cancel,
    receiver: Mutex<Option<JoinHandle<()>>>,
    progress: Arc<Progress>,
}

/// What those who bring pages tell whoever waits for all of them.
#[derive(Debug, Default)]
struct Progress {
    failure: OnceLock<Error>,
    waiting: AtomicBool,
    lock: Mutex<()>,
    changed: Condvar,
}

impl Progress {
    /// The first failure is kept.
    fn fail(&self, error: Error) {
        let _ = self.failure.set(error);
        self.notify();
    }

    fn notify(&self) {
        if self.waiting.load(Ordering::SeqCst) {
            drop(self.lock.lock().unwrap_or_else(PoisonError::into_inner));
            self.changed.notify_all();
        }
    }

    /// Waits until nothing is outstanding, or the source failed.
    fn wait(&self, requests: &Requests) -> Result<()> {
        let mut guard = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
        self.waiting.store(true, Ordering::SeqCst);
        while requests.outstanding() > 0 && self.failure.get().is_none() {
            guard = self.changed.wait(guard).unwrap_or_else(PoisonError::into_inner);
        }
        self.check()
    }

    /// The failure, if there was one.
    fn check(&self) -> Result<()> {
        self.failure.get().map_or(Ok(()), |error| Err(error.clone()))
    }
}

impl Service {
    /// Empties the block and arms it: whoever touches a page waits until it is there as the source has it.
    ///
    /// If the source fails, those who wait go on waiting: `stats` and `close` say why.
    pub fn arm(block: &Arc<Block>, source: Source) -> Result<Self> {
        let memory = Memory::new(std::slice::from_ref(block))?;
        if let Source::Pages(pages) = &source {
            check(block, &**pages)?;
        }
        let cancel = Cancel::new()?;
        let progress = Arc::new(Progress::default());
        let requests = Requests::new(Arc::clone(&memory), Arc::new(Latency::new()));
        let placer = Placer::new(Arc::clone(&requests));
        let mut reader = None;
        let requester: Box<dyn Requester> = match source {
            Source::Pages(pages) => {
                let page = vec![0; usize::try_from(memory.page_size(0)).unwrap_or(usize::MAX)];
                Box::new(AtHand { pages, placer: Placer::new(Arc::clone(&requests)), page, progress: Arc::clone(&progress) })
            }
            Source::Socket(fd) => {
                let (input, writer) = connect(&Uri::parse("fd:page-source")?, Some(fd), &cancel)?.split();
                let no_socket = || Error::new(ErrorKind::InvalidArgument, "a page source must be a connected stream socket");
                reader = Some(input.ok_or_else(no_socket)?);
                Box::new(Remote { writer: writer.ok_or_else(no_socket)?, progress: Arc::clone(&progress) })
            }
        };
        memory.prepare()?;
        memory.arm()?;
        requests.set_requester(Some(requester));
        let receiver = reader.map(|reader| receive(Input::new(reader), placer, Arc::clone(&progress))).transpose()?;
        let theirs = Arc::clone(&progress);
        let faults = Faults::start(Arc::clone(&requests), move |error| theirs.fail(error))?;
        Ok(Self { requests, faults, cancel, receiver: Mutex::new(receiver), progress })
    }

    /// The requests and, through them, memory and latency record.
    pub fn requests(&self) -> &Arc<Requests> {
        &self.requests
    }

    /// {pages, received, requests, outstanding, unrecorded, error (text or null), phases (as in records)}; pages are host pages.
    pub fn stats(&self) -> Value {
        let memory = self.requests.memory();
        let ratio = memory.page_size(0) / TARGET_PAGE as u64;
        json!({
            "pages": memory.received(0).len() as u64 / ratio,
            "received": memory.received(0).count() / ratio,
            "requests": self.requests.sent(),
            "outstanding": self.requests.outstanding(),
            "unrecorded": self.requests.latency().unrecorded(),
            "error": self.progress.failure.get().map(ToString::to_string),
            "phases": self.requests.latency().snapshot(),
        })
    }

    /// Ends the service. With `fill` every page that is still missing is fetched before; without it, what is missing reads zero
    /// afterwards, also for those who wait for it now. If the source fails the block stays armed. Idempotent.
    pub fn close(&self, fill: bool) -> Result<()> {
        let memory = self.requests.memory();
        if fill && memory.uffd().is_ok() {
            self.progress.check()?;
            let ratio = usize::try_from(memory.page_size(0)).unwrap_or(usize::MAX) / TARGET_PAGE;
            let received = memory.received(0);
            for page in (0..received.len()).step_by(ratio).filter(|page| !received.get(*page)) {
                self.requests.want(0, page / ratio).or_else(|error| self.progress.check().and(Err(error)))?;
            }
            self.progress.wait(&self.requests)?;
        }
        self.cancel.set();
        memory.disarm();
        let ended = self.faults.stop();
        let receiver = self.receiver.lock().unwrap_or_else(PoisonError::into_inner).take();
        receiver.map_or(Ok(()), |thread| thread.join().map_err(|_| Error::new(ErrorKind::InvalidState, "the receiver panicked")))?;
        ended
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        // What failed has been said, or nobody asked.
        let _ = self.close(false);
    }
}

/// The source has all of the block's bytes, and they are not in the block itself.
fn check(block: &Block, pages: &dyn PageSource) -> Result<()> {
    let (size, used) = (pages.size()?, block.used_length());
    let bad = |text: String| Err(Error::new(ErrorKind::InvalidArgument, text));
    if size < used {
        return bad(format!("the page source has {size:#x} bytes, block {:?} {used:#x}", block.name()));
    }
    let len = usize::try_from(used).unwrap_or(usize::MAX);
    let source = pages.lies_at(0, len).map(|range| range.as_ptr().addr());
    if source.is_some_and(|at| at < block.address() + len && block.address() < at + len) {
        return bad(format!("the page source lies in block {:?} itself, which is emptied", block.name()));
    }
    Ok(())
}

/// A source that answers at once: the page is placed where it was asked for, in the fault thread.
struct AtHand {
    pages: Box<dyn PageSource>,
    placer: Placer,
    page: Vec<u8>,
    progress: Arc<Progress>,
}

impl Requester for AtHand {
    fn request(&mut self, block: usize, offset: u64, _len: u32) -> Result<()> {
        let placed = match self.pages.lies_at(offset, self.page.len()) {
            Some(range) => self.placer.whole(block, offset, Content::Guest(range)),
            None => match self.pages.fetch(offset, &mut self.page) {
                Ok(()) => self.placer.whole(block, offset, Content::Bytes(&self.page)),
                Err(error) => Err(error),
            },
        };
        placed.inspect_err(|error| self.progress.fail(error.clone()))
    }
}

/// A source at the other end of a socket; a thread of its own takes the answers.
struct Remote {
    writer: WriteHalf,
    progress: Arc<Progress>,
}

impl Requester for Remote {
    fn request(&mut self, _block: usize, offset: u64, len: u32) -> Result<()> {
        let mut message = [0; 16];
        message[..8].copy_from_slice(&offset.to_be_bytes());
        message[8..].copy_from_slice(&u64::from(len).to_be_bytes());
        self.writer.write_all(&message).inspect_err(|error| self.progress.fail(error.clone()))
    }
}

fn receive(mut input: Input<ReadHalf>, mut placer: Placer, progress: Arc<Progress>) -> Result<JoinHandle<()>> {
    let mut page = vec![0; usize::try_from(placer.requests().memory().page_size(0)).unwrap_or(usize::MAX)];
    let mut next = move || -> Result<bool> {
        let offset = input.be64()?;
        input.read_exact(&mut page)?;
        placer.whole(0, offset, Content::Bytes(&page))?;
        Ok(placer.requests().outstanding() == 0)
    };
    let work = move || loop {
        match next() {
            Ok(true) => progress.notify(),
            Ok(false) => {}
            Err(error) => return progress.fail(error),
        }
    };
    std::thread::Builder::new().name("qmig-pages".into()).spawn(work).map_err(|e| Error::io("starting the receiver", e))
}
