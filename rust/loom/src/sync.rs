//! What `crate::sync` is here: loom's atomics and locks.
//!
//! Loom takes a `SeqCst` load for an `Acquire` one, which may read an old value where the real one may not. A read-modify-write that
//! changes nothing always reads the last value; for words that are only ever used with `SeqCst` that is the same as a `SeqCst` load.

pub use loom::sync::{Mutex, MutexGuard};

pub mod atomic {
    //! As `std::sync::atomic`.

    pub use loom::sync::atomic::{AtomicBool, Ordering};

    macro_rules! word {
        ($name:ident, $int:ty) => {
            /// As in std.
            #[derive(Debug)]
            pub struct $name(loom::sync::atomic::$name);

            impl $name {
                pub fn new(value: $int) -> Self {
                    Self(loom::sync::atomic::$name::new(value))
                }

                pub fn load(&self, order: Ordering) -> $int {
                    if order == Ordering::SeqCst { self.0.fetch_or(0, order) } else { self.0.load(order) }
                }

                pub fn store(&self, value: $int, order: Ordering) {
                    self.0.store(value, order);
                }

                pub fn swap(&self, value: $int, order: Ordering) -> $int {
                    self.0.swap(value, order)
                }

                pub fn fetch_or(&self, value: $int, order: Ordering) -> $int {
                    self.0.fetch_or(value, order)
                }

                pub fn fetch_and(&self, value: $int, order: Ordering) -> $int {
                    self.0.fetch_and(value, order)
                }

                pub fn fetch_add(&self, value: $int, order: Ordering) -> $int {
                    self.0.fetch_add(value, order)
                }

                pub fn fetch_sub(&self, value: $int, order: Ordering) -> $int {
                    self.0.fetch_sub(value, order)
                }

                pub fn compare_exchange(&self, old: $int, new: $int, good: Ordering, bad: Ordering) -> Result<$int, $int> {
                    self.0.compare_exchange(old, new, good, bad)
                }
            }
        };
    }

    word!(AtomicU8, u8);
    word!(AtomicU64, u64);
}
