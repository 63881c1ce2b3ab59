//! Where two pages begin and cease to differ: vector versions chosen at run time, with their scalar twin.
//!
//! All of them make one mask of 64 bytes each, a bit for a byte that differs, and take the positions from the masks alike.

/// Bytes of a mask.
const STEP: usize = u64::BITS as usize;

/// Masks looked at together: a bit each in a word.
const GROUP: usize = u64::BITS as usize;

/// Positions written at a time: how many there are is only looked at after that many, so that the processor need not guess.
const UNROLL: usize = 4;

/// Entries that [`Level::flips`] needs for pages of `len` bytes.
#[must_use]
pub const fn room(len: usize) -> usize {
    len + 1 + UNROLL
}

/// Which instructions to use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    /// What every processor can run.
    Scalar,
    /// 32 bytes at a time.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// 64 bytes at a time.
    #[cfg(target_arch = "x86_64")]
    Avx512,
}

impl Level {
    /// All that this processor has, the fastest last.
    #[must_use]
    pub fn all() -> Vec<Self> {
        #[cfg(target_arch = "x86_64")]
        {
            use std::arch::is_x86_feature_detected as has;
            let avx2 = has!("avx2") && has!("bmi1") && has!("popcnt");
            let avx512 = avx2 && has!("avx512f") && has!("avx512bw");
            let found = [(true, Self::Scalar), (avx2, Self::Avx2), (avx512, Self::Avx512)];
            found.into_iter().filter_map(|(there, level)| there.then_some(level)).collect()
        }
        #[cfg(not(target_arch = "x86_64"))]
        vec![Self::Scalar]
    }

    /// The fastest of all.
    #[must_use]
    pub fn best() -> Self {
        *Self::all().last().unwrap_or(&Self::Scalar)
    }

    /// Writes to `found` each position at which two pages, equal before their first byte, begin or cease to differ; a difference
    /// that lasts to the end ends there. Returns the number of positions, which is even.
    ///
    /// # Panics
    /// The pages differ in length, are longer than 65535 bytes, or `found` has fewer than [`room`] entries.
    #[must_use]
    pub fn flips(self, old: &[u8], new: &[u8], found: &mut [u16]) -> usize {
        assert!(old.len() == new.len() && u16::try_from(old.len()).is_ok() && found.len() >= room(old.len()));
        match self {
            Self::Scalar => flips(old, new, found, differing),
            #[cfg(target_arch = "x86_64")]
            // SAFETY: `all` gives this level where the processor has the instructions, and nothing else makes one.
            Self::Avx2 => unsafe { x86::flips_avx2(old, new, found) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as above.
            Self::Avx512 => unsafe { x86::flips_avx512(old, new, found) },
        }
    }
}

/// The common part; `mask` compares 64 bytes.
#[inline(always)]
#[allow(clippy::inline_always, clippy::cast_possible_truncation)] // compiled anew for each level; positions fit by the assertion
fn flips(old: &[u8], new: &[u8], found: &mut [u16], mask: impl Fn(&[u8; STEP], &[u8; STEP]) -> u64) -> usize {
    let (mut count, mut carry, mut base) = (0, 0, 0);
    let (whole_old, rest_old) = old.as_chunks::<STEP>();
    let (whole_new, rest_new) = new.as_chunks::<STEP>();
    // First the masks of a group, with no branch that could be guessed wrong and hold up the reading; then those with flips.
    let mut masks = [0; GROUP];
    for (a, b) in whole_old.chunks(GROUP).zip(whole_new.chunks(GROUP)) {
        let mut with_flips = 0_u64;
        for (at, ((a, b), slot)) in a.iter().zip(b).zip(&mut masks).enumerate() {
            let bits = mask(a, b);
            *slot = bits ^ (bits << 1 | carry);
            with_flips |= u64::from(*slot != 0) << at;
            carry = bits >> (STEP - 1);
        }
        while with_flips != 0 {
            let at = with_flips.trailing_zeros() as usize;
            take(masks[at % GROUP], base + at * STEP, found, &mut count);
            with_flips &= with_flips - 1;
        }
        base += a.len() * STEP;
    }
    if !rest_old.is_empty() {
        let (mut a, mut b) = ([0; STEP], [0; STEP]);
        a[..rest_old.len()].copy_from_slice(rest_old);
        b[..rest_new.len()].copy_from_slice(rest_new);
        let bits = differing(&a, &b);
        // What follows the page is equal, so a difference that lasts to the end ceases there.
        take(bits ^ (bits << 1 | carry), base, found, &mut count);
    } else if carry != 0 {
        found[count] = base as u16;
        count += 1;
    }
    count
}

/// The positions of the set bits.
#[inline(always)]
#[allow(clippy::inline_always, clippy::cast_possible_truncation)]
fn take(mut bits: u64, base: usize, found: &mut [u16], count: &mut usize) {
    let mut left = bits.count_ones() as usize;
    let mut at = *count;
    *count += left;
    while left > 0 {
        let four: &mut [u16; UNROLL] = (&mut found[at..at + UNROLL]).try_into().unwrap_or_else(|_| unreachable!());
        for position in four {
            *position = (base + bits.trailing_zeros() as usize) as u16;
            bits &= bits.wrapping_sub(1);
        }
        at += UNROLL;
        left = left.saturating_sub(UNROLL);
    }
}

/// A bit for each byte that differs, eight bytes at a time.
#[inline(always)]
#[allow(clippy::inline_always)]
fn differing(old: &[u8; STEP], new: &[u8; STEP]) -> u64 {
    const LOW: u64 = 0x7f7f_7f7f_7f7f_7f7f;
    if old == new {
        return 0;
    }
    let mut bits = 0;
    for (at, (a, b)) in old.as_chunks::<8>().0.iter().zip(new.as_chunks::<8>().0).enumerate() {
        let x = u64::from_le_bytes(*a) ^ u64::from_le_bytes(*b);
        // The top bit of each byte that is not zero, then these eight bits side by side.
        let top = (((x & LOW) + LOW) | x) & !LOW;
        bits |= ((top >> 7).wrapping_mul(0x0102_0408_1020_4080) >> 56) << (8 * at);
    }
    bits
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::{
        _MM_HINT_T1, _mm_prefetch, _mm256_cmpeq_epi8, _mm256_loadu_si256, _mm256_movemask_epi8, _mm512_cmpneq_epi8_mask, _mm512_loadu_si512,
    };

    use super::{STEP, flips};

    /// Bytes of the page behind this one to ask memory for: the processor looks ahead by itself, but not from one page into the next,
    /// and the guesses that the positions depend on would wait for it.
    const AHEAD: usize = 4 * STEP;

    /// Pages are mostly compared in the order in which they lie in memory.
    #[inline(always)]
    #[allow(clippy::inline_always)]
    fn look_ahead(pages: [&[u8]; 2]) {
        for page in pages {
            for at in (page.len()..page.len() + AHEAD).step_by(STEP) {
                // SAFETY: a hint, which may name any address.
                unsafe { _mm_prefetch::<_MM_HINT_T1>(page.as_ptr().wrapping_add(at).cast()) };
            }
        }
    }

    #[target_feature(enable = "avx2,bmi1,popcnt")]
    pub fn flips_avx2(old: &[u8], new: &[u8], found: &mut [u16]) -> usize {
        look_ahead([old, new]);
        flips(old, new, found, |a, b| {
            let half = |at: usize| {
                // SAFETY: half of an array of 64 bytes; unaligned loads, with AVX2 there as the function says.
                let equal =
                    unsafe { _mm256_cmpeq_epi8(_mm256_loadu_si256(a[at..].as_ptr().cast()), _mm256_loadu_si256(b[at..].as_ptr().cast())) };
                u64::from(_mm256_movemask_epi8(equal).cast_unsigned())
            };
            !(half(0) | half(STEP / 2) << 32)
        })
    }

    #[target_feature(enable = "avx512f,avx512bw,bmi1,popcnt")]
    pub fn flips_avx512(old: &[u8], new: &[u8], found: &mut [u16]) -> usize {
        look_ahead([old, new]);
        flips(old, new, found, |a, b| {
            // SAFETY: an array of 64 bytes; unaligned loads, with AVX-512BW there as the function says.
            unsafe { _mm512_cmpneq_epi8_mask(_mm512_loadu_si512(a.as_ptr().cast()), _mm512_loadu_si512(b.as_ptr().cast())) }
        })
    }
}

#[cfg(test)]
#[cfg_attr(test, allow(clippy::unwrap_used, clippy::cast_possible_truncation))]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// By definition.
    fn slowly(old: &[u8], new: &[u8]) -> Vec<u16> {
        let differs = |at: usize| at < old.len() && old[at] != new[at];
        (0..=old.len()).filter(|at| differs(*at) != (*at > 0 && differs(at - 1))).map(|at| at as u16).collect()
    }

    fn each_level(old: &[u8], new: &[u8]) {
        for level in Level::all() {
            let mut found = vec![0xdead; room(old.len())];
            let count = level.flips(old, new, &mut found);
            assert_eq!(found[..count], slowly(old, new), "{level:?}");
        }
    }

    proptest! {
        #[test]
        fn every_level_finds_the_same(
            old in prop::collection::vec(any::<u8>(), 0..700),
            runs in prop::collection::vec((any::<prop::sample::Index>(), 1_usize..200, 1_u8..), 0..12),
        ) {
            let mut new = old.clone();
            for (at, len, bits) in runs {
                if !old.is_empty() {
                    let at = at.index(old.len());
                    let end = old.len().min(at + len);
                    new[at..end].iter_mut().for_each(|byte| *byte ^= bits);
                }
            }
            each_level(&old, &new);
        }

        #[test]
        fn anything(pair in prop::collection::vec((0_u8..3, 0_u8..3), 0..300)) {
            let (old, new): (Vec<u8>, Vec<u8>) = pair.into_iter().unzip();
            each_level(&old, &new);
        }
    }

    #[test]
    fn as_many_as_can_be() {
        for len in [64, 4096, 4095, 65535] {
            let old = vec![0; len];
            let new: Vec<u8> = (0..len).map(|i| (i % 2) as u8).collect();
            each_level(&old, &new);
            each_level(&new, &old);
            each_level(&old, &vec![1; len]);
        }
    }
}
