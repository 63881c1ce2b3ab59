//! What both sides ask before they open a channel: do mapped-ram and multifd go with it (spec/stream 13, spec/control-plane 5.3).

use super::Control;
use crate::channel::{Address, Uri};
use crate::{Error, ErrorKind, Result};

/// The capability for pages at fixed places of a file.
const MAPPED_RAM: &str = "mapped-ram";
/// The capability for several channels; of a file: for several threads.
const MULTIFD: &str = "multifd";

impl Control {
    /// Pages shall stand at fixed places of a file: how many threads write or read them; none if they travel in the stream.
    pub fn mapped_ram(&self) -> Option<usize> {
        let threads = || if self.capability(MULTIFD) { usize::from(self.parameters().multifd_channels) } else { 1 };
        self.capability(MAPPED_RAM).then(threads)
    }

    /// Refuses a `uri` that the capabilities do not go with: pages at fixed places need a file, and channels that are no threads of a
    /// file further connections.
    pub fn check_transport(&self, uri: &Uri) -> Result<()> {
        let sockets = matches!(uri.address(), Address::Tcp(_) | Address::Unix(_));
        let file = matches!(uri.address(), Address::File { .. } | Address::Fd(_));
        match self.mapped_ram() {
            Some(_) if !file => Err(no_file(uri)),
            None if self.capability(MULTIFD) && !sockets => {
                let text = format!("{uri}: multifd needs further connections; use tcp: or unix:, or switch it off");
                Err(Error::new(ErrorKind::InvalidArgument, text))
            }
            _ => Ok(()),
        }
    }
}

/// What was opened has no positions.
pub fn no_file(uri: &Uri) -> Error {
    Error::new(ErrorKind::BadUri, format!("{uri}: with `mapped-ram` pages have fixed places; use file:PATH, or fd: with a regular file"))
}
