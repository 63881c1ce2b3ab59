//! A destination by script, and the source that it plays against.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use qmig_core::channel::Uri;
use qmig_core::control::{Control, Parameters, Session, Status, Subscription};
use qmig_core::ram::Block;
use qmig_core::ram::dirty::DirtyMode;
use qmig_core::send::{Format, Options, Outgoing, Step};
use qmig_core::wire::{Output, ReturnMessage, write_bitmap};
use qmig_core::{Error, ErrorKind, Result};

pub const PAGE: usize = 4096;
pub const FULL: &[u8] = b"the FULL sections";
/// Longer than anything here takes; nothing waits so long.
const LONG: Duration = Duration::from_secs(30);

/// What a migration is to be like.
#[derive(Debug, Clone)]
pub struct Setting {
    pub format: Format,
    pub capabilities: Vec<&'static str>,
    pub bandwidth: u64,
    pub uri: String,
    /// How long an answer, and reading on, may take, if not as long as usual.
    pub patience: Option<Duration>,
    /// How long reading on may take.
    pub stall: Option<Duration>,
}

impl Setting {
    pub fn new(format: Format) -> Self {
        Self { format, capabilities: vec!["postcopy-ram"], bandwidth: 0, uri: "fd:peer".into(), patience: None, stall: None }
    }

    pub fn with(mut self, capability: &'static str) -> Self {
        self.capabilities.push(capability);
        self
    }
}

/// Says that a test of huge pages is left out, which fails where they are required.
pub fn no_huge_pages() {
    assert!(std::env::var_os("QMIG_REQUIRE_HUGE_PAGES").is_none(), "huge pages are required here and none are reserved");
    eprintln!("SKIPPED: no huge pages are reserved (sysctl vm.nr_hugepages=2)");
}

/// A block whose page `n` begins with the word `n`, but for every fifth, which is zero.
pub fn block(name: &str, pages: usize) -> Arc<Block> {
    filled(Block::anon(name, (pages * PAGE) as u64).unwrap())
}

pub fn filled(block: Arc<Block>) -> Arc<Block> {
    for page in (0..block.pages()).filter(|page| page % 5 != 0) {
        block.write((page * PAGE) as u64, &(page as u64).to_be_bytes()).unwrap();
    }
    block
}

pub fn is_zero(page: usize) -> bool {
    page.is_multiple_of(5)
}

pub fn control(setting: &Setting) -> (Arc<Control>, Arc<Session>, Subscription) {
    let control = Arc::new(Control::new(None));
    control.set_capabilities(setting.capabilities.iter().map(|name| (*name).to_owned()).chain(["events".to_owned()]));
    control.set_parameters(Parameters { max_bandwidth: 0, max_postcopy_bandwidth: setting.bandwidth, ..Parameters::default() });
    let events = control.subscribe(None);
    let session = control.begin_outgoing().unwrap();
    (control, session, events)
}

pub fn outgoing(control: &Arc<Control>, blocks: &[Arc<Block>], setting: &Setting) -> Outgoing {
    let switchover_start = setting.format == Format::V10_0;
    let options = Options { format: setting.format, section_id: 2, footers: true, switchover_start, dirty: DirtyMode::Explicit };
    Outgoing::new(Arc::clone(control), blocks.to_vec(), options).unwrap()
}

/// Connect and set up.
pub fn begun(outgoing: &mut Outgoing, setting: &Setting, fd: Option<OwnedFd>) -> Result<()> {
    outgoing.connect(&Uri::parse(&setting.uri)?, fd)?;
    let mut head = Output::new();
    head.file_header();
    head.configuration(b"none");
    outgoing.setup(head.as_slice(), &[None])
}

/// A source in a thread of its own, which goes all the way with postcopy asked for from the start.
#[derive(Debug)]
pub struct Source {
    pub control: Arc<Control>,
    pub session: Arc<Session>,
    pub events: Subscription,
    thread: Option<JoinHandle<Result<()>>>,
}

impl Source {
    pub fn start(blocks: &[Arc<Block>], setting: &Setting, fd: Option<OwnedFd>) -> Self {
        let (control, session, events) = control(setting);
        control.start_postcopy().unwrap();
        let mut outgoing = outgoing(&control, blocks, setting);
        if let Some(deadline) = setting.patience {
            outgoing.set_answer_deadline(deadline);
            outgoing.set_word_deadline(deadline);
        }
        if let Some(deadline) = setting.stall.or(setting.patience) {
            outgoing.set_stall_deadline(deadline);
        }
        let setting = setting.clone();
        let own = Arc::clone(&session);
        let thread = std::thread::spawn(move || {
            let moved = (|| {
                begun(&mut outgoing, &setting, fd)?;
                assert_eq!(outgoing.run(0)?, Step::Postcopy);
                own.mark_stopped();
                outgoing.postcopy(&[], FULL)
            })();
            if let Err(error) = &moved {
                own.fail(error.clone());
            }
            outgoing.close();
            moved
        });
        Self { control, session, events, thread: Some(thread) }
    }

    pub fn status(&self) -> Status {
        self.session.status()
    }

    /// Wait until the status was reached.
    pub fn wait(&self, status: Status) {
        loop {
            let event = self.events.next(Some(LONG)).unwrap_or_else(|| panic!("no {status:?}; it is {:?}", self.status()));
            if event.data.as_ref().is_some_and(|data| data["status"] == status.name()) {
                return;
            }
        }
    }

    /// Wait for `postcopy-paused`; why.
    pub fn paused(&self) -> String {
        self.wait(Status::PostcopyPaused);
        assert!(!self.session.owned(), "paused is for after the commit");
        self.control.query_migrate()["error-desc"].as_str().unwrap_or_default().to_owned()
    }

    /// Resume over a new connection; the peer's end of it.
    pub fn resume(&self) -> Peer {
        let (ours, theirs) = UnixStream::pair().unwrap();
        self.control.resume_outgoing(&Uri::parse("fd:again").unwrap(), Some(ours.into())).unwrap();
        Peer::new(theirs)
    }

    /// The end of the thread, and the final status.
    pub fn end(mut self) -> (Result<()>, Status) {
        let moved = self.thread.take().unwrap().join().unwrap();
        (moved, self.session.finish())
    }

    /// Give it up, whatever it waits for.
    pub fn give_up(self) -> Status {
        self.session.fail(Error::new(ErrorKind::Cancelled, "the test is over"));
        self.end().1
    }
}

/// One element of the main stream. RAM is recorded in the peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Element {
    Command(u16, Vec<u8>),
    /// Type byte and how many page records.
    Section(u8, usize),
    Eof,
}

/// The other end.
#[derive(Debug)]
pub struct Peer {
    pub socket: UnixStream,
    /// Bytes read.
    pub taken: usize,
    /// Pages in the order in which they came after the setup, and whether they were zero records.
    pub pages: Vec<(String, usize, bool)>,
    /// An EOS came on a channel of records.
    pub saw_eos: bool,
    /// No record went without a name.
    pub named: bool,
    /// The end of the channel ends the script without a word.
    pub quiet: bool,
    last: Option<String>,
}

impl Peer {
    pub fn new(socket: UnixStream) -> Self {
        socket.set_read_timeout(Some(LONG)).unwrap();
        Self { socket, taken: 0, pages: Vec::new(), saw_eos: false, named: true, quiet: false, last: None }
    }

    /// With a source over a socket pair.
    pub fn with_source(blocks: &[Arc<Block>], setting: &Setting) -> (Self, Source) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let source = Source::start(blocks, setting, Some(ours.into()));
        (Self::new(theirs), source)
    }

    pub fn bytes(&mut self, count: usize) -> Vec<u8> {
        let mut bytes = vec![0; count];
        self.unless_quiet(|socket| socket.read_exact(&mut bytes));
        self.taken += count;
        bytes
    }

    fn unless_quiet(&mut self, work: impl FnOnce(&mut UnixStream) -> std::io::Result<()>) {
        match work(&mut self.socket) {
            Err(error) if self.quiet => std::panic::resume_unwind(Box::new(error)),
            done => done.unwrap(),
        }
    }

    fn be(&mut self, count: usize) -> u64 {
        self.bytes(count).iter().fold(0, |word, byte| word << 8 | u64::from(*byte))
    }

    fn name(&mut self) -> String {
        let length = self.be(1);
        String::from_utf8(self.bytes(usize::try_from(length).unwrap())).unwrap()
    }

    pub fn ends(&mut self) -> bool {
        matches!(self.socket.read(&mut [0]), Ok(0) | Err(_))
    }

    pub fn hang_up(&self) {
        self.socket.shutdown(Shutdown::Both).unwrap();
    }

    pub fn say(&mut self, message: &ReturnMessage) {
        let mut out = Output::new();
        message.write(&mut out);
        self.say_bytes(out.as_slice());
    }

    pub fn say_bytes(&mut self, bytes: &[u8]) {
        self.unless_quiet(|socket| socket.write_all(bytes));
    }

    pub fn ask(&mut self, name: Option<&str>, start: usize, length: usize) {
        let name = name.map(|name| name.as_bytes().to_vec());
        self.say(&ReturnMessage::ReqPages { name, start: start as u64, length: u32::try_from(length).unwrap() });
    }

    /// The answer to `RECV_BITMAP`: the pages that `received` holds of.
    pub fn tell(&mut self, name: &str, pages: usize, received: impl Fn(usize) -> bool) {
        self.say(&ReturnMessage::RecvBitmap(name.as_bytes().to_vec()));
        let mut bits = vec![0; pages.div_ceil(64) * 8];
        for page in (0..pages).filter(|page| received(*page)) {
            bits[page / 8] |= 1 << (page % 8);
        }
        let mut out = Output::new();
        write_bitmap(&mut out, &bits);
        self.say_bytes(out.as_slice());
    }

    /// Header and configuration.
    pub fn header(&mut self) {
        assert_eq!(self.bytes(17), b"QEVM\0\0\0\x03\x07\0\0\0\x04none");
    }

    /// The next page record of a channel; false at EOS.
    pub fn record(&mut self) -> bool {
        let word = self.be(8);
        match word & 0xfff {
            0x10 => return false,
            0x04 => {
                let mut left = word & !0xfff;
                while left > 0 {
                    let name = self.name();
                    let length = self.be(8);
                    if name == "huge" {
                        assert_eq!(self.be(8), 2 << 20, "the page size");
                    }
                    left -= length;
                }
                return true;
            }
            flags => {
                if flags & 0x20 == 0 {
                    self.last = Some(self.name());
                } else {
                    self.named = false;
                }
                let name = self.last.clone().expect("a name in the first record");
                let page = usize::try_from(word).unwrap() / PAGE;
                let zero = flags & !0x20 == 0x02;
                if zero {
                    assert_eq!(self.be(1), 0);
                } else {
                    assert_eq!(flags & !0x20, 0x08);
                    let bytes = self.bytes(PAGE);
                    assert_eq!(bytes[..8], (page as u64).to_be_bytes(), "page {page}");
                }
                assert_eq!(zero, is_zero(page), "page {page}");
                self.pages.push((name, page, zero));
            }
        }
        true
    }

    /// The next record of a channel that ends; false at its end.
    pub fn record_or_end(&mut self) -> bool {
        let mut first = [0];
        if self.saw_eos || rustix::net::recv(&self.socket, &mut first[..], rustix::net::RecvFlags::PEEK).map_or(0, |(got, _)| got) == 0 {
            return false;
        }
        let more = self.record();
        self.saw_eos |= !more;
        true
    }

    /// Whatever still comes, and then the end.
    pub fn ends_after_rest(&mut self) -> bool {
        let mut rest = vec![0; 1 << 16];
        loop {
            match self.socket.read(&mut rest) {
                Ok(0) => return true,
                Ok(_) => {}
                Err(e) => return e.kind() != std::io::ErrorKind::WouldBlock,
            }
        }
    }

    pub fn element(&mut self) -> Element {
        match self.be(1) {
            0 => Element::Eof,
            8 => {
                let (number, length) = (self.be(2), self.be(2));
                Element::Command(u16::try_from(number).unwrap(), self.bytes(usize::try_from(length).unwrap()))
            }
            kind @ 1..=3 => {
                assert_eq!(self.be(4), 2, "the id of ram");
                if kind == 1 {
                    assert_eq!(self.bytes(12), b"\x03ram\0\0\0\0\0\0\0\x04");
                }
                let before = self.pages.len();
                while self.record() {}
                assert_eq!(self.bytes(5), [0x7e, 0, 0, 0, 2]);
                Element::Section(u8::try_from(kind).unwrap(), self.pages.len() - before)
            }
            other => panic!("element {other}"),
        }
    }

    /// Up to the command of that number, answering PINGs; its payload.
    pub fn until(&mut self, number: u16) -> Vec<u8> {
        loop {
            match self.element() {
                Element::Command(found, payload) if found == number => return payload,
                Element::Command(2, token) => self.pong(&token),
                Element::Command(..) | Element::Section(..) => {}
                Element::Eof => panic!("the end before command {number}"),
            }
        }
    }

    fn pong(&mut self, token: &[u8]) {
        self.say(&ReturnMessage::Pong(u32::from_be_bytes(token.try_into().unwrap())));
    }

    /// Setup and switch, up to and with the package; from here on `pages` has what came after the switch.
    pub fn switched(&mut self) {
        self.header();
        let size = self.until(7);
        let package = self.bytes(u32::from_be_bytes(size.try_into().unwrap()) as usize);
        assert_eq!(package, package_bytes());
        self.pages.clear();
        self.last = None;
    }

    /// The rest of a postcopy: sections up to the end, and the last word.
    pub fn finish(&mut self) {
        loop {
            match self.element() {
                Element::Eof => break,
                Element::Command(2, token) => self.pong(&token),
                Element::Command(number, _) => panic!("command {number}"),
                Element::Section(..) => {}
            }
        }
        self.say(&ReturnMessage::Shut(0));
    }

    /// The pages that came, in order of their place; each once.
    pub fn sorted(&self) -> Vec<usize> {
        let mut pages: Vec<usize> = self.pages.iter().map(|(_, page, _)| *page).collect();
        pages.sort_unstable();
        let count = pages.len();
        pages.dedup();
        assert_eq!(pages.len(), count, "a page came twice");
        pages
    }
}

/// LISTEN, FULL, PING 3, RUN.
pub fn package_bytes() -> Vec<u8> {
    [&[8, 0, 4, 0, 0], FULL, &[8, 0, 2, 0, 4, 0, 0, 0, 3], &[8, 0, 5, 0, 0]].concat()
}

/// Wait for a condition that nobody tells of.
pub fn until(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + LONG;
    while !condition() {
        assert!(Instant::now() < deadline, "waited for {what}");
        std::thread::yield_now();
    }
}
