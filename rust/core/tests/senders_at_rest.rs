//! What the senders of multifd and the writers of a mapped-ram file take while there is nothing for them to do, and leave behind.
#![allow(clippy::unwrap_used, missing_docs)]

use std::fs;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use qmig_core::channel::Uri;
use qmig_core::control::{Control, Parameters};
use qmig_core::ram::Block;
use qmig_core::ram::dirty::DirtyMode;
use qmig_core::send::{Format, Options, Outgoing, Step};
use qmig_core::wire::Output;
use qmig_core::{ErrorKind, Result};
use rustix::fs::{MemfdFlags, memfd_create};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketType, bind, listen, socket};

const CHANNELS: u8 = 4;
const PAGES: usize = 2000;
const SOON: Duration = Duration::from_secs(30);

/// Threads and descriptors are the process's: one test at a time.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Names of the threads with the ticks that each has run.
fn tasks() -> Vec<(String, u64)> {
    let mut tasks = Vec::new();
    for entry in fs::read_dir("/proc/self/task").unwrap() {
        // It may have ended meanwhile.
        let Ok(stat) = fs::read_to_string(entry.unwrap().path().join("stat")) else { continue };
        let (name, rest) = stat.split_once('(').unwrap().1.rsplit_once(')').unwrap();
        let fields: Vec<&str> = rest.split_whitespace().collect();
        let ticks = |at: usize| fields[at].parse::<u64>().unwrap();
        tasks.push((name.to_owned(), ticks(11) + ticks(12)));
    }
    tasks
}

fn ticks(prefix: &str) -> (usize, u64) {
    let tasks: Vec<u64> = tasks().into_iter().filter(|(name, _)| name.starts_with(prefix)).map(|(_, ticks)| ticks).collect();
    (tasks.len(), tasks.iter().sum())
}

/// Descriptors and senders of this process.
fn taken() -> (usize, usize) {
    (fs::read_dir("/proc/self/fd").unwrap().count(), ticks("multifd-").0)
}

/// A thread that was joined is listed for a moment still.
fn given_back(before: (usize, usize)) {
    let end = Instant::now() + SOON;
    while taken() != before {
        assert!(Instant::now() < end, "{:?} descriptors and threads, before {before:?}", taken());
        thread::yield_now();
    }
}

fn outgoing(capabilities: &[&str], block: &Arc<Block>) -> (Arc<Control>, Outgoing) {
    let control = Arc::new(Control::new(None));
    control.set_capabilities(capabilities.iter().map(|name| (*name).to_owned()));
    control.set_parameters(Parameters { max_bandwidth: 0, multifd_channels: CHANNELS, ..Parameters::default() });
    control.begin_outgoing().unwrap();
    let options = Options { format: Format::V10_0, section_id: 2, footers: true, switchover_start: true, dirty: DirtyMode::Explicit };
    let outgoing = Outgoing::new(Arc::clone(&control), vec![Arc::clone(block)], options).unwrap();
    (control, outgoing)
}

/// Up to the stop of the machine.
fn run(outgoing: &mut Outgoing, uri: &Uri, fd: Option<OwnedFd>, capabilities: &[&[u8]]) -> Result<()> {
    outgoing.connect(uri, fd)?;
    let mut head = Output::new();
    head.file_header();
    head.configuration(b"none");
    if !capabilities.is_empty() {
        head.configuration_capabilities(capabilities);
    }
    outgoing.setup(head.as_slice(), &[None])?;
    assert_eq!(outgoing.run(0)?, Step::Switchover);
    Ok(())
}

fn filled() -> Arc<Block> {
    let block = Block::anon("ram", PAGES as u64 * 4096).unwrap();
    block.fill(0, PAGES * 4096, 7).unwrap();
    block
}

fn path(name: &str) -> (PathBuf, Uri) {
    let path = std::env::temp_dir().join(format!("qmig-at-rest-{}-{name}", std::process::id()));
    let _ = fs::remove_file(&path);
    let uri = Uri::parse(&format!("unix:{}", path.display())).unwrap();
    (path, uri)
}

/// Takes all connections and what comes over them; of the last one no more than `last` bytes.
fn takes(listener: UnixListener, last: u64) -> JoinHandle<()> {
    thread::spawn(move || {
        let streams: Vec<UnixStream> = (0..=CHANNELS).map(|_| listener.accept().unwrap().0).collect();
        let read = |(number, stream): (usize, UnixStream)| {
            let most = if number == usize::from(CHANNELS) { last } else { u64::MAX };
            thread::spawn(move || std::io::copy(&mut stream.take(most), &mut std::io::sink()))
        };
        let readers: Vec<_> = streams.into_iter().enumerate().map(read).collect();
        for reader in readers {
            // A source that gives up may reset it.
            let _ = reader.join().unwrap();
        }
    })
}

/// While this thread runs for so many ticks, those whose names begin with `prefix` do not.
fn sleep(prefix: &str) {
    let mine = || {
        let stat = fs::read_to_string("/proc/thread-self/stat").unwrap();
        let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
        fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
    };
    // A thread that has just begun has no name yet.
    let end = Instant::now() + SOON;
    while ticks(prefix).0 < CHANNELS.into() {
        assert!(Instant::now() < end, "{:?}", tasks());
        thread::yield_now();
    }
    let before = ticks(prefix).1;
    let begun = mine();
    while mine() < begun + 20 {}
    let after = ticks(prefix).1;
    assert!(after - before <= 2, "{prefix}: {} ticks of 20", after - before);
}

#[test]
fn senders_sleep_while_the_migration_is_held() {
    let _alone = alone();
    let (path, uri) = path("idle");
    let peer = takes(UnixListener::bind(&path).unwrap(), u64::MAX);
    let (_control, mut outgoing) = outgoing(&["multifd"], &filled());
    run(&mut outgoing, &uri, None, &[]).unwrap();
    sleep("multifd-");
    outgoing.close();
    peer.join().unwrap();
    fs::remove_file(path).unwrap();
}

#[test]
fn writers_sleep_while_the_migration_is_held() {
    let _alone = alone();
    let file = memfd_create("file", MemfdFlags::CLOEXEC).unwrap();
    let (_control, mut outgoing) = outgoing(&["mapped-ram", "multifd"], &filled());
    run(&mut outgoing, &Uri::parse("fd:file").unwrap(), Some(file), &[b"mapped-ram"]).unwrap();
    sleep("mapped-ram ");
    outgoing.close();
}

#[test]
fn a_channel_that_fails_leaves_nothing_behind() {
    let _alone = alone();
    let before = taken();
    for last in [0, 100, 100_000] {
        let (path, uri) = path("fails");
        let peer = takes(UnixListener::bind(&path).unwrap(), last);
        let (control, mut outgoing) = outgoing(&["multifd"], &filled());
        let error = run(&mut outgoing, &uri, None, &[]).unwrap_err();
        assert!(matches!(error.kind, ErrorKind::Closed | ErrorKind::Io), "{error}");
        outgoing.close();
        assert!(control.owned());
        peer.join().unwrap();
        drop((control, outgoing));
        fs::remove_file(path).unwrap();
        given_back(before);
    }
}

#[test]
fn a_cancel_while_channels_connect_leaves_nothing_behind() {
    let _alone = alone();
    let before = taken();
    let (path, uri) = path("cancel");
    // Nobody accepts, and not all find a place to wait.
    let listener = socket(AddressFamily::UNIX, SocketType::STREAM, None).unwrap();
    bind(&listener, &SocketAddrUnix::new(&path).unwrap()).unwrap();
    listen(&listener, 0).unwrap();
    let (control, mut outgoing) = outgoing(&["multifd"], &filled());
    let held = taken();
    let error = thread::scope(|scope| {
        let running = scope.spawn(|| run(&mut outgoing, &uri, None, &[]).unwrap_err());
        let end = Instant::now() + SOON;
        while taken().0 <= held.0 && !running.is_finished() {
            assert!(Instant::now() < end, "nobody connects");
            thread::yield_now();
        }
        assert!(control.cancel());
        running.join().unwrap()
    });
    assert_eq!(error.kind, ErrorKind::Cancelled, "{error}");
    outgoing.close();
    assert!(control.owned());
    drop((control, outgoing, listener));
    fs::remove_file(path).unwrap();
    given_back(before);
}
