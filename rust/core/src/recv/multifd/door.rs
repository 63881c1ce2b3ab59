//! Who comes in: the main channel and each multifd channel once, by their first bytes.

use std::time::Duration;

use super::Terms;
use crate::channel::{Look, Porter};
use crate::wire::Input;
use crate::wire::consts::{FILE_MAGIC, MULTIFD_MAGIC};
use crate::wire::multifd::{HELLO_BYTES, Hello};
use crate::{Error, ErrorKind, Result};

/// Knows the connections of one migration, by what is agreed on when the first of them has come.
pub struct Door<'a> {
    agree: &'a dyn Fn() -> Terms,
    terms: Option<Terms>,
    /// In the order in which they were let in; none is the main channel.
    inside: Vec<Option<u8>>,
}

impl<'a> Door<'a> {
    /// Nobody is inside. `agree` is asked once, when a source is here.
    pub fn new(agree: &'a dyn Fn() -> Terms) -> Self {
        Self { agree, terms: None, inside: Vec::new() }
    }

    /// What was agreed on.
    pub fn terms(&mut self) -> Terms {
        *self.terms.get_or_insert_with(self.agree)
    }

    /// Which channel each connection is, in the order in which they were let in; none is the main one.
    pub fn numbers(self) -> Vec<Option<u8>> {
        self.inside
    }

    /// The number of a channel that may come in.
    fn greet(&mut self, first: &[u8]) -> Result<u8> {
        let Hello { uuid, channel } = Hello::read(&mut Input::from_bytes(first.to_vec(), 0))?;
        let terms = self.terms();
        if uuid != terms.uuid {
            let text = format!("the source's machine has UUID {}, and this one {}; give both the same", hex(uuid), hex(terms.uuid));
            return Err(Error::new(ErrorKind::BadConfiguration, text).at(8));
        }
        if channel >= terms.channels {
            let text = format!("channel {channel} of {}; give both sides the same multifd-channels", terms.channels);
            return Err(Error::new(ErrorKind::LimitExceeded, text).at(24));
        }
        if self.inside.contains(&Some(channel)) {
            return Err(Error::new(ErrorKind::DuplicateSection, format!("a second channel {channel}")).at(24));
        }
        Ok(channel)
    }

    /// The same error, with who is missing where the time was over.
    pub fn explain(&self, error: Error) -> Error {
        let Some(terms) = self.terms.filter(|_| error.kind == ErrorKind::Timeout) else { return error };
        let mut missing: Vec<String> =
            (0..terms.channels).filter(|number| !self.inside.contains(&Some(*number))).map(|number| number.to_string()).collect();
        if !self.inside.contains(&None) {
            missing.insert(0, "main".into());
        }
        let text = format!(
            "{}; missing: {}. Switch multifd on, with the same multifd-channels, on both sides or on neither",
            error.message,
            missing.join(", ")
        );
        Error { message: text, ..error }
    }
}

impl Porter for Door<'_> {
    /// Whatever cannot be of the same migration is an error, for its source cannot go on; but a source must be here first.
    fn look(&mut self, first: &[u8]) -> Result<Look> {
        let Some(magic) = first.first_chunk().map(|bytes| u32::from_be_bytes(*bytes)) else { return Ok(Look::Unclear) };
        let number = match magic {
            FILE_MAGIC if self.inside.contains(&None) => return Ok(Look::Stranger), // another source
            FILE_MAGIC => None,
            MULTIFD_MAGIC if first.len() < HELLO_BYTES => return Ok(Look::Unclear),
            MULTIFD_MAGIC => Some(self.greet(first).map_err(|e| e.within("handshake").within("multifd"))?),
            _ if self.inside.is_empty() => return Ok(Look::Stranger),
            _ => {
                let text = format!("a connection begins with {magic:#010x}, like neither a migration stream nor a multifd channel");
                return Err(Error::new(ErrorKind::BadMagic, text).at(0));
            }
        };
        self.inside.push(number);
        Ok(Look::Wanted)
    }

    fn expected(&mut self) -> (usize, Duration) {
        let terms = self.terms();
        (1 + usize::from(terms.channels), terms.connect)
    }
}

fn hex(uuid: [u8; 16]) -> String {
    format!("{:032x}", u128::from_be_bytes(uuid))
}
