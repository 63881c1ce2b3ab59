//! The configuration element (spec/stream 1.3): which machine this is. Parsing only; who loads it compares.

use super::consts::{PAGE_BITS, SUBSECTION};
use super::elements::Accept;
use super::input::{ByteSource, Input};
use super::limits::{CAPABILITIES_MAX, MACHINE_NAME_MAX};
use crate::{Error, ErrorKind, Result};

/// Validated capability: pages stand at fixed places of a file.
const MAPPED_RAM: &str = "mapped-ram";
/// Validated capability: shared blocks do not travel, and every block's address does.
const IGNORE_SHARED: &str = "x-ignore-shared";

/// Owner of the subsections, and the element's path in errors.
const NAME: &str = "configuration";

/// What the element says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Configuration {
    /// Concrete machine type.
    pub machine: Vec<u8>,
    /// log2 of the target page, where it was sent; always that of our 4 KiB.
    pub page_bits: Option<u32>,
    /// Validated capabilities that are on.
    pub capabilities: Vec<String>,
    /// Identity of the machine.
    pub uuid: Option<[u8; 16]>,
}

impl Configuration {
    /// Pages stand at fixed places of a file.
    pub fn mapped_ram(&self) -> bool {
        self.capabilities.iter().any(|name| name == MAPPED_RAM)
    }

    /// Every block's address is in the list.
    pub fn ignore_shared(&self) -> bool {
        self.capabilities.iter().any(|name| name == IGNORE_SHARED)
    }

    /// Everything behind the type byte, with the subsections.
    pub(super) fn read<S: ByteSource>(input: &mut Input<S>, accept: Accept) -> Result<Self> {
        Self::read_all(input, accept).map_err(|e| e.within(NAME))
    }

    fn read_all<S: ByteSource>(input: &mut Input<S>, accept: Accept) -> Result<Self> {
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
            this.subsection(input, &name, accept).map_err(|e| e.within(&part(&name)))?;
            seen.push(name);
        }
        Ok(this)
    }

    fn subsection<S: ByteSource>(&mut self, input: &mut Input<S>, name: &[u8], accept: Accept) -> Result<()> {
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
                self.capabilities(input, accept)?;
            }
            b"configuration/uuid" => {
                versioned(version)?;
                self.uuid = Some(input.array()?);
            }
            _ => return Err(Error::new(ErrorKind::BadConfiguration, "this subsection is not known").at(start)),
        }
        Ok(())
    }

    /// Both of QEMU's validated capabilities change what follows, so neither can be passed over: one must be able to read that.
    fn capabilities<S: ByteSource>(&mut self, input: &mut Input<S>, accept: Accept) -> Result<()> {
        let at = input.offset();
        let count = input.be32()?;
        if count > CAPABILITIES_MAX {
            let text = format!("{count} capabilities; at most {CAPABILITIES_MAX} are accepted (CAPABILITIES_MAX)");
            return Err(Error::new(ErrorKind::LimitExceeded, text).at(at));
        }
        for _ in 0..count {
            let at = input.offset();
            let name = input.cstr8()?.escape_ascii().to_string();
            match name.as_str() {
                MAPPED_RAM if accept.contains(Accept::MAPPED_RAM) => {}
                IGNORE_SHARED if accept.contains(Accept::IGNORE_SHARED) => {}
                MAPPED_RAM => {
                    let text =
                        "the source's capability mapped-ram is off here; switch it on here, too (or off there, and write the file anew)";
                    return Err(Error::new(ErrorKind::BadConfiguration, text).at(at));
                }
                IGNORE_SHARED => {
                    let text = format!("the source's capability {name} changes the format and is not built here; switch it off there");
                    return Err(Error::new(ErrorKind::Unsupported, text).at(at));
                }
                _ => return Err(Error::new(ErrorKind::BadConfiguration, format!("capability \"{name}\" is not known")).at(at)),
            }
            self.capabilities.push(name);
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
