//! All RAM blocks of one machine, in the order in which they migrate.

use std::collections::HashMap;
use std::sync::Arc;

use super::Block;
use crate::{Error, ErrorKind, Result};

/// The blocks: greatest length first, then in the order in which they were registered.
#[derive(Debug, Clone, Default)]
pub struct RamList {
    blocks: Vec<Arc<Block>>,
    by_name: HashMap<String, usize>,
}

impl RamList {
    /// The list of `blocks`, given in registration order. Two of one name are refused.
    pub fn new(mut blocks: Vec<Arc<Block>>) -> Result<Self> {
        blocks.sort_by_key(|block| std::cmp::Reverse(block.max_length()));
        let mut by_name = HashMap::with_capacity(blocks.len());
        for (index, block) in blocks.iter().enumerate() {
            if by_name.insert(block.name().to_owned(), index).is_some() {
                let text = format!("two RAM blocks are named {:?}; every block needs its own name", block.name());
                return Err(Error::new(ErrorKind::InvalidArgument, text));
            }
        }
        Ok(Self { blocks, by_name })
    }

    /// In migration order.
    pub fn blocks(&self) -> &[Arc<Block>] {
        &self.blocks
    }

    /// In migration order.
    pub fn iter(&self) -> std::slice::Iter<'_, Arc<Block>> {
        self.blocks.iter()
    }

    /// Number of blocks.
    pub fn len(&self) -> usize {
        self.blocks.len()
    }

    /// A machine without RAM.
    pub fn is_empty(&self) -> bool {
        self.blocks.is_empty()
    }

    /// The index of a block by its name on the wire.
    pub fn find(&self, name: &[u8]) -> Option<usize> {
        self.by_name.get(std::str::from_utf8(name).ok()?).copied()
    }

    /// The sum of the used lengths in bytes.
    pub fn total(&self) -> u64 {
        self.blocks.iter().map(|block| block.used_length()).sum()
    }
}

impl<'a> IntoIterator for &'a RamList {
    type Item = &'a Arc<Block>;
    type IntoIter = std::slice::Iter<'a, Arc<Block>>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

#[cfg(test)]
#[cfg_attr(test, allow(clippy::unwrap_used, clippy::cast_possible_truncation))]
mod tests {
    use super::*;

    fn list(blocks: &[(&str, u64)]) -> Result<RamList> {
        RamList::new(blocks.iter().map(|(name, size)| Block::anon(name, *size)).collect::<Result<_>>()?)
    }

    #[test]
    fn greatest_first_then_as_registered() {
        let made = list(&[("rom", 0x1000), ("b", 0x2000), ("ram", 0x8000), ("a", 0x2000)]).unwrap();
        assert_eq!(made.iter().map(|b| b.name()).collect::<Vec<_>>(), ["ram", "b", "a", "rom"]);
        assert_eq!((made.total(), made.find(b"a"), made.find(b"c"), made.find(b"\xff")), (0xd000, Some(2), None, None));
        assert!(!made.is_empty() && made.len() == 4 && RamList::default().is_empty());
    }

    #[test]
    fn a_name_is_used_once() {
        let error = list(&[("ram", 0x1000), ("ram", 0x2000)]).unwrap_err();
        assert_eq!(error.kind, ErrorKind::InvalidArgument);
    }
}
