//! `MigrationError` and `StreamError`, and the conversion of the core's errors into them.

use pyo3::create_exception;
use pyo3::exceptions::PyException;
use pyo3::prelude::*;
use qmig_core::{Error, ErrorKind};

create_exception!(
    qmig_e2k._core,
    MigrationError,
    PyException,
    "A migration that failed, or a call it refused. `kind` is the stable name of the cause (str)."
);
create_exception!(
    qmig_e2k._core,
    StreamError,
    MigrationError,
    "A stream that was refused. `kind` (str), `offset` (int or None: first byte of the refused element), `path` (str), `message` (str)."
);

/// Adds the exceptions to the module.
pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    let py = module.py();
    module.add("MigrationError", py.get_type::<MigrationError>())?;
    module.add("StreamError", py.get_type::<StreamError>())
}

/// True for the kinds that speak of a stream's bytes.
fn is_stream(error: &Error) -> bool {
    use ErrorKind as K;
    error.offset.is_some()
        || matches!(
            error.kind,
            K::Truncated
                | K::BadMagic
                | K::ObsoleteVersion
                | K::BadVersion
                | K::BadConfiguration
                | K::UnknownElement
                | K::UnknownSection
                | K::DuplicateSection
                | K::MissingSection
                | K::BadFooter
                | K::LimitExceeded
                | K::BadCommand
                | K::UnknownBlock
                | K::BlockMismatch
                | K::BadAddress
                | K::BadFlags
                | K::BadPage
                | K::DeviceState
                | K::TrailingData
        )
}

/// The Python exception for a core error; attributes `kind`, `offset`, `path`, `message`.
pub fn to_py(error: &Error) -> PyErr {
    let text = error.to_string();
    let made = if is_stream(error) { StreamError::new_err(text) } else { MigrationError::new_err(text) };
    Python::attach(|py| {
        let value = made.value(py);
        // Attribute assignment on a fresh exception cannot fail; if it ever did, the text still says everything.
        let _ = value.setattr("kind", error.kind.name());
        let _ = value.setattr("offset", error.offset);
        let _ = value.setattr("path", error.path.as_str());
        let _ = value.setattr("message", error.message.as_str());
    });
    made
}
