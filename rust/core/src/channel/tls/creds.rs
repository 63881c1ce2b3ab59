//! The certificates and keys of one side, from a directory with QEMU's file names (control-plane 10.1).

use std::fmt;
use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer, UnixTime};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{NoServerSessionStorage, ParsedCertificate, WebPkiClientVerifier};
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use x509_parser::prelude::{CertificateRevocationList, FromDer, X509Certificate};

use super::authz::Authz;
use super::explain::certificate_fault;
use super::verify::{Allowed, Anybody};
use crate::channel::reason;
use crate::{Error, ErrorKind, Result};

/// Largest file that is read.
const MAX_FILE: u64 = 1 << 20;

/// Who trusts whom.
pub const CA_CERT: &str = "ca-cert.pem";
/// Who is trusted no more.
pub const CA_CRL: &str = "ca-crl.pem";

/// Which side of TLS.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Endpoint {
    /// The source.
    Client,
    /// The destination.
    Server,
}

impl Endpoint {
    /// File names of its certificate and its key.
    pub fn files(self) -> (&'static str, &'static str) {
        match self {
            Self::Client => ("client-cert.pem", "client-key.pem"),
            Self::Server => ("server-cert.pem", "server-key.pem"),
        }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Client => "client",
            Self::Server => "server",
        })
    }
}

impl FromStr for Endpoint {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        [Self::Client, Self::Server]
            .into_iter()
            .find(|endpoint| endpoint.to_string() == text)
            .ok_or_else(|| Error::new(ErrorKind::InvalidArgument, format!("endpoint is client or server, not {text:?}")))
    }
}

/// What one side has: who it trusts, and who it is.
#[derive(Debug)]
pub struct Creds {
    endpoint: Endpoint,
    dir: PathBuf,
    verify: bool,
    roots: Arc<RootCertStore>,
    revoked: Vec<CertificateRevocationListDer<'static>>,
    own: Option<Own>,
    provider: Arc<CryptoProvider>,
}

#[derive(Debug)]
struct Own {
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
}

impl Creds {
    /// Reads the files of `dir`. A destination's certificate and key must be there; a source's are used if both are. `dh-params.pem` is
    /// not looked at: no group of it is used any more. With `sane` what could not work is an error now. Raises `tls` with the file.
    pub fn load(endpoint: Endpoint, dir: &Path, verify: bool, sane: bool) -> Result<Self> {
        let dir = dir.to_owned();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let anchors: Vec<CertificateDer<'static>> = certificates(&dir.join(CA_CERT))?;
        let mut roots = RootCertStore::empty();
        for anchor in &anchors {
            roots.add(anchor.clone()).map_err(|e| refused(&dir.join(CA_CERT), e))?;
        }
        let revoked = match read(&dir.join(CA_CRL))? {
            Some(text) => all(&dir.join(CA_CRL), &text, "certificate revocation list (X509 CRL)")?,
            None => Vec::new(),
        };
        let own = Own::read(&dir, endpoint)?;
        let creds = Self { endpoint, dir, verify, roots: Arc::new(roots), revoked, own, provider };
        // A key of another certificate, or a list that cannot be read, shows here.
        match endpoint {
            Endpoint::Client => drop(creds.client()?),
            Endpoint::Server => drop(creds.server(None)?),
        }
        creds.look_at_lists()?;
        if sane {
            creds.check_anchors(&anchors)?;
            creds.check_own()?;
        }
        Ok(creds)
    }

    /// Which side.
    pub fn endpoint(&self) -> Endpoint {
        self.endpoint
    }

    /// The peer must have a certificate of the CA.
    pub fn verifies(&self) -> bool {
        self.verify
    }

    /// Where the files are.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// There is a certificate to show.
    pub fn has_own(&self) -> bool {
        self.own.is_some()
    }

    pub(super) fn client(&self) -> Result<Arc<ClientConfig>> {
        let builder = ClientConfig::builder_with_provider(Arc::clone(&self.provider))
            .with_safe_default_protocol_versions()
            .map_err(|e| refused(&self.dir, e))?;
        let builder = if self.verify {
            let verifier = WebPkiServerVerifier::builder_with_provider(Arc::clone(&self.roots), Arc::clone(&self.provider))
                .with_crls(self.revoked.iter().cloned())
                .allow_unknown_revocation_status()
                .build()
                .map_err(|e| refused(&self.dir.join(CA_CRL), e))?;
            builder.with_webpki_verifier(verifier)
        } else {
            builder.dangerous().with_custom_certificate_verifier(Arc::new(Anybody(Arc::clone(&self.provider))))
        };
        let mut config = match &self.own {
            Some(own) => builder.with_client_auth_cert(own.chain.clone(), own.key.clone_key()).map_err(|e| self.unusable(e))?,
            None => builder.with_no_client_auth(),
        };
        // Each channel is one session, and none goes on in another.
        config.resumption = rustls::client::Resumption::disabled();
        Ok(Arc::new(config))
    }

    pub(super) fn server(&self, authz: Option<Authz>) -> Result<Arc<ServerConfig>> {
        let builder = ServerConfig::builder_with_provider(Arc::clone(&self.provider))
            .with_safe_default_protocol_versions()
            .map_err(|e| refused(&self.dir, e))?;
        let builder = if self.verify {
            let inner = self.client_verifier()?;
            builder.with_client_cert_verifier(match authz {
                Some(authz) => Arc::new(Allowed { inner, authz }),
                None => inner,
            })
        } else {
            builder.with_no_client_auth()
        };
        let own = self.own.as_ref().ok_or_else(|| missing(&self.dir.join(self.endpoint.files().0)))?;
        let mut config = builder.with_single_cert(own.chain.clone(), own.key.clone_key()).map_err(|e| self.unusable(e))?;
        config.send_tls13_tickets = 0;
        config.session_storage = Arc::new(NoServerSessionStorage {});
        Ok(Arc::new(config))
    }

    fn client_verifier(&self) -> Result<Arc<dyn ClientCertVerifier>> {
        WebPkiClientVerifier::builder_with_provider(Arc::clone(&self.roots), Arc::clone(&self.provider))
            .with_crls(self.revoked.iter().cloned())
            .allow_unknown_revocation_status()
            .build()
            .map_err(|e| refused(&self.dir.join(CA_CRL), e))
    }

    fn unusable(&self, error: rustls::Error) -> Error {
        let (certificate, key) = self.endpoint.files();
        match error {
            rustls::Error::InconsistentKeys(_) => {
                fault(&self.dir.join(key), format!("it is not the key of {certificate}; put the two of one pair there"))
            }
            error => refused(&self.dir.join(key), error),
        }
    }

    /// Authorities must be ones, now.
    fn check_anchors(&self, anchors: &[CertificateDer<'static>]) -> Result<()> {
        let path = self.dir.join(CA_CERT);
        for anchor in anchors {
            let (_, parsed) = X509Certificate::from_der(anchor).map_err(|e| refused(&path, e))?;
            if !parsed.is_ca() {
                return Err(fault(&path, "it is no certificate of an authority (basicConstraints CA:TRUE)"));
            }
            let (validity, now) = (parsed.validity(), x509_parser::time::ASN1Time::now());
            if now > validity.not_after {
                return Err(fault(&path, format!("it expired on {}; issue a new one", validity.not_after)));
            }
            if now < validity.not_before {
                return Err(fault(&path, format!("it is valid from {} on; is this machine's clock right?", validity.not_before)));
            }
        }
        Ok(())
    }

    /// Lists that should have been renewed hold all the same, as with QEMU, but somebody should know.
    fn look_at_lists(&self) -> Result<()> {
        let path = self.dir.join(CA_CRL);
        for list in &self.revoked {
            let (_, parsed) = CertificateRevocationList::from_der(list).map_err(|e| refused(&path, e))?;
            if let Some(until) = parsed.next_update().filter(|until| *until < x509_parser::time::ASN1Time::now()) {
                tracing::warn!("{}: a newer list was to come by {until}; who was revoked since is still trusted here", path.display());
            }
        }
        Ok(())
    }

    /// What this side shows must be what the other side, with the same authority, takes.
    fn check_own(&self) -> Result<()> {
        let Some(own) = &self.own else { return Ok(()) };
        let path = self.dir.join(self.endpoint.files().0);
        let (Some(leaf), between) = (own.chain.first(), own.chain.get(1..).unwrap_or_default()) else {
            return Err(fault(&path, "there is no certificate in it"));
        };
        let checked = match self.endpoint {
            Endpoint::Client => self.client_verifier()?.verify_client_cert(leaf, between, UnixTime::now()).map(drop),
            Endpoint::Server => ParsedCertificate::try_from(leaf).and_then(|parsed| {
                let algorithms = self.provider.signature_verification_algorithms.all;
                verify_server_cert_signed_by_trust_anchor(&parsed, &self.roots, between, UnixTime::now(), algorithms)
            }),
        };
        checked.map_err(|error| match error {
            rustls::Error::InvalidCertificate(error) => fault(&path, format!("it {}", certificate_fault(&error, &self.dir, self.endpoint))),
            error => refused(&path, error),
        })
    }
}

impl Own {
    fn read(dir: &Path, endpoint: Endpoint) -> Result<Option<Self>> {
        let (certificate, key) = endpoint.files();
        let (certificate, key) = (dir.join(certificate), dir.join(key));
        let there = |path: &Path| path.try_exists().unwrap_or(true);
        if endpoint == Endpoint::Client && !(there(&certificate) && there(&key)) {
            return Ok(None);
        }
        let chain = certificates(&certificate)?;
        let text = read(&key)?.ok_or_else(|| missing(&key))?;
        if text.windows(9).any(|word| word == b"ENCRYPTED") {
            return Err(fault(&key, "the key is encrypted; put it there without a password (openssl pkey), readable by this user only"));
        }
        let key = PrivateKeyDer::from_pem_slice(&text).map_err(|_| fault(&key, "there is no private key in it (PEM)"))?;
        Ok(Some(Self { chain, key }))
    }
}

/// The certificates of a file that must have one.
fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let text = read(path)?.ok_or_else(|| missing(path))?;
    all(path, &text, "certificate")
}

fn all<T: PemObject>(path: &Path, text: &[u8], what: &str) -> Result<Vec<T>> {
    let found: std::result::Result<Vec<T>, _> = T::pem_slice_iter(text).collect();
    match found {
        Ok(found) if !found.is_empty() => Ok(found),
        Ok(_) => Err(fault(path, format!("there is no {what} in it (PEM)"))),
        Err(error) => Err(fault(path, format!("it is no PEM file: {error}"))),
    }
}

/// The file's bytes; none if there is no such file.
fn read(path: &Path) -> Result<Option<Vec<u8>>> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(fault(path, reason(error))),
    };
    let mut text = Vec::new();
    file.take(MAX_FILE + 1).read_to_end(&mut text).map_err(|e| fault(path, reason(e)))?;
    if text.len() as u64 > MAX_FILE {
        return Err(fault(path, format!("it is larger than {MAX_FILE} bytes, which no certificate is")));
    }
    Ok(Some(text))
}

fn missing(path: &Path) -> Error {
    fault(path, "there is no such file")
}

fn refused(path: &Path, cause: impl fmt::Display) -> Error {
    fault(path, format!("it cannot be used: {cause}"))
}

fn fault(path: &Path, cause: impl fmt::Display) -> Error {
    Error::new(ErrorKind::Tls, format!("{}: {cause}", path.display()))
}
