//! Control and Events for Python: signatures and conversions only.

use std::sync::Arc;
use std::time::{Duration, Instant, UNIX_EPOCH};

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use qmig_core::channel::Uri;
use qmig_core::control::{self as core, Parameters, Phase, RunState, Session, Status, Subscription};
use qmig_core::{Error, ErrorKind};
use serde_json::Value;

use crate::error::to_py;
use crate::outgoing::owned;
use crate::tls::{TlsAuthz, TlsCreds};

/// How long a wait may last before signals (Ctrl-C) are looked at.
const SIGNAL_SLICE: Duration = Duration::from_millis(500);

/// Adds this file's classes and functions to the module.
pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<Control>()?;
    module.add_class::<Events>()
}

/// A timeout in seconds as Python gives it. Raises `ValueError` on a negative one and on NaN.
pub fn timeout(seconds: Option<f64>) -> PyResult<Option<Duration>> {
    let parse = |s| Duration::try_from_secs_f64(s).map_err(|e| PyValueError::new_err(format!("bad timeout {s}: {e}")));
    seconds.map(parse).transpose()
}

/// Waits with `poll` (called without the interpreter lock, given the time it may wait) until it has something, `timeout` is over or
/// `ended`; between two calls signals are handled.
pub fn wait<T: Send>(
    py: Python<'_>,
    timeout: Option<Duration>,
    poll: impl Fn(Duration) -> Option<T> + Sync,
    ended: impl Fn() -> bool,
) -> PyResult<Option<T>> {
    let end = timeout.and_then(|t| Instant::now().checked_add(t));
    loop {
        let left = end.map_or(SIGNAL_SLICE, |end| end.saturating_duration_since(Instant::now()).min(SIGNAL_SLICE));
        if let Some(found) = py.detach(|| poll(left)) {
            return Ok(Some(found));
        }
        if ended() || end.is_some_and(|end| Instant::now() >= end) {
            return Ok(None);
        }
        py.check_signals()?;
    }
}

fn object(json: &str) -> PyResult<Value> {
    serde_json::from_str(json).map_err(|e| PyValueError::new_err(format!("bad JSON: {e}")))
}

fn status(name: &str) -> PyResult<Status> {
    Status::from_name(name).ok_or_else(|| PyValueError::new_err(format!("`{name}` is no migration status")))
}

/// State of one machine's migrations: run state, both status words, ownership, parameter snapshot, counters, events.
#[pyclass(frozen, module = "qmig_e2k._core")]
#[derive(Debug)]
pub struct Control(Arc<core::Control>);

impl Control {
    /// What the core's threads share.
    pub fn core(&self) -> &Arc<core::Control> {
        &self.0
    }

    fn session(&self) -> PyResult<Arc<Session>> {
        let none = || to_py(&Error::new(ErrorKind::InvalidState, "no outgoing migration was begun"));
        self.0.outgoing().ok_or_else(none)
    }
}

#[pymethods]
impl Control {
    #[new]
    #[pyo3(signature = (name=None))]
    fn new(name: Option<String>) -> Self {
        Self(Arc::new(core::Control::new(name)))
    }

    #[getter]
    fn run_state(&self) -> &'static str {
        self.0.run_state().name()
    }

    fn set_run_state(&self, state: &str) -> PyResult<()> {
        let next = RunState::from_name(state).ok_or_else(|| PyValueError::new_err(format!("`{state}` is no run state")))?;
        self.0.set_run_state(next).map_err(|e| to_py(&e))
    }

    #[pyo3(signature = (event, data=None))]
    fn emit(&self, event: &str, data: Option<&str>) -> PyResult<()> {
        self.0.event(event, data.map(object).transpose()?);
        Ok(())
    }

    fn subscribe(&self) -> Events {
        Events(self.0.subscribe(None))
    }

    #[allow(clippy::needless_pass_by_value)] // PyO3 hands over owned values
    fn set_capabilities(&self, enabled: Vec<String>) {
        self.0.set_capabilities(enabled);
    }

    fn set_parameters(&self, json: &str) -> PyResult<()> {
        self.0.set_parameters(Parameters::parse(json).map_err(|e| to_py(&e))?);
        Ok(())
    }

    #[pyo3(signature = (creds, hostname = "", authz = None))]
    fn set_tls(&self, creds: Option<&Bound<'_, TlsCreds>>, hostname: &str, authz: Option<&Bound<'_, TlsAuthz>>) -> PyResult<()> {
        self.0.set_tls(crate::tls::tls(creds, hostname, authz)?);
        Ok(())
    }

    fn set_blocked_reasons(&self, reasons: Vec<String>) {
        self.0.set_blocked_reasons(reasons);
    }

    #[getter]
    fn outgoing_status(&self) -> &'static str {
        self.0.outgoing_status().name()
    }

    #[getter]
    fn received(&self) -> u64 {
        self.0.received.get()
    }

    #[getter]
    fn incoming_status(&self) -> &'static str {
        self.0.incoming_status().name()
    }

    #[pyo3(signature = (snapshot=false))]
    fn begin_outgoing(&self, snapshot: bool) -> PyResult<()> {
        let begun = if snapshot { self.0.begin_snapshot() } else { self.0.begin_outgoing() };
        begun.map(drop).map_err(|e| to_py(&e))
    }

    fn set_outgoing_status(&self, old: &str, new: &str) -> PyResult<bool> {
        Ok(self.session()?.transition(status(old)?, status(new)?))
    }

    fn fail_outgoing(&self, message: String) -> PyResult<()> {
        // What fails in Python is the machine's state: the channel's errors are recorded where they happen.
        self.session()?.fail(Error::new(ErrorKind::DeviceState, message));
        Ok(())
    }

    fn owned(&self) -> bool {
        self.0.owned()
    }

    fn mark_stopped(&self) -> PyResult<()> {
        self.session()?.mark_stopped();
        Ok(())
    }

    fn finish_outgoing(&self) -> PyResult<&'static str> {
        Ok(self.session()?.finish().name())
    }

    #[getter]
    fn throttle(&self) -> u8 {
        self.0.outgoing().map_or(0, |session| session.throttle())
    }

    fn end_throttle(&self) -> PyResult<()> {
        self.session()?.set_throttle(0);
        Ok(())
    }

    fn deadline_reason(&self) -> Option<String> {
        self.0.outgoing()?.deadline_reason().map(|e| e.to_string())
    }

    fn outgoing_error(&self) -> Option<String> {
        self.0.outgoing()?.error().map(|e| e.to_string())
    }

    fn cancel(&self) -> bool {
        self.0.cancel()
    }

    fn start_postcopy(&self) -> PyResult<()> {
        self.0.start_postcopy().map_err(|e| to_py(&e))
    }

    fn give_up_outgoing(&self) -> PyResult<()> {
        self.0.give_up_outgoing().map_err(|e| to_py(&e))
    }

    fn pause(&self) -> PyResult<()> {
        self.0.pause().map_err(|e| to_py(&e))
    }

    #[pyo3(signature = (uri, fd = None))]
    fn recover(&self, py: Python<'_>, uri: &str, fd: Option<i32>) -> PyResult<()> {
        let fd = owned(fd)?;
        let uri = Uri::parse(uri).map_err(|e| to_py(&e))?;
        py.detach(|| self.0.recover_incoming(&uri, fd)).map_err(|e| to_py(&e))
    }

    #[pyo3(signature = (uri, fd = None))]
    fn resume(&self, uri: &str, fd: Option<i32>) -> PyResult<()> {
        let fd = owned(fd)?;
        let uri = Uri::parse(uri).map_err(|e| to_py(&e))?;
        self.0.resume_outgoing(&uri, fd).map_err(|e| to_py(&e))
    }

    fn fault_latency(&self) -> Option<String> {
        self.0.fault_latency().map(|latency| latency.snapshot().to_string())
    }

    fn begin_incoming(&self) -> PyResult<()> {
        self.0.begin_incoming().map_err(|e| to_py(&e))
    }

    fn set_incoming_status(&self, old: &str, new: &str) -> PyResult<bool> {
        Ok(self.0.set_incoming_status(status(old)?, status(new)?))
    }

    fn fail_incoming(&self, message: String) {
        self.0.fail_incoming(Error::new(ErrorKind::DeviceState, message));
    }

    #[pyo3(signature = (json))]
    fn set_socket_addresses(&self, json: Option<&str>) -> PyResult<()> {
        self.0.set_socket_addresses(json.map(object).transpose()?);
        Ok(())
    }

    fn query_incoming(&self) -> String {
        self.0.query_incoming().to_string()
    }

    fn query_migrate(&self) -> String {
        self.0.query_migrate().to_string()
    }

    fn query_status(&self) -> String {
        self.0.query_status().to_string()
    }

    fn note_time(&self, phase: &str, microseconds: u64) -> PyResult<()> {
        let phase = Phase::from_name(phase).ok_or_else(|| PyValueError::new_err(format!("`{phase}` is no phase of the downtime")))?;
        self.0.note_time(phase, microseconds);
        Ok(())
    }

    fn note_device_time(&self, device: &str, microseconds: u64) {
        self.0.note_device_time(device, microseconds);
    }
}

/// A subscription to the events of a Control.
#[pyclass(frozen, module = "qmig_e2k._core")]
#[derive(Debug)]
pub struct Events(Subscription);

#[pymethods]
impl Events {
    #[getter]
    fn lost(&self) -> u64 {
        self.0.lost()
    }

    #[pyo3(signature = (timeout=None))]
    fn next(&self, py: Python<'_>, timeout: Option<f64>) -> PyResult<Option<(String, Option<String>, f64)>> {
        let limit = self::timeout(timeout)?;
        let found = wait(py, limit, |left| self.0.next(Some(left)), || self.0.is_closed())?;
        Ok(found.map(|event| {
            let time = event.time.duration_since(UNIX_EPOCH).unwrap_or_default();
            (event.name.clone(), event.data.as_ref().map(Value::to_string), time.as_secs_f64())
        }))
    }

    fn close(&self) {
        self.0.close();
    }
}
