//! Toucher and shaper for Python: signatures and conversions only.

use std::net::SocketAddr;
use std::time::Duration;

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use qmig_core::ErrorKind;
use qmig_core::lab;

use crate::block::PyBlock;
use crate::error::to_py;

/// Adds this file's classes and functions to the module.
pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<Toucher>()?;
    module.add_class::<Shaper>()
}

fn refusal(error: &qmig_core::Error) -> PyErr {
    if error.kind == ErrorKind::InvalidArgument { PyValueError::new_err(error.to_string()) } else { to_py(error) }
}

/// A thread that touches a block.
#[pyclass(module = "qmig_e2k._core", frozen)]
#[derive(Debug)]
pub struct Toucher(lab::Toucher);

#[pymethods]
impl Toucher {
    #[new]
    #[pyo3(signature = (block, *, order = "random", seed = 0, page = 4096, write = false, faults = 0))]
    fn new(block: &PyBlock, order: &str, seed: u64, page: u64, write: bool, faults: u64) -> PyResult<Self> {
        let order = order.parse().map_err(|e| refusal(&e))?;
        lab::Toucher::new(block.core()?, order, seed, page, write, faults).map(Self).map_err(|e| refusal(&e))
    }

    #[staticmethod]
    fn fill(py: Python<'_>, block: &PyBlock) -> PyResult<()> {
        let block = block.core()?;
        py.detach(|| lab::fill(&block)).map_err(|e| to_py(&e))
    }

    fn order(&self, count: usize) -> Vec<u32> {
        self.0.touches().take(count).collect()
    }

    fn start(&self, py: Python<'_>) -> PyResult<()> {
        py.detach(|| self.0.start()).map_err(|e| to_py(&e))
    }

    fn stop(&self, py: Python<'_>) {
        py.detach(|| self.0.stop());
    }

    #[pyo3(signature = (timeout = None))]
    fn wait(&self, py: Python<'_>, timeout: Option<f64>) -> PyResult<bool> {
        let timeout = timeout.map(Duration::try_from_secs_f64).transpose().map_err(|e| PyValueError::new_err(e.to_string()))?;
        Ok(py.detach(|| self.0.wait(timeout)))
    }

    fn record(&self) -> String {
        self.0.record().to_string()
    }
}

/// A relay that is a link of a given speed and length.
#[pyclass(module = "qmig_e2k._core", frozen)]
#[derive(Debug)]
pub struct Shaper(lab::Shaper);

#[pymethods]
impl Shaper {
    #[new]
    #[pyo3(signature = (port, *, delay_us = 0, mbit = 0))]
    fn new(port: u16, delay_us: u64, mbit: u64) -> PyResult<Self> {
        let rate = mbit.checked_mul(1_000_000).ok_or_else(|| PyValueError::new_err(format!("{mbit} Mbit/s is too fast")))?;
        let link = lab::Link { delay: Duration::from_micros(delay_us), bits_per_second: rate };
        lab::Shaper::new(SocketAddr::from(([127, 0, 0, 1], port)), link).map(Self).map_err(|e| to_py(&e))
    }

    #[getter]
    fn port(&self) -> u16 {
        self.0.address().port()
    }

    fn close(&self, py: Python<'_>) {
        py.detach(|| self.0.close());
    }
}
