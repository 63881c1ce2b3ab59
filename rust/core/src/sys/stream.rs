//! Copying past the caches, with non-temporal stores where the processor has them; elsewhere a plain copy.
//!
//! A received page is read next by the guest, if at all: fetching its old content into the cache to overwrite it, and
//! pushing the receive buffer out meanwhile, doubles the cost of the copy.

/// Copies `len` bytes; how they become visible to other threads is up to [`settle`].
///
/// # Safety
/// `from` is readable, `into` writable, both for `len` bytes, and they do not overlap.
pub unsafe fn copy(into: *mut u8, from: *const u8, len: usize) {
    #[cfg(target_arch = "x86_64")]
    if into.addr().is_multiple_of(avx::LANE) && len.is_multiple_of(avx::STEP) && std::arch::is_x86_feature_detected!("avx") {
        // SAFETY: the caller's promise, and what was just checked.
        return unsafe { avx::copy(into, from, len) };
    }
    // SAFETY: the caller's promise.
    unsafe { std::ptr::copy_nonoverlapping(from, into, len) }
}

/// Orders all earlier [`copy`] calls of this thread before whatever it does next.
pub fn settle() {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: SSE is part of x86-64.
    unsafe {
        std::arch::x86_64::_mm_sfence();
    }
}

#[cfg(target_arch = "x86_64")]
mod avx {
    use std::arch::x86_64::{__m256i, _mm256_loadu_si256, _mm256_stream_si256};

    pub const LANE: usize = size_of::<__m256i>();
    /// Bytes a turn: two cache lines.
    pub const STEP: usize = 4 * LANE;

    /// # Safety
    /// AVX is available, `into` is aligned to `LANE`, `len` is a multiple of `STEP`; else as for the function outside.
    #[target_feature(enable = "avx")]
    pub unsafe fn copy(into: *mut u8, from: *const u8, len: usize) {
        for offset in (0..len).step_by(STEP) {
            let load = |lane: usize| {
                // SAFETY: inside the range; unaligned load.
                unsafe { _mm256_loadu_si256(from.wrapping_add(offset + lane * LANE).cast()) }
            };
            let lanes = [load(0), load(1), load(2), load(3)];
            for (lane, bytes) in lanes.into_iter().enumerate() {
                // SAFETY: inside the range; aligned, for the start is and the steps are.
                unsafe { _mm256_stream_si256(into.wrapping_add(offset + lane * LANE).cast(), bytes) };
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn copies_what_a_plain_copy_copies(bytes in prop::collection::vec(any::<u8>(), 0..9000), shift in 0_usize..40, step: bool) {
            let len = if step { bytes.len() / 128 * 128 } else { bytes.len() };
            let mut room = vec![0xaa_u8; len + shift + 64];
            let base = room.as_mut_ptr();
            // Half of the cases aligned, so that the vector way is taken.
            let at = if shift < 20 { base.align_offset(32) } else { shift };
            // SAFETY: `at + len` lies inside `room`.
            unsafe { copy(base.wrapping_add(at), bytes.as_ptr(), len) };
            settle();
            prop_assert_eq!(&room[at..at + len], &bytes[..len]);
            prop_assert!(room[..at].iter().chain(&room[at + len..]).all(|b| *b == 0xaa));
        }
    }
}
