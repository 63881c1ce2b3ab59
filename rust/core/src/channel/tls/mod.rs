//! TLS on a channel (control-plane 10): both sides prove who they are by certificates, and every byte is encrypted from the first on.
//!
//! [`Creds`] are the files of one side, [`Tls`] is what a migration adds to them, and a [`Session`] is what one connection has beside
//! its descriptor. The source is TLS' client and the destination its server, whichever of them connects. Records are made and read
//! under a lock that is held for nothing else: both directions go on at once, and no guest memory is touched under it.

mod authz;
mod creds;
mod explain;
mod name;
mod session;
mod verify;

use std::fmt;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::PollFlags;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, Connection, ServerConfig, ServerConnection};

pub use authz::{Authz, Format, Policy, Rule};
pub use creds::{Creds, Endpoint};
pub(super) use session::{Broken, Session, Step};

use self::explain::Words;
use super::cancel::Wake;
use super::{Address, Cancel, Direction, Uri, cancelled};
use crate::{Error, ErrorKind, Result};

/// How long the whole handshake may take.
const HANDSHAKE: Duration = Duration::from_secs(30);

/// What the channels of a migration are secured with.
pub struct Tls {
    creds: Arc<Creds>,
    /// What the destination's certificate must be for; empty: the host of the URI.
    hostname: String,
    config: Config,
    patience: Duration,
}

enum Config {
    Client(Arc<ClientConfig>),
    Server(Arc<ServerConfig>),
}

impl Tls {
    /// With `authz` a destination lets in only whom it allows. `invalid-argument` for one that could not be followed.
    pub fn new(creds: Arc<Creds>, hostname: &str, authz: Option<Authz>) -> Result<Self> {
        if authz.is_some() && !creds.verifies() && creds.endpoint() == Endpoint::Server {
            let text = "tls-authz needs credentials with verify-peer=on: a certificate that nobody verifies proves no name";
            return Err(Error::new(ErrorKind::InvalidArgument, text));
        }
        let config = match creds.endpoint() {
            Endpoint::Client => Config::Client(creds.client()?),
            Endpoint::Server => Config::Server(creds.server(authz)?),
        };
        Ok(Self { creds, hostname: hostname.to_owned(), config, patience: HANDSHAKE })
    }

    /// How long the whole handshake may take, instead of half a minute.
    pub fn set_patience(&mut self, patience: Duration) {
        self.patience = patience;
    }

    /// Whether a channel of `uri` can have TLS at all. Raises `invalid-argument`.
    pub(super) fn suits(&self, uri: &Uri, direction: Direction) -> Result<()> {
        let (wanted, side) = match direction {
            Direction::Outgoing => (Endpoint::Client, "source"),
            Direction::Incoming => (Endpoint::Server, "destination"),
        };
        if self.creds.endpoint() != wanted {
            let text = format!("the TLS credentials have endpoint={}; a {side} needs endpoint={wanted}", self.creds.endpoint());
            return Err(Error::new(ErrorKind::InvalidArgument, text));
        }
        if matches!(uri.address(), Address::File { .. }) {
            return Err(uri.error(ErrorKind::InvalidArgument, "a file cannot answer a TLS handshake; unset tls-creds"));
        }
        Ok(())
    }

    /// A session for a new connection; nothing was said yet.
    pub(super) fn begin(&self, uri: &Uri) -> Result<Session> {
        let (connection, host) = match &self.config {
            Config::Server(config) => (ServerConnection::new(Arc::clone(config)).map(Connection::Server), String::new()),
            Config::Client(config) => {
                let host = self.host(uri);
                let name = self.server_name(uri, &host)?;
                (ClientConnection::new(Arc::clone(config), name).map(Connection::Client), host)
            }
        };
        let words = Words::new(&self.creds, uri, host);
        match connection {
            Ok(connection) => Ok(Session::new(connection, words)),
            Err(error) => Err(words.explain(&error)),
        }
    }

    /// The same, with the handshake done.
    pub(super) fn secure(&self, fd: BorrowedFd<'_>, uri: &Uri, cancel: &Cancel) -> Result<Session> {
        let session = self.begin(uri)?;
        let deadline = Instant::now() + self.patience;
        loop {
            let events = match session.step(fd)? {
                Step::Done => return Ok(session),
                Step::Reads => PollFlags::IN,
                Step::Writes => PollFlags::OUT,
            };
            let left = deadline.saturating_duration_since(Instant::now());
            match cancel.poll(fd, events, Some(left)) {
                Wake::Cancelled => return Err(cancelled(uri)),
                Wake::Ready if !left.is_zero() => {}
                Wake::Ready | Wake::Timeout => {
                    let text = format!("no TLS handshake within {:?}; set tls-creds on both sides or on neither", self.patience);
                    return Err(uri.error(ErrorKind::Timeout, text));
                }
            }
        }
    }

    fn host(&self, uri: &Uri) -> String {
        match uri.address() {
            _ if !self.hostname.is_empty() => self.hostname.clone(),
            Address::Tcp(inet) => inet.host.clone(),
            _ => String::new(),
        }
    }

    fn server_name(&self, uri: &Uri, host: &str) -> Result<ServerName<'static>> {
        if !self.creds.verifies() {
            // Nobody looks at it, and an address is not sent.
            return Ok(ServerName::from(std::net::IpAddr::from([0, 0, 0, 0])));
        }
        let wrong = |text| uri.error(ErrorKind::InvalidArgument, text);
        if host.is_empty() {
            return Err(wrong("this URI names no host that the destination's certificate could be for; set tls-hostname".into()));
        }
        ServerName::try_from(host.to_owned())
            .map_err(|_| wrong(format!("{host:?} is no host name that a certificate can be for; set tls-hostname")))
    }
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls").field("creds", &self.creds).field("hostname", &self.hostname).finish_non_exhaustive()
    }
}
