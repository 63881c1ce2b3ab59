//! The page codecs for experiments: signatures and conversions only.

use std::sync::Mutex;

use pyo3::exceptions::{PyBufferError, PyMemoryError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyTuple};
use qmig_core::page::{self, Delta, XBZRLE_PAGE_MAX, XbzrleEncoder};
use qmig_core::wire::consts::PAGE_BYTES;
use qmig_core::{Error, ErrorKind};

use crate::block::{Lent, lend};
use crate::error::to_py;
use crate::wire::lock;

/// Adds this file's class and functions to the module.
pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<PageCache>()?;
    module.add_class::<CompressPool>()?;
    module.add_function(wrap_pyfunction!(xbzrle_encode, module)?)?;
    module.add_function(wrap_pyfunction!(xbzrle_decode, module)?)?;
    module.add_function(wrap_pyfunction!(is_zero, module)?)?;
    module.add_function(wrap_pyfunction!(compress_page, module)?)?;
    module.add_function(wrap_pyfunction!(decompress_page, module)?)
}

/// A copy of what the buffer holds now: other threads may write there while a codec works.
fn snapshot(lent: &Lent) -> Vec<u8> {
    let memory = lent.memory();
    let mut bytes = vec![0; memory.len()];
    memory.read(0, &mut bytes);
    bytes
}

#[pyfunction]
#[pyo3(signature = (old, new, dlen = 4096))]
fn xbzrle_encode<'py>(
    py: Python<'py>,
    old: &Bound<'py, PyAny>,
    new: &Bound<'py, PyAny>,
    dlen: usize,
) -> PyResult<Option<Bound<'py, PyBytes>>> {
    let (old, new) = (lend(old)?, lend(new)?);
    let (len, other) = (new.memory().len(), old.memory().len());
    if len != other || len > XBZRLE_PAGE_MAX {
        return Err(PyValueError::new_err(format!(
            "pages of {other} and {len} bytes: both must be of one size, at most {XBZRLE_PAGE_MAX}"
        )));
    }
    let mut delta = Vec::new();
    let found = py.detach(|| {
        // No delta is longer than that, so more room makes no difference.
        delta.resize(dlen.min(2 * XBZRLE_PAGE_MAX), 0);
        XbzrleEncoder::default().encode(&snapshot(&old), &snapshot(&new), &mut delta)
    });
    Ok(match found {
        Delta::Equal => Some(PyBytes::new(py, b"")),
        Delta::Length(length) => Some(PyBytes::new(py, &delta[..length])),
        Delta::Overflow => None,
    })
}

#[pyfunction]
fn xbzrle_decode(py: Python<'_>, delta: &Bound<'_, PyAny>, page: &Bound<'_, PyAny>) -> PyResult<usize> {
    let (delta, page) = (lend(delta)?, lend(page)?);
    if page.readonly() {
        return Err(PyBufferError::new_err("the page is patched in place, but this buffer is read-only"));
    }
    py.detach(|| {
        let mut patched = snapshot(&page);
        let end = page::xbzrle_decode(&snapshot(&delta), &mut patched)?;
        page.memory().write(0, &patched);
        Ok(end)
    })
    .map_err(|e| to_py(&e))
}

#[pyfunction]
fn is_zero(py: Python<'_>, buffer: &Bound<'_, PyAny>) -> PyResult<bool> {
    let lent = lend(buffer)?;
    Ok(py.detach(|| lent.memory().is_zero(0, lent.memory().len())))
}

#[pyfunction]
#[pyo3(signature = (page, level = 1, method = "zlib"))]
fn compress_page<'py>(py: Python<'py>, page: &Bound<'py, PyAny>, level: i32, method: &str) -> PyResult<Bound<'py, PyBytes>> {
    let (page, zstd) = (lend(page)?, is_zstd(method)?);
    let packed = py.detach(|| {
        let bytes = snapshot(&page);
        if zstd { page::zstd_page(&bytes, level) } else { page::deflate_page(&bytes, level) }
    });
    packed.map(|packed| PyBytes::new(py, &packed)).map_err(|e| to_py(&e))
}

#[pyfunction]
#[pyo3(signature = (data, page_size = 4096, method = "zlib"))]
fn decompress_page<'py>(py: Python<'py>, data: &Bound<'py, PyAny>, page_size: usize, method: &str) -> PyResult<Bound<'py, PyBytes>> {
    let (data, zstd) = (lend(data)?, is_zstd(method)?);
    PyBytes::new_with(py, page_size, |page| {
        py.detach(|| {
            let packed = snapshot(&data);
            if zstd { page::unzstd_page(&packed, page) } else { page::inflate_page(&packed, false, page) }
        })
        .map_err(|e| to_py(&e))
    })
}

fn is_zstd(method: &str) -> PyResult<bool> {
    match method {
        "zlib" => Ok(false),
        "zstd" => Ok(true),
        other => Err(PyValueError::new_err(format!("pages are compressed by zlib or zstd, not by {other:?}"))),
    }
}

/// Why there is no such cache.
fn refused(error: Error) -> PyErr {
    match error.kind {
        ErrorKind::NoMemory => PyMemoryError::new_err(error.message),
        _ => PyValueError::new_err(error.message),
    }
}

/// The last version of pages that were sent (spec/stream 5.5).
#[pyclass(frozen, module = "qmig_e2k._core")]
#[derive(Debug)]
struct PageCache {
    cache: Mutex<page::PageCache>,
    page_size: usize,
}

#[pymethods]
impl PageCache {
    #[new]
    #[pyo3(signature = (size, page_size = 4096))]
    fn new(size: usize, page_size: usize) -> PyResult<Self> {
        let cache = page::PageCache::new(size, page_size).map_err(refused)?;
        Ok(Self { cache: Mutex::new(cache), page_size })
    }

    #[getter]
    fn size(&self) -> usize {
        lock(&self.cache).size()
    }

    #[getter]
    fn page_size(&self) -> usize {
        self.page_size
    }

    fn get<'py>(&self, py: Python<'py>, address: u64, age: u64) -> Option<Bound<'py, PyBytes>> {
        lock(&self.cache).get(address, age).map(|page| PyBytes::new(py, page))
    }

    fn insert(&self, py: Python<'_>, address: u64, page: &Bound<'_, PyAny>, age: u64) -> PyResult<bool> {
        let lent = lend(page)?;
        let page = py.detach(|| snapshot(&lent));
        if page.len() != self.page_size {
            return Err(PyValueError::new_err(format!("a page of {} bytes in a cache of pages of {}", page.len(), self.page_size)));
        }
        Ok(lock(&self.cache).insert(address, &page, age).is_some())
    }

    /// A new empty cache; the same size keeps what is there.
    fn resize(&self, size: usize) -> PyResult<()> {
        let mut cache = lock(&self.cache);
        if size != cache.size() {
            *cache = page::PageCache::new(size, self.page_size).map_err(refused)?;
        }
        Ok(())
    }
}

/// Threads that compress and decompress many pages at a time.
#[pyclass(frozen, module = "qmig_e2k._core")]
#[derive(Debug)]
struct CompressPool {
    /// None once it is closed.
    pool: Mutex<Option<page::CompressPool>>,
}

impl CompressPool {
    /// With the interpreter lock let go of, which must be before the pool's own is taken.
    fn with<R: Send>(&self, py: Python<'_>, run: impl FnOnce(&mut page::CompressPool) -> Result<R, Error> + Send) -> PyResult<R> {
        py.detach(|| match &mut *lock(&self.pool) {
            Some(pool) => run(pool).map_err(Some),
            None => Err(None),
        })
        .map_err(|e| e.map_or_else(|| PyValueError::new_err("this pool is closed"), |e| to_py(&e)))
    }
}

#[pymethods]
impl CompressPool {
    #[new]
    #[pyo3(signature = (threads = 2, level = 1))]
    fn new(threads: usize, level: i32) -> PyResult<Self> {
        let pool = page::CompressPool::new(threads, level).map_err(refused)?;
        Ok(Self { pool: Mutex::new(Some(pool)) })
    }

    fn compress<'py>(&self, py: Python<'py>, pages: &Bound<'py, PyAny>) -> PyResult<Vec<Bound<'py, PyBytes>>> {
        let lent = lend(pages)?;
        let length = lent.memory().len();
        if !length.is_multiple_of(PAGE_BYTES) {
            return Err(PyValueError::new_err(format!("{length} bytes are not whole pages of {PAGE_BYTES}")));
        }
        let packed = self.with(py, |pool| {
            let memory = lent.memory();
            let zero = |page: usize| memory.is_zero(page * PAGE_BYTES, PAGE_BYTES);
            pool.compress(length / PAGE_BYTES, zero, |page, room| memory.read(page * PAGE_BYTES, room))
        })?;
        Ok(packed.iter().map(|bytes| PyBytes::new(py, bytes)).collect())
    }

    fn decompress<'py>(&self, py: Python<'py>, packed: Vec<Bound<'py, PyAny>>) -> PyResult<Bound<'py, PyBytes>> {
        let lent = packed.iter().map(lend).collect::<PyResult<Vec<_>>>()?;
        let length = lent.len().checked_mul(PAGE_BYTES).ok_or_else(|| PyMemoryError::new_err("too many pages"))?;
        PyBytes::new_with(py, length, |out| {
            self.with(py, |pool| {
                let packed: Vec<_> = lent.iter().map(snapshot).collect();
                pool.decompress(&packed, out)
            })
        })
    }

    fn close(&self, py: Python<'_>) {
        py.detach(|| drop(lock(&self.pool).take()));
    }

    fn __enter__(slf: Bound<'_, Self>) -> Bound<'_, Self> {
        slf
    }

    #[pyo3(signature = (*_exc))]
    fn __exit__(&self, py: Python<'_>, _exc: &Bound<'_, PyTuple>) {
        self.close(py);
    }
}
