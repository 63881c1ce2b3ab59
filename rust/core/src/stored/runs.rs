//! Which pages of a block came, and where each has its bytes: neighbours that go on alike are one entry.

use std::collections::BTreeMap;

use crate::wire::consts::PAGE_SIZE;

/// Where the pages of a run have their bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Source {
    /// All bytes are this one.
    Fill(u8),
    /// The first stands in this file at `at`, each other one `stride` bytes behind the one before.
    File { file: u16, at: u64, stride: u64 },
    /// They stand one behind the other in the pool, from there on.
    Pool(u64),
}

impl Source {
    /// One page that stands in a file as it is.
    pub fn page(file: u16, at: u64) -> Self {
        Self::File { file, at, stride: PAGE_SIZE }
    }

    /// The same without the first `pages`.
    fn after(self, pages: u64) -> Self {
        match self {
            Self::Fill(_) => self,
            Self::File { file, at, stride } => Self::File { file, at: at + pages * stride, stride },
            Self::Pool(at) => Self::Pool(at + pages * PAGE_SIZE),
        }
    }

    /// `pages` pages of this and then the one page of `next`, if that can be said as one.
    fn with(self, pages: u64, next: Self) -> Option<Self> {
        match (self, next) {
            (Self::File { file, at, .. }, Self::File { file: other, at: behind, .. }) if pages == 1 => {
                let stride = behind.checked_sub(at).filter(|stride| file == other && *stride >= PAGE_SIZE)?;
                Some(Self::File { file, at, stride })
            }
            (Self::File { file, .. }, Self::File { file: other, at, .. }) => {
                let Self::File { at: wanted, .. } = self.after(pages) else { return None };
                (file == other && at == wanted).then_some(self)
            }
            _ => (self.after(pages) == next).then_some(self),
        }
    }
}

/// The pages of one block that came, each as it came last.
#[derive(Debug, Default)]
pub(super) struct Runs {
    /// By the offset of the first page: how many, and where.
    runs: BTreeMap<u64, (u64, Source)>,
    pages: u64,
}

impl Runs {
    /// How many pages came.
    pub fn pages(&self) -> u64 {
        self.pages
    }

    /// Where the page at `offset` has its bytes.
    pub fn get(&self, offset: u64) -> Option<Source> {
        self.at(offset).ok().map(|(_, source)| source)
    }

    /// What begins at `offset`: end and place of the run that goes on there, or, as an error, where the next one begins.
    pub fn at(&self, offset: u64) -> std::result::Result<(u64, Source), Option<u64>> {
        match self.runs.range(..=offset).next_back() {
            Some((start, (pages, source))) if offset - start < pages * PAGE_SIZE => {
                Ok((start + pages * PAGE_SIZE, source.after((offset - start) / PAGE_SIZE)))
            }
            _ => Err(self.runs.range(offset..).next().map(|(start, _)| *start)),
        }
    }

    /// The page at `offset` is this one now; what it was before, if that was another.
    pub fn set(&mut self, offset: u64, source: Source) -> Option<Source> {
        let mut replaced = None;
        match self.runs.range(..=offset).next_back() {
            Some((&start, &(pages, old))) if offset - start < pages * PAGE_SIZE => {
                let before = (offset - start) / PAGE_SIZE;
                let page = old.after(before);
                if page == source {
                    return None;
                }
                replaced = Some(page);
                self.runs.remove(&start);
                if before > 0 {
                    self.runs.insert(start, (before, old));
                }
                if before + 1 < pages {
                    self.runs.insert(offset + PAGE_SIZE, (pages - before - 1, old.after(before + 1)));
                }
            }
            _ => self.pages += 1,
        }
        if let Some((start, (pages, last))) = self.runs.range_mut(..offset).next_back()
            && start + *pages * PAGE_SIZE == offset
            && let Some(both) = last.with(*pages, source)
        {
            (*pages, *last) = (*pages + 1, both);
        } else {
            self.runs.insert(offset, (1, source));
        }
        replaced
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Like the records of a stream: places in a file rise, those of the pool are its own.
    fn source(kind: u8, number: u64) -> Source {
        match kind {
            0..2 => Source::Fill(kind),
            2 => Source::page(0, number * 4104),
            3 => Source::page(1, number * PAGE_SIZE),
            _ => Source::Pool(number * PAGE_SIZE),
        }
    }

    proptest! {
        #[test]
        fn like_a_map_of_pages(sets in prop::collection::vec((0_u64..24, 0_u8..5, 1_u64..6), 0..60)) {
            let mut runs = Runs::default();
            let mut pages = BTreeMap::new();
            let plain = |source| match source {
                Source::File { file, at, .. } => Source::page(file, at),
                other => other,
            };
            let mut number = 0;
            for (first, kind, count) in sets {
                for page in first..first + count {
                    number += 1;
                    let source = source(kind, number);
                    let before = pages.insert(page, source).filter(|before| *before != source);
                    prop_assert_eq!(runs.set(page * PAGE_SIZE, source).map(plain), before);
                }
            }
            prop_assert_eq!(runs.pages(), pages.len() as u64);
            for page in 0..32 {
                prop_assert_eq!(runs.get(page * PAGE_SIZE).map(plain), pages.get(&page).copied().map(plain));
                if let Err(next) = runs.at(page * PAGE_SIZE) {
                    prop_assert_eq!(next, pages.range(page..).next().map(|(page, _)| page * PAGE_SIZE));
                }
            }
        }
    }

    #[test]
    fn neighbours_are_one_entry() {
        let mut runs = Runs::default();
        for page in 0..1000 {
            runs.set(page * PAGE_SIZE, source(if page < 500 { 2 } else { 0 }, page));
        }
        assert_eq!(runs.runs.len(), 2);
        assert_eq!(runs.pages(), 1000);
    }
}
