//! `ModelGuest` for Python: signatures and conversions only.

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use qmig_core::ErrorKind;
use qmig_core::guest::{Guest, REGISTERS, Registers, Spec};

use crate::block::PyBlock;
use crate::error::to_py;

/// Adds this file's classes and functions to the module.
pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<ModelGuest>()
}

/// Deterministic vCPU threads over one block.
#[pyclass(module = "qmig_e2k._core", frozen)]
#[derive(Debug)]
pub struct ModelGuest(Guest);

/// Wrong arguments are `ValueError`; what the machine's state forbids is `MigrationError`.
fn refusal(error: &qmig_core::Error) -> PyErr {
    if error.kind == ErrorKind::InvalidArgument { PyValueError::new_err(error.to_string()) } else { to_py(error) }
}

#[pymethods]
impl ModelGuest {
    /// Registers of a vCPU.
    #[classattr]
    #[pyo3(name = "REGISTERS")]
    const COUNT: usize = REGISTERS;

    #[new]
    #[pyo3(signature = (block, spec, *, seed = 0, threads = 1))]
    fn new(block: &PyBlock, spec: &str, seed: u64, threads: usize) -> PyResult<Self> {
        let spec: Spec = spec.parse().map_err(|e| refusal(&e))?;
        Guest::new(block.core()?, &spec, seed, threads).map(Self).map_err(|e| refusal(&e))
    }

    #[getter]
    fn threads(&self) -> usize {
        self.0.vcpus()
    }

    #[getter]
    fn running(&self) -> bool {
        self.0.running()
    }

    fn start(&self, py: Python<'_>) -> PyResult<()> {
        py.detach(|| self.0.start()).map_err(|e| refusal(&e))
    }

    fn stop(&self, py: Python<'_>) -> PyResult<()> {
        py.detach(|| self.0.stop()).map_err(|e| refusal(&e))
    }

    fn registers(&self, py: Python<'_>, vcpu: usize) -> PyResult<Vec<u64>> {
        py.detach(|| self.0.registers(vcpu)).map(Vec::from).map_err(|e| refusal(&e))
    }

    fn set_registers(&self, py: Python<'_>, vcpu: usize, values: Vec<u64>) -> PyResult<()> {
        let registers = Registers::try_from(values)
            .map_err(|values| PyValueError::new_err(format!("a vCPU has {REGISTERS} registers, not {}", values.len())))?;
        py.detach(|| self.0.set_registers(vcpu, &registers)).map_err(|e| refusal(&e))
    }

    fn steps(&self) -> u64 {
        self.0.steps()
    }

    fn verify(&self, py: Python<'_>) -> PyResult<(u64, bool, Option<u64>)> {
        let verdict = py.detach(|| self.0.verify()).map_err(|e| refusal(&e))?;
        Ok((verdict.steps, verdict.equal(), verdict.first_difference))
    }

    fn throttle(&self, percent: u32) {
        self.0.throttle(percent);
    }
}
