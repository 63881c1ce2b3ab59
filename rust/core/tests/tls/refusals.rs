//! Who is not let in, and what each side says.

use std::io::Write;
use std::net::TcpStream;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use qmig_core::channel::tls::{Authz, Creds, Endpoint, Format, Policy, Rule};
use qmig_core::channel::{Cancel, Listener, Tls, Uri, connect_over};
use qmig_core::{Error, ErrorKind};
use rcgen::{ExtendedKeyUsagePurpose, date_time_ymd};

use qmig_core::wire::consts::MULTIFD_MAGIC;

use crate::certs::{Authority, SERIAL, pair};

/// What the source hears: on connecting, or with the first answer. A destination that refuses goes on waiting, so it is ended here.
fn refusal(client: &Tls, server: Arc<Tls>) -> Error {
    let (cancel, waiting) = (Cancel::new().unwrap(), Cancel::new().unwrap());
    let listener = Listener::bind_over(&Uri::parse("tcp:127.0.0.1:0").unwrap(), None, Some(server)).unwrap();
    let uri = Uri::parse(&format!("tcp:127.0.0.1:{}", listener.addresses()[0]["port"].as_str().unwrap())).unwrap();
    thread::scope(|scope| {
        let accepts = scope.spawn(|| listener.accept(&waiting).map(drop));
        let heard = connect_over(&uri, None, Some(client), &cancel).and_then(|channel| channel.reader.unwrap().read(&mut [0; 10]));
        waiting.set();
        assert_eq!(accepts.join().unwrap().unwrap_err().kind, ErrorKind::Cancelled, "it was let in");
        heard.unwrap_err()
    })
}

fn check(error: &Error, text: &str) {
    assert_eq!(error.kind, ErrorKind::Tls, "{error}");
    assert!(error.message.contains(text), "{error}\nlacks {text}");
}

#[test]
fn a_destination_that_cannot_be_trusted_is_told_from_one_that_can() {
    let (authority, another) = (Authority::new(), Authority::new());
    let client = authority.dir(Endpoint::Client, |_| ());
    let server = |change: &dyn Fn(&mut rcgen::CertificateParams)| authority.dir(Endpoint::Server, change).tls(Endpoint::Server);
    for (server, text) in [
        (server(&|leaf| leaf.not_after = date_time_ymd(2001, 2, 3)), "the destination's certificate expired on Feb  3"),
        (server(&|leaf| leaf.not_before = date_time_ymd(4000, 2, 3)), "is valid only from Feb  3"),
        (server(&|leaf| leaf.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth]), "may not be used by a TLS server"),
        (another.dir(Endpoint::Server, |_| ()).tls(Endpoint::Server), "is not signed by the authority in"),
    ] {
        check(&refusal(&client.tls(Endpoint::Client), server), text);
    }
    let creds = client.creds(Endpoint::Client).unwrap();
    for (hostname, text) in [("elsewhere.example", "is not for \"elsewhere.example\" but for"), ("", "is not for \"127.0.0.1\"")] {
        let tls = Tls::new(Arc::clone(&creds), hostname, None).unwrap();
        let error = refusal(&tls, server(&|_| ()));
        check(&error, text);
        check(&error, "there.example");
        check(&error, "set tls-hostname");
    }
    client.write("ca-crl.pem", &authority.revoke(SERIAL));
    check(&refusal(&client.tls(Endpoint::Client), server(&|_| ())), "is revoked in");
}

#[test]
fn a_source_that_cannot_be_trusted_hears_why() {
    let (authority, another) = (Authority::new(), Authority::new());
    let server = authority.dir(Endpoint::Server, |_| ());
    let mixed = another.dir(Endpoint::Client, |_| ());
    mixed.write("ca-cert.pem", &authority.pem);
    for (client, text) in [
        (authority.bare(), "the destination wants a certificate, and there is none in"),
        (authority.dir(Endpoint::Client, |leaf| leaf.not_after = date_time_ymd(2001, 2, 3)), "client-cert.pem has expired"),
        (mixed, "does not trust the authority that signed"),
    ] {
        check(&refusal(&client.tls(Endpoint::Client), server.tls(Endpoint::Server)), text);
    }
    server.write("ca-crl.pem", &authority.revoke(SERIAL));
    check(&refusal(&authority.dir(Endpoint::Client, |_| ()).tls(Endpoint::Client), server.tls(Endpoint::Server)), "is revoked");
}

#[test]
fn the_list_decides_by_the_name_in_the_certificate() {
    let authority = Authority::new();
    let (client, server) = (authority.dir(Endpoint::Client, |_| ()), authority.dir(Endpoint::Server, |_| ()));
    let rule = |text: &str, format| Rule { text: text.to_owned(), policy: Policy::Allow, format };
    let denied = Authz { rules: vec![rule("*,CN=somebody", Format::Glob)], otherwise: Policy::Deny };
    check(&refusal(&client.tls(Endpoint::Client), server.guarded(denied)), "tls-authz does not let");
    for allowed in [rule("C=GB,O=Some\\, Ltd,CN=client", Format::Exact), rule("*,CN=client", Format::Glob)] {
        let authz = Authz { rules: vec![allowed], otherwise: Policy::Deny };
        let cancel = Cancel::new().unwrap();
        drop(crate::channels::join("tcp:127.0.0.1:0", (client.tls(Endpoint::Client), server.guarded(authz)), &cancel));
    }
    let unverified = Arc::new(Creds::load(Endpoint::Server, server.path(), false, true).unwrap());
    let error = Tls::new(unverified, "", Some(Authz { rules: Vec::new(), otherwise: Policy::Allow })).unwrap_err();
    assert_eq!(error.kind, ErrorKind::InvalidArgument);
}

#[test]
fn who_does_not_verify_takes_anybody_with_a_key() {
    let (authority, another) = (Authority::new(), Authority::new());
    let creds =
        |authority: &Authority, endpoint| Arc::new(Creds::load(endpoint, authority.dir(endpoint, |_| ()).path(), false, true).unwrap());
    let client = Tls::new(creds(&authority, Endpoint::Client), "", None).unwrap();
    let server = Tls::new(creds(&another, Endpoint::Server), "", None).unwrap();
    drop(crate::channels::join("tcp:127.0.0.1:0", (Arc::new(client), Arc::new(server)), &Cancel::new().unwrap()));
}

#[test]
fn a_refused_source_does_not_keep_out_the_next() {
    let authority = Authority::new();
    let server = authority.dir(Endpoint::Server, |_| ()).tls(Endpoint::Server);
    let cancel = Cancel::new().unwrap();
    let listener = Listener::bind_over(&Uri::parse("tcp:127.0.0.1:0").unwrap(), None, Some(server)).unwrap();
    let port: u16 = listener.addresses()[0]["port"].as_str().unwrap().parse().unwrap();
    let uri = Uri::parse(&format!("tcp:127.0.0.1:{port}")).unwrap();
    thread::scope(|scope| {
        let accepts = scope.spawn(|| listener.accept(&cancel).unwrap());
        let mut plain = TcpStream::connect(("127.0.0.1", port)).unwrap();
        plain.write_all(b"QEVM\0\0\0\x03").unwrap();
        let nameless = connect_over(&uri, None, Some(&authority.bare().tls(Endpoint::Client)), &cancel);
        check(&nameless.and_then(|channel| channel.reader.unwrap().read(&mut [0])).unwrap_err(), "wants a certificate");
        let good = connect_over(&uri, None, Some(&authority.dir(Endpoint::Client, |_| ()).tls(Endpoint::Client)), &cancel).unwrap();
        let accepted = accepts.join().unwrap();
        good.writer.unwrap().write_all(b"it is me").unwrap();
        let mut said = [0; 8];
        assert_eq!(accepted.reader.unwrap().read(&mut said).unwrap(), 8);
        assert_eq!(&said, b"it is me");
    });
}

#[test]
fn a_peer_without_tls_is_named() {
    let authority = Authority::new();
    let cancel = Cancel::new().unwrap();
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let uri = Uri::parse(&format!("tcp:127.0.0.1:{}", silent.local_addr().unwrap().port())).unwrap();
    let creds = authority.dir(Endpoint::Client, |_| ()).creds(Endpoint::Client).unwrap();
    let mut client = Tls::new(creds, "", None).unwrap();
    client.set_patience(Duration::from_millis(50));
    let error = connect_over(&uri, None, Some(&client), &cancel).unwrap_err();
    assert_eq!(error.kind, ErrorKind::Timeout);
    assert!(error.message.contains("set tls-creds on both sides or on neither"), "{error}");

    client.set_patience(Duration::from_secs(60));
    thread::scope(|scope| {
        scope.spawn(|| {
            drop(silent.accept().unwrap()); // the one before
            silent.accept().unwrap().0.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").unwrap();
            drop(silent.accept().unwrap());
            cancel.wait(Duration::from_secs(60));
        });
        check(&connect_over(&uri, None, Some(&client), &cancel).unwrap_err(), "the destination does not speak TLS");
        check(&connect_over(&uri, None, Some(&client), &cancel).unwrap_err(), "ended the connection in the TLS handshake");
        let late = Cancel::new().unwrap();
        let connects = scope.spawn({
            let (late, uri, client) = (late.clone(), &uri, &client);
            move || connect_over(uri, None, Some(client), &late).unwrap_err().kind
        });
        late.set();
        assert_eq!(connects.join().unwrap(), ErrorKind::Cancelled);
        cancel.set();
    });
}

#[test]
fn a_channel_that_carries_no_host_needs_a_name() {
    let client = Authority::new().dir(Endpoint::Client, |_| ()).creds(Endpoint::Client).unwrap();
    let (ours, _theirs) = std::os::unix::net::UnixStream::pair().unwrap();
    for (hostname, text) in [("", "set tls-hostname"), ("not a host", "is no host name")] {
        let tls = Tls::new(Arc::clone(&client), hostname, None).unwrap();
        let fd = ours.try_clone().unwrap().into();
        let error = connect_over(&Uri::parse("fd:x").unwrap(), Some(fd), Some(&tls), &Cancel::new().unwrap()).unwrap_err();
        assert_eq!(error.kind, ErrorKind::InvalidArgument);
        assert!(error.message.contains(text), "{error}");
    }
}

/// Over TLS a connection shows by its handshake who it is; without one its word ends nobody's migration.
#[test]
fn a_stranger_that_claims_to_be_a_channel_is_not_heard() {
    for tls in [None, Some(pair())] {
        let cancel = Cancel::new().unwrap();
        let (client, server) = tls.clone().unzip();
        let listener = Listener::bind_over(&Uri::parse("tcp:127.0.0.1:0").unwrap(), None, server).unwrap();
        let uri = Uri::parse(&format!("tcp:127.0.0.1:{}", listener.addresses()[0]["port"].as_str().unwrap())).unwrap();
        let both = thread::scope(|scope| {
            let accepted = scope.spawn(|| listener.accept(&cancel).unwrap());
            (connect_over(&uri, None, client.as_deref(), &cancel).unwrap(), accepted.join().unwrap())
        });
        let alarm = Cancel::new().unwrap();
        listener.set_alarm(&alarm);
        let stranger = connect_over(&uri, None, None, &cancel).unwrap();
        let (mut reader, writer) = stranger.split();
        writer.unwrap().write_all(&MULTIFD_MAGIC.to_be_bytes()).unwrap();
        let closed = reader.as_mut().unwrap().read(&mut [0; 1]);
        assert!(closed.is_err() || closed.is_ok_and(|got| got == 0));
        assert_eq!((listener.turned_away(), alarm.is_set(), listener.end_alarm()), (1, tls.is_none(), tls.is_none()));
        drop(both);
    }
}
