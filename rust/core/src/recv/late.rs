//! After everything has arrived: a source that has not heard so may ask again.
//!
//! The last word (SHUT 0) can get lost with its connection. The machine runs here with all its memory then, but the source is paused
//! and keeps its own. `migrate-recover` listens once more for it: asked what is missing this side answers nothing, and says its last
//! word again. Nobody waits for that, and the status stays `completed`.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::back::Back;
use super::main::{Main, Source, drain};
use crate::channel::{Cancel, Listener};
use crate::control::{Control, Witness};
use crate::postcopy::Memory;
use crate::wire::{Command, Event, NullSink, ReturnMessage};
use crate::{Error, ErrorKind, Result};

/// Who still answers for an incoming migration that is complete.
#[derive(Debug)]
pub struct Late {
    heard: Arc<Heard>,
    answering: Mutex<Option<(Cancel, JoinHandle<()>)>>,
}

#[derive(Debug)]
struct Heard {
    control: Weak<Control>,
    memory: Arc<Memory>,
    main: Mutex<Main>,
    /// How long a source may take once it is connected.
    deadline: Duration,
    preempt: bool,
}

impl Late {
    /// For the stream of `main`, which has brought all of `memory`. With `preempt` the source has a second connection.
    pub fn new(control: &Arc<Control>, memory: Arc<Memory>, main: Main, deadline: Duration, preempt: bool) -> Arc<Self> {
        let heard = Heard { control: Arc::downgrade(control), memory, main: Mutex::new(main), deadline, preempt };
        Arc::new(Self { heard: Arc::new(heard), answering: Mutex::default() })
    }

    /// The stream; who comes late waits until it is free.
    pub fn main(&self) -> MutexGuard<'_, Main> {
        self.heard.main()
    }

    fn answering(&self) -> MutexGuard<'_, Option<(Cancel, JoinHandle<()>)>> {
        self.answering.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Witness for Late {
    fn answer(&self, listener: Arc<Listener>) -> Result<()> {
        self.end();
        let (cancel, heard) = (Cancel::new()?, Arc::clone(&self.heard));
        let theirs = cancel.clone();
        let work = move || {
            let told = heard.answer(&listener, &theirs);
            drop(listener);
            if let Some(control) = heard.control.upgrade().filter(|_| !theirs.is_set()) {
                control.set_socket_addresses(None);
            }
            if let Err(error) = told {
                tracing::warn!(%error, "a source that asked whether everything has arrived was not told");
            }
        };
        let thread = std::thread::Builder::new().name("qmig-listen".into()).spawn(work);
        *self.answering() = Some((cancel, thread.map_err(|e| Error::io("starting the listen thread", e))?));
        Ok(())
    }

    fn end(&self) {
        let former = self.answering().take();
        if let Some((cancel, thread)) = former {
            cancel.set();
            if thread.join().is_err() {
                tracing::error!("the thread that answers a late source has panicked");
            }
        }
    }
}

impl Drop for Late {
    fn drop(&mut self) {
        // Not waited for: this may be dropped under a lock of the control room.
        if let Some((cancel, _)) = self.answering().take() {
            cancel.set();
        }
    }
}

impl Heard {
    fn main(&self) -> MutexGuard<'_, Main> {
        self.main.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn answer(&self, listener: &Listener, cancel: &Cancel) -> Result<()> {
        let two = self.preempt && listener.is_socket();
        let channel = if two { listener.accept_first(cancel) } else { listener.accept(cancel) }?;
        let (Some(reader), Some(writer)) = channel.split() else {
            return Err(Error::new(ErrorKind::BadUri, "a recovery needs a connection with a way back"));
        };
        let back = Back::new(writer, cancel.clone());
        let mut main = self.main();
        // What comes to a machine that is complete counts for nothing.
        main.replace_source(Source::new(reader, &Arc::default()));
        main.input().source().set_deadline(Instant::now() + self.deadline);
        loop {
            match main.next(&mut NullSink)? {
                Event::RamSection { .. } | Event::Command(Command::OpenReturnPath, _) => {}
                Event::Command(Command::Ping(token), _) => back.say(&ReturnMessage::Pong(token))?,
                Event::Command(Command::RecvBitmap(name), offset) => {
                    let block = self.memory.asked_for(&name).map_err(|e| e.at(offset))?;
                    back.received(&name, self.memory.received(block).words())?;
                }
                Event::Command(Command::Resume, _) => back.say(&ReturnMessage::ResumeAck)?,
                Event::Command(other, offset) => return Err(super::postcopy::out_of_order(&other, "over").at(offset)),
                Event::End { .. } => break,
                _ => return Err(Error::new(ErrorKind::UnknownElement, "an element that has no place in a recovery")),
            }
        }
        back.say(&ReturnMessage::Shut(0))?;
        back.end();
        drain(&mut main);
        Ok(())
    }
}
