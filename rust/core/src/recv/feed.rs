//! Where elements come from: the main channel, or the package that it brought.

use super::closed;
use super::main::Main;
use super::ram_loader::RamLoader;
use crate::Result;
use crate::wire::{Decoder, Event, NoSource, NullSink, PayloadSource};

/// What elements are read from, also by whoever reads a device payload.
#[derive(Debug, Default)]
pub struct Feed {
    /// None before `accept`, and from LISTEN on.
    pub main: Option<Main>,
    /// While a package is obeyed.
    pub package: Option<Decoder<NoSource>>,
}

impl Feed {
    /// The next event, its pages loaded.
    pub fn next(&mut self, loader: &mut RamLoader) -> Result<Event> {
        match (&mut self.package, &mut self.main) {
            (Some(package), _) => package.next(&mut NullSink),
            (None, Some(main)) => loader.feed(main),
            (None, None) => Err(closed()),
        }
    }

    /// The payload of a section was read.
    pub fn section_done(&mut self) -> Result<()> {
        match (&mut self.package, &mut self.main) {
            (Some(package), _) => package.section_done(),
            (None, Some(main)) => main.section_done(),
            (None, None) => Err(closed()),
        }
    }

    fn payload(&mut self) -> Result<&mut dyn PayloadSource> {
        match (&mut self.package, &mut self.main) {
            (Some(package), _) => Ok(package),
            (None, Some(main)) => Ok(main),
            (None, None) => Err(closed()),
        }
    }

    fn payload_ref(&self) -> Option<&dyn PayloadSource> {
        match (&self.package, &self.main) {
            (Some(package), _) => Some(package),
            (None, Some(main)) => Some(main),
            (None, None) => None,
        }
    }
}

impl PayloadSource for Feed {
    fn offset(&self) -> u64 {
        self.payload_ref().map_or(0, PayloadSource::offset)
    }

    fn buffered(&self) -> usize {
        self.payload_ref().map_or(0, PayloadSource::buffered)
    }

    fn read_exact(&mut self, out: &mut [u8]) -> Result<()> {
        self.payload()?.read_exact(out)
    }

    fn peek(&mut self, n: usize) -> Result<&[u8]> {
        self.payload()?.peek(n)
    }

    fn skip(&mut self, n: u64) -> Result<()> {
        self.payload()?.skip(n)
    }
}
