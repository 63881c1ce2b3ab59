//! The last version of pages that were sent (spec/stream 5.5): direct mapped, keyed by the address of a page.

use super::bad;
use crate::room::zeroed;
use crate::{Error, ErrorKind, Result};

/// Copies of pages, each in the one slot that its address allows.
#[derive(Debug)]
pub struct PageCache {
    page_size: usize,
    /// As many as `pages` has room for; a power of two.
    slots: Vec<Slot>,
    pages: Vec<u8>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Slot {
    /// None: empty.
    address: Option<u64>,
    age: u64,
}

impl PageCache {
    /// A cache of `size` bytes; both sizes are powers of two. Memory is taken at once.
    ///
    /// # Errors
    /// `bad-page`: a size that is no power of two, or room for less than one page. `no-memory`: there is not as much.
    pub fn new(size: usize, page_size: usize) -> Result<Self> {
        if !size.is_power_of_two() || !page_size.is_power_of_two() || size < page_size {
            return Err(bad(format!(
                "a page cache of {size} bytes for pages of {page_size}: both are powers of two, with room for a page at least"
            )));
        }
        let pages = zeroed(size, "a page cache")?;
        let mut slots = Vec::new();
        slots
            .try_reserve_exact(size / page_size)
            .map_err(|_| Error::new(ErrorKind::NoMemory, format!("there is no memory for a page cache of {size} bytes")))?;
        slots.resize(size / page_size, Slot::default());
        Ok(Self { page_size, slots, pages })
    }

    /// Bytes of pages that it holds at most.
    #[must_use]
    pub fn size(&self) -> usize {
        self.pages.len()
    }

    /// The copy of the page at `address`, which is young again, if there is one.
    pub fn get(&mut self, address: u64, age: u64) -> Option<&mut [u8]> {
        let at = self.slot(address);
        let slot = &mut self.slots[at];
        if slot.address != Some(address) {
            return None;
        }
        slot.age = age;
        Some(self.copy(at))
    }

    /// Keep `page`. Refused (None) while its slot holds another page that was used at `age` or at one of the two before.
    ///
    /// # Panics
    /// `page` is not of the page size.
    pub fn insert(&mut self, address: u64, page: &[u8], age: u64) -> Option<&[u8]> {
        let at = self.slot(address);
        let slot = &mut self.slots[at];
        if slot.address.is_some_and(|other| other != address) && age.saturating_sub(slot.age) < 2 {
            return None;
        }
        *slot = Slot { address: Some(address), age };
        let copy = self.copy(at);
        copy.copy_from_slice(page);
        Some(copy)
    }

    /// Forget all, as a cache of another size does.
    pub fn clear(&mut self) {
        self.slots.fill(Slot::default());
    }

    #[allow(clippy::cast_possible_truncation)] // of what the mask leaves
    fn slot(&self, address: u64) -> usize {
        (address / self.page_size as u64) as usize & (self.slots.len() - 1)
    }

    fn copy(&mut self, slot: usize) -> &mut [u8] {
        &mut self.pages[slot * self.page_size..][..self.page_size]
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const PAGE: u64 = 4096;

    fn page(byte: u8) -> Vec<u8> {
        vec![byte; 4096]
    }

    #[test]
    fn one_slot_for_an_address() {
        let mut cache = PageCache::new(4 << 12, 4096).unwrap();
        assert_eq!(cache.size(), 16384);
        assert!(cache.get(0, 1).is_none());
        assert_eq!(cache.insert(0, &page(1), 1).unwrap(), page(1));
        assert_eq!(cache.insert(PAGE, &page(2), 1).unwrap(), page(2));
        assert_eq!(cache.get(0, 1).unwrap(), page(1));
        assert!(cache.get(4 * PAGE, 1).is_none(), "the same slot, another page");
        cache.get(PAGE, 1).unwrap()[0] = 9;
        assert_eq!(cache.get(PAGE, 1).unwrap()[..2], [9, 2]);
        cache.clear();
        assert!(cache.get(PAGE, 1).is_none());
    }

    #[test]
    fn what_is_young_stays() {
        let mut cache = PageCache::new(4096, 4096).unwrap();
        cache.insert(0, &page(1), 5).unwrap();
        assert!(cache.insert(PAGE, &page(2), 5).is_none());
        assert!(cache.insert(PAGE, &page(2), 6).is_none());
        assert!(cache.insert(0, &page(3), 5).is_some(), "the page itself may always come again");
        assert!(cache.insert(PAGE, &page(2), 7).is_some());
        cache.get(PAGE, 9).unwrap();
        assert!(cache.insert(0, &page(1), 10).is_none(), "used at 9");
        assert!(cache.insert(0, &page(1), 11).is_some());
        // Numbers that nobody counts up to are numbers all the same.
        assert!(cache.insert(u64::MAX, &page(5), u64::MAX).is_some());
        assert!(cache.insert(0, &page(1), u64::MAX).is_none() && cache.get(u64::MAX, 0).is_some());
    }

    #[test]
    fn sizes() {
        assert_eq!(PageCache::new(1 << 62, 4096).unwrap_err().kind.name(), "no-memory");
        for (size, page_size) in [(2048, 4096), (12288, 4096), (0, 4096), (4096, 0), (4096, 1000)] {
            assert!(PageCache::new(size, page_size).unwrap_err().message.contains("powers of two"), "{size} {page_size}");
        }
    }
}
