//! What the core has to say, kept until Python fetches it.
//!
//! No thread of the core attaches to the interpreter, or writes to a descriptor that Python writes: it might wait there. Events go into
//! a queue, under a lock that is held for nothing else, and a thread of Python takes them from there. Where nobody does, the oldest
//! are dropped and counted.

use std::collections::VecDeque;
use std::fmt::{self, Write};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use pyo3::prelude::*;
use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};

/// Events that wait to be fetched at most.
const ROOM: usize = 1000;

static QUEUE: Mutex<Queue> = Mutex::new(Queue { entries: VecDeque::new(), dropped: 0, closed: false });
static CHANGED: Condvar = Condvar::new();

struct Queue {
    entries: VecDeque<Entry>,
    dropped: u64,
    closed: bool,
}

struct Entry {
    level: Level,
    target: &'static str,
    text: String,
}

fn queue() -> MutexGuard<'static, Queue> {
    QUEUE.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Recorder;

impl Subscriber for Recorder {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.is_event() && *metadata.level() <= Level::INFO
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(LevelFilter::INFO)
    }

    fn event(&self, event: &Event<'_>) {
        let mut text = Text::default();
        event.record(&mut text);
        let entry = Entry { level: *event.metadata().level(), target: event.metadata().target(), text: text.message + &text.fields };
        let mut queue = queue();
        if queue.closed {
            return;
        }
        if queue.entries.len() == ROOM {
            queue.entries.pop_front();
            queue.dropped += 1;
        }
        queue.entries.push_back(entry);
        drop(queue);
        CHANGED.notify_one();
    }

    // No spans.

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

/// The message, and behind it whatever else an event has.
#[derive(Default)]
struct Text {
    message: String,
    fields: String,
}

impl Visit for Text {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        // Writing to a string never fails.
        let _ = if field.name() == "message" { write!(self.message, "{value:?}") } else { write!(self.fields, "; {field}: {value:?}") };
    }
}

/// The next event, as (level of Python's logging, module of the core, text); waits for it. None once `close_log` was called.
#[pyfunction]
fn next_log(py: Python<'_>) -> Option<(u8, String, String)> {
    py.detach(|| {
        let mut queue = queue();
        loop {
            if let Some(entry) = queue.entries.pop_front() {
                let dropped = std::mem::take(&mut queue.dropped);
                drop(queue);
                let lost = if dropped > 0 { format!(" ({dropped} messages before this one were dropped)") } else { String::new() };
                let level = match entry.level {
                    Level::ERROR => 40,
                    Level::WARN => 30,
                    _ => 20,
                };
                return Some((level, entry.target.to_owned(), entry.text + &lost));
            }
            if queue.closed {
                return None;
            }
            queue = CHANGED.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
    })
}

/// Whoever waits in `next_log` goes on, when everything is fetched, and nothing more is kept.
#[pyfunction]
fn close_log() {
    queue().closed = true;
    CHANGED.notify_all();
}

pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    // Refused only where the module is made a second time in a process: then it is set already.
    let _ = tracing::subscriber::set_global_default(Recorder);
    module.add_function(wrap_pyfunction!(next_log, module)?)?;
    module.add_function(wrap_pyfunction!(close_log, module)?)
}
