//! One connection of an incoming postcopy: the way back and what is opened and cut with it.

use std::sync::Arc;

use super::back::Back;
use super::second::Second;
use crate::channel::{Cancel, Listener};
use crate::postcopy::Requests;
use crate::wire::ReturnMessage;
use crate::{Error, ErrorKind};

/// SHUT: the machine was not run here and never will be. Our own extension; to QEMU it is a failure like any other.
pub const NEVER_RAN: u32 = 2;

/// One connection: what was opened together and is cut together.
#[derive(Debug)]
pub struct Connection {
    /// The way back.
    pub back: Arc<Back>,
    /// Ends all of it.
    pub link: Cancel,
    /// The channel for requested pages, if there may be one.
    pub second: Option<Second>,
    /// Keeps the address, and turns strangers away.
    pub listener: Option<Arc<Listener>>,
}

impl Connection {
    /// Cuts it; nobody uses any of it when this returns.
    pub fn close(self, requests: &Requests) {
        self.link.set();
        requests.set_requester(None);
        if let Some(second) = &self.second {
            second.join();
        }
        // The next connection may come to the same address.
        drop(self.listener);
    }

    /// What really broke it, if `error` is what was noticed.
    pub fn reason(&self, error: Error) -> Error {
        let cut = error.kind == ErrorKind::Cancelled;
        match self.second.as_ref().and_then(Second::failure) {
            Some(theirs) if cut => theirs,
            _ if cut && self.back.failed() => {
                Error::new(ErrorKind::Timeout, "the source does not take page requests").within("return-path")
            }
            _ if cut => Error::new(ErrorKind::Cancelled, "the connection was ended on request (migrate-pause)"),
            _ => error,
        }
    }
}

/// Tells a source that has given the machine away that it may have it back.
pub fn never_ran(back: &Back) {
    if let Err(error) = back.say(&ReturnMessage::Shut(NEVER_RAN)) {
        tracing::warn!(%error, "the source could not be told that the machine never ran here");
    }
    back.end();
}
