//! Reader, Writer, decode for Python: signatures and conversions only.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};

use pyo3::buffer::PyBuffer;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyList, PyMemoryView};
use qmig_core::wire::consts::PAGE_SIZE;
use qmig_core::wire::limits::{Limits, PEEK_MAX};
use qmig_core::wire::{Command, Decoder, Event, Input, NoSource, Output, PageCounts, PayloadSource, RecordingSink, SectionHeader, layout};
use qmig_core::{Error, ErrorKind, Result};

use crate::error::to_py;

/// Adds this file's classes and functions to the module.
pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<Reader>()?;
    module.add_class::<Writer>()?;
    module.add_function(wrap_pyfunction!(decode, module)?)
}

/// The bytes of anything with the buffer protocol, whatever its item type.
fn bytes_of(data: &Bound<'_, PyAny>) -> PyResult<Vec<u8>> {
    if let Ok(bytes) = data.cast::<PyBytes>() {
        return Ok(bytes.as_bytes().to_vec());
    }
    match PyBuffer::<u8>::get(data) {
        Ok(buffer) => buffer.to_vec(data.py()),
        Err(_) => PyMemoryView::from(data)?.call_method0("tobytes")?.extract(),
    }
}

pub(crate) fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Limits as (sections, RAM blocks, bytes of a package).
pub(crate) fn within(limits: Option<(usize, usize, u32)>) -> Limits {
    limits.map_or_else(Limits::default, |(sections, ram_blocks, package)| Limits { sections, ram_blocks, package })
}

// ---- Reader

pub(crate) type Shared = Arc<Mutex<dyn PayloadSource + Send>>;

/// Bytes of one section payload. Integers are big-endian. A short read raises `StreamError`, kind `truncated`, with the stream offset.
#[pyclass(frozen, module = "qmig_e2k._core")]
pub struct Reader {
    source: Shared,
}

impl fmt::Debug for Reader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reader").finish_non_exhaustive()
    }
}

impl Reader {
    /// A reader over the payload that `source` stands at.
    pub fn over(source: Shared) -> Self {
        Self { source }
    }

    /// Run `read`, which wants `need` bytes; the interpreter is let go of only if they are not at hand.
    fn with<T: Send>(&self, py: Python<'_>, need: usize, read: impl FnOnce(&mut dyn PayloadSource) -> Result<T> + Send) -> PyResult<T> {
        let at_hand = match self.source.try_lock() {
            Ok(guard) if guard.buffered() >= need => Some(guard),
            Err(TryLockError::Poisoned(guard)) if guard.get_ref().buffered() >= need => Some(guard.into_inner()),
            _ => None,
        };
        match at_hand {
            Some(mut guard) => read(&mut *guard),
            None => py.detach(|| read(&mut *lock(&self.source))),
        }
        .map_err(|e| to_py(&e))
    }

    fn array<const N: usize>(&self, py: Python<'_>) -> PyResult<[u8; N]> {
        self.with(py, N, |source| {
            let mut out = [0; N];
            source.read_exact(&mut out)?;
            Ok(out)
        })
    }
}

#[pymethods]
impl Reader {
    #[new]
    #[pyo3(signature = (data, offset = 0))]
    fn new(data: &Bound<'_, PyAny>, offset: u64) -> PyResult<Self> {
        Ok(Self { source: Arc::new(Mutex::new(Input::from_bytes(bytes_of(data)?, offset))) })
    }

    /// Stream offset of the next byte.
    #[getter]
    fn offset(&self, py: Python<'_>) -> PyResult<u64> {
        self.with(py, 0, |source| Ok(source.offset()))
    }

    fn u8(&self, py: Python<'_>) -> PyResult<u8> {
        self.array(py).map(u8::from_be_bytes)
    }

    fn u16(&self, py: Python<'_>) -> PyResult<u16> {
        self.array(py).map(u16::from_be_bytes)
    }

    fn u32(&self, py: Python<'_>) -> PyResult<u32> {
        self.array(py).map(u32::from_be_bytes)
    }

    fn u64(&self, py: Python<'_>) -> PyResult<u64> {
        self.array(py).map(u64::from_be_bytes)
    }

    fn i8(&self, py: Python<'_>) -> PyResult<i8> {
        self.array(py).map(i8::from_be_bytes)
    }

    fn i16(&self, py: Python<'_>) -> PyResult<i16> {
        self.array(py).map(i16::from_be_bytes)
    }

    fn i32(&self, py: Python<'_>) -> PyResult<i32> {
        self.array(py).map(i32::from_be_bytes)
    }

    fn i64(&self, py: Python<'_>) -> PyResult<i64> {
        self.array(py).map(i64::from_be_bytes)
    }

    fn read<'py>(&self, py: Python<'py>, length: usize) -> PyResult<Bound<'py, PyBytes>> {
        let bytes = self.with(py, length, |source| source.read_vec(length as u64))?;
        Ok(PyBytes::new(py, &bytes))
    }

    fn skip(&self, py: Python<'_>, length: usize) -> PyResult<()> {
        self.with(py, length, |source| source.skip(length as u64))
    }

    /// A counted string: one length byte, then so many bytes.
    fn cstr8<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyBytes>> {
        // The longest it can be; a shorter one at the end of what is buffered costs a detach, nothing else.
        let bytes = self.with(py, 256, |source| {
            let length = usize::from(source.peek(1)?.first().copied().unwrap_or(0));
            let mut out = vec![0; 1 + length];
            source.read_exact(&mut out)?;
            Ok(out)
        })?;
        Ok(PyBytes::new(py, &bytes[1..]))
    }

    /// Up to `length` (at most 512) coming bytes without consuming them; shorter only where the stream ends.
    fn peek<'py>(&self, py: Python<'py>, length: usize) -> PyResult<Bound<'py, PyBytes>> {
        if length > PEEK_MAX {
            return Err(PyValueError::new_err(format!("cannot look {length} bytes ahead, only {PEEK_MAX}")));
        }
        let bytes = self.with(py, length, |source| source.peek(length).map(<[u8]>::to_vec))?;
        Ok(PyBytes::new(py, &bytes))
    }
}

// ---- Writer

/// A growing buffer of stream bytes. Integers are big-endian and checked against their range (`OverflowError`).
#[pyclass(frozen, module = "qmig_e2k._core")]
#[derive(Debug, Default)]
pub struct Writer {
    output: Mutex<Output>,
}

impl Writer {
    fn put(&self, bytes: &[u8]) {
        lock(&self.output).put(bytes);
    }
}

#[pymethods]
impl Writer {
    #[new]
    fn new() -> Self {
        Self::default()
    }

    fn u8(&self, value: u8) {
        self.put(&value.to_be_bytes());
    }

    fn u16(&self, value: u16) {
        self.put(&value.to_be_bytes());
    }

    fn u32(&self, value: u32) {
        self.put(&value.to_be_bytes());
    }

    fn u64(&self, value: u64) {
        self.put(&value.to_be_bytes());
    }

    fn i8(&self, value: i8) {
        self.put(&value.to_be_bytes());
    }

    fn i16(&self, value: i16) {
        self.put(&value.to_be_bytes());
    }

    fn i32(&self, value: i32) {
        self.put(&value.to_be_bytes());
    }

    fn i64(&self, value: i64) {
        self.put(&value.to_be_bytes());
    }

    fn write(&self, data: &Bound<'_, PyAny>) -> PyResult<()> {
        match data.cast::<PyBytes>() {
            Ok(bytes) => self.put(bytes.as_bytes()),
            Err(_) => self.put(&bytes_of(data)?),
        }
        Ok(())
    }

    fn zeros(&self, length: usize) {
        lock(&self.output).zeros(length);
    }

    fn cstr8(&self, data: &[u8]) -> PyResult<()> {
        if data.len() > 255 {
            return Err(PyValueError::new_err(format!("a counted string has at most 255 bytes, this one has {}", data.len())));
        }
        lock(&self.output).cstr8(data);
        Ok(())
    }

    fn __len__(&self) -> usize {
        lock(&self.output).len()
    }

    fn getvalue<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, lock(&self.output).as_slice())
    }
}

// ---- decode

/// Every element of a whole stream as dicts (`type`, `offset`, ...). `resolver(idstr, instance, version, reader)` consumes
/// device payloads; without one a few fixed layouts are known.
#[pyfunction]
#[pyo3(signature = (data, resolver = None, *, footers = true))]
fn decode<'py>(
    py: Python<'py>,
    data: &Bound<'py, PyAny>,
    resolver: Option<&Bound<'py, PyAny>>,
    footers: bool,
) -> PyResult<Bound<'py, PyList>> {
    let bytes = bytes_of(data)?;
    let length = bytes.len() as u64;
    let decoding = Decoding {
        decoder: Arc::new(Mutex::new(Decoder::offline(Input::from_bytes(bytes, 0), Some(footers)))),
        resolver,
        elements: PyList::empty(py),
        blocks: PyList::empty(py),
    };
    let mut sink = RecordingSink::default();
    let outcome = decoding.run(py, &mut sink);
    decoding.hash(py, &sink, length)?;
    match outcome {
        Ok(()) => Ok(decoding.elements),
        Err(error) => {
            // Exceptions of a resolver may refuse attributes; they are what the caller is interested in all the same.
            let _ = error.value(py).setattr("partial", decoding.elements);
            Err(error)
        }
    }
}

struct Decoding<'a, 'py> {
    decoder: Arc<Mutex<Decoder<NoSource>>>,
    resolver: Option<&'a Bound<'py, PyAny>>,
    elements: Bound<'py, PyList>,
    /// One dict per RAM block, part of the START element.
    blocks: Bound<'py, PyList>,
}

impl<'py> Decoding<'_, 'py> {
    fn run(&self, py: Python<'py>, sink: &mut RecordingSink) -> PyResult<()> {
        loop {
            let decoder = &self.decoder;
            let event = py.detach(|| lock(decoder).next(sink)).map_err(|e| to_py(&e))?;
            if event == Event::Finished {
                return self.nothing_left().map_err(|e| to_py(&e));
            }
            let element = element(py, &event)?;
            match &event {
                Event::Section(header) => element.set_item("size", self.payload(header)?)?,
                Event::RamSection { .. } if self.blocks.is_empty() => {
                    self.announce(py, sink)?;
                    element.set_item("blocks", &self.blocks)?;
                }
                _ => {}
            }
            self.elements.append(element)?;
        }
    }

    /// Let the payload be consumed, check the footer; the payload's length in bytes.
    fn payload(&self, header: &SectionHeader) -> PyResult<u64> {
        let start = lock(&self.decoder).input().offset();
        match self.resolver {
            Some(resolver) => {
                let reader = Reader::over(Arc::clone(&self.decoder) as Shared);
                resolver.call1((text(&header.idstr), header.instance, header.version, reader))?;
            }
            None => layout::skip_known(lock(&self.decoder).input(), header).map_err(|e| to_py(&e))?,
        }
        let mut decoder = lock(&self.decoder);
        let end = decoder.input().offset();
        decoder.section_done().map_err(|e| to_py(&e))?;
        Ok(end - start)
    }

    fn nothing_left(&self) -> Result<()> {
        let mut decoder = lock(&self.decoder);
        let input = decoder.input();
        match input.buffered() {
            0 => Ok(()),
            n => Err(Error::new(ErrorKind::TrailingData, format!("{n} bytes after the end of the stream")).at(input.offset())),
        }
    }

    fn announce(&self, py: Python<'py>, sink: &RecordingSink) -> PyResult<()> {
        for entry in sink.blocks() {
            let block = PyDict::new(py);
            block.set_item("name", text(&entry.name))?;
            block.set_item("size", entry.used_length)?;
            block.set_item("offset", entry.offset)?;
            block.set_item("sha256", py.None())?;
            self.blocks.append(block)?;
        }
        Ok(())
    }

    /// SHA-256 of each block's last contents, unless the stream is too short to have carried every page: then a made-up
    /// length could keep us busy for years, and the contents would mean nothing.
    fn hash(&self, py: Python<'py>, sink: &RecordingSink, stream_length: u64) -> PyResult<()> {
        const ZERO_RECORD: u64 = 9;
        // Each update lets other threads have Python's lock; page by page they could keep us waiting for minutes.
        const STEP: usize = 1 << 20;
        let pages: u64 = sink.blocks().map(|entry| entry.used_length / PAGE_SIZE).sum();
        if pages.saturating_mul(ZERO_RECORD) > stream_length {
            return Ok(());
        }
        let new = py.import("hashlib")?.getattr("sha256")?;
        for (index, block) in self.blocks.iter().enumerate() {
            let hash = new.call0()?;
            let update = hash.getattr("update")?;
            let mut outcome = Ok(());
            let mut kept = Vec::with_capacity(STEP);
            let mut put = |bytes: &mut Vec<u8>| {
                if outcome.is_ok() {
                    outcome = update.call1((PyBytes::new(py, bytes),)).map(drop);
                }
                bytes.clear();
            };
            sink.read(index, |piece| {
                if kept.len() + piece.len() > STEP {
                    put(&mut kept);
                }
                kept.extend_from_slice(piece);
            });
            put(&mut kept);
            outcome?;
            block.set_item("sha256", hash.call_method0("hexdigest")?)?;
        }
        Ok(())
    }
}

/// An element as a dict; empty for `Finished`.
pub(crate) fn element<'py>(py: Python<'py>, event: &Event) -> PyResult<Bound<'py, PyDict>> {
    let element = PyDict::new(py);
    match event {
        Event::Configuration { offset, machine, page_bits, capabilities, uuid } => {
            head(&element, "configuration", *offset)?;
            element.set_item("machine", text(machine))?;
            element.set_item("target_page_bits", page_bits)?;
            element.set_item("capabilities", capabilities)?;
            element.set_item("uuid", uuid.map(|uuid| PyBytes::new(py, &uuid)))?;
        }
        Event::Section(header) => {
            head(&element, header.kind.name(), header.offset)?;
            section(&element, header)?;
        }
        Event::RamSection { header, pages } => {
            head(&element, header.kind.name(), header.offset)?;
            section(&element, header)?;
            element.set_item("pages", counts(py, *pages)?)?;
        }
        Event::Command(command, offset) => {
            head(&element, "command", *offset)?;
            element.set_item("name", command.name())?;
            element.set_item("number", command.number())?;
            arguments(py, &element, command)?;
        }
        Event::End { offset } => head(&element, "eof", *offset)?,
        Event::Description(description) => {
            head(&element, "description", description.offset)?;
            element.set_item("length", description.length)?;
            element.set_item("text", PyBytes::new(py, &description.text))?;
        }
        Event::Finished => {}
    }
    Ok(element)
}

/// Names on the wire are bytes; what is no text shows as replacement characters.
pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn head(element: &Bound<'_, PyDict>, r#type: &str, offset: u64) -> PyResult<()> {
    element.set_item("type", r#type)?;
    element.set_item("offset", offset)
}

fn section(element: &Bound<'_, PyDict>, header: &SectionHeader) -> PyResult<()> {
    element.set_item("section_id", header.id)?;
    element.set_item("idstr", text(&header.idstr))?;
    element.set_item("instance_id", header.instance)?;
    element.set_item("version_id", header.version)
}

fn counts(py: Python<'_>, pages: PageCounts) -> PyResult<Bound<'_, PyDict>> {
    let counts = PyDict::new(py);
    counts.set_item("normal", pages.normal)?;
    counts.set_item("zero", pages.zero)?;
    if pages.xbzrle > 0 {
        counts.set_item("xbzrle", pages.xbzrle)?;
    }
    if pages.compressed > 0 {
        counts.set_item("compressed", pages.compressed)?;
    }
    Ok(counts)
}

fn arguments(py: Python<'_>, element: &Bound<'_, PyDict>, command: &Command) -> PyResult<()> {
    match command {
        Command::Ping(token) => element.set_item("token", token),
        Command::PostcopyAdvise(Some(advise)) => {
            element.set_item("page_sizes", advise.page_sizes)?;
            element.set_item("target_page", advise.target_page)
        }
        Command::RamDiscard { name, ranges } => {
            element.set_item("block", text(name))?;
            element.set_item("ranges", PyList::new(py, ranges)?)
        }
        Command::RecvBitmap(name) => element.set_item("block", text(name)),
        Command::Packaged(size) => element.set_item("size", size),
        _ => Ok(()),
    }
}
