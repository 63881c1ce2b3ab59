//! `file:`: one stream in a file, from an offset on.

use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{FileType, Mode, OFlags, SeekFrom};
use rustix::io::Errno;

use super::{Direction, Uri, reason};
use crate::Result;

/// Outgoing: created 0600 if there is none and cut off at `offset`, where writing begins. Incoming: read from `offset` on.
pub(super) fn open(uri: &Uri, path: &Path, offset: u64, direction: Direction) -> Result<OwnedFd> {
    let failed = |doing: &str, errno| {
        let remedy = if errno == Errno::NXIO { " (a FIFO that nobody reads)" } else { "" };
        uri.error(direction.kind(), format!("{doing}: {}{remedy}", reason(errno)))
    };
    let flags = match direction {
        Direction::Outgoing => OFlags::WRONLY | OFlags::CREATE,
        Direction::Incoming => OFlags::RDONLY,
    };
    // Non-blocking, so that opening a FIFO cannot wait for ever; a regular file does not care.
    let fd =
        rustix::fs::open(path, flags | OFlags::CLOEXEC | OFlags::NONBLOCK, Mode::RUSR | Mode::WUSR).map_err(|e| failed("opening", e))?;
    let kind = rustix::fs::fstat(&fd).map(|stat| FileType::from_raw_mode(stat.st_mode)).map_err(|e| failed("opening", e))?;
    if direction == Direction::Outgoing && kind == FileType::RegularFile {
        rustix::fs::ftruncate(&fd, offset).map_err(|e| failed("truncating", e))?;
    }
    if offset > 0 {
        rustix::fs::seek(&fd, SeekFrom::Start(offset)).map_err(|e| failed("seeking", e))?;
    }
    Ok(fd)
}
