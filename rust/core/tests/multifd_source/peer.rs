//! A destination of multifd by script: it waits at every point of synchronisation as a real one does, and keeps what it was told.
#![allow(missing_docs, clippy::unwrap_used, clippy::missing_panics_doc)]

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use qmig_core::channel::Uri;
use qmig_core::page::{Inflate, Unzstd};
use qmig_core::wire::multifd::{Hello, Method, Packet};
use qmig_core::wire::{Accept, BlockEntry, ByteSource, Command, Decoder, DecoderOptions, Event, Input, Output, PageSink, ReturnMessage};
use qmig_core::{Error, ErrorKind, Result};

pub const PAGE: usize = 4096;
/// For what would hang otherwise.
pub const SOON: Duration = Duration::from_secs(30);

/// What is wrong with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Manner {
    Good,
    /// Takes the main channel and no other.
    Lonely,
    /// The last channel closes after so many packets.
    Dies(usize),
    /// The last channel is not read.
    Stalls,
    /// Takes all channels and reads none before `Peer::release`.
    Held,
}

/// What one channel has brought.
#[derive(Debug, Default)]
pub struct Brought {
    pub bytes: u64,
    pub packets: usize,
    pub syncs: usize,
    pub normal: usize,
    pub zero: usize,
    pub numbers: Vec<u64>,
    pub methods: BTreeSet<&'static str>,
    pub sync_rooms: BTreeSet<u32>,
}

/// What the destination knows in the end.
#[derive(Debug, Default)]
pub struct Record {
    /// Pages by block and offset; zeros are left out.
    pub pages: BTreeMap<(Vec<u8>, u64), Vec<u8>>,
    pub main_normal: usize,
    pub main_zero: usize,
    /// Points of synchronisation, as the main channel told them.
    pub marks: usize,
    pub channels: Vec<(Hello, Brought)>,
    pub finished: bool,
}

/// What all threads share.
#[derive(Debug, Default)]
struct Shared {
    pages: BTreeMap<(Vec<u8>, u64), Vec<u8>>,
    /// Pages since the last point of synchronisation.
    since: BTreeSet<(Vec<u8>, u64)>,
}

impl Shared {
    fn put(&mut self, block: &[u8], offset: u64, page: Option<&[u8]>) {
        let key = (block.to_vec(), offset);
        assert!(self.since.insert(key.clone()), "page {offset:#x} came twice between two points of synchronisation");
        match page {
            Some(bytes) => self.pages.insert(key, bytes.to_vec()),
            None => self.pages.remove(&key),
        };
    }
}

#[derive(Debug)]
struct Wire {
    stream: UnixStream,
    taken: u64,
}

impl ByteSource for Wire {
    fn read(&mut self, buf: &mut [u8]) -> Result<usize> {
        match self.stream.read(buf) {
            Ok(got) => {
                self.taken += got as u64;
                Ok(got)
            }
            Err(error) => Err(Error::io("peer", error)),
        }
    }
}

/// The main channel's sink.
struct Main {
    shared: Arc<Mutex<Shared>>,
    names: Vec<Vec<u8>>,
    per_section: bool,
    gates: Vec<(Receiver<()>, Sender<()>)>,
    normal: usize,
    zero: usize,
    marks: usize,
}

impl Main {
    /// Every channel has come to its SYNC; then all go on.
    fn meet(&mut self) -> Result<()> {
        for (reached, _) in &self.gates {
            reached.recv_timeout(SOON).map_err(|_| Error::new(ErrorKind::Closed, "a channel did not come to its SYNC"))?;
        }
        self.shared.lock().unwrap().since.clear();
        self.marks += 1;
        for (_, go) in &self.gates {
            let _ = go.send(());
        }
        Ok(())
    }
}

impl PageSink for Main {
    fn blocks(&mut self, list: &[BlockEntry]) -> Result<()> {
        self.names = list.iter().map(|entry| entry.name.clone()).collect();
        Ok(())
    }

    fn zero(&mut self, block: usize, offset: u64, fill: u8) -> Result<()> {
        assert_eq!(fill, 0);
        self.zero += 1;
        self.shared.lock().unwrap().put(&self.names[block], offset, None);
        Ok(())
    }

    fn page(&mut self, block: usize, offset: u64, bytes: &[u8]) -> Result<()> {
        self.normal += 1;
        self.shared.lock().unwrap().put(&self.names[block], offset, Some(bytes));
        Ok(())
    }

    fn flush(&mut self) -> Result<()> {
        assert!(!self.per_section, "the word FLUSH means nothing to 7.2");
        self.meet()
    }

    fn section_end(&mut self) -> Result<()> {
        if self.per_section { self.meet() } else { Ok(()) }
    }
}

enum Unpack {
    Zlib(Inflate),
    Zstd(Unzstd),
}

/// Reads one channel to its end.
struct Channel {
    input: Input<Wire>,
    unpack: Option<Unpack>,
    shared: Arc<Mutex<Shared>>,
    reached: Sender<()>,
    go: Receiver<()>,
    /// Closes it after so many packets.
    last: usize,
}

impl Channel {
    fn read(mut self) -> Result<(Hello, Brought)> {
        let hello = Hello::read(&mut self.input)?;
        let mut brought = Brought::default();
        while brought.packets < self.last {
            let head = match self.input.peek(32) {
                Ok(head) if head.len() >= 32 => head.to_vec(),
                _ => Vec::new(),
            };
            // A source that gives up cuts its channels wherever they are.
            let Ok(Some(Packet::Pages(pages))) = Packet::read(&mut self.input) else { break };
            brought.packets += 1;
            brought.numbers.push(u64::from_be_bytes(head[24..32].try_into().unwrap()));
            let raw = if pages.normal.is_empty() { Vec::new() } else { self.unpacked(pages.method, &pages.normal, pages.size)? };
            let mut shared = self.shared.lock().unwrap();
            for (offset, bytes) in pages.normal.iter().zip(raw.chunks_exact(PAGE)) {
                shared.put(&pages.block, *offset, Some(bytes));
            }
            for offset in &pages.zero {
                shared.put(&pages.block, *offset, None);
            }
            drop(shared);
            brought.normal += pages.normal.len();
            brought.zero += pages.zero.len();
            if !pages.normal.is_empty() {
                brought.methods.insert(match pages.method {
                    Method::None => "none",
                    Method::Zlib => "zlib",
                    Method::Zstd => "zstd",
                    _ => "another",
                });
            }
            if pages.sync {
                assert!(pages.normal.is_empty() && pages.zero.is_empty());
                brought.syncs += 1;
                brought.sync_rooms.insert(u32::from_be_bytes(head[12..16].try_into().unwrap()));
                let _ = self.reached.send(());
                if self.go.recv().is_err() {
                    break; // the main channel has ended
                }
            }
        }
        brought.bytes = self.input.offset();
        Ok((hello, brought))
    }

    fn unpacked(&mut self, method: Method, offsets: &[u64], size: u32) -> Result<Vec<u8>> {
        let bytes = self.input.read_vec(size.into())?;
        let mut out = vec![0; offsets.len() * PAGE + 1];
        match (method, &mut self.unpack) {
            (Method::None, None) => return Ok(bytes),
            (Method::Zlib, None) => self.unpack = Some(Unpack::Zlib(Inflate::default())),
            (Method::Zstd, None) => self.unpack = Some(Unpack::Zstd(Unzstd::new()?)),
            _ => {}
        }
        match &mut self.unpack {
            Some(Unpack::Zlib(stream)) => stream.run(&bytes, &mut out)?,
            Some(Unpack::Zstd(stream)) => stream.run(&bytes, &mut out)?,
            None => panic!("{method:?}"),
        }
        out.pop();
        Ok(out)
    }
}

/// It listens from the start.
#[derive(Debug)]
pub struct Peer {
    path: PathBuf,
    hold: Sender<()>,
    thread: Option<JoinHandle<Record>>,
}

impl Peer {
    pub fn start(channels: usize, per_section: bool, manner: Manner) -> Self {
        static MADE: AtomicUsize = AtomicUsize::new(0);
        let number = MADE.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("qmig-multifd-{}-{number}", std::process::id()));
        let listener = UnixListener::bind(&path).unwrap();
        let (hold, released) = channel();
        let thread = std::thread::spawn(move || serve(listener, channels, per_section, manner, &released));
        Self { path, hold, thread: Some(thread) }
    }

    pub fn uri(&self) -> Uri {
        Uri::parse(&format!("unix:{}", self.path.display())).unwrap()
    }

    /// From now on it reads.
    pub fn release(&self) {
        self.hold.send(()).unwrap();
    }

    /// What it knows in the end.
    pub fn record(mut self) -> Record {
        let thread = self.thread.take().unwrap();
        let end = Instant::now() + SOON;
        while !thread.is_finished() {
            assert!(Instant::now() < end, "the destination does not come to an end");
            std::thread::yield_now();
        }
        thread.join().unwrap()
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

fn serve(listener: UnixListener, channels: usize, per_section: bool, manner: Manner, held: &Receiver<()>) -> Record {
    let accept = || {
        let stream = listener.accept().unwrap().0;
        stream.set_read_timeout(Some(SOON)).unwrap();
        Wire { stream, taken: 0 }
    };
    let main = accept();
    if manner == Manner::Lonely {
        drop(listener);
        return Record::default();
    }
    let shared = Arc::<Mutex<Shared>>::default();
    let (mut gates, mut threads, mut stalled) = (Vec::new(), Vec::new(), Vec::new());
    let wires: Vec<Wire> = (0..channels).map(|_| accept()).collect();
    if manner == Manner::Held {
        held.recv_timeout(SOON).unwrap();
    }
    for (channel_number, wire) in wires.into_iter().enumerate() {
        let last = channel_number + 1 == channels;
        if last && manner == Manner::Stalls {
            stalled.push(wire);
            continue;
        }
        let ((reached, arrivals), (go, gone)) = (channel(), channel());
        gates.push((arrivals, go));
        let packets = match manner {
            Manner::Dies(packets) if last => packets,
            _ => usize::MAX,
        };
        let reader = Channel { input: Input::new(wire), unpack: None, shared: Arc::clone(&shared), reached, go: gone, last: packets };
        threads.push(std::thread::spawn(move || reader.read()));
    }
    let mut back = main.stream.try_clone().unwrap();
    let sink = Main { shared: Arc::clone(&shared), names: Vec::new(), per_section, gates, normal: 0, zero: 0, marks: 0 };
    let (sink, finished) = load(main, &mut back, sink);
    if !finished {
        // As a destination does that has failed.
        let _ = back.shutdown(std::net::Shutdown::Both);
    }
    let mut record = Record { main_normal: sink.normal, main_zero: sink.zero, marks: sink.marks, finished, ..Record::default() };
    drop(sink); // opens the gates for good
    drop(stalled);
    for thread in threads {
        let brought = thread.join().unwrap();
        if finished {
            record.channels.push(brought.unwrap());
        }
    }
    record.pages = std::mem::take(&mut shared.lock().unwrap().pages);
    record
}

fn load(main: Wire, back: &mut UnixStream, mut sink: Main) -> (Main, bool) {
    let mut decoder = Decoder::new(Input::new(main), DecoderOptions::default()).accepting(Accept::MULTIFD);
    let mut answer = |message: ReturnMessage| {
        let mut bytes = Output::new();
        message.write(&mut bytes);
        let _ = back.write_all(bytes.as_slice());
    };
    let finished = loop {
        match decoder.next(&mut sink) {
            Ok(Event::Command(Command::Ping(number), _)) => answer(ReturnMessage::Pong(number)),
            Ok(Event::Finished) => break true,
            Ok(_) => {}
            Err(_) => break false,
        }
    };
    if finished {
        answer(ReturnMessage::Shut(0));
    }
    (sink, finished)
}
