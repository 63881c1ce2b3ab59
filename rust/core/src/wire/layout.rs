//! Payloads of a few devices whose layout is fixed, for reading a stored stream without its machine: those of QEMU's machine
//! `none` and of the public qemu-system-e2k. Nothing is interpreted, only passed over.

use super::configuration::subsection;
use super::elements::SectionHeader;
use super::input::{ByteSource, Input};
use crate::{Error, ErrorKind, Result};

/// What a payload consists of before its subsections.
#[derive(Debug, Clone, Copy)]
enum Body {
    /// Fields of so many bytes.
    Fields(&'static [u64]),
    /// A count of four bytes, then so many integers of four bytes.
    Words,
}

struct Layout {
    /// Last part of the idstr, and owner of the subsections.
    name: &'static str,
    version: u32,
    body: Body,
    /// Names within the owner, and bytes.
    subsections: &'static [(&'static str, u64)],
}

const LAYOUTS: [Layout; 6] = [
    Layout { name: "timer", version: 2, body: Body::Fields(&[8, 8, 8]), subsections: &[] },
    Layout { name: "globalstate", version: 1, body: Body::Fields(&[4, 100]), subsections: &[] },
    Layout { name: "cpu_common", version: 1, body: Body::Fields(&[4, 4]), subsections: &[("exception_index", 4), ("crash_occurred", 1)] },
    Layout { name: "PCIHost", version: 1, body: Body::Fields(&[4]), subsections: &[] },
    Layout { name: "PCIBUS", version: 1, body: Body::Words, subsections: &[] },
    Layout { name: "escc", version: 2, body: Body::Fields(&[116]), subsections: &[] },
];

/// Pins of a PCI bus: at most this many.
const WORDS_MAX: u32 = 256;

/// Consume the payload of a section whose layout is known; others are refused as unknown.
pub fn skip_known<S: ByteSource>(input: &mut Input<S>, header: &SectionHeader) -> Result<()> {
    let name = header.idstr.rsplit(|byte| *byte == b'/').next().unwrap_or_default();
    let Some(layout) = LAYOUTS.iter().find(|layout| layout.name.as_bytes() == name && layout.version == header.version) else {
        let text = format!(
            "the layout of version {} is not known here, and without it nothing behind can be found; pass a resolver",
            header.version
        );
        return Err(Error::new(ErrorKind::UnknownSection, text).at(header.offset).within(&header.path()));
    };
    skip(input, layout).map_err(|e| e.within(&header.path()))
}

fn skip<S: ByteSource>(input: &mut Input<S>, layout: &Layout) -> Result<()> {
    match layout.body {
        Body::Fields(sizes) => sizes.iter().try_for_each(|n| input.skip(*n))?,
        Body::Words => {
            let at = input.offset();
            let count = input.be32()?;
            if count > WORDS_MAX {
                return Err(Error::new(ErrorKind::LimitExceeded, format!("{count} entries; at most {WORDS_MAX} make sense")).at(at));
            }
            input.skip(u64::from(count) * 4)?;
        }
    }
    let mut seen = Vec::new();
    while let Some(name) = subsection(input, layout.name)? {
        let at = input.offset();
        if seen.contains(&name) {
            return Err(Error::new(ErrorKind::DeviceState, format!("subsection {} comes twice", name.escape_ascii())).at(at));
        }
        let part = name[layout.name.len()..].strip_prefix(b"/");
        let Some((part, bytes)) = layout.subsections.iter().find(|(known, _)| part == Some(known.as_bytes())) else {
            let text = format!("subsection {} is not known", name.escape_ascii());
            return Err(Error::new(ErrorKind::DeviceState, text).at(at));
        };
        input.skip(2 + name.len() as u64)?;
        let at = input.offset();
        let version = input.be32()?;
        if version != 1 {
            return Err(Error::new(ErrorKind::BadVersion, format!("subsection version {version}; 1 is the only one")).at(at).within(part));
        }
        input.skip(*bytes).map_err(|e| e.within(part))?;
        seen.push(name);
    }
    Ok(())
}
