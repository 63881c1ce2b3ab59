//! Vectors of spec/stream 5.4, packets that go on from one to the next, and anything at all as input.

use std::io::Write;

use flate2::{Compress, Compression, FlushCompress};
use proptest::prelude::*;

use super::{Inflate, Unzstd, inflate_page, xbzrle_decode};

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
fn zstd_packets_of_another_length_are_refused() {
    let packed = zstd::encode_all(&packets()[0][..], 1).unwrap();
    for (room, said) in [(2 * PAGE - 1, "more than"), (2 * PAGE + 1, "expected")] {
        let error = Unzstd::new().unwrap().run(&packed, &mut vec![0; room + 1]).unwrap_err();
        assert!(error.message.contains(said), "{error}");
    }
    assert_eq!(Unzstd::new().unwrap().run(&[7; 100], &mut [0; 100]).unwrap_err().kind.name(), "bad-page");
}

proptest! {
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
