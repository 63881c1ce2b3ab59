//! Certificates made for a test: an authority, and directories with what it has issued, under QEMU's file names.
#![allow(dead_code, missing_docs)]

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use qmig_core::channel::Tls;
use qmig_core::channel::tls::{Authz, Creds, Endpoint};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DnType, IsCa, Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose,
    RevokedCertParams, SerialNumber, date_time_ymd,
};

/// Whom the destination's certificates are for.
pub const HOST: &str = "there.example";

/// The serial number of every certificate that is not given another.
pub const SERIAL: u64 = 7;

/// A directory that goes with its owner.
#[derive(Debug)]
pub struct Dir(PathBuf);

impl Dir {
    fn new() -> Self {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let name = format!("qmig-certs-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir(&path).unwrap();
        Self(path)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    pub fn write(&self, name: &str, text: &str) {
        std::fs::write(self.0.join(name), text).unwrap();
    }

    pub fn creds(&self, endpoint: Endpoint) -> qmig_core::Result<Arc<Creds>> {
        Creds::load(endpoint, &self.0, true, false).map(Arc::new)
    }

    pub fn tls(&self, endpoint: Endpoint) -> Arc<Tls> {
        Arc::new(Tls::new(self.creds(endpoint).unwrap(), HOST, None).unwrap())
    }

    pub fn guarded(&self, authz: Authz) -> Arc<Tls> {
        Arc::new(Tls::new(self.creds(Endpoint::Server).unwrap(), "", Some(authz)).unwrap())
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pub pem: String,
}

impl Authority {
    pub fn new() -> Self {
        Self::with(|_| ())
    }

    pub fn with(change: impl FnOnce(&mut CertificateParams)) -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name.push(DnType::CommonName, "an authority");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        change(&mut params);
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        Self { issuer: Issuer::new(params, key), pem }
    }

    /// A directory with the authority's own certificate only.
    pub fn bare(&self) -> Dir {
        let dir = Dir::new();
        dir.write("ca-cert.pem", &self.pem);
        dir
    }

    /// The same with a certificate, which may be changed, and its key.
    pub fn dir(&self, endpoint: Endpoint, change: impl FnOnce(&mut CertificateParams)) -> Dir {
        let dir = self.bare();
        self.issue(&dir, endpoint, change);
        dir
    }

    pub fn issue(&self, dir: &Dir, endpoint: Endpoint, change: impl FnOnce(&mut CertificateParams)) {
        let mut params = CertificateParams::new(vec![HOST.to_owned()]).unwrap();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::CountryName, "GB");
        params.distinguished_name.push(DnType::OrganizationName, "Some, Ltd");
        params.distinguished_name.push(DnType::CommonName, endpoint.to_string());
        params.serial_number = Some(SerialNumber::from(SERIAL));
        change(&mut params);
        let key = KeyPair::generate().unwrap();
        let (certificate, private) = endpoint.files();
        dir.write(certificate, &params.signed_by(&key, &self.issuer).unwrap().pem());
        dir.write(private, &key.serialize_pem());
    }

    /// A list on which one certificate stands.
    pub fn revoke(&self, serial: u64) -> String {
        let revoked = RevokedCertParams {
            serial_number: SerialNumber::from(serial),
            revocation_time: date_time_ymd(2024, 1, 1),
            reason_code: None,
            invalidity_date: None,
        };
        let list = CertificateRevocationListParams {
            this_update: date_time_ymd(2024, 1, 1),
            next_update: date_time_ymd(4000, 1, 1),
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: vec![revoked],
            key_identifier_method: KeyIdMethod::Sha256,
        };
        list.signed_by(&self.issuer).unwrap().pem().unwrap()
    }
}

/// What a source and a destination have that trust each other.
pub fn pair() -> (Arc<Tls>, Arc<Tls>) {
    let authority = Authority::new();
    let [client, server] = [Endpoint::Client, Endpoint::Server].map(|endpoint| authority.dir(endpoint, |_| ()).tls(endpoint));
    (client, server)
}
