//! A block served from this machine.

use std::io::Read;
use std::os::unix::net::UnixStream;

use super::super::local::{BlockSource, BufferSource, FileSource, PageSource, Service, Source};
use super::*;

/// The byte of a page; none is zero.
fn value(page: u64) -> u8 {
    (page % 251) as u8 + 1
}

/// A block with that.
fn pattern(size: u64) -> Arc<Block> {
    let block = block("source", size, Backing::Anon, false);
    for page in 0..size / PAGE {
        block.fill(page * PAGE, TARGET_PAGE, value(page)).unwrap();
    }
    block
}

fn file(name: &str, bytes: &[u8]) -> std::fs::File {
    let path = std::env::temp_dir().join(format!("qmig-{name}-{}", std::process::id()));
    std::fs::write(&path, bytes).unwrap();
    let file = std::fs::File::open(&path).unwrap();
    std::fs::remove_file(path).unwrap();
    file
}

fn pages(source: impl PageSource + 'static) -> Source {
    Source::Pages(Box::new(source))
}

#[test]
fn every_source_serves_every_kind() {
    let size = 4 * HUGE;
    let source = pattern(size);
    let all = bytes(&source, 0, size as usize);
    let memory = Box::leak(Box::new(Arc::clone(&source))).view();
    for (kind, block) in kinds("every_source_serves_every_kind", size) {
        for (name, from) in [
            ("block", pages(BlockSource(Arc::clone(&source)))),
            ("buffer", pages(BufferSource::new(memory))),
            ("file", pages(FileSource(file("pages", &all)))),
            ("socket", Source::Socket(peer(all.clone(), Manner::Answers))),
        ] {
            let service = Service::arm(&block, from).unwrap();
            for page in [0, 5, 1000, 2047, 5] {
                assert_eq!(wait(&touch(&block, page * PAGE + 7, 1)), [value(page)], "{kind} from {name}, page {page}");
            }
            // Whoever touched a page knows of it before the books do.
            while service.requests().outstanding() > 0 {
                std::thread::yield_now();
            }
            let stats = service.stats();
            let (asked, received) = match (block.page_size(), name) {
                // One page came unasked; of the huge ones it was needed later.
                (PAGE, "socket") => (4, 5),
                (_, "socket") => (2, 3),
                (PAGE, _) => (4, 4),
                _ => (3, 3),
            };
            assert_eq!(
                (&stats["requests"], &stats["received"], &stats["outstanding"]),
                (&asked.into(), &received.into(), &0.into()),
                "{stats}"
            );
            assert_eq!(stats["phases"]["total"]["count"], asked, "{stats}");
            assert_eq!((&stats["pages"], &stats["error"]), (&(size / block.page_size()).into(), &serde_json::Value::Null));
            service.close(true).unwrap();
            assert!(bytes(&block, 0, size as usize) == all, "{kind} from {name}");
            service.close(true).unwrap();
            service.close(false).unwrap();
        }
    }
}

#[test]
fn without_filling_the_rest_reads_zero() {
    let (block, source) = (block("ram", HUGE, Backing::Anon, true), pattern(HUGE));
    let service = Service::arm(&block, pages(BlockSource(source))).unwrap();
    assert_eq!(wait(&touch(&block, PAGE, 1)), [2]);
    assert!(service.requests().memory().uffd().is_ok());
    drop(service);
    assert_eq!((bytes(&block, PAGE, 1), bytes(&block, 2 * PAGE, 1)), (vec![2], vec![0]));
}

#[test]
fn sources_are_looked_at_first() {
    let block = block("ram", HUGE, Backing::Anon, true);
    block.fill(0, 1, 9).unwrap();
    let short = || pages(FileSource(file("short", &[1; 4096])));
    refused(ErrorKind::InvalidArgument, "the page source has 0x1000 bytes, block \"ram\" 0x200000", Service::arm(&block, short()));
    refused(ErrorKind::InvalidArgument, "lies in block \"ram\" itself", Service::arm(&block, pages(BlockSource(Arc::clone(&block)))));
    let (reader, _writer) = rustix::pipe::pipe().unwrap();
    refused(ErrorKind::Connect, "not open for writing", Service::arm(&block, Source::Socket(reader)));
    let (_reader, writer) = rustix::pipe::pipe().unwrap();
    refused(ErrorKind::InvalidArgument, "connected stream socket", Service::arm(&block, Source::Socket(writer)));
    // And the block still has what it had.
    assert_eq!(bytes(&block, 0, 1), [9]);
    assert_eq!(format!("{:?} {:?}", short(), Source::Socket(peer(Vec::new(), Manner::Leaves))), "Source::Pages Source::Socket");
}

#[test]
fn a_source_that_fails_is_named_and_nobody_reads_zeros() {
    let block = block("ram", HUGE, Backing::Anon, true);
    let good = file("shrinks", &vec![7; HUGE as usize]);
    let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&good));
    let shrinker = std::fs::OpenOptions::new().write(true).open(path).unwrap();
    let service = Service::arm(&block, pages(FileSource(good))).unwrap();
    assert_eq!(wait(&touch(&block, 0, 1)), [7]);
    shrinker.set_len(PAGE).unwrap();
    let read = touch(&block, 3 * PAGE, 1);
    while service.stats()["error"].is_null() {
        std::thread::yield_now();
    }
    refused(ErrorKind::Truncated, "the file with the pages, at 0x3000", service.close(true));
    assert!(read.try_recv().is_err(), "it waits");
    assert_eq!(service.stats()["outstanding"], 1);
    service.close(false).unwrap();
    assert_eq!(wait(&read), [0], "as was asked for");
}

#[derive(Clone, Copy)]
enum Manner {
    /// In order of the requests, after one page that nobody asked for.
    Answers,
    /// Closes after the first request.
    Leaves,
    /// Answers with a page outside.
    Lies,
    /// Answers twice.
    Repeats,
}

/// The other end of a socket source, with these pages.
fn peer(all: Vec<u8>, manner: Manner) -> std::os::fd::OwnedFd {
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    std::thread::spawn(move || {
        let mut request = [0; 16];
        let mut unasked = matches!(manner, Manner::Answers);
        while theirs.read_exact(&mut request).is_ok() {
            let number = |at: usize| u64::from_be_bytes(request[at..at + 8].try_into().unwrap());
            let (offset, len) = (number(0), number(8));
            let mut send = |offset: u64, at: u64| {
                let _ = theirs.write_all(&at.to_be_bytes());
                let _ = theirs.write_all(&all[offset as usize..(offset + len) as usize]);
            };
            match manner {
                Manner::Leaves => return,
                Manner::Lies => send(offset, offset + (1 << 40)),
                Manner::Repeats => (0..2).for_each(|_| send(offset, offset)),
                Manner::Answers => {
                    if std::mem::take(&mut unasked) && offset != len {
                        // The second host page: counted as received, and never asked for.
                        send(len, len);
                    }
                    send(offset, offset);
                }
            }
        }
    });
    ours.into()
}

#[test]
fn a_socket_that_misbehaves_is_named() {
    for (manner, kind, words, waits) in [
        (Manner::Leaves, ErrorKind::Truncated, "", true),
        (Manner::Lies, ErrorKind::BadAddress, "misaligned or outside", true),
        (Manner::Repeats, ErrorKind::BadAddress, "arrived twice", false),
    ] {
        let block = block("ram", HUGE, Backing::Anon, true);
        let service = Service::arm(&block, Source::Socket(peer(vec![3; HUGE as usize], manner))).unwrap();
        let read = touch(&block, 5 * PAGE, 1);
        while service.stats()["error"].is_null() {
            std::thread::yield_now();
        }
        refused(kind, words, service.close(true));
        service.close(false).unwrap();
        assert_eq!(wait(&read), [if waits { 0 } else { 3 }]);
    }
}
