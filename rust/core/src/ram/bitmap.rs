//! One bit a target page: `Bitmap` for one owner, `AtomicBitmap` for many writers and one taker.

use std::ops::Range;

use crate::sync::atomic::{AtomicBool, AtomicU64, Ordering};

const BITS: usize = u64::BITS as usize;

/// Visits the words that `range` touches, each with the mask of its bits.
fn for_words(range: &Range<usize>, mut visit: impl FnMut(usize, u64)) {
    if range.is_empty() {
        return;
    }
    let (first, last) = (range.start / BITS, (range.end - 1) / BITS);
    for word in first..=last {
        let mut mask = u64::MAX;
        if word == first {
            mask &= u64::MAX << (range.start % BITS);
        }
        if word == last {
            mask &= u64::MAX >> (BITS - 1 - (range.end - 1) % BITS);
        }
        visit(word, mask);
    }
}

/// A plain bitmap of fixed length. Indices at or past the length panic.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Bitmap {
    words: Vec<u64>,
    len: usize,
}

impl Bitmap {
    /// `len` bits, all clear.
    pub fn new(len: usize) -> Self {
        Self { words: vec![0; len.div_ceil(BITS)], len }
    }

    /// `len` bits as they stand in `words`, lowest first; what is missing is clear, what is too much is dropped.
    pub fn from_words(mut words: Vec<u64>, len: usize) -> Self {
        words.resize(len.div_ceil(BITS), 0);
        if let (Some(last), false) = (words.last_mut(), len.is_multiple_of(BITS)) {
            *last &= u64::MAX >> (BITS - len % BITS);
        }
        Self { words, len }
    }

    /// `len` bits, all set.
    pub fn full(len: usize) -> Self {
        let mut made = Self::new(len);
        made.set_range(0..len);
        made
    }

    /// Number of bits.
    pub fn len(&self) -> usize {
        self.len
    }

    /// No bits at all (not: none set).
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The words, lowest bit first; bits past the length are clear.
    pub fn words(&self) -> &[u64] {
        &self.words
    }

    fn check(&self, range: &Range<usize>) {
        assert!(range.start <= range.end && range.end <= self.len, "bits {range:?} of a bitmap of {}", self.len);
    }

    /// Is the bit set?
    pub fn get(&self, bit: usize) -> bool {
        assert!(bit < self.len, "bit {bit} of a bitmap of {}", self.len);
        self.words[bit / BITS] >> (bit % BITS) & 1 != 0
    }

    /// Sets the bit; true if it was clear.
    pub fn set(&mut self, bit: usize) -> bool {
        let was = self.get(bit);
        self.words[bit / BITS] |= 1 << (bit % BITS);
        !was
    }

    /// Clears the bit; true if it was set.
    pub fn test_and_clear(&mut self, bit: usize) -> bool {
        let was = self.get(bit);
        self.words[bit / BITS] &= !(1 << (bit % BITS));
        was
    }

    /// Clears the bit.
    pub fn clear(&mut self, bit: usize) {
        self.test_and_clear(bit);
    }

    /// Sets a range; how many bits were clear before.
    pub fn set_range(&mut self, range: Range<usize>) -> u64 {
        self.check(&range);
        let mut new = 0;
        for_words(&range, |word, mask| {
            new += u64::from((mask & !self.words[word]).count_ones());
            self.words[word] |= mask;
        });
        new
    }

    /// Clears a range; how many bits were set before.
    pub fn clear_range(&mut self, range: Range<usize>) -> u64 {
        self.check(&range);
        let mut old = 0;
        for_words(&range, |word, mask| {
            old += u64::from((mask & self.words[word]).count_ones());
            self.words[word] &= !mask;
        });
        old
    }

    /// Clears all.
    pub fn clear_all(&mut self) {
        self.words.fill(0);
    }

    /// Number of set bits.
    pub fn count(&self) -> u64 {
        self.words.iter().map(|w| u64::from(w.count_ones())).sum()
    }

    /// Number of set bits in a range.
    pub fn count_range(&self, range: Range<usize>) -> u64 {
        self.check(&range);
        let mut set = 0;
        for_words(&range, |word, mask| set += u64::from((mask & self.words[word]).count_ones()));
        set
    }

    /// The first bit at or after `from` that is `value`.
    fn next(&self, from: usize, value: bool) -> Option<usize> {
        if from >= self.len {
            return None;
        }
        let flip = if value { 0 } else { u64::MAX };
        let mut mask = u64::MAX << (from % BITS);
        for (i, word) in self.words.iter().enumerate().skip(from / BITS) {
            let hit = (word ^ flip) & mask;
            if hit != 0 {
                let bit = i * BITS + hit.trailing_zeros() as usize;
                return (bit < self.len).then_some(bit);
            }
            mask = u64::MAX;
        }
        None
    }

    /// The first set bit at or after `from`.
    pub fn next_set(&self, from: usize) -> Option<usize> {
        self.next(from, true)
    }

    /// The first clear bit at or after `from`.
    pub fn next_clear(&self, from: usize) -> Option<usize> {
        self.next(from, false)
    }

    /// The maximal runs of set bits, in order.
    pub fn runs(&self) -> impl Iterator<Item = Range<usize>> + '_ {
        let mut from = 0;
        std::iter::from_fn(move || {
            let start = self.next_set(from)?;
            let end = self.next_clear(start).unwrap_or(self.len);
            from = end;
            Some(start..end)
        })
    }

    /// Sets what is set in `other` (of the same length); how many bits were clear before.
    pub fn or(&mut self, other: &Self) -> u64 {
        assert_eq!(self.len, other.len, "bitmaps of different lengths");
        self.words.iter_mut().zip(&other.words).map(|(mine, theirs)| merge(mine, *theirs)).sum()
    }

    /// Keeps only what is set in `other` (of the same length) too.
    pub fn and(&mut self, other: &Self) {
        assert_eq!(self.len, other.len, "bitmaps of different lengths");
        for (mine, theirs) in self.words.iter_mut().zip(&other.words) {
            *mine &= theirs;
        }
    }

    /// Clears what is set in `other` (of the same length).
    pub fn and_not(&mut self, other: &Self) {
        assert_eq!(self.len, other.len, "bitmaps of different lengths");
        for (mine, theirs) in self.words.iter_mut().zip(&other.words) {
            *mine &= !theirs;
        }
    }
}

/// Ors `more` in; how many bits are new.
fn merge(word: &mut u64, more: u64) -> u64 {
    let new = more & !*word;
    *word |= more;
    u64::from(new.count_ones())
}

/// A bitmap that many threads set and one takes from.
///
/// A bit set before a `take` begins is in that take; one set meanwhile is in it or in the next. None is ever lost.
#[derive(Debug)]
pub struct AtomicBitmap {
    words: Vec<AtomicU64>,
    len: usize,
    /// Set after any bit, cleared before a take: a take of nothing costs one load. Set by an exchange, so that the taker hears of every
    /// writer and not of the last one only: a plain store would hide the bits of the others from it on a machine with weak memory.
    any: AtomicBool,
}

impl AtomicBitmap {
    /// `len` bits, all clear.
    pub fn new(len: usize) -> Self {
        Self { words: (0..len.div_ceil(BITS)).map(|_| AtomicU64::new(0)).collect(), len, any: AtomicBool::new(false) }
    }

    /// Number of bits.
    pub fn len(&self) -> usize {
        self.len
    }

    /// No bits at all (not: none set).
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Sets a range. What was stored before this call is visible to whoever takes the bits.
    pub fn set_range(&self, range: Range<usize>) {
        assert!(range.start <= range.end && range.end <= self.len, "bits {range:?} of a bitmap of {}", self.len);
        for_words(&range, |word, mask| {
            self.words[word].fetch_or(mask, Ordering::SeqCst);
        });
        self.any.swap(true, Ordering::Release);
    }

    /// Is the bit set? Then what was stored before it was set is visible.
    pub fn get(&self, bit: usize) -> bool {
        assert!(bit < self.len, "bit {bit} of a bitmap of {}", self.len);
        self.words[bit / BITS].load(Ordering::SeqCst) >> (bit % BITS) & 1 != 0
    }

    /// Sets the bit; true if it was clear. Of many that try, one is told so.
    pub fn set(&self, bit: usize) -> bool {
        assert!(bit < self.len, "bit {bit} of a bitmap of {}", self.len);
        let was = self.words[bit / BITS].fetch_or(1 << (bit % BITS), Ordering::SeqCst);
        self.any.swap(true, Ordering::Release);
        was >> (bit % BITS) & 1 == 0
    }

    /// Clears the bit; true if it was set. Of many that try, one is told so.
    pub fn test_and_clear(&self, bit: usize) -> bool {
        assert!(bit < self.len, "bit {bit} of a bitmap of {}", self.len);
        self.words[bit / BITS].fetch_and(!(1 << (bit % BITS)), Ordering::SeqCst) >> (bit % BITS) & 1 != 0
    }

    /// Clears a range.
    pub fn clear_range(&self, range: Range<usize>) {
        assert!(range.start <= range.end && range.end <= self.len, "bits {range:?} of a bitmap of {}", self.len);
        for_words(&range, |word, mask| {
            self.words[word].fetch_and(!mask, Ordering::SeqCst);
        });
    }

    /// The first `len` bits as they are now, or a little later.
    pub fn snapshot(&self, len: usize) -> Bitmap {
        assert!(len <= self.len, "{len} bits of a bitmap of {}", self.len);
        let mut words: Vec<u64> = self.words[..len.div_ceil(BITS)].iter().map(|word| word.load(Ordering::SeqCst)).collect();
        if let (Some(last), false) = (words.last_mut(), len.is_multiple_of(BITS)) {
            *last &= u64::MAX >> (BITS - len % BITS);
        }
        Bitmap { words, len }
    }

    /// Moves every set bit below `into.len()` to `into`, and drops the rest; how many bits are new there.
    pub fn take(&self, into: &mut Bitmap) -> u64 {
        if !self.any.load(Ordering::Relaxed) || !self.any.swap(false, Ordering::AcqRel) {
            return 0;
        }
        let len = into.len;
        let mut new = 0;
        for (i, word) in self.words.iter().enumerate() {
            // A load first: the exchange takes the cache line from the writers.
            if word.load(Ordering::Relaxed) == 0 {
                continue;
            }
            let mut bits = word.swap(0, Ordering::AcqRel);
            if let Some(mine) = into.words.get_mut(i) {
                if (i + 1) * BITS > len {
                    bits &= u64::MAX >> ((i + 1) * BITS - len);
                }
                new += merge(mine, bits);
            }
        }
        new
    }
}

impl From<Bitmap> for AtomicBitmap {
    fn from(bits: Bitmap) -> Self {
        let any = AtomicBool::new(bits.words.iter().any(|word| *word != 0));
        Self { words: bits.words.into_iter().map(AtomicU64::new).collect(), len: bits.len, any }
    }
}

#[cfg(test)]
#[cfg_attr(test, allow(clippy::unwrap_used, clippy::cast_possible_truncation))]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The slow obvious bitmap.
    fn model_runs(bits: &[bool]) -> Vec<Range<usize>> {
        let mut runs: Vec<Range<usize>> = Vec::new();
        for (i, _) in bits.iter().enumerate().filter(|(_, b)| **b) {
            match runs.last_mut() {
                Some(run) if run.end == i => run.end = i + 1,
                _ => runs.push(i..i + 1),
            }
        }
        runs
    }

    proptest! {
        #[test]
        fn behaves_as_a_list_of_bools(len in 1_usize..400, steps in prop::collection::vec((0_u8..4, any::<prop::sample::Index>(), any::<prop::sample::Index>()), 0..40)) {
            let mut map = Bitmap::new(len);
            let mut model = vec![false; len];
            for (what, a, b) in steps {
                let (a, b) = (a.index(len), b.index(len + 1));
                let range = a.min(b)..b.max(a);
                match what {
                    0 => { prop_assert_eq!(map.set(a), !model[a]); model[a] = true; }
                    1 => { prop_assert_eq!(map.test_and_clear(a), model[a]); model[a] = false; }
                    2 => {
                        let new = model[range.clone()].iter().filter(|b| !**b).count() as u64;
                        prop_assert_eq!(map.set_range(range.clone()), new);
                        model[range].fill(true);
                    }
                    _ => {
                        let old = model[range.clone()].iter().filter(|b| **b).count() as u64;
                        prop_assert_eq!(map.count_range(range.clone()), old);
                        prop_assert_eq!(map.clear_range(range.clone()), old);
                        model[range].fill(false);
                    }
                }
                prop_assert_eq!(map.count(), model.iter().filter(|b| **b).count() as u64);
                prop_assert_eq!(map.next_set(a), (a..len).find(|i| model[*i]));
                prop_assert_eq!(map.next_clear(a), (a..len).find(|i| !model[*i]));
                prop_assert_eq!(map.runs().collect::<Vec<_>>(), model_runs(&model));
            }
        }

        #[test]
        fn or_and_take_count_what_is_new(len in 1_usize..300, extra in 0_usize..100, a in prop::collection::vec(any::<prop::sample::Index>(), 0..30), b in prop::collection::vec(any::<prop::sample::Index>(), 0..30)) {
            let (mut left, mut right) = (Bitmap::new(len), Bitmap::new(len));
            let atomic = AtomicBitmap::new(len + extra);
            for i in &a { left.set(i.index(len)); }
            for i in &b {
                right.set(i.index(len));
                let bit = i.index(len);
                atomic.set_range(bit..bit + 1);
            }
            atomic.set_range(len..len + extra);
            let mut both = left.clone();
            let new = both.or(&right);
            prop_assert_eq!(new, both.count() - left.count());
            let mut taken = left.clone();
            prop_assert_eq!(atomic.take(&mut taken), new);
            prop_assert_eq!(&taken, &both);
            prop_assert_eq!(atomic.take(&mut taken), 0);
            let mut common = left.clone();
            common.and(&right);
            prop_assert_eq!(common.count() + both.count(), left.count() + right.count());
            both.and_not(&right);
            prop_assert_eq!(both.count(), both.runs().map(|r| r.len() as u64).sum::<u64>());
            prop_assert!(both.runs().all(|r| r.clone().all(|i| left.get(i) && !right.get(i))));
        }
    }

    #[test]
    fn nothing_is_lost_between_writers_and_taker() {
        const PAGES: usize = 4096;
        let atomic = AtomicBitmap::new(PAGES);
        let mut seen = Bitmap::new(PAGES);
        std::thread::scope(|scope| {
            let writers: Vec<_> = (0..4)
                .map(|t| {
                    let atomic = &atomic;
                    scope.spawn(move || (t..PAGES).step_by(4).for_each(|page| atomic.set_range(page..page + 1)))
                })
                .collect();
            while writers.iter().any(|w| !w.is_finished()) {
                atomic.take(&mut seen);
            }
        });
        atomic.take(&mut seen);
        assert_eq!(seen, Bitmap::full(PAGES));
    }

    #[test]
    #[should_panic(expected = "bits 3..9 of a bitmap of 8")]
    fn ranges_are_checked() {
        Bitmap::new(8).set_range(3..9);
    }
}
