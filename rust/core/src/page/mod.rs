//! One page in, bytes out.
