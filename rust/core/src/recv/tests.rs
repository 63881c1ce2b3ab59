//! The listen thread, with a fault thread that dies: the kernel reports a fault in memory that is no block's.

use std::io::Write;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use super::main::Source;
use super::*;
use crate::channel::{ReadHalf, Uri, WriteHalf, connect};
use crate::control::Status;
use crate::postcopy::{Latency, Memory, Requests};
use crate::sys::uffd::Modes;
use crate::wire::{Decoder, Input, Output};

const PAGE: usize = 4096;

/// A machine of four pages whose stream was just taken over.
struct Rig {
    control: Arc<Control>,
    cancel: Cancel,
    memory: Arc<Memory>,
    block: Arc<Block>,
    listening: Arc<Listening>,
    /// The source's end.
    source: (Input<ReadHalf>, WriteHalf),
}

fn halves(socket: UnixStream, cancel: &Cancel) -> (ReadHalf, WriteHalf) {
    let (reader, writer) = connect(&Uri::parse("fd:test").unwrap(), Some(socket.into()), cancel).unwrap().split();
    (reader.unwrap(), writer.unwrap())
}

fn sources_end(socket: UnixStream) -> (Input<ReadHalf>, WriteHalf) {
    let (mut reader, writer) = halves(socket, &Cancel::new().unwrap());
    reader.set_deadline(Instant::now() + Duration::from_secs(60));
    (Input::with_capacity(reader, 4096), writer)
}

fn rig() -> Rig {
    rig_with(Deadlines::default())
}

fn rig_with(deadlines: Deadlines) -> Rig {
    rig_saying(deadlines, &[], &[])
}

/// With the pages of `received`, and with what the source has said before anybody listens.
fn rig_saying(deadlines: Deadlines, received: &[usize], said: &[u8]) -> Rig {
    let control = Arc::new(Control::new(None));
    control.begin_incoming().unwrap();
    control.set_incoming_status(Status::None, Status::Active);
    let cancel = Cancel::new().unwrap();
    let links = control.link_incoming(&cancel);
    let link = links.switch().unwrap();

    let block = Block::anon("ram", 4 * PAGE as u64).unwrap();
    let memory = Memory::new(std::slice::from_ref(&block)).unwrap();
    memory.prepare().unwrap();
    memory.arm().unwrap();
    for page in received {
        memory.note_received(0, *page);
    }
    let requests = Requests::new(Arc::clone(&memory), Arc::new(Latency::new()));

    let (ours, mut theirs) = UnixStream::pair().unwrap();
    theirs.write_all(said).unwrap();
    let (reader, writer) = halves(ours, &link);
    let back = Arc::new(Back::new(writer, link.clone()));
    let connection = Connection { back, link, second: None, listener: None };
    // The head of the stream has been read from something else.
    let (before, _) = halves(UnixStream::pair().unwrap().0, &cancel);
    let mut main = Decoder::new(Input::new(Source::new(before, &control.received)), DecoderOptions::default());
    main.replace_source(Source::new(reader, &control.received));
    let listening = Listening::start(&control, &links, requests, vec![0], main, connection, deadlines).unwrap();
    Rig { control, cancel, memory, block, listening, source: sources_end(theirs) }
}

impl Rig {
    fn heard(&mut self) -> Option<ReturnMessage> {
        ReturnMessage::read(&mut self.source.0).unwrap()
    }

    /// The fault thread hears of a page that it knows nothing of, and somebody waits for that page until this returns.
    fn blinded(&self, seen: impl FnOnce()) {
        let stray = Block::anon("stray", PAGE as u64).unwrap();
        self.memory.uffd().unwrap().register(stray.address(), PAGE, Modes::MISSING).unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| stray.read(0, &mut [0; 8]));
            seen();
            if let Ok(uffd) = self.memory.uffd() {
                uffd.unregister(stray.address(), PAGE).unwrap();
            }
        });
    }
}

fn until(what: &str, condition: impl Fn() -> bool) {
    let end = Instant::now() + Duration::from_secs(60);
    while !condition() {
        assert!(Instant::now() < end, "waited too long: {what}");
        std::thread::yield_now();
    }
}

struct Path(PathBuf);

impl Drop for Path {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

#[test]
fn without_its_fault_thread_a_machine_that_runs_is_paused_and_a_recovery_brings_another() {
    let mut rig = rig();
    rig.listening.run_machine().unwrap();
    let listening = Arc::clone(&rig.listening);
    let waiting = std::thread::spawn(move || listening.wait());
    rig.blinded(|| until("a pause", || rig.control.incoming_status() == Status::PostcopyPaused));
    let why = rig.control.query_migrate()["error-desc"].as_str().unwrap().to_owned();
    assert!(why.starts_with("fault thread") && why.contains("in no block"), "{why}");
    assert_eq!(rig.heard(), None, "the connection is closed without a word");

    let path = Path(std::env::temp_dir().join(format!("qmig-blind-{}", std::process::id())));
    rig.control.recover_incoming(&Uri::parse(&format!("unix:{}", path.0.display())).unwrap(), None).unwrap();
    rig.source = sources_end(UnixStream::connect(&path.0).unwrap());
    until("the recovery", || rig.control.incoming_status() == Status::PostcopyRecover);
    let block = Arc::clone(&rig.block);
    let touching = std::thread::spawn(move || block.read(PAGE as u64, &mut [0; 8]));
    let mut resume = Output::new();
    resume.command(&Command::Resume);
    rig.source.1.write_all(resume.as_slice()).unwrap();
    assert_eq!(rig.heard(), Some(ReturnMessage::ResumeAck));
    let length = u32::try_from(PAGE).unwrap();
    assert_eq!(rig.heard(), Some(ReturnMessage::ReqPages { name: Some(b"ram".to_vec()), start: PAGE as u64, length }));
    rig.listening.abandon();
    rig.cancel.set();
    assert_eq!(waiting.join().unwrap().unwrap_err().kind, ErrorKind::Cancelled);
    // The machine has run: nobody finds zeros before it is known that nobody acts on them.
    assert_eq!((touching.is_finished(), rig.listening.waiting()), (false, 1));
    rig.listening.let_go();
    touching.join().unwrap().unwrap();
}

#[test]
fn a_connection_lost_behind_the_last_pong_of_the_package_is_a_pause() {
    let mut rig = rig();
    rig.listening.promise().unwrap();
    let mut ping = Output::new();
    ping.command(&Command::Ping(7));
    rig.source.1.write_all(ping.as_slice()).unwrap();
    assert_eq!(rig.heard(), Some(ReturnMessage::Pong(7)));
    rig.source.1.end();
    rig.listening.run_machine().unwrap();
    let listening = Arc::clone(&rig.listening);
    let waiting = std::thread::spawn(move || listening.wait());
    until("a pause", || rig.control.incoming_status() == Status::PostcopyPaused);
    assert_eq!(rig.heard(), None, "it runs, so nobody says that it does not");
    rig.listening.abandon();
    rig.cancel.set();
    waiting.join().unwrap().unwrap_err();
}

#[test]
fn a_connection_lost_before_it_keeps_the_machine_from_running() {
    let mut rig = rig();
    rig.source.1.end();
    assert_eq!(rig.heard(), Some(ReturnMessage::Shut(2)));
    assert_eq!(rig.listening.promise().unwrap_err().kind, ErrorKind::Truncated);
    rig.listening.run_machine().unwrap_err();
    rig.cancel.set();
    rig.listening.join();
}

#[test]
fn what_a_given_up_machine_waits_for_does_not_come_with_its_end() {
    let rig = rig();
    rig.listening.run_machine().unwrap();
    let block = Arc::clone(&rig.block);
    let touching = std::thread::spawn(move || block.read(PAGE as u64, &mut [0; 8]));
    until("a request", || rig.listening.waiting() == 1);
    rig.listening.abandon();
    rig.cancel.set();
    rig.listening.join();
    let Rig { block, memory, listening, control, .. } = rig;
    let weak = Arc::downgrade(&memory);
    drop((listening, memory, control));
    assert!(weak.upgrade().is_none(), "nobody has it any more");
    // Had its descriptor been closed the kernel would have woken the thread by now.
    assert!(!touching.is_finished());
    let error = crate::ram::Lease::take(&block).unwrap_err();
    assert_eq!(error.kind, ErrorKind::InvalidState, "{error}");
}

#[test]
fn whoever_stands_still_beside_a_page_that_will_never_come_is_ended_unless_there_is_life() {
    let rig = rig();
    rig.listening.run_machine().unwrap();
    let (life, (ended, end)) = (Arc::new(Life::default()), std::sync::mpsc::channel());
    let guard = || {
        vigil::keep(Arc::clone(&rig.listening), Arc::clone(&life), Duration::from_millis(200), {
            let ended = ended.clone();
            move |pages| ended.send(pages).unwrap()
        })
    };
    guard().unwrap();
    rig.listening.abandon();
    rig.cancel.set();
    rig.listening.join();
    let block = Arc::clone(&rig.block);
    let touching = std::thread::spawn(move || block.read(PAGE as u64, &mut [0; 8]));
    assert_eq!(end.recv_timeout(Duration::from_secs(60)), Ok(1), "nobody is waited for before");
    // Another watch, with a sign of life at each look: it ends with the memory's.
    let beating = Arc::clone(&life);
    let over = Arc::downgrade(&life);
    guard().unwrap();
    drop(life);
    drop(beating);
    rig.listening.let_go();
    touching.join().unwrap().unwrap();
    until("the end of the watch", || over.strong_count() == 0);
    assert!(end.try_recv().is_err());
}

#[test]
fn devices_that_are_never_loaded_are_not_waited_for() {
    let mut end = Output::new();
    end.eof();
    let mut rig = rig_saying(Deadlines { load: Duration::from_millis(50), ..Deadlines::default() }, &[0, 1, 2, 3], end.as_slice());
    assert_eq!(rig.heard(), Some(ReturnMessage::Shut(NEVER_RAN)));
    let error = rig.listening.run_machine().unwrap_err();
    assert!(error.kind == ErrorKind::Timeout && error.message.contains("devices were not loaded within 50ms"), "{error}");
    rig.listening.join();
}

#[test]
fn without_its_fault_thread_a_machine_that_does_not_run_is_given_back() {
    let mut rig = rig();
    rig.blinded(|| until("an end", || rig.listening.check().is_err()));
    assert_eq!(rig.heard(), Some(ReturnMessage::Shut(NEVER_RAN)));
    assert_eq!(rig.heard(), None);
    let error = rig.listening.check().unwrap_err();
    assert!(error.to_string().contains("in no block"), "{error}");
    assert!(rig.listening.run_machine().is_err());
    rig.listening.join();
    assert!(rig.listening.is_over());
}

#[test]
fn from_run_on_only_the_word_of_who_starts_the_machine_gives_it_back() {
    let error = || Error::new(ErrorKind::Cancelled, "an end");
    let mut rig = rig();
    rig.listening.run_machine().unwrap();
    // What `close` and a fault thread that dies do, however late they notice RUN.
    assert!(!rig.listening.abort(error()));
    rig.listening.check().unwrap();
    assert!(rig.listening.not_started(error()));
    assert_eq!(rig.heard(), Some(ReturnMessage::Shut(NEVER_RAN)));
    assert_eq!(rig.heard(), None);
    rig.listening.join();
}

#[test]
fn who_gives_up_a_machine_after_run_says_nothing() {
    let mut rig = rig();
    rig.listening.run_machine().unwrap();
    rig.listening.abandon();
    rig.source.1.end(); // the listen thread notices, with the way back still open
    assert_eq!(rig.heard(), None);
    rig.listening.join();
    assert!(rig.listening.is_over());
}
