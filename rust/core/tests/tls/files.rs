//! What is wrong with the files is said when they are read, with the file's name.

use qmig_core::channel::tls::{Creds, Endpoint};
use qmig_core::{Error, ErrorKind};
use rcgen::{ExtendedKeyUsagePurpose, IsCa, date_time_ymd};

use crate::certs::{Authority, Dir};

fn load(dir: &Dir, endpoint: Endpoint, sane: bool) -> Result<Creds, Error> {
    Creds::load(endpoint, dir.path(), true, sane)
}

fn check(dir: &Dir, endpoint: Endpoint, sane: bool, file: &str, text: &str) {
    let error = load(dir, endpoint, sane).unwrap_err();
    assert_eq!(error.kind, ErrorKind::Tls);
    let path = dir.path().join(file);
    assert!(error.message.starts_with(&format!("{}: ", path.display())), "{error}\ndoes not name {file}");
    assert!(error.message.contains(text), "{error}\nlacks {text}");
}

#[test]
fn files_that_are_missing_or_wrong_are_named() {
    let authority = Authority::new();
    let whole = || authority.dir(Endpoint::Server, |_| ());
    load(&whole(), Endpoint::Server, true).unwrap();
    for file in ["ca-cert.pem", "server-cert.pem", "server-key.pem"] {
        let dir = whole();
        std::fs::remove_file(dir.path().join(file)).unwrap();
        check(&dir, Endpoint::Server, false, file, "there is no such file");
        std::fs::create_dir(dir.path().join(file)).unwrap();
        check(&dir, Endpoint::Server, false, file, "Is a directory");
    }
    for (file, text, message) in [
        ("ca-cert.pem", "", "there is no certificate in it"),
        ("ca-cert.pem", "-----BEGIN CERTIFICATE-----\n&&&\n-----END CERTIFICATE-----\n", "it is no PEM file"),
        ("ca-cert.pem", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "it cannot be used"),
        ("server-key.pem", "nothing", "there is no private key in it"),
        ("server-key.pem", "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n", "the key is encrypted"),
        ("ca-crl.pem", "nothing", "there is no certificate revocation list"),
    ] {
        let dir = whole();
        dir.write(file, text);
        check(&dir, Endpoint::Server, false, file, message);
    }
    let dir = whole();
    dir.write("ca-cert.pem", &"x".repeat((1 << 20) + 1));
    check(&dir, Endpoint::Server, false, "ca-cert.pem", "larger than");
}

#[test]
fn a_key_of_another_certificate_is_found() {
    let authority = Authority::new();
    let (dir, other) = (authority.dir(Endpoint::Server, |_| ()), authority.dir(Endpoint::Server, |_| ()));
    dir.write("server-key.pem", &std::fs::read_to_string(other.path().join("server-key.pem")).unwrap());
    check(&dir, Endpoint::Server, false, "server-key.pem", "it is not the key of server-cert.pem");
}

#[test]
fn a_source_needs_no_certificate_of_its_own() {
    let authority = Authority::new();
    let dir = authority.dir(Endpoint::Client, |_| ());
    assert!(load(&dir, Endpoint::Client, true).unwrap().has_own());
    std::fs::remove_file(dir.path().join("client-key.pem")).unwrap();
    assert!(!load(&dir, Endpoint::Client, true).unwrap().has_own());
}

#[test]
fn the_sanity_check_finds_what_the_peer_would() {
    let (authority, another) = (Authority::new(), Authority::new());
    let expired = Authority::with(|ca| ca.not_after = date_time_ymd(2001, 2, 3));
    let early = Authority::with(|ca| ca.not_before = date_time_ymd(4000, 2, 3));
    let powerless = Authority::with(|ca| ca.is_ca = IsCa::ExplicitNoCa);
    for endpoint in [Endpoint::Server, Endpoint::Client] {
        let (certificate, _) = endpoint.files();
        let foreign = another.dir(endpoint, |_| ());
        foreign.write("ca-cert.pem", &authority.pem);
        let wrong_use = match endpoint {
            Endpoint::Server => ExtendedKeyUsagePurpose::ClientAuth,
            Endpoint::Client => ExtendedKeyUsagePurpose::ServerAuth,
        };
        for (dir, file, text) in [
            (authority.dir(endpoint, |leaf| leaf.not_after = date_time_ymd(2001, 2, 3)), certificate, "it expired on Feb  3"),
            (authority.dir(endpoint, |leaf| leaf.not_before = date_time_ymd(4000, 2, 3)), certificate, "it is valid only from"),
            (authority.dir(endpoint, |leaf| leaf.extended_key_usages = vec![wrong_use]), certificate, "it may not be used by a TLS"),
            (foreign, certificate, "it is not signed by the authority"),
            (expired.dir(endpoint, |_| ()), "ca-cert.pem", "it expired on Feb  3"),
            (early.dir(endpoint, |_| ()), "ca-cert.pem", "it is valid from Feb  3"),
            (powerless.dir(endpoint, |_| ()), "ca-cert.pem", "it is no certificate of an authority"),
        ] {
            load(&dir, endpoint, false).unwrap();
            check(&dir, endpoint, true, file, text);
        }
    }
}
