//! Pages compressed one by one: what a source writes, and what a destination makes of what comes.
#![allow(clippy::unwrap_used, missing_docs)]

use std::collections::HashMap;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread;

use qmig_core::channel::Uri;
use qmig_core::control::{Control, Parameters, ZeroPageDetection};
use qmig_core::page::{deflate_page, inflate_page};
use qmig_core::ram::Block;
use qmig_core::ram::dirty::DirtyMode;
use qmig_core::recv::Incoming;
use qmig_core::send::{Format, Options, Outgoing, Step};
use qmig_core::wire::consts::{RAM_COMPRESS_PAGE, RAM_PAGE, RAM_XBZRLE, RAM_ZERO};
use qmig_core::wire::{Accept, BlockEntry, CodedPage, Decoder, DecoderOptions, Event, Input, Output, PageSink};
use qmig_core::{Error, ErrorKind, Result};

const PAGE: usize = 4096;

/// Zeros, text and what does not shrink, in turn.
fn content(page: usize) -> Vec<u8> {
    let seed = page as u64 + 1;
    match page % 4 {
        0 => vec![0; PAGE],
        1 | 2 => (0..PAGE / 8).flat_map(|at| (seed + at as u64 / 16).to_le_bytes()).collect(),
        _ => (1..=PAGE as u64 / 8).flat_map(|at| (seed * at).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes()).collect(),
    }
}

// ---- the source ------------------------------------------------------------------------------------------------------

/// What came, and how.
#[derive(Debug, Default)]
struct Arrived {
    names: Vec<Vec<u8>>,
    pages: HashMap<(usize, u64), Vec<u8>>,
    zero: usize,
    plain: usize,
    packed: usize,
}

impl PageSink for Arrived {
    fn blocks(&mut self, list: &[BlockEntry]) -> Result<()> {
        self.names = list.iter().map(|entry| entry.name.clone()).collect();
        Ok(())
    }

    fn zero(&mut self, block: usize, offset: u64, _fill: u8) -> Result<()> {
        self.zero += 1;
        self.pages.insert((block, offset), vec![0; PAGE]);
        Ok(())
    }

    fn page(&mut self, block: usize, offset: u64, bytes: &[u8]) -> Result<()> {
        self.plain += 1;
        self.pages.insert((block, offset), bytes.to_vec());
        Ok(())
    }

    fn coded(&mut self, block: usize, offset: u64, page: CodedPage<'_>) -> Result<()> {
        let CodedPage::Zlib(bytes) = page else { panic!("{page:?}") };
        assert!(bytes.len() <= PAGE - 4, "a record that saves nothing");
        self.packed += 1;
        let mut page = vec![0; PAGE];
        inflate_page(bytes, false, &mut page)?;
        self.pages.insert((block, offset), page);
        Ok(())
    }
}

/// Sends `blocks`, then once more what `between` writes; what came, and the control.
fn sent(parameters: &Parameters, capabilities: &[&str], blocks: &[Arc<Block>], between: impl FnOnce()) -> (Arrived, Arc<Control>) {
    let control = Arc::new(Control::new(None));
    control.set_parameters(Parameters { max_bandwidth: 0, ..parameters.clone() });
    control.set_capabilities(capabilities.iter().map(|name| (*name).to_owned()));
    control.begin_outgoing().unwrap();
    let options = Options { format: Format::V7_2, section_id: 2, footers: true, switchover_start: false, dirty: DirtyMode::Explicit };
    let mut outgoing = Outgoing::new(Arc::clone(&control), blocks.to_vec(), options).unwrap();
    let (mut ours, theirs) = std::io::pipe().unwrap();
    outgoing.connect(&Uri::parse("fd:test").unwrap(), Some(OwnedFd::from(theirs))).unwrap();
    let reader = thread::spawn(move || {
        let mut stream = Vec::new();
        ours.read_to_end(&mut stream).unwrap();
        stream
    });
    let mut head = Output::new();
    head.file_header();
    head.configuration(b"none");
    outgoing.setup(head.as_slice(), &[None]).unwrap();
    assert_eq!(outgoing.run(0).unwrap(), Step::Switchover);
    between();
    let mut tail = Output::new();
    tail.eof();
    outgoing.finish(&[None], &[], tail.as_slice()).unwrap();
    outgoing.close();

    let stream = reader.join().unwrap();
    let mut arrived = Arrived::default();
    let options = DecoderOptions { description: false, ..DecoderOptions::default() };
    let mut decoder = Decoder::new(Input::new(stream.as_slice()), options).accepting(Accept::COMPRESS);
    while decoder.next(&mut arrived).unwrap() != Event::Finished {}
    for ((block, offset), found) in &arrived.pages {
        let block = blocks.iter().find(|known| known.name().as_bytes() == arrived.names[*block]).unwrap();
        let mut page = vec![0; PAGE];
        block.read(*offset, &mut page).unwrap();
        assert!(page == *found, "{} at {offset:#x}", block.name());
    }
    assert_eq!(arrived.pages.len(), blocks.iter().map(|block| block.pages()).sum::<usize>());
    (arrived, control)
}

fn filled(name: &str, pages: usize) -> Arc<Block> {
    let block = Block::anon(name, (pages * PAGE) as u64).unwrap();
    for page in (0..pages).filter(|page| page % 4 != 0) {
        block.write((page * PAGE) as u64, &content(page)).unwrap();
    }
    block
}

#[test]
fn a_format_without_compressed_pages_is_refused_before_anything_is_opened() {
    let control = Arc::new(Control::new(None));
    control.set_capabilities(["compress".to_owned()]);
    control.begin_outgoing().unwrap();
    let block = Block::anon("ram", PAGE as u64).unwrap();
    let options = Options { format: Format::V10_0, section_id: 2, footers: true, switchover_start: true, dirty: DirtyMode::Explicit };
    let mut outgoing = Outgoing::new(control, vec![block], options).unwrap();
    let error = outgoing.connect(&Uri::parse("unix:/nowhere/at/all").unwrap(), None).unwrap_err();
    assert_eq!(error.kind, ErrorKind::Unsupported);
    assert!(error.message.contains("switch `compress` off"), "{error}");
}

#[test]
fn pages_travel_compressed_where_that_saves_something() {
    let blocks = [filled("ram", 400), filled("rom", 80)];
    for threads in [1, 3] {
        let parameters = Parameters { compress_threads: threads, ..Parameters::default() };
        let (arrived, control) = sent(&parameters, &["compress"], &blocks, || ());
        // The first page of a block is the migration thread's, and here it is zero.
        assert_eq!((arrived.zero, arrived.packed, arrived.plain), (120, 240, 120));
        let answer = control.query_migrate();
        assert_eq!((&answer["ram"]["duplicate"], &answer["ram"]["normal"]), (&120.into(), &120.into()));
        let counters = &answer["compression"];
        assert_eq!(counters["pages"], 240);
        let size = counters["compressed-size"].as_u64().unwrap();
        assert!(size > 0 && size < 240 * 1000, "{size}");
    }
}

#[test]
fn a_level_that_does_not_compress_sends_plain_pages() {
    let parameters = Parameters { compress_level: 0, compress_threads: 2, ..Parameters::default() };
    let (arrived, _) = sent(&parameters, &["compress"], &[filled("ram", 40)], || ());
    assert_eq!((arrived.zero, arrived.packed, arrived.plain), (10, 0, 30));
}

#[test]
fn zeros_that_nobody_looks_for_are_compressed_like_others() {
    let block = filled("ram", 40);
    (0..40).step_by(8).for_each(|page| block.fill((page * PAGE) as u64, PAGE, 0).unwrap());
    for (zero_page_detection, zero) in [(ZeroPageDetection::None, 5), (ZeroPageDetection::Legacy, 10)] {
        let parameters = Parameters { zero_page_detection, ..Parameters::default() };
        let (arrived, _) = sent(&parameters, &["compress"], &[Arc::clone(&block)], || ());
        assert_eq!(arrived.zero, zero, "{zero_page_detection:?}: the untouched ones are known");
    }
}

#[test]
fn without_waiting_no_page_is_lost() {
    let block = filled("ram", 4000);
    let parameters = Parameters { compress_level: 9, compress_threads: 1, compress_wait_thread: false, ..Parameters::default() };
    let (arrived, control) = sent(&parameters, &["compress"], &[block], || ());
    assert_eq!(arrived.zero, 1000);
    assert_eq!(arrived.packed + arrived.plain, 3000);
    assert!(arrived.packed > 0);
    // How often the worker is behind is its own affair; each page that it did not get is counted.
    let busy = control.query_migrate()["compression"]["busy"].as_u64().unwrap();
    assert!(2000 - arrived.packed as u64 <= busy && busy <= 3000, "{busy} times busy, {} pages compressed", arrived.packed);
}

#[test]
fn with_xbzrle_only_the_first_pass_is_compressed() {
    for (capabilities, later) in [(&["compress"][..], 30), (&["compress", "xbzrle"], 0)] {
        let block = filled("ram", 400);
        let (arrived, control) = sent(&Parameters::default(), capabilities, &[Arc::clone(&block)], || {
            for page in (1..61).step_by(2) {
                block.fill((page * PAGE) as u64, PAGE, 7).unwrap();
                block.mark_dirty((page * PAGE) as u64, PAGE).unwrap();
            }
        });
        assert_eq!(arrived.packed, 200 + later, "{capabilities:?}");
        assert_eq!(control.query_migrate()["compression"]["pages"], 200 + later);
    }
}

// ---- the destination -------------------------------------------------------------------------------------------------

/// A destination of one block, to which `body` comes after the announcement.
fn load(capabilities: &[&str], block: &Arc<Block>, body: impl FnOnce(&mut Output)) -> Result<()> {
    let control = Arc::new(Control::new(None));
    control.set_capabilities(capabilities.iter().map(|name| (*name).to_owned()));
    control.begin_incoming().unwrap();
    let incoming = Incoming::new(control, vec![Arc::clone(block)], DecoderOptions::default()).unwrap();
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    incoming.listen(&Uri::parse("fd:test").unwrap(), Some(OwnedFd::from(theirs))).unwrap();
    let mut stream = Output::new();
    stream.file_header();
    stream.configuration(b"none");
    stream.section_start(2, b"ram", 0, 4);
    stream.mem_size(block.used_length());
    stream.block(block.name().as_bytes(), block.used_length());
    stream.eos();
    stream.footer(2);
    stream.section_part(2);
    body(&mut stream);
    stream.eof();
    thread::scope(|scope| {
        scope.spawn(|| {
            // Who refuses it does not read all of it.
            let _ = ours.write_all(stream.as_slice());
            drop(ours);
        });
        incoming.accept().unwrap();
        let outcome = loop {
            match incoming.next() {
                Ok(Event::Finished) => break Ok(()),
                Ok(_) => {}
                Err(error) => break Err(error),
            }
        };
        incoming.close();
        outcome
    })
}

/// The record of a compressed page; where it stands.
fn put_packed(stream: &mut Output, page: usize, bytes: &[u8]) -> u64 {
    let at = stream.len() as u64;
    stream.page_record((page * PAGE) as u64, RAM_COMPRESS_PAGE, (page == 0).then_some(b"ram"));
    stream.be32(u32::try_from(bytes.len()).unwrap());
    stream.put(bytes);
    at
}

fn end(stream: &mut Output) {
    stream.eos();
    stream.footer(2);
}

#[test]
fn every_page_is_in_place_at_the_end_of_its_section() {
    const PAGES: usize = 300;
    let block = Block::anon("ram", (PAGES * PAGE) as u64).unwrap();
    block.fill(0, 100 * PAGE, 9).unwrap();
    let whole = |page: usize| if page.is_multiple_of(4) { content(page + 1) } else { content(page) };
    load(&["compress"], &block, |stream| {
        for page in 0..PAGES {
            put_packed(stream, page, &deflate_page(&whole(page), 1).unwrap());
            if page == 100 {
                end(stream);
                stream.section_part(2);
                stream.page_record(4 * PAGE as u64, RAM_ZERO, Some(b"ram"));
                stream.u8(0);
            }
        }
        end(stream);
    })
    .unwrap();
    let mut found = vec![0; PAGE];
    for page in 0..PAGES {
        block.read((page * PAGE) as u64, &mut found).unwrap();
        let wanted = if page == 4 { vec![0; PAGE] } else { whole(page) };
        assert!(found == wanted, "page {page}");
    }
}

/// Real sources do not do that. Whoever does shall find what the offline reader finds, on whatever thread the pages were.
#[test]
fn of_a_page_that_comes_twice_in_a_section_the_last_version_stays() {
    let block = Block::anon("ram", (8 * PAGE) as u64).unwrap();
    let packed = |fill: u8| deflate_page(&[fill; PAGE], 1).unwrap();
    load(&["compress"], &block, |stream| {
        // Then zeros, then as it is, then as a difference, then compressed.
        for page in 0..4 {
            put_packed(stream, page, &packed(1));
        }
        stream.page_record(0, RAM_ZERO, None);
        stream.u8(0);
        stream.page_record(PAGE as u64, RAM_PAGE, None);
        stream.put(&[3; PAGE]);
        stream.page_record(2 * PAGE as u64, RAM_XBZRLE, None);
        stream.put(&[1, 0, 3, 0, 1, 4]);
        put_packed(stream, 3, &packed(5));
        // More versions than all threads take at once.
        for version in 6..=200 {
            put_packed(stream, 4, &packed(version));
            put_packed(stream, 5, &packed(version));
        }
        end(stream);
    })
    .unwrap();
    let mut difference = [1; PAGE];
    difference[0] = 4;
    for (page, expected) in [&[0; PAGE], &[3; PAGE], &difference, &[5; PAGE], &[200; PAGE], &[200; PAGE]].into_iter().enumerate() {
        let mut found = [0; PAGE];
        block.read((page * PAGE) as u64, &mut found).unwrap();
        assert!(found == *expected, "page {page}");
    }
}

/// What a destination says of pages one of which is `bad`.
fn refusal(bad: &[u8]) -> (Error, u64) {
    let block = Block::anon("ram", 64 * PAGE as u64).unwrap();
    let mut at = 0;
    let error = load(&["compress"], &block, |stream| {
        for page in 0..64 {
            let good = deflate_page(&content(page), 1).unwrap();
            let here = put_packed(stream, page, if matches!(page, 21 | 63) { bad } else { &good });
            if page == 21 {
                at = here;
            }
        }
        end(stream);
    })
    .unwrap_err();
    // Nothing came anywhere else.
    let mut found = vec![0; PAGE];
    for page in (0..64).filter(|page| !matches!(page, 21 | 63)) {
        block.read((page * PAGE) as u64, &mut found).unwrap();
        assert!(found == vec![0; PAGE] || found == content(page), "page {page}");
    }
    (error, at)
}

#[test]
fn a_page_that_does_not_decode_is_named() {
    let good = deflate_page(&content(21), 1).unwrap();
    let bomb = deflate_page(&vec![0; 1 << 20], 9).unwrap();
    let mut damaged = good.clone();
    *damaged.last_mut().unwrap() ^= 1;
    for (bad, words) in [
        (&good[..good.len() / 2], "early"),
        (&good[..good.len() - 1], "does not end"),
        (&[&good[..], b"!"].concat(), "1 bytes follow"),
        (&deflate_page(&content(21)[..4000], 1).unwrap(), "only 4000"),
        (&deflate_page(&[content(21), vec![1]].concat(), 1).unwrap(), "more than 4096"),
        (&bomb, "more than 4096"),
        (&damaged, "zlib"),
        (&[0x55; 40], "zlib"),
    ] {
        let (error, at) = refusal(bad);
        assert_eq!((error.kind, error.path.as_str()), (ErrorKind::BadPage, "ram/ram"), "{error}");
        assert_eq!(error.offset, Some(at), "the first of the stream: {error}");
        assert!(error.message.starts_with("page 0x15000: ") && error.message.contains(words), "{error}");
    }
}

#[test]
fn lengths_are_bounded_before_anything_is_read() {
    let block = Block::anon("ram", PAGE as u64).unwrap();
    for length in [0, 4609, u32::MAX] {
        let error = load(&["compress"], &block, |stream| {
            stream.page_record(0, RAM_COMPRESS_PAGE, Some(b"ram"));
            stream.be32(length);
        })
        .unwrap_err();
        assert_eq!((error.kind, error.path.as_str()), (ErrorKind::LimitExceeded, "ram/ram"), "{error}");
    }
}

#[test]
fn compressed_pages_are_taken_only_if_they_were_asked_for() {
    let block = Block::anon("ram", PAGE as u64).unwrap();
    let error = load(&[], &block, |stream| _ = put_packed(stream, 0, &deflate_page(&content(1), 1).unwrap())).unwrap_err();
    assert_eq!(error.kind, ErrorKind::Unsupported);
    assert!(error.message.contains("switch the capability compress on here, too, or off at the source"), "{error}");
}
