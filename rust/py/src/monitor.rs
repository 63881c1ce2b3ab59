//! Monitor and Command for Python: signatures and conversions only.

use std::os::fd::IntoRawFd;
use std::sync::Arc;
use std::time::Duration;

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use qmig_core::monitor as core;
use serde_json::Value;

use crate::control::{Control, timeout, wait};
use crate::error::to_py;

/// Adds this file's classes and functions to the module.
pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<Command>()?;
    module.add_class::<Monitor>()
}

/// One in-band QMP command that Python must answer exactly once.
#[derive(Debug)]
#[pyclass(frozen, module = "qmig_e2k._core")]
pub struct Command(core::Command);

#[pymethods]
impl Command {
    #[getter]
    fn name(&self) -> &str {
        self.0.name()
    }

    #[getter]
    fn arguments(&self) -> String {
        Value::Object(self.0.arguments().clone()).to_string()
    }

    #[getter]
    fn client(&self) -> u64 {
        self.0.client()
    }

    fn take_fd(&self, name: &str) -> Option<i32> {
        self.0.take_fd(name).map(IntoRawFd::into_raw_fd)
    }

    fn reply(&self, py: Python<'_>, value: &str) -> PyResult<()> {
        let value = serde_json::from_str(value).map_err(|e| PyValueError::new_err(format!("the reply is no JSON: {e}")))?;
        py.detach(|| self.0.reply(value)).map_err(|e| to_py(&e))
    }

    #[pyo3(signature = (text, error_class="GenericError"))]
    fn fail(&self, py: Python<'_>, text: &str, error_class: &str) -> PyResult<()> {
        py.detach(|| self.0.fail(error_class, text)).map_err(|e| to_py(&e))
    }

    fn __repr__(&self) -> String {
        format!("<Command {} of client {}>", self.0.name(), self.0.client())
    }
}

/// QMP for any number of listeners and clients.
#[derive(Debug)]
#[pyclass(frozen, module = "qmig_e2k._core")]
pub struct Monitor(core::Monitor);

#[pymethods]
impl Monitor {
    #[new]
    #[allow(clippy::needless_pass_by_value)] // PyO3 hands over owned values
    fn new(control: &Control, commands: Vec<String>, package: &str) -> Self {
        Self(core::Monitor::new(Arc::clone(control.core()), &commands, package))
    }

    fn listen(&self, py: Python<'_>, address: &str) -> PyResult<String> {
        py.detach(|| self.0.listen(address)).map_err(|e| to_py(&e))
    }

    #[pyo3(signature = (timeout=None))]
    fn next_command(&self, py: Python<'_>, timeout: Option<f64>) -> PyResult<Option<Command>> {
        let limit = self::timeout(timeout)?;
        Ok(wait(py, limit, |left| self.0.next_command(Some(left)), || self.0.is_closed())?.map(Command))
    }

    fn arm_exit(&self, seconds: f64) -> PyResult<()> {
        let grace = timeout(Some(seconds))?.unwrap_or(Duration::ZERO);
        self.0.arm_exit(grace).map_err(|e| to_py(&e))
    }

    fn handle_signals(&self) -> PyResult<()> {
        self.0.handle_signals().map_err(|e| to_py(&e))
    }

    fn close(&self, py: Python<'_>) {
        py.detach(|| self.0.close());
    }
}
