//! What experiments with postcopy need: a thread that touches memory and measures each touch, and a link of a known speed.
//!
//! Neither ever attaches to Python, so a touch that waits for its page holds nothing that others need.

mod shaper;
#[cfg(test)]
mod tests;
mod toucher;

pub use shaper::{Link, Shaper};
pub use toucher::{Order, Toucher, Touches, fill};
