//! The blocks of a stream as the places of its pages, shared by everybody who puts pages there.

use std::collections::HashMap;
use std::ops::Index;
use std::sync::Arc;

use crate::Result;
use crate::ram::{Block, PageTarget};

/// A target for each announced block, in the order of the list.
#[derive(Debug, Default)]
pub struct Places {
    targets: Vec<PageTarget>,
    index: HashMap<Vec<u8>, usize>,
}

impl Places {
    /// For these blocks.
    pub fn new(blocks: Vec<Arc<Block>>) -> Result<Self> {
        let index = blocks.iter().map(|block| block.name().as_bytes().to_vec()).zip(0..).collect();
        Ok(Self { targets: blocks.into_iter().map(PageTarget::new).collect::<Result<_>>()?, index })
    }

    /// The one of that name.
    pub fn find(&self, name: &[u8]) -> Option<&PageTarget> {
        self.index.get(name).map(|index| &self.targets[*index])
    }
}

impl Index<usize> for Places {
    type Output = PageTarget;

    fn index(&self, index: usize) -> &PageTarget {
        &self.targets[index]
    }
}
