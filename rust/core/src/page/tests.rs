//! Vectors of spec/stream 5.4, packets that go on from one to the next, and anything at all as input.

use std::io::Write;

use flate2::{Compress, Compression, FlushCompress};
use proptest::prelude::*;

use super::{
    CompressPool, Delta, Inflate, PageDeflate, PageInflate, Pool, Taken, Unzstd, XBZRLE_PAGE_MAX, XbzrleEncoder, Zstd, deflate_page,
    inflate_page, unzstd_page, xbzrle_decode, zstd_page,
};
use crate::ErrorKind;
use crate::sys::flips::Level;
use crate::wire::limits::ZSTD_WINDOW_LOG_MAX;

#[path = "../../tests/slow/mod.rs"]
mod slow;

const PAGE: usize = 4096;

#[test]
fn xbzrle_vectors() {
    let good: [(&[u8], usize, usize, u8); 5] = [
        (&[0x00, 0x01, 0x01], 1, 0, 0x01),
        (&[0xff, 0x1f, 0x01, 0xaa], 4096, 4095, 0xaa),
        (&[0x81, 0x01, 0x01, 0xff], 130, 129, 0xff),
        (&[0x83, 0x1f, 0x01, 0x07], 3972, 3971, 0x07),
        (&[0x81, 0x00, 0x01, 0x09], 2, 1, 0x09),
    ];
    for (delta, end, at, byte) in good {
        let mut page = [0; PAGE];
        assert_eq!(xbzrle_decode(delta, &mut page).unwrap(), end, "{delta:x?}");
        let mut expected = [0; PAGE];
        expected[at] = byte;
        assert_eq!(page, expected, "{delta:x?}");
    }
    assert_eq!(xbzrle_decode(&[], &mut [1; PAGE]).unwrap(), 0);
    let bad: [&[u8]; 8] = [
        &[0x80, 0x20, 0x01, 0x07],
        &[0x80, 0x80, 0x01],
        &[0x00, 0x01, 0x01, 0x00, 0x01],
        &[0x05, 0x00, 0x00],
        &[0x05],
        &[0x05, 0x02, 0x01],
        &[0x00, 0x80, 0x80],
        &[0xff, 0x7f, 0x01, 0x01],
    ];
    for delta in bad {
        assert_eq!(xbzrle_decode(delta, &mut [0; PAGE]).unwrap_err().kind.name(), "bad-page", "{delta:x?}");
    }
}

/// The delta, or why there is none; every instruction set gives the same.
fn encoded(old: &[u8], new: &[u8], room: usize) -> Result<Vec<u8>, Delta> {
    let mut results: Vec<_> = Level::all()
        .into_iter()
        .map(|level| {
            let mut delta = vec![0xee; room];
            match XbzrleEncoder::new(level).encode(old, new, &mut delta) {
                Delta::Length(length) => Ok(delta[..length].to_vec()),
                other => Err(other),
            }
        })
        .collect();
    let first = results.pop().unwrap();
    assert!(results.iter().all(|other| *other == first), "instruction sets differ");
    first
}

#[test]
fn xbzrle_encoder_vectors() {
    let page = |bytes: &[(usize, &[u8])]| {
        let mut page = vec![0; PAGE];
        for (at, bytes) in bytes {
            page[*at..at + bytes.len()].copy_from_slice(bytes);
        }
        page
    };
    let zero = page(&[]);
    let good: [(Vec<u8>, &[u8]); 4] = [
        (page(&[(0, &[1])]), &[0, 1, 1]),
        (page(&[(4095, &[0xff])]), &[0xff, 0x1f, 1, 0xff]),
        (page(&[(0x100, &[0xde, 0xad, 0xbe, 0xef]), (0x200, &[0x55])]), &[0x80, 2, 4, 0xde, 0xad, 0xbe, 0xef, 0xfc, 1, 1, 0x55]),
        (page(&[(10, &[0x11, 0x22, 0, 0x33])]), &[10, 2, 0x11, 0x22, 1, 1, 0x33]),
    ];
    for (new, delta) in good {
        assert_eq!(encoded(&zero, &new, PAGE).unwrap(), delta);
    }
    assert_eq!(encoded(&zero, &zero, PAGE), Err(Delta::Equal));
    // Whether it fits, by the unchanged bytes before the run and the changed ones.
    for (skipped, changed, length) in [
        (0, 4096, None),
        (0, 4091, Some(4094)),
        (0, 4092, None),
        (3, 4093, Some(4096)),
        (4, 4092, Some(4095)),
        (2, 4094, None),
        (3, 4092, None),
    ] {
        let found = encoded(&zero, &page(&[(skipped, &vec![9; changed])]), PAGE);
        assert_eq!(found.map(|delta| delta.len()), length.ok_or(Delta::Overflow), "{skipped} {changed}");
    }
    let alternating: Vec<u8> = (0..PAGE).map(|i| (i % 2) as u8).collect();
    assert_eq!(encoded(&zero, &alternating, PAGE), Err(Delta::Overflow));
}

#[test]
fn runs_as_long_as_can_be() {
    let zero = vec![0; XBZRLE_PAGE_MAX];
    let mut last = zero.clone();
    last[XBZRLE_PAGE_MAX - 1] = 1;
    assert_eq!(encoded(&zero, &last, 100).unwrap(), [0xff, 0x7f, 1, 1]);
    let all = vec![1; XBZRLE_PAGE_MAX];
    assert_eq!(encoded(&zero, &all, 2 * XBZRLE_PAGE_MAX), Err(Delta::Overflow));
    let found = encoded(&zero[1..], &all[1..], 2 * XBZRLE_PAGE_MAX).unwrap();
    assert_eq!((found.len(), &found[..3]), (XBZRLE_PAGE_MAX + 2, &[0, 0xff, 0x7f][..]));
}

/// The same by the slow encoder.
fn encode_slowly(old: &[u8], new: &[u8], room: usize) -> Result<Vec<u8>, Delta> {
    slow::encode(old, new, room).map_err(|none| match none {
        slow::None::Equal => Delta::Equal,
        slow::None::Overflow => Delta::Overflow,
    })
}

#[test]
fn a_record_of_a_real_stream() {
    let mut page = [0; PAGE];
    assert_eq!(xbzrle_decode(&[0x83, 0x02, 0x01, 0xdf, 0xfb, 0x1d, 0x01, 0xde], &mut page).unwrap(), 4096);
    assert_eq!((page[259], page[4095]), (0xdf, 0xde));
    assert_eq!(page.iter().filter(|byte| **byte != 0).count(), 2);
}

fn zlib(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::ZlibEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// A page that does not shrink.
fn noise() -> Vec<u8> {
    let mut state = 1_u64;
    let next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (state >> 56) as u8
    };
    std::iter::repeat_with(next).take(PAGE).collect()
}

#[test]
fn one_compressed_page() {
    let content: Vec<u8> = (0..PAGE).map(|i| (i * i / 7) as u8).collect();
    let packed = zlib(&content);
    let mut page = [0; PAGE];
    inflate_page(&packed, false, &mut page).unwrap();
    assert_eq!(page[..], content);
    inflate_page(&packed[2..packed.len() - 4], true, &mut page).unwrap();
    let refused = |bytes: &[u8]| inflate_page(bytes, false, &mut [0; PAGE]).unwrap_err().message;
    assert!(refused(&zlib(&content[..4000])).contains("only 4000"));
    assert!(refused(&zlib(&[&content[..], &[1]].concat())).contains("more than 4096"));
    assert!(refused(&packed[..packed.len() - 9]).contains("early"));
    assert!(refused(&[0x55; 20]).starts_with("zlib"));
    assert!(refused(&[]).contains("early"));
}

#[test]
fn one_compressed_page_after_the_other() {
    let contents: [Vec<u8>; 3] = [0, 7, 255].map(|step| (0..PAGE).map(|i| (i * step / 7) as u8).collect());
    let (mut deflate, mut inflate) = (PageDeflate::new(1).unwrap(), PageInflate::default());
    let (mut packed, mut page) = ([0; 5000], [0; PAGE]);
    for content in contents.iter().chain(&contents) {
        let length = deflate.run(content, &mut packed).unwrap().unwrap();
        assert_eq!(packed[..length], deflate_page(content, 1).unwrap(), "nothing is left of the page before");
        assert_eq!(deflate.run(content, &mut [0; 12]).unwrap(), None);
        assert!(inflate.run_all(&packed[..length - 1], &mut page).is_err());
        inflate.run_all(&packed[..length], &mut page).unwrap();
        assert_eq!(page[..], content[..]);
        assert_eq!(inflate.run(&packed[..length + 3], &mut page).unwrap(), length);
        let behind = inflate.run_all(&packed[..length + 3], &mut page).unwrap_err();
        assert!(behind.message.contains("3 bytes follow"), "{behind}");
    }
    let preset = {
        let mut with = Compress::new(Compression::fast(), true);
        with.set_dictionary(&contents[1]).unwrap();
        let mut out = Vec::with_capacity(5000);
        with.compress_vec(&contents[1], &mut out, FlushCompress::Finish).unwrap();
        out
    };
    assert!(inflate.run_all(&preset, &mut page).is_err(), "a dictionary that nobody has");
}

#[test]
fn a_pool_gives_back_every_page_once() {
    let mut pool = Pool::deflate(3, 1).unwrap();
    let mut found = vec![0; 1000];
    let mut take = |pool: &mut Pool<usize>, wait| {
        let Some(batch) = pool.taken(wait).unwrap() else { return false };
        for (number, taken) in batch.pages() {
            let Taken::Packed(packed) = taken else { panic!("{number}: {taken:?}") };
            let mut page = [0; PAGE];
            inflate_page(packed, false, &mut page).unwrap();
            assert_eq!(page, [(number % 251) as u8; PAGE]);
            found[number] += 1;
        }
        pool.give_back(batch);
        true
    };
    assert!(!take(&mut pool, true), "nobody has anything");
    for number in 0..1000 {
        while !pool.room() {
            assert!(take(&mut pool, true));
        }
        pool.put_page(number, |room| {
            room.fill((number % 251) as u8);
            Ok(())
        })
        .unwrap();
    }
    pool.flush();
    while take(&mut pool, true) {}
    assert!(!take(&mut pool, false));
    assert!(found.iter().all(|times| *times == 1));
}

#[test]
fn a_page_that_cannot_be_read_does_not_enter_the_pool() {
    let mut pool = Pool::deflate(1, 1).unwrap();
    assert!(pool.room());
    let refused = pool.put_page(1, |_| Err::<(), _>(super::bad("no such page")));
    assert_eq!(refused.unwrap_err().message, "no such page");
    pool.flush();
    assert!(pool.taken(true).unwrap().is_none());
}

#[test]
fn many_pages_at_a_time() {
    let random = noise();
    let text: Vec<u8> = (0..PAGE).map(|i| (i / 9) as u8).collect();
    let pages: Vec<&[u8]> = (0..100).map(|i| [&random[..], &text, &[0; PAGE]][i % 3]).collect();
    let mut pool = CompressPool::new(2, 6).unwrap();
    for _ in 0..2 {
        let packed = pool
            .compress(pages.len(), |page| pages[page].iter().all(|byte| *byte == 0), |page, room| room.copy_from_slice(pages[page]))
            .unwrap();
        assert!(packed[0] == random, "it does not shrink");
        assert!(packed[1] == deflate_page(&text, 6).unwrap());
        assert!(packed[2].is_empty());
        let mut out = vec![1; pages.len() * PAGE];
        pool.decompress(&packed, &mut out).unwrap();
        assert!(out == pages.concat());
        let mut damaged = packed.clone();
        damaged[61] = vec![0; 5000];
        damaged[40].truncate(9);
        let error = pool.decompress(&damaged, &mut out).unwrap_err();
        assert_eq!((error.kind, error.path.as_str()), (ErrorKind::BadPage, "page 40"), "the first: {error}");
    }
    for (threads, level) in [(0, 1), (256, 1), (1, -1), (1, 10)] {
        assert_eq!(CompressPool::new(threads, level).unwrap_err().kind, ErrorKind::InvalidArgument);
    }
}

/// Pages of three packets, the second all zero.
fn packets() -> [Vec<u8>; 3] {
    [(0..2 * PAGE).map(|i| (i / 3) as u8).collect(), vec![0; 64 * PAGE], (0..PAGE).map(|i| (i * i) as u8).collect()]
}

#[test]
fn zlib_goes_on_from_packet_to_packet() {
    let mut compress = Compress::new(Compression::fast(), true);
    let mut inflate = Inflate::default();
    for pages in packets() {
        let mut packed = Vec::with_capacity(2 * pages.len() + 100);
        compress.compress_vec(&pages, &mut packed, FlushCompress::Sync).unwrap();
        let mut out = vec![0; pages.len() + 1];
        inflate.run(&packed, &mut out).unwrap();
        assert_eq!(out[..pages.len()], pages);
    }
}

#[test]
fn zlib_packets_of_another_length_are_refused() {
    for (room, said) in [(2 * PAGE - 1, "more than"), (2 * PAGE + 1, "expected")] {
        let mut packed = Vec::with_capacity(3 * PAGE);
        Compress::new(Compression::fast(), true).compress_vec(&packets()[0], &mut packed, FlushCompress::Sync).unwrap();
        let error = Inflate::default().run(&packed, &mut vec![0; room + 1]).unwrap_err();
        assert!(error.message.contains(said), "{error}");
    }
    // A stream may not end.
    let ended = zlib(&[1; PAGE]);
    assert!(Inflate::default().run(&[&ended[..], &[1]].concat(), &mut [0; PAGE + 1]).is_err());
}

#[test]
fn pages_one_by_one() {
    let content: Vec<u8> = (0..PAGE).map(|i| (i * i / 7) as u8).collect();
    let random = noise();
    let mut page = [0; PAGE];
    for content in [&content, &random, &vec![0; PAGE]] {
        for level in [0, 1, 9] {
            let packed = deflate_page(content, level).unwrap();
            assert!(packed.len() <= 4110, "bound of spec/stream 6.1");
            inflate_page(&packed, false, &mut page).unwrap();
            assert_eq!(page[..], content[..]);
        }
        for level in [-5, 0, 1, 19] {
            unzstd_page(&zstd_page(content, level).unwrap(), &mut page).unwrap();
            assert_eq!(page[..], content[..]);
        }
    }
    assert!(deflate_page(&content, 10).unwrap_err().message.contains("levels"));
    assert!(deflate_page(&content, -1).unwrap_err().message.contains("levels"));
    assert!(zstd_page(&content, 23).unwrap_err().message.contains("levels"));
    let packed = zstd_page(&content, 1).unwrap();
    let halves = [zstd_page(&content[..2048], 1).unwrap(), zstd_page(&content[2048..], 1).unwrap()].concat();
    let bomb = zstd_page(&vec![0; 1 << 24], 1).unwrap();
    let bad: [(&[u8], &str); 6] = [
        (&zstd_page(&content[..4000], 1).unwrap(), "only 4000"),
        (&bomb, "zstd"),
        (&halves, "one whole frame"),
        (&packed[..packed.len() - 1], "one whole frame"),
        (&[&packed[..], &[0]].concat(), "one whole frame"),
        (&[], "one whole frame"),
    ];
    for (bytes, said) in bad {
        let error = unzstd_page(bytes, &mut page).unwrap_err();
        assert!(error.kind.name() == "bad-page" && error.message.contains(said), "{said}: {error}");
    }
}

#[test]
fn zstd_goes_on_from_packet_to_packet() {
    let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 1).unwrap();
    let mut decoder = Unzstd::new().unwrap();
    for pages in packets() {
        encoder.write_all(&pages).unwrap();
        encoder.flush().unwrap();
        let packed = std::mem::take(encoder.get_mut());
        let mut out = vec![0; pages.len() + 1];
        decoder.run(&packed, &mut out).unwrap();
        assert_eq!(out[..pages.len()], pages);
    }
}

#[test]
fn the_window_of_a_zstd_channel_is_bounded() {
    let page = &packets()[0][..PAGE];
    let (mut packed, mut out) = (vec![0; 2 * PAGE], vec![0; PAGE + 1]);
    // The highest level that a source may be given.
    let length = Zstd::new(20).unwrap().run(page, true, &mut packed).unwrap();
    Unzstd::new().unwrap().run(&packed[..length], &mut out).unwrap();
    assert_eq!(&out[..PAGE], page);
    for (log, taken) in [(ZSTD_WINDOW_LOG_MAX, true), (ZSTD_WINDOW_LOG_MAX + 1, false)] {
        let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 1).unwrap();
        encoder.window_log(log).unwrap();
        encoder.write_all(page).unwrap();
        encoder.flush().unwrap();
        let outcome = Unzstd::new().unwrap().run(encoder.get_ref(), &mut out);
        assert_eq!(outcome.is_ok(), taken, "{log}: {outcome:?}");
        assert!(outcome.err().is_none_or(|error| error.kind == ErrorKind::BadPage));
    }
}

#[test]
fn zstd_packets_of_another_length_are_refused() {
    let packed = zstd::encode_all(&packets()[0][..], 1).unwrap();
    for (room, said) in [(2 * PAGE - 1, "more than"), (2 * PAGE + 1, "expected")] {
        let error = Unzstd::new().unwrap().run(&packed, &mut vec![0; room + 1]).unwrap_err();
        assert!(error.message.contains(said), "{error}");
    }
    assert_eq!(Unzstd::new().unwrap().run(&[7; 100], &mut [0; 100]).unwrap_err().kind.name(), "bad-page");
}

/// A page and what becomes of it: some runs change.
fn pages() -> impl Strategy<Value = (Vec<u8>, Vec<u8>)> {
    let runs = prop::collection::vec((any::<prop::sample::Index>(), prop_oneof![1_usize..4, 1_usize..400], 1_u8..), 0..40);
    (prop_oneof![Just(PAGE), 0_usize..600], runs, any::<u8>()).prop_map(|(len, runs, seed)| {
        let old: Vec<u8> = (0..len).map(|i| (i / 5) as u8 ^ seed).collect();
        let mut new = old.clone();
        for (at, length, bits) in runs {
            if len > 0 {
                let at = at.index(len);
                new[at..len.min(at + length)].iter_mut().for_each(|byte| *byte ^= bits);
            }
        }
        (old, new)
    })
}

proptest! {
    /// The bytes and the overflow are those of the contract, whatever the room, and the decoder makes the page of them.
    #[test]
    fn xbzrle_there_and_back((old, new) in pages(), tight in prop::option::of(0_usize..600)) {
        let free = encode_slowly(&old, &new, 2 * PAGE);
        let rooms = match (&free, tight) {
            (Ok(delta), _) => (delta.len().saturating_sub(14)..delta.len() + 16).collect(),
            (_, Some(room)) => vec![room],
            _ => vec![0, 1, 2, PAGE],
        };
        for room in rooms {
            prop_assert_eq!(encoded(&old, &new, room), encode_slowly(&old, &new, room), "room {}", room);
        }
        if let Ok(delta) = free {
            let mut page = old;
            let end = xbzrle_decode(&delta, &mut page).unwrap();
            prop_assert!(page == new && end <= new.len());
        }
    }

    /// The decoder accepts, refuses and patches what the slow one does, whatever the bytes: half of them are numbers as they occur.
    #[test]
    fn xbzrle_decodes_as_slowly(delta in prop::collection::vec(prop_oneof![0_u8..5, any::<u8>()], 0..60), len in prop_oneof![Just(PAGE), 0_usize..300]) {
        let old: Vec<u8> = (0..len).map(|i| (i / 3) as u8).collect();
        let mut page = old.clone();
        let fast = xbzrle_decode(&delta, &mut page);
        match slow::decode(&delta, &old) {
            Ok((expected, end)) => prop_assert!(fast.unwrap() == end && page == expected),
            Err(why) => prop_assert!(fast.is_err(), "{}", why),
        }
    }

    /// Whatever comes in: an error or a result, never a panic.
    #[test]
    fn anything_is_survived(bytes in prop::collection::vec(any::<u8>(), 0..200), prefix in prop::sample::select(vec![&[][..], &[0x78, 0x01], &[0x28, 0xb5, 0x2f, 0xfd]])) {
        let input = [prefix, &bytes].concat();
        let mut page = [0; PAGE];
        if let Ok(end) = xbzrle_decode(&input, &mut page) {
            prop_assert!(end <= PAGE);
        }
        let _ = inflate_page(&input, false, &mut page);
        let _ = inflate_page(&input, true, &mut page);
        let _ = Inflate::default().run(&input, &mut page);
        let _ = Unzstd::new().unwrap().run(&input, &mut page);
    }

    /// A truncated or damaged stream never fills the page wrongly without a word: zlib has a checksum.
    #[test]
    fn a_damaged_page_is_an_error(at in 0usize..40, bit in 0u8..8) {
        let content: Vec<u8> = (0..PAGE).map(|i| (i / 100) as u8).collect();
        let mut packed = zlib(&content);
        let at = at % packed.len();
        packed[at] ^= 1 << bit;
        let mut page = [0; PAGE];
        prop_assert!(inflate_page(&packed, false, &mut page).is_err() || page[..] == content);
    }
}
