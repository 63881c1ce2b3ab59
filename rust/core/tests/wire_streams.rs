//! Streams of real QEMUs through the decoder: as they are, cut at every byte, and damaged at random.
#![allow(clippy::unwrap_used)]

mod drive;

use std::fs::File;
use std::io::BufReader;
use std::path::PathBuf;

use drive::{drive, drive_both};
use proptest::prelude::*;
use proptest::test_runner::RngSeed;
use qmig_core::ErrorKind;
use qmig_core::wire::consts::{PAGE_SIZE, RAM_CONTINUE, RAM_EOS, RAM_FLAGS, RAM_PAGE};
use qmig_core::wire::{Decoder, Event, Input, RecordingSink, SectionKind, layout};

const GOLDEN: [&str; 4] = ["qemu29-none-plain", "qemu7-none-plain", "qemu10-none-plain", "e2k-plain"];

fn path(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/streams").join(name)
}

fn golden(name: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    lzma_rs::xz_decompress(&mut BufReader::new(File::open(path(&format!("{name}.stream.xz"))).unwrap()), &mut bytes).unwrap();
    bytes
}

/// The same stream with every run of page records cut down to its first and last few: small enough to damage thousands of times.
fn small(name: &str) -> Vec<u8> {
    let bytes = golden(name);
    let mut input = Input::from_bytes(bytes.clone(), 0);
    let mut decoder = Decoder::offline(Input::from_bytes(bytes.clone(), 0), None);
    let mut sink = RecordingSink::default();
    let (start, end) = loop {
        match decoder.next(&mut sink).unwrap() {
            // The type byte and the id stand before the records, the footer behind.
            Event::RamSection { header, .. } if header.kind == SectionKind::Part => {
                break (header.offset + 5, decoder.input().offset() - 5);
            }
            _ => {}
        }
    };
    input.skip(start).unwrap();
    let at = |input: &Input<_>| usize::try_from(input.offset()).unwrap();
    let mut records = Vec::new();
    let mut name: &[u8] = &[];
    loop {
        let from = at(&input);
        let word = input.be64().unwrap();
        if word & RAM_FLAGS == RAM_EOS {
            break;
        }
        if word & RAM_CONTINUE == 0 {
            let length = input.cstr8().unwrap().len();
            name = &bytes[from + 8..from + 9 + length];
        }
        let payload = if word & RAM_PAGE == 0 { 1 } else { PAGE_SIZE };
        let data = at(&input);
        input.skip(payload).unwrap();
        records.push((word, name, &bytes[data..at(&input)]));
    }
    assert_eq!(input.offset(), end);
    let (start, end) = (usize::try_from(start).unwrap(), usize::try_from(end).unwrap());
    let mut out = bytes[..start].to_vec();
    let mut last: &[u8] = &[];
    for (index, (word, name, data)) in records.iter().enumerate() {
        let first_of_kind = index < 3 || records[index - 1].0 & RAM_FLAGS != word & RAM_FLAGS || records[index - 1].1 != *name;
        if !first_of_kind && index + 3 < records.len() {
            continue;
        }
        let word = if *name == last { word | RAM_CONTINUE } else { word & !RAM_CONTINUE };
        out.extend_from_slice(&word.to_be_bytes());
        if *name != last {
            out.extend_from_slice(name);
            last = name;
        }
        out.extend_from_slice(data);
    }
    out.extend_from_slice(&RAM_EOS.to_be_bytes());
    out.extend_from_slice(&bytes[end..]);
    out
}

/// A JSON file's integer member, without a JSON reader's help: these files are ours and flat.
fn number(name: &str, member: &str) -> u64 {
    let text = std::fs::read_to_string(path(&format!("{name}.json"))).unwrap();
    let rest = text.split(&format!("\"{member}\":")).nth(1).unwrap();
    rest.trim_start().split(|c: char| !c.is_ascii_digit()).next().unwrap().parse().unwrap()
}

#[test]
fn streams_of_real_qemus_decode_wholly() {
    for name in GOLDEN {
        let bytes = golden(name);
        let length = bytes.len() as u64;
        let mut decoder = Decoder::offline(Input::from_bytes(bytes, 0), Some(true));
        let mut sink = RecordingSink::default();
        let (mut normal, mut zero, mut kinds, mut devices) = (0, 0, Vec::new(), Vec::new());
        loop {
            match decoder.next(&mut sink).unwrap() {
                Event::RamSection { header, pages } => {
                    normal += pages.normal;
                    zero += pages.zero;
                    kinds.push(header.kind);
                }
                Event::Section(header) => {
                    layout::skip_known(decoder.input(), &header).unwrap();
                    decoder.section_done().unwrap();
                    devices.push(String::from_utf8(header.idstr).unwrap());
                }
                Event::Finished => break,
                _ => {}
            }
        }
        assert_eq!(decoder.input().offset(), length, "{name}: bytes left over");
        assert_eq!((normal, zero), (number(name, "normal"), number(name, "duplicate")), "{name}");
        assert_eq!(kinds, [SectionKind::Start, SectionKind::Part, SectionKind::End], "{name}");
        let expected: &[&str] = match name {
            "e2k-plain" => &["timer", "cpu_common", "PCIHost", "PCIBUS", "PCIBUS", "escc", "globalstate"],
            _ => &["timer", "globalstate"],
        };
        assert_eq!(devices, expected, "{name}");
        assert_eq!(sink.blocks().next().unwrap().used_length, number(name, "ram_bytes"), "{name}");
    }
}

#[test]
fn a_cut_anywhere_is_a_truncation() {
    for name in GOLDEN {
        let bytes = small(name);
        let end = bytes.windows(6).rposition(|w| w[..2] == [0, 6] && w[5] != 0).unwrap();
        for cut in 0..bytes.len() {
            let length = cut as u64;
            let verdict = drive(Decoder::offline(Input::from_bytes(bytes[..cut].to_vec(), 0), Some(true)), length);
            match verdict.error {
                // The description may be missing, but not break off.
                None => assert_eq!(cut, end + 1, "{name}: a stream cut at {cut:#x} is complete"),
                Some(error) => {
                    assert_eq!(error.kind, ErrorKind::Truncated, "{name} cut at {cut:#x}: {error}");
                    assert!(error.offset.unwrap() + PAGE_SIZE > length, "{name} cut at {cut:#x}: {error}");
                }
            }
        }
        assert_eq!(drive(Decoder::offline(Input::from_bytes(bytes.clone(), 0), Some(true)), bytes.len() as u64).error, None, "{name}");
    }
}

#[derive(Debug, Clone)]
enum Damage {
    Flip { at: prop::sample::Index, bit: u8 },
    Set { at: prop::sample::Index, byte: u8 },
    Cut { at: prop::sample::Index },
    Splice { from: prop::sample::Index, to: prop::sample::Index, size: usize, other: prop::sample::Index },
    Remove { at: prop::sample::Index, size: usize },
}

fn damage() -> impl Strategy<Value = Damage> {
    let index = || any::<prop::sample::Index>();
    prop_oneof![
        4 => (index(), 0..8u8).prop_map(|(at, bit)| Damage::Flip { at, bit }),
        2 => (index(), prop::sample::select(vec![0, 1, 2, 3, 4, 5, 6, 7, 8, 0x10, 0x22, 0x7e, 0x7f, 0x80, 0xff])).prop_map(|(at, byte)| Damage::Set { at, byte }),
        1 => index().prop_map(|at| Damage::Cut { at }),
        2 => (index(), index(), 1..200usize, index()).prop_map(|(from, to, size, other)| Damage::Splice { from, to, size, other }),
        1 => (index(), 1..20usize).prop_map(|(at, size)| Damage::Remove { at, size }),
    ]
}

impl Damage {
    fn apply(&self, bytes: &mut Vec<u8>, streams: &[Vec<u8>]) {
        if bytes.is_empty() {
            return;
        }
        let length = bytes.len();
        match self {
            Self::Flip { at, bit } => bytes[at.index(length)] ^= 1 << bit,
            Self::Set { at, byte } => bytes[at.index(length)] = *byte,
            Self::Cut { at } => bytes.truncate(at.index(length)),
            Self::Splice { from, to, size, other } => {
                let other = other.get(streams);
                let from = from.index(other.len());
                let piece = other[from..(from + size).min(other.len())].to_vec();
                let to = to.index(length);
                bytes.splice(to..to, piece);
            }
            Self::Remove { at, size } => {
                let at = at.index(length);
                bytes.drain(at..(at + size).min(length));
            }
        }
    }
}

#[test]
fn damaged_streams_are_refused_or_read_and_nothing_else() {
    let streams: Vec<Vec<u8>> = GOLDEN.iter().map(|name| small(name)).collect();
    let config =
        ProptestConfig { cases: 6000, rng_seed: RngSeed::Fixed(0x716d_6967), failure_persistence: None, ..ProptestConfig::default() };
    let pick = 0..streams.len();
    let sizes = prop::collection::vec(prop_oneof![1..16usize, 1000..5000usize], 1..4);
    proptest!(config, |(which in pick, damages in prop::collection::vec(damage(), 1..5), sizes in sizes)| {
        let mut bytes = streams[which].clone();
        for damage in &damages {
            damage.apply(&mut bytes, &streams);
        }
        drive_both(&bytes, &sizes);
    });
}
