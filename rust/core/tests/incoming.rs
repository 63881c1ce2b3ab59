//! What the destination refuses, seen from the other end of its channel.
#![allow(clippy::unwrap_used, missing_docs)]

use std::io::Write;
use std::os::unix::net::UnixStream;

use qmig_core::channel::Uri;
use qmig_core::ram::Block;
use qmig_core::recv::Incoming;
use qmig_core::wire::{DecoderOptions, Output};
use qmig_core::{Error, ErrorKind};

/// What the destination says of a stream without any section, whose last words are `end`.
fn refusal(end: impl FnOnce(&mut Output)) -> Error {
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    let incoming = Incoming::new(vec![Block::anon("ram", 4096).unwrap()], DecoderOptions::default()).unwrap();
    incoming.listen(&Uri::parse("fd:test").unwrap(), Some(theirs.into())).unwrap();
    let mut stream = Output::new();
    stream.file_header();
    stream.configuration(b"none");
    stream.open_return_path();
    end(&mut stream);
    ours.write_all(stream.as_slice()).unwrap();
    incoming.accept().unwrap();
    incoming.next().unwrap();
    incoming.next().unwrap_err()
}

#[test]
fn a_stream_without_ram_is_refused_at_the_fence_and_at_the_end() {
    for error in [refusal(|stream| stream.ping(2)), refusal(Output::eof)] {
        assert_eq!((error.kind, error.path.as_str()), (ErrorKind::MissingSection, "ram"), "{error}");
        assert!(error.offset.is_some());
    }
}
