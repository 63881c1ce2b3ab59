//! A record that records nothing.

/// In place of the core's.
#[derive(Debug)]
pub struct Latency;

impl Latency {
    pub fn now(&self) -> u64 {
        1
    }

    pub fn blocked(&self, _thread: u32, _block: usize, _page: usize, _held: u64) {}

    pub fn read(&self, _block: usize, _page: usize, _woken: u64, _held: u64) {}

    pub fn requested(&self, _block: usize, _page: usize) {}

    pub fn placed(&self, _block: usize, _page: usize, _first: Option<u64>) {}
}
