//! A second pair of eyes for runs of zero pages: a thread looks at pages that the sender has not come to yet.
//!
//! One core reads memory at about two thirds of the rate that it can give, and a zero page costs little more than its
//! reading. The sender calls a scout where zeros come in runs, and lets it go when they end, at each sync at the latest: what
//! was seen between two syncs stays true, for a page written after the first is in the log and will be looked at again.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};

use rustix::thread::sched_getaffinity;

use crate::ram::{Bitmap, Block};
use crate::wire::consts::{PAGE_BYTES, PAGE_SIZE};

/// Pages of a piece of work: a word of a bitmap.
pub(super) const PIECE: usize = u64::BITS as usize;

/// Pieces that may be taken from the one that the sender has come to; bounds what is looked at in vain when the zeros end.
const AHEAD: usize = 64;

/// Looks at the answer before the sender lets go of its core, which the scout may need to give it.
const SPINS: u32 = 1000;

/// One piece: what is asked, and the answer.
#[derive(Debug, Default)]
struct Slot {
    wanted: AtomicU64,
    zero: AtomicU64,
    /// The piece whose answer stands in `zero`, plus one.
    answered: AtomicUsize,
}

#[derive(Debug)]
struct Pieces {
    block: Arc<Block>,
    /// Piece `p` stands in slot `p % AHEAD`: no piece is added before the sender has the answer to the one it replaces.
    slots: Vec<Slot>,
    /// The first piece that nobody has taken.
    next: AtomicUsize,
    /// The first piece that may not be taken yet.
    end: AtomicUsize,
    asleep: AtomicBool,
    stop: AtomicBool,
}

impl Pieces {
    /// Add the next piece; past the end of the bitmap there is none.
    fn add(&self, piece: usize, dirty: &Bitmap, untouched: Option<&Bitmap>) {
        let Some(word) = dirty.words().get(piece) else { return };
        let known = untouched.map_or(0, |bits| bits.words()[piece]);
        self.slots[piece % AHEAD].wanted.store(word & !known, Ordering::Relaxed);
        self.end.store(piece + 1, Ordering::SeqCst);
    }

    /// Take the next piece and answer it. False if there is none.
    fn work(&self) -> bool {
        let free = |next| (next < self.end.load(Ordering::SeqCst)).then_some(next + 1);
        let Ok(piece) = self.next.fetch_update(Ordering::SeqCst, Ordering::SeqCst, free) else {
            return false;
        };
        let slot = &self.slots[piece % AHEAD];
        let first = piece * PIECE;
        let (mut zero, mut left) = (0, slot.wanted.load(Ordering::Relaxed));
        // Mostly the whole piece is zero, and in one go it is read a tenth faster: each look begins with a cache miss at either end.
        if left == u64::MAX && self.is_zero(first, PIECE) {
            (zero, left) = (left, 0);
        }
        while left != 0 {
            if self.is_zero(first + left.trailing_zeros() as usize, 1) {
                zero |= left & left.wrapping_neg();
            }
            left &= left - 1;
        }
        slot.zero.store(zero, Ordering::Relaxed);
        slot.answered.store(piece + 1, Ordering::Release);
        true
    }

    /// Only pages of the block are wanted; an error would say that they are to be sent.
    fn is_zero(&self, page: usize, pages: usize) -> bool {
        self.block.is_zero(page as u64 * PAGE_SIZE, pages * PAGE_BYTES).unwrap_or(false)
    }

    fn scout(&self) {
        while !self.stop.load(Ordering::SeqCst) {
            if self.work() {
                continue;
            }
            self.asleep.store(true, Ordering::SeqCst);
            // Whoever adds a piece or says stop does that first and then asks who sleeps.
            if self.next.load(Ordering::SeqCst) == self.end.load(Ordering::SeqCst) && !self.stop.load(Ordering::SeqCst) {
                thread::park();
            }
            self.asleep.store(false, Ordering::SeqCst);
        }
    }
}

/// A scout ahead of one pass over one block.
#[derive(Debug)]
pub(super) struct ZeroScout {
    pieces: Arc<Pieces>,
    thread: Option<JoinHandle<()>>,
    /// Pieces below have been answered; `zero` is the answer to the last of them.
    answered: usize,
    zero: u64,
}

impl ZeroScout {
    /// Send a scout ahead, from the piece of `page` on. `dirty` has the pages still to be sent; those of `untouched` need no look.
    /// None where there is one core only, or no thread to be had.
    pub fn start(block: &Arc<Block>, page: usize, dirty: &Bitmap, untouched: Option<&Bitmap>) -> Option<Self> {
        if sched_getaffinity(None).map_or(1, |cores| cores.count()) < 2 {
            return None;
        }
        let first = page / PIECE;
        let pieces = Arc::new(Pieces {
            block: Arc::clone(block),
            slots: (0..AHEAD).map(|_| Slot::default()).collect(),
            next: AtomicUsize::new(first),
            end: AtomicUsize::new(first),
            asleep: AtomicBool::new(false),
            stop: AtomicBool::new(false),
        });
        (first..first + AHEAD).for_each(|piece| pieces.add(piece, dirty, untouched));
        let own = Arc::clone(&pieces);
        let thread = thread::Builder::new().name("qmig-scout".into()).spawn(move || own.scout()).ok()?;
        Some(Self { pieces, thread: Some(thread), answered: first, zero: 0 })
    }

    /// Is the page zero? To be asked of dirty pages in order, with the bitmaps given to `start`.
    pub fn is_zero(&mut self, page: usize, dirty: &Bitmap, untouched: Option<&Bitmap>) -> bool {
        self.zeros(page, dirty, untouched) >> (page % PIECE) & 1 != 0
    }

    /// The same for all pages of the piece that `page` is in, page by page from the lowest bit.
    pub fn zeros(&mut self, page: usize, dirty: &Bitmap, untouched: Option<&Bitmap>) -> u64 {
        while self.answered <= page / PIECE {
            self.zero = self.answer(self.answered);
            self.pieces.add(self.answered + AHEAD, dirty, untouched);
            self.answered += 1;
            if self.pieces.asleep.load(Ordering::SeqCst) {
                self.wake();
            }
        }
        self.zero
    }

    /// The zero pages of a piece. While the scout still has it in hand, the next ones are looked at here.
    fn answer(&self, piece: usize) -> u64 {
        let slot = &self.pieces.slots[piece % AHEAD];
        let mut spins = 0;
        while slot.answered.load(Ordering::Acquire) != piece + 1 {
            if self.pieces.work() {
                continue;
            }
            spins += 1;
            if spins < SPINS { std::hint::spin_loop() } else { thread::yield_now() }
        }
        slot.zero.load(Ordering::Relaxed)
    }

    fn wake(&self) {
        if let Some(thread) = &self.thread {
            thread.thread().unpark();
        }
    }
}

impl Drop for ZeroScout {
    fn drop(&mut self) {
        self.pieces.stop.store(true, Ordering::SeqCst);
        self.wake();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
#[cfg_attr(test, allow(clippy::unwrap_used, clippy::cast_possible_truncation))]
mod tests {
    use super::*;

    const PAGES: usize = 20 * AHEAD * PIECE + 7;

    /// A block in which every page whose number `is_zero` denies holds one byte.
    fn block(is_zero: impl Fn(usize) -> bool) -> Arc<Block> {
        let block = Block::anon("ram", PAGES as u64 * PAGE_SIZE).unwrap();
        for page in (0..PAGES).filter(|page| !is_zero(*page)) {
            block.write(page as u64 * PAGE_SIZE + page as u64 % PAGE_SIZE, &[1]).unwrap();
        }
        block
    }

    #[test]
    fn answers_are_those_of_a_look() {
        let is_zero = |page: usize| !page.is_multiple_of(61) && page / 1000 % 5 != 3;
        let block = block(is_zero);
        let mut dirty = Bitmap::full(PAGES);
        // Stretches without dirty pages, some longer than the ring.
        dirty.clear_range(3 * PIECE..5 * PIECE + 9);
        dirty.clear_range(9 * AHEAD * PIECE..13 * AHEAD * PIECE);
        let mut scout = ZeroScout::start(&block, 70, &dirty, None).unwrap();
        let mut page = 70;
        while let Some(found) = dirty.next_set(page) {
            assert_eq!(scout.is_zero(found, &dirty, None), is_zero(found), "page {found}");
            dirty.clear(found);
            page = found + 1;
        }
    }

    #[test]
    fn untouched_pages_are_not_looked_at() {
        let block = block(|page| page % 2 == 0);
        let (dirty, mut untouched) = (Bitmap::full(PAGES), Bitmap::new(PAGES));
        untouched.set_range(0..2 * PIECE);
        let mut scout = ZeroScout::start(&block, 0, &dirty, Some(&untouched)).unwrap();
        assert!(!scout.is_zero(0, &dirty, Some(&untouched)), "nobody has looked");
        assert!(scout.is_zero(2 * PIECE, &dirty, Some(&untouched)));
    }

    #[test]
    fn a_scout_that_is_let_go_ends() {
        let block = block(|_| true);
        let dirty = Bitmap::full(PAGES);
        for page in [0, PAGES - 1] {
            let scout = ZeroScout::start(&block, page, &dirty, None).unwrap();
            drop(scout);
            assert_eq!(Arc::strong_count(&block), 1);
        }
    }
}
