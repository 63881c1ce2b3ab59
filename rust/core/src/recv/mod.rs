//! The destination: one incoming migration from the listener to the last word.
//!
//! RAM and commands are done here; configuration, device sections and the end are handed to the caller one by one. In precopy
//! that caller may be a Python thread, because nothing on this side waits for it but the migration itself.

mod ram_loader;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::channel::{Cancel, Channel, Listener, ReadHalf, Uri, WriteHalf};
use crate::control::Control;
use crate::ram::{Block, RamList};
use crate::wire::{Command, Decoder, DecoderOptions, Event, Input, Output, PayloadSource, ReturnMessage};
use crate::{Error, ErrorKind, Result};

use ram_loader::RamLoader;

/// Bytes read ahead at most: fits the second-level cache, so that the copy into place reads warm memory.
const BUFFER: usize = 256 << 10;

/// The PING that follows `OPEN_RETURN_PATH`, when there is nothing to look at yet.
const SETUP_PING: u32 = 1;

/// How long the source may take for what is no more than good manners: to read an answer, to send its description.
const PATIENCE: Duration = Duration::from_secs(5);

/// How long a source that was told the outcome may take to hang up.
const LINGER: Duration = Duration::from_secs(1);

/// The decoder of the main channel, shared with whoever reads a device payload.
type Main = Mutex<Decoder<ReadHalf>>;

/// The destination of one migration.
#[derive(Debug)]
pub struct Incoming {
    control: Arc<Control>,
    cancel: Cancel,
    options: DecoderOptions,
    loader: Mutex<RamLoader>,
    link: Mutex<Link>,
}

#[derive(Debug, Default)]
struct Link {
    listener: Option<Listener>,
    main: Option<Arc<Main>>,
    writer: Option<WriteHalf>,
    return_path: bool,
    /// The PING to answer when the caller comes back.
    fence: Option<u32>,
}

impl Incoming {
    /// A destination for `blocks`, which `control` may cancel from `accept` until the machine may be here.
    pub fn new(control: Arc<Control>, blocks: Vec<Arc<Block>>, options: DecoderOptions) -> Result<Self> {
        let loader = Mutex::new(RamLoader::new(RamList::new(blocks)?));
        Ok(Self { control, cancel: Cancel::new()?, options, loader, link: Mutex::default() })
    }

    /// Bind or open; the addresses in the form of `socket-address`.
    pub fn listen(&self, uri: &Uri, fd: Option<std::os::fd::OwnedFd>) -> Result<serde_json::Value> {
        let listener = Listener::bind(uri, fd)?;
        let addresses = listener.addresses();
        self.link().listener = Some(listener);
        Ok(addresses)
    }

    /// Wait for the main channel. Until a source connects only `close` ends the wait: whoever cancels a migration means one that
    /// has begun. A command or a descriptor is a source from the start.
    pub fn accept(&self) -> Result<()> {
        let listener = self.link().listener.take().ok_or_else(|| Error::new(ErrorKind::InvalidState, "accept before listen"))?;
        if !listener.is_socket() {
            self.control.incoming_connected(&self.cancel);
        }
        let channel: Channel = listener.accept(&self.cancel)?;
        self.control.incoming_connected(&self.cancel);
        let (reader, writer) = channel.split();
        let reader = reader.ok_or_else(|| Error::new(ErrorKind::BadUri, "this channel cannot be read from"))?;
        let mut link = self.link();
        // The listener stays: it turns surplus connections away, and keeps the address.
        link.listener = Some(listener);
        link.writer = writer;
        link.main = Some(Arc::new(Mutex::new(Decoder::new(Input::with_capacity(reader, BUFFER), self.options))));
        Ok(())
    }

    /// Read up to the next thing that the caller must do: `Configuration`, `Section`, a fence or `Finished`.
    ///
    /// A fence is a PING after the first: once it is answered the source may give the machine away. So it is handed out as
    /// `Command`, for the caller to see whether anything is missing, and answered by the call after.
    pub fn next(&self) -> Result<Event> {
        let fence = self.link().fence.take();
        if let Some(token) = fence {
            self.settle()?;
            self.answer(&ReturnMessage::Pong(token))?;
        }
        let main = self.main()?;
        let mut decoder = lock(&main);
        let mut loader = lock(&self.loader);
        loop {
            match decoder.next(&mut *loader)? {
                Event::RamSection { .. } => loader.settle(),
                Event::End { offset } => {
                    loader.check_complete().map_err(|e| e.at(offset))?;
                    self.settle()?;
                    decoder.input().source().set_deadline(Instant::now() + PATIENCE);
                }
                Event::Description(_) => {}
                Event::Command(command, offset) => {
                    self.obey(&command).map_err(|e| e.at(offset))?;
                    if self.link().fence.is_some() {
                        loader.check_complete().map_err(|e| e.at(offset))?;
                        return Ok(Event::Command(command, offset));
                    }
                }
                event => return Ok(event),
            }
        }
    }

    /// The payload of the section that `next` returned.
    pub fn payload(&self) -> Result<Arc<Mutex<dyn PayloadSource + Send>>> {
        let main: Arc<Main> = self.main()?;
        Ok(main)
    }

    /// The payload is consumed: check the footer.
    pub fn section_done(&self) -> Result<()> {
        lock(&*self.main()?).section_done()
    }

    /// Answer SHUT if there is a return path, wait a moment for the source to hang up, and close.
    pub fn finish(&self, status: u32) -> Result<()> {
        let answered = if self.link().return_path { self.last_word(status) } else { Ok(()) };
        self.close();
        answered
    }

    fn last_word(&self, status: u32) -> Result<()> {
        self.answer(&ReturnMessage::Shut(status))?;
        if let Some(writer) = &self.link().writer {
            writer.end();
        }
        let main = self.main()?;
        let mut decoder = lock(&main);
        let reader = decoder.input().source();
        reader.set_deadline(Instant::now() + LINGER);
        reader.drain();
        Ok(())
    }

    /// Cut everything. Idempotent, from any thread.
    pub fn close(&self) {
        self.cancel.set();
        let mut link = self.link();
        link.listener = None;
        link.writer = None;
        link.main = None;
    }

    fn obey(&self, command: &Command) -> Result<()> {
        match command {
            Command::OpenReturnPath => {
                let mut link = self.link();
                if link.writer.is_none() {
                    return Err(Error::new(ErrorKind::BadCommand, "OPEN_RETURN_PATH, but this channel has no way back; use tcp: or unix:"));
                }
                link.return_path = true;
                Ok(())
            }
            Command::Ping(token) => {
                if !self.link().return_path {
                    return Err(Error::new(ErrorKind::BadCommand, "PING without an open return path"));
                }
                if *token > SETUP_PING {
                    self.link().fence = Some(*token);
                    return Ok(());
                }
                self.answer(&ReturnMessage::Pong(*token))
            }
            Command::SwitchoverStart => Ok(()),
            other => {
                let text = format!("command {} is not built yet; {}", other.name(), remedy(other));
                Err(Error::new(ErrorKind::Unsupported, text))
            }
        }
    }

    /// What follows may give the machine to this side.
    fn settle(&self) -> Result<()> {
        if self.control.settle_incoming() {
            return Ok(());
        }
        Err(Error::new(ErrorKind::Cancelled, "cancelled on this side"))
    }

    fn answer(&self, message: &ReturnMessage) -> Result<()> {
        let mut output = Output::new();
        message.write(&mut output);
        match &mut self.link().writer {
            Some(writer) => {
                writer.set_deadline(Instant::now() + PATIENCE);
                writer.write_all(output.as_slice())
            }
            None => Ok(()),
        }
    }

    fn main(&self) -> Result<Arc<Main>> {
        self.link().main.clone().ok_or_else(|| Error::new(ErrorKind::Closed, "no channel is open"))
    }

    fn link(&self) -> MutexGuard<'_, Link> {
        lock(&self.link)
    }
}

/// What to do at the source about a command of a feature that is not here.
fn remedy(command: &Command) -> &'static str {
    match command {
        Command::PostcopyAdvise(None) => "switch `dirty-bitmaps` off at the source",
        Command::EnableColo => "switch `x-colo` off at the source",
        _ => "switch `postcopy-ram` off at the source",
    }
}

fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
