//! `unix:`: stream sockets in the file system.
//!
//! A socket file outlives its listener, so binding to one that nobody listens on replaces it. Whether somebody does is
//! asked by a datagram socket: the kernel refuses the type without the listener ever seeing a connection.

use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use super::tcp::{CONNECT_TIMEOUT, connect_within};
use super::{Cancel, Uri, reason};
use crate::{ErrorKind, Result};

/// A bound socket file; removed when dropped, if it is still ours.
#[derive(Debug)]
pub(super) struct SocketFile {
    path: PathBuf,
    identity: Option<(u64, u64)>,
}

pub(super) fn connect(uri: &Uri, path: &Path, cancel: &Cancel) -> Result<OwnedFd> {
    let address = address(uri, path)?;
    let fd = socket(SocketType::STREAM).map_err(|e| uri.error(ErrorKind::Connect, reason(e)))?;
    connect_within(fd, &address, cancel, CONNECT_TIMEOUT).map_err(|refusal| uri.error(refusal.kind(), refusal))
}

pub(super) fn listen(uri: &Uri, path: &Path) -> Result<(OwnedFd, SocketFile)> {
    let address = address(uri, path)?;
    let failed = |errno| uri.error(ErrorKind::Listen, reason(errno));
    let fd = socket(SocketType::STREAM).map_err(failed)?;
    let mut bound = rustix::net::bind(&fd, &address);
    if bound == Err(Errno::ADDRINUSE) {
        if !fs::symlink_metadata(path).is_ok_and(|m| m.file_type().is_socket()) {
            return Err(uri.error(ErrorKind::Listen, "address in use: there is a file of that name that is no socket; choose another path"));
        }
        if !is_stale(&address) {
            return Err(uri.error(ErrorKind::Listen, "address in use: another process listens there; choose another path"));
        }
        // Gone meanwhile is as good; what else is wrong, bind will say.
        let _ = fs::remove_file(path);
        bound = rustix::net::bind(&fd, &address);
    }
    bound.map_err(failed)?;
    let identity = fs::symlink_metadata(path).ok().map(|m| (m.dev(), m.ino()));
    let file = SocketFile { path: path.to_owned(), identity };
    rustix::net::listen(&fd, super::listen::BACKLOG).map_err(failed)?;
    Ok((fd, file))
}

impl SocketFile {
    /// How `query-migrate` names it.
    pub(super) fn describe(&self) -> serde_json::Value {
        serde_json::json!({"type": "unix", "path": self.path.to_string_lossy()})
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let now = fs::symlink_metadata(&self.path).ok().map(|m| (m.dev(), m.ino()));
        if now.is_some() && now == self.identity {
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn socket(kind: SocketType) -> rustix::io::Result<OwnedFd> {
    rustix::net::socket_with(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK, None)
}

fn address(uri: &Uri, path: &Path) -> Result<SocketAddrUnix> {
    SocketAddrUnix::new(path).map_err(|_| uri.error(ErrorKind::BadUri, "the path is too long for a socket (at most 107 bytes)"))
}

fn is_stale(address: &SocketAddrUnix) -> bool {
    socket(SocketType::DGRAM).is_ok_and(|probe| rustix::net::connect(&probe, address) == Err(Errno::CONNREFUSED))
}
