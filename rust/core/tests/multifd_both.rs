//! Source and destination with several channels, the real ones, over relays of which one is cut after a given number of bytes: at most
//! one side may run the machine, and where it runs it has all memory.
#![allow(clippy::unwrap_used, missing_docs)]

mod certs;
mod cut;

use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use qmig_core::Result;
use qmig_core::channel::Uri;
use qmig_core::control::{Compression, Control, Parameters, Status};
use qmig_core::ram::Block;
use qmig_core::ram::dirty::DirtyMode;
use qmig_core::recv::Incoming;
use qmig_core::send::{Format, Options, Outgoing, Step};
use qmig_core::wire::multifd::{HEADER_BYTES, HELLO_BYTES};
use qmig_core::wire::{DecoderOptions, Event, Output, ReturnMessage};

use cut::relay;

const CHANNELS: usize = 2;
const PAGES: u64 = 300;
const PAGE: usize = 4096;
/// A connection that says less, and a channel without its whole first packet, is none of ours: the destination waits on.
const SPOKEN: usize = 4;

/// The PING after the last pages.
const FENCE: u32 = 2;

/// Where one connection ends: its number (0 is main), bytes of the source, bytes of the destination.
#[derive(Debug, Clone, Copy)]
struct Cut {
    connection: usize,
    forward: usize,
    back: usize,
    /// Over TLS, whose bytes are counted, too.
    secure: bool,
}

const NEVER: Cut = Cut { connection: 0, forward: usize::MAX, back: usize::MAX, secure: false };
const SECURE: Cut = Cut { secure: true, ..NEVER };

#[derive(Debug)]
struct Outcome {
    runs_there: bool,
    runs_here: bool,
    status: Status,
    /// Bytes of each connection from the source, and of main from the destination.
    forwarded: Vec<usize>,
    answered: usize,
}

fn control(compression: Compression) -> Arc<Control> {
    let control = Arc::new(Control::new(None));
    control.set_capabilities(["multifd".to_owned()]);
    let multifd_channels = u8::try_from(CHANNELS).unwrap();
    control.set_parameters(Parameters { max_bandwidth: 0, multifd_channels, multifd_compression: compression, ..Parameters::default() });
    control
}

fn source(control: &Arc<Control>, format: Format, block: &Arc<Block>, uri: &Uri) -> Result<()> {
    let switchover_start = format == Format::V10_0;
    let options = Options { format, section_id: 2, footers: true, switchover_start, dirty: DirtyMode::Explicit };
    let mut outgoing = Outgoing::new(Arc::clone(control), vec![Arc::clone(block)], options)?;
    let moved = (|| {
        outgoing.connect(uri, None)?;
        let mut head = Output::new();
        head.file_header();
        head.configuration(b"none");
        outgoing.setup(head.as_slice(), &[None])?;
        while outgoing.run(0)? != Step::Switchover {}
        // Written while the machine was about to stop.
        block.write(7 * PAGE as u64, &[7; PAGE])?;
        block.write(8 * PAGE as u64, &[0; PAGE])?;
        let mut tail = Output::new();
        tail.eof();
        tail.description(b"{}");
        outgoing.finish(&[None], &[], tail.as_slice())
    })();
    outgoing.close();
    moved
}

/// `accepted` once all of its connections stand.
fn destination(incoming: &Incoming, accepted: &AtomicBool) -> Result<()> {
    let ran = (|| {
        incoming.accept()?;
        accepted.store(true, Ordering::SeqCst);
        while incoming.next()? != Event::Finished {}
        Ok(())
    })();
    // The last word may not get through; what counts is whether the machine was started.
    let _ = incoming.finish(u32::from(ran.is_err()));
    incoming.close();
    ran
}

/// Every third page is zero.
fn filled() -> Arc<Block> {
    let block = Block::anon("ram", PAGES * PAGE as u64).unwrap();
    for page in (0..PAGES).filter(|page| page % 3 != 0) {
        block.write(page * PAGE as u64, &(page + 1).to_be_bytes().repeat(PAGE / 8)).unwrap();
    }
    block
}

fn contents(block: &Block) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(block.used_length()).unwrap()];
    block.read(0, &mut bytes).unwrap();
    bytes
}

fn socket(name: &str) -> (PathBuf, Uri) {
    let path = std::env::temp_dir().join(format!("qmig-multifd-both-{}-{name}", std::process::id()));
    let _ = std::fs::remove_file(&path);
    let uri = Uri::parse(&format!("unix:{}", path.display())).unwrap();
    (path, uri)
}

/// Writes page 9 just before the source hears that everything is there.
fn write_late(block: &Block, answer: &[u8]) {
    let mut pong = Output::new();
    ReturnMessage::Pong(FENCE).write(&mut pong);
    if answer.windows(pong.len()).any(|bytes| bytes == pong.as_slice()) {
        block.write(9 * PAGE as u64, &[9; PAGE]).unwrap();
    }
}

fn migrate(name: &str, format: Format, compression: Compression, cut: Cut) -> Outcome {
    migrate_with(name, format, compression, cut, |_, _| ())
}

/// `answered` is told of what main's destination says before the source hears it.
fn migrate_with(name: &str, format: Format, compression: Compression, cut: Cut, answered: fn(&Block, &[u8])) -> Outcome {
    let (here, there) = (control(compression), control(compression));
    if cut.secure {
        let (client, server) = certs::pair();
        here.set_tls(Some(client));
        there.set_tls(Some(server));
    }
    let session = here.begin_outgoing().unwrap();
    there.begin_incoming().unwrap();
    let (from, to) = (filled(), Block::anon("ram", PAGES * PAGE as u64).unwrap());
    let incoming = Incoming::new(there, vec![Arc::clone(&to)], DecoderOptions::default()).unwrap();
    let ((front, front_uri), (back, back_uri)) = (socket(&format!("{name}-front")), socket(&format!("{name}-back")));
    incoming.listen(&back_uri, None).unwrap();
    let listener = UnixListener::bind(&front).unwrap();
    let watched = &from;
    let (accepted, over) = (AtomicBool::new(false), AtomicBool::new(false));
    let (forwarded, heard, moved, ran) = thread::scope(|scope| {
        let relays = scope.spawn(|| {
            let mut relays = Vec::new();
            for connection in 0..=CHANNELS {
                let ours = listener.accept().unwrap().0;
                if over.load(Ordering::SeqCst) {
                    break;
                }
                // The destination may have given up over an earlier one.
                let Ok(theirs) = UnixStream::connect(&back) else { break };
                let (forward, backward) = if connection == cut.connection { (cut.forward, cut.back) } else { (usize::MAX, usize::MAX) };
                let (ours_too, theirs_too) = (ours.try_clone().unwrap(), theirs.try_clone().unwrap());
                let ahead = scope.spawn(move || relay(ours, theirs, forward, |_| ()));
                relays.push((ahead, scope.spawn(move || relay(theirs_too, ours_too, backward, |bytes| answered(watched, bytes)))));
            }
            drop(listener);
            relays.into_iter().map(|(ahead, behind)| (ahead.join().unwrap(), behind.join().unwrap())).collect::<Vec<_>>()
        });
        let loads = scope.spawn(|| destination(&incoming, &accepted));
        let moved = source(&here, format, &from, &front_uri);
        if let Err(error) = &moved {
            session.fail(error.clone());
            // Whoever has not been connected to waits no longer.
            over.store(true, Ordering::SeqCst);
            let _ = UnixStream::connect(&front);
        }
        session.finish();
        let passed = relays.join().unwrap();
        // A cut inside a handshake is no connection yet: the destination waits for a better one, and there is none.
        if moved.is_err() && !accepted.load(Ordering::SeqCst) {
            incoming.close();
        }
        let ran = loads.join().unwrap();
        (passed.iter().map(|(ahead, _)| *ahead).collect(), passed.first().map_or(0, |(_, behind)| *behind), moved, ran)
    });
    for path in [front, back] {
        let _ = std::fs::remove_file(path);
    }
    let runs_there = ran.is_ok();
    if runs_there {
        assert!(contents(&from) == contents(&to), "{cut:?}: the machine started on memory that is not the source's");
    }
    assert_eq!(moved.is_ok(), session.status() == Status::Completed);
    Outcome { runs_there, runs_here: session.owned(), status: session.status(), forwarded, answered: heard }
}

fn check(outcome: &Outcome, cut: Cut) {
    assert!(!(outcome.runs_there && outcome.runs_here), "{cut:?}: both sides would run the machine");
    match outcome.status {
        Status::Completed => assert!(outcome.runs_there, "{cut:?}: completed, but nobody runs it"),
        Status::Failed => {}
        other => panic!("{cut:?}: status {other:?}"),
    }
}

fn each_cut(name: &str, format: Format, compression: Compression) {
    let whole = migrate(name, format, compression, NEVER);
    assert_eq!(whole.status, Status::Completed);
    check(&whole, NEVER);
    for connection in 1..=CHANNELS {
        let length = whole.forwarded[connection];
        let header = HELLO_BYTES + HEADER_BYTES;
        for forward in [HELLO_BYTES, HELLO_BYTES + 1, header - 1, header, header + 1, length / 2, length - HEADER_BYTES, length - 1] {
            let cut = Cut { connection, forward, ..NEVER };
            let outcome = migrate(name, format, compression, cut);
            check(&outcome, cut);
            // Which channel had how much is chance, but one that says nothing after the first words carries nothing.
            assert!(outcome.runs_here || forward > header, "{cut:?}: {outcome:?}");
        }
    }
    // The fence and what follows it, and the beginning.
    let (main, answers) = (whole.forwarded[0], whole.answered);
    let mut unknown = 0;
    for forward in (SPOKEN..40).step_by(9).chain((main - 60..main).step_by(4)) {
        let cut = Cut { forward, ..NEVER };
        let outcome = migrate(name, format, compression, cut);
        check(&outcome, cut);
        unknown += usize::from(!outcome.runs_here && !outcome.runs_there);
    }
    assert!(unknown <= 8, "{unknown} cuts left nobody with the machine");
    for back in (1..answers).step_by(3) {
        let cut = Cut { back, ..NEVER };
        check(&migrate(name, format, compression, cut), cut);
    }
}

#[test]
fn cut_with_synchronisation_at_each_section() {
    each_cut("7.2", Format::V7_2, Compression::None);
}

#[test]
fn cut_with_synchronisation_once_a_round() {
    each_cut("10.0", Format::V10_0, Compression::Zstd(1));
}

#[test]
fn cut_over_tls() {
    for (format, compression) in [(Format::V7_2, Compression::None), (Format::V10_0, Compression::Zlib(1))] {
        let whole = migrate("tls", format, compression, SECURE);
        assert_eq!(whole.status, Status::Completed);
        check(&whole, SECURE);
        for connection in 0..=CHANNELS {
            let length = whole.forwarded[connection];
            // Behind the handshake: before that the destination waits on.
            for forward in [length / 2, length - 200, length - 60, length - 1] {
                let cut = Cut { connection, forward, ..SECURE };
                check(&migrate("tls", format, compression, cut), cut);
            }
        }
        for back in [whole.answered - 100, whole.answered - 60, whole.answered - 1] {
            let cut = Cut { back, ..SECURE };
            check(&migrate("tls", format, compression, cut), cut);
        }
    }
}

#[test]
fn what_is_written_behind_the_last_pages_arrives_too() {
    for (name, format) in [("late-7.2", Format::V7_2), ("late-10.0", Format::V10_0)] {
        for compression in [Compression::None, Compression::Zlib(1)] {
            let plain = migrate(name, format, compression, NEVER);
            let outcome = migrate_with(name, format, compression, NEVER, write_late);
            assert_eq!(outcome.status, Status::Completed, "{outcome:?}");
            check(&outcome, NEVER);
            assert!(outcome.answered > plain.answered, "there was no late pass");
        }
    }
}

#[test]
fn the_source_hears_that_its_channels_were_refused_and_not_only_that_they_are_closed() {
    let (here, there) = (control(Compression::None), control(Compression::Zlib(1)));
    let session = here.begin_outgoing().unwrap();
    there.begin_incoming().unwrap();
    let (from, to) = (Block::anon("ram", 16 << 20).unwrap(), Block::anon("ram", 16 << 20).unwrap());
    for page in 0..(16 << 20) / PAGE as u64 {
        from.write(page * PAGE as u64, &[1; 8]).unwrap();
    }
    let incoming = Incoming::new(there, vec![to], DecoderOptions::default()).unwrap();
    let (path, uri) = socket("refused");
    incoming.listen(&uri, None).unwrap();
    let (moved, ran) = thread::scope(|scope| {
        let loads = scope.spawn(|| destination(&incoming, &AtomicBool::new(false)));
        let moved = source(&here, Format::V7_2, &from, &uri);
        (moved, loads.join().unwrap())
    });
    let _ = std::fs::remove_file(path);
    assert!(ran.unwrap_err().message.contains("multifd-compression none there"));
    let error = moved.unwrap_err();
    assert!(error.message.contains("the destination refused the migration (status 1)"), "{error}");
    assert!(session.owned());
}
