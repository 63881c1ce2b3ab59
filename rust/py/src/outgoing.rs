//! Outgoing for Python: signatures and conversions only.

use std::os::fd::OwnedFd;
use std::sync::{Mutex, MutexGuard, PoisonError};

use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyBytesMethods};
use qmig_core::channel::Uri;
use qmig_core::ram::dirty::DirtyMode;
use qmig_core::send::{self, Format, Options, Step};
use qmig_core::{Error, ErrorKind};

use crate::block::PyBlock as Block;
use crate::control::Control;
use crate::error::to_py;

/// Adds this file's class to the module.
pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_function(wrap_pyfunction!(check_uri, module)?)?;
    module.add_class::<Outgoing>()
}

/// Raise what is wrong with the form of a migration URI.
#[pyfunction]
fn check_uri(uri: &str) -> PyResult<()> {
    Uri::parse(uri).map(|_| ()).map_err(|e| to_py(&e))
}

/// The source of one migration.
#[pyclass(frozen, module = "qmig_e2k._core")]
#[derive(Debug)]
pub struct Outgoing {
    inner: Mutex<send::Outgoing>,
}

impl Outgoing {
    fn inner(&self) -> MutexGuard<'_, send::Outgoing> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Run `work` with the interpreter lock released.
    fn detached<T: Send>(&self, py: Python<'_>, work: impl FnOnce(&mut send::Outgoing) -> qmig_core::Result<T> + Send) -> PyResult<T> {
        py.detach(|| work(&mut self.inner())).map_err(|e| to_py(&e))
    }
}

fn borrow<'a>(sections: &'a [Option<Bound<'_, PyBytes>>]) -> Vec<Option<&'a [u8]>> {
    sections.iter().map(|section| section.as_ref().map(PyBytesMethods::as_bytes)).collect()
}

#[pymethods]
impl Outgoing {
    #[new]
    #[pyo3(signature = (control, blocks, *, format = "7.2", section_id = 2, footers = true, switchover_start = None, dirty_log = "auto"))]
    fn new(
        control: &Bound<'_, Control>,
        blocks: Vec<PyRef<'_, Block>>,
        format: &str,
        section_id: u32,
        footers: bool,
        switchover_start: Option<bool>,
        dirty_log: &str,
    ) -> PyResult<Self> {
        let format = match format {
            "2.9" => Format::V2_9,
            "7.2" => Format::V7_2,
            "10.0" => Format::V10_0,
            other => return Err(pyo3::exceptions::PyValueError::new_err(format!("format {other:?}: use 2.9, 7.2 or 10.0"))),
        };
        let dirty = match dirty_log {
            "auto" => DirtyMode::Auto,
            "explicit" => DirtyMode::Explicit,
            other => return Err(pyo3::exceptions::PyValueError::new_err(format!("dirty_log {other:?}: use auto or explicit"))),
        };
        let switchover_start = switchover_start.unwrap_or(format == Format::V10_0);
        let blocks = blocks.iter().map(|block| block.core()).collect::<PyResult<_>>()?;
        let made =
            send::Outgoing::new(control.get().core().clone(), blocks, Options { format, section_id, footers, switchover_start, dirty });
        Ok(Self { inner: Mutex::new(made.map_err(|e| to_py(&e))?) })
    }

    #[pyo3(signature = (uri, fd = None, *, uuid = [0; 16]))]
    fn connect(&self, py: Python<'_>, uri: &str, fd: Option<i32>, uuid: [u8; 16]) -> PyResult<()> {
        let fd = owned(fd)?;
        let uri = Uri::parse(uri).map_err(|e| to_py(&e))?;
        self.detached(py, |outgoing| {
            outgoing.set_uuid(uuid);
            outgoing.connect(&uri, fd)
        })
    }

    #[getter]
    fn two_way(&self, py: Python<'_>) -> bool {
        // `run` holds the lock for as long as it likes.
        py.detach(|| self.inner().two_way())
    }

    fn setup(&self, py: Python<'_>, head: &[u8], sections: Vec<Option<Bound<'_, PyBytes>>>) -> PyResult<()> {
        let sections = borrow(&sections);
        self.detached(py, |outgoing| outgoing.setup(head, &sections))
    }

    #[pyo3(signature = (pending = 0))]
    fn run(&self, py: Python<'_>, pending: u64) -> PyResult<&'static str> {
        self.detached(py, |outgoing| outgoing.run(pending)).map(|step| match step {
            Step::Switchover => "switchover",
            Step::Iterate => "iterate",
            Step::Postcopy => "postcopy",
            Step::Throttle => "throttle",
        })
    }

    fn write(&self, py: Python<'_>, data: &[u8]) -> PyResult<()> {
        self.detached(py, |outgoing| outgoing.write(data))
    }

    fn finish(&self, py: Python<'_>, ends: Vec<Option<Bound<'_, PyBytes>>>, full: &[u8], tail: &[u8]) -> PyResult<()> {
        let ends = borrow(&ends);
        self.detached(py, |outgoing| outgoing.finish(&ends, full, tail))
    }

    #[pyo3(signature = (full, ends = Vec::new()))]
    fn postcopy(&self, py: Python<'_>, full: &[u8], ends: Vec<Bound<'_, PyBytes>>) -> PyResult<()> {
        let ends: Vec<_> = ends.iter().map(PyBytesMethods::as_bytes).collect();
        self.detached(py, |outgoing| outgoing.postcopy(&ends, full))
    }

    fn close(&self, py: Python<'_>) {
        py.detach(|| self.inner().close());
    }
}

/// Take over a descriptor number that the caller gives away. Raises `MigrationError` for one that is not open.
pub(crate) fn owned(fd: Option<i32>) -> PyResult<Option<OwnedFd>> {
    let adopt = |fd| {
        qmig_core::sys::io::adopt(fd).map_err(|e| to_py(&Error::new(ErrorKind::InvalidArgument, format!("file descriptor {fd}: {e}"))))
    };
    fd.map(adopt).transpose()
}
