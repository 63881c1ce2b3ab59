//! The rules of the control room as a whole: never both, always an end, and what query-migrate shows.

use std::collections::BTreeSet;

use super::*;

fn control(events: bool) -> Control {
    let control = Control::new(None);
    if events {
        control.set_capabilities(["events".to_owned()]);
    }
    control
}

fn read(events: &Subscription) -> Vec<String> {
    std::iter::from_fn(|| events.try_next())
        .map(|e| match &e.data {
            Some(data) => data["status"].as_str().map_or_else(|| format!("{} {data}", e.name), str::to_owned),
            None => e.name.clone(),
        })
        .collect()
}

/// What a thread of a migration does next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    /// The migration thread: hand the machine over; if that is refused, fail.
    Commit,
    /// The migration thread: everything was acknowledged.
    Finish,
    /// The user.
    Cancel,
    /// The return-path thread.
    Fail,
}

/// Every merge of the threads' programs that keeps each one's own order.
fn merges(programs: &[&[Step]]) -> Vec<Vec<Step>> {
    if programs.iter().all(|p| p.is_empty()) {
        return vec![Vec::new()];
    }
    let mut all = Vec::new();
    for (index, program) in programs.iter().enumerate() {
        if let Some((first, rest)) = program.split_first() {
            let mut left = programs.to_vec();
            left[index] = rest;
            all.extend(merges(&left).into_iter().map(|mut tail| {
                tail.insert(0, *first);
                tail
            }));
        }
    }
    all
}

#[test]
fn never_both_in_any_order() {
    use Step::{Cancel, Commit, Fail, Finish};
    let programs: [&[&[Step]]; 5] = [
        &[&[Commit, Finish], &[Cancel]],
        &[&[Commit, Finish], &[Fail]],
        &[&[Commit, Finish], &[Cancel], &[Fail]],
        &[&[Commit, Finish], &[Cancel, Cancel], &[Fail, Fail]],
        &[&[Finish], &[Cancel], &[Fail]],
    ];
    let mut ends = BTreeSet::new();
    let orders = programs.iter().flat_map(|p| merges(p)).collect::<Vec<_>>();
    assert_eq!(orders.len(), 3 + 3 + 12 + 90 + 6);
    for order in orders {
        let control = control(true);
        let events = control.subscribe(None);
        let session = control.begin_outgoing().unwrap();
        assert!(session.transition(Status::Setup, Status::Active) && session.transition(Status::Active, Status::Device));
        let (mut given, mut promised) = (false, false);
        for step in &order {
            match step {
                Commit => {
                    given = session.commit();
                    if !given {
                        session.fail(Error::new(ErrorKind::Cancelled, "the commit was refused"));
                    }
                }
                Finish => {
                    session.finish();
                }
                Cancel => {
                    let yes = control.cancel();
                    assert!(!(yes && given), "{order:?}: a cancel after the commit");
                    promised |= yes;
                }
                Fail => session.fail(Error::new(ErrorKind::Closed, "the peer is gone")),
            }
            // Ownership follows the commit and nothing else.
            assert_eq!(session.owned(), !given, "{order:?}");
        }
        let status = session.finish();
        assert!(status.is_final() && !session.transition(status, Status::Active), "{order:?}");
        assert_eq!(promised, status == Status::Cancelled, "{order:?}");
        match status {
            Status::Completed => assert!(given && session.error().is_none(), "{order:?}"),
            Status::Cancelled => assert!(!given, "{order:?}"),
            _ => assert_eq!(session.error().unwrap().kind == ErrorKind::OwnershipUnknown, given, "{order:?}"),
        }
        // One final event, and nothing after it.
        let seen = read(&events);
        assert_eq!(seen.iter().filter(|s| Status::from_name(s).is_some_and(Status::is_final)).count(), 1, "{order:?}: {seen:?}");
        assert_eq!(seen.last().map(String::as_str), Some(status.name()));
        ends.insert((status.name(), given));
    }
    assert_eq!(ends, BTreeSet::from([("completed", true), ("failed", true), ("failed", false), ("cancelled", false)]));
}

#[test]
fn threads_agree_on_the_owner() {
    for _ in 0..300 {
        let control = Arc::new(control(false));
        let session = control.begin_outgoing().unwrap();
        let barrier = Arc::new(std::sync::Barrier::new(3));
        let start = |work: Box<dyn FnOnce() -> bool + Send>| {
            let barrier = barrier.clone();
            std::thread::spawn(move || {
                barrier.wait();
                work()
            })
        };
        let (s, c, f) = (session.clone(), control.clone(), session.clone());
        let commit = start(Box::new(move || s.commit()));
        let cancel = start(Box::new(move || c.cancel()));
        let fail = start(Box::new(move || {
            f.fail(Error::new(ErrorKind::Closed, "gone"));
            true
        }));
        let (given, cancelled) = (commit.join().unwrap(), cancel.join().unwrap());
        fail.join().unwrap();
        assert!(!(given && cancelled));
        assert_eq!(session.owned(), !given);
        assert_eq!(session.finish(), if cancelled { Status::Cancelled } else { Status::Failed });
    }
}

#[test]
fn an_error_after_the_commit_leaves_ownership_unknown() {
    let control = control(false);
    let session = control.begin_outgoing().unwrap();
    assert!(session.commit() && session.commit());
    assert!(!session.withdraw());
    session.fail(Error::new(ErrorKind::Closed, "no SHUT came").within("return path"));
    session.fail(Error::new(ErrorKind::Io, "later"));
    let error = session.error().unwrap();
    assert_eq!(error.kind, ErrorKind::OwnershipUnknown);
    assert!(error.to_string().starts_with("return path: no SHUT came; the machine was handed over"));
    assert!(session.cancel.is_set());
    assert_eq!(session.finish(), Status::Failed);
    assert!(!control.owned());
}

#[test]
fn a_migration_that_just_ends_has_failed() {
    let session = control(false).begin_outgoing().unwrap();
    assert_eq!(session.finish(), Status::Failed);
    assert_eq!(session.error().unwrap().kind, ErrorKind::InvalidState);
    assert_eq!(session.ownership(), Ownership::Withdrawn);
    assert!(!session.commit());
}

#[test]
fn one_at_a_time_until_it_is_finished() {
    let control = control(false);
    let first = control.begin_outgoing().unwrap();
    assert!(control.cancel());
    assert!(!control.cancel());
    assert_eq!(control.begin_outgoing().unwrap_err().kind, ErrorKind::InvalidState);
    first.finish();
    let second = control.begin_outgoing().unwrap();
    assert_eq!((second.status(), second.owned()), (Status::Setup, true));
}

#[test]
fn a_snapshot_never_gives_the_machine_away() {
    let control = control(true);
    let events = control.subscribe(None);
    for fails_late in [false, true] {
        let session = control.begin_snapshot().unwrap();
        session.activate();
        assert!(session.commit());
        assert!(session.owned() && !control.cancel(), "complete, and here");
        if fails_late {
            session.fail(Error::new(ErrorKind::Io, "no place for it"));
        }
        session.finish();
        assert!(control.owned());
        assert_eq!(session.error().map(|e| e.to_string()), fails_late.then(|| "no place for it".to_owned()));
    }
    let session = control.begin_snapshot().unwrap();
    assert!(control.cancel() && !session.commit());
    session.finish();
    assert_eq!(read(&events), ["setup", "completed", "setup", "failed", "setup", "cancelling", "cancelled"]);
}

#[test]
fn a_recorded_error_stops_every_transition() {
    let session = control(false).begin_outgoing().unwrap();
    session.fail(Error::new(ErrorKind::Io, "x"));
    assert!(!session.transition(Status::Setup, Status::Active));
    assert!(!session.request_cancel());
    assert_eq!(session.finish(), Status::Failed);
}

#[test]
fn events_only_if_asked_for_and_setup_of_the_destination_always() {
    let quiet = control(false);
    let events = quiet.subscribe(None);
    let session = quiet.begin_outgoing().unwrap();
    session.migration_pass(1);
    assert!(session.transition(Status::Setup, Status::Active));
    quiet.begin_incoming().unwrap();
    assert!(quiet.set_incoming_status(Status::None, Status::Active));
    assert_eq!(read(&events), ["setup"]);

    let loud = control(true);
    let events = loud.subscribe(None);
    let session = loud.begin_outgoing().unwrap();
    session.migration_pass(1);
    assert!(session.transition(Status::Setup, Status::Active));
    assert!(!session.transition(Status::Setup, Status::Active));
    loud.event("STOP", None);
    assert!(session.commit());
    session.finish();
    session.finish();
    assert_eq!(read(&events), ["setup", "MIGRATION_PASS {\"pass\":1}", "active", "STOP", "completed"]);
}

#[test]
fn a_failed_load_may_be_tried_again() {
    let control = control(true);
    let events = control.subscribe(None);
    control.begin_incoming().unwrap();
    assert_eq!(control.begin_incoming().unwrap_err().kind, ErrorKind::InvalidState);
    assert_eq!(control.incoming_status(), Status::None);
    control.set_socket_addresses(Some(json!([{ "type": "unix", "path": "/x" }])));
    assert_eq!(control.query_migrate(), json!({ "socket-address": [{ "type": "unix", "path": "/x" }] }));
    assert!(control.set_incoming_status(Status::None, Status::Active));
    control.fail_incoming(Error::new(ErrorKind::Truncated, "cut"));
    control.fail_incoming(Error::new(ErrorKind::Closed, "later"));
    assert_eq!(control.query_migrate(), json!({ "status": "failed", "error-desc": "cut" }));
    control.begin_incoming().unwrap();
    assert_eq!(control.query_migrate(), json!({}));
    assert_eq!(read(&events), ["setup", "active", "failed", "setup"]);
}

#[test]
fn query_migrate_by_state() {
    let control = control(false);
    assert_eq!(control.query_migrate(), json!({}));
    control.set_blocked_reasons(vec!["x".into()]);
    assert_eq!(control.query_migrate(), json!({ "blocked-reasons": ["x"] }));
    control.set_blocked_reasons(vec![]);

    let session = control.begin_outgoing().unwrap();
    assert_eq!(control.query_migrate(), json!({ "status": "setup" }));
    session.mark_setup_end();
    session.set_dirty_log("wp-async");
    session.transition(Status::Setup, Status::Active);
    let keys = |value: &Value| value.as_object().unwrap().keys().cloned().collect::<BTreeSet<_>>();
    let set = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect::<BTreeSet<_>>();
    let live = ["status", "total-time", "expected-downtime", "setup-time", "ram", "x-dirty-log", "x-commands-waited"];
    assert_eq!(keys(&control.query_migrate()), set(&live));
    assert_eq!(control.query_migrate()["expected-downtime"], 300);
    control.set_parameters(Parameters { xbzrle_cache_size: 8192, ..Parameters::default() });
    for (capability, object) in [("xbzrle", "xbzrle-cache"), ("compress", "compression")] {
        control.set_capabilities([capability.to_owned()]);
        assert_eq!(keys(&control.query_migrate()), set(&[&live[..], &[object]].concat()));
    }
    control.set_capabilities(["xbzrle".to_owned()]);
    session.counters.xbzrle.pages.add(3);
    let cache = &control.query_migrate()["xbzrle-cache"];
    assert_eq!((&cache["cache-size"], &cache["pages"], &cache["cache-miss-rate"]), (&json!(8192), &json!(3), &json!(0.0)));
    control.set_capabilities([]);

    session.mark_stopped();
    assert!(session.transition(Status::Active, Status::PreSwitchover));
    assert!(session.transition(Status::PreSwitchover, Status::Device));
    control.note_time(Phase::Stop, 12);
    control.note_device_time("cpu", 3);
    assert!(session.commit());
    session.finish();
    let done = control.query_migrate();
    assert_eq!(
        keys(&done),
        set(&["status", "total-time", "downtime", "setup-time", "ram", "x-dirty-log", "x-downtime", "x-commands-waited"])
    );
    let pause = done["x-downtime"]["pause"].as_u64().unwrap();
    assert_eq!(done["x-downtime"], json!({ "stop": 12, "pause": pause, "devices": { "cpu": 3 } }));
    assert_eq!(done["total-time"], control.query_migrate()["total-time"]);

    control.begin_incoming().unwrap();
    control.note_time(Phase::Load, 5);
    assert_eq!(control.query_migrate()["x-downtime"], json!({ "load": 5 }), "a pause of the former move is none of this one's");
    control.fail_incoming(Error::new(ErrorKind::Cancelled, "cancelled"));

    let session = control.begin_outgoing().unwrap();
    assert!(control.cancel());
    assert_eq!(control.query_migrate()["status"], "cancelling");
    session.finish();
    assert_eq!(control.query_migrate(), json!({ "status": "cancelled" }));

    let session = control.begin_outgoing().unwrap();
    session.fail(Error::new(ErrorKind::Connect, "nobody there"));
    session.finish();
    assert_eq!(control.query_migrate(), json!({ "status": "failed", "error-desc": "nobody there" }));
}

#[test]
fn the_source_part_hides_an_old_load() {
    let control = control(false);
    control.begin_incoming().unwrap();
    control.set_incoming_status(Status::None, Status::Active);
    control.set_incoming_status(Status::Active, Status::Completed);
    assert_eq!(control.query_migrate(), json!({ "status": "completed" }));
    control.begin_outgoing().unwrap();
    assert_eq!(control.query_migrate(), json!({ "status": "setup" }));
}

#[test]
fn run_states() {
    let control = control(false);
    assert_eq!(control.query_status(), json!({ "status": "prelaunch", "singlestep": false, "running": false }));
    control.set_run_state(RunState::Running).unwrap();
    assert_eq!(control.query_status()["running"], true);
    let error = control.set_run_state(RunState::Postmigrate).unwrap_err();
    assert_eq!((error.kind, control.run_state()), (ErrorKind::InvalidState, RunState::Running));
}

/// A session whose machine was handed over, in `postcopy-active`.
fn in_postcopy(control: &Control) -> Arc<Session> {
    let session = control.begin_outgoing().unwrap();
    assert!(session.transition(Status::Setup, Status::Active) && session.transition(Status::Active, Status::PostcopyActive));
    assert!(session.commit());
    session
}

fn lost() -> Error {
    Error::new(ErrorKind::Closed, "the peer closed the channel")
}

#[test]
fn postcopy_is_asked_for_with_the_capability_only() {
    let control = control(false);
    assert_eq!(control.start_postcopy().unwrap_err().kind, ErrorKind::InvalidState);
    control.set_capabilities(["postcopy-ram".to_owned()]);
    assert!(control.start_postcopy().unwrap_err().message.contains("no migration"));
    let session = control.begin_outgoing().unwrap();
    assert!(!session.postcopy_wanted());
    control.start_postcopy().unwrap();
    assert!(session.postcopy_wanted());
    session.finish();
    assert!(!control.begin_outgoing().unwrap().postcopy_wanted(), "each migration is asked anew");
}

#[test]
fn a_lost_link_pauses_after_the_commit_only() {
    let control = control(true);
    let events = control.subscribe(None);
    let session = control.begin_outgoing().unwrap();
    assert!(!session.lose_link(&lost()));
    assert!(session.transition(Status::Setup, Status::Active) && session.transition(Status::Active, Status::PostcopyActive));
    assert!(!session.lose_link(&lost()), "nothing was handed over: that is a failure");
    assert!(session.commit());
    assert!(session.lose_link(&lost()) && !session.lose_link(&lost()));
    assert!(!control.cancel() && !session.owned());
    let answer = control.query_migrate();
    assert_eq!((&answer["status"], &answer["error-desc"]), (&json!("postcopy-paused"), &json!("the peer closed the channel")));
    assert!(answer["ram"].is_object());
    assert_eq!(read(&events), ["setup", "active", "postcopy-active", "postcopy-paused"]);
}

#[test]
fn a_pause_cuts_the_link_and_a_resume_brings_the_next() {
    let control = control(true);
    let uri = Uri::parse("fd:x").unwrap();
    assert_eq!(control.pause().unwrap_err().kind, ErrorKind::InvalidState);
    assert_eq!(control.resume_outgoing(&uri, None).unwrap_err().kind, ErrorKind::InvalidState);
    let session = in_postcopy(&control);
    let events = control.subscribe(None);
    for _ in 0..3 {
        let link = session.link().unwrap();
        control.pause().unwrap();
        assert!(link.is_set() && !session.cancel.is_set());
        assert!(session.lose_link(&lost()));
        assert_eq!(control.pause().unwrap_err().kind, ErrorKind::InvalidState);
        assert_eq!(control.resume_outgoing(&Uri::parse("exec:cat").unwrap(), None).unwrap_err().kind, ErrorKind::BadUri);
        // the first cannot be opened and is told of; the waiting goes on
        control.resume_outgoing(&uri, None).unwrap();
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| session.wait_for_link());
            while !control.query_migrate()["error-desc"].as_str().unwrap().contains("no descriptor named") {
                std::thread::yield_now();
            }
            let (ours, _theirs) = std::os::unix::net::UnixStream::pair().unwrap();
            control.resume_outgoing(&uri, Some(ours.into())).unwrap();
            let channel = waiting.join().unwrap().unwrap();
            assert!(channel.two_way());
        });
        assert_eq!(session.status(), Status::PostcopyRecover);
        assert!(session.resumed() && !session.resumed());
    }
    assert_eq!(read(&events), ["postcopy-paused", "postcopy-recover", "postcopy-active"].repeat(3));
    session.finish();
    assert_eq!(session.status(), Status::Completed);
}

#[test]
fn released_memory_cannot_be_resumed() {
    let control = control(false);
    let session = in_postcopy(&control);
    assert!(session.lose_link(&lost()));
    control.set_capabilities(["release-ram".to_owned()]);
    assert!(control.resume_outgoing(&Uri::parse("tcp:h:1").unwrap(), None).unwrap_err().message.contains("release-ram"));
}

#[test]
fn a_machine_that_never_ran_is_given_back_once() {
    let refused = || Error::new(ErrorKind::ReturnPath, "the destination never ran the machine");
    let control = control(false);
    let session = control.begin_outgoing().unwrap();
    assert!(session.transition(Status::Setup, Status::Active) && !session.give_back(refused()));
    assert!(session.transition(Status::Active, Status::PostcopyActive));
    assert!(!session.give_back(refused()), "it was never given");
    assert!(session.commit());
    assert!(session.give_back(refused()) && !session.give_back(refused()));
    assert!(control.owned() && session.cancel.is_set());
    assert_eq!((session.finish(), session.error().unwrap().kind), (Status::Failed, ErrorKind::ReturnPath));

    // who recovered has run it
    let session = in_postcopy(&control);
    assert!(session.lose_link(&lost()));
    assert!(!session.give_back(refused()));
    let (ours, _theirs) = std::os::unix::net::UnixStream::pair().unwrap();
    control.resume_outgoing(&Uri::parse("fd:x").unwrap(), Some(ours.into())).unwrap();
    session.wait_for_link().unwrap();
    assert!(session.resumed());
    assert!(!session.give_back(refused()) && !control.owned());
}

#[test]
fn the_downtime_of_postcopy_ends_with_the_hand_over() {
    let control = control(false);
    let session = in_postcopy(&control);
    session.mark_stopped();
    session.mark_handed_over();
    let end = std::time::Instant::now() + std::time::Duration::from_millis(30);
    while std::time::Instant::now() < end {
        std::thread::yield_now();
    }
    session.finish();
    let answer = control.query_migrate();
    assert!(answer["downtime"].as_u64().unwrap() < 30 && answer["total-time"].as_u64().unwrap() >= 30, "{answer}");
}
