//! `DirtyRate` for Python: signatures and conversions only.

use std::time::Duration;

use pyo3::prelude::*;
use qmig_core::ram::dirty::DirtyMode;
use qmig_core::ram::rate::{self, Method};

use crate::block::PyBlock;
use crate::error::to_py;

/// Adds this file's class to the module.
pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<DirtyRate>()
}

/// One measurement of how fast RAM is written.
#[pyclass(frozen, module = "qmig_e2k._core")]
#[derive(Debug)]
pub struct DirtyRate(rate::DirtyRate);

#[pymethods]
impl DirtyRate {
    #[new]
    #[pyo3(signature = (blocks, milliseconds, *, sample_pages = None, explicit = false))]
    fn new(
        py: Python<'_>,
        blocks: Vec<PyRef<'_, PyBlock>>,
        milliseconds: u64,
        sample_pages: Option<u64>,
        explicit: bool,
    ) -> PyResult<Self> {
        let blocks = blocks.iter().map(|block| block.core()).collect::<PyResult<Vec<_>>>()?;
        let mode = if explicit { DirtyMode::Explicit } else { DirtyMode::Auto };
        let method = sample_pages.map_or(Method::Log(mode), Method::Sampling);
        let begun = py.detach(|| rate::DirtyRate::start(&blocks, method, Duration::from_millis(milliseconds)));
        begun.map(Self).map_err(|e| to_py(&e))
    }

    fn measured(&self) -> Option<(u64, Option<u64>)> {
        let measured = self.0.measured()?;
        Some((u64::try_from(measured.time.as_millis()).unwrap_or(u64::MAX), measured.rate))
    }

    fn cut(&self, py: Python<'_>) {
        py.detach(|| self.0.cut());
    }
}
