//! The way back to the source: one writer for all threads of the destination, one message at a time, each with a deadline.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::channel::{Cancel, WriteHalf};
use crate::postcopy::{Memory, Requester};
use crate::wire::{Output, ReturnMessage, write_bitmap};
use crate::{Error, ErrorKind, Result};

/// How long the source may take for what is no more than good manners: to read an answer, to send its description.
pub const PATIENCE: Duration = Duration::from_secs(5);

/// The return path of one connection.
#[derive(Debug)]
pub struct Back {
    writer: Mutex<WriteHalf>,
    /// A message could not be written whole; what follows would make no sense.
    failed: AtomicBool,
    local: bool,
    /// The switch of the connection: who cannot be told anything is not listened to either.
    link: Cancel,
}

impl Back {
    /// Over the writing half of the main channel, which was opened with `link`.
    pub fn new(writer: WriteHalf, link: Cancel) -> Self {
        Self { local: writer.is_local(), writer: Mutex::new(writer), failed: AtomicBool::new(false), link }
    }

    /// One message.
    pub fn say(&self, message: &ReturnMessage) -> Result<()> {
        let mut output = Output::new();
        message.write(&mut output);
        self.put(&output)
    }

    /// The answer to `RECV_BITMAP`: which target pages of a block have arrived, a bit each.
    pub fn received(&self, name: &[u8], words: &[u64]) -> Result<()> {
        let bits: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        let mut output = Output::new();
        ReturnMessage::RecvBitmap(name.to_vec()).write(&mut output);
        write_bitmap(&mut output, &bits);
        self.put(&output)
    }

    fn put(&self, output: &Output) -> Result<()> {
        let mut writer = self.lock();
        writer.set_deadline(Instant::now() + PATIENCE);
        writer.write_all(output.as_slice()).map_err(|error| {
            self.failed.store(true, Ordering::Release);
            error.within("return-path")
        })
    }

    /// A message could not be written.
    pub fn failed(&self) -> bool {
        self.failed.load(Ordering::Acquire)
    }

    /// The source is on this machine.
    pub fn is_local(&self) -> bool {
        self.local
    }

    /// The last word was said: the source reads the end behind it.
    pub fn end(&self) {
        self.lock().end();
    }

    fn lock(&self) -> MutexGuard<'_, WriteHalf> {
        self.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Asks the source for pages. The block is named when it is another one than last time (spec/stream 8.4).
#[derive(Debug)]
pub struct Asking {
    back: Arc<Back>,
    memory: Arc<Memory>,
    last: Option<usize>,
}

impl Asking {
    /// With nothing asked over this connection so far.
    pub fn new(back: Arc<Back>, memory: Arc<Memory>) -> Self {
        Self { back, memory, last: None }
    }
}

impl Requester for Asking {
    fn request(&mut self, block: usize, offset: u64, len: u32) -> Result<()> {
        let named = self.last != Some(block);
        let name = named.then(|| self.memory.block(block).name().as_bytes().to_vec());
        let asked = self.back.say(&ReturnMessage::ReqPages { name, start: offset, length: len });
        if asked.is_err() {
            // The page is asked for again over the next connection; so this one has to end.
            self.back.link.set();
        }
        self.last = Some(block);
        asked
    }
}

/// No return path where one is needed.
pub fn no_way_back(what: &str) -> Error {
    Error::new(ErrorKind::BadCommand, format!("{what} without an open return path"))
}
