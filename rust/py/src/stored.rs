//! `StoredStream` for Python: signatures and conversions only.

use std::fmt;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex};

use pyo3::prelude::*;
use pyo3::types::{PyByteArray, PyDict, PyList};
use qmig_core::stored::{FileSource, StoredRam};
use qmig_core::wire::consts::PAGE_SIZE;
use qmig_core::wire::{Accept, Decoder, Event, Input};
use qmig_core::{Error, ErrorKind, Result};

use crate::error::to_py;
use crate::outgoing::owned;
use crate::wire::{Reader, Shared, element, lock, text, within};

/// Adds this file's class to the module.
pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<StoredStream>()
}

/// The elements of a stored stream one by one, and its RAM.
#[pyclass(frozen, module = "qmig_e2k._core")]
pub struct StoredStream {
    decoder: Arc<Mutex<Decoder<FileSource>>>,
    ram: Mutex<StoredRam>,
}

impl fmt::Debug for StoredStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StoredStream").finish_non_exhaustive()
    }
}

fn source(fd: Option<OwnedFd>) -> Result<FileSource> {
    fd.ok_or_else(|| Error::new(ErrorKind::InvalidArgument, "no descriptor")).and_then(FileSource::new)
}

#[pymethods]
impl StoredStream {
    /// Over seekable files: the main channel and the multifd channels. Takes the descriptors over.
    #[new]
    #[pyo3(signature = (main, channels, *, footers = None, limits = None))]
    fn new(main: i32, channels: Vec<i32>, footers: Option<bool>, limits: Option<(usize, usize, u32)>) -> PyResult<Self> {
        let open = |fd| source(owned(Some(fd))?).map_err(|e| to_py(&e));
        let main = open(main)?;
        let channels = channels.into_iter().map(open).collect::<PyResult<Vec<_>>>()?;
        let ram = StoredRam::new(&main, &channels);
        let decoder = Decoder::offline_within(Input::new(main), footers, within(limits)).accepting(Accept::all());
        Ok(Self { decoder: Arc::new(Mutex::new(decoder)), ram: Mutex::new(ram) })
    }

    /// The next element, None behind the last one.
    fn next<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyDict>>> {
        let event = py.detach(|| lock(&self.decoder).next(&mut *lock(&self.ram))).map_err(|e| to_py(&e))?;
        if event == Event::Finished { Ok(None) } else { element(py, &event).map(Some) }
    }

    /// The payload of the section that `next` returned, until `section_done`.
    #[getter]
    fn reader(&self) -> Reader {
        Reader::over(Arc::clone(&self.decoder) as Shared)
    }

    /// The payload is consumed: check the footer.
    fn section_done(&self) -> PyResult<()> {
        lock(&self.decoder).section_done().map_err(|e| to_py(&e))
    }

    /// Stream offset of the next byte.
    #[getter]
    fn offset(&self) -> u64 {
        lock(&self.decoder).input().offset()
    }

    /// Whether sections have footers; None until the first one ended.
    #[getter]
    fn footers(&self) -> Option<bool> {
        lock(&self.decoder).footers()
    }

    /// Read what the multifd channels have behind their last point of synchronisation.
    fn finish_channels(&self, py: Python<'_>) -> PyResult<()> {
        py.detach(|| lock(&self.ram).finish()).map_err(|e| to_py(&e))
    }

    /// What each multifd channel brought.
    fn channels<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyList>> {
        let made = PyList::empty(py);
        for counts in lock(&self.ram).channels() {
            let channel = PyDict::new(py);
            channel.set_item("id", counts.id)?;
            channel.set_item("packets", counts.packets)?;
            channel.set_item("normal", counts.normal)?;
            channel.set_item("zero", counts.zero)?;
            channel.set_item("device_state", counts.device_state)?;
            made.append(channel)?;
        }
        Ok(made)
    }

    /// The RAM blocks as the stream announced them.
    fn blocks<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyList>> {
        let made = PyList::empty(py);
        let ram = lock(&self.ram);
        for (index, entry) in ram.entries().enumerate() {
            let block = PyDict::new(py);
            block.set_item("name", text(&entry.name))?;
            block.set_item("raw_name", pyo3::types::PyBytes::new(py, &entry.name))?;
            block.set_item("size", entry.used_length)?;
            block.set_item("offset", entry.offset)?;
            block.set_item("page_size", entry.page_size.unwrap_or(PAGE_SIZE))?;
            block.set_item("address", entry.address)?;
            block.set_item("mapped", entry.mapped.is_some())?;
            block.set_item("complete", ram.is_complete(index))?;
            block.set_item("pages", ram.pages(index))?;
            made.append(block)?;
        }
        Ok(made)
    }

    /// The first run of pages of a block from `offset` on that came and may hold something else than zeros: (offset, length).
    fn next_run(&self, py: Python<'_>, block: usize, offset: u64) -> PyResult<Option<(u64, u64)>> {
        py.detach(|| {
            let ram = lock(&self.ram);
            Self::inside(&ram, block, offset, 0).and_then(|()| ram.next_run(block, offset))
        })
        .map_err(|e| to_py(&e))
    }

    /// The last contents of whole pages of a block; what did not come reads as zero.
    fn read<'py>(&self, py: Python<'py>, block: usize, offset: u64, length: usize) -> PyResult<Bound<'py, PyByteArray>> {
        // Before anything is allocated.
        Self::inside(&lock(&self.ram), block, offset, length as u64).map_err(|e| to_py(&e))?;
        PyByteArray::new_with(py, length, |out| py.detach(|| lock(&self.ram).read(block, offset, out)).map_err(|e| to_py(&e)))
    }
}

impl StoredStream {
    fn inside(ram: &StoredRam, block: usize, offset: u64, length: u64) -> Result<()> {
        let whole = offset.is_multiple_of(PAGE_SIZE) && length.is_multiple_of(PAGE_SIZE);
        match ram.entries().nth(block) {
            Some(entry) if whole && offset.checked_add(length).is_some_and(|end| end <= entry.used_length) => Ok(()),
            _ => Err(Error::new(ErrorKind::InvalidArgument, "no whole pages of a block of this stream")),
        }
    }
}
