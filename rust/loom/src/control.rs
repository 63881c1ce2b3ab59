//! The commit word.

#[path = "../../core/src/control/fate.rs"]
pub mod fate;
pub mod model;
#[path = "../../core/src/control/status.rs"]
pub mod status;
