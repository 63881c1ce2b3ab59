//! Incoming for Python: signatures and conversions only.

use std::sync::Arc;
use std::time::Duration;

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use qmig_core::channel::Uri;
use qmig_core::recv;
use qmig_core::wire::{Command, DecoderOptions, Event, SectionKind};

use crate::block::PyBlock as Block;
use crate::control::Control;
use crate::error::to_py;
use crate::outgoing::owned;
use crate::wire::{Reader, within};

/// Adds this file's classes to the module.
pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<Incoming>()?;
    module.add_class::<Life>()?;
    module.add_class::<SectionEvent>()
}

/// One thing for Python to do while a stream is loaded.
#[pyclass(frozen, get_all, module = "qmig_e2k._core")]
#[derive(Debug)]
pub struct SectionEvent {
    r#type: &'static str,
    offset: u64,
    section_id: u32,
    idstr: String,
    instance_id: u32,
    version_id: u32,
    machine: String,
    page_bits: Option<u32>,
    capabilities: Vec<String>,
    uuid: Option<Vec<u8>>,
}

impl SectionEvent {
    fn empty(r#type: &'static str, offset: u64) -> Self {
        Self {
            r#type,
            offset,
            section_id: 0,
            idstr: String::new(),
            instance_id: 0,
            version_id: 0,
            machine: String::new(),
            page_bits: None,
            capabilities: Vec::new(),
            uuid: None,
        }
    }
}

/// Signs of life of this process's interpreter.
#[pyclass(frozen, module = "qmig_e2k._core")]
#[derive(Debug)]
pub struct Life(Arc<recv::Life>);

#[pymethods]
impl Life {
    #[new]
    fn new() -> Self {
        Self(Arc::default())
    }

    fn beat(&self) {
        self.0.beat();
    }
}

/// The destination of one migration.
#[pyclass(frozen, module = "qmig_e2k._core")]
#[derive(Debug)]
pub struct Incoming {
    inner: recv::Incoming,
}

#[pymethods]
impl Incoming {
    #[new]
    #[allow(clippy::too_many_arguments)] // keyword arguments of Python
    #[pyo3(signature = (control, blocks, *, configuration = true, footers = true, description = true, cpus = 0, uuid = [0; 16], limits = None))]
    fn new(
        control: &Bound<'_, Control>,
        blocks: Vec<PyRef<'_, Block>>,
        configuration: bool,
        footers: bool,
        description: bool,
        cpus: u32,
        uuid: [u8; 16],
        limits: Option<(usize, usize, u32)>,
    ) -> PyResult<Self> {
        let blocks = blocks.iter().map(|block| block.core()).collect::<PyResult<_>>()?;
        let options = DecoderOptions { configuration, footers, description, limits: within(limits) };
        let inner = recv::Incoming::new(control.get().core().clone(), blocks, options).map_err(|e| to_py(&e))?;
        inner.set_cpus(cpus);
        inner.set_uuid(uuid);
        Ok(Self { inner })
    }

    #[pyo3(signature = (uri, fd = None))]
    fn listen(&self, py: Python<'_>, uri: &str, fd: Option<i32>) -> PyResult<String> {
        let fd = owned(fd)?;
        let uri = Uri::parse(uri).map_err(|e| to_py(&e))?;
        py.detach(|| self.inner.listen(&uri, fd)).map(|addresses| addresses.to_string()).map_err(|e| to_py(&e))
    }

    fn accept(&self, py: Python<'_>) -> PyResult<()> {
        py.detach(|| self.inner.accept()).map_err(|e| to_py(&e))
    }

    fn next(&self, py: Python<'_>) -> PyResult<SectionEvent> {
        let event = py.detach(|| self.inner.next()).map_err(|e| to_py(&e))?;
        Ok(match event {
            Event::Configuration { offset, machine, page_bits, capabilities, uuid } => SectionEvent {
                page_bits,
                machine: text(&machine),
                capabilities,
                uuid: uuid.map(Vec::from),
                ..SectionEvent::empty("configuration", offset)
            },
            Event::Section(head) => {
                let r#type = match head.kind {
                    SectionKind::Start => "start",
                    SectionKind::Part => "part",
                    SectionKind::End => "end",
                    SectionKind::Full => "full",
                };
                SectionEvent {
                    section_id: head.id,
                    idstr: text(&head.idstr),
                    instance_id: head.instance,
                    version_id: head.version,
                    ..SectionEvent::empty(r#type, head.offset)
                }
            }
            Event::Command(Command::Run, offset) => SectionEvent::empty("run", offset),
            Event::Command(_, offset) => SectionEvent::empty("fence", offset),
            _ => SectionEvent::empty("eof", 0),
        })
    }

    #[getter]
    fn reader(&self) -> PyResult<Reader> {
        Ok(Reader::over(self.inner.payload().map_err(|e| to_py(&e))?))
    }

    fn section_done(&self, py: Python<'_>) -> PyResult<()> {
        py.detach(|| self.inner.section_done()).map_err(|e| to_py(&e))
    }

    fn wait(&self, py: Python<'_>) -> PyResult<()> {
        py.detach(|| self.inner.wait()).map_err(|e| to_py(&e))
    }

    fn hold_ack(&self) {
        self.inner.hold_ack();
    }

    fn devices_ready(&self, py: Python<'_>) -> PyResult<()> {
        py.detach(|| self.inner.devices_ready()).map_err(|e| to_py(&e))
    }

    fn abandon(&self, py: Python<'_>) {
        py.detach(|| self.inner.abandon());
    }

    fn guard(&self, life: &Bound<'_, Life>, patience: f64) -> PyResult<()> {
        let patience = Duration::try_from_secs_f64(patience).map_err(|e| PyValueError::new_err(e.to_string()))?;
        self.inner.guard(&life.get().0, patience, recv::end_process).map_err(|e| to_py(&e))
    }

    fn waiting(&self) -> u64 {
        self.inner.waiting()
    }

    fn let_go(&self, py: Python<'_>) {
        py.detach(|| self.inner.let_go());
    }

    #[pyo3(signature = (status = 0))]
    fn finish(&self, py: Python<'_>, status: u32) -> PyResult<()> {
        py.detach(|| self.inner.finish(status)).map_err(|e| to_py(&e))
    }

    fn close(&self, py: Python<'_>) {
        py.detach(|| self.inner.close());
    }
}

/// A name from the stream; bytes that are no UTF-8 are escaped, so that no two names look alike and an error shows them.
fn text(name: &[u8]) -> String {
    std::str::from_utf8(name).map_or_else(|_| name.escape_ascii().to_string(), str::to_owned)
}
