//! A connection that breaks: what goes over it is passed on up to a given byte.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;

/// Pass `limit` bytes on, each time after `look` has seen them, then cut both ends; how many were passed.
pub fn relay(mut from: UnixStream, mut to: UnixStream, limit: usize, look: impl Fn(&[u8])) -> usize {
    let mut passed = 0;
    let mut buffer = [0; 4096];
    while passed < limit {
        let most = buffer.len().min(limit - passed);
        match from.read(&mut buffer[..most]) {
            Ok(0) | Err(_) => break,
            Ok(n) => {
                look(&buffer[..n]);
                if to.write_all(&buffer[..n]).is_err() {
                    break;
                }
                passed += n;
            }
        }
    }
    // Whoever ends first ends the whole connection, as a broken network does; both may have gone already.
    let _ = from.shutdown(Shutdown::Both);
    let _ = to.shutdown(Shutdown::Both);
    passed
}
