//! A scripted source with several channels, and the destination that it talks to.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use flate2::{Compress, FlushCompress};
use qmig_core::channel::Uri;
use qmig_core::control::{Compression, Control, Parameters};
use qmig_core::ram::Block;
use qmig_core::recv::{Deadlines, Incoming};
use qmig_core::wire::consts::{MULTIFD_MAGIC, MULTIFD_PAGES, MULTIFD_SYNC, RAM_MULTIFD_FLUSH, RAM_ZERO};
use qmig_core::wire::multifd::{HELLO_BYTES, Method};
use qmig_core::wire::{DecoderOptions, Event, Output, ReturnMessage};
use qmig_core::{Error, Result};
use zstd::stream::raw::{Encoder, InBuffer, Operation, OutBuffer};

pub const PAGE: usize = 4096;
pub const PAGES: usize = 16;
/// For what must happen, and for what would hang otherwise.
pub const SOON: Duration = Duration::from_secs(60);
pub const UUID: [u8; 16] = *b"0123456789abcdef";

/// What page `index` holds in its version `version`: half of it compresses well.
pub fn content(index: u64, version: u64) -> Vec<u8> {
    let seed = index * 1000 + version + 1;
    let noise = (0..PAGE as u64 / 16).flat_map(|word| (seed ^ word << 20).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes());
    noise.chain(seed.to_le_bytes().into_iter().cycle().take(PAGE / 2)).collect()
}

// ---- the destination -------------------------------------------------------------------------------------------------

pub struct Destination {
    pub control: Arc<Control>,
    pub incoming: Arc<Incoming>,
    pub block: Arc<Block>,
    port: u16,
    driver: Option<JoinHandle<Result<()>>>,
}

impl Destination {
    pub fn new(channels: u8, method: Method) -> Self {
        Self::with_ram(channels, method, PAGES * PAGE)
    }

    pub fn with_ram(channels: u8, method: Method, ram: usize) -> Self {
        let control = Arc::new(Control::new(None));
        control.set_capabilities(["multifd".to_owned()]);
        let multifd_compression = match method {
            Method::Zlib => Compression::Zlib(1),
            Method::Zstd => Compression::Zstd(1),
            _ => Compression::None,
        };
        control.set_parameters(Parameters { multifd_channels: channels, multifd_compression, ..Parameters::default() });
        control.begin_incoming().unwrap();
        let block = Block::anon("ram", ram as u64).unwrap();
        let incoming = Arc::new(Incoming::new(Arc::clone(&control), vec![Arc::clone(&block)], DecoderOptions::default()).unwrap());
        incoming.set_uuid(UUID);
        let addresses = incoming.listen(&Uri::parse("tcp:127.0.0.1:0").unwrap(), None).unwrap();
        let port = addresses[0]["port"].as_str().unwrap().parse().unwrap();
        Self { control, incoming, block, port, driver: None }
    }

    pub fn impatient(self, deadlines: Deadlines) -> Self {
        self.incoming.set_deadlines(deadlines);
        self
    }

    pub fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        stream.set_read_timeout(Some(SOON)).unwrap();
        stream
    }

    /// A connection that begins with these bytes.
    pub fn send(&self, bytes: &[u8]) -> TcpStream {
        let mut stream = self.connect();
        stream.write_all(bytes).unwrap();
        stream
    }

    /// The same towards a destination that may have given up already.
    pub fn offer(&self, bytes: &[u8]) -> Option<TcpStream> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).ok()?;
        stream.write_all(bytes).ok()?;
        Some(stream)
    }

    /// Does what Python does, in a thread of its own.
    pub fn start(mut self) -> Self {
        let incoming = Arc::clone(&self.incoming);
        self.driver = Some(std::thread::spawn(move || load(&incoming)));
        self
    }

    /// What the driver came to; all threads have ended then.
    pub fn outcome(&mut self) -> Result<()> {
        let driver = self.driver.take().unwrap();
        let end = Instant::now() + SOON;
        while !driver.is_finished() {
            assert!(Instant::now() < end, "the load does not end");
            std::thread::yield_now();
        }
        let outcome = driver.join().unwrap();
        self.incoming.close();
        outcome
    }

    pub fn refusal(&mut self) -> Error {
        self.outcome().unwrap_err()
    }

    /// The same, as the source hears it on the main channel.
    pub fn tells(&mut self, mut main: TcpStream) -> Error {
        let mut shut = Output::new();
        ReturnMessage::Shut(1).write(&mut shut);
        let mut heard = vec![0; shut.len()];
        main.read_exact(&mut heard).unwrap();
        assert_eq!(heard, shut.as_slice());
        main.shutdown(Shutdown::Write).unwrap();
        let error = self.refusal();
        assert_eq!(everything(main), b"", "{error}");
        error
    }

    pub fn page(&self, index: u64) -> Vec<u8> {
        let mut bytes = vec![0; PAGE];
        self.block.read(index * PAGE as u64, &mut bytes).unwrap();
        bytes
    }
}

fn load(incoming: &Incoming) -> Result<()> {
    let loaded = (|| {
        incoming.accept()?;
        loop {
            match incoming.next()? {
                Event::Finished => return Ok(()),
                Event::Section(header) => {
                    // Those of QEMU's machine without devices.
                    let length = if header.idstr == b"timer" { 24 } else { 104 };
                    incoming.payload()?.lock().unwrap().skip(length)?;
                    incoming.section_done()?;
                }
                _ => {}
            }
        }
    })();
    let _ = incoming.finish(u32::from(loaded.is_err()));
    loaded
}

// ---- the main channel ------------------------------------------------------------------------------------------------

/// The main channel up to the block list's end; `flushes`: with the word that marks synchronisation.
pub fn head(flushes: bool) -> Output {
    let mut main = Output::new();
    main.file_header();
    main.configuration(b"none");
    main.open_return_path();
    main.section_start(2, b"ram", 0, 4);
    main.mem_size((PAGES * PAGE) as u64);
    main.block(b"ram", (PAGES * PAGE) as u64);
    finish_section(&mut main, flushes);
    main
}

/// One more section, with these pages as zero records, and a point of synchronisation.
pub fn part(main: &mut Output, zeros: &[u64], flushes: bool) {
    main.section_part(2);
    for page in zeros {
        main.page_record(page * PAGE as u64, RAM_ZERO, Some(b"ram"));
        main.u8(0);
    }
    finish_section(main, flushes);
}

/// The end of RAM, then a fence.
pub fn last(main: &mut Output, flushes: bool) {
    main.section_end(2);
    finish_section(main, flushes);
    main.ping(2);
}

/// The same, then the end of all.
pub fn end(main: &mut Output, flushes: bool) {
    last(main, flushes);
    main.eof();
}

fn finish_section(main: &mut Output, flushes: bool) {
    if flushes {
        main.be64(RAM_MULTIFD_FLUSH);
    }
    main.eos();
    main.footer(2);
}

// ---- the other channels ----------------------------------------------------------------------------------------------

pub fn hello(number: u8) -> Vec<u8> {
    let mut output = Output::new();
    output.be32(MULTIFD_MAGIC);
    output.be32(1);
    output.put(&UUID);
    output.u8(number);
    output.zeros(HELLO_BYTES - output.len());
    output.into_vec()
}

enum Codec {
    None,
    Zlib(Compress),
    Zstd(Encoder<'static>),
}

/// What goes over one channel.
pub struct Script {
    pub bytes: Vec<u8>,
    flags: u32,
    codec: Codec,
}

impl Script {
    pub fn new(number: u8, method: Method) -> Self {
        let (flags, codec) = match method {
            Method::Zlib => (2, Codec::Zlib(Compress::new(flate2::Compression::fast(), true))),
            Method::Zstd => (4, Codec::Zstd(Encoder::new(1).unwrap())),
            _ => (0, Codec::None),
        };
        Self { bytes: hello(number), flags, codec }
    }

    /// A packet with pages in their version `version`, and zero pages.
    pub fn pages(mut self, pages: &[u64], version: u64, zeros: &[u64], sync: bool) -> Self {
        let plain: Vec<u8> = pages.iter().flat_map(|page| content(*page, version)).collect();
        let data = self.pack(&plain);
        let flags = self.flags | if sync { MULTIFD_SYNC } else { 0 };
        let all: Vec<u64> = pages.iter().chain(zeros).map(|page| page * PAGE as u64).collect();
        self.bytes.extend(header(flags, pages.len(), zeros.len(), data.len(), b"ram", &all));
        self.bytes.extend(data);
        self
    }

    /// A packet of synchronisation without pages. An older source leaves length, name and offsets of the packet before in it.
    pub fn sync(self, stale: bool) -> Self {
        let offsets: &[u64] = if stale { &[0x7000, 0xdead] } else { &[] };
        self.raw(&header(MULTIFD_SYNC, 0, 0, if stale { 0x2000 } else { 0 }, b"stale", offsets))
    }

    pub fn raw(mut self, bytes: &[u8]) -> Self {
        self.bytes.extend(bytes);
        self
    }

    fn pack(&mut self, plain: &[u8]) -> Vec<u8> {
        if plain.is_empty() {
            return Vec::new();
        }
        let mut out = Vec::with_capacity(2 * plain.len() + 1024);
        match &mut self.codec {
            Codec::None => return plain.to_vec(),
            Codec::Zlib(stream) => {
                stream.compress_vec(plain, &mut out, FlushCompress::Sync).unwrap();
            }
            Codec::Zstd(stream) => {
                out.resize(out.capacity(), 0);
                let mut to = OutBuffer::around(&mut out[..]);
                let mut from = InBuffer::around(plain);
                while from.pos() < plain.len() {
                    stream.run(&mut from, &mut to).unwrap();
                }
                assert_eq!(stream.flush(&mut to).unwrap(), 0);
                let length = to.pos();
                out.truncate(length);
            }
        }
        out
    }
}

/// The header of a packet.
pub fn header(flags: u32, normal: usize, zero: usize, size: usize, block: &[u8], offsets: &[u64]) -> Vec<u8> {
    let number = |count: usize| u32::try_from(count).unwrap();
    let mut output = Output::new();
    for word in [MULTIFD_MAGIC, 1, flags, MULTIFD_PAGES, number(normal), number(size)] {
        output.be32(word);
    }
    output.be64(7); // the packet's number says nothing
    output.be32(number(zero));
    output.zeros(28);
    output.put(block);
    output.zeros(256 - block.len());
    for offset in offsets {
        output.be64(*offset);
    }
    output.zeros(8 * (MULTIFD_PAGES as usize - offsets.len()));
    output.into_vec()
}

/// Everything up to the end.
pub fn everything(mut from: impl Read) -> Vec<u8> {
    let mut bytes = Vec::new();
    let _ = from.read_to_end(&mut bytes); // a reset is an end, too
    bytes
}
