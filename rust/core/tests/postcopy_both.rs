//! Both real sides of postcopy with a relay between them that can be cut: a busy memory arrives whole, and the machine runs once.
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation, missing_docs)]

mod certs;
mod scripted;

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

use qmig_core::Result;
use qmig_core::channel::{Tls, Uri};
use qmig_core::control::{Control, Parameters, Status};
use qmig_core::ram::Block;
use qmig_core::ram::dirty::DirtyMode;
use qmig_core::send::{Format, Options, Outgoing, Step};
use qmig_core::wire::Output;

use scripted::{Destination, Manner, PAGE, Path, anon, content, device, until, verify_page};

// ---- the relay -------------------------------------------------------------------------------------------------------

/// Passes connections on in their order, until it is cut.
struct Relay {
    path: Path,
    open: Arc<Mutex<Vec<UnixStream>>>,
    /// Bytes that the first connection may carry, each way.
    limits: [usize; 2],
    passed: Arc<[AtomicUsize; 2]>,
    ended: Arc<AtomicBool>,
}

impl Relay {
    fn start(name: &str, to: &Arc<Path>, limits: [usize; 2]) -> Self {
        let path = Path::new(&format!("relay-{name}"));
        let relay =
            Self { path, open: Arc::default(), limits, passed: Arc::new([const { AtomicUsize::new(0) }; 2]), ended: Arc::default() };
        let listener = UnixListener::bind(relay.path.uri().to_string().trim_start_matches("unix:")).unwrap();
        let (to, open, limits) = (Arc::clone(to), Arc::clone(&relay.open), relay.limits);
        let (passed, ended) = (Arc::clone(&relay.passed), Arc::clone(&relay.ended));
        thread::spawn(move || {
            for (number, source) in listener.incoming().enumerate() {
                if ended.load(Ordering::SeqCst) {
                    return;
                }
                let (source, destination) = (source.unwrap(), to.stream());
                open.lock().unwrap().extend([source.try_clone().unwrap(), destination.try_clone().unwrap()]);
                let limits = if number == 0 { limits } else { [usize::MAX; 2] };
                let ends = [(source.try_clone().unwrap(), destination.try_clone().unwrap()), (destination, source)];
                for (way, (from, into)) in ends.into_iter().enumerate() {
                    let passed = Arc::clone(&passed);
                    thread::spawn(move || pass(from, into, limits[way], &passed[way]));
                }
            }
        });
        relay
    }

    fn cut(&self) {
        for socket in self.open.lock().unwrap().drain(..) {
            let _ = socket.shutdown(Shutdown::Both);
        }
    }

    fn passed(&self) -> [usize; 2] {
        [0, 1].map(|way| self.passed[way].load(Ordering::SeqCst))
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::SeqCst);
        let _ = UnixStream::connect(self.path.uri().to_string().trim_start_matches("unix:"));
        self.cut();
    }
}

/// The end of one way ends that way; its limit ends the connection.
fn pass(mut from: UnixStream, mut into: UnixStream, limit: usize, passed: &AtomicUsize) {
    let mut buffer = [0; 16384];
    let mut left = limit;
    loop {
        let most = buffer.len().min(left);
        match from.read(&mut buffer[..most]) {
            Ok(0) | Err(_) => break,
            Ok(n) if into.write_all(&buffer[..n]).is_ok() => {
                left -= n;
                passed.fetch_add(n, Ordering::SeqCst);
            }
            Ok(_) => break,
        }
    }
    let how = if left == 0 { Shutdown::Both } else { Shutdown::Write };
    let _ = into.shutdown(how);
    if left == 0 {
        let _ = from.shutdown(Shutdown::Both);
    }
}

// ---- the source ------------------------------------------------------------------------------------------------------

#[derive(Debug, Clone, Copy)]
struct Way {
    format: Format,
    preempt: bool,
    secure: bool,
}

const WAYS: [Way; 3] = [
    Way { format: Format::V7_2, preempt: false, secure: false },
    Way { format: Format::V7_2, preempt: true, secure: false },
    Way { format: Format::V10_0, preempt: true, secure: false },
];

fn source_control(way: Way, tls: Option<Arc<Tls>>) -> Arc<Control> {
    let control = Arc::new(Control::new(None));
    control.set_tls(tls);
    let capabilities = if way.preempt { ["postcopy-ram", "postcopy-preempt"].as_slice() } else { &["postcopy-ram"] };
    control.set_capabilities(capabilities.iter().map(|name| (*name).to_owned()));
    control.begin_outgoing().unwrap();
    control
}

/// Switches at once; true if the machine went there for good.
fn source(control: &Arc<Control>, blocks: &[Arc<Block>], uri: &Uri, way: Way) -> Result<()> {
    let switchover_start = way.format == Format::V10_0;
    let options = Options { format: way.format, section_id: 2, footers: true, switchover_start, dirty: DirtyMode::Explicit };
    let session = control.outgoing().unwrap();
    let mut outgoing = Outgoing::new(Arc::clone(control), blocks.to_vec(), options)?;
    let moved = (|| {
        outgoing.connect(uri, None)?;
        let mut head = Output::new();
        head.file_header();
        head.configuration(b"none");
        outgoing.setup(head.as_slice(), &[None])?;
        control.start_postcopy()?;
        loop {
            match outgoing.run(0)? {
                Step::Postcopy => break,
                Step::Switchover => panic!("postcopy was wanted"),
                Step::Iterate | Step::Throttle => {}
            }
        }
        let mut full = Output::new();
        device(&mut full);
        session.mark_stopped();
        outgoing.postcopy(&[], full.as_slice())
    })();
    if let Err(error) = &moved {
        session.fail(error.clone());
    }
    outgoing.close();
    session.finish();
    moved
}

fn filled(sizes: &[(&str, usize)]) -> Vec<Arc<Block>> {
    let blocks = anon(sizes);
    for block in &blocks {
        for page in 0..block.pages() {
            block.write((page * PAGE) as u64, &content(block.name(), page)).unwrap();
        }
    }
    blocks
}

fn capabilities(way: Way) -> &'static [&'static str] {
    if way.preempt { &["postcopy-preempt"] } else { &[] }
}

// ---- the tests -------------------------------------------------------------------------------------------------------

const PAGES: usize = 3_000;

/// How many touches are allowed; all in the end, whatever happens.
struct Leash(AtomicUsize);

/// Lets the threads run to their ends.
struct Loose<'a>(&'a Leash);

impl Drop for Loose<'_> {
    fn drop(&mut self) {
        self.0.0.store(usize::MAX, Ordering::Relaxed);
    }
}

/// Touches every page in an order of its own.
fn touch(block: &Block, number: usize, touched: &AtomicUsize, leash: &Leash) {
    let pages = block.pages();
    for i in 0..pages {
        while touched.load(Ordering::Relaxed) >= leash.0.load(Ordering::Relaxed) {
            thread::yield_now();
        }
        verify_page(block, (i * 7919 + number * pages / 3) % pages);
        touched.fetch_add(1, Ordering::Relaxed);
    }
}

fn there(way: Way, cuts: usize) {
    let here = filled(&[("ram", PAGES), ("rom", 9)]);
    let name = format!("{:?}-{}-{}-{cuts}", way.format, way.preempt, way.secure);
    let to = Arc::new(Path::new(&format!("to-{name}")));
    let relay = Relay::start(&name, &to, [usize::MAX; 2]);
    let destination = Destination::new(anon(&[("ram", PAGES), ("rom", 9)]), capabilities(way));
    let (client, server) = way.secure.then(certs::pair).unzip();
    destination.control.set_tls(server);
    destination.incoming.listen(&to.uri(), None).unwrap();
    destination.start(Manner::Touches);
    let control = source_control(way, client);
    // Most pages are left for the threads to ask for, on the slowest machine.
    control.set_parameters(Parameters { max_postcopy_bandwidth: 64 << 10, ..Parameters::default() });
    let (touched, leash) = (AtomicUsize::new(0), Leash(AtomicUsize::new(0)));
    thread::scope(|scope| {
        let _guard = destination.guard();
        let loose = Loose(&leash);
        let sending = scope.spawn(|| source(&control, &here, &relay.path.uri(), way));
        destination.wait_started();
        for thread in 0..3 {
            let (block, touched, leash) = (&destination.blocks[0], &touched, &leash);
            scope.spawn(move || touch(block, thread, touched, leash));
        }
        for cut in 0..cuts {
            // Some way on; three threads have three times as many touches as there are pages, so something is missing still. They stop
            // there, however late this one comes to cut the connection.
            let goal = touched.load(Ordering::Relaxed) + 200;
            leash.0.store(goal, Ordering::Relaxed);
            until("some pages", || touched.load(Ordering::Relaxed) >= goal);
            match cut % 3 {
                0 => relay.cut(),
                1 => control.pause().unwrap(),
                _ => destination.control.pause().unwrap(),
            }
            until("a pause", || control.outgoing_status() == Status::PostcopyPaused);
            relay.cut();
            destination.paused();
            destination.control.recover_incoming(&to.uri(), None).unwrap();
            control.resume_outgoing(&relay.path.uri(), None).unwrap();
            until("the recovery", || {
                let (there, here) = (destination.control.incoming_status(), control.outgoing_status());
                !matches!(there, Status::PostcopyPaused | Status::PostcopyRecover)
                    && !matches!(here, Status::PostcopyPaused | Status::PostcopyRecover)
            });
        }
        drop(loose);
        let requests = || control.query_migrate()["ram"]["postcopy-requests"].as_u64().unwrap();
        until("a request", || requests() > 0);
        control.set_parameters(Parameters::default());
        until("the end of the source", || sending.is_finished());
        sending.join().unwrap().unwrap();
    });
    destination.outcome().unwrap();
    destination.verify();
    assert_eq!((control.outgoing_status(), destination.control.incoming_status()), (Status::Completed, Status::Completed));
    assert!(!control.owned());
}

#[test]
fn everything_arrives_where_threads_wait_for_it() {
    for way in WAYS {
        there(way, 0);
    }
}

#[test]
fn everything_arrives_through_eight_cuts() {
    for way in WAYS {
        there(way, 8);
    }
}

#[test]
fn everything_arrives_over_tls_through_three_cuts() {
    for way in WAYS {
        there(Way { secure: true, ..way }, 3);
    }
}

/// One switch over a connection that carries so many bytes each way. Who runs the machine in the end: (here, there).
fn once(name: &str, manner: Manner, limits: [usize; 2]) -> ((bool, bool), [usize; 2]) {
    let way = WAYS[0];
    let here = filled(&[("ram", 4)]);
    let to = Arc::new(Path::new(&format!("to-{name}")));
    let relay = Relay::start(name, &to, limits);
    let destination = Destination::new(anon(&[("ram", 4)]), &[]);
    destination.incoming.listen(&to.uri(), None).unwrap();
    destination.start(manner);
    let control = source_control(way, None);
    let runs = thread::scope(|scope| {
        let _guard = destination.guard();
        let sending = scope.spawn(|| source(&control, &here, &relay.path.uri(), way));
        until("an end or a pause here", || sending.is_finished() || control.outgoing_status() == Status::PostcopyPaused);
        let session = control.outgoing().unwrap();
        session.cancel.set();
        let moved = sending.join().unwrap();
        assert!(!(moved.is_ok() && control.owned()), "a machine that went there is not here");
        until("an end or a pause there", || {
            destination.control.incoming_status().is_final() || destination.control.incoming_status() == Status::PostcopyPaused
        });
        if destination.control.incoming_status() == Status::PostcopyPaused {
            destination.wait_started();
        }
        (control.owned(), destination.started.load(Ordering::SeqCst))
    });
    let passed = relay.passed();
    destination.incoming.abandon();
    let _ = destination.outcome();
    (runs, passed)
}

#[test]
fn at_most_one_runs_wherever_the_connection_is_cut() {
    let (runs, whole) = once("whole", Manner::Good, [usize::MAX; 2]);
    assert_eq!(runs, (false, true));
    let mut seen = Vec::new();
    for way in [0, 1] {
        // Inside pages one byte is as good as any other.
        for cut in (0..whole[way]).filter(|cut| *cut < 400 || cut % 97 == 0 || cut + 700 > whole[way]) {
            let mut limits = [usize::MAX; 2];
            limits[way] = cut;
            let (runs, _) = once(&format!("cut-{way}"), Manner::Good, limits);
            assert_ne!(runs, (true, true), "both, cut after byte {cut} of way {way}");
            seen.push(runs);
        }
    }
    assert!(seen.contains(&(true, false)) && seen.contains(&(false, true)), "it is given away somewhere in between");
}

#[test]
fn a_source_that_missed_the_last_word_hears_it_when_it_asks_again() {
    let (_, [_, returned]) = once("word", Manner::Good, [usize::MAX; 2]);
    for way in WAYS {
        let here = filled(&[("ram", 4)]);
        let to = Arc::new(Path::new("to-word"));
        let relay = Relay::start("word", &to, [usize::MAX, returned - 1]);
        let destination = Destination::new(anon(&[("ram", 4)]), capabilities(way));
        destination.incoming.listen(&to.uri(), None).unwrap();
        destination.start(Manner::Good);
        let control = source_control(way, None);
        thread::scope(|scope| {
            let sending = scope.spawn(|| source(&control, &here, &relay.path.uri(), way));
            until("a pause here", || control.outgoing_status() == Status::PostcopyPaused);
            destination.outcome().unwrap();
            // the first time the word gets lost again
            for limit in [8, usize::MAX] {
                let again = Arc::new(Path::new("again"));
                let relay = Relay::start("again", &again, [usize::MAX, limit]);
                destination.control.recover_incoming(&again.uri(), None).unwrap();
                assert!(destination.control.query_migrate()["socket-address"].is_array());
                control.resume_outgoing(&relay.path.uri(), None).unwrap();
                until("the recovery", || {
                    let paused = control.outgoing_status() == Status::PostcopyPaused && control.query_migrate().get("error-desc").is_some();
                    sending.is_finished() || (limit == 8 && relay.passed()[1] == 8 && paused)
                });
            }
            sending.join().unwrap().unwrap();
        });
        assert_eq!((control.outgoing_status(), destination.control.incoming_status()), (Status::Completed, Status::Completed));
        assert!(!control.owned());
        until("the end of the listener", || destination.control.query_migrate().get("socket-address").is_none());
        destination.verify();
    }
}

#[test]
fn a_machine_that_does_not_start_there_goes_on_here() {
    for manner in [Manner::Refuses, Manner::CannotStart] {
        let (runs, _) = once(&format!("back-{manner:?}"), manner, [usize::MAX; 2]);
        assert_eq!(runs, (true, false), "{manner:?}");
    }
}
