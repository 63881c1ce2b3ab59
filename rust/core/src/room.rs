//! Memory for the larger buffers of a migration: where there is none the migration fails, and the machine lives on.

use crate::{Error, ErrorKind, Result};

/// `bytes` zero bytes for `what`; kind `no-memory`.
pub fn zeroed(bytes: usize, what: &str) -> Result<Vec<u8>> {
    let mut made = Vec::new();
    made.try_reserve_exact(bytes)
        .map_err(|_| Error::new(ErrorKind::NoMemory, format!("there is no memory for {what} of {bytes} bytes")))?;
    made.resize(bytes, 0);
    Ok(made)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn what_is_there_and_what_is_not() {
        assert_eq!(zeroed(5, "a buffer").unwrap(), [0; 5]);
        let error = zeroed(usize::MAX / 4, "a buffer").unwrap_err();
        assert_eq!(error.kind, ErrorKind::NoMemory);
        assert!(error.message.starts_with("there is no memory for a buffer of "), "{error}");
    }
}
