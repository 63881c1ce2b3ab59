//! One stream for each way to be refused: kind, offset of the refused element or field, path.

use super::super::command::Command;
use super::super::consts::{RAM_COMPRESS_PAGE, RAM_FULL, RAM_HOOK, RAM_MULTIFD_FLUSH, RAM_PAGE, RAM_XBZRLE, RAM_ZERO};
use super::super::limits::{CAPABILITIES_MAX, Limits, MACHINE_NAME_MAX, RAM_BLOCKS_MAX, SECTIONS_MAX};
use super::super::{BlockEntry, DecoderOptions, NullSink};
use super::*;
use crate::ErrorKind::{
    self, BadAddress, BadCommand, BadConfiguration, BadFlags, BadFooter, BadMagic, BadVersion, BlockMismatch, DeviceState,
    DuplicateSection, InvalidState, LimitExceeded, NoMemory, ObsoleteVersion, Truncated, UnknownBlock, UnknownElement, UnknownSection,
    Unsupported,
};

#[track_caller]
fn expect(bytes: &[u8], kind: ErrorKind, offset: u64, path: &str) {
    let error = refusal(bytes);
    assert_eq!((error.kind, error.offset, error.path.as_str()), (kind, Some(offset), path), "{error}");
}

/// The error of what `build` puts behind header and configuration; its offset counts from there.
#[track_caller]
fn after_head(kind: ErrorKind, offset: u64, path: &str, build: impl FnOnce(&mut Output)) {
    expect(&stream(build), kind, HEAD + offset, path);
}

/// The error of a PART of RAM; its offset counts from the first record.
#[track_caller]
fn record(kind: ErrorKind, offset: u64, path: &str, build: impl FnOnce(&mut Output)) {
    after_head(kind, RAM_HEAD + 5 + offset, path, |out| {
        ram_start(out, 2);
        out.section_part(2);
        build(out);
        out.eos();
        out.footer(2);
    });
}

/// The error of a block list; its offset counts from the first entry.
#[track_caller]
fn list(kind: ErrorKind, offset: u64, path: &str, total: u64, build: impl FnOnce(&mut Output)) {
    after_head(kind, 17 + 8 + offset, path, |out| {
        out.section_start(2, b"ram", 0, 4);
        out.mem_size(total);
        build(out);
        out.eos();
    });
}

#[test]
fn file_header() {
    expect(b"MZ\x90\0\0\0\0\x03", BadMagic, 0, "header");
    expect(b"QEVM\0\0\0\x02", ObsoleteVersion, 4, "header");
    expect(b"QEVM\0\0\0\x04", BadVersion, 4, "header");
    expect(b"QEVM\0\0", Truncated, 4, "header");
    expect(b"", Truncated, 0, "header");
}

#[test]
fn configuration() {
    let configured = |build: fn(&mut Output)| stream(build);
    expect(b"QEVM\0\0\0\x03\x07\0\0\0\x04non", Truncated, 13, "configuration");
    let twice = configured(|out| {
        out.configuration_uuid(&[1; 16]);
        out.configuration_uuid(&[1; 16]);
    });
    expect(&twice, BadConfiguration, HEAD + 40, "configuration/uuid");
    expect(&configured(|out| out.configuration_page_bits(13)), BadConfiguration, HEAD + 36, "configuration/target-page-bits");
    expect(&configured(|out| out.configuration_capabilities(&[b"mapped-ram"])), BadConfiguration, HEAD + 36, "configuration/capabilities");
    expect(&configured(|out| out.configuration_capabilities(&[b"x-ignore-shared"])), Unsupported, HEAD + 36, "configuration/capabilities");
    expect(&configured(|out| out.configuration_capabilities(&[b"x-magic"])), BadConfiguration, HEAD + 36, "configuration/capabilities");
    expect(&configured(|out| out.subsection(b"configuration/colour", 1)), BadConfiguration, HEAD, "configuration/colour");
    expect(&configured(|out| out.subsection(b"configuration/\xff", 1)), BadConfiguration, HEAD, "configuration/\\xff");
    expect(&configured(|out| out.subsection(b"configuration/uuid", 0x101)), BadVersion, HEAD + 20, "configuration/uuid");
    let many = configured(|out| {
        out.subsection(b"configuration/capabilities", 1);
        out.be32(CAPABILITIES_MAX + 1);
    });
    expect(&many, LimitExceeded, HEAD + 32, "configuration/capabilities");
    expect(&stream(|out| out.put(b"\x05\x12configu")), Truncated, HEAD, "configuration");
    // A subsection of somebody else is left to the element loop, which has no place for it.
    expect(&stream(|out| out.subsection(b"somebody/something", 1)), UnknownElement, HEAD, "");
    expect(&[b"QEVM\0\0\0\x03\x07", &(MACHINE_NAME_MAX + 1).to_be_bytes()[..]].concat(), LimitExceeded, 9, "configuration");
}

#[test]
fn configuration_that_one_side_does_not_expect() {
    let none = DecoderOptions { configuration: false, ..DecoderOptions::default() };
    let bytes = stream(Output::eof);
    let error = Decoder::new(Input::new(&bytes[..]), none).next(&mut NullSink).unwrap_err();
    assert_eq!((error.kind, error.offset), (UnknownElement, Some(8)), "{error}");
    let error = live(b"QEVM\0\0\0\x03\x01").next(&mut NullSink).unwrap_err();
    assert_eq!((error.kind, error.offset, error.path.as_str()), (BadConfiguration, Some(8), "configuration"), "{error}");
}

#[test]
fn element_types() {
    for byte in [0x05, 0x06, 0x07, 0x09, 0x7e, 0xff] {
        after_head(UnknownElement, 0, "", |out| out.put(&[byte, 0]));
    }
    after_head(Truncated, 0, "", |_| ());
}

#[test]
fn section_headers() {
    after_head(UnknownSection, 5, "", |out| out.put(b"\x04\0\0\0\x01\0\0\0\0\0\0\0\0\x01"));
    after_head(UnknownSection, 0, "", |out| out.section_part(2));
    after_head(UnknownSection, 0, "", |out| out.section_end(0));
    after_head(UnknownSection, 0, "ram", |out| out.section_full(2, b"ram", 0, 4));
    after_head(UnknownSection, 0, "nobody/3", |out| out.section_full(2, b"nobody", 3, 4));
    after_head(BadVersion, 13, "ram", |out| out.section_start(2, b"ram", 0, 3));
    after_head(BadVersion, 13, "ram", |out| out.section_start(2, b"ram", 0, 5));
    after_head(Truncated, 5, "", |out| out.put(b"\x01\0\0\0\x02\x03ra"));
}

#[test]
fn a_section_announced_again() {
    let timer = |out: &mut Output, id| {
        out.section_full(id, b"timer", 0, 2);
        out.zeros(24);
        out.footer(id);
    };
    after_head(DuplicateSection, RAM_HEAD, "ram", |out| {
        ram_start(out, 1);
        out.section_start(2, b"ram", 0, 4);
    });
    after_head(DuplicateSection, RAM_HEAD, "ram", |out| {
        ram_start(out, 1);
        out.section_start(3, b"ram", 0, 4);
    });
    after_head(DuplicateSection, RAM_HEAD, "timer/0", |out| {
        ram_start(out, 1);
        out.section_full(2, b"timer", 0, 2);
    });
    after_head(UnknownSection, 48, "timer/0", |out| {
        timer(out, 7);
        out.section_part(7);
    });
    // A device section may come again.
    let twice = stream(|out| {
        timer(out, 7);
        timer(out, 7);
        timer(out, 8);
        out.eof();
    });
    assert_eq!(events(&twice).len(), 6);
}

#[test]
fn too_many_sections() {
    let bytes = stream(|out| {
        for id in 0..=u32::try_from(SECTIONS_MAX).unwrap() {
            out.section_full(id, b"PCIHost", id, 1);
            out.zeros(4);
            out.footer(id);
        }
    });
    let each = (bytes.len() as u64 - HEAD) / (SECTIONS_MAX as u64 + 1);
    expect(&bytes, LimitExceeded, HEAD + each * SECTIONS_MAX as u64, &format!("PCIHost/{SECTIONS_MAX}"));
}

#[test]
fn footers() {
    after_head(BadFooter, 43, "timer/0", |out| {
        out.section_full(0, b"timer", 0, 2);
        out.zeros(24);
        out.eof();
    });
    after_head(BadFooter, 43, "timer/0", |out| {
        out.section_full(0, b"timer", 0, 2);
        out.zeros(24);
        out.footer(1);
    });
    after_head(BadFooter, RAM_HEAD - 5, "ram", |out| {
        out.section_start(2, b"ram", 0, 4);
        out.mem_size(4096);
        out.block(b"ram", 4096);
        out.eos();
        out.footer(3);
    });
    after_head(Truncated, 44, "timer/0", |out| {
        out.section_full(0, b"timer", 0, 2);
        out.zeros(24);
        out.put(&[0x7e, 0]);
    });
}

#[test]
fn block_lists() {
    list(BlockMismatch, 4, "ram/ram", 8192, |out| out.block(b"ram", 0));
    list(BlockMismatch, 4, "ram/ram", 8192, |out| out.block(b"ram", 4097));
    list(BlockMismatch, 4, "ram/ram", 8192, |out| out.block(b"ram", 12288));
    list(BlockMismatch, 4, "ram/ram", 8192, |out| out.block(b"ram", !4095));
    list(BlockMismatch, 12, "ram/ram", 8192, |out| {
        out.block(b"ram", 4096);
        out.block(b"ram", 4096);
    });
    list(LimitExceeded, RAM_BLOCKS_MAX as u64 * 13, "ram", (RAM_BLOCKS_MAX as u64 + 1) * 4096, |out| {
        for block in 0..=RAM_BLOCKS_MAX {
            out.block(format!("{block:04}").as_bytes(), 4096);
        }
    });
    // The total is met before all entries were read: what follows is no record.
    list(BadFlags, 12, "ram", 4096, |out| {
        out.block(b"ram", 4096);
        out.block(b"rom", 4096);
    });
    // No list at all.
    after_head(BadFlags, 17, "ram", |out| {
        out.section_start(2, b"ram", 0, 4);
        out.eos();
    });
    // A second one.
    record(BadFlags, 0, "ram", |out| out.mem_size(4096));
}

#[test]
fn page_records() {
    record(UnknownBlock, 8, "ram", |out| {
        out.page_record(0, RAM_ZERO, Some(b"rom"));
        out.u8(0);
    });
    record(BadFlags, 0, "ram", |out| {
        out.page_record(0, RAM_ZERO, None);
        out.u8(0);
    });
    for (flag, payload) in [(RAM_ZERO, 1), (RAM_PAGE, 4096)] {
        record(BadAddress, 0, "ram/ram", |out| {
            out.page_record(8192, flag, Some(b"ram"));
            out.zeros(payload);
        });
        record(BadAddress, 8 + 4 + payload as u64, "ram/ram", |out| {
            out.page_record(0, flag, Some(b"ram"));
            out.zeros(payload);
            out.page_record(!4095, flag, None);
            out.zeros(payload);
        });
    }
    record(Truncated, 12, "ram/ram", |out| {
        out.page_record(0, RAM_PAGE, Some(b"ram"));
        out.zeros(100);
    });
}

#[test]
fn record_flags() {
    for flags in [0, RAM_FULL, RAM_ZERO | RAM_PAGE, RAM_PAGE | RAM_XBZRLE, 0x400, 0x800, RAM_HOOK | RAM_PAGE, 0xfff] {
        record(BadFlags, 0, "ram", |out| out.be64(flags));
    }
    for (flag, word) in [(RAM_XBZRLE, "xbzrle"), (RAM_COMPRESS_PAGE, "compress"), (RAM_MULTIFD_FLUSH, "multifd"), (RAM_HOOK, "RDMA")] {
        record(Unsupported, 0, "ram", |out| out.be64(flag));
        let error = refusal(&stream(|out| {
            ram_start(out, 1);
            out.section_part(2);
            out.be64(flag);
        }));
        assert!(error.message.contains(word), "{error}");
    }
}

#[test]
fn commands() {
    let raw = |number: u16, length: u16, payload: &'static [u8]| {
        move |out: &mut Output| {
            out.u8(8);
            out.be16(number);
            out.be16(length);
            out.put(payload);
        }
    };
    after_head(BadCommand, 0, "command", raw(0, 0, b""));
    after_head(BadCommand, 0, "command", raw(12, 0, b""));
    after_head(BadCommand, 0, "command", raw(0xffff, 0, b""));
    for (number, length, name) in [
        (1, 1, "OPEN_RETURN_PATH"),
        (2, 5, "PING"),
        (3, 8, "POSTCOPY_ADVISE"),
        (4, 1, "POSTCOPY_LISTEN"),
        (5, 1, "POSTCOPY_RUN"),
        (6, 19, "POSTCOPY_RAM_DISCARD"),
        (7, 0, "PACKAGED"),
        (8, 1, "ENABLE_COLO"),
        (9, 1, "POSTCOPY_RESUME"),
        (10, 1, "RECV_BITMAP"),
        (11, 1, "SWITCHOVER_START"),
    ] {
        after_head(BadCommand, 3, &format!("command/{name}"), raw(number, length, b""));
    }
    after_head(Truncated, 5, "command/PING", raw(2, 4, b"abc"));
    let bitmap = "command/RECV_BITMAP";
    after_head(BadCommand, 5, bitmap, raw(10, 2, b"\0r"));
    after_head(BadCommand, 5, bitmap, raw(10, 2, b"\x04r"));
    after_head(BadCommand, 7, bitmap, raw(10, 3, b"\x01ra"));
}

#[test]
fn discards() {
    let path = "command/POSTCOPY_RAM_DISCARD";
    let good = |name: &[u8], start: u64, length: u64| {
        let mut out = Output::new();
        out.command(&Command::RamDiscard { name: name.to_vec(), ranges: vec![(start, length)] });
        out.into_vec()
    };
    let with = |at: usize, byte: u8| {
        let mut bytes = good(b"ram", 4096, 4096);
        bytes[at] = byte;
        bytes
    };
    after_head(BadCommand, 5, path, |out| out.put(&with(5, 1)));
    after_head(BadCommand, 6, path, |out| out.put(&with(6, 0)));
    after_head(BadCommand, 6, path, |out| out.put(&with(6, 99)));
    after_head(BadCommand, 10, path, |out| out.put(&with(10, 1)));
    after_head(BadCommand, 11, path, |out| out.put(&good(b"ram", 4096, 0)));
    after_head(BadCommand, 11, path, |out| out.put(&good(b"ram", 1, 4096)));
    after_head(BadCommand, 11, path, |out| out.put(&good(b"ram", 4096, 512)));
    after_head(BadCommand, 11, path, |out| out.put(&good(b"ram", !4095, 8192)));
    let mut long = good(b"ram", 4096, 4096);
    long[4] += 1;
    long.push(0);
    after_head(BadCommand, 27, path, |out| out.put(&long));
    let mut long = good(b"a name of twenty bytes", 4096, 4096);
    long[4] -= 16;
    long.truncate(long.len() - 16);
    after_head(BadCommand, 30, path, |out| out.put(&long));
}

#[test]
fn known_layouts() {
    after_head(UnknownSection, 0, "timer/0", |out| out.section_full(0, b"timer", 0, 1));
    after_head(LimitExceeded, 20, "PCIBUS/0", |out| {
        out.section_full(0, b"PCIBUS", 0, 1);
        out.be32(257);
    });
    let cpu = |out: &mut Output| {
        out.section_full(0, b"cpu_common", 0, 1);
        out.zeros(8);
    };
    after_head(DeviceState, 32, "cpu_common/0", |out| {
        cpu(out);
        out.subsection(b"cpu_common/mood", 1);
    });
    after_head(BadVersion, 59, "cpu_common/0/crash_occurred", |out| {
        cpu(out);
        out.subsection(b"cpu_common/crash_occurred", 2);
    });
    after_head(DeviceState, 64, "cpu_common/0", |out| {
        cpu(out);
        out.subsection(b"cpu_common/crash_occurred", 1);
        out.u8(1);
        out.subsection(b"cpu_common/crash_occurred", 1);
    });
    // the field that is cut, not the payload
    after_head(Truncated, 28, "cpu_common/0", |out| {
        out.section_full(0, b"cpu_common", 0, 1);
        out.zeros(7);
    });
    let good = stream(|out| {
        cpu(out);
        out.subsection(b"cpu_common/exception_index", 1);
        out.be32(3);
        out.subsection(b"cpu_common/crash_occurred", 1);
        out.u8(1);
        out.footer(0);
        out.section_full(1, b"0000:00:01.0/PCIBUS", 0, 1);
        out.be32(2);
        out.zeros(8);
        out.footer(1);
        out.eof();
    });
    assert_eq!(events(&good).len(), 5);
}

/// In a file a package is read with the stream that it stands in.
#[test]
fn stored_packages() {
    let packaged = |size: u32| [&[8, 0, 7, 0, 4][..], &size.to_be_bytes()].concat();
    after_head(BadCommand, 9, "command/PACKAGED", |out| out.put(&[packaged(9), packaged(5)].concat()));
    after_head(UnknownElement, 9, "command/PACKAGED", |out| out.put(&[packaged(1), vec![0]].concat()));
    let run = [8, 0, 5, 0, 0];
    assert_eq!(events(&stream(|out| out.put(&[packaged(5), run.to_vec(), packaged(5), run.to_vec(), vec![0]].concat()))).len(), 7);
}

#[test]
fn descriptions() {
    after_head(Truncated, 6, "description", |out| out.put(b"\0\x06\0\0\0\x05{}"));
    after_head(Truncated, 2, "description", |out| out.put(b"\0\x06\0\0"));
}

/// What a sink refuses gets its place.
#[test]
fn sinks() {
    struct Refuses(&'static str);
    impl Refuses {
        fn judge(&self, what: &str) -> Result<()> {
            if self.0 == what { Err(Error::new(NoMemory, "no")) } else { Ok(()) }
        }
    }
    impl PageSink for Refuses {
        fn blocks(&mut self, _list: &[BlockEntry]) -> Result<()> {
            self.judge("blocks")
        }
        fn zero(&mut self, _block: usize, _offset: u64, _fill: u8) -> Result<()> {
            self.judge("zero")
        }
        fn page(&mut self, _block: usize, _offset: u64, _bytes: &[u8]) -> Result<()> {
            self.judge("page")
        }
    }
    let bytes = stream(|out| {
        ram_start(out, 2);
        out.section_part(2);
        out.page_record(0, RAM_ZERO, Some(b"ram"));
        out.u8(0);
        out.page_record(4096, RAM_PAGE, None);
        out.zeros(4096);
        out.eos();
    });
    for (what, offset, path) in [("blocks", 17, "ram"), ("zero", RAM_HEAD + 5, "ram/ram"), ("page", RAM_HEAD + 18, "ram/ram")] {
        let error = run(offline(&bytes), &mut Refuses(what)).unwrap_err();
        assert_eq!((error.kind, error.offset, error.path.as_str()), (NoMemory, Some(HEAD + offset), path), "{error}");
    }
}

/// Our own callers' mistakes.
#[test]
fn wrong_order_of_calls() {
    let bytes = stream(|out| {
        out.section_full(0, b"timer", 0, 2);
        out.zeros(24);
        out.footer(0);
        out.eof();
    });
    let mut decoder = offline(&bytes);
    assert_eq!(decoder.section_done().unwrap_err().kind, InvalidState);
    decoder.next(&mut NullSink).unwrap();
    assert_eq!(super::super::PayloadSource::skip(&mut decoder, 1).unwrap_err().kind, InvalidState);
    decoder.next(&mut NullSink).unwrap();
    assert_eq!(decoder.next(&mut NullSink).unwrap_err().kind, InvalidState);
    assert_eq!(decoder.next(&mut NullSink).unwrap_err().kind, InvalidState);
}

#[test]
fn limits_that_were_set() {
    let bytes = stream(|out| {
        for id in 0..3 {
            out.section_full(id, b"PCIHost", id, 1);
            out.zeros(4);
            out.footer(id);
            // The same once more is no further section.
            out.section_full(id, b"PCIHost", id, 1);
            out.zeros(4);
            out.footer(id);
        }
        out.eof();
    });
    let outcome = |sections| {
        let options = DecoderOptions { limits: Limits { sections, ..Limits::default() }, ..DecoderOptions::default() };
        let mut decoder = Decoder::new(Input::from_bytes(bytes.clone(), 0), options);
        loop {
            match decoder.next(&mut NullSink) {
                Ok(Event::Section(header)) => {
                    layout::skip_known(decoder.input(), &header).unwrap();
                    decoder.section_done().unwrap();
                }
                Ok(Event::Finished) => return None,
                Ok(_) => {}
                Err(error) => return Some((error.kind, error.message)),
            }
        }
    };
    assert_eq!(outcome(3), None);
    assert_eq!(outcome(2), Some((LimitExceeded, "more than 2 sections (SECTIONS_MAX)".to_owned())));
}
