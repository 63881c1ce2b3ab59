//! A file system in memory that fills up.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Mounted until it is dropped.
#[derive(Debug)]
pub struct Tmpfs(PathBuf);

impl Tmpfs {
    /// With room for `size`, as mount's option has it. None, with a word on standard error, where this may not be mounted and
    /// `QMIG_REQUIRE_MOUNT` does not ask for it.
    pub fn mount(size: &str) -> Option<Self> {
        static MADE: AtomicUsize = AtomicUsize::new(0);
        let number = MADE.fetch_add(1, Ordering::Relaxed);
        let place = std::env::temp_dir().join(format!("qmig-small-tmpfs-{}-{number}", std::process::id()));
        std::fs::create_dir(&place).unwrap();
        let made = Self(place);
        if made.mounted(&format!("size={size}")) {
            return Some(made);
        }
        std::fs::remove_dir(&made.0).unwrap();
        std::mem::forget(made);
        assert!(std::env::var_os("QMIG_REQUIRE_MOUNT").is_none(), "a small tmpfs is required here and cannot be mounted");
        let _ = writeln!(std::io::stderr(), "SKIPPED: a small tmpfs cannot be mounted; run as root");
        None
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Room for `size` from now on.
    pub fn resize(&self, size: &str) {
        assert!(self.mounted(&format!("remount,size={size}")));
    }

    fn mounted(&self, options: &str) -> bool {
        let status = Command::new("mount").args(["-t", "tmpfs", "-o", options, "tmpfs"]).arg(&self.0).status();
        status.is_ok_and(|status| status.success())
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        // Lazily: a file in it may be mapped still.
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
        let _ = std::fs::remove_dir(&self.0);
    }
}
