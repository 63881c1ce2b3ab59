//! exec and file: the ends of commands, the bytes of files, and how both fail.

use std::os::unix::fs::PermissionsExt;

use super::*;

fn writer(text: &str) -> WriteHalf {
    let channel = open(text).unwrap();
    assert!(!channel.two_way());
    channel.writer.unwrap()
}

fn reader(text: &str) -> ReadHalf {
    accept(text).unwrap().reader.unwrap()
}

fn until(reached: impl Fn() -> bool) {
    let end = Instant::now() + Duration::from_secs(20);
    while !reached() {
        assert!(Instant::now() < end, "it did not happen");
        std::thread::yield_now();
    }
}

fn shown(path: &Path) -> std::path::Display<'_> {
    path.display()
}

#[test]
fn a_command_gets_and_gives_all_bytes() {
    let scratch = Scratch::new();
    let path = scratch.join("f");
    let bytes = pattern(3 << 20);
    let mut half = writer(&format!("exec:cat > {}", shown(&path)));
    half.write_iov(&bytes.chunks(4104).map(IoVec::from_slice).collect::<Vec<_>>()).unwrap();
    half.finish().unwrap();
    half.finish().unwrap();
    refused(half.write_all(b"x"), ErrorKind::InvalidState, "finished", "");
    assert_eq!(std::fs::read(&path).unwrap(), bytes);
    let mut half = reader(&format!("exec:cat {}", shown(&path)));
    assert_eq!(read_to_end(&mut half).unwrap(), bytes);
    half.finish().unwrap();
    assert_eq!(half.read(&mut [0; 1]).unwrap(), 0);
}

#[test]
fn a_failing_command_names_its_status() {
    for (command, cause) in [
        ("cat >/dev/null; exit 3", "status 3"),
        ("cat >/dev/null; kill -9 $$", "signal 9"),
        ("cat >/dev/null; no-such-command 2>/dev/null", "status 127 (not found)"),
        ("cat >/dev/null; exit 126", "status 126 (not executable)"),
    ] {
        let text = format!("exec:{command}");
        let mut half = writer(&text);
        half.write_all(b"bytes").unwrap();
        refused(half.finish(), ErrorKind::Io, &text, cause);
    }
    refused(read_to_end(&mut reader("exec:echo half; exit 4")), ErrorKind::Io, "exec:echo half; exit 4", "status 4");
    refused(reader("exec:echo half; exec >&-; exit 4").finish(), ErrorKind::Io, "exec:echo", "status 4");
}

#[test]
fn a_command_that_stops_reading_says_how_it_ended() {
    let mut half = writer("exec:exit 5");
    refused(half.write_all(&vec![0; 8 << 20]), ErrorKind::Closed, "exec:exit 5", "status 5 before it had read everything");
    let mut half = writer("exec:true");
    refused(half.write_all(&vec![0; 8 << 20]), ErrorKind::Closed, "exec:true", "status 0 before it had read everything");
}

#[test]
fn a_command_that_died_before_it_had_read_everything_is_noticed() {
    let late = Instant::now() + SOON;
    let mut half = writer("exec:exit 5");
    let _ = half.write_all(b"few"); // the pipe takes it as long as the command lives
    refused(half.drained(late), ErrorKind::Closed, "exec:exit 5", "status 5 before it had read everything");
    let mut half = writer("exec:exec <&-; exec sleep 1000");
    let _ = half.write_all(b"few");
    refused(half.drained(late), ErrorKind::Closed, "exec:exec", "the command closed its input before");
    let mut half = writer("exec:cat >/dev/null");
    half.write_all(b"few").unwrap();
    half.drained(late).unwrap();
    half.finish().unwrap();
}

#[test]
fn a_pipe_is_drained_by_its_reader_or_not_at_all() {
    let cancel = cancel();
    let (reader, end) = pipe();
    let mut half = connect(&uri("fd:p"), Some(end), &cancel).unwrap().writer.unwrap();
    half.drained(Instant::now()).unwrap();
    half.write_all(b"few").unwrap();
    refused(half.drained(Instant::now()), ErrorKind::Timeout, "fd:p", "does not read");
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| half.drained(Instant::now() + SOON));
        assert_eq!(rustix::io::read(&reader, &mut [0; 8]).unwrap(), 3);
        waiting.join().unwrap().unwrap();
    });
    half.write_all(b"few").unwrap();
    drop(reader);
    refused(half.drained(Instant::now() + SOON), ErrorKind::Closed, "fd:p", "Broken pipe");
    let (_reader, end) = pipe();
    let mut half = connect(&uri("fd:p"), Some(end), &cancel).unwrap().writer.unwrap();
    half.write_all(b"few").unwrap();
    cancel.set();
    refused(half.drained(Instant::now() + SOON), ErrorKind::Cancelled, "fd:p", "cancelled");
}

#[test]
fn what_a_command_says_after_the_stream_does_not_matter() {
    let mut half = reader("exec:exec yes");
    assert!(half.read(&mut [0; 100]).unwrap() > 0);
    half.finish().unwrap(); // SIGPIPE, or EPIPE as a status of its own
}

#[test]
fn cancel_ends_a_whole_pipeline() {
    let scratch = Scratch::new();
    let alive = scratch.join("alive");
    rustix::fs::mknodat(rustix::fs::CWD, &alive, rustix::fs::FileType::Fifo, rustix::fs::Mode::RWXU, 0).unwrap();
    // All parts of the pipeline hold the FIFO open: its reader sees the end when the last of them has gone.
    let cancel = cancel();
    let text = format!("exec:exec 9>{}; (sleep 1000) | (sleep 1000; cat)", shown(&alive));
    let channel = connect(&uri(&text), None, &cancel).unwrap();
    let fifo = std::fs::File::open(&alive).unwrap();
    let mut writer = channel.writer.unwrap();
    let finisher = std::thread::spawn(move || writer.finish());
    cancel.set();
    refused(finisher.join().unwrap(), ErrorKind::Cancelled, "exec:", "cancelled");
    assert_eq!(std::io::Read::read(&mut &fifo, &mut [0; 1]).unwrap(), 0);
}

#[test]
fn a_command_that_gets_half_a_stream_is_ended_first() {
    let scratch = Scratch::new();
    let path = scratch.join("done");
    let text = format!("exec:cat >/dev/null; echo whole > {}", shown(&path));
    let mut half = writer(&text);
    half.write_all(b"half").unwrap();
    drop(half);
    assert!(!path.exists());
}

#[test]
fn a_command_that_takes_its_time_after_the_end_is_left_to_finish() {
    let scratch = Scratch::new();
    let (go, done) = (scratch.join("go"), scratch.join("done"));
    let text =
        format!("exec:cat >/dev/null; mkfifo {g}.fifo; mv {g}.fifo {g}; read x < {g}; echo whole > {d}", g = shown(&go), d = shown(&done));
    let mut half = writer(&text);
    half.write_all(b"whole").unwrap();
    half.set_deadline(Instant::now() + Duration::from_millis(50));
    refused(half.finish(), ErrorKind::Timeout, "exec:cat", "does not end");
    drop(half);
    until(|| go.exists());
    std::fs::write(&go, "x\n").unwrap();
    until(|| done.exists());
}

#[test]
fn a_stubborn_command_is_killed() {
    let scratch = Scratch::new();
    let path = scratch.join("pid");
    let text = format!("exec:trap '' TERM; echo $$ > {p}.new; mv {p}.new {p}; echo ready; while :; do read x; done", p = shown(&path));
    let mut half = reader(&text);
    assert!(half.read(&mut [0; 16]).unwrap() > 0);
    let pid = std::fs::read_to_string(&path).unwrap();
    drop(half);
    assert!(!Path::new(&format!("/proc/{}", pid.trim())).exists());
}

#[test]
fn cancel_ends_waiting_for_a_command() {
    ends_by_cancel(|cancel, begin| {
        let listener = bind("exec:sleep 1000").unwrap();
        begin();
        listener.accept(cancel).map(drop)
    });
    ends_by_cancel(|cancel, begin| {
        let listener = bind("exec:echo; exec sleep 1000").unwrap();
        let mut half = listener.accept(cancel).unwrap().reader.unwrap();
        assert_eq!(half.read(&mut [0; 4]).unwrap(), 1);
        begin();
        half.read(&mut [0; 4]).map(drop)
    });
}

#[test]
fn a_listener_that_nobody_accepts_from_ends_its_command() {
    drop(bind("exec:sleep 1000").unwrap());
}

#[test]
fn a_file_is_created_private_and_cut_off() {
    let scratch = Scratch::new();
    let path = scratch.join("f");
    let text = format!("file:{}", shown(&path));
    let mut half = writer(&text);
    half.write_iov(&[IoVec::from_slice(b"str"), IoVec::from_slice(b"eam")]).unwrap();
    assert_eq!(half.pending_unsent(), 0);
    half.finish().unwrap();
    drop(half);
    assert_eq!(std::fs::read(&path).unwrap(), b"stream");
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    let mut half = writer(&format!("{text},offset=3"));
    half.write_all(b"ip").unwrap();
    half.finish().unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), b"strip");
    let mut half = reader(&format!("{text},offset=2"));
    assert_eq!(read_to_end(&mut half).unwrap(), b"rip");
    half.finish().unwrap();
    assert_eq!(read_to_end(&mut reader(&format!("{text},offset=100"))).unwrap(), b"");
}

#[test]
fn a_file_that_cannot_be_opened_says_why() {
    refused(accept("file:/nowhere/f"), ErrorKind::Listen, "file:/nowhere/f", "No such file");
    refused(open("file:/nowhere/f"), ErrorKind::Connect, "file:/nowhere/f", "No such file");
    refused(open("file:/"), ErrorKind::Connect, "file:/", "directory");
    refused(accept("file:/"), ErrorKind::Listen, "file:/", "directory");
    let scratch = Scratch::new();
    let fifo = scratch.join("fifo");
    rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, rustix::fs::Mode::RWXU, 0).unwrap();
    let text = format!("file:{}", shown(&fifo));
    refused(open(&text), ErrorKind::Connect, &text, "nobody reads");
    refused(bind(&format!("{text},offset=1")), ErrorKind::Listen, &text, "seeking");
}

#[test]
fn a_full_disk_is_named() {
    let mut half = writer("file:/dev/full");
    refused(half.write_all(b"x"), ErrorKind::Io, "file:/dev/full", "No space left on device; free some");
}

#[test]
fn a_file_stops_at_a_cancel() {
    let scratch = Scratch::new();
    let cancel = cancel();
    let text = format!("file:{}", shown(&scratch.join("f")));
    let mut half = connect(&uri(&text), None, &cancel).unwrap().writer.unwrap();
    cancel.set();
    refused(half.write_all(b"x"), ErrorKind::Cancelled, &text, "cancelled");
    refused(half.finish(), ErrorKind::Cancelled, &text, "cancelled");
}

#[test]
fn commands_do_not_inherit_channels() {
    let (ours, _theirs) = pair();
    let inode = format!("[{}]", rustix::fs::fstat(&ours).unwrap().st_ino);
    let _channel = connect(&uri("fd:a"), Some(ours), &cancel()).unwrap();
    let fds = |dir: &str| String::from_utf8(read_to_end(&mut reader(&format!("exec:ls -l {dir}"))).unwrap()).unwrap();
    assert!(fds(&format!("/proc/{}/fd", std::process::id())).contains(&inode));
    assert!(!fds("/proc/self/fd").contains(&inode));
}
