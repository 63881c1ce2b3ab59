//! Block and probe for Python: signatures and conversions only.

use std::ffi::{c_int, c_void};
use std::path::PathBuf;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use pyo3::buffer::PyUntypedBuffer;
use pyo3::exceptions::{PyBufferError, PyValueError};
use pyo3::types::{PyBytes, PyDict};
use pyo3::{ffi, prelude::*};
use qmig_core::postcopy::local::BufferSource;
use qmig_core::ram::{Backing, Block, BlockOptions};
use qmig_core::sys::{adopt, guest::GuestMem, probe::Probe};
use qmig_core::{Error, ErrorKind};

use crate::error::to_py;

/// Adds this file's classes and functions to the module.
pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<PyBlock>()?;
    module.add_function(wrap_pyfunction!(check_postcopy, module)?)?;
    module.add_function(wrap_pyfunction!(probe, module)?)
}

/// Raise why the pages of these blocks cannot come late on this host; a caution if they can, but not for everybody.
#[pyfunction]
#[allow(clippy::needless_pass_by_value)] // PyO3 hands over owned values
fn check_postcopy(py: Python<'_>, blocks: Vec<PyRef<'_, PyBlock>>) -> PyResult<Option<String>> {
    let blocks: Vec<_> = blocks.iter().map(|block| block.core()).collect::<PyResult<_>>()?;
    py.detach(|| qmig_core::postcopy::support(&blocks)).map_err(|e| to_py(&e))
}

/// What kernel and permissions allow: name -> (ok, detail, remedy).
#[pyfunction]
fn probe(py: Python<'_>) -> PyResult<Bound<'_, PyDict>> {
    let found = py.detach(Probe::run);
    let answer = PyDict::new(py);
    for check in found.checks {
        answer.set_item(check.name, (check.ok, check.detail, check.remedy))?;
    }
    Ok(answer)
}

/// A block of the core's and, if its memory is the caller's, the buffer that keeps that mapped.
#[derive(Debug)]
struct Held {
    block: Arc<Block>,
    owner: Option<PyUntypedBuffer>,
}

/// A range of guest RAM with its idstr.
#[pyclass(name = "Block", module = "qmig_e2k._core", frozen)]
#[derive(Debug)]
pub struct PyBlock {
    name: String,
    /// None once closed.
    held: Mutex<Option<Held>>,
    /// Views that Python holds; they keep this object alive.
    views: AtomicUsize,
}

/// Bytes of Python's that the core reads for as long as this lives.
#[derive(Debug)]
pub struct Lent(PyUntypedBuffer);

impl Lent {
    /// The bytes, by raw copies: other threads may write there.
    pub fn memory(&self) -> GuestMem<'_> {
        self.view()
    }

    /// The same for whoever sees to it that the view is gone before this.
    fn view<'a>(&self) -> GuestMem<'a> {
        let base = NonNull::new(self.0.buf_ptr().cast()).unwrap_or(NonNull::dangling());
        // SAFETY: the exporter keeps the memory mapped while the buffer is held; who writes asks `readonly` first.
        unsafe { GuestMem::new(base, self.0.len_bytes()) }
    }

    /// Its owner does not allow writing.
    pub fn readonly(&self) -> bool {
        self.0.readonly()
    }

    /// The bytes as a page source, which must be gone before this.
    pub fn source(&self) -> BufferSource {
        BufferSource::new(self.view())
    }
}

/// Takes a contiguous buffer, which may be read-only.
pub fn lend(source: &Bound<'_, PyAny>) -> PyResult<Lent> {
    let buffer = PyUntypedBuffer::get(source)?;
    if !buffer.is_c_contiguous() {
        return Err(PyBufferError::new_err("the buffer must be contiguous"));
    }
    Ok(Lent(buffer))
}

/// Bytes copied at a time between Python's memory and the guest's.
const BOUNCE: usize = 1 << 20;

impl PyBlock {
    fn over(name: String, block: Arc<Block>, owner: Option<PyUntypedBuffer>) -> Self {
        Self { name, held: Mutex::new(Some(Held { block, owner })), views: AtomicUsize::new(0) }
    }

    fn lock(&self) -> MutexGuard<'_, Option<Held>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The block behind, for the core; an error once it is closed.
    pub fn core(&self) -> PyResult<Arc<Block>> {
        self.lock().as_ref().map(|held| Arc::clone(&held.block)).ok_or_else(|| self.invalid("is closed"))
    }

    fn invalid(&self, what: &str) -> PyErr {
        to_py(&Error::new(ErrorKind::InvalidState, format!("block {:?} {what}", self.name)))
    }
}

impl Drop for PyBlock {
    fn drop(&mut self) {
        let Some(Held { block, owner }) = self.lock().take() else { return };
        // The core may outlive this object; then the caller's memory must stay mapped for ever rather than dangle.
        if Arc::into_inner(block).is_none() {
            std::mem::forget(owner);
        }
    }
}

fn backing(name: &str) -> PyResult<Backing> {
    [Backing::Anon, Backing::Memfd, Backing::File, Backing::Hugetlb]
        .into_iter()
        .find(|known| known.name() == name)
        .ok_or_else(|| PyValueError::new_err(format!("backing must be 'anon', 'memfd', 'file' or 'hugetlb', not {name:?}")))
}

#[pymethods]
impl PyBlock {
    #[new]
    #[pyo3(signature = (name, size, *, backing = "anon", path = None, max_size = None, thp = true))]
    fn new(
        py: Python<'_>,
        name: String,
        size: u64,
        backing: &str,
        path: Option<PathBuf>,
        max_size: Option<u64>,
        thp: bool,
    ) -> PyResult<Self> {
        let options = BlockOptions { backing: self::backing(backing)?, path, max_size, thp };
        let block = py.detach(|| Block::new(&name, size, &options)).map_err(|e| to_py(&e))?;
        Ok(Self::over(name, block, None))
    }

    #[staticmethod]
    #[pyo3(signature = (name, buffer, *, dirty_log = "auto"))]
    fn adopt(name: String, buffer: &Bound<'_, PyAny>, dirty_log: &str) -> PyResult<Self> {
        let explicit = match dirty_log {
            "auto" => false,
            "explicit" => true,
            other => return Err(PyValueError::new_err(format!("dirty_log must be 'auto' or 'explicit', not {other:?}"))),
        };
        let refuse = |text: &str| to_py(&Error::new(ErrorKind::BadBlock, format!("block {name:?}: {text}")));
        let owner = PyUntypedBuffer::get(buffer)?;
        if owner.readonly() {
            return Err(refuse("the buffer is read-only; hand in a writable one"));
        }
        if !owner.is_c_contiguous() {
            return Err(refuse("the buffer is not contiguous; hand in the whole array, not a strided view"));
        }
        // SAFETY: the exporter keeps the memory mapped while `owner` lives, and `owner` lives as long as the block: see `drop`.
        let memory = unsafe { adopt::adopt(owner.buf_ptr().cast(), owner.len_bytes()) }.map_err(|e| refuse(&e.message))?;
        let block = Block::adopt(&name, memory, explicit).map_err(|e| to_py(&e))?;
        Ok(Self::over(name, block, Some(owner)))
    }

    #[getter]
    fn name(&self) -> &str {
        &self.name
    }

    #[getter]
    fn size(&self) -> PyResult<u64> {
        Ok(self.core()?.used_length())
    }

    #[getter]
    fn max_size(&self) -> PyResult<u64> {
        Ok(self.core()?.max_length())
    }

    #[getter]
    fn resizable(&self) -> PyResult<bool> {
        Ok(self.core()?.resizable())
    }

    #[getter]
    fn page_size(&self) -> PyResult<u64> {
        Ok(self.core()?.page_size())
    }

    #[getter]
    fn backing(&self) -> PyResult<&'static str> {
        Ok(self.core()?.backing().name())
    }

    #[getter]
    fn address(&self) -> PyResult<usize> {
        Ok(self.core()?.address())
    }

    #[getter]
    fn dirty_log(&self) -> PyResult<&'static str> {
        Ok(self.core()?.dirty_log().name())
    }

    fn read<'py>(&self, py: Python<'py>, offset: u64, length: usize) -> PyResult<Bound<'py, PyBytes>> {
        let block = self.core()?;
        // Checked before as much is allocated.
        block.range(offset, length).map_err(|e| to_py(&e))?;
        PyBytes::new_with(py, length, |into| py.detach(|| block.read(offset, into)).map_err(|e| to_py(&e)))
    }

    fn write(&self, py: Python<'_>, offset: u64, data: &Bound<'_, PyAny>) -> PyResult<()> {
        let (block, data) = (self.core()?, PyUntypedBuffer::get(data)?);
        if !data.is_c_contiguous() {
            return Err(PyBufferError::new_err("data must be contiguous"));
        }
        let length = data.len_bytes();
        block.range(offset, length).map_err(|e| to_py(&e))?;
        let mut bounce = vec![0; BOUNCE.min(length)];
        for done in (0..length).step_by(BOUNCE) {
            let piece = &mut bounce[..BOUNCE.min(length - done)];
            // SAFETY: inside the buffer that `data` holds; a raw copy, for other threads may write there.
            unsafe { std::ptr::copy_nonoverlapping(data.buf_ptr().cast::<u8>().add(done), piece.as_mut_ptr(), piece.len()) };
            py.detach(|| block.write(offset + done as u64, piece)).map_err(|e| to_py(&e))?;
        }
        Ok(())
    }

    fn mark_dirty(&self, offset: u64, length: usize) -> PyResult<()> {
        self.core()?.mark_dirty(offset, length).map_err(|e| to_py(&e))
    }

    fn prefault(&self, py: Python<'_>, offset: u64, length: usize) -> PyResult<()> {
        let block = self.core()?;
        py.detach(|| block.prefault(offset, length)).map_err(|e| to_py(&e))
    }

    fn resize(&self, py: Python<'_>, size: u64) -> PyResult<()> {
        let block = self.core()?;
        py.detach(|| block.resize(size)).map_err(|e| to_py(&e))
    }

    #[pyo3(signature = (expected = false))]
    fn dump_dirty(&self, expected: bool) -> PyResult<String> {
        Ok(self.core()?.dump_dirty(expected))
    }

    /// A uint8 array over the used length.
    fn numpy<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        let numpy = slf.py().import("numpy")?;
        numpy.call_method1("frombuffer", (slf, numpy.getattr("uint8")?, slf.get().size()?))
    }

    fn close(&self, py: Python<'_>) -> PyResult<()> {
        let mut held = self.lock();
        let Some(Held { block, .. }) = held.as_ref() else { return Ok(()) };
        if self.views.load(Ordering::Acquire) > 0 {
            return Err(self.invalid("has exported views (numpy arrays, memoryviews); drop them first"));
        }
        // If ours is the only share, none can come while we hold the lock: shares are made from shares.
        if Arc::strong_count(block) > 1 {
            return Err(self.invalid("is in use by a migration, a model guest or another thread; end that first"));
        }
        let Some(Held { block, owner }) = held.take() else { return Ok(()) };
        drop(held);
        py.detach(|| drop(block));
        drop(owner);
        Ok(())
    }

    fn __repr__(&self) -> String {
        match self.lock().as_ref() {
            Some(Held { block, .. }) => format!("Block({:?}, {:#x}, backing={:?})", self.name, block.used_length(), block.backing().name()),
            None => format!("Block({:?}, closed)", self.name),
        }
    }

    // SAFETY: the interpreter's contract for this slot: `view` is its to be filled in.
    unsafe fn __getbuffer__(slf: &Bound<'_, Self>, view: *mut ffi::Py_buffer, flags: c_int) -> PyResult<()> {
        let this = slf.get();
        let held = this.lock();
        let Some(Held { block, .. }) = held.as_ref() else {
            return Err(PyBufferError::new_err(format!("block {:?} is closed", this.name)));
        };
        let length = isize::try_from(block.max_length()).map_err(|_| PyBufferError::new_err("too large"))?;
        let address = std::ptr::with_exposed_provenance_mut::<c_void>(block.address());
        // SAFETY: `length` bytes are mapped at `address` until `close` or drop, which views exclude.
        if unsafe { ffi::PyBuffer_FillInfo(view, slf.as_ptr(), address, length, 0, flags) } != 0 {
            return Err(PyErr::fetch(slf.py()));
        }
        this.views.fetch_add(1, Ordering::AcqRel);
        Ok(())
    }

    // SAFETY: as above.
    unsafe fn __releasebuffer__(&self, _view: *mut ffi::Py_buffer) {
        self.views.fetch_sub(1, Ordering::AcqRel);
    }
}
