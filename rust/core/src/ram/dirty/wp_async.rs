//! The kernel's log: userfaultfd write protection that the kernel lifts by itself, read back by `PAGEMAP_SCAN`.

use rustix::io::Errno;

use super::{DirtyLog, DirtyLogKind, Lease};
use crate::ram::{Bitmap, TARGET_PAGE};
use crate::sys::mmap::Nature;
use crate::sys::pagemap::{Pagemap, Query};
use crate::sys::probe::WP_ASYNC;
use crate::sys::uffd::{Faults, Modes, Uffd};
use crate::{Error, ErrorKind, Result};

/// Bytes protected at a time: a call holds a lock that page faults and maps of other threads need.
const CHUNK: usize = 64 << 20;

#[derive(Debug)]
pub(super) struct WpAsync {
    uffd: Uffd,
    pagemap: Pagemap,
    armed: bool,
    address: usize,
    len: usize,
    lease: Lease,
}

impl WpAsync {
    pub(super) fn open(lease: Lease) -> Result<Self> {
        if lease.0.memory().nature() == Nature::Disk {
            return Err(Error::new(
                ErrorKind::NoDirtyLog,
                "memory of a file on disk has no kernel dirty log; put the file on tmpfs (/dev/shm), or choose the explicit log and call mark_dirty after each write",
            ));
        }
        let (uffd, pagemap) = (Uffd::open(WP_ASYNC, Faults::User)?, Pagemap::open()?);
        let address = lease.0.address();
        Ok(Self { uffd, pagemap, armed: false, address, len: lease.0.pages() * TARGET_PAGE, lease })
    }

    /// Watches the memory for a moment.
    pub(super) fn probe(&mut self) -> Result<()> {
        self.register()?;
        self.stop();
        Ok(())
    }

    fn register(&mut self) -> Result<()> {
        self.uffd.register(self.address, self.len, Modes::WP).map_err(|errno| {
            let remedy = if errno == Errno::BUSY {
                "another userfaultfd of this process watches it"
            } else {
                "use anonymous, memfd or tmpfs memory, or the explicit log"
            };
            Error::new(ErrorKind::NoDirtyLog, format!("the kernel cannot watch this memory: {errno}; {remedy}"))
        })?;
        self.armed = true;
        Ok(())
    }
}

fn failed(what: &str, errno: Errno) -> Error {
    Error::new(ErrorKind::NoDirtyLog, format!("{what}: {errno}"))
}

impl DirtyLog for WpAsync {
    fn kind(&self) -> DirtyLogKind {
        DirtyLogKind::WpAsync
    }

    fn start(&mut self, _untouched: &mut Bitmap) -> Result<()> {
        self.stop();
        self.lease.0.marks.take(&mut Bitmap::new(self.lease.0.pages()));
        self.register()?;
        for at in (0..self.len).step_by(CHUNK) {
            let len = CHUNK.min(self.len - at);
            self.uffd.write_protect(self.address + at, len, true).map_err(|e| failed("cannot write-protect", e))?;
        }
        Ok(())
    }

    fn sync(&mut self, into: &mut Bitmap) -> Result<u64> {
        let (address, mut new) = (self.address, 0);
        self.pagemap
            .scan(address, self.len, Query::WRITTEN, |start, end| {
                new += into.set_range((start - address) / TARGET_PAGE..(end - address) / TARGET_PAGE);
            })
            .map_err(|e| failed("cannot read the kernel's dirty log", e))?;
        Ok(new + self.lease.0.marks.take(into))
    }

    fn stop(&mut self) {
        if std::mem::take(&mut self.armed) {
            // Nothing to be done about a refusal; the memory stays usable either way.
            let _ = self.uffd.unregister(self.address, self.len);
        }
    }
}

impl Drop for WpAsync {
    fn drop(&mut self) {
        self.stop();
    }
}

#[cfg(test)]
#[cfg_attr(test, allow(clippy::unwrap_used, clippy::cast_possible_truncation))]
mod tests {
    use super::super::{DirtyMode, open};
    use super::*;
    use crate::ram::Block;

    #[test]
    fn sees_writes_once() {
        let block = Block::anon("ram", 1 << 20).unwrap();
        let mut log = open(&block, DirtyMode::Auto).unwrap();
        let mut untouched = Bitmap::new(block.pages());
        log.start(&mut untouched).unwrap();
        let mut dirty = Bitmap::new(block.pages());
        assert_eq!(log.sync(&mut dirty).unwrap(), 0);
        block.put_page(0x5000, &[7; 4096]).unwrap();
        assert_eq!((log.sync(&mut dirty).unwrap(), dirty.get(5)), (1, true));
        dirty.clear_all();
        assert_eq!(log.sync(&mut dirty).unwrap(), 0);
    }
}
