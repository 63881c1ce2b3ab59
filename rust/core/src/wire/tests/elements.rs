//! What a well-formed stream says, and the reader under it.

use super::super::consts::{RAM_PAGE, RAM_ZERO};
use super::super::limits::DESCRIPTION_KEPT;
use super::super::{NullSink, PageCounts, SectionKind};
use super::*;
use crate::ErrorKind;

/// Contents of a block.
fn contents(sink: &RecordingSink, block: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    sink.read(block, |piece| bytes.extend_from_slice(piece));
    bytes
}

#[test]
fn pages_land_where_they_belong() {
    let bytes = stream(|out| {
        out.section_start(2, b"ram", 0, 4);
        out.mem_size(5 * 4096);
        out.block(b"ram", 3 * 4096);
        out.block(b"", 2 * 4096);
        out.eos();
        out.footer(2);
        out.section_part(2);
        out.page_record(4096, RAM_PAGE, Some(b"ram"));
        out.put(&[7; 4096]);
        out.page_record(8192, RAM_ZERO, None);
        out.u8(9);
        out.page_record(0, RAM_PAGE, Some(b""));
        out.put(&[1; 4096]);
        out.eos();
        out.footer(2);
        // The current block outlives the section; the last version of a page counts.
        out.section_end(2);
        out.page_record(4096, RAM_PAGE, None);
        out.put(&[2; 4096]);
        out.page_record(0, RAM_ZERO, None);
        out.u8(0);
        out.eos();
        out.footer(2);
        out.eof();
    });
    let mut sink = RecordingSink::default();
    let events = run(offline(&bytes), &mut sink).unwrap();
    let pages: Vec<_> = events
        .iter()
        .filter_map(|e| if let Event::RamSection { pages, .. } = e { Some((pages.normal, pages.zero)) } else { None })
        .collect();
    assert_eq!(pages, [(0, 0), (2, 1), (1, 1)]);
    assert_eq!(contents(&sink, 0), [[0; 4096], [7; 4096], [9; 4096]].concat());
    assert_eq!(contents(&sink, 1), [[0; 4096], [2; 4096]].concat());
    let names: Vec<_> = sink.blocks().map(|entry| (entry.name.as_slice(), entry.offset)).collect();
    assert_eq!(names, [(&b"ram"[..], HEAD + 25), (b"", HEAD + 37)]);
}

#[test]
fn the_annotated_stream_of_the_specification() {
    let bytes = stream(|out| {
        ram_start(out, 2);
        out.section_part(2);
        out.page_record(0, RAM_ZERO, Some(b"ram"));
        out.u8(0);
        out.page_record(4096, RAM_ZERO, None);
        out.u8(0);
        out.eos();
        out.footer(2);
    });
    let expected: &[u8] = b"QEVM\0\0\0\x03\x07\0\0\0\x04none\
        \x01\0\0\0\x02\x03ram\0\0\0\0\0\0\0\x04\
        \0\0\0\0\0\0\x20\x04\x03ram\0\0\0\0\0\0\x20\0\0\0\0\0\0\0\0\x10\x7e\0\0\0\x02\
        \x02\0\0\0\x02\0\0\0\0\0\0\0\x02\x03ram\0\0\0\0\0\0\0\x10\x22\0\0\0\0\0\0\0\0\x10\x7e\0\0\0\x02";
    assert_eq!(bytes, expected);
}

#[test]
fn an_empty_list_and_empty_parts() {
    let bytes = stream(|out| {
        out.section_start(2, b"ram", 0, 4);
        out.mem_size(0);
        out.eos();
        out.footer(2);
        for _ in 0..3 {
            out.section_part(2);
            out.eos();
            out.footer(2);
        }
        out.eof();
    });
    assert_eq!(events(&bytes).len(), 7);
}

#[test]
fn configuration_and_its_absence() {
    let bytes = stream(|out| {
        out.configuration_page_bits(12);
        out.configuration_capabilities(&[]);
        out.configuration_uuid(&[0xab; 16]);
        out.eof();
    });
    let Event::Configuration { offset, machine, page_bits, capabilities, uuid } = events(&bytes).remove(0) else {
        panic!("no configuration")
    };
    assert_eq!((offset, &machine[..], page_bits, capabilities.len(), uuid), (8, &b"none"[..], Some(12), 0, Some([0xab; 16])));
    // Offline, a stream without one is fine; without a name, too.
    assert_eq!(events(b"QEVM\0\0\0\x03\0").len(), 2);
    assert_eq!(events(b"QEVM\0\0\0\x03\x07\0\0\0\0\0").len(), 3);
}

#[test]
fn footers_can_be_off() {
    let build = |footers: bool| {
        stream(|out| {
            let foot = |out: &mut Output, id| {
                if footers {
                    out.footer(id);
                }
            };
            out.section_start(2, b"ram", 0, 4);
            out.mem_size(0);
            out.eos();
            foot(out, 2);
            out.section_full(0, b"PCIHost", 0, 1);
            out.zeros(4);
            foot(out, 0);
            out.eof();
        })
    };
    for there in [true, false] {
        let bytes = build(there);
        for told in [None, Some(there)] {
            let decoder = Decoder::offline(Input::from_bytes(bytes.clone(), 0), told);
            assert_eq!(run(decoder, &mut NullSink).unwrap().len(), 5, "{there} {told:?}");
        }
        let options = DecoderOptions { footers: there, ..DecoderOptions::default() };
        assert_eq!(run(Decoder::new(Input::new(&bytes[..]), options), &mut NullSink).unwrap().len(), 5);
    }
    assert_eq!(refusal(&build(false)).kind, ErrorKind::BadFooter);
}

#[test]
fn live_sections_of_others() {
    let bytes = stream(|out| {
        out.section_start(9, b"PCIHost", 4, 1);
        out.zeros(4);
        out.footer(9);
        for end in [false, true] {
            if end {
                out.section_end(9);
            } else {
                out.section_part(9);
            }
            out.zeros(4);
            out.footer(9);
        }
        out.eof();
    });
    let kinds: Vec<_> =
        events(&bytes).into_iter().filter_map(|e| if let Event::Section(h) = e { Some((h.kind, h.path())) } else { None }).collect();
    let path = || "PCIHost/4".to_owned();
    assert_eq!(kinds, [(SectionKind::Start, path()), (SectionKind::Part, path()), (SectionKind::End, path())]);
    assert_eq!(kinds.iter().map(|(kind, _)| kind.name()).collect::<Vec<_>>(), ["start", "part", "end"]);
    assert_eq!(SectionKind::Full.name(), "full");
}

#[test]
fn a_long_description_is_kept_in_part() {
    let mut bytes = stream(Output::eof);
    let length = DESCRIPTION_KEPT + 10;
    bytes.push(6);
    bytes.extend_from_slice(&length.to_be_bytes());
    bytes.resize(bytes.len() + length as usize, b' ');
    let found = events(&bytes);
    let [.., Event::Description(description), Event::Finished] = &found[..] else { panic!("no description") };
    assert_eq!((description.length, description.text.len()), (length, DESCRIPTION_KEPT as usize));
}

#[test]
fn counts_start_at_zero() {
    assert_eq!(PageCounts::default(), PageCounts { normal: 0, zero: 0, xbzrle: 0, compressed: 0 });
}

#[test]
fn truncations_name_their_field() {
    let mut input = Input::from_bytes(vec![5, 1, 2, 3], 100);
    assert_eq!(input.cstr8().unwrap_err().offset, Some(100));
    assert_eq!(input.be64().unwrap_err().offset, Some(100));
    assert_eq!(input.u8().unwrap(), 5);
    assert_eq!(input.read_exact(&mut [0; 9]).unwrap_err().offset, Some(101));
    assert_eq!(input.offset(), 104);
    let error = input.skip(1).unwrap_err();
    assert_eq!((error.kind, error.offset, error.message.contains("1 byte is missing")), (ErrorKind::Truncated, Some(104), true));
    // An announced length costs nothing before its bytes arrive, and what is missing is missing of all of it, whatever is read at once.
    for error in [Input::from_bytes(vec![0; 70_000], 0).read_vec(5_000_000), Input::new(&vec![0; 70_000][..]).read_vec(5_000_000)] {
        let error = error.unwrap_err();
        assert_eq!((error.offset, error.message.contains(" 4930000 bytes are missing")), (Some(0), true), "{error}");
    }
    assert_eq!(Input::from_bytes(vec![0; 70_000], 0).skip(u64::MAX).unwrap_err().offset, Some(0));
}

#[test]
fn large_reads_pass_the_buffer_by() {
    let bytes: Vec<u8> = (0..100_000u32).map(|i| i.to_le_bytes()[0] ^ i.to_le_bytes()[1]).collect();
    let mut input = Input::with_capacity(&bytes[..], 4096);
    assert_eq!(input.u8().unwrap(), bytes[0]);
    let mut out = vec![0; 60_000];
    input.read_exact(&mut out).unwrap();
    assert_eq!((out.as_slice(), input.offset()), (&bytes[1..60_001], 60_001));
    assert_eq!(input.peek(10).unwrap(), &bytes[60_001..60_011]);
    input.skip(30_000).unwrap();
    assert_eq!(input.be16().unwrap().to_be_bytes(), bytes[90_001..90_003]);
    let error = input.read_exact(&mut vec![0; 20_000]).unwrap_err();
    assert_eq!((error.kind, error.offset), (ErrorKind::Truncated, Some(90_003)));
}

#[test]
#[should_panic(expected = "5000 bytes at once")]
fn asking_for_more_than_the_buffer_is_our_own_mistake() {
    let _ = Input::with_capacity(&[0; 9000][..], 4096).take(5000);
}
