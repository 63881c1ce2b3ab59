//! The bitmap that many set and one takes from.

use loom::sync::Arc;
use loom::sync::atomic::{AtomicUsize, Ordering};
use loom::thread;

use super::{AtomicBitmap, Bitmap};

/// Bits in different words by different writers, while somebody takes.
pub fn none_is_lost() {
    let bits = Arc::new(AtomicBitmap::new(128));
    let writers = [1, 65].map(|bit| {
        let bits = Arc::clone(&bits);
        thread::spawn(move || bits.set_range(bit..bit + 1))
    });
    let mut taken = Bitmap::new(128);
    bits.take(&mut taken);
    for writer in writers {
        writer.join().unwrap();
    }
    bits.take(&mut taken);
    assert_eq!(taken.runs().collect::<Vec<_>>(), [1..2, 65..66]);
}

/// Whoever finds a page's bit finds what was written to it before, whichever writer it hears of.
pub fn what_was_written_is_seen() {
    let bits = Arc::new(AtomicBitmap::new(128));
    let pages = Arc::new([AtomicUsize::new(0), AtomicUsize::new(0)]);
    let writers = [0, 1].map(|number| {
        let (bits, pages) = (Arc::clone(&bits), Arc::clone(&pages));
        thread::spawn(move || {
            pages[number].store(7, Ordering::Relaxed);
            bits.set(number * 64);
        })
    });
    let mut taken = Bitmap::new(128);
    bits.take(&mut taken);
    for number in [0, 1] {
        assert!(!taken.get(number * 64) || pages[number].load(Ordering::Relaxed) == 7);
    }
    for writer in writers {
        writer.join().unwrap();
    }
}
