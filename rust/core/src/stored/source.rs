//! A file as a source of bytes. Reads say where, so that several may share one descriptor.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use crate::wire::ByteSource;
use crate::{Error, ErrorKind, Result};

/// A seekable file, read from its begin.
#[derive(Debug, Clone)]
pub struct FileSource {
    file: Arc<File>,
    at: u64,
    length: u64,
}

impl FileSource {
    /// Over an open file; its own position is neither used nor changed.
    pub fn new(fd: OwnedFd) -> Result<Self> {
        let file = File::from(fd);
        let length = file.metadata().map_err(|e| Error::io("cannot look at the file", e))?.len();
        Ok(Self { file: Arc::new(file), at: 0, length })
    }

    /// Bytes of the file when it was opened.
    pub fn length(&self) -> u64 {
        self.length
    }

    /// Fill `out` from byte `at` of the file on.
    pub fn read_at(&self, at: u64, out: &mut [u8]) -> Result<()> {
        self.file.read_exact_at(out, at).map_err(|error| match error.kind() {
            std::io::ErrorKind::UnexpectedEof => Error::new(ErrorKind::Truncated, "the file ends before these bytes").at(at),
            _ => Error::io("reading the file", error).at(at),
        })
    }
}

impl ByteSource for FileSource {
    fn read(&mut self, buf: &mut [u8]) -> Result<usize> {
        let n = self.file.read_at(buf, self.at).map_err(|e| Error::io("reading the file", e).at(self.at))?;
        self.at += n as u64;
        Ok(n)
    }

    fn skip(&mut self, n: u64) -> Result<u64> {
        let passed = n.min(self.length.saturating_sub(self.at));
        self.at += passed;
        Ok(passed)
    }
}
