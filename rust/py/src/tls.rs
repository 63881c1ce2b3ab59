//! TLS credentials for Python: signatures and conversions only.

use std::path::PathBuf;
use std::sync::Arc;

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use qmig_core::channel::Tls;
use qmig_core::channel::tls::{Authz, Creds, Format, Policy, Rule};

use crate::error::to_py;

/// Adds this file's classes to the module.
pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<TlsCreds>()?;
    module.add_class::<TlsAuthz>()
}

/// The certificates and keys of one side.
#[pyclass(frozen, module = "qmig_e2k._core")]
#[derive(Debug)]
pub struct TlsCreds(Arc<Creds>);

#[pymethods]
impl TlsCreds {
    #[new]
    #[pyo3(signature = (endpoint, dir, verify_peer = true, sanity_check = true))]
    fn new(py: Python<'_>, endpoint: &str, dir: PathBuf, verify_peer: bool, sanity_check: bool) -> PyResult<Self> {
        let load = || Creds::load(endpoint.parse()?, &dir, verify_peer, sanity_check);
        py.detach(load).map(|creds| Self(Arc::new(creds))).map_err(|e| to_py(&e))
    }

    #[getter]
    fn endpoint(&self) -> String {
        self.0.endpoint().to_string()
    }

    #[getter]
    fn verify_peer(&self) -> bool {
        self.0.verifies()
    }
}

/// Who may come in, by the name in the certificate.
#[pyclass(frozen, module = "qmig_e2k._core")]
#[derive(Debug)]
pub struct TlsAuthz(Authz);

fn policy(name: &str) -> PyResult<Policy> {
    match name {
        "allow" => Ok(Policy::Allow),
        "deny" => Ok(Policy::Deny),
        _ => Err(PyValueError::new_err(format!("policy is allow or deny, not {name:?}"))),
    }
}

fn rule((text, policy, format): (String, String, String)) -> PyResult<Rule> {
    let format = match format.as_str() {
        "exact" => Format::Exact,
        "glob" => Format::Glob,
        _ => return Err(PyValueError::new_err(format!("format is exact or glob, not {format:?}"))),
    };
    Ok(Rule { text, policy: self::policy(&policy)?, format })
}

#[pymethods]
impl TlsAuthz {
    #[new]
    #[pyo3(signature = (rules, default_policy = "deny"))]
    fn new(rules: Vec<(String, String, String)>, default_policy: &str) -> PyResult<Self> {
        Ok(Self(Authz { rules: rules.into_iter().map(rule).collect::<PyResult<_>>()?, otherwise: policy(default_policy)? }))
    }

    fn allows(&self, name: &str) -> bool {
        self.0.allows(name)
    }
}

/// What `Control.set_tls` was given. Reads no file.
pub fn tls(creds: Option<&Bound<'_, TlsCreds>>, hostname: &str, authz: Option<&Bound<'_, TlsAuthz>>) -> PyResult<Option<Arc<Tls>>> {
    let made = creds.map(|creds| Tls::new(creds.get().0.clone(), hostname, authz.map(|authz| authz.get().0.clone())));
    made.transpose().map(|tls| tls.map(Arc::new)).map_err(|e| to_py(&e))
}
