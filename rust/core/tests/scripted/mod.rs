//! A scripted source of postcopy at the other end of a socket, and a destination that is driven as Python drives it.
#![allow(missing_docs, clippy::unwrap_used, clippy::missing_panics_doc, dead_code)]

pub mod tmpfs;

use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use qmig_core::channel::Uri;
use qmig_core::control::{Control, Status, Subscription};
use qmig_core::ram::Block;
use qmig_core::recv::Incoming;
use qmig_core::wire::consts::{RAM_PAGE, RAM_ZERO};
use qmig_core::wire::{Advise, ByteSource, Command, DecoderOptions, Event, Input, Output, ReturnMessage, bitmap_bytes, read_bitmap};
use qmig_core::{Error, ErrorKind, Result};

pub const PAGE: usize = 4096;
/// For what must happen, and for what would hang otherwise.
pub const SOON: Duration = Duration::from_secs(20);

/// What the guest memory holds at the source: some pages are zeros.
pub fn content(block: &str, page: usize) -> Vec<u8> {
    if page % 5 == 3 {
        return vec![0; PAGE];
    }
    let seed = block.bytes().fold(page as u64 + 1, |seed, byte| seed.wrapping_mul(0x100_0000_01b3) ^ u64::from(byte));
    (0..PAGE as u64 / 8).flat_map(|word| (seed ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes()).collect()
}

/// Waits for a condition, with a deadline.
pub fn until(what: &str, condition: impl Fn() -> bool) {
    let end = Instant::now() + SOON;
    while !condition() {
        assert!(Instant::now() < end, "waited too long: {what}");
        std::thread::yield_now();
    }
}

// ---- the destination -------------------------------------------------------------------------------------------------

/// What the caller does with the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Manner {
    /// All as it should be.
    Good,
    /// Its device reads the first page of the first block while it is loaded.
    Touches,
    /// The same, whatever it finds there.
    Peeks,
    /// Its device refuses its state.
    Refuses,
    /// It cannot be started.
    CannotStart,
}

#[derive(Debug)]
pub struct Destination {
    pub control: Arc<Control>,
    pub incoming: Arc<Incoming>,
    pub blocks: Vec<Arc<Block>>,
    pub events: Subscription,
    /// The machine was started.
    pub started: Arc<AtomicBool>,
    driver: Mutex<Option<JoinHandle<Result<()>>>>,
}

impl Destination {
    pub fn new(blocks: Vec<Arc<Block>>, capabilities: &[&str]) -> Self {
        let control = Arc::new(Control::new(None));
        control.set_capabilities(["events", "postcopy-ram"].iter().chain(capabilities).map(|name| (*name).to_owned()));
        control.begin_incoming().unwrap();
        let events = control.subscribe(None);
        let incoming = Incoming::new(control.clone(), blocks.clone(), DecoderOptions::default()).unwrap();
        Self { control, incoming: Arc::new(incoming), blocks, events, started: Arc::default(), driver: Mutex::default() }
    }

    /// The same with other connections: another attempt of the same machine.
    pub fn again(&self, capabilities: &[&str]) -> Self {
        Self::new(self.blocks.clone(), capabilities)
    }

    /// Does what Python does, in a thread of its own.
    pub fn start(&self, manner: Manner) {
        let (control, incoming, started) = (self.control.clone(), self.incoming.clone(), self.started.clone());
        let blocks = self.blocks.clone();
        let work = move || {
            let loaded = incoming.accept().and_then(|()| {
                control.set_incoming_status(Status::None, Status::Active);
                load(&incoming, &blocks, manner)
            });
            let over = loaded.and_then(|runs| {
                if !runs {
                    incoming.finish(0)?;
                    control.set_incoming_status(Status::Active, Status::Completed);
                    return Ok(());
                }
                if manner == Manner::CannotStart {
                    return Err(Error::new(ErrorKind::DeviceState, "cannot start"));
                }
                started.store(true, Ordering::SeqCst);
                incoming.wait()
            });
            if let Err(error) = &over {
                let _ = incoming.finish(1);
                control.fail_incoming(error.clone());
            }
            incoming.close();
            over
        };
        *self.driver.lock().unwrap() = Some(std::thread::spawn(work));
    }

    /// A source at the other end of a socket pair, and the driver under way.
    pub fn connect(&self, manner: Manner) -> Source {
        let (ours, theirs) = UnixStream::pair().unwrap();
        self.incoming.listen(&Uri::parse("fd:test").unwrap(), Some(OwnedFd::from(theirs))).unwrap();
        self.start(manner);
        Source::new(ours)
    }

    /// The same over a listening socket, where further connections may come.
    pub fn listen(&self, path: &Path) -> Source {
        self.incoming.listen(&path.uri(), None).unwrap();
        self.start(Manner::Good);
        path.connect()
    }

    /// What the driver came to.
    pub fn outcome(&self) -> Result<()> {
        let driver = self.driver.lock().unwrap().take().unwrap();
        until("the end of the driver", || driver.is_finished());
        driver.join().unwrap()
    }

    pub fn wait_started(&self) {
        until("the machine to start", || self.started.load(Ordering::SeqCst));
    }

    pub fn wait_status(&self, status: Status) {
        until(status.name(), || self.control.incoming_status() == status);
    }

    pub fn error_desc(&self) -> String {
        self.control.query_migrate()["error-desc"].as_str().unwrap_or_default().to_owned()
    }

    /// Waits until it is paused, and says why.
    pub fn paused(&self) -> String {
        self.wait_status(Status::PostcopyPaused);
        self.error_desc()
    }

    pub fn statuses(&self) -> Vec<String> {
        std::iter::from_fn(|| self.events.try_next()).filter_map(|e| Some(e.data.as_ref()?["status"].as_str()?.to_owned())).collect()
    }

    /// To be kept where threads may wait for pages: a test that fails must not wait for them.
    pub fn guard(&self) -> Guard<'_> {
        Guard(self)
    }

    /// Every page is what the source has.
    pub fn verify(&self) {
        for block in &self.blocks {
            for page in 0..block.pages() {
                verify_page(block, page);
            }
        }
    }
}

/// Lets threads go when a test fails.
#[derive(Debug)]
pub struct Guard<'a>(&'a Destination);

impl Drop for Guard<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.incoming.abandon();
            self.0.incoming.let_go();
        }
    }
}

pub fn verify_page(block: &Block, page: usize) {
    let mut found = vec![0; PAGE];
    block.read((page * PAGE) as u64, &mut found).unwrap();
    assert!(found == content(block.name(), page), "page {page} of {}", block.name());
}

/// Every element up to the end; true if the machine runs from here on and its memory is still to come.
pub fn load(incoming: &Incoming, blocks: &[Arc<Block>], manner: Manner) -> Result<bool> {
    let mut loaded = false;
    loop {
        match incoming.next()? {
            Event::Section(header) => {
                assert_eq!(header.idstr, b"device");
                let mut state = [0; 8];
                incoming.payload()?.lock().unwrap().read_exact(&mut state)?;
                assert_eq!(state, *b"thestate");
                match manner {
                    Manner::Touches => verify_page(&blocks[0], 0),
                    Manner::Peeks => blocks[0].read(0, &mut [0; 8])?,
                    Manner::Refuses => return Err(Error::new(ErrorKind::DeviceState, "refused")),
                    _ => {}
                }
                incoming.section_done()?;
                loaded = true;
            }
            Event::Command(Command::Run, _) => return Ok(true),
            Event::Command(..) if !loaded => return Err(Error::new(ErrorKind::MissingSection, "no device")),
            Event::Finished => return Ok(false),
            _ => {}
        }
    }
}

/// A path for a socket, removed in the end.
#[derive(Debug)]
pub struct Path(PathBuf);

impl Path {
    /// Never the same twice.
    pub fn new(name: &str) -> Self {
        static MADE: AtomicUsize = AtomicUsize::new(0);
        let number = MADE.fetch_add(1, Ordering::Relaxed);
        Self(std::env::temp_dir().join(format!("qmig-{}-{number}-{name}", std::process::id())))
    }

    pub fn uri(&self) -> Uri {
        Uri::parse(&format!("unix:{}", self.0.display())).unwrap()
    }

    pub fn connect(&self) -> Source {
        Source::new(self.stream())
    }

    pub fn stream(&self) -> UnixStream {
        let end = Instant::now() + SOON;
        loop {
            match UnixStream::connect(&self.0) {
                Ok(stream) => return stream,
                Err(error) => assert!(Instant::now() < end, "nobody listens: {error}"),
            }
        }
    }
}

impl Drop for Path {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

// ---- the source ------------------------------------------------------------------------------------------------------

struct Wire(UnixStream);

impl ByteSource for Wire {
    fn read(&mut self, buf: &mut [u8]) -> Result<usize> {
        match self.0.read(buf) {
            // A socket that was closed over unread bytes is closed.
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => Ok(0),
            Err(error) => panic!("nothing was heard: {error}"),
            Ok(got) => Ok(got),
        }
    }
}

/// The source's end of a connection.
pub struct Source {
    pub stream: UnixStream,
    back: Input<Wire>,
    last: Option<String>,
}

impl Source {
    pub fn new(stream: UnixStream) -> Self {
        stream.set_read_timeout(Some(SOON)).unwrap();
        stream.set_write_timeout(Some(SOON)).unwrap();
        let back = Input::new(Wire(stream.try_clone().unwrap()));
        Self { stream, back, last: None }
    }

    pub fn send(&mut self, output: &Output) {
        self.stream.write_all(output.as_slice()).unwrap();
    }

    /// What may not arrive any more.
    pub fn try_send(&mut self, output: &Output) {
        let _ = self.stream.write_all(output.as_slice());
    }

    pub fn say(&mut self, write: impl FnOnce(&mut Output)) {
        let mut output = Output::new();
        write(&mut output);
        self.send(&output);
    }

    /// The next message; none at the end.
    pub fn heard(&mut self) -> Option<ReturnMessage> {
        ReturnMessage::read(&mut self.back).unwrap()
    }

    /// All messages until the end, page requests left out.
    pub fn rest(&mut self) -> Vec<ReturnMessage> {
        std::iter::from_fn(|| self.heard()).filter(|message| !matches!(message, ReturnMessage::ReqPages { .. })).collect()
    }

    /// The next page request: block and first page, with the length checked.
    pub fn request(&mut self, page_size: usize) -> Option<(String, usize)> {
        match self.heard()? {
            ReturnMessage::ReqPages { name, start, length } => {
                assert_eq!(length as usize, page_size);
                assert!(name.is_some() || self.last.is_some(), "the first request names its block");
                if let Some(name) = name {
                    let name = String::from_utf8(name).unwrap();
                    assert_ne!(self.last.as_ref(), Some(&name), "a name is left out where it is the last one");
                    self.last = Some(name);
                }
                Some((self.last.clone().unwrap(), usize::try_from(start).unwrap() / PAGE))
            }
            other => panic!("{other:?} instead of a page request"),
        }
    }

    /// The bitmap that was asked for.
    pub fn bitmap(&mut self, block: &Block) -> Vec<bool> {
        assert_eq!(self.heard(), Some(ReturnMessage::RecvBitmap(block.name().as_bytes().to_vec())));
        let pages = block.pages() as u64;
        let bits = read_bitmap(&mut self.back, pages).unwrap();
        assert_eq!(bits.len() as u64, bitmap_bytes(pages));
        (0..block.pages()).map(|page| bits[page / 8] >> (page % 8) & 1 != 0).collect()
    }
}

/// The stream up to and with the announcement of RAM.
pub fn head(blocks: &[Arc<Block>]) -> Output {
    let mut stream = Output::new();
    stream.file_header();
    stream.configuration(b"none");
    stream.open_return_path();
    stream.ping(1);
    stream.command(&advise(blocks));
    announce(&mut stream, blocks);
    stream
}

pub fn advise(blocks: &[Arc<Block>]) -> Command {
    let page_sizes = blocks.iter().fold(0, |sizes, block| sizes | block.page_size());
    Command::PostcopyAdvise(Some(Advise { page_sizes, target_page: PAGE as u64 }))
}

pub fn announce(stream: &mut Output, blocks: &[Arc<Block>]) {
    stream.section_start(2, b"ram", 0, 4);
    stream.mem_size(blocks.iter().map(|block| block.used_length()).sum());
    for block in blocks {
        stream.block(block.name().as_bytes(), block.used_length());
        if block.page_size() != PAGE as u64 {
            stream.be64(block.page_size());
        }
    }
    stream.eos();
    stream.footer(2);
}

/// One page record with its name.
pub fn record(stream: &mut Output, block: &str, page: usize, bytes: &[u8]) {
    if bytes.iter().all(|byte| *byte == 0) {
        stream.page_record((page * PAGE) as u64, RAM_ZERO, Some(block.as_bytes()));
        stream.u8(0);
    } else {
        stream.page_record((page * PAGE) as u64, RAM_PAGE, Some(block.as_bytes()));
        stream.put(bytes);
    }
}

/// A PART with these pages as the source has them.
pub fn part(pages: &[(String, usize)]) -> Output {
    let mut stream = Output::new();
    stream.section_part(2);
    for (block, page) in pages {
        record(&mut stream, block, *page, &content(block, *page));
    }
    stream.eos();
    stream.footer(2);
    stream
}

/// Every page of every block.
pub fn all_pages(blocks: &[Arc<Block>]) -> Vec<(String, usize)> {
    blocks.iter().flat_map(|block| (0..block.pages()).map(|page| (block.name().to_owned(), page))).collect()
}

/// What is in a good package between its ends.
pub fn device(stream: &mut Output) {
    stream.section_full(7, b"device", 0, 1);
    stream.put(b"thestate");
    stream.footer(7);
}

pub fn good_package() -> Output {
    let mut package = Output::new();
    package.command(&Command::Listen);
    device(&mut package);
    package.ping(3);
    package.command(&Command::Run);
    package
}

pub fn packaged(package: &Output) -> Output {
    let mut stream = Output::new();
    stream.command(&Command::Packaged(u32::try_from(package.len()).unwrap()));
    stream.put(package.as_slice());
    stream
}

/// END and the end.
pub fn finish() -> Output {
    let mut stream = Output::new();
    stream.section_end(2);
    stream.eos();
    stream.footer(2);
    stream.eof();
    stream
}

pub fn anon(sizes: &[(&str, usize)]) -> Vec<Arc<Block>> {
    sizes.iter().map(|(name, pages)| Block::anon(name, (pages * PAGE) as u64).unwrap()).collect()
}
