//! Each row of spec/stream 5.5: what is sent, what is kept.

use std::io::Read;
use std::os::unix::net::UnixStream;

use super::*;
use crate::channel::{Cancel, Uri, connect};
use crate::control::Parameters;
use crate::page::xbzrle_decode;
use crate::wire::consts::{RAM_CONTINUE, RAM_PAGE, RAM_ZERO};

const PAGE: u64 = PAGE_SIZE;

/// Two blocks of four pages each, at the start of a round after the first pass, and the reader of what is sent.
struct Rig {
    control: Arc<Control>,
    blocks: Vec<Arc<Block>>,
    way: Deltas,
    records: MainRecords,
    stream: Stream,
    reader: UnixStream,
}

/// A record: flags without CONTINUE, block's name if it has one, what follows.
type Record = (u64, Option<&'static str>, Vec<u8>);

impl Rig {
    fn new(cache_size: u64) -> Self {
        Self::with(Parameters { xbzrle_cache_size: cache_size, ..Parameters::default() })
    }

    fn with(parameters: Parameters) -> Self {
        let control = Arc::new(Control::new(None));
        control.set_parameters(parameters);
        let session = control.begin_outgoing().unwrap();
        let blocks = vec![Block::anon("a", 4 * PAGE).unwrap(), Block::anon("b", 4 * PAGE).unwrap()];
        let way = Deltas::new(&control, &session, &blocks).unwrap();
        let (ours, reader) = UnixStream::pair().unwrap();
        let channel = connect(&Uri::parse("fd:test").unwrap(), Some(ours.into()), &Cancel::new().unwrap()).unwrap();
        let stream = Stream::new(blocks.clone(), channel.split().1.unwrap(), 0);
        let mut rig = Self { control, records: MainRecords::new(&blocks).unwrap(), blocks, way, stream, reader };
        rig.way.synced(1);
        rig
    }

    /// What becomes of a page: its record, or none. What the way does not want is sent as it is.
    fn send(&mut self, area: usize, number: u64, bulk: bool) -> Option<Record> {
        let block = Arc::clone(&self.blocks[area]);
        let page = Page { area, block: &block, offset: number * PAGE, untouched: false, bulk };
        let before = self.stream.sent();
        if !self.way.page(&mut self.stream, &mut self.records, &page).unwrap() {
            self.records.plain(&mut self.stream, &page).unwrap();
        }
        self.stream.flush().unwrap();
        let mut bytes = vec![0; usize::try_from(self.stream.sent() - before).unwrap()];
        self.reader.read_exact(&mut bytes).unwrap();
        let word = u64::from_be_bytes(bytes.get(..8)?.try_into().unwrap());
        assert_eq!(word & !(PAGE - 1), page.offset);
        let named = word & RAM_CONTINUE == 0;
        let name = named.then(|| ["a", "b"][area]);
        Some((word & (PAGE - 1) & !RAM_CONTINUE, name, bytes.split_off(if named { 10 } else { 8 })))
    }

    /// The same in a later round of the first block.
    fn again(&mut self, number: u64) -> Option<Record> {
        self.send(0, number, false)
    }

    fn write(&self, number: u64, at: u64, bytes: &[u8]) {
        self.blocks[0].write(number * PAGE + at, bytes).unwrap();
    }

    fn content(&self, number: u64) -> Vec<u8> {
        let mut page = vec![0; PAGE_BYTES];
        self.blocks[0].read(number * PAGE, &mut page).unwrap();
        page
    }

    fn end(&mut self, kind: SectionKind) {
        self.way.section_end(&mut self.stream, &mut self.records, kind).unwrap();
    }

    /// Pages, overflows, misses.
    fn counts(&self) -> (u64, u64, u64) {
        let counters = &self.way.session.counters.xbzrle;
        (counters.pages.get(), counters.overflow.get(), counters.cache_miss.get())
    }
}

/// A delta as it stands in a record.
fn delta(bytes: &[u8]) -> Vec<u8> {
    [&[1, 0, u8::try_from(bytes.len()).unwrap()], bytes].concat()
}

/// A page that differs from an empty one in every byte.
fn busy() -> Vec<u8> {
    [0x55, 0xaa].repeat(PAGE_BYTES / 2)
}

#[test]
fn miss_then_differences() {
    let mut rig = Rig::new(1 << 20);
    rig.write(1, 0, &[7]);
    assert_eq!(rig.send(0, 1, true), Some((RAM_PAGE, Some("a"), rig.content(1))), "the first pass goes as it is");
    assert_eq!(rig.counts(), (0, 0, 0), "and leaves nothing in the cache");
    assert_eq!(rig.again(1), Some((RAM_PAGE, None, rig.content(1))), "not in the cache: sent whole, and kept");
    assert_eq!(rig.counts(), (0, 0, 1));
    assert_eq!(rig.again(1), None, "unchanged");
    rig.write(1, 0, &[8]);
    rig.write(1, 0x200, &[1, 2]);
    assert_eq!(rig.again(1), Some((RAM_XBZRLE, None, delta(&[0, 1, 8, 0xff, 3, 2, 1, 2]))));
    assert_eq!(rig.again(1), None, "the cache has what was sent");
    assert_eq!(rig.counts(), (1, 0, 1));
    assert_eq!(rig.way.session.counters.xbzrle.bytes.get(), 8 + 3 + 8, "with its head");
    assert_eq!((rig.records.normal, rig.records.coded), (2, 1));
}

#[test]
fn an_unchanged_page_leaves_the_current_block_as_it_was() {
    let mut rig = Rig::new(1 << 20);
    rig.write(0, 0, &[7]);
    rig.blocks[1].write(0, &[7]).unwrap();
    assert_eq!(rig.again(0).unwrap().1, Some("a"));
    assert_eq!(rig.send(1, 0, false).unwrap().1, Some("b"));
    assert_eq!(rig.again(0), None);
    rig.blocks[1].write(0, &[8]).unwrap();
    assert_eq!(rig.send(1, 0, false), Some((RAM_XBZRLE, None, delta(&[0, 1, 8]))), "still b");
}

#[test]
fn what_does_not_fit_goes_whole_and_is_kept() {
    let mut rig = Rig::new(1 << 20);
    rig.write(2, 0, &[7]);
    rig.again(2);
    rig.write(2, 0, &busy());
    assert_eq!(rig.again(2), Some((RAM_PAGE, None, busy())));
    assert_eq!(rig.counts(), (0, 1, 1));
    rig.write(2, 1, &[0]);
    assert_eq!(rig.again(2), Some((RAM_XBZRLE, None, delta(&[1, 1, 0]))), "against the page that was sent whole");
}

#[test]
fn zeros_are_kept_too() {
    let mut rig = Rig::new(1 << 20);
    assert_eq!(rig.again(3), Some((RAM_ZERO, Some("a"), vec![0])));
    rig.write(3, 9, &[5]);
    assert_eq!(rig.again(3), Some((RAM_XBZRLE, None, delta(&[9, 1, 5]))));
    rig.write(3, 9, &[0]);
    assert_eq!(rig.again(3), Some((RAM_ZERO, None, vec![0])));
    rig.write(3, 1, &[6]);
    assert_eq!(rig.again(3), Some((RAM_XBZRLE, None, delta(&[1, 1, 6]))));
    assert_eq!(rig.counts(), (2, 0, 0));
}

#[test]
fn the_last_stage_keeps_nothing_up_and_what_follows_goes_whole() {
    let mut rig = Rig::new(1 << 20);
    rig.write(0, 0, &[1]);
    rig.again(0);
    rig.write(0, 0, &[2]);
    rig.write(1, 0, &[2]);
    rig.way.last_stage();
    assert_eq!(rig.again(0), Some((RAM_XBZRLE, None, delta(&[0, 1, 2]))));
    assert_eq!(rig.again(1), Some((RAM_PAGE, None, rig.content(1))));
    assert_eq!(rig.again(0), Some((RAM_XBZRLE, None, delta(&[0, 1, 2]))), "not kept");
    assert_eq!(rig.again(1).unwrap().0, RAM_PAGE, "nor inserted");
    rig.end(SectionKind::End);
    // A writer that did not stop: the destination has 2 now, the cache 1, and no difference between them may be sent.
    rig.write(0, 0, &[1]);
    assert_eq!(rig.again(0), Some((RAM_PAGE, None, rig.content(0))));
}

#[test]
fn a_slot_is_one_of_the_whole_memory_and_young_pages_stay() {
    let mut rig = Rig::new(4 * PAGE);
    rig.write(0, 0, &[1]);
    rig.blocks[1].write(0, &[1]).unwrap();
    rig.again(0);
    assert_eq!(rig.send(1, 0, false).unwrap().0, RAM_PAGE, "page 4 of all: the slot of page 0");
    rig.write(0, 0, &[2]);
    assert_eq!(rig.again(0).unwrap().0, RAM_XBZRLE, "which stays");
    rig.way.synced(2);
    assert_eq!(rig.send(1, 0, false).unwrap().0, RAM_PAGE);
    rig.way.synced(3);
    assert_eq!(rig.send(1, 0, false).unwrap().0, RAM_PAGE, "taken over now");
    assert_eq!(rig.send(1, 0, false), None);
    assert_eq!(rig.again(0).unwrap().0, RAM_PAGE);
}

#[test]
fn another_size_is_an_empty_cache() {
    let mut rig = Rig::new(8 * PAGE);
    let set = |rig: &Rig, xbzrle_cache_size| rig.control.set_parameters(Parameters { xbzrle_cache_size, ..Parameters::default() });
    rig.write(0, 0, &[1]);
    rig.again(0);
    // All of RAM has 8 pages: more changes nothing.
    set(&rig, 64 * PAGE);
    rig.end(SectionKind::Part);
    assert_eq!(rig.again(0), None);
    set(&rig, 4 * PAGE);
    assert_eq!(rig.again(0), None, "not in the middle of a section");
    rig.end(SectionKind::Part);
    assert_eq!((rig.again(0).unwrap().0, rig.way.cache.size()), (RAM_PAGE, 4 * PAGE_BYTES));
    assert_eq!(rig.again(0), None);
    set(&rig, 4 * PAGE);
    rig.end(SectionKind::Part);
    assert_eq!(rig.again(0), None, "the same size");
}

#[test]
fn no_more_memory_than_ram_has() {
    assert_eq!(useful(1 << 63, 5 * PAGE), 8 * PAGE_BYTES);
    assert_eq!(useful(1 << 20, 1 << 40), 1 << 20);
    assert_eq!(useful(PAGE, 0), PAGE_BYTES);
}

#[test]
fn rates_of_a_period() {
    let mut rig = Rig::new(1 << 20);
    rig.write(0, 0, &[1]);
    rig.again(0);
    rig.write(0, 0, &[2]);
    rig.again(0);
    rig.again(0);
    rig.again(0);
    rig.way.synced(2);
    let rates = |rig: &Rig| {
        let counters = &rig.way.session.counters.xbzrle;
        (counters.cache_miss_rate.get(), counters.encoding_rate.get())
    };
    assert_eq!(rates(&rig), (0.0, 0.0), "too early");
    rig.way.period.begun -= RATE_PERIOD;
    rig.way.synced(3);
    assert_eq!(rates(&rig), (0.25, 4096.0 / 14.0));
    rig.way.period.begun -= RATE_PERIOD;
    rig.way.synced(4);
    assert_eq!(rates(&rig), (0.25, 4096.0 / 14.0), "nothing came by: nothing is known");
    rig.again(0);
    rig.way.period.begun -= RATE_PERIOD;
    rig.way.synced(5);
    assert_eq!(rates(&rig), (0.0, 0.0));
}

/// Numbers below `end`, always the same ones (xorshift).
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % end
    }
}

/// The destination's side of a record.
fn apply((flags, _, rest): Record, page: &mut [u8]) {
    match flags {
        RAM_PAGE => page.copy_from_slice(&rest),
        RAM_ZERO => page.fill(0),
        RAM_XBZRLE => {
            xbzrle_decode(&rest[3..], page).unwrap();
        }
        other => panic!("record of flags {other:#x}"),
    }
}

#[test]
fn the_destination_has_what_was_written_whatever_was() {
    let mut rig = Rig::new(4 * PAGE);
    let mut numbers = Numbers(0x1234_5678_9abc_def1);
    let mut there = vec![vec![0; PAGE_BYTES]; 8];
    // The machine is stopped at 199; what is dirty after that was written by who did not stop.
    for round in 0..=200 {
        rig.way.synced(round + 1);
        if round == 199 {
            rig.way.last_stage();
        }
        for number in 0..8 {
            let (area, inside) = (usize::from(number >= 4), number % 4);
            let block = Arc::clone(&rig.blocks[area]);
            match numbers.below(8) {
                0 => continue,
                1 => block.fill(inside * PAGE, PAGE_BYTES, 0).unwrap(),
                2 => block.write(inside * PAGE, &busy()).unwrap(),
                3 => {}
                writes => {
                    for _ in 0..writes {
                        let at = inside * PAGE + numbers.below(PAGE);
                        block.write(at, &[numbers.below(3).to_le_bytes()[0]]).unwrap();
                    }
                }
            }
            let page = &mut there[usize::try_from(number).unwrap()];
            if let Some(record) = rig.send(area, inside, round == 0) {
                apply(record, page);
            }
            let mut here = vec![0; PAGE_BYTES];
            block.read(inside * PAGE, &mut here).unwrap();
            assert!(*page == here, "page {number} in round {round}");
        }
        if round % 50 == 20 {
            let xbzrle_cache_size = PAGE << (round / 50);
            rig.control.set_parameters(Parameters { xbzrle_cache_size, ..Parameters::default() });
        }
        rig.end(SectionKind::Part);
    }
    let (pages, overflow, misses) = rig.counts();
    assert!(pages > 100 && overflow > 10 && misses > 100, "{pages} {overflow} {misses}");
}

#[test]
fn without_a_look_for_zeros_they_travel_like_any_page() {
    let mut rig = Rig::with(Parameters { zero_page_detection: ZeroPageDetection::None, ..Parameters::default() });
    assert_eq!(rig.again(1), Some((RAM_PAGE, Some("a"), vec![0; PAGE_BYTES])), "not in the cache: whole, and kept");
    assert_eq!(rig.again(1), None, "unchanged");
    rig.write(2, 0, &[7]);
    rig.again(2);
    rig.write(2, 0, &[0]);
    assert_eq!(rig.again(2), Some((RAM_XBZRLE, None, delta(&[0, 1, 0]))), "zero again: a difference");
    assert_eq!((rig.records.duplicate, rig.counts()), (0, (1, 0, 2)));
}
