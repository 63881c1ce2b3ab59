//! What a new connection brings back to life: the fault thread, the second channel, the way in which pages are asked for.

use std::sync::Arc;
use std::time::Instant;

use super::{Listening, UNREAD};
use crate::channel::{Cancel, Channel, Listener};
use crate::control::Status;
use crate::postcopy::Faults;
use crate::recv::PREEMPT;
use crate::recv::back::{Asking, Back};
use crate::recv::connection::Connection;
use crate::recv::main::{Main, Source};
use crate::recv::placing::Came;
use crate::recv::second::{Reading, Second};
use crate::{Error, ErrorKind, Result};

impl Listening {
    /// The fault thread, if none is alive.
    pub(super) fn watch(self: &Arc<Self>) -> Result<()> {
        let mut faults = self.faults();
        if faults.is_some() && self.blind().is_none() {
            return Ok(());
        }
        *faults = None;
        *self.blind() = None;
        let this = Arc::downgrade(self);
        let failed = move |error| {
            if let Some(this) = this.upgrade() {
                this.went_blind(error);
            }
        };
        *faults = Some(Faults::start(Arc::clone(&self.requests), failed)?);
        Ok(())
    }

    /// The fault thread has died of `error`: the end of a machine that does not run yet, and for one that runs the reason of a pause,
    /// whose end brings another thread.
    fn went_blind(&self, error: Error) {
        tracing::error!(%error, "nobody notices who waits for a page");
        *self.blind() = Some(error.clone());
        if !self.abort(error) {
            self.links.cut();
        }
    }

    /// Pauses, and waits for the next connection.
    pub(super) fn reconnect(self: &Arc<Self>, error: Error, main: &mut Main) -> Result<Connection> {
        self.lock().back = None;
        if !self.control.pause_incoming(error.clone()) {
            return Err(error);
        }
        loop {
            let accept = |listener: Arc<Listener>, link: &Cancel| {
                let preempt = self.control.capability(PREEMPT) && listener.is_socket();
                let channel = if preempt { listener.accept_first(link) } else { listener.accept(link) }?;
                Ok((channel, listener, link.clone(), preempt))
            };
            let refused = |error| self.control.note_incoming_error(error);
            let (channel, listener, link, preempt) = self.links.wait(accept, refused)?;
            match self.connect(channel, listener, &link, preempt, main) {
                Ok(connection) => return Ok(connection),
                Err(error) => {
                    link.set();
                    refused(error);
                }
            }
        }
    }

    fn connect(
        self: &Arc<Self>,
        channel: Channel,
        listener: Arc<Listener>,
        link: &Cancel,
        preempt: bool,
        main: &mut Main,
    ) -> Result<Connection> {
        let (Some(reader), Some(writer)) = channel.split() else {
            return Err(Error::new(ErrorKind::BadUri, "a recovery needs a connection with a way back"));
        };
        self.watch()?;
        let second = if preempt { Some(Second::expect(Arc::clone(&listener), link)?) } else { None };
        let back = Arc::new(Back::new(writer, link.clone()));
        let connection = Connection { back, link: link.clone(), second, listener: Some(listener) };
        self.serve(&connection)?;
        if connection.back.is_local() {
            reader.bound(UNREAD);
        }
        main.replace_source(Source::new(reader, &self.control.received));
        main.input().source().bear(&self.silence);
        main.input().source().set_deadline(Instant::now() + self.deadlines.recover);
        let mut state = self.lock();
        if let Some(error) = &state.ended {
            return Err(error.clone());
        }
        state.back = Some(Arc::clone(&connection.back));
        drop(state);
        self.control.set_incoming_status(Status::PostcopyPaused, Status::PostcopyRecover);
        Ok(connection)
    }

    /// The second channel, if there is one, has somewhere to put its pages.
    pub(super) fn serve(self: &Arc<Self>, connection: &Connection) -> Result<()> {
        let Some(second) = &connection.second else { return Ok(()) };
        second.ready(Reading {
            blocks: self.blocks.clone(),
            order: Arc::clone(&self.order),
            requests: Arc::clone(&self.requests),
            came: Arc::clone(self) as Arc<dyn Came>,
            silence: Arc::clone(&self.silence),
        })
    }

    /// Pages are asked for over this connection, those first that were asked for before.
    pub(super) fn ask(&self, connection: &Connection) {
        let asking = Asking::new(Arc::clone(&connection.back), Arc::clone(self.requests.memory()));
        self.requests.set_requester(Some(Box::new(asking)));
    }
}
