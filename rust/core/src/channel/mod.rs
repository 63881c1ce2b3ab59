//! Byte transports behind one face: tcp, unix, fd, exec, file.

mod cancel;

pub use cancel::{Cancel, Closer};
