//! `fd:`: a descriptor that somebody else opened. It is owned from here on; nothing is duplicated.

use std::os::fd::OwnedFd;

use rustix::fs::{FileType, OFlags};
use rustix::net::{SocketType, sockopt};

use super::{Direction, Uri, reason};
use crate::Result;

/// Checks that `fd` can carry a stream in this direction, and makes it close-on-exec.
pub(super) fn check(uri: &Uri, fd: OwnedFd, direction: Direction) -> Result<OwnedFd> {
    let kind = direction.kind();
    let failed = |errno| uri.error(kind, reason(errno));
    rustix::io::fcntl_setfd(&fd, rustix::io::FdFlags::CLOEXEC).map_err(failed)?;
    if FileType::from_raw_mode(rustix::fs::fstat(&fd).map_err(failed)?.st_mode) == FileType::Socket {
        if sockopt::socket_type(&fd).map_err(failed)? != SocketType::STREAM {
            return Err(uri.error(kind, "the descriptor is no stream socket"));
        }
        if sockopt::socket_acceptconn(&fd).map_err(failed)? {
            return Err(uri.error(kind, "the descriptor is a listening socket; pass a connected one"));
        }
        let _ = sockopt::set_tcp_nodelay(&fd, true); // other families refuse; everything else is left as its maker set it
        return Ok(fd);
    }
    let mode = rustix::fs::fcntl_getfl(&fd).map_err(failed)? & OFlags::RWMODE;
    match direction {
        Direction::Outgoing if mode == OFlags::RDONLY => Err(uri.error(kind, "the descriptor is not open for writing")),
        Direction::Incoming if mode == OFlags::WRONLY => Err(uri.error(kind, "the descriptor is not open for reading")),
        _ => Ok(fd),
    }
}
