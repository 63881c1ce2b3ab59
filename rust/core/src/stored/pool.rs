//! Decoded pages: the first ones in memory, the rest in a temporary file without a name.

use std::fs::{self, File, OpenOptions};
use std::io::ErrorKind;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use crate::wire::consts::{PAGE_BYTES, PAGE_SIZE};
use crate::{Error, Result};

pub(super) type PageBytes = [u8; PAGE_BYTES];

/// Bytes kept in memory: a record of 17 bytes may stand for a page of its own.
const IN_MEMORY: u64 = 256 << 20;
const CHUNK: u64 = 1 << 20;

/// Room for pages, by position.
#[derive(Debug)]
pub(super) struct Pool {
    /// Positions below stand in memory; a multiple of `CHUNK`.
    in_memory: u64,
    memory: Vec<Box<[u8]>>,
    file: Option<File>,
    end: u64,
    free: Vec<u64>,
}

impl Default for Pool {
    fn default() -> Self {
        Self::new(IN_MEMORY)
    }
}

impl Pool {
    pub fn new(in_memory: u64) -> Self {
        Self { in_memory, memory: Vec::new(), file: None, end: 0, free: Vec::new() }
    }

    /// Keep a page; its position.
    pub fn put(&mut self, page: &PageBytes) -> Result<u64> {
        let at = self.free.pop().unwrap_or(self.end);
        self.end = self.end.max(at + PAGE_SIZE);
        self.write(at, page)?;
        Ok(at)
    }

    /// The page at `at` is no longer wanted.
    pub fn give_back(&mut self, at: u64) {
        self.free.push(at);
    }

    /// Another content for the page at `at`.
    pub fn write(&mut self, at: u64, page: &PageBytes) -> Result<()> {
        if at < self.in_memory {
            let (chunk, from) = place(at);
            while self.memory.len() <= chunk {
                self.memory.push(vec![0; place(CHUNK - 1).1 + 1].into_boxed_slice());
            }
            self.memory[chunk][from..from + PAGE_BYTES].copy_from_slice(page);
            return Ok(());
        }
        let file = match &self.file {
            Some(file) => file,
            None => self.file.insert(nameless(&std::env::temp_dir())?),
        };
        file.write_all_at(page, at - self.in_memory)
            .map_err(|e| Error::io("decoded pages do not fit in the folder for temporary files (TMPDIR)", e))
    }

    /// Whole pages that stand one behind the other from `at` on.
    pub fn read(&self, at: u64, out: &mut [u8]) -> Result<()> {
        for (at, page) in (at..).step_by(PAGE_BYTES).zip(out.chunks_mut(PAGE_BYTES)) {
            if at < self.in_memory {
                let (chunk, from) = place(at);
                page.copy_from_slice(&self.memory[chunk][from..from + PAGE_BYTES]);
            } else if let Some(file) = &self.file {
                file.read_exact_at(page, at - self.in_memory).map_err(|e| Error::io("reading decoded pages back", e))?;
            }
        }
        Ok(())
    }
}

/// Chunk of a position, and the place in it.
fn place(at: u64) -> (usize, usize) {
    let number = |value| usize::try_from(value).unwrap_or(usize::MAX);
    (number(at / CHUNK), number(at % CHUNK))
}

/// A file that ends with its descriptor.
fn nameless(folder: &Path) -> Result<File> {
    let failed = |e| Error::io(format_args!("creating a temporary file in {} (TMPDIR)", folder.display()), e);
    let mut number = 0_u32;
    loop {
        let path = folder.join(format!("qmig-e2k-{}-{number}", std::process::id()));
        match OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&path) {
            Ok(file) => return fs::remove_file(&path).map(|()| file).map_err(failed),
            Err(e) if e.kind() == ErrorKind::AlreadyExists && number < 1000 => number += 1,
            Err(e) => return Err(failed(e)),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn pages_beyond_memory_stand_in_a_file() {
        let mut pool = Pool::new(CHUNK);
        let pages = CHUNK / PAGE_SIZE + 3;
        let fill = |page: u64| [u8::try_from(page % 251).unwrap(); PAGE_BYTES];
        for page in 0..pages {
            assert_eq!(pool.put(&fill(page)).unwrap(), page * PAGE_SIZE);
        }
        assert_eq!(pool.memory.len(), 1);
        assert_eq!(pool.file.as_ref().unwrap().metadata().unwrap().len(), 3 * PAGE_SIZE);
        // Over the border, as one piece.
        let mut found = vec![0; 4 * PAGE_BYTES];
        pool.read(CHUNK - 2 * PAGE_SIZE, &mut found).unwrap();
        let wanted: Vec<u8> = (pages - 5..pages - 1).flat_map(fill).collect();
        assert!(found == wanted);
        // What was given back is used again, on either side.
        for at in [PAGE_SIZE, CHUNK + PAGE_SIZE] {
            pool.give_back(at);
            assert_eq!(pool.put(&[0xee; PAGE_BYTES]).unwrap(), at);
            pool.read(at, &mut found[..PAGE_BYTES]).unwrap();
            assert!(found[..PAGE_BYTES] == [0xee; PAGE_BYTES]);
        }
        assert_eq!(pool.end, pages * PAGE_SIZE);
    }

    #[test]
    fn without_a_folder_it_says_what_to_do() {
        let error = nameless(Path::new("/nonexistent")).unwrap_err();
        assert_eq!((error.kind, error.message.contains("/nonexistent (TMPDIR)")), (crate::ErrorKind::Io, true));
    }
}
