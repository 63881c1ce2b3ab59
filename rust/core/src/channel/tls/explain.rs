//! What TLS' errors mean to whoever set it up: which certificate, what is wrong with it, what to do.

use std::fmt;
use std::path::{Path, PathBuf};

use rustls::pki_types::UnixTime;
use rustls::{AlertDescription, CertificateError, Error as TlsError};
use x509_parser::time::ASN1Time;

use super::creds::{CA_CERT, CA_CRL, Creds, Endpoint};
use crate::channel::Uri;
use crate::{Error, ErrorKind};

/// What an error of one connection is told with.
#[derive(Debug)]
pub struct Words {
    endpoint: Endpoint,
    dir: PathBuf,
    has_own: bool,
    uri: Uri,
    host: String,
}

impl Words {
    /// For a connection to `uri`, whose certificate is to be for `host`.
    pub fn new(creds: &Creds, uri: &Uri, host: String) -> Self {
        Self { endpoint: creds.endpoint(), dir: creds.dir().to_owned(), has_own: creds.has_own(), uri: uri.clone(), host }
    }

    /// The error of the crate for one of TLS.
    pub fn explain(&self, error: &TlsError) -> Error {
        let peer = self.peer();
        match error {
            TlsError::InvalidCertificate(error) => self.certificate(error),
            TlsError::NoCertificatesPresented => self.error(format_args!(
                "the source shows no certificate; give its tls-creds client-cert.pem and client-key.pem, or these verify-peer=off"
            )),
            TlsError::AlertReceived(alert) => self.alert(*alert),
            TlsError::InvalidMessage(_) => {
                self.error(format_args!("the {peer} does not speak TLS; set tls-creds on both sides or on neither"))
            }
            TlsError::PeerIncompatible(why) => self.error(format_args!("the {peer} and this side have no way of TLS in common ({why:?})")),
            TlsError::DecryptError => self.error(format_args!("what came cannot be decrypted: it was changed on its way")),
            other => self.error(format_args!("TLS with the {peer}: {other}")),
        }
    }

    /// The connection ended before it was secure.
    pub fn ended(&self) -> Error {
        self.error(format_args!(
            "the {} ended the connection in the TLS handshake: it has no tls-creds, or refuses this side's certificate; its log says why",
            self.peer()
        ))
    }

    /// Added to what a connection that broke before its first word says.
    pub fn hint(&self) -> Option<String> {
        let file = self.endpoint.files().0;
        (self.endpoint == Endpoint::Client).then(|| {
            if self.has_own {
                format!("; if it refuses this side's certificate ({}), its log says so", self.dir.join(file).display())
            } else {
                format!("; it may want a certificate, and there is none in {} ({file})", self.dir.display())
            }
        })
    }

    fn certificate(&self, error: &CertificateError) -> Error {
        let peer = self.peer();
        match error {
            CertificateError::NotValidForNameContext { presented, .. } => {
                let names = if presented.is_empty() { "no host at all".into() } else { presented.join(", ") };
                self.error(format_args!(
                    "the {peer}'s certificate is not for {:?} but for {names}; set tls-hostname, or issue one with subjectAltName",
                    self.host
                ))
            }
            CertificateError::NotValidForName => {
                self.error(format_args!("the {peer}'s certificate is not for {:?}; set tls-hostname", self.host))
            }
            CertificateError::ApplicationVerificationFailure => {
                self.error(format_args!("tls-authz does not let the source in (the log has its name); add a rule for it"))
            }
            other => {
                let theirs = if self.endpoint == Endpoint::Client { Endpoint::Server } else { Endpoint::Client };
                self.error(format_args!("the {peer}'s certificate {}", certificate_fault(other, &self.dir, theirs)))
            }
        }
    }

    fn alert(&self, alert: AlertDescription) -> Error {
        let (peer, own) = (self.peer(), self.dir.join(self.endpoint.files().0));
        let own = own.display();
        match alert {
            AlertDescription::CertificateRequired if !self.has_own => self.error(format_args!(
                "the {peer} wants a certificate, and there is none in {}: put client-cert.pem and client-key.pem there",
                self.dir.display()
            )),
            AlertDescription::AccessDenied => self.error(format_args!("the {peer}'s tls-authz does not let {own} in")),
            AlertDescription::UnknownCA | AlertDescription::DecryptError => {
                self.error(format_args!("the {peer} does not trust the authority that signed {own}; both sides need {CA_CERT} of the same"))
            }
            AlertDescription::CertificateExpired => self.error(format_args!("the {peer} says that {own} has expired; look at both clocks")),
            AlertDescription::CertificateRevoked => self.error(format_args!("the {peer} says that {own} is revoked; issue a new one")),
            AlertDescription::BadCertificate
            | AlertDescription::CertificateUnknown
            | AlertDescription::CertificateRequired
            | AlertDescription::UnsupportedCertificate => {
                self.error(format_args!("the {peer} refuses {own} ({alert:?}); its log says why"))
            }
            other => self.error(format_args!("the {peer} refuses this connection ({other:?}); its log says why")),
        }
    }

    fn peer(&self) -> &'static str {
        match self.endpoint {
            Endpoint::Client => "destination",
            Endpoint::Server => "source",
        }
    }

    fn error(&self, text: fmt::Arguments<'_>) -> Error {
        Error::new(ErrorKind::Tls, format!("{}: {text}", self.uri))
    }
}

/// What is wrong with a certificate that `whose` shows, as the end of a sentence that it begins.
pub fn certificate_fault(error: &CertificateError, dir: &Path, whose: Endpoint) -> String {
    let clock = "issue a new one, or set the clock of this machine right";
    match error {
        CertificateError::Expired => format!("has expired; {clock}"),
        CertificateError::ExpiredContext { not_after, .. } => format!("expired on {}; {clock}", date(*not_after)),
        CertificateError::NotValidYet => format!("is not valid yet; {clock}"),
        CertificateError::NotValidYetContext { not_before, .. } => format!("is valid only from {} on; {clock}", date(*not_before)),
        CertificateError::Revoked => format!("is revoked in {}", dir.join(CA_CRL).display()),
        CertificateError::UnknownIssuer | CertificateError::BadSignature => {
            format!("is not signed by the authority in {}; both sides need certificates of one", dir.join(CA_CERT).display())
        }
        CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => {
            format!("may not be used by a TLS {whose} (extendedKeyUsage); issue one with {whose}Auth")
        }
        other => format!("cannot be used: {other}"),
    }
}

fn date(time: UnixTime) -> String {
    let seconds = i64::try_from(time.as_secs()).unwrap_or(i64::MAX);
    ASN1Time::from_timestamp(seconds).map_or_else(|_| format!("second {seconds}"), |time| time.to_string())
}
