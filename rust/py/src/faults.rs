//! `FaultService` for Python: signatures and conversions only.

use std::fs::File;
use std::os::fd::RawFd;
use std::sync::{Mutex, PoisonError};

use pyo3::prelude::*;
use qmig_core::postcopy::local::{FileSource, Service, Source};
use qmig_core::sys::io::adopt;
use qmig_core::{Error, ErrorKind};
use rustix::fs::{FileType, fstat};

use crate::block::{Lent, PyBlock, lend};
use crate::error::to_py;

/// Adds this file's class to the module.
pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<FaultService>()
}

/// A block whose missing pages are served from a page source.
#[pyclass(module = "qmig_e2k._core", frozen)]
#[derive(Debug)]
pub struct FaultService {
    service: Service,
    /// What a buffer source keeps alive: after the service, which reads there.
    lent: Mutex<Option<Lent>>,
}

/// A descriptor, the service's from here on, as a source.
fn descriptor(number: RawFd) -> PyResult<Source> {
    let refuse = |text: String| to_py(&Error::new(ErrorKind::InvalidArgument, text));
    let fd = adopt(number).map_err(|e| refuse(format!("descriptor {number}: {e}")))?;
    let kind = FileType::from_raw_mode(fstat(&fd).map_err(|e| refuse(format!("descriptor {number}: {e}")))?.st_mode);
    match kind {
        FileType::RegularFile => Ok(Source::Pages(Box::new(FileSource(File::from(fd))))),
        FileType::Socket => Ok(Source::Socket(fd)),
        _ => Err(refuse("a page source is a buffer, a regular file or a connected stream socket".to_owned())),
    }
}

#[pymethods]
impl FaultService {
    #[staticmethod]
    fn arm(py: Python<'_>, block: &PyBlock, source: &Bound<'_, PyAny>) -> PyResult<Self> {
        let block = block.core()?;
        let (source, lent) = if let Ok(number) = source.extract::<RawFd>() {
            (descriptor(number)?, None)
        } else {
            let lent = lend(source)?;
            (Source::Pages(Box::new(lent.source())), Some(lent))
        };
        let service = py.detach(|| Service::arm(&block, source)).map_err(|e| to_py(&e))?;
        Ok(Self { service, lent: Mutex::new(lent) })
    }

    fn stats(&self, py: Python<'_>) -> String {
        py.detach(|| self.service.stats().to_string())
    }

    #[pyo3(signature = (fill = true))]
    fn close(&self, py: Python<'_>, fill: bool) -> PyResult<()> {
        py.detach(|| self.service.close(fill)).map_err(|e| to_py(&e))?;
        let lent = self.lent.lock().unwrap_or_else(PoisonError::into_inner).take();
        drop(lent);
        Ok(())
    }
}
