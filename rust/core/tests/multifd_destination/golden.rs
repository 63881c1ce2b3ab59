//! Streams of real QEMUs with two channels, fed as they were recorded: memory as the offline reader finds it.

use std::fs::File;
use std::io::{BufReader, Write};
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::thread;

use qmig_core::stored::{FileSource, StoredRam};
use qmig_core::wire::multifd::Method;
use qmig_core::wire::{Accept, Decoder, Event, Input, layout};

use super::source::{Destination, PAGE};

fn channels(name: &str) -> [Vec<u8>; 3] {
    [0, 1, 2].map(|number| {
        let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(format!("../../tests/streams/{name}.ch{number}.stream.xz"));
        let mut bytes = Vec::new();
        lzma_rs::xz_decompress(&mut BufReader::new(File::open(path).unwrap()), &mut bytes).unwrap();
        bytes
    })
}

/// A file without a name that holds these bytes.
fn stored(bytes: &[u8]) -> FileSource {
    let mut file = File::from(rustix::fs::memfd_create("stream", rustix::fs::MemfdFlags::CLOEXEC).unwrap());
    file.write_all(bytes).unwrap();
    FileSource::new(OwnedFd::from(file)).unwrap()
}

/// RAM as the offline reader finds it.
fn offline(channels: &[Vec<u8>; 3]) -> Vec<u8> {
    let [main, zero, one] = channels.each_ref().map(|bytes| stored(bytes));
    let mut ram = StoredRam::new(&main, &[zero, one]);
    let mut decoder = Decoder::offline(Input::new(main), None).accepting(Accept::all());
    loop {
        match decoder.next(&mut ram).unwrap() {
            Event::Finished => break,
            Event::Section(header) => {
                layout::skip_known(decoder.input(), &header).unwrap();
                decoder.section_done().unwrap();
            }
            _ => {}
        }
    }
    ram.finish().unwrap();
    let length = ram.entries().next().unwrap().used_length;
    let mut bytes = vec![0; usize::try_from(length).unwrap()];
    ram.read(0, 0, &mut bytes).unwrap();
    bytes
}

#[test]
fn recorded_streams_load() {
    for (name, method) in
        [("qemu7-none-multifd-zlib", Method::Zlib), ("qemu10-none-multifd-zstd", Method::Zstd), ("qemu10-none-multifd", Method::None)]
    {
        let streams = channels(name);
        let wanted = offline(&streams);
        let destination = Destination::with_ram(2, method, wanted.len());
        destination.incoming.set_uuid([0; 16]);
        let mut destination = destination.start();
        let sockets = [2, 0, 1].map(|number: usize| (destination.connect(), number));
        thread::scope(|scope| {
            for (socket, number) in sockets {
                let bytes = &streams[number];
                scope.spawn(move || {
                    (&socket).write_all(bytes).unwrap();
                    socket.shutdown(Shutdown::Write).unwrap();
                    super::everything(socket);
                });
            }
            destination.outcome().unwrap_or_else(|error| panic!("{name}: {error}"));
        });
        let mut found = vec![0; wanted.len()];
        destination.block.read(0, &mut found).unwrap();
        let different = found.chunks(PAGE).zip(wanted.chunks(PAGE)).position(|(found, wanted)| found != wanted);
        assert_eq!(different, None, "{name}");
    }
}
