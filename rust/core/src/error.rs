//! The one error of the crate: kind, where (stream offset, path), and what to do about it in words.
//!
//! Kinds are stable names (`ErrorKind::name`) that reach users in JSON and in Python; texts are for people and may change.

use std::fmt;

/// Result of everything fallible in this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

macro_rules! kinds {
    ($($(#[$doc:meta])* $variant:ident => $name:literal,)*) => {
        /// What went wrong, as a stable name.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum ErrorKind { $($(#[$doc])* $variant,)* }

        impl ErrorKind {
            /// Every kind, for tests that want one case each.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// The stable name, as it stands in JSON and in Python's `error.kind`.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }
        }
    };
}

kinds! {
    // the stream
    /// The stream ended where more bytes are mandatory.
    Truncated => "truncated",
    /// The first four bytes are not `QEVM`.
    BadMagic => "bad-magic",
    /// File version 2, a retired format.
    ObsoleteVersion => "obsolete-version",
    /// A file, section or subsection version that is not accepted.
    BadVersion => "bad-version",
    /// Configuration missing, malformed, or of another machine.
    BadConfiguration => "bad-configuration",
    /// A byte that is no element type.
    UnknownElement => "unknown-element",
    /// No handler for (idstr, instance), or PART/END of an id that was never announced.
    UnknownSection => "unknown-section",
    /// The same live section announced twice.
    DuplicateSection => "duplicate-section",
    /// A section that the machine needs did not arrive.
    MissingSection => "missing-section",
    /// Footer absent or of another section.
    BadFooter => "bad-footer",
    /// A count, length or size beyond its named limit.
    LimitExceeded => "limit-exceeded",
    /// A command number that is not known or not allowed here.
    BadCommand => "bad-command",
    /// A RAM block that is not registered.
    UnknownBlock => "unknown-block",
    /// A block whose length or page size differs from the local one.
    BlockMismatch => "block-mismatch",
    /// A page offset outside its block.
    BadAddress => "bad-address",
    /// A compressed page or a delta that does not decode.
    BadPage => "bad-page",
    /// RAM record flags that are no legal combination.
    BadFlags => "bad-flags",
    /// Device state refused: field, check or subsection.
    DeviceState => "device-state",
    /// Bytes left over, or bytes where none may follow.
    TrailingData => "trailing-data",
    /// Legal in some QEMU, not supported here.
    Unsupported => "unsupported",
    /// A malformed return-path message, or one with a failure status.
    ReturnPath => "return-path",
    // channels
    /// A URI that cannot be parsed or is not for this direction.
    BadUri => "bad-uri",
    /// Connecting failed.
    Connect => "connect",
    /// Listening failed.
    Listen => "listen",
    /// Reading or writing failed.
    Io => "io",
    /// The peer closed the channel.
    Closed => "closed",
    /// A deadline passed.
    Timeout => "timeout",
    /// A certificate or a key, or the peer's handshake, is refused.
    Tls => "tls",
    // control
    /// Cancelled on request.
    Cancelled => "cancelled",
    /// Not possible in the present state.
    InvalidState => "invalid-state",
    /// A migration blocker is set.
    Blocked => "blocked",
    /// After the commit: the destination may or may not run the machine.
    OwnershipUnknown => "ownership-unknown",
    // memory
    /// Memory that cannot be a RAM block as asked.
    BadBlock => "bad-block",
    /// The kernel refused memory.
    NoMemory => "no-memory",
    /// No dirty log of the wanted kind for this memory.
    NoDirtyLog => "no-dirty-log",
    /// Pages changed although the machine is stopped.
    WriterNotStopped => "writer-not-stopped",
    /// A kernel feature or permission is missing.
    NotPermitted => "not-permitted",
    /// A wrong argument from this side's own caller.
    InvalidArgument => "invalid-argument",
    /// QMP input that is no command.
    BadRequest => "bad-request",
}

/// One error: what, where, and a sentence for people.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct Error {
    /// What went wrong.
    pub kind: ErrorKind,
    /// Offset in the stream of the first byte of the refused element or field.
    pub offset: Option<u64>,
    /// Where in the stream's structure, e.g. `ram/e2k.ram` or `cpu/0/regs_lo[3]`; empty if that says nothing.
    pub path: String,
    /// The sentence: what happened and what to do. Names addresses in hex; never repeats kind, path or offset.
    pub message: String,
}

impl Error {
    /// An error of `kind` with its sentence, so far without a place.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, offset: None, path: String::new(), message: message.into() }
    }

    /// The same at stream offset `offset`, unless a more precise one is known already.
    #[must_use]
    pub fn at(mut self, offset: u64) -> Self {
        self.offset.get_or_insert(offset);
        self
    }

    /// The same inside `outer`: the path grows to the left.
    #[must_use]
    pub fn within(mut self, outer: &str) -> Self {
        self.path = if self.path.is_empty() { outer.to_owned() } else { format!("{outer}/{}", self.path) };
        self
    }

    /// An I/O failure of `what`, with the system's reason.
    pub fn io(what: impl fmt::Display, source: impl fmt::Display) -> Self {
        Self::new(ErrorKind::Io, format!("{what}: {source}"))
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.path.is_empty() {
            write!(f, "{}: ", self.path)?;
        }
        f.write_str(&self.message)?;
        match self.offset {
            Some(offset) => write!(f, " (at stream offset {offset:#x})"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn says_where_once() {
        let e = Error::new(ErrorKind::BadAddress, "page 0x5000 is outside").at(7).at(9).within("e2k.ram").within("ram");
        assert_eq!(e.to_string(), "ram/e2k.ram: page 0x5000 is outside (at stream offset 0x7)");
    }

    #[test]
    fn names_are_unique() {
        let mut names: Vec<_> = ErrorKind::ALL.iter().map(|k| k.name()).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), ErrorKind::ALL.len());
    }
}
