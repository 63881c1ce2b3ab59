//! What is still to be sent once the destination runs: one bit a target page, cleared by whoever takes it.
//!
//! Background and urgent sender share it without a lock. A host page is taken whole by one exchange of the word that holds its first
//! bits, so no page goes out twice and no host page over two channels (spec/stream 9.6).

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::discard;
use crate::ram::{Bitmap, Block};

const BITS: usize = u64::BITS as usize;

/// A place of the search.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Place {
    /// Number of the block.
    pub block: usize,
    /// Target page.
    pub page: usize,
}

#[derive(Debug)]
struct Area {
    block: Arc<Block>,
    /// Target pages of a host page, a power of two.
    ratio: usize,
    pages: usize,
    /// All bits of a host page are equal, but while somebody is taking it.
    words: Vec<AtomicU64>,
}

/// The pages of all blocks.
#[derive(Debug)]
pub struct Unsent {
    areas: Vec<Area>,
    left: AtomicU64,
}

impl Unsent {
    /// The pages of `dirty` (one bitmap a block), and with each of them all of its host page.
    pub fn new(blocks: &[Arc<Block>], mut dirty: Vec<Bitmap>) -> Self {
        let left = AtomicU64::new(0);
        let areas = blocks.iter().zip(&mut dirty).map(|(block, bits)| {
            let ratio = discard::ratio(block);
            discard::complete(bits, ratio);
            left.fetch_add(bits.count(), Ordering::Relaxed);
            let words = bits.words().iter().copied().map(AtomicU64::new).collect();
            Area { block: Arc::clone(block), ratio, pages: bits.len(), words }
        });
        Self { areas: areas.collect(), left }
    }

    /// Target pages that nobody has taken.
    pub fn left(&self) -> u64 {
        self.left.load(Ordering::Acquire)
    }

    /// A block by its number.
    pub fn block(&self, block: usize) -> &Arc<Block> {
        &self.areas[block].block
    }

    /// The pages of a block that are not to be sent; stable only while nobody takes any.
    pub fn clean(&self, block: usize) -> Bitmap {
        let area = &self.areas[block];
        let mut clean = Bitmap::full(area.pages);
        let mut from = 0;
        while let Some(page) = area.next(from) {
            clean.clear(page);
            from = page + 1;
        }
        clean
    }

    /// Takes the host page of `page`: its target pages, or none if it was taken before.
    pub fn claim(&self, block: usize, page: usize) -> Option<Range<usize>> {
        let area = &self.areas[block];
        let start = page - page % area.ratio;
        let (word, bit) = (start / BITS, start % BITS);
        let mask = u64::MAX >> (BITS - area.ratio.min(BITS)) << bit;
        if area.words[word].fetch_and(!mask, Ordering::AcqRel) & mask == 0 {
            return None;
        }
        let end = (start + area.ratio).min(area.pages);
        self.left.fetch_sub((end - start) as u64, Ordering::AcqRel);
        // Whoever finds one of these finds the first taken.
        for word in word + 1..end.div_ceil(BITS) {
            area.words[word].store(0, Ordering::Release);
        }
        Some(start..end)
    }

    /// Takes the next host page at `from` or behind, in circles, and moves `from` behind it. None if all are taken.
    pub fn take(&self, from: &mut Place) -> Option<(usize, Range<usize>)> {
        while self.left() > 0 {
            let area = &self.areas[from.block];
            if let Some(page) = area.next(from.page) {
                from.page = page - page % area.ratio + area.ratio;
                if let Some(pages) = self.claim(from.block, page) {
                    return Some((from.block, pages));
                }
            } else {
                *from = Place { block: (from.block + 1) % self.areas.len(), page: 0 };
            }
        }
        None
    }
}

impl Area {
    /// The first set bit at or after `from`.
    fn next(&self, from: usize) -> Option<usize> {
        let mut mask = u64::MAX << (from % BITS);
        for (i, word) in self.words.iter().enumerate().skip(from / BITS) {
            let hit = word.load(Ordering::Acquire) & mask;
            if hit != 0 {
                return Some(i * BITS + hit.trailing_zeros() as usize);
            }
            mask = u64::MAX;
        }
        None
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::wire::consts::PAGE_SIZE;

    fn unsent(pages: usize, ratio: usize, dirty: &[usize]) -> Unsent {
        let block = Block::anon("ram", pages as u64 * PAGE_SIZE).unwrap();
        let mut bits = Bitmap::new(pages);
        for page in dirty {
            bits.set(*page);
        }
        discard::complete(&mut bits, ratio);
        let left = AtomicU64::new(bits.count());
        let words = bits.words().iter().copied().map(AtomicU64::new).collect();
        Unsent { areas: vec![Area { block, ratio, pages, words }], left }
    }

    #[test]
    fn a_host_page_is_taken_whole_and_once() {
        for ratio in [1, 2, 16, 64, 128, 512] {
            let pages = 4 * ratio.max(64);
            let unsent = unsent(pages, ratio, &[0, pages - 1]);
            assert_eq!(unsent.left(), 2 * ratio as u64);
            assert_eq!(unsent.claim(0, ratio), None, "a clean one");
            assert_eq!(unsent.claim(0, pages - 1), Some(pages - ratio..pages));
            assert_eq!(unsent.claim(0, pages - ratio), None);
            let mut place = Place { block: 0, page: pages };
            assert_eq!(unsent.take(&mut place), Some((0, 0..ratio)), "in circles");
            assert_eq!((place.page, unsent.left()), (ratio, 0));
            assert_eq!(unsent.take(&mut place), None);
        }
    }

    #[test]
    fn takers_share_without_a_page_twice() {
        for ratio in [1, 512] {
            const PAGES: usize = 64 << 10;
            let unsent = unsent(PAGES, ratio, &(0..PAGES).collect::<Vec<_>>());
            let taken: usize = std::thread::scope(|scope| {
                let takers: Vec<_> = (0..3)
                    .map(|n| {
                        let unsent = &unsent;
                        scope.spawn(move || {
                            let mut place = Place { block: 0, page: n * PAGES / 3 };
                            std::iter::from_fn(|| unsent.take(&mut place)).map(|(_, pages)| pages.len()).sum::<usize>()
                        })
                    })
                    .collect();
                takers.into_iter().map(|taker| taker.join().unwrap()).sum()
            });
            assert_eq!((taken, unsent.left()), (PAGES, 0));
            assert_eq!(unsent.clean(0), Bitmap::full(PAGES));
        }
    }
}
