//! How a source comes in: the listener, its main channel and those beside it, and what the stream may hold by what is switched on here.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use super::back::Back;
use super::main::{Main, Source};
use super::mapped_ram::MappedFile;
use super::multifd::{FanIn, Terms};
use super::second::Second;
use super::{Incoming, PREEMPT, cancelled, lock};
use crate::channel::{Cancel, Listener, ReadHalf, Uri};
use crate::control::Compression;
use crate::wire::multifd::Method;
use crate::wire::{Accept, Decoder, Input};
use crate::{Error, ErrorKind, Result};

/// Bytes read ahead at most: fits the second-level cache, so that the copy into place reads warm memory.
const BUFFER: usize = 256 << 10;

/// The capability for pages on several channels.
const MULTIFD: &str = "multifd";

impl Incoming {
    /// Bind or open; the addresses in the form of `socket-address`.
    pub fn listen(&self, uri: &Uri, fd: Option<OwnedFd>) -> Result<serde_json::Value> {
        self.control.check_transport(uri)?;
        let listener = Listener::bind_over(uri, fd, self.control.tls())?;
        let addresses = listener.addresses();
        self.link().listener = Some(Arc::new(listener));
        Ok(addresses)
    }

    /// Wait for the main channel. Until a source connects only `close` ends the wait: whoever cancels a migration means one that
    /// has begun. A command or a descriptor is a source from the start.
    pub fn accept(&self) -> Result<()> {
        let listener = self.link().listener.take();
        let Some(listener) = listener else {
            let early = || Error::new(ErrorKind::InvalidState, "accept before listen");
            return Err(if self.cancel.is_set() { cancelled() } else { early() });
        };
        if !listener.is_socket() {
            self.control.incoming_connected(&self.cancel);
        }
        let switch = self.links.switch()?;
        let preempt = self.control.capability(PREEMPT) && listener.is_socket();
        let (channel, beside) = if self.control.capability(MULTIFD) && listener.is_socket() {
            let (beside, main) = FanIn::gather(&listener, &switch, &self.control.received, &|| {
                self.control.incoming_connected(&self.cancel);
                self.terms()
            })?;
            (main, Some(beside))
        } else {
            (if preempt { listener.accept_first(&switch) } else { listener.accept(&switch) }?, None)
        };
        self.control.incoming_connected(&self.cancel);
        let uri = channel.uri().clone();
        let (reader, writer) = channel.split();
        let reader = reader.ok_or_else(|| Error::new(ErrorKind::BadUri, "this channel cannot be read from"))?;
        let mut decoder = self.decoder(&uri, reader, beside.as_ref())?;
        // A source with more channels than are let in waits for them as soon as it has filled them: there is nothing to wait for here.
        let alarm = match &beside {
            Some(beside) => beside.broken().clone(),
            None => Cancel::new()?,
        };
        decoder.input().source().set_alarm(&alarm);
        listener.set_alarm(&alarm);
        lock(&self.feed).main = Some(decoder);
        let mut link = self.link();
        link.beside = beside;
        link.second = if preempt { Some(Second::expect(Arc::clone(&listener), &switch)?) } else { None };
        // The listener stays: it turns surplus connections away, and keeps the address.
        link.listener = Some(listener);
        link.back = writer.map(|writer| Arc::new(Back::new(writer, switch)));
        Ok(())
    }

    /// The decoder of the main channel. With mapped-ram its offsets are those of the file, and the pages are read beside it.
    fn decoder(&self, uri: &Uri, reader: ReadHalf, beside: Option<&Arc<FanIn>>) -> Result<Main> {
        // Differences are taken unasked, as by QEMU: their sender alone has to remember anything.
        let (mut accept, mut begin) = (Accept::XBZRLE, 0);
        if let Some(file) = MappedFile::wanted(&self.control, uri, &reader)? {
            accept |= Accept::MAPPED_RAM;
            begin = reader.position()?;
            lock(&self.loader).map(file);
        }
        let mut source = Source::new(reader, &self.control.received);
        if let Some(beside) = beside {
            accept |= Accept::MULTIFD;
            source.stand_by(beside);
            lock(&self.loader).stand_by(Arc::clone(beside));
        }
        if self.control.capability("compress") {
            accept |= Accept::COMPRESS;
            lock(&self.loader).set_inflate_threads(self.control.parameters().decompress_threads);
        }
        Ok(Decoder::new(Input::with_capacity(source, BUFFER).starting_at(begin), self.options).accepting(accept))
    }

    fn terms(&self) -> Terms {
        let (parameters, deadlines) = (self.control.parameters(), lock(&self.postcopy).deadlines);
        Terms {
            channels: parameters.multifd_channels,
            method: match parameters.multifd_compression {
                Compression::None => Method::None,
                Compression::Zlib(_) => Method::Zlib,
                Compression::Zstd(_) => Method::Zstd,
            },
            uuid: self.link().uuid,
            connect: deadlines.connect,
            stall: deadlines.stall,
        }
    }
}
