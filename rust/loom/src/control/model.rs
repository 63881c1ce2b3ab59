//! The commit word: never both, whoever comes first.

use loom::sync::Arc;
use loom::thread;

use super::fate::{Fate, Ownership};
use super::status::Status;
use crate::{Error, ErrorKind};

fn active(status: Status) -> Arc<Fate> {
    let fate = Fate::new(false);
    assert!(fate.transition(Status::None, Status::Setup, |_| ()));
    assert!(fate.transition(Status::Setup, status, |_| ()));
    Arc::new(fate)
}

fn broken() -> Error {
    Error::new(ErrorKind::Closed, "broken")
}

/// Exactly one of the two is told that it has won.
pub fn commit_or_cancel() {
    let fate = active(Status::Device);
    let theirs = Arc::clone(&fate);
    let monitor = thread::spawn(move || theirs.request_cancel(|_| ()));
    let committed = fate.commit();
    let seen = fate.owned();
    let cancelled = monitor.join().unwrap();
    assert!(committed != cancelled, "both, or neither");
    assert!(seen != committed && fate.owned() != committed);
    fate.finish(|_| ());
    assert_eq!(fate.status(), if committed { Status::Completed } else { Status::Cancelled });
}

/// The return path fails and an operator cancels just then.
pub fn commit_or_fail_or_cancel() {
    let fate = active(Status::Device);
    let (one, other) = (Arc::clone(&fate), Arc::clone(&fate));
    let back = thread::spawn(move || one.fail(broken()));
    let monitor = thread::spawn(move || other.request_cancel(|_| ()));
    let committed = fate.commit();
    back.join().unwrap();
    let cancelled = monitor.join().unwrap();
    fate.finish(|_| ());
    assert!(!(committed && cancelled), "never both");
    assert_eq!(fate.owned(), !committed);
    assert_eq!(fate.status(), if cancelled { Status::Cancelled } else { Status::Failed });
    if !cancelled {
        let kind = fate.error().unwrap().kind;
        assert_eq!(kind, if committed { ErrorKind::OwnershipUnknown } else { ErrorKind::Closed });
    }
}

/// After the commit of a postcopy: SHUT 2 against a failure against a lost connection.
pub fn given_back() {
    let fate = active(Status::PostcopyActive);
    assert!(fate.commit());
    let (one, other) = (Arc::clone(&fate), Arc::clone(&fate));
    let back = thread::spawn(move || one.give_back(broken()));
    let writer = thread::spawn(move || other.lose_link(|| (), |_| ()));
    fate.fail(broken());
    let (given, paused) = (back.join().unwrap(), writer.join().unwrap());
    fate.finish(|_| ());
    assert!(!(given && paused), "a machine that is ours again waits for nobody");
    assert_eq!(fate.owned(), given);
    assert_eq!(fate.ownership(), if given { Ownership::Withdrawn } else { Ownership::Committed });
    let unknown = fate.error().unwrap().kind == ErrorKind::OwnershipUnknown;
    assert!(unknown != given, "whoever has it back knows so");
    assert_eq!(fate.status(), Status::Failed);
}

/// A final status stays, and is told once.
pub fn one_end() {
    let fate = active(Status::Active);
    let theirs = Arc::clone(&fate);
    let monitor = thread::spawn(move || {
        let cancelled = theirs.request_cancel(|_| ());
        theirs.fail(broken());
        cancelled
    });
    let told = std::sync::atomic::AtomicU64::new(0);
    let tell = |status: Status| {
        assert!(status.is_final());
        told.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    };
    fate.finish(tell);
    let (end, error) = (fate.status(), fate.error().map(|error| error.kind));
    fate.finish(tell);
    let cancelled = monitor.join().unwrap();
    assert_eq!((fate.status(), fate.error().map(|error| error.kind)), (end, error));
    assert_eq!(told.into_inner(), 1);
    assert_eq!(end == Status::Cancelled, cancelled);
    assert!(fate.owned());
}
