//! The kernel's log: userfaultfd write protection that the kernel lifts by itself, read back by `PAGEMAP_SCAN`.

use super::{DirtyLog, DirtyLogKind, Lease};
use crate::ram::{Bitmap, TARGET_PAGE};
use crate::sys::pagemap::{Pagemap, Query};
use crate::sys::uffd::{Features, Modes, Uffd};
use crate::{Error, ErrorKind, Result};

/// Bytes protected at a time: a call holds a lock that page faults and maps of other threads need.
const CHUNK: usize = 64 << 20;

/// All that a descriptor of this log needs.
const FEATURES: Features = Features::WP_ASYNC.union(Features::WP_UNPOPULATED).union(Features::WP_HUGETLBFS_SHMEM);

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
        let (uffd, pagemap) = (Uffd::open(FEATURES)?, Pagemap::open()?);
        let address = lease.0.address();
        Ok(Self { uffd, pagemap, armed: false, address, len: lease.0.pages() * TARGET_PAGE, lease })
    }
}

fn failed(what: &str, errno: rustix::io::Errno) -> Error {
    Error::new(ErrorKind::NoDirtyLog, format!("{what}: {errno}"))
}

impl DirtyLog for WpAsync {
    fn kind(&self) -> DirtyLogKind {
        DirtyLogKind::WpAsync
    }

    fn start(&mut self, _untouched: &mut Bitmap) -> Result<()> {
        self.stop();
        self.lease.0.marks.take(&mut Bitmap::new(self.lease.0.pages()));
        self.uffd.register(self.address, self.len, Modes::WP).map_err(|e| failed("cannot watch the memory", e))?;
        self.armed = true;
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
