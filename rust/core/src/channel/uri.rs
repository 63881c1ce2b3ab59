//! Migration URIs: text to a checked address. Opens nothing; both directions share one grammar, and what is only for one
//! of them (`to=`, port 0, an empty host) is refused where it is used.

use std::fmt;
use std::path::PathBuf;

use crate::{Error, ErrorKind, Result};

/// Longest host, as QEMU reads it.
const MAX_HOST: usize = 64;

/// A parsed URI; displays as the text it came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Uri {
    text: String,
    address: Address,
}

/// What a URI names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// `tcp:[host]:port[,to=N][,ipv4[=on|off]][,ipv6[=on|off]]`
    Tcp(Inet),
    /// `unix:path`
    Unix(PathBuf),
    /// `fd:name`: a descriptor that comes beside the URI
    Fd(String),
    /// `exec:command`: a shell command's standard input or output
    Exec(String),
    /// `file:path[,offset=N]`
    File {
        /// The file.
        path: PathBuf,
        /// First byte of the stream in the file.
        offset: u64,
    },
}

/// Host, port and address families of a `tcp:` URI.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inet {
    /// Name or literal, without brackets; empty: any (listening only).
    pub host: String,
    /// Port; 0: chosen by the kernel (listening only).
    pub port: u16,
    /// Last port to try when listening.
    pub to: Option<u16>,
    /// IPv4 addresses are tried.
    pub ipv4: bool,
    /// IPv6 addresses are tried.
    pub ipv6: bool,
}

impl Uri {
    /// Parses `text`. Raises `bad-uri`, or `unsupported` for transports of QEMU that are not here.
    pub fn parse(text: &str) -> Result<Self> {
        let bad = |cause: &str| Error::new(ErrorKind::BadUri, format!("{text:?}: {cause}"));
        if text.contains('\0') {
            return Err(bad("a URI has no NUL bytes"));
        }
        let (scheme, rest) = text.split_once(':').unwrap_or((text, ""));
        let address = match scheme {
            "tcp" => Address::Tcp(parse_inet(rest).map_err(|cause| bad(&cause))?),
            "unix" if rest.is_empty() => return Err(bad("the path is missing; write unix:PATH")),
            "unix" => Address::Unix(rest.into()),
            "fd" if rest.is_empty() => return Err(bad("the name is missing; write fd:NAME with a name given to getfd")),
            "fd" => Address::Fd(rest.to_owned()),
            "exec" if rest.trim().is_empty() => return Err(bad("the command is missing; write exec:COMMAND")),
            "exec" => Address::Exec(rest.to_owned()),
            "file" => parse_file(rest).map_err(|cause| bad(&cause))?,
            "rdma" | "vsock" => {
                return Err(Error::new(ErrorKind::Unsupported, format!("{text:?}: {scheme}: is not supported; use tcp: or unix:")));
            }
            _ => return Err(bad("unknown transport; use tcp:, unix:, fd:, exec: or file:")),
        };
        Ok(Self { text: text.to_owned(), address })
    }

    /// What it names.
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// An error about this URI: its text, then the cause.
    pub(super) fn error(&self, kind: ErrorKind, cause: impl fmt::Display) -> Error {
        Error::new(kind, format!("{self}: {cause}"))
    }
}

impl fmt::Display for Uri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::str::FromStr for Uri {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        Self::parse(text)
    }
}

fn parse_inet(rest: &str) -> Result<Inet, String> {
    let (address, options) = rest.split_once(',').map_or((rest, None), |(a, o)| (a, Some(o)));
    let (host, port) = match address.strip_prefix('[') {
        Some(literal) => {
            let (host, port) = literal.split_once("]:").ok_or("an address in brackets reads [ADDRESS]:PORT")?;
            host.parse::<std::net::Ipv6Addr>().map_err(|_| format!("{host:?} is no IPv6 address"))?;
            (host, port)
        }
        None => address.split_once(':').ok_or("the port is missing; write tcp:HOST:PORT")?,
    };
    if host.len() > MAX_HOST {
        return Err(format!("the host is longer than {MAX_HOST} characters"));
    }
    if port.contains(':') {
        return Err("an IPv6 address stands in brackets: tcp:[ADDRESS]:PORT".into());
    }
    let port = parse_port(port)?;
    let (mut to, mut ipv4, mut ipv6) = (None, None, None);
    for option in options.iter().flat_map(|o| o.split(',')) {
        match option.split_once('=').unwrap_or((option, "on")) {
            ("to", value) => to = Some(parse_port(value)?),
            ("ipv4", value) => ipv4 = Some(parse_switch("ipv4", value)?),
            ("ipv6", value) => ipv6 = Some(parse_switch("ipv6", value)?),
            // always on: it is what notices a dead peer
            ("keep-alive", value) if parse_switch("keep-alive", value)? => {}
            _ => return Err(format!("unknown option {option:?}; there are to=PORT, ipv4[=on|off], ipv6[=on|off]")),
        }
    }
    if to.is_some_and(|to| to < port) {
        return Err("to= is below the port".into());
    }
    // one family asked for alone leaves the other out
    let (v4, v6) = (ipv4.unwrap_or(ipv6 != Some(true)), ipv6.unwrap_or(ipv4 != Some(true)));
    if !v4 && !v6 {
        return Err("ipv4=off and ipv6=off leave no address".into());
    }
    Ok(Inet { host: host.to_owned(), port, to, ipv4: v4, ipv6: v6 })
}

fn parse_port(text: &str) -> Result<u16, String> {
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    text.parse().ok().filter(|_| digits).ok_or_else(|| format!("{text:?} is no port number (0 to 65535)"))
}

fn parse_switch(name: &str, value: &str) -> Result<bool, String> {
    match value {
        "on" => Ok(true),
        "off" => Ok(false),
        _ => Err(format!("{name}= is on or off, not {value:?}")),
    }
}

fn parse_file(rest: &str) -> Result<Address, String> {
    let (path, offset) = match rest.rsplit_once(",offset=") {
        Some((path, value)) => (path, parse_size(value).ok_or_else(|| format!("offset={value} is no size in bytes"))?),
        None => (rest, 0),
    };
    if path.is_empty() {
        return Err("the path is missing; write file:PATH".into());
    }
    Ok(Address::File { path: path.into(), offset })
}

/// A file offset: decimal or `0x` hexadecimal, or decimal with B, K, M, G, T, P or E. Must fit the kernel's signed offset.
fn parse_size(text: &str) -> Option<u64> {
    let value = if let Some(hex) = text.strip_prefix("0x") {
        u64::from_str_radix(hex, 16).ok()?
    } else {
        let (digits, shift) = match text.as_bytes().last()?.to_ascii_uppercase() {
            b'K' => (&text[..text.len() - 1], 10),
            b'M' => (&text[..text.len() - 1], 20),
            b'G' => (&text[..text.len() - 1], 30),
            b'T' => (&text[..text.len() - 1], 40),
            b'P' => (&text[..text.len() - 1], 50),
            b'E' => (&text[..text.len() - 1], 60),
            b'B' => (&text[..text.len() - 1], 0),
            _ => (text, 0),
        };
        let digits = digits.bytes().all(|b| b.is_ascii_digit()).then_some(digits)?; // no sign
        digits.parse::<u64>().ok()?.checked_mul(1 << shift)?
    };
    i64::try_from(value).ok().map(|_| value)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn tcp(text: &str) -> Inet {
        match Uri::parse(text).unwrap().address {
            Address::Tcp(inet) => inet,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn tcp_forms() {
        let plain = Inet { host: "host".into(), port: 4444, to: None, ipv4: true, ipv6: true };
        assert_eq!(tcp("tcp:host:4444"), plain);
        assert_eq!(tcp("tcp::4444"), Inet { host: String::new(), ..plain.clone() });
        assert_eq!(tcp("tcp:0:4444"), Inet { host: "0".into(), ..plain.clone() });
        assert_eq!(tcp("tcp:[::1]:4444,to=4460"), Inet { host: "::1".into(), to: Some(4460), ..plain.clone() });
        assert_eq!(tcp("tcp:host:4444,ipv4"), Inet { ipv6: false, ..plain.clone() });
        assert_eq!(tcp("tcp:host:4444,ipv4=on,ipv6=on,keep-alive=on"), plain);
        assert_eq!(tcp("tcp:host:4444,ipv4=off"), Inet { ipv4: false, ..plain });
    }

    #[test]
    fn other_forms() {
        let address = |text: &str| Uri::parse(text).unwrap().address;
        assert_eq!(address("unix:/a,b:c"), Address::Unix("/a,b:c".into()));
        assert_eq!(address("fd:mig"), Address::Fd("mig".into()));
        assert_eq!(address("exec:cat > /x"), Address::Exec("cat > /x".into()));
        assert_eq!(address("file:/a,b"), Address::File { path: "/a,b".into(), offset: 0 });
        assert_eq!(address("file:/a,offset=0x1000"), Address::File { path: "/a".into(), offset: 4096 });
        for (offset, bytes) in
            [("5", 5), ("5b", 5), ("3k", 3 << 10), ("2M", 2 << 20), ("1G", 1 << 30), ("1T", 1 << 40), ("1P", 1 << 50), ("1E", 1 << 60)]
        {
            let wanted = Address::File { path: "/a".into(), offset: bytes };
            assert_eq!(address(&format!("file:/a,offset={offset}")), wanted);
        }
    }

    #[test]
    fn refused_with_the_uri_and_the_cause() {
        for (text, cause) in [
            ("tcp:host", "the port is missing"),
            ("tcp:host:", "is no port number"),
            ("tcp:host:65536", "is no port number"),
            ("tcp:host:+1", "is no port number"),
            ("tcp:host:http", "is no port number"),
            ("tcp:::1:4444", "in brackets"),
            ("tcp:[::1]", "brackets"),
            ("tcp:[host]:1", "no IPv6 address"),
            ("tcp:host:5,to=4", "below the port"),
            ("tcp:host:5,ipv4=off,ipv6=off", "no address"),
            ("tcp:host:5,ipv4=maybe", "on or off"),
            ("tcp:host:5,wait", "unknown option"),
            ("tcp:host:5,keep-alive=off", "unknown option"),
            ("unix:", "path is missing"),
            ("fd:", "name is missing"),
            ("exec: ", "command is missing"),
            ("file:", "path is missing"),
            ("file:/a,offset=x", "no size"),
            ("file:/a,offset=", "no size"),
            ("file:/a,offset=+1", "no size"),
            ("file:/a,offset=8E", "no size"),
            ("file:/a,offset=9223372036854775808", "no size"),
            ("unix:a\0b", "NUL"),
            ("host:4444", "unknown transport"),
            ("", "unknown transport"),
        ] {
            let e = Uri::parse(text).unwrap_err();
            assert_eq!(e.kind, ErrorKind::BadUri, "{text}");
            assert!(e.message.starts_with(&format!("{text:?}: ")) && e.message.contains(cause), "{}", e.message);
        }
        let long = format!("tcp:{}:1", "h".repeat(65));
        assert!(Uri::parse(&long).unwrap_err().message.contains("longer than 64"));
    }

    #[test]
    fn transports_that_are_not_here_are_named() {
        for text in ["rdma:host:1", "vsock:2:1"] {
            let e = Uri::parse(text).unwrap_err();
            assert_eq!(e.kind, ErrorKind::Unsupported);
            assert!(e.message.contains(text), "{}", e.message);
        }
    }
}
