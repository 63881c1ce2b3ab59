//! The configuration element (spec/stream 1.3): which machine this is. Parsing only; who loads it compares.

use super::consts::{PAGE_BITS, SUBSECTION};
use super::input::{ByteSource, Input};
use super::limits::{CAPABILITIES_MAX, MACHINE_NAME_MAX};
use crate::{Error, ErrorKind, Result};

/// Owner of the subsections, and the element's path in errors.
const NAME: &str = "configuration";

/// What the element says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Configuration {
    /// Concrete machine type.
    pub machine: Vec<u8>,
    /// log2 of the target page, where it was sent; always that of our 4 KiB.
    pub page_bits: Option<u32>,
    /// Validated capabilities that are on. Those that change the format are refused here, so this is empty so far.
    pub capabilities: Vec<String>,
    /// Identity of the machine.
    pub uuid: Option<[u8; 16]>,
}

impl Configuration {
    /// Everything behind the type byte, with the subsections.
    pub(super) fn read<S: ByteSource>(input: &mut Input<S>) -> Result<Self> {
        Self::read_all(input).map_err(|e| e.within(NAME))
    }

    fn read_all<S: ByteSource>(input: &mut Input<S>) -> Result<Self> {
        let at = input.offset();
        let length = input.be32()?;
        if length > MACHINE_NAME_MAX {
            let text = format!("machine type name of {length} bytes; at most {MACHINE_NAME_MAX} are accepted (MACHINE_NAME_MAX)");
            return Err(Error::new(ErrorKind::LimitExceeded, text).at(at));
        }
        let mut this = Self { machine: input.read_vec(length.into())?, ..Self::default() };
        let mut seen = Vec::new();
        while let Some(name) = subsection(input, NAME)? {
            let at = input.offset();
            if seen.contains(&name) {
                return Err(Error::new(ErrorKind::BadConfiguration, "this subsection comes twice").at(at).within(&part(&name)));
            }
            this.subsection(input, &name).map_err(|e| e.within(&part(&name)))?;
            seen.push(name);
        }
        Ok(this)
    }

    fn subsection<S: ByteSource>(&mut self, input: &mut Input<S>, name: &[u8]) -> Result<()> {
        let start = input.offset();
        input.skip(2 + name.len() as u64)?;
        let at = input.offset();
        let version = input.be32()?;
        let at_value = input.offset();
        let versioned = |version| match version {
            1 => Ok(()),
            _ => Err(Error::new(ErrorKind::BadVersion, format!("subsection version {version}; 1 is the only one")).at(at)),
        };
        match name {
            b"configuration/target-page-bits" => {
                versioned(version)?;
                let bits = input.be32()?;
                if bits != PAGE_BITS {
                    let text = format!("target pages of 2^{bits} bytes; this machine has 2^{PAGE_BITS}");
                    return Err(Error::new(ErrorKind::BadConfiguration, text).at(at_value));
                }
                self.page_bits = Some(bits);
            }
            b"configuration/capabilities" => {
                versioned(version)?;
                Self::no_capabilities(input)?;
            }
            b"configuration/uuid" => {
                versioned(version)?;
                self.uuid = Some(input.array()?);
            }
            _ => return Err(Error::new(ErrorKind::BadConfiguration, "this subsection is not known").at(start)),
        }
        Ok(())
    }

    /// Both of QEMU's validated capabilities change what follows, so neither can be passed over: only an empty list is fine.
    fn no_capabilities<S: ByteSource>(input: &mut Input<S>) -> Result<()> {
        let at = input.offset();
        let count = input.be32()?;
        if count > CAPABILITIES_MAX {
            let text = format!("{count} capabilities; at most {CAPABILITIES_MAX} are accepted (CAPABILITIES_MAX)");
            return Err(Error::new(ErrorKind::LimitExceeded, text).at(at));
        }
        if count > 0 {
            let at = input.offset();
            let name = input.cstr8()?.escape_ascii().to_string();
            return Err(match name.as_str() {
                "x-ignore-shared" | "mapped-ram" => Error::new(
                    ErrorKind::Unsupported,
                    format!("the source's capability {name} changes the format and is not built here; switch it off there"),
                ),
                _ => Error::new(ErrorKind::BadConfiguration, format!("capability \"{name}\" is not known")),
            }
            .at(at));
        }
        Ok(())
    }
}

/// The name within its owner, for paths.
fn part(name: &[u8]) -> String {
    name.strip_prefix(b"configuration/").unwrap_or(name).escape_ascii().to_string()
}

/// The name of the coming subsection if it is one of `owner`'s (spec/stream 3.6), without consuming anything.
///
/// Only for places where a 5 can be nothing else, so a stream that ends inside the name is truncated.
pub(super) fn subsection<S: ByteSource>(input: &mut Input<S>, owner: &str) -> Result<Option<Vec<u8>>> {
    if input.peek(1)? != [SUBSECTION] {
        return Ok(None);
    }
    let length = match *input.peek(2)? {
        [_, length] => usize::from(length),
        _ => return input.take(2).map(|_| None),
    };
    if length < owner.len() + 1 {
        return Ok(None);
    }
    let name = &input.peek(2 + length)?[2..];
    if name.len() < length {
        return input.take(2 + length).map(|_| None);
    }
    Ok(name.starts_with(owner.as_bytes()).then(|| name.to_vec()))
}
