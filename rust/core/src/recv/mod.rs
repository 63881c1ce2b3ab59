//! The destination: one incoming migration from the listener to the last word.
//!
//! RAM and commands are done here; configuration, device sections and the end are handed to the caller one by one. That caller may be a
//! Python thread: up to the moment in which the machine runs, nothing on this side waits for it but the migration itself. In postcopy
//! the stream passes to a thread of the core before the machine can run (`listening`), for then whoever runs it may stand still in a
//! missing page.

mod accept;
mod back;
mod connection;
mod deadlines;
mod feed;
mod inflating;
mod late;
mod listening;
mod main;
mod mapped_ram;
mod multifd;
mod places;
mod placing;
mod postcopy;
mod ram_loader;
mod ready;
mod second;
mod silence;
#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
mod vigil;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::channel::{Cancel, Listener};
use crate::control::{Control, Links};
use crate::ram::{Block, RamList};
use crate::repeats::Repeats;
use crate::wire::{Command, DecoderOptions, Event, PayloadSource, ReturnMessage, SectionKind};
use crate::{Error, ErrorKind, Result};

use back::{Back, PATIENCE, no_way_back};
pub use deadlines::Deadlines;
pub use vigil::{Life, end_process};

use connection::{Connection, NEVER_RAN};
use feed::Feed;
use listening::Listening;
use main::drain;
use multifd::FanIn;
use postcopy::{Postcopy, Progress};
use ram_loader::RamLoader;
use ready::Readiness;
use second::Second;

/// The PING that follows `OPEN_RETURN_PATH`, when there is nothing to look at yet.
const SETUP_PING: u32 = 1;

/// The capability for a channel of requested pages.
const PREEMPT: &str = "postcopy-preempt";

/// The destination of one migration.
#[derive(Debug)]
pub struct Incoming {
    control: Arc<Control>,
    cancel: Cancel,
    links: Arc<Links<Arc<Listener>>>,
    options: DecoderOptions,
    feed: Arc<Mutex<Feed>>,
    loader: Mutex<RamLoader>,
    postcopy: Mutex<Postcopy>,
    link: Mutex<Link>,
    /// Commands that had no effect.
    passed_over: Repeats,
}

#[derive(Debug, Default)]
struct Link {
    listener: Option<Arc<Listener>>,
    back: Option<Arc<Back>>,
    second: Option<Second>,
    /// The channels that bring pages beside the main one.
    beside: Option<Arc<FanIn>>,
    /// UUID of this machine; zeros if it has none.
    uuid: [u8; 16],
    return_path: bool,
    readiness: Readiness,
    /// The PING to answer when the caller comes back.
    fence: Option<u32>,
    /// RAM's END was seen: what follows is the end of a precopy migration.
    precopy_ends: bool,
    /// A package was begun: the source has let go of the machine, or is about to.
    packaged: bool,
    listening: Option<Arc<Listening>>,
}

impl Link {
    /// RAM has ended: pages that a source gave to a channel which was never let in are missing, whether or not it has noticed.
    fn check_beside(&self) -> Result<()> {
        let surplus = self.listener.as_ref().filter(|_| self.beside.is_some()).map_or(0, |listener| listener.surplus_channels());
        if surplus == 0 {
            return Ok(());
        }
        let text = format!("{surplus} more channels were turned away: give both sides the same multifd-channels");
        Err(Error::new(ErrorKind::LimitExceeded, text).within("multifd"))
    }
}

/// What a command leads to.
enum Step {
    Done,
    /// The caller has to look whether all is well.
    Fence,
    /// The caller has to run the machine.
    Run,
}

impl Incoming {
    /// A destination for `blocks`, which `control` may cancel from `accept` until the machine may be here.
    pub fn new(control: Arc<Control>, blocks: Vec<Arc<Block>>, options: DecoderOptions) -> Result<Self> {
        let loader = Mutex::new(RamLoader::new(RamList::new(blocks)?));
        let cancel = Cancel::new()?;
        let links = control.link_incoming(&cancel);
        Ok(Self {
            control,
            cancel,
            links,
            options,
            feed: Arc::default(),
            loader,
            postcopy: Mutex::default(),
            link: Mutex::default(),
            passed_over: Repeats::default(),
        })
    }

    /// How many vCPUs the machine has, for the times in which all of them stand still.
    pub fn set_cpus(&self, cpus: u32) {
        lock(&self.postcopy).cpus = cpus;
    }

    /// The UUID of this machine, which the source's multifd channels must have; none: zeros.
    pub fn set_uuid(&self, uuid: [u8; 16]) {
        self.link().uuid = uuid;
    }

    /// How long the source may take for what it owes.
    pub fn set_deadlines(&self, deadlines: Deadlines) {
        lock(&self.postcopy).deadlines = deadlines;
    }

    /// Read up to the next thing that the caller must do: `Configuration`, `Section`, a fence, the command RUN, or `Finished`.
    ///
    /// A fence is a PING after the first: once it is answered the source may give the machine away. So it is handed out as
    /// `Command`, for the caller to see whether anything is missing, and answered by the call after. In postcopy only the PING in the
    /// package is one. After RUN the caller runs the machine and calls [`Self::wait`].
    pub fn next(&self) -> Result<Event> {
        let fence = self.link().fence.take();
        if let Some(token) = fence {
            self.settle()?;
            if let Some(listening) = self.listening() {
                listening.promise()?;
            }
            self.answer(&ReturnMessage::Pong(token))?;
        }
        let mut feed = lock(&self.feed);
        if fence.is_some()
            && feed.package.is_none()
            && let Some(main) = &mut feed.main
        {
            // From here on nobody may cancel this.
            main.input().source().expect_end(lock(&self.postcopy).deadlines.stall);
        }
        let mut loader = lock(&self.loader);
        loop {
            if let Some(listening) = self.listening() {
                listening.check()?;
            }
            if lock(&self.postcopy).progress() == Progress::Running {
                return Err(Error::new(ErrorKind::InvalidState, "RUN was the last element; run the machine and wait for its memory"));
            }
            match feed.next(&mut loader).map_err(|error| self.explain(error))? {
                Event::RamSection { header, .. } => {
                    // After END more comes only if something was written when all should have stood still.
                    let mut link = self.link();
                    link.precopy_ends |= header.kind == SectionKind::End;
                    loader.settle(link.precopy_ends)?;
                    if link.precopy_ends {
                        link.check_beside()?;
                    }
                }
                Event::End { offset } => {
                    loader.check_complete().map_err(|e| e.at(offset))?;
                    loader.rest();
                    self.settle()?;
                    if let Some(main) = &mut feed.main {
                        main.input().source().set_deadline(Instant::now() + PATIENCE);
                    }
                }
                Event::Description(_) => {}
                Event::Command(command, offset) => match self.obey(&command, &mut feed, &mut loader).map_err(|e| e.at(offset))? {
                    Step::Done => {}
                    Step::Fence => {
                        loader.check_complete().map_err(|e| e.at(offset))?;
                        return Ok(Event::Command(command, offset));
                    }
                    Step::Run => return Ok(Event::Command(command, offset)),
                },
                event => return Ok(event),
            }
        }
    }

    /// A source that has lost a channel hangs up, or waits: says so where we have not let it in.
    fn explain(&self, error: Error) -> Error {
        let link = self.link();
        if self.cancel.is_set() {
            return error;
        }
        if let Err(surplus) = link.check_beside() {
            return surplus;
        }
        let Some(listener) = &link.listener else { return error };
        if link.beside.is_none() {
            return if listener.end_alarm() { several() } else { error };
        }
        let away = listener.turned_away();
        if away == 0 || !matches!(error.kind, ErrorKind::Truncated | ErrorKind::Closed) {
            return error;
        }
        let text = format!("{}; {away} more channels were turned away: give both sides the same multifd-channels", error.message);
        Error { message: text, ..error }
    }

    /// The payload of the section that `next` returned.
    pub fn payload(&self) -> Result<Arc<Mutex<dyn PayloadSource + Send>>> {
        let feed: Arc<Mutex<Feed>> = Arc::clone(&self.feed);
        Ok(feed)
    }

    /// The payload is consumed: check the footer.
    pub fn section_done(&self) -> Result<()> {
        lock(&self.feed).section_done()
    }

    /// After RUN, when the machine runs here: wait until its memory is complete, through any number of lost connections. The source is
    /// told and the status is `completed` when this returns.
    pub fn wait(&self) -> Result<()> {
        let listening = self.listening().ok_or_else(|| Error::new(ErrorKind::InvalidState, "waiting for a machine before RUN"))?;
        let over = listening.wait();
        self.cancel.set();
        over
    }

    /// Answer SHUT if there is a return path, wait a moment for the source to hang up, and close. A `status` other than 0 says that the
    /// machine has not run here and never will, which from RUN on only the caller can know: if the source has let go of it in a package
    /// already, it is told that it may have it back. Nothing happens once `wait` was called.
    pub fn finish(&self, status: u32) -> Result<()> {
        let answered = match self.listening() {
            Some(listening) if status == 0 && !listening.is_over() => {
                return Err(Error::new(ErrorKind::InvalidState, "finished before the memory of the machine is complete"));
            }
            Some(listening) => {
                if !listening.not_started(Error::new(ErrorKind::DeviceState, "the machine could not be loaded or started here")) {
                    return Ok(());
                }
                self.cancel.set();
                listening.join();
                Ok(())
            }
            None if self.link().return_path => self.last_word(status),
            None => {
                if status == 0 {
                    self.let_command_end();
                }
                Ok(())
            }
        };
        self.close();
        answered
    }

    fn last_word(&self, status: u32) -> Result<()> {
        let never_ran = status != 0 && self.link().packaged;
        self.answer(&ReturnMessage::Shut(if never_ran { NEVER_RAN } else { status }))?;
        if let Some(back) = &self.link().back {
            back.end();
        }
        if let Some(main) = &mut lock(&self.feed).main {
            drain(main);
        }
        Ok(())
    }

    /// All that a command had to say is here; if it fails at the end somebody should know.
    fn let_command_end(&self) {
        let ended = lock(&self.feed).main.as_mut().map_or(Ok(()), |main| main.input().source().finish(Instant::now() + PATIENCE));
        if let Err(error) = ended {
            tracing::warn!(%error, "the machine has arrived, but the command that brought it did not end well");
        }
    }

    /// Cut everything; a machine that has not begun to run here never will. Once it may run, only the connection is cut, as by
    /// `migrate-pause`, for its memory is still missing. Idempotent, from any thread.
    pub fn close(&self) {
        if let Some(listening) = self.listening()
            && !listening.is_over()
            && !listening.abort(cancelled())
        {
            self.links.cut();
            return;
        }
        self.cancel.set();
        let mut link = self.link();
        let (second, beside, listener) = (link.second.take(), link.beside.take(), link.listener.take());
        link.back = None;
        drop(link);
        if let Some(second) = second {
            second.join();
        }
        if let Some(beside) = beside {
            beside.close();
        }
        drop(listener);
        // Who reads just now finds the channel cut.
        if let Ok(mut feed) = self.feed.try_lock() {
            *feed = Feed::default();
        }
    }

    /// The machine, which runs here and whose memory is incomplete, will never run again, and `wait` fails. Threads that wait for a page go
    /// on waiting, and the blocks stay taken, until [`Self::let_go`] or the end of the process: what they would read is zeros where data
    /// belongs, and they might write that to a disk before anybody can stop them. Before RUN it never will either, and the source is told
    /// that, which may take a moment: the word goes out before anything is cut.
    pub fn abandon(&self) {
        if let Some(listening) = self.listening() {
            if !listening.is_over() && !listening.abort(cancelled()) {
                listening.abandon();
            }
            self.cancel.set();
        }
    }

    /// The machine is about to be given up, or has been: if from now on somebody waits for a page of it and for so long there is no sign of
    /// `life`, `end` is called with the number of such pages. Once; nothing outside of postcopy, and over when the memory is complete or let go.
    pub fn guard(&self, life: &Arc<Life>, patience: Duration, end: impl FnOnce(u64) + Send + 'static) -> Result<()> {
        match self.listening() {
            Some(listening) if listening.is_unguarded() => vigil::keep(listening, Arc::clone(life), patience, end),
            _ => Ok(()),
        }
    }

    /// How many pages somebody waits for, in postcopy.
    pub fn waiting(&self) -> u64 {
        self.listening().map_or(0, |listening| listening.waiting())
    }

    /// After `abandon`, when the emulator has stopped: nobody acts on the memory any more. The blocks are free again; a thread that waits
    /// for a page all the same goes on, and finds zeros.
    pub fn let_go(&self) {
        if let Some(listening) = self.listening() {
            listening.let_go();
        }
    }

    fn obey(&self, command: &Command, feed: &mut Feed, loader: &mut RamLoader) -> Result<Step> {
        match command {
            Command::OpenReturnPath => {
                let mut link = self.link();
                if link.back.is_none() {
                    return Err(Error::new(ErrorKind::BadCommand, "OPEN_RETURN_PATH, but this channel has no way back; use tcp: or unix:"));
                }
                link.return_path = true;
                drop(link);
                self.acknowledge()?;
            }
            Command::Ping(token) => return self.ping(*token, feed),
            Command::SwitchoverStart => {}
            Command::PostcopyAdvise(_) | Command::RamDiscard { .. } => lock(&self.postcopy).prepare(command, &self.control, loader)?,
            Command::Packaged(size) => self.package(command, *size, feed, loader)?,
            Command::Listen => self.listen_on(command, feed, loader)?,
            Command::Run => {
                lock(&self.postcopy).run(command)?;
                if let Some(listening) = self.listening() {
                    listening.run_machine()?;
                }
                return Ok(Step::Run);
            }
            Command::Resume | Command::RecvBitmap(_) => {
                if let Some(times) = self.passed_over.again() {
                    tracing::warn!("{} is passed over: nothing is to be recovered{times}", command.name());
                }
            }
            Command::EnableColo => {
                let text = format!("command {} is not built yet; switch `x-colo` off at the source", command.name());
                return Err(Error::new(ErrorKind::Unsupported, text));
            }
        }
        Ok(Step::Done)
    }

    fn ping(&self, token: u32, feed: &Feed) -> Result<Step> {
        let mut link = self.link();
        if !link.return_path {
            return Err(no_way_back("PING"));
        }
        let fence = match lock(&self.postcopy).progress() {
            Progress::None => token > SETUP_PING,
            // The switch may come, and its PINGs promise nothing; but if RAM has ended, this is precopy's last word.
            Progress::Advise | Progress::Discard => feed.package.is_some() || link.precopy_ends,
            Progress::Listening | Progress::Running => true,
        };
        if fence {
            link.fence = Some(token);
            return Ok(Step::Fence);
        }
        drop(link);
        self.answer(&ReturnMessage::Pong(token))?;
        Ok(Step::Done)
    }

    /// The package is read whole before any of it is obeyed: up to its last byte the source has the machine.
    fn package(&self, command: &Command, size: u32, feed: &mut Feed, loader: &RamLoader) -> Result<()> {
        lock(&self.postcopy).check_package(command)?;
        loader.check_complete()?;
        if !self.link().return_path {
            return Err(no_way_back("PACKAGED"));
        }
        let most = self.options.limits.package;
        if size > most {
            let text = format!("a package of {size:#x} bytes; {most:#x} are accepted (PACKAGE_MAX)");
            return Err(Error::new(ErrorKind::LimitExceeded, text));
        }
        let main = feed.main.as_mut().ok_or_else(closed)?;
        let offset = main.input().offset();
        // If the rest does not come the source cannot know that; but this side does.
        self.link().packaged = true;
        let bytes = main.input().read_vec(size.into()).map_err(|e| e.within("package"))?;
        self.settle()?;
        feed.package = Some(main.package(bytes, offset));
        Ok(())
    }

    /// LISTEN: from here on the stream is read by a thread of the core.
    fn listen_on(&self, command: &Command, feed: &mut Feed, loader: &mut RamLoader) -> Result<()> {
        if feed.package.is_none() {
            let text = "POSTCOPY_LISTEN outside a package: the devices that follow it could not be told from what the listen thread reads";
            return Err(Error::new(ErrorKind::BadCommand, text));
        }
        let mut link = self.link();
        let connection = Connection {
            back: link.back.clone().ok_or_else(closed)?,
            link: self.links.switch()?,
            second: link.second.take(),
            listener: link.listener.take(),
        };
        drop(link);
        let (requests, deadlines) = {
            let mut postcopy = lock(&self.postcopy);
            (postcopy.listen(command, &self.control)?, postcopy.deadlines)
        };
        let main = feed.main.take().ok_or_else(closed)?;
        let memory = Arc::clone(requests.memory());
        let listening = Listening::start(&self.control, &self.links, requests, loader.hand_over(), main, connection, deadlines);
        self.link().listening = Some(listening.inspect_err(|_| memory.disarm())?);
        Ok(())
    }

    /// What follows may give the machine to this side.
    fn settle(&self) -> Result<()> {
        let link = self.link();
        if let Some(listener) = &link.listener
            && link.beside.is_none()
            && listener.end_alarm()
        {
            return Err(several());
        }
        drop(link);
        if self.control.settle_incoming() {
            return Ok(());
        }
        Err(cancelled())
    }

    fn answer(&self, message: &ReturnMessage) -> Result<()> {
        let back = self.link().back.clone();
        back.map_or(Ok(()), |back| back.say(message))
    }

    fn listening(&self) -> Option<Arc<Listening>> {
        self.link().listening.clone()
    }

    fn link(&self) -> MutexGuard<'_, Link> {
        lock(&self.link)
    }
}

fn closed() -> Error {
    Error::new(ErrorKind::Closed, "no channel is open")
}

/// The source's channels knock, and none beside the main one is expected.
fn several() -> Error {
    let text = "the source sends on several channels and this side takes one: switch multifd on on both sides, or off at the source";
    Error::new(ErrorKind::Unsupported, text).within("multifd")
}

fn cancelled() -> Error {
    Error::new(ErrorKind::Cancelled, "cancelled on this side")
}

fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
