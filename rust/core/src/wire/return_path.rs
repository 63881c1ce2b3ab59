//! The return path (spec/stream 8): what the destination tells the source, on the other direction of the main channel.

use super::consts::PAGE_SIZE;
use super::input::{ByteSource, Input};
use super::limits::RETURN_MESSAGE_MAX;
use super::output::Output;
use crate::{Error, ErrorKind, Result};

/// Stands after a received-pages bitmap.
const BITMAP_END: u64 = 0x0123_4567_89ab_cdef;

/// One message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ReturnMessage {
    /// The last word: 0 if all is well.
    Shut(u32),
    /// Answer to a PING.
    Pong(u32),
    /// A fault waits for these pages; without a name they are in the block of the last request.
    ReqPages {
        /// The block, if it is another one than last time.
        name: Option<Vec<u8>>,
        /// First byte.
        start: u64,
        /// Bytes; whole pages, not 0, the end does not wrap around.
        length: u32,
    },
    /// The bitmap of received pages of this block follows ([`read_bitmap`]).
    RecvBitmap(Vec<u8>),
    /// Recovery may go on.
    ResumeAck,
    /// The destination is ready for the switchover.
    SwitchoverAck,
}

impl ReturnMessage {
    /// The type on the wire.
    pub const fn number(&self) -> u16 {
        match self {
            Self::Shut(_) => 1,
            Self::Pong(_) => 2,
            Self::ReqPages { name: Some(_), .. } => 3,
            Self::ReqPages { name: None, .. } => 4,
            Self::RecvBitmap(_) => 5,
            Self::ResumeAck => 6,
            Self::SwitchoverAck => 7,
        }
    }

    /// The name that the specification gives it.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Shut(_) => "SHUT",
            Self::Pong(_) => "PONG",
            Self::ReqPages { name: Some(_), .. } => "REQ_PAGES_ID",
            Self::ReqPages { name: None, .. } => "REQ_PAGES",
            Self::RecvBitmap(_) => "RECV_BITMAP",
            Self::ResumeAck => "RESUME_ACK",
            Self::SwitchoverAck => "SWITCHOVER_ACK",
        }
    }

    /// The next message; `None` where the channel ends between two.
    pub fn read<S: ByteSource>(input: &mut Input<S>) -> Result<Option<Self>> {
        if input.peek(1)?.is_empty() {
            return Ok(None);
        }
        Self::read_one(input).map(Some).map_err(|e| e.within("return-path"))
    }

    fn read_one<S: ByteSource>(input: &mut Input<S>) -> Result<Self> {
        let start = input.offset();
        let number = input.be16()?;
        let at = input.offset();
        let length = input.be16()?;
        let (least, most) = match number {
            1 | 2 | 6 => (4, 4),
            3 => (13, RETURN_MESSAGE_MAX),
            4 => (12, 12),
            5 => (2, RETURN_MESSAGE_MAX),
            7 => (0, 0),
            // A TLS record: an alert, a handshake.
            0x1503 | 0x1603 => return Err(bad("the destination speaks TLS: set tls-creds here, too", start)),
            _ => return Err(bad(format!("message type {number} is not known"), start)),
        };
        if !(least..=most).contains(&length) {
            return Err(bad(format!("message of type {number} with a payload of {length} bytes"), at));
        }
        let at = input.offset();
        let mut payload = Input::from_bytes(input.read_vec(length.into())?, at);
        let message = Self::parse(number, &mut payload).map_err(|e| match e.kind {
            ErrorKind::Truncated => Error { kind: ErrorKind::ReturnPath, message: "the payload ends inside this field".into(), ..e },
            _ => e,
        })?;
        match payload.buffered() {
            0 => Ok(message),
            n => Err(bad(format!("{n} bytes too many in a message of type {number}"), payload.offset())),
        }
    }

    fn parse(number: u16, payload: &mut Input<super::input::NoSource>) -> Result<Self> {
        let at = payload.offset();
        Ok(match number {
            1 => Self::Shut(payload.be32()?),
            2 => Self::Pong(payload.be32()?),
            3 | 4 => {
                let (start, length) = (payload.be64()?, payload.be32()?);
                let name = if number == 3 { Some(payload.cstr8()?.to_vec()) } else { None };
                let aligned = start.is_multiple_of(PAGE_SIZE) && u64::from(length).is_multiple_of(PAGE_SIZE);
                if length == 0 || !aligned || start.checked_add(length.into()).is_none() {
                    return Err(bad(format!("request for {length:#x} bytes at {start:#x}: whole pages, at least one, are right"), at));
                }
                Self::ReqPages { name, start, length }
            }
            5 => match payload.cstr8()? {
                [] => return Err(bad("an empty block name", at)),
                name => Self::RecvBitmap(name.to_vec()),
            },
            6 => match payload.be32()? {
                1 => Self::ResumeAck,
                value => return Err(bad(format!("RESUME_ACK with value {value}; 1 is right"), at)),
            },
            _ => Self::SwitchoverAck,
        })
    }

    /// Append the message.
    pub fn write(&self, out: &mut Output) {
        let mut payload = Output::new();
        match self {
            Self::Shut(word) | Self::Pong(word) => payload.be32(*word),
            Self::ReqPages { name, start, length } => {
                payload.be64(*start);
                payload.be32(*length);
                if let Some(name) = name {
                    payload.cstr8(name);
                }
            }
            Self::RecvBitmap(name) => payload.cstr8(name),
            Self::ResumeAck => payload.be32(1),
            Self::SwitchoverAck => {}
        }
        out.be16(self.number());
        out.be16(u16::try_from(payload.len()).expect("a name has at most 255 bytes"));
        out.put(payload.as_slice());
    }
}

/// Bytes of the bitmap for a block of `pages` target pages.
pub const fn bitmap_bytes(pages: u64) -> u64 {
    pages.div_ceil(64) * 8
}

/// What follows `RECV_BITMAP`, for a block of `pages` target pages: bit i mod 8 of byte i div 8 says that page i has arrived.
/// Bits beyond the last page are cleared.
pub fn read_bitmap<S: ByteSource>(input: &mut Input<S>, pages: u64) -> Result<Vec<u8>> {
    let body = |input: &mut Input<S>| {
        let at = input.offset();
        let (size, right) = (input.be64()?, bitmap_bytes(pages));
        if size != right {
            return Err(bad(format!("a bitmap of {size:#x} bytes; {right:#x} are right for {pages} pages"), at));
        }
        let mut bits = input.read_vec(size)?;
        let at = input.offset();
        if input.be64()? != BITMAP_END {
            return Err(bad("the bitmap's end mark is wrong", at));
        }
        for (byte, first) in bits.iter_mut().zip((0..).step_by(8)) {
            *byte &= match pages.saturating_sub(first) {
                8.. => 0xff,
                valid => (1 << valid) - 1,
            };
        }
        Ok(bits)
    };
    body(input).map_err(|e| e.within("return-path/bitmap"))
}

/// Append what follows `RECV_BITMAP`; `bits` has [`bitmap_bytes`] bytes.
pub fn write_bitmap(out: &mut Output, bits: &[u8]) {
    out.be64(bits.len() as u64);
    out.put(bits);
    out.be64(BITMAP_END);
}

fn bad(message: impl Into<String>, at: u64) -> Error {
    Error::new(ErrorKind::ReturnPath, message).at(at)
}
