//! Where a monitor listens: `unix:PATH` or `tcp:HOST:PORT`.

use std::fs;
use std::io;
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use crate::{Error, ErrorKind, Result};

/// A listening socket, not blocking.
#[derive(Debug)]
pub(super) struct Bound {
    pub(super) socket: OwnedFd,
    /// As it was asked for, with the port that was chosen.
    pub(super) address: String,
    pub(super) path: Option<Arc<SocketPath>>,
}

/// The file of a unix socket; removed when it is dropped or earlier, unless somebody put another in its place.
#[derive(Debug)]
pub(super) struct SocketPath {
    path: PathBuf,
    identity: (u64, u64),
}

impl SocketPath {
    fn new(path: &Path) -> io::Result<Self> {
        let found = fs::symlink_metadata(path)?;
        Ok(Self { path: path.to_owned(), identity: (found.dev(), found.ino()) })
    }

    pub(super) fn remove(&self) {
        if fs::symlink_metadata(&self.path).is_ok_and(|found| (found.dev(), found.ino()) == self.identity) {
            // Somebody else may be faster; what counts is that it is gone.
            let _ = fs::remove_file(&self.path);
        }
    }
}

impl Drop for SocketPath {
    fn drop(&mut self) {
        self.remove();
    }
}

fn error(address: &str, cause: impl std::fmt::Display) -> Error {
    Error::new(ErrorKind::Listen, format!("cannot listen for QMP on `{address}`: {cause}"))
}

/// Listens on `address`. All failures are of kind `listen`.
pub(super) fn bind(address: &str) -> Result<Bound> {
    let bound = match address.split_once(':') {
        Some(("unix", path)) if !path.is_empty() => bind_unix(address, Path::new(path)),
        Some(("tcp", rest)) => bind_tcp(address, rest),
        _ => return Err(error(address, "say `unix:PATH` or `tcp:HOST:PORT`")),
    };
    bound.map_err(|e| match e.kind() {
        io::ErrorKind::AddrInUse => error(address, "the address is in use; stop who listens there or choose another"),
        _ => error(address, e),
    })
}

fn bind_tcp(address: &str, rest: &str) -> io::Result<Bound> {
    let usage = || io::Error::new(io::ErrorKind::InvalidInput, "say `tcp:HOST:PORT`");
    let (host, port) = rest.rsplit_once(':').ok_or_else(usage)?;
    let port: u16 = port.parse().map_err(|_| usage())?;
    let name = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')).unwrap_or(host);
    let listener = TcpListener::bind((if name.is_empty() { "0.0.0.0" } else { name }, port))?;
    listener.set_nonblocking(true)?;
    let address = if port == 0 { format!("tcp:{host}:{}", listener.local_addr()?.port()) } else { address.to_owned() };
    Ok(Bound { socket: listener.into(), address, path: None })
}

fn bind_unix(address: &str, path: &Path) -> io::Result<Bound> {
    let listener = match UnixListener::bind(path) {
        Err(e) if e.kind() == io::ErrorKind::AddrInUse && is_stale(path) => {
            fs::remove_file(path)?;
            UnixListener::bind(path)?
        }
        other => other?,
    };
    listener.set_nonblocking(true)?;
    Ok(Bound { socket: listener.into(), address: address.to_owned(), path: Some(Arc::new(SocketPath::new(path)?)) })
}

/// A socket that nobody listens on, left by a process that was killed.
fn is_stale(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_socket()) && matches!(connect(path), Err(Errno::CONNREFUSED))
}

/// Does not wait for a listener that is there but slow: that says `AGAIN`.
fn connect(path: &Path) -> std::result::Result<(), Errno> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let probe = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    rustix::net::connect(&probe, &SocketAddrUnix::new(path)?)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn refused(address: &str) -> String {
        let error = bind(address).unwrap_err();
        assert_eq!(error.kind, ErrorKind::Listen);
        assert!(error.message.contains(address), "{error}");
        error.message
    }

    #[test]
    fn tcp() {
        let bound = bind("tcp:127.0.0.1:0").unwrap();
        assert!(bound.address.starts_with("tcp:127.0.0.1:") && !bound.address.ends_with(":0"));
        assert!(refused(&bound.address).contains("in use"));
        if let Ok(bound) = bind("tcp:[::1]:0") {
            assert!(bound.address.starts_with("tcp:[::1]:"));
        }
        for bad in ["tcp:127.0.0.1", "tcp:127.0.0.1:x", "tcp:127.0.0.1:70000", "udp:x:1", "unix:", "x"] {
            assert!(refused(bad).contains("say `"), "{bad}");
        }
    }

    #[test]
    fn unix() {
        let dir = std::env::temp_dir().join(format!("qmig-address-{}", std::process::id()));
        fs::create_dir(&dir).unwrap();
        let path = dir.join("qmp");
        let address = format!("unix:{}", path.display());

        let first = bind(&address).unwrap();
        assert!(refused(&address).contains("in use"));
        drop(first);
        assert!(!path.exists());

        // What a killed process leaves behind is replaced; what is not a socket is not.
        drop(UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        let second = bind(&address).unwrap();
        // Somebody else's file at our path is left alone.
        fs::remove_file(&path).unwrap();
        fs::write(&path, "mine").unwrap();
        drop(second);
        assert!(path.exists());
        assert!(refused(&address).contains("in use"));
        refused(&format!("unix:{}/none/qmp", dir.display()));
        fs::remove_dir_all(&dir).unwrap();
    }
}
