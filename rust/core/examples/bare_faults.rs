//! The bare limit that `bench faults` stands beside: memory that runs elsewhere first, with the threads and channels of postcopy.
//!
//! ```text
//! bare_faults [--size BYTES] [--channels 1|2] [--in-flight BYTES] [--batch PAGES] [--seed N]
//! ```
//!
//! This process is the destination: one thread reads faults and asks for their pages, one receives and places what comes, another one
//! does that for requested pages if they have a channel of their own, and one touches each page once in random order and times it.
//! The source is a second process of the same program: one thread sends the memory in small batches, from front to back and on behind
//! whatever was asked for, one reads requests and answers them on their own channel, or gives them to the first. Records of 8 + 4096
//! bytes, no protocol, no discards, no zero test, no latency record: what postcopy adds shows as the difference. The defaults of `--in-flight` and `--batch` are the best
//! found for either number of channels. Prints one line of JSON: what the toucher saw, the requests, and the seconds until all
//! memory was there.

use std::error::Error;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::ScopedJoinHandle;
use std::time::Instant;

use qmig_core::lab::{Order, Toucher, fill};
use qmig_core::ram::{Block, BlockOptions, TARGET_PAGE};
use qmig_core::sys::io::{IoVec, send, set_unsent_low_water};
use qmig_core::sys::uffd::{FAULTS, Fault, Faults, Features, Modes, Refusal, Uffd};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::sockopt;
use serde_json::json;

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

const HEADER: usize = 8;
const RECORD: usize = HEADER + TARGET_PAGE;
/// Stands where a page number would: the source has sent everything.
const END: u64 = u64::MAX;
/// How soon the fault thread notices that all is over.
const SLICE: Timespec = Timespec { tv_sec: 0, tv_nsec: 50_000_000 };

struct Options {
    size: u64,
    channels: usize,
    in_flight: usize,
    batch: usize,
    seed: u64,
}

fn main() -> Result<()> {
    let mut options = Options { size: 1 << 30, channels: 2, in_flight: 0, batch: 0, seed: 0 };
    let mut send_to = None;
    let mut arguments = std::env::args().skip(1);
    while let Some(name) = arguments.next() {
        let value = arguments.next().ok_or_else(|| format!("{name} needs a value"))?;
        match name.as_str() {
            "--size" => options.size = value.parse()?,
            "--channels" => options.channels = value.parse()?,
            "--in-flight" => options.in_flight = value.parse()?,
            "--batch" => options.batch = value.parse()?,
            "--seed" => options.seed = value.parse()?,
            "--send-to" => send_to = Some(value),
            _ => return Err(format!("unknown option {name}").into()),
        }
    }
    if options.size == 0 || !options.size.is_multiple_of(TARGET_PAGE as u64) || !matches!(options.channels, 1 | 2) {
        return Err("--size is a multiple of 4096, --channels 1 or 2".into());
    }
    let best = if options.channels == 2 { (64 << 10, 16) } else { (16 << 10, 4) };
    options.in_flight = if options.in_flight == 0 { best.0 } else { options.in_flight };
    options.batch = if options.batch == 0 { best.1 } else { options.batch };
    match send_to {
        Some(address) => source(&options, &address),
        None => destination(&options),
    }
}

fn memory(options: &Options) -> Result<Arc<Block>> {
    Ok(Block::new("bare", options.size, &BlockOptions { thp: false, ..BlockOptions::default() })?)
}

// The destination.

/// The memory that is being filled.
struct Missing {
    uffd: Uffd,
    address: usize,
    /// The last page is there.
    over: AtomicBool,
}

fn destination(options: &Options) -> Result<()> {
    let block = memory(options)?;
    let uffd = Uffd::open(Features::empty(), Faults::Best)?;
    uffd.register(block.address(), usize::try_from(options.size)?, Modes::MISSING)?;
    let missing = Missing { uffd, address: block.address(), over: AtomicBool::new(false) };
    let listener = TcpListener::bind(("127.0.0.1", 0))?;
    sockopt::set_socket_recv_buffer_size(&listener, options.in_flight)?; // inherited by what it accepts
    let mut source = Command::new(std::env::current_exe()?)
        .args(["--send-to", &listener.local_addr()?.to_string()])
        .args(["--size", &options.size.to_string(), "--channels", &options.channels.to_string()])
        .args(["--in-flight", &options.in_flight.to_string(), "--batch", &options.batch.to_string()])
        .stdin(Stdio::null())
        .spawn()?;
    let mut channels = Vec::new();
    for _ in 0..=options.channels {
        let (socket, _) = listener.accept()?; // the source connects when its memory is ready
        socket.set_nodelay(true)?;
        channels.push(socket);
    }
    let back = channels.remove(0);
    let toucher = Toucher::new(block, Order::Random, options.seed, TARGET_PAGE as u64, false, 0)?;
    let requests = AtomicU64::new(0);
    let begun = Instant::now();
    let seconds = std::thread::scope(|scope| -> Result<f64> {
        scope.spawn(|| or_exit(ask(&missing, &back, &requests)));
        let receiving: Vec<_> = channels.iter().map(|socket| scope.spawn(|| or_exit(receive(&missing, socket)))).collect();
        (&back).write_all(&END.to_ne_bytes())?; // go
        toucher.start()?;
        let mut threads = receiving.into_iter();
        // The first is the one that brings the end.
        threads.next().map(ScopedJoinHandle::join);
        let seconds = begun.elapsed().as_secs_f64();
        toucher.wait(None); // then every requested page is there
        missing.over.store(true, Ordering::Relaxed);
        channels.iter().chain([&back]).try_for_each(|socket| socket.shutdown(Shutdown::Both))?;
        Ok(seconds)
    })?;
    if !source.wait()?.success() {
        return Err("the source failed".into());
    }
    let mut line = toucher.record();
    line["requests"] = json!(requests.into_inner());
    line["seconds"] = json!(seconds);
    Ok(writeln!(std::io::stdout(), "{line}")?)
}

/// Whoever waits for a page that no thread brings any more would wait for ever.
fn or_exit(result: Result<()>) {
    if let Err(error) = result {
        let _ = writeln!(std::io::stderr(), "bare_faults: {error}");
        std::process::exit(1);
    }
}

/// Reads faults and asks for their pages.
fn ask(missing: &Missing, mut back: &TcpStream, requests: &AtomicU64) -> Result<()> {
    let mut faults = [Fault::default(); FAULTS];
    while !missing.over.load(Ordering::Relaxed) {
        poll(&mut [PollFd::new(&missing.uffd, PollFlags::IN)], Some(&SLICE))?;
        let found = missing.uffd.read_faults(&mut faults)?;
        for fault in &faults[..found] {
            let page = (fault.address - missing.address) / TARGET_PAGE;
            back.write_all(&(page as u64).to_ne_bytes())?;
            requests.fetch_add(1, Ordering::Relaxed);
        }
    }
    Ok(())
}

/// Places what comes, until the source has sent everything or the channel ends.
fn receive(missing: &Missing, mut socket: &TcpStream) -> Result<()> {
    let mut buffer = vec![0; 256 << 10];
    let mut have = 0;
    loop {
        let got = socket.read(&mut buffer[have..])?;
        if got == 0 {
            return Ok(());
        }
        have += got;
        let mut at = 0;
        while have - at >= HEADER {
            let page = u64::from_ne_bytes(buffer[at..at + HEADER].try_into()?);
            if page == END {
                return Ok(());
            }
            if have - at < RECORD {
                break;
            }
            let to = missing.address + usize::try_from(page)? * TARGET_PAGE;
            while let Some(why) = missing.uffd.copy(to, &buffer[at + HEADER..at + RECORD]).why {
                if why != Refusal::Again {
                    return Err(format!("page {page}: {why:?}").into());
                }
            }
            at += RECORD;
        }
        buffer.copy_within(at..have, 0);
        have -= at;
    }
}

// The source.

fn source(options: &Options, address: &str) -> Result<()> {
    let block = memory(options)?;
    fill(&block)?;
    let connect = || -> Result<TcpStream> {
        let socket = TcpStream::connect(address)?;
        socket.set_nodelay(true)?;
        Ok(socket)
    };
    let (mut back, main) = (connect()?, connect()?);
    let urgent = if options.channels == 2 { Some(connect()?) } else { None };
    sockopt::set_socket_send_buffer_size(&main, options.in_flight)?;
    set_unsent_low_water(main.as_fd(), u32::try_from(options.in_flight)?)?;
    let unsent = Unsent::new(block.pages());
    let mut go = [0; HEADER];
    back.read_exact(&mut go)?;
    let (give, asked) = channel();
    std::thread::scope(|scope| -> Result<()> {
        let (block, unsent, urgent) = (&block, &unsent, urgent.as_ref());
        let answering = scope.spawn(move || answer(block, back, urgent, unsent, &give));
        background(block, &main, options.batch, unsent, &asked)?;
        (&main).write_all(&END.to_ne_bytes())?;
        answering.join().map_err(|_| "the thread of requests panicked")?
    })
}

/// Requests: answered on their own channel, or given to who sends the rest. Ends with the connection.
fn answer(block: &Block, mut back: TcpStream, urgent: Option<&TcpStream>, unsent: &Unsent, give: &Sender<u64>) -> Result<()> {
    let mut request = [0; HEADER];
    while back.read_exact(&mut request).is_ok() {
        let page = u64::from_ne_bytes(request);
        match urgent {
            // Who sends the rest is gone when all of it is sent.
            None => {
                let _ = give.send(page);
            }
            Some(socket) if unsent.take(page)? => {
                send_pages(block, socket, &[page])?;
                let _ = give.send(page);
            }
            Some(_) => {}
        }
    }
    Ok(())
}

/// Everything that is not sent yet; what was asked for comes first, and then what lies behind it.
fn background(block: &Block, main: &TcpStream, batch: usize, unsent: &Unsent, asked: &Receiver<u64>) -> Result<()> {
    let mut next = 0;
    let mut pages = Vec::with_capacity(batch);
    loop {
        poll(&mut [PollFd::new(main, PollFlags::OUT)], None)?; // chosen as late as possible
        pages.clear();
        for page in asked.try_iter() {
            next = page + 1;
            if unsent.take(page)? {
                pages.push(page);
            }
        }
        while pages.len() < batch
            && let Some(page) = unsent.take_behind(next)
        {
            next = page + 1;
            pages.push(page);
        }
        if pages.is_empty() {
            return Ok(());
        }
        send_pages(block, main, &pages)?;
    }
}

/// A bit for each page that nobody has taken to send it.
struct Unsent(Vec<AtomicU64>);

impl Unsent {
    fn new(pages: usize) -> Self {
        let bits = |first: usize| if pages - first < 64 { (1 << (pages - first)) - 1 } else { u64::MAX };
        Self((0..pages).step_by(64).map(|first| AtomicU64::new(bits(first))).collect())
    }

    /// Whether the page was still to be sent; it is the caller's now.
    fn take(&self, page: u64) -> Result<bool> {
        let word = self.0.get(usize::try_from(page / 64)?).ok_or("a request for no page")?;
        let bit = 1 << (page % 64);
        Ok(word.fetch_and(!bit, Ordering::Relaxed) & bit != 0)
    }

    /// The first that is left from `page` on, or else from the front.
    fn take_behind(&self, page: u64) -> Option<u64> {
        let words = self.0.len() as u64;
        let (first, mask) = (page / 64, u64::MAX << (page % 64));
        // The first word twice: behind `page`, and at last before it.
        for (round, word) in (first..words).chain(0..words.min(first + 1)).enumerate() {
            let mask = if round == 0 { mask } else { u64::MAX };
            loop {
                let left = self.0[usize::try_from(word).ok()?].load(Ordering::Relaxed) & mask;
                if left == 0 {
                    break;
                }
                let found = word * 64 + u64::from(left.trailing_zeros());
                if self.take(found).ok()? {
                    return Some(found);
                }
            }
        }
        None
    }
}

fn send_pages(block: &Block, socket: &TcpStream, pages: &[u64]) -> Result<()> {
    let headers: Vec<[u8; HEADER]> = pages.iter().map(|page| page.to_ne_bytes()).collect();
    let mut records = Vec::with_capacity(2 * pages.len());
    for (header, page) in headers.iter().zip(pages) {
        records.push(IoVec::from_slice(header));
        records.push(IoVec::from_guest(block.range(page * TARGET_PAGE as u64, TARGET_PAGE)?));
    }
    let mut next = 0;
    while next < records.len() {
        let mut sent = send(socket.as_fd(), &records[next..], true)?;
        while next < records.len() && sent >= records[next].len() {
            sent -= records[next].len();
            next += 1;
        }
        if sent > 0 {
            records[next] = records[next].after(sent);
        }
    }
    Ok(())
}
