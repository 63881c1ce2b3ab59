//! A file as a source of bytes. Reads say where, so that several may share one descriptor.

use std::fs::File;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;

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
    /// Over an open file, whose own position means nothing and may change.
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

    /// The part that holds data, and is no hole, which `at` lies in or which comes next. Behind the end nothing is a hole: to read there
    /// is an error.
    pub(super) fn data(&self, at: u64) -> Result<Range<u64>> {
        if at >= self.length {
            return Ok(at..u64::MAX);
        }
        let failed = |e| Error::io("looking for holes in the file", e).at(at);
        let start = match seek(&*self.file, SeekFrom::Data(at)) {
            Ok(start) => start,
            Err(Errno::NXIO) => return Ok(self.length..u64::MAX),
            Err(Errno::INVAL) => return Ok(at..u64::MAX),
            Err(e) => return Err(failed(e)),
        };
        Ok(start..seek(&*self.file, SeekFrom::Hole(start)).map_err(failed)?)
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
