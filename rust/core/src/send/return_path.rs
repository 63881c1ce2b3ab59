//! The return path of the source: a thread that reads the destination's messages, and the waits on what it has heard.
//!
//! The thread never attaches to Python and holds no lock while it reads. It ends when the channel ends, so closing the channel
//! (cancel, failure, the end of the migration) is how it is stopped.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;

use crate::channel::ReadHalf;
use crate::wire::{Input, ReturnMessage};
use crate::{Error, ErrorKind, Result};

#[derive(Debug, Default)]
struct Heard {
    pong: Option<u32>,
    shut: Option<u32>,
    ended: Option<Result<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    heard: Mutex<Heard>,
    changed: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Heard> {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note(&self, change: impl FnOnce(&mut Heard)) {
        change(&mut self.lock());
        self.changed.notify_all();
    }
}

/// The reading thread and what it has heard.
#[derive(Debug)]
pub struct ReturnPath {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl ReturnPath {
    /// Start reading `reader`.
    pub fn start(reader: ReadHalf) -> Result<Self> {
        let shared = Arc::new(Shared::default());
        let theirs = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name("qmig-return".into())
            .spawn(move || {
                let cut = reader.cutter();
                let end = listen(&theirs, reader);
                theirs.note(|heard| heard.ended = Some(end));
                // Who does not listen any more may still hold the connection open, with a writer of ours stuck in it.
                if theirs.lock().shut != Some(0) {
                    cut();
                }
            })
            .map_err(|e| Error::io("starting the return-path thread", e))?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// The failure that the destination has reported or that ended the path, if any. For the source's loop before the commit.
    pub fn failure(&self) -> Option<Error> {
        failure(&self.shared.lock())
    }

    /// Wait until the destination has answered PING `token`. An answer counts only while the destination has not given up since.
    pub fn wait_pong(&self, token: u32, deadline: Instant) -> Result<()> {
        self.wait(deadline, "the answer to the last PING", |heard| {
            failure(heard).map(Err).or_else(|| (heard.pong == Some(token)).then_some(Ok(())))
        })
    }

    /// Wait for the destination's SHUT. `Ok(None)`: the channel ended cleanly without one, as 2.9 does.
    pub fn wait_shut(&self, deadline: Instant) -> Result<Option<u32>> {
        self.wait(deadline, "the destination's last word (SHUT)", |heard| match (heard.shut, &heard.ended) {
            (Some(status), _) => Some(Ok(Some(status))),
            (None, Some(Ok(()))) => Some(Ok(None)),
            (None, Some(Err(e))) => Some(Err(e.clone())),
            (None, None) => None,
        })
    }

    fn wait<T>(&self, deadline: Instant, what: &str, mut look: impl FnMut(&Heard) -> Option<Result<T>>) -> Result<T> {
        let mut heard = self.shared.lock();
        loop {
            if let Some(answer) = look(&heard) {
                return answer;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(Error::new(ErrorKind::Timeout, format!("waited too long for {what}; is the destination stuck?")));
            }
            heard = self.shared.changed.wait_timeout(heard, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Wait for the thread. The channel must have been closed.
    pub fn join(&mut self) {
        if let Some(thread) = self.thread.take() {
            // The thread only stores what it heard; a panic in it has been reported already and left nothing to clean.
            let _ = thread.join();
        }
    }
}

fn failure(heard: &Heard) -> Option<Error> {
    match (heard.shut, &heard.ended) {
        (Some(0), _) => Some(Error::new(ErrorKind::ReturnPath, "the destination ended the migration before it was complete")),
        (Some(status), _) => Some(Error::new(
            ErrorKind::ReturnPath,
            format!("the destination refused the migration (status {status}); its log or query-migrate says why"),
        )),
        (None, Some(Ok(()))) => {
            Some(Error::new(ErrorKind::Closed, "the destination closed the channel; its log or query-migrate says why"))
        }
        (None, Some(Err(e))) => Some(e.clone()),
        (None, None) => None,
    }
}

fn listen(shared: &Shared, reader: ReadHalf) -> Result<()> {
    // A message is at most a few hundred bytes.
    let mut input = Input::with_capacity(reader, 4096);
    loop {
        match ReturnMessage::read(&mut input)? {
            None => return Ok(()),
            Some(ReturnMessage::Pong(token)) => shared.note(|heard| heard.pong = Some(token)),
            Some(ReturnMessage::Shut(status)) => {
                shared.note(|heard| heard.shut = Some(status));
                return Ok(());
            }
            Some(other) => {
                return Err(Error::new(ErrorKind::ReturnPath, format!("message {} has no place in a precopy migration", other.name())));
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::io::Write;
    use std::os::unix::net::UnixStream;
    use std::time::Duration;

    use super::*;
    use crate::channel::{self, Cancel, Uri};
    use crate::wire::Output;

    #[test]
    fn an_answer_does_not_outweigh_a_refusal() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let cancel = Cancel::new().unwrap();
        let channel = channel::connect(&Uri::parse("fd:test").unwrap(), Some(ours.into()), &cancel).unwrap();
        let (reader, _writer) = channel.split();
        let mut path = ReturnPath::start(reader.unwrap()).unwrap();
        let mut words = Output::new();
        ReturnMessage::Pong(2).write(&mut words);
        ReturnMessage::Shut(1).write(&mut words);
        theirs.write_all(words.as_slice()).unwrap();
        let deadline = Instant::now() + Duration::from_secs(20);
        assert_eq!(path.wait_shut(deadline).unwrap(), Some(1));
        assert_eq!(path.wait_pong(2, deadline).unwrap_err().kind, ErrorKind::ReturnPath);
        cancel.set();
        path.join();
    }
}
