//! Is a range of memory all zero? A vector version chosen at run time, with its scalar twin.

/// Bytes looked at first: most pages that are not zero show it in their first or last word.
const WORD: usize = size_of::<u64>();

/// True if `len` bytes at `from` read zero.
///
/// # Safety
/// The bytes are mapped readable. They may change meanwhile; then either answer may be given.
pub unsafe fn is_zero(from: *const u8, len: usize) -> bool {
    if len < 2 * WORD {
        // SAFETY: the caller's promise.
        return unsafe { is_zero_scalar(from, len) };
    }
    // One after the other: most pages that are not zero are told by the first, and the second costs a cache miss of its own.
    for end in [from, from.wrapping_add(len - WORD)] {
        // SAFETY: both words lie inside the range; unaligned loads.
        if unsafe { end.cast::<u64>().read_unaligned() } != 0 {
            return false;
        }
    }
    #[cfg(target_arch = "x86_64")]
    if len >= avx2::STEP && std::arch::is_x86_feature_detected!("avx2") {
        // SAFETY: AVX2 is there, and the caller's promise.
        return unsafe { avx2::is_zero(from, len) };
    }
    // SAFETY: the caller's promise.
    unsafe { is_zero_scalar(from, len) }
}

/// Asks for the first bytes at `from` to be in the cache soon. Any address will do: a wrong one has no effect.
pub fn prefetch(from: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a hint, which never faults.
    unsafe {
        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(from.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = from;
}

/// The twin that every processor can run.
///
/// # Safety
/// As for [`is_zero`].
pub unsafe fn is_zero_scalar(from: *const u8, len: usize) -> bool {
    let words = len / WORD;
    let mut done = 0;
    while done < words {
        let stop = words.min(done + 8);
        let mut any = 0;
        for i in done..stop {
            // SAFETY: word `i` lies inside the range; unaligned load.
            any |= unsafe { from.wrapping_add(i * WORD).cast::<u64>().read_unaligned() };
        }
        if any != 0 {
            return false;
        }
        done = stop;
    }
    // SAFETY: the rest of the range, byte by byte.
    (words * WORD..len).all(|i| unsafe { from.wrapping_add(i).read() } == 0)
}

#[cfg(target_arch = "x86_64")]
mod avx2 {
    use std::arch::x86_64::{__m256i, _mm256_loadu_si256, _mm256_or_si256, _mm256_testz_si256};

    const LANE: usize = size_of::<__m256i>();
    /// Bytes a turn: four loads joined before the one branch.
    pub const STEP: usize = 4 * LANE;

    /// # Safety
    /// AVX2 is available, `len >= STEP`, and the bytes are mapped readable.
    #[target_feature(enable = "avx2")]
    pub unsafe fn is_zero(from: *const u8, len: usize) -> bool {
        let mut offset = 0;
        loop {
            let at = |lane: usize| {
                // SAFETY: offset + STEP <= len, by the loop below.
                unsafe { _mm256_loadu_si256(from.wrapping_add(offset + lane * LANE).cast()) }
            };
            let any = _mm256_or_si256(_mm256_or_si256(at(0), at(1)), _mm256_or_si256(at(2), at(3)));
            if _mm256_testz_si256(any, any) == 0 {
                return false;
            }
            if offset + STEP == len {
                return true;
            }
            // The last turn overlaps the one before rather than leaving a tail.
            offset = (offset + STEP).min(len - STEP);
        }
    }
}

#[cfg(test)]
#[cfg_attr(test, allow(clippy::unwrap_used, clippy::cast_possible_truncation))]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn both(bytes: &[u8]) -> (bool, bool) {
        // SAFETY: a slice of ours.
        unsafe { (is_zero(bytes.as_ptr(), bytes.len()), is_zero_scalar(bytes.as_ptr(), bytes.len())) }
    }

    proptest! {
        #[test]
        fn twins_agree(len in 0_usize..5000, shift in 0_usize..33, hits in prop::collection::vec((any::<prop::sample::Index>(), 1_u8..), 0..3)) {
            let mut bytes = vec![0_u8; len + shift];
            // A byte just outside must not be seen.
            bytes.extend_from_slice(&[0xff; 40]);
            if shift > 0 { bytes[shift - 1] = 0xff; }
            for (at, value) in &hits {
                if len > 0 { bytes[shift + at.index(len)] = *value; }
            }
            let expected = bytes[shift..shift + len].iter().all(|b| *b == 0);
            prop_assert_eq!(both(&bytes[shift..shift + len]), (expected, expected));
        }
    }

    #[test]
    fn every_single_byte_of_a_page_counts() {
        let mut page = vec![0_u8; 4096];
        assert_eq!(both(&page), (true, true));
        for i in 0..page.len() {
            page[i] = 1;
            assert_eq!(both(&page), (false, false), "byte {i}");
            page[i] = 0;
        }
    }
}
