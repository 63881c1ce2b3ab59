//! A mapped-ram file: the header of each block, its bitmap, its pages, read as a stored stream and into the memory of a machine.
//!
//! Input: read as blocks, places and bitmaps, and as one place that may be damaged. Seeds: none are needed (`arbitrary` makes them).
//! Run: `make fuzz TARGET=mapped_ram TIME=3600`
//! Asserts: a file that is right is accepted by both readers, whose pages and counts are those of the bitmaps; a damaged one does what
//! the target `memory` allows, and its stored pages can be read or are refused.

use std::fs::File;
use std::os::unix::fs::FileExt;

use arbitrary::Unstructured;
use qmig_core::Result;
use qmig_core::stored::{FileSource, StoredRam};
use qmig_core::wire::{Accept, Decoder, Event, Input, Output};
use rustix::fs::{MemfdFlags, memfd_create};

use super::memory::{self, How};

const PAGE: usize = 4096;
const SHAPE: [(&str, usize, usize); 2] = [("ram", 70, 70), ("rom", 3, 3)];

pub fn run(data: &[u8]) -> bool {
    play(&mut Unstructured::new(data)).is_ok()
}

fn play(u: &mut Unstructured<'_>) -> arbitrary::Result<()> {
    let (mut bytes, head, expected) = build(u)?;
    let broken = u.ratio(3, 4)?;
    if broken {
        let at = u.int_in_range(0..=head - 1)?;
        bytes[at] = u.arbitrary()?;
    } else if u.ratio(1, 4)? {
        // A word of a mapped-ram header, wholly.
        let at = u.int_in_range(0..=head - 8)?;
        bytes[at..at + 8].copy_from_slice(&u.arbitrary::<u64>()?.to_be_bytes());
        let _ = memory::check(&bytes, How { mapped: true, ..How::default() }, &SHAPE);
        return Ok(());
    }
    let found = stored(&bytes);
    let loaded = memory::check(&bytes, How { mapped: true, ..How::default() }, &SHAPE);
    if !broken {
        assert!(found.unwrap() == expected, "stored pages");
        loaded.unwrap();
    }
    Ok(())
}

/// The file, where its pages begin, and what its blocks hold.
fn build(u: &mut Unstructured<'_>) -> arbitrary::Result<(Vec<u8>, usize, Vec<Vec<u8>>)> {
    let mut out = Output::new();
    out.file_header();
    out.configuration(b"none");
    out.configuration_capabilities(&[b"mapped-ram"]);
    out.section_start(2, b"ram", 0, 4);
    out.mem_size(SHAPE.iter().map(|shape| (shape.1 * PAGE) as u64).sum());
    let mut bytes = out.into_vec();
    let mut head = bytes.len();
    let mut expected = Vec::new();
    for (name, pages, _) in SHAPE {
        let here = bytes.len() + 1 + name.len() + 8 + 28;
        let bitmap = here + u.int_in_range(0..=9)?;
        let bitmap_bytes = pages.div_ceil(64) * 8;
        let first = (bitmap + bitmap_bytes).next_multiple_of(PAGE) + PAGE * u.int_in_range(0..=1)?;
        let mut entry = Output::new();
        entry.block(name.as_bytes(), (pages * PAGE) as u64);
        entry.mapped_ram(bitmap as u64, first as u64);
        bytes.extend(entry.as_slice());
        head = head.max(bytes.len().min(PAGE));
        bytes.resize(first + pages * PAGE, 0);
        let mut content = vec![0; pages * PAGE];
        for byte in 0..bitmap_bytes {
            // Bits behind the last page mean nothing.
            bytes[bitmap + byte] = u.arbitrary()?;
        }
        for page in 0..pages {
            if bytes[bitmap + page / 8] >> (page % 8) & 1 == 0 {
                continue;
            }
            let value = (page as u8).wrapping_mul(7) | 1;
            bytes[first + page * PAGE..][..PAGE].fill(value);
            content[page * PAGE..][..PAGE].fill(value);
        }
        expected.push(content);
    }
    let mut out = Output::new();
    out.eos();
    out.footer(2);
    out.section_end(2);
    out.eos();
    out.footer(2);
    out.eof();
    bytes.extend(out.as_slice());
    Ok((bytes, head, expected))
}

/// The contents of all blocks, as somebody finds them who reads the file offline.
fn stored(bytes: &[u8]) -> Result<Vec<Vec<u8>>> {
    let file: File = memfd_create("stored", MemfdFlags::CLOEXEC).unwrap().into();
    file.write_all_at(bytes, 0).unwrap();
    let source = FileSource::new(file.into())?;
    let mut ram = StoredRam::new(&source, &[]);
    let mut decoder = Decoder::offline(Input::with_capacity(source, 0), None).accepting(Accept::all());
    while !matches!(decoder.next(&mut ram)?, Event::Finished | Event::Section(_)) {}
    let lengths: Vec<_> = ram.entries().map(|entry| entry.used_length as usize).collect();
    let mut found = Vec::new();
    for (block, length) in lengths.into_iter().enumerate() {
        assert!(length <= bytes.len(), "a block longer than the file");
        let mut out = vec![0; length];
        ram.read(block, 0, &mut out)?;
        let (mut at, mut inside) = (0, 0);
        while let Some((offset, length)) = ram.next_run(block, at)? {
            assert!(offset >= at && length > 0);
            at = offset + length;
            inside += length / PAGE as u64;
        }
        assert_eq!(inside, ram.pages(block), "pages in runs");
        found.push(out);
    }
    Ok(found)
}
