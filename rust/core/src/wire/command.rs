//! Commands (spec/stream 7): what the source tells the destination between sections.

use std::fmt;

use super::consts::PAGE_SIZE;
use super::input::{ByteSource, Input};
use super::output::Output;
use crate::{Error, ErrorKind, Result};

/// A command with its payload, checked as far as that is possible without knowing the machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// Answer on the other direction of this channel from now on.
    OpenReturnPath,
    /// Answer PONG with this token.
    Ping(u32),
    /// Postcopy may come; without numbers only for dirty bitmaps.
    PostcopyAdvise(Option<Advise>),
    /// Register for faults; from here on a second thread reads the stream.
    Listen,
    /// Run the machine here.
    Run,
    /// These ranges of a block are stale.
    RamDiscard {
        /// The block.
        name: Vec<u8>,
        /// (start, length) in bytes; lengths are not 0 and no end wraps around.
        ranges: Vec<(u64, u64)>,
    },
    /// So many bytes follow that hold elements of their own.
    Packaged(u32),
    /// Go on as a COLO secondary.
    EnableColo,
    /// Recover an interrupted postcopy.
    Resume,
    /// Send the bitmap of received pages of this block.
    RecvBitmap(Vec<u8>),
    /// The source's machine has been stopped.
    SwitchoverStart,
}

/// What `POSTCOPY_ADVISE` says of the source's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Advise {
    /// All page sizes of its RAM blocks in one mask; 2.8 sends the host page size.
    pub page_sizes: u64,
    /// Its target page.
    pub target_page: u64,
}

/// Which payload lengths a command may have.
#[derive(Debug, Clone, Copy)]
enum Length {
    Exactly(u16),
    Either(u16, u16),
    AtLeast(u16),
}

impl fmt::Display for Length {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exactly(n) => write!(f, "{n}"),
            Self::Either(a, b) => write!(f, "{a} or {b}"),
            Self::AtLeast(n) => write!(f, "at least {n}"),
        }
    }
}

/// Number, name, payload length.
const TABLE: [(u16, &str, Length); 11] = [
    (1, "OPEN_RETURN_PATH", Length::Exactly(0)),
    (2, "PING", Length::Exactly(4)),
    (3, "POSTCOPY_ADVISE", Length::Either(16, 0)),
    (4, "POSTCOPY_LISTEN", Length::Exactly(0)),
    (5, "POSTCOPY_RUN", Length::Exactly(0)),
    (6, "POSTCOPY_RAM_DISCARD", Length::AtLeast(20)),
    (7, "PACKAGED", Length::Exactly(4)),
    (8, "ENABLE_COLO", Length::Exactly(0)),
    (9, "POSTCOPY_RESUME", Length::Exactly(0)),
    (10, "RECV_BITMAP", Length::AtLeast(2)),
    (11, "SWITCHOVER_START", Length::Exactly(0)),
];

impl Command {
    /// The number on the wire.
    pub const fn number(&self) -> u16 {
        match self {
            Self::OpenReturnPath => 1,
            Self::Ping(_) => 2,
            Self::PostcopyAdvise(_) => 3,
            Self::Listen => 4,
            Self::Run => 5,
            Self::RamDiscard { .. } => 6,
            Self::Packaged(_) => 7,
            Self::EnableColo => 8,
            Self::Resume => 9,
            Self::RecvBitmap(_) => 10,
            Self::SwitchoverStart => 11,
        }
    }

    /// The name that the specification gives it.
    pub const fn name(&self) -> &'static str {
        TABLE[self.number() as usize - 1].1
    }

    /// Read number, length and payload; the type byte stood at `start`.
    pub(super) fn read<S: ByteSource>(input: &mut Input<S>, start: u64) -> Result<Self> {
        let number = input.be16()?;
        let Some(&(_, name, length)) = TABLE.iter().find(|row| row.0 == number) else {
            return Err(Error::new(ErrorKind::BadCommand, format!("command {number} is not known; 1 to {} are", TABLE.len())).at(start));
        };
        Self::read_known(input, number, length).map_err(|e| e.within(name))
    }

    fn read_known<S: ByteSource>(input: &mut Input<S>, number: u16, allowed: Length) -> Result<Self> {
        let at = input.offset();
        let length = input.be16()?;
        let fits = match allowed {
            Length::Exactly(n) => length == n,
            Length::Either(a, b) => length == a || length == b,
            Length::AtLeast(n) => length >= n,
        };
        if !fits {
            return Err(Error::new(ErrorKind::BadCommand, format!("payload of {length} bytes; {allowed} are right")).at(at));
        }
        let at = input.offset();
        let payload = input.read_vec(length.into())?;
        // Each length was checked above, so the inner reader never ends early but in the variable ones.
        let mut payload = Input::from_bytes(payload, at);
        let command = match number {
            1 => Self::OpenReturnPath,
            2 => Self::Ping(payload.be32()?),
            3 if length == 0 => Self::PostcopyAdvise(None),
            3 => Self::PostcopyAdvise(Some(Advise { page_sizes: payload.be64()?, target_page: payload.be64()? })),
            4 => Self::Listen,
            5 => Self::Run,
            6 => discard(&mut payload).map_err(inside)?,
            7 => Self::Packaged(payload.be32()?),
            8 => Self::EnableColo,
            9 => Self::Resume,
            10 => Self::RecvBitmap(payload.cstr8().map(<[u8]>::to_vec).map_err(inside)?),
            _ => Self::SwitchoverStart,
        };
        if matches!(&command, Self::RecvBitmap(name) if name.is_empty()) {
            return Err(bad("an empty block name", at));
        }
        match payload.buffered() {
            0 => Ok(command),
            n => Err(bad(format!("{n} bytes too many in the payload"), payload.offset())),
        }
    }

    /// Append the payload.
    pub(super) fn payload(&self, out: &mut Output) {
        match self {
            Self::Ping(word) | Self::Packaged(word) => out.be32(*word),
            Self::PostcopyAdvise(Some(advise)) => {
                out.be64(advise.page_sizes);
                out.be64(advise.target_page);
            }
            Self::RamDiscard { name, ranges } => {
                out.u8(0);
                out.cstr8(name);
                out.u8(0);
                for (start, length) in ranges {
                    out.be64(*start);
                    out.be64(*length);
                }
            }
            Self::RecvBitmap(name) => out.cstr8(name),
            _ => {}
        }
    }
}

fn discard(payload: &mut Input<super::input::NoSource>) -> Result<Command> {
    let at = payload.offset();
    if payload.u8()? != 0 {
        return Err(bad("the list's version is not 0", at));
    }
    let at = payload.offset();
    let name = payload.cstr8()?.to_vec();
    if name.is_empty() {
        return Err(bad("an empty block name", at));
    }
    let at = payload.offset();
    if payload.u8()? != 0 {
        return Err(bad("no zero byte after the block name", at));
    }
    let mut ranges = Vec::with_capacity(payload.buffered() / 16);
    while payload.buffered() >= 16 {
        let at = payload.offset();
        let (start, length) = (payload.be64()?, payload.be64()?);
        let aligned = start.is_multiple_of(PAGE_SIZE) && length.is_multiple_of(PAGE_SIZE);
        if length == 0 || !aligned || start.checked_add(length).is_none() {
            return Err(bad(format!("range {start:#x} of {length:#x} bytes: whole pages, at least one, are right"), at));
        }
        ranges.push((start, length));
    }
    if ranges.is_empty() {
        return Err(bad("no range", payload.offset()));
    }
    Ok(Command::RamDiscard { name, ranges })
}

fn bad(message: impl Into<String>, at: u64) -> Error {
    Error::new(ErrorKind::BadCommand, message).at(at)
}

/// The stream goes on; it is the payload that ends early.
fn inside(error: Error) -> Error {
    match error.kind {
        ErrorKind::Truncated => Error { kind: ErrorKind::BadCommand, message: "the payload ends inside this field".into(), ..error },
        _ => error,
    }
}
