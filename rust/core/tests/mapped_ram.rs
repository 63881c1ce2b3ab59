//! mapped-ram files: what one side writes into places, and what the other takes from them, refuses, and leaves alone.
#![allow(clippy::unwrap_used, missing_docs)]

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use proptest::prelude::*;
use proptest::test_runner::RngSeed;
use qmig_core::channel::Uri;
use qmig_core::control::{Control, Parameters, Status, ZeroPageDetection};
use qmig_core::ram::dirty::DirtyMode;
use qmig_core::ram::{Backing, Block, BlockOptions};
use qmig_core::recv::Incoming;
use qmig_core::send::{Format, Options, Outgoing, Step};
use qmig_core::wire::{DecoderOptions, Event, Output};
use qmig_core::{Error, ErrorKind, Result};
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};

use tmpfs::Tmpfs;

#[allow(dead_code)]
#[path = "scripted/tmpfs.rs"]
mod tmpfs;

const PAGE: u64 = 4096;
/// Where pages begin in a file with a short head.
const MIB: u64 = 1 << 20;

fn memfd() -> File {
    memfd_create("file", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).unwrap().into()
}

fn again(file: &File) -> OwnedFd {
    file.try_clone().unwrap().into()
}

fn uri() -> Uri {
    Uri::parse("fd:file").unwrap()
}

/// A control with the capability on; `threads`: with multifd, too.
fn control(threads: Option<u8>) -> Arc<Control> {
    let control = Arc::new(Control::new(None));
    let names = ["mapped-ram", "multifd"].into_iter().take(if threads.is_some() { 2 } else { 1 });
    control.set_capabilities(names.map(str::to_owned));
    control.set_parameters(Parameters { max_bandwidth: 0, multifd_channels: threads.unwrap_or(2), ..Parameters::default() });
    control
}

// ---- the source

fn head() -> Output {
    let mut head = Output::new();
    head.file_header();
    head.configuration(b"none");
    head.configuration_capabilities(&[b"mapped-ram"]);
    head
}

fn begun(blocks: Vec<Arc<Block>>, threads: Option<u8>) -> (Arc<Control>, Outgoing) {
    let control = control(threads);
    control.begin_outgoing().unwrap();
    let options = Options { format: Format::V10_0, section_id: 1, footers: true, switchover_start: true, dirty: DirtyMode::Explicit };
    let outgoing = Outgoing::new(Arc::clone(&control), blocks, options).unwrap();
    (control, outgoing)
}

struct Source {
    control: Arc<Control>,
    outgoing: Outgoing,
}

impl Source {
    fn new(blocks: Vec<Arc<Block>>, threads: Option<u8>, file: OwnedFd) -> Result<Self> {
        let (control, mut outgoing) = begun(blocks, threads);
        outgoing.connect(&uri(), Some(file))?;
        Ok(Self { control, outgoing })
    }

    /// The whole migration; `between` is what the machine does after the first round.
    fn run(&mut self, ends: &[Option<&[u8]>], between: impl FnOnce()) -> Result<()> {
        let mut tail = Output::new();
        tail.eof();
        let done = (|| {
            self.outgoing.setup(head().as_slice(), &[None])?;
            assert_eq!(self.outgoing.run(0)?, Step::Switchover);
            between();
            self.outgoing.finish(ends, &[], tail.as_slice())
        })();
        self.outgoing.close();
        done
    }
}

// ---- the destination

/// Loads `file` from its present position on.
fn load(blocks: &[Arc<Block>], threads: Option<u8>, file: OwnedFd) -> Result<()> {
    let control = control(threads);
    control.begin_incoming().unwrap();
    let incoming = Incoming::new(control.clone(), blocks.to_vec(), DecoderOptions::default()).unwrap();
    incoming.listen(&uri(), Some(file))?;
    incoming.accept()?;
    control.set_incoming_status(Status::None, Status::Active);
    while incoming.next()? != Event::Finished {}
    incoming.finish(0)
}

fn rewound(file: &File) -> OwnedFd {
    use std::io::{Seek, SeekFrom};
    let mut file = file.try_clone().unwrap();
    file.seek(SeekFrom::Start(0)).unwrap();
    file.into()
}

/// Blocks with pages of every kind: full, zero although written, untouched.
fn machine() -> Vec<Arc<Block>> {
    let blocks = vec![Block::anon("ram", 40 * MIB).unwrap(), Block::anon("rom", 3 * PAGE).unwrap()];
    for page in (0..40 * MIB / PAGE).filter(|page| page % 7 < 3 || (3000..5000).contains(page)) {
        blocks[0].fill(page * PAGE, 4096, u8::try_from(page % 5).unwrap()).unwrap();
    }
    blocks[1].fill(PAGE, 4096, 9).unwrap();
    blocks
}

/// The same in memory that is not what it is going to be.
fn others(backing: Backing) -> Vec<Arc<Block>> {
    let options = BlockOptions { backing, ..BlockOptions::default() };
    let blocks = vec![Block::new("ram", 40 * MIB, &options).unwrap(), Block::anon("rom", 3 * PAGE).unwrap()];
    blocks[0].fill(10 * PAGE, 200 * 4096, 0xee).unwrap();
    blocks[1].fill(0, 3 * 4096, 0xee).unwrap();
    blocks
}

fn bytes(block: &Block) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(block.used_length()).unwrap()];
    block.read(0, &mut bytes).unwrap();
    bytes
}

fn assert_same(ours: &[Arc<Block>], theirs: &[Arc<Block>]) {
    for (one, other) in ours.iter().zip(theirs) {
        assert!(bytes(one) == bytes(other), "block {}", one.name());
    }
}

fn be64(file: &File, at: u64) -> u64 {
    let mut bytes = [0; 8];
    file.read_exact_at(&mut bytes, at).unwrap();
    u64::from_be_bytes(bytes)
}

#[test]
fn any_number_of_threads_writes_and_reads_the_same() {
    let source = machine();
    for (writers, readers) in [(None, None), (Some(1), Some(255)), (Some(2), None), (Some(255), Some(3))] {
        let file = memfd();
        let mut migration = Source::new(source.clone(), writers, again(&file)).unwrap();
        migration.run(&[None], || {}).unwrap();
        let counters = &migration.control.outgoing().unwrap().counters;
        let pages = source.iter().map(|block| block.pages() as u64).sum::<u64>();
        assert_eq!(counters.normal.get() + counters.duplicate.get(), pages);
        assert_eq!(counters.multifd_bytes.get(), if writers.unwrap_or(1) > 1 { counters.normal.get() * PAGE } else { 0 });
        assert!(counters.transferred.get() > counters.normal.get() * PAGE);
        assert!(!migration.control.owned());
        let there = others(if readers == Some(3) { Backing::Memfd } else { Backing::Anon });
        load(&there, readers, rewound(&file)).unwrap();
        assert_same(&source, &there);
    }
}

#[test]
fn the_newest_version_of_a_page_counts() {
    for threads in [None, Some(4)] {
        let (source, file) = (machine(), memfd());
        let mut migration = Source::new(source.clone(), threads, again(&file)).unwrap();
        let between = || {
            source[0].write(3 * PAGE, b"was zero").unwrap();
            source[0].fill(PAGE, 4096, 0).unwrap();
            source[0].mark_dirty(PAGE, 4096).unwrap();
        };
        migration.run(&[None], between).unwrap();
        let there = others(Backing::Anon);
        load(&there, threads, rewound(&file)).unwrap();
        assert_same(&source, &there);
        // Old bytes may stay where no bit is set.
        let (bitmap, pages) = (be64(&file, place(&file)), be64(&file, place(&file) + 8));
        assert_eq!(bitmap, place(&file) + 16);
        let mut bits = [0; 1];
        file.read_exact_at(&mut bits, bitmap).unwrap();
        assert_eq!(bits[0] & 0b1011, 0b1000, "page 1 is zero by now, page 3 is not");
        let mut page = [0; 8];
        file.read_exact_at(&mut page, pages + 3 * PAGE).unwrap();
        assert_eq!(&page, b"was zero");
    }
}

#[test]
fn what_is_written_when_nobody_should_is_in_the_file_too() {
    let (source, file) = (machine(), memfd());
    let mut migration = Source::new(source.clone(), Some(2), again(&file)).unwrap();
    // No END of RAM either: what comes at the fence brings its own bits.
    migration.run(&[], || source[0].write(4 * PAGE, b"late").unwrap()).unwrap();
    let there = others(Backing::Anon);
    load(&there, None, rewound(&file)).unwrap();
    assert_same(&source, &there);
}

#[test]
fn a_stream_in_the_middle_of_a_file_has_places_of_that_file() {
    use std::io::{Seek, SeekFrom, Write};
    let (source, mut file) = (machine(), memfd());
    file.write_all(&[0xab; 5000]).unwrap();
    Source::new(source.clone(), None, again(&file)).unwrap().run(&[None], || {}).unwrap();
    let mut kept = [0; 5000];
    file.read_exact_at(&mut kept, 0).unwrap();
    assert_eq!(kept, [0xab; 5000]);
    file.seek(SeekFrom::Start(5000)).unwrap();
    let there = others(Backing::Anon);
    load(&there, Some(2), again(&file)).unwrap();
    assert_same(&source, &there);
}

#[test]
fn a_file_that_takes_no_more_leaves_the_machine_here() {
    for threads in [None, Some(3)] {
        let file = memfd();
        let Source { control, mut outgoing } = Source::new(machine(), threads, again(&file)).unwrap();
        outgoing.setup(head().as_slice(), &[None]).unwrap();
        fcntl_add_seals(&file, SealFlags::WRITE).unwrap();
        let error = outgoing.run(0).unwrap_err();
        outgoing.close();
        assert_eq!((error.kind, error.path.as_str()), (ErrorKind::Io, "ram"), "{error}");
        assert!(error.message.contains("fd:file: writing: "), "{error}");
        assert!(control.owned());
    }
}

#[test]
fn a_file_system_that_is_full_leaves_the_machine_here() {
    let Some(small) = Tmpfs::mount("4m") else { return };
    let uri = Uri::parse(&format!("file:{}", small.path().join("x").display())).unwrap();
    for threads in [None, Some(3)] {
        let (control, mut outgoing) = begun(machine(), threads);
        outgoing.connect(&uri, None).unwrap();
        outgoing.setup(head().as_slice(), &[None]).unwrap();
        let error = outgoing.run(0).unwrap_err();
        outgoing.close();
        assert_eq!((error.kind, error.path.as_str()), (ErrorKind::Io, "ram"), "{error}");
        assert!(error.message.ends_with("/x: writing: No space left on device; free some and try again"), "{error}");
        assert!(control.owned());
    }
}

#[test]
fn a_slow_migration_is_cancelled_at_once() {
    for threads in [None, Some(2)] {
        let Source { control, mut outgoing } = Source::new(machine(), threads, again(&memfd())).unwrap();
        // More than a minute for all of it.
        control.set_parameters(Parameters { max_bandwidth: 256 << 10, ..Parameters::default() });
        let begun = Instant::now();
        outgoing.setup(head().as_slice(), &[None]).unwrap();
        let session = control.outgoing().unwrap();
        let error = std::thread::scope(|scope| {
            let running = scope.spawn(|| outgoing.run(0).unwrap_err());
            while session.counters.normal.get() == 0 {
                assert!(begun.elapsed() < Duration::from_secs(30), "nothing was written");
                std::thread::yield_now();
            }
            assert!(control.cancel());
            running.join().unwrap()
        });
        outgoing.close();
        assert_eq!(error.kind, ErrorKind::Cancelled);
        assert!(control.owned() && begun.elapsed() < Duration::from_secs(30));
    }
}

#[test]
fn what_has_no_places_is_refused() {
    let (reader, writer) = std::io::pipe().unwrap();
    let refused = |outcome: Result<()>| {
        let error = outcome.unwrap_err();
        assert_eq!(error.kind, ErrorKind::BadUri);
        assert!(error.message.contains("with `mapped-ram` pages have fixed places; use file:PATH"), "{error}");
    };
    refused(Source::new(machine(), None, writer.into()).map(drop));
    let control = control(None);
    control.begin_incoming().unwrap();
    let incoming = Incoming::new(control.clone(), machine(), DecoderOptions::default()).unwrap();
    refused(incoming.listen(&Uri::parse("tcp:127.0.0.1:0").unwrap(), None).map(drop));
    refused(incoming.listen(&Uri::parse("exec:true").unwrap(), None).map(drop));
    incoming.listen(&uri(), Some(reader.into())).unwrap();
    refused(incoming.accept());
    let (_control, mut outgoing) = begun(machine(), None);
    refused(outgoing.connect(&Uri::parse("unix:/nowhere").unwrap(), None));
}

// ---- files made by hand

/// Where the two positions of the first block stand in the file that `made` makes, or `Source` with `head`.
fn place(file: &File) -> u64 {
    let mut start = vec![0; 256];
    file.read_exact_at(&mut start, 0).unwrap();
    let header = [&[0, 0, 0, 1_u8][..], &PAGE.to_be_bytes()].concat();
    start.windows(header.len()).position(|window| window == header).unwrap() as u64 + 12
}

/// What the header's positions are, given the right ones.
type Positions = fn(u64, u64) -> (u64, u64);

struct Made {
    bits: u64,
    positions: Positions,
    records: Vec<u8>,
    cut: Option<u64>,
}

impl Default for Made {
    fn default() -> Self {
        Self { bits: 0b101, positions: |bitmap, pages| (bitmap, pages), records: Vec::new(), cut: None }
    }
}

impl Made {
    /// One block of three pages, all of 0x11, 0x22, 0x33 in the file, of which the bits say 0 and 2.
    fn file(&self) -> File {
        let file = memfd();
        let mut start = head();
        start.section_start(1, b"ram", 0, 4);
        start.mem_size(3 * PAGE);
        start.block(b"ram", 3 * PAGE);
        let bitmap = start.len() as u64 + 28;
        let (said_bitmap, said_pages) = (self.positions)(bitmap, MIB);
        start.mapped_ram(said_bitmap, said_pages);
        start.put(&self.bits.to_le_bytes());
        file.write_all_at(start.as_slice(), 0).unwrap();
        for (page, byte) in [0x11, 0x22, 0x33].into_iter().enumerate() {
            file.write_all_at(&[byte; 4096], MIB + page as u64 * PAGE).unwrap();
        }
        let mut rest = Output::new();
        rest.put(&self.records);
        rest.eos();
        rest.footer(1);
        rest.section_end(1);
        rest.eos();
        rest.footer(1);
        rest.eof();
        file.write_all_at(rest.as_slice(), MIB + 3 * PAGE).unwrap();
        if let Some(cut) = self.cut {
            file.set_len(cut).unwrap();
        }
        file
    }

    /// What it makes of a block of 0xee; how it ends.
    fn load(&self) -> (Vec<u8>, Result<()>) {
        let block = Block::anon("ram", 3 * PAGE).unwrap();
        block.fill(0, 3 * 4096, 0xee).unwrap();
        let ended = load(std::slice::from_ref(&block), Some(2), rewound(&self.file()));
        (bytes(&block).chunks(4096).map(|page| page[0]).collect(), ended)
    }

    fn refused(&self) -> Error {
        let (pages, ended) = self.load();
        assert_eq!(pages, [0xee; 3], "nothing was touched");
        ended.unwrap_err()
    }
}

#[test]
fn a_page_without_a_bit_is_zero_whatever_stands_in_the_file() {
    for (bits, pages) in [(0b101, [0x11, 0, 0x33]), (0, [0, 0, 0]), (u64::MAX, [0x11, 0x22, 0x33])] {
        let (found, ended) = Made { bits, ..Made::default() }.load();
        ended.unwrap();
        assert_eq!(found, pages);
    }
}

#[test]
fn places_that_overlap_or_lie_outside_are_refused() {
    let cases: [Positions; 7] = [
        |bitmap, pages| (bitmap - 1, pages),
        |_, pages| (8, pages),
        |bitmap, _| (bitmap, bitmap / 4096 * 4096),
        |_, pages| (pages, pages),
        |bitmap, pages| (bitmap, pages + 1),
        |bitmap, _| (bitmap, u64::MAX - 4095),
        |_, _| (u64::MAX - 3, MIB),
    ];
    for positions in cases {
        let error = Made { positions, ..Made::default() }.refused();
        assert_eq!((error.kind, error.path.as_str()), (ErrorKind::BadAddress, "ram/ram"), "{error}");
    }
    let far = Made { positions: |bitmap, _| (bitmap, 1 << 40), ..Made::default() }.refused();
    assert_eq!(far.kind, ErrorKind::Truncated, "{far}");
}

#[test]
fn a_file_that_was_cut_is_refused_before_anything_is_loaded() {
    for cut in [60, 130, MIB, MIB + PAGE, MIB + 3 * PAGE - 1] {
        let error = Made { cut: Some(cut), ..Made::default() }.refused();
        assert!(error.kind == ErrorKind::Truncated && error.offset.unwrap() <= cut, "{cut}: {error}");
    }
}

#[test]
fn records_of_pages_have_no_place_in_such_a_stream() {
    for flag in [0x02_u64, 0x08, 0x40, 0x80, 0x100, 0x200] {
        let error = Made { records: flag.to_be_bytes().to_vec(), ..Made::default() }.load().1.unwrap_err();
        assert_eq!((error.kind, error.offset), (ErrorKind::BadFlags, Some(MIB + 3 * PAGE)), "{error}");
        assert!(error.message.contains("whose pages stand at fixed places"), "{error}");
    }
}

#[test]
fn a_side_that_was_not_told_says_what_to_switch_on() {
    let control = Arc::new(Control::new(None));
    control.begin_incoming().unwrap();
    let incoming = Incoming::new(control, machine(), DecoderOptions::default()).unwrap();
    incoming.listen(&uri(), Some(rewound(&Made::default().file()))).unwrap();
    incoming.accept().unwrap();
    let error = incoming.next().unwrap_err();
    assert_eq!(error.kind, ErrorKind::BadConfiguration);
    assert!(error.message.contains("mapped-ram is off here; switch it on here, too"), "{error}");
}

#[test]
fn zeros_that_nobody_looks_for_are_pages_like_others() {
    for threads in [None, Some(2)] {
        let (source, file) = (machine(), memfd());
        let mut migration = Source::new(source.clone(), threads, again(&file)).unwrap();
        let parameters = Parameters { zero_page_detection: ZeroPageDetection::None, ..(*migration.control.parameters()).clone() };
        migration.control.set_parameters(parameters);
        migration.run(&[None], || {}).unwrap();
        let mut bits = [0; 1];
        file.read_exact_at(&mut bits, be64(&file, place(&file))).unwrap();
        assert_eq!(bits[0] & 1, 1, "page 0 is zero, but somebody wrote it");
        let there = others(Backing::Anon);
        load(&there, threads, rewound(&file)).unwrap();
        assert_same(&source, &there);
    }
}

/// Whatever the head says, it is loaded or refused in words, and what was loaded over is as good as new for the next attempt.
#[test]
fn a_damaged_head_is_refused_or_loaded_and_another_attempt_succeeds() {
    let mut config = ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() };
    if std::env::var_os("CI").is_some() {
        config.rng_seed = RngSeed::Fixed(1);
    }
    let options = BlockOptions { max_size: Some(16 * PAGE), ..BlockOptions::default() };
    let damage = prop::collection::vec((0_u64..220, any::<u8>()), 1..4);
    proptest!(config, |(damage in damage, threads in prop::option::of(1_u8..4))| {
        let file = Made::default().file();
        for (at, byte) in damage {
            file.write_all_at(&[byte], at).unwrap();
        }
        let block = Block::new("ram", 3 * PAGE, &options).unwrap();
        if let Err(error) = load(std::slice::from_ref(&block), threads, rewound(&file)) {
            prop_assert!(!error.message.is_empty());
        }
        load(std::slice::from_ref(&block), threads, rewound(&Made::default().file())).unwrap();
        prop_assert_eq!(bytes(&block).chunks(4096).map(|page| page[0]).collect::<Vec<_>>(), [0x11, 0, 0x33]);
    });
}
