//! RAM from a mapped-ram file (spec/stream 13): each block's bitmap says which pages stand there, and they are read straight into their
//! place, by one thread or by several, each with its own open of the file.
//!
//! Where bitmaps and pages stand was checked when the block list was read: inside the file, one behind the other.

use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::places::Places;
use crate::channel::{Positioned, ReadHalf, Uri};
use crate::control::{Control, no_file};
use crate::ram::{Bitmap, PageTarget};
use crate::wire::consts::{PAGE_BYTES, PAGE_SIZE};
use crate::wire::{MappedRam, bitmap_bytes};
use crate::{Error, Result};

/// Pages that one thread takes at a time; whole words of the bitmap.
const CHUNK: usize = 8192;
/// Bytes of one read at most: how soon a cancel is noticed.
const READ: usize = 2 << 20;

/// The file, and how many threads read it.
#[derive(Debug)]
pub struct MappedFile {
    file: Positioned,
    threads: usize,
}

/// Pages of one block, not more than `CHUNK`.
#[derive(Debug, Clone)]
struct Chunk {
    region: usize,
    pages: Range<usize>,
}

impl MappedFile {
    /// The file that `reader` reads, if the capability is on: by as many threads as there are multifd channels, if that is on, too.
    pub fn wanted(control: &Control, uri: &Uri, reader: &ReadHalf) -> Result<Option<Self>> {
        let Some(threads) = control.mapped_ram() else { return Ok(None) };
        let file = reader.positioned().ok_or_else(|| no_file(uri))??;
        Ok(Some(Self { file, threads }))
    }

    /// Fills every block: what the file has of it, and zeros. All pages are there, or it fails.
    pub fn load(&self, places: &Places, regions: &[MappedRam]) -> Result<()> {
        self.load_by(places, regions, |_| self.file.another())
    }

    /// The same; `open` opens the file for the reader of that number.
    fn load_by(&self, places: &Places, regions: &[MappedRam], open: impl Fn(usize) -> Result<Positioned>) -> Result<()> {
        let chunks: Vec<Chunk> = (0..regions.len()).flat_map(|region| chunks(region, places[region].block().pages())).collect();
        let next = AtomicUsize::new(0);
        let work = |file: &Positioned| -> Result<()> {
            while let Some(chunk) = chunks.get(next.fetch_add(1, Ordering::Relaxed)) {
                let place = &places[chunk.region];
                let done = read(file, place, &regions[chunk.region], &chunk.pages).map_err(|e| e.within(place.block().name()));
                // Nobody begins anything after a failure.
                done.inspect_err(|_| next.store(chunks.len(), Ordering::Relaxed))?;
            }
            Ok(())
        };
        let threads = self.threads.min(chunks.len());
        if threads < 2 {
            return work(&self.file);
        }
        std::thread::scope(|scope| {
            let (mut readers, mut ended) = (Vec::with_capacity(threads), Ok(()));
            for number in 0..threads {
                let work = &work;
                let started = open(number).and_then(|file| {
                    let thread = std::thread::Builder::new().name(format!("mapped-ram {number}"));
                    thread.spawn_scoped(scope, move || work(&file)).map_err(|e| Error::io("starting a reader of the file", e))
                });
                match started {
                    Ok(reader) => readers.push(reader),
                    Err(error) => {
                        next.store(chunks.len(), Ordering::Relaxed);
                        ended = Err(error);
                        break;
                    }
                }
            }
            for reader in readers {
                ended = ended.and(reader.join().unwrap_or_else(|_| Err(Error::io("a reader of the file", "it panicked"))));
            }
            ended
        })
    }
}

/// Some pages of one block: those that the file has, and zeros.
fn read(file: &Positioned, place: &PageTarget, region: &MappedRam, pages: &Range<usize>) -> Result<()> {
    let present = bitmap(file, region, pages)?;
    for page in (0..present.len()).filter(|page| !present.get(*page)) {
        place.fill((pages.start + page) as u64 * PAGE_SIZE, 0)?;
    }
    for run in present.runs() {
        let (mut offset, end) = ((pages.start + run.start) * PAGE_BYTES, (pages.start + run.end) * PAGE_BYTES);
        while offset < end {
            let length = READ.min(end - offset);
            let at = region.pages + offset as u64;
            file.read_guest(place.place(offset as u64, length)?, at).map_err(|e| e.at(at))?;
            offset += length;
        }
    }
    Ok(())
}

/// Which of the pages stand in the file.
fn bitmap(file: &Positioned, region: &MappedRam, pages: &Range<usize>) -> Result<Bitmap> {
    let mut bytes = [0; CHUNK / 8];
    let bytes = &mut bytes[..usize::try_from(bitmap_bytes(pages.len() as u64)).unwrap_or(CHUNK / 8)];
    let at = region.bitmap + pages.start as u64 / 8;
    file.read(bytes, at).map_err(|e| e.at(at))?;
    let words = bytes.chunks_exact(8).map(|word| u64::from_le_bytes(word.try_into().unwrap_or_default())).collect();
    Ok(Bitmap::from_words(words, pages.len()))
}

fn chunks(region: usize, pages: usize) -> impl Iterator<Item = Chunk> {
    (0..pages).step_by(CHUNK).map(move |start| Chunk { region, pages: start..pages.min(start + CHUNK) })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::fs::File;
    use std::os::unix::fs::FileExt;

    use rustix::fs::{MemfdFlags, memfd_create};

    use super::*;
    use crate::ErrorKind;
    use crate::channel::{Cancel, Listener};
    use crate::ram::Block;

    const PAGES: u64 = 1 << 20;

    #[test]
    fn a_reader_that_cannot_be_started_ends_the_others() {
        // The last page of three chunks is all that stands there.
        let pages = 3 * CHUNK;
        let file: File = memfd_create("file", MemfdFlags::CLOEXEC).unwrap().into();
        file.write_all_at(&[0x80], bitmap_bytes(pages as u64) - 1).unwrap();
        file.write_all_at(&[7; PAGE_BYTES], PAGES + (pages as u64 - 1) * PAGE_SIZE).unwrap();
        let (uri, cancel) = (Uri::parse("fd:file").unwrap(), Cancel::new().unwrap());
        let channel = Listener::bind(&uri, Some(file.into())).unwrap().accept(&cancel).unwrap();
        let reader = channel.split().0.unwrap();
        let mapped = MappedFile { file: reader.positioned().unwrap().unwrap(), threads: 3 };

        let block = Block::anon("ram", pages as u64 * PAGE_SIZE).unwrap();
        let places = Places::new(vec![block.clone()]).unwrap();
        let regions = [MappedRam { bitmap: 0, pages: PAGES }];
        for bad in 0..3 {
            let open = |number| {
                let failed = Error::new(ErrorKind::Io, format!("no thread {number}"));
                if number == bad { Err(failed) } else { mapped.file.another() }
            };
            let error = mapped.load_by(&places, &regions, open).unwrap_err();
            assert_eq!((error.kind, error.message), (ErrorKind::Io, format!("no thread {bad}")));
        }
        mapped.load(&places, &regions).unwrap();
        let mut last = [0; PAGE_BYTES];
        block.read((pages as u64 - 1) * PAGE_SIZE, &mut last).unwrap();
        assert!(last == [7; PAGE_BYTES]);
    }
}
