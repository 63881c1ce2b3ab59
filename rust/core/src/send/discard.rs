//! Discard lists (spec/stream 9.3): what the destination has to drop because it will be sent again, in whole host pages.

use std::sync::Arc;

use crate::ram::{Bitmap, Block};
use crate::wire::consts::{PAGE_BYTES, PAGE_SIZE};
use crate::wire::{Command, Output};

/// Ranges of one command.
const RANGES: usize = 12;

/// Target pages of a host page of `block`.
pub fn ratio(block: &Arc<Block>) -> usize {
    // A page size is mapped memory's, so it fits; that of a block on ordinary pages is the target page.
    usize::try_from(block.page_size() / PAGE_SIZE).unwrap_or(1).max(1)
}

/// Makes every host page of `ratio` target pages all dirty that is dirty in part; how many target pages are new.
pub fn complete(dirty: &mut Bitmap, ratio: usize) -> u64 {
    let (mut from, mut new) = (0, 0);
    while ratio > 1
        && let Some(page) = dirty.next_set(from)
    {
        let start = page - page % ratio;
        from = (start + ratio).min(dirty.len());
        new += dirty.set_range(start..from);
    }
    new
}

/// Appends the commands that discard the `stale` pages of `block`; none if there are none.
pub fn commands(out: &mut Output, block: &Arc<Block>, stale: &Bitmap) {
    let mut runs = stale.runs().map(|run| ((run.start * PAGE_BYTES) as u64, (run.len() * PAGE_BYTES) as u64)).peekable();
    while runs.peek().is_some() {
        let ranges = runs.by_ref().take(RANGES).collect();
        out.command(&Command::RamDiscard { name: block.name().as_bytes().to_vec(), ranges });
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::wire::{Decoder, DecoderOptions, Event, Input, NullSink};

    fn bitmap(len: usize, set: &[usize]) -> Bitmap {
        let mut bits = Bitmap::new(len);
        for page in set {
            bits.set(*page);
        }
        bits
    }

    #[test]
    fn host_pages_are_all_or_nothing() {
        let mut bits = bitmap(2048, &[5, 1023, 1024]);
        assert_eq!(complete(&mut bits, 512), 3 * 512 - 3);
        assert_eq!((bits.count(), bits.next_clear(0)), (1536, Some(1536)));
        assert_eq!(complete(&mut bits, 512), 0);
        let mut small = bitmap(8, &[3]);
        assert_eq!((complete(&mut small, 1), small.count()), (0, 1));
    }

    #[test]
    fn twelve_ranges_a_command_and_none_for_nothing() {
        let block = Block::anon("ram", 64 * PAGE_SIZE).unwrap();
        let mut out = Output::new();
        commands(&mut out, &block, &Bitmap::new(64));
        assert!(out.is_empty());
        out.file_header();
        commands(&mut out, &block, &bitmap(64, &(0..26).map(|n| 2 * n + 1).collect::<Vec<_>>()));
        let options = DecoderOptions { configuration: false, footers: true, description: false, ..DecoderOptions::default() };
        let mut decoder = Decoder::new(Input::from_bytes(out.into_vec(), 0), options);
        let mut found = Vec::new();
        while let Ok(Event::Command(Command::RamDiscard { name, ranges }, _)) = decoder.next(&mut NullSink) {
            assert_eq!(name, b"ram");
            found.push(ranges);
        }
        assert_eq!(found.iter().map(Vec::len).collect::<Vec<_>>(), [12, 12, 2]);
        assert_eq!((found[0][0], found[2][1]), ((0x1000, 0x1000), (51 * 0x1000, 0x1000)));
    }
}
