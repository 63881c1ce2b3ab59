//! From bytes to messages: finds where a QMP message ends, whatever the pieces it came in, and turns it into a JSON value.
//!
//! QMP input is not line oriented (control-plane 7.1): a message ends with its outermost bracket. Single-quoted strings and `\'`
//! are accepted. What is no JSON gives exactly one error, after which the rest of that message is passed over: up to its
//! outermost bracket, to a line end inside a string, or to a 0xFF byte, which resets from any state and says so with an error.

use serde_json::Value;

use crate::{Error, ErrorKind, Result};

/// Bytes of one message. Real clients stay below 100 KiB; QEMU's parser has the same limit.
pub const MAX_TEXT: usize = 64 << 20;
/// Tokens of one message: bounds the memory of the parsed value. QEMU's limit.
pub const MAX_TOKENS: usize = 1 << 21;
/// Nested brackets: bounds the recursion of the parser. QEMU's limit.
pub const MAX_NESTING: usize = 1024;
/// Stack that a thread needs which calls `next`: some 3 KiB a level in a build without optimisation, and room to spare.
pub const STACK: usize = 16 << 20;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Between two messages.
    Between,
    /// In a message, outside a string.
    Plain,
    /// In a string that ends with `quote`.
    String { quote: u8, escaped: bool },
    /// Passing over something that is not in brackets.
    SkipWord,
    /// Passing over the rest of a message, outside a string.
    Skip,
    /// The same inside a string.
    SkipString { quote: u8, escaped: bool },
}

/// The state of one client's input.
#[derive(Debug)]
pub struct Framer {
    state: State,
    /// The message so far as plain JSON.
    text: Vec<u8>,
    /// Closing brackets that are due.
    due: Vec<u8>,
    /// The same while passing over a message: how many, whichever.
    skipped: u64,
    tokens: usize,
    /// Names in objects, counted by their colons.
    names: usize,
}

impl Default for Framer {
    fn default() -> Self {
        Self { state: State::Between, text: Vec::new(), due: Vec::new(), skipped: 0, tokens: 0, names: 0 }
    }
}

fn refuse(text: impl Into<String>) -> Result<Value> {
    Err(Error::new(ErrorKind::BadRequest, text))
}

impl Framer {
    /// Consumes bytes from the front of `input` up to the end of one message. None: the bytes ended before it.
    pub fn next(&mut self, input: &mut &[u8]) -> Option<Result<Value>> {
        while let Some((&byte, rest)) = input.split_first() {
            if self.stops_before(byte) {
                self.state = State::Between;
                continue;
            }
            *input = rest;
            if let Some(found) = self.push(byte) {
                return Some(found);
            }
        }
        None
    }

    /// A stray word ends where a message may begin.
    fn stops_before(&self, byte: u8) -> bool {
        self.state == State::SkipWord && (byte.is_ascii_whitespace() || matches!(byte, b'{' | b'[' | b'"' | b'\'' | 0xff))
    }

    fn push(&mut self, byte: u8) -> Option<Result<Value>> {
        if byte == 0xff {
            self.reset(State::Between);
            return Some(refuse("byte 0xFF: the parser was reset, send the next command"));
        }
        match self.state {
            State::Between => match byte {
                b' ' | b'\t' | b'\r' | b'\n' => None,
                b'{' | b'[' | b'"' | b'\'' => {
                    self.reset(State::Plain);
                    self.plain(byte)
                }
                _ => {
                    self.state = State::SkipWord;
                    Some(refuse("QMP input must be a JSON object: `{\"execute\": \"NAME\"}`"))
                }
            },
            State::Plain => self.plain(byte),
            State::String { quote, escaped } => self.string(byte, quote, escaped),
            State::SkipWord => None,
            State::Skip => {
                match byte {
                    b'"' | b'\'' => self.state = State::SkipString { quote: byte, escaped: false },
                    b'{' | b'[' => self.skipped += 1,
                    b'}' | b']' => self.skipped -= 1,
                    _ => {}
                }
                if self.skipped == 0 {
                    self.reset(State::Between);
                }
                None
            }
            State::SkipString { quote, escaped } => {
                self.state = match byte {
                    b'\n' => State::Between,
                    _ if !escaped && byte == quote => State::Skip,
                    _ => State::SkipString { quote, escaped: !escaped && byte == b'\\' },
                };
                None
            }
        }
    }

    fn plain(&mut self, byte: u8) -> Option<Result<Value>> {
        match byte {
            b'"' | b'\'' => {
                self.text.push(b'"');
                self.state = State::String { quote: byte, escaped: false };
                self.count()
            }
            b'{' | b'[' => {
                self.due.push(if byte == b'{' { b'}' } else { b']' });
                self.text.push(byte);
                if self.due.len() > MAX_NESTING {
                    return self.abandon(format!("JSON nested deeper than {MAX_NESTING} levels"));
                }
                self.count()
            }
            b'}' | b']' => {
                if self.due.last() != Some(&byte) {
                    return self.abandon(format!("JSON brackets do not match at `{}`", char::from(byte)));
                }
                self.due.pop();
                self.text.push(byte);
                if self.due.is_empty() { Some(self.finish()) } else { self.count() }
            }
            b' ' | b'\t' | b'\r' | b'\n' => {
                // Kept as one space, so that a message cannot grow by white space.
                if self.text.last() != Some(&b' ') {
                    self.text.push(b' ');
                }
                None
            }
            0..0x20 => self.abandon(format!("control character {byte:#04x} in JSON")),
            _ => {
                self.text.push(byte);
                self.names += usize::from(byte == b':');
                if matches!(byte, b':' | b',') { self.count() } else { self.check_size() }
            }
        }
    }

    fn string(&mut self, byte: u8, quote: u8, escaped: bool) -> Option<Result<Value>> {
        self.state = State::String { quote, escaped: false };
        match byte {
            b'\n' => {
                // No string spans lines: whoever sends lines has begun a new one.
                self.reset(State::Between);
                return Some(refuse("a JSON string is not closed at the end of the line"));
            }
            0..0x20 => {
                return self.abandon(format!("control character {byte:#04x} in a JSON string; write it as \\u{byte:04x}"));
            }
            b'\'' if escaped => self.text.push(b'\''),
            _ if escaped => self.text.extend([b'\\', byte]),
            b'\\' => self.state = State::String { quote, escaped: true },
            _ if byte == quote => {
                self.text.push(b'"');
                self.state = State::Plain;
                if self.due.is_empty() {
                    return Some(self.finish());
                }
            }
            b'"' => self.text.extend(br#"\""#),
            _ => self.text.push(byte),
        }
        self.check_size()
    }

    fn count(&mut self) -> Option<Result<Value>> {
        self.tokens += 1;
        if self.tokens > MAX_TOKENS {
            return self.abandon(format!("a message of more than {MAX_TOKENS} JSON tokens"));
        }
        self.check_size()
    }

    fn check_size(&mut self) -> Option<Result<Value>> {
        (self.text.len() > MAX_TEXT).then(|| self.abandon(format!("a message of more than {MAX_TEXT} bytes"))).flatten()
    }

    /// Reports an error and passes over the rest of the message.
    #[allow(clippy::unnecessary_wraps)] // callers return this as it is
    fn abandon(&mut self, text: String) -> Option<Result<Value>> {
        self.text = Vec::new();
        self.skipped = self.due.len() as u64;
        self.state = match self.state {
            _ if self.due.is_empty() => State::SkipWord,
            State::String { quote, escaped } => State::SkipString { quote, escaped },
            _ => State::Skip,
        };
        Some(refuse(text))
    }

    fn reset(&mut self, state: State) {
        *self = Self { state, ..Self::default() };
    }

    fn finish(&mut self) -> Result<Value> {
        let text = std::mem::take(&mut self.text);
        let names = self.names;
        self.reset(State::Between);
        let mut parser = serde_json::Deserializer::from_slice(&text);
        parser.disable_recursion_limit(); // the nesting was counted above
        let mut values = parser.into_iter::<Value>();
        match values.next() {
            Some(Ok(value)) if members(&value) == names => Ok(value),
            Some(Ok(_)) => refuse("a JSON object has the same member twice"),
            Some(Err(e)) => refuse(format!("JSON parse error: {e}")),
            None => refuse("JSON parse error: no value"),
        }
    }
}

/// Members of all objects in `value`: fewer than there were names if one came twice.
fn members(value: &Value) -> usize {
    match value {
        Value::Object(object) => object.len() + object.values().map(members).sum::<usize>(),
        Value::Array(array) => array.iter().map(members).sum(),
        _ => 0,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    /// Everything that `pieces` make: values, or the text of an error.
    fn all<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> Vec<std::result::Result<Value, String>> {
        let mut framer = Framer::default();
        let mut found = Vec::new();
        for piece in pieces {
            let mut input = piece;
            while let Some(frame) = framer.next(&mut input) {
                found.push(frame.map_err(|e| {
                    assert_eq!(e.kind, ErrorKind::BadRequest);
                    e.message
                }));
            }
            assert!(input.is_empty());
        }
        found
    }

    fn one(text: &str) -> std::result::Result<Value, String> {
        let mut found = all([text.as_bytes()]);
        assert_eq!(found.len(), 1, "{text}: {found:?}");
        found.remove(0)
    }

    #[test]
    fn pieces_of_any_size_and_several_in_one() {
        let text = br#" {"execute":"a","id":1}{'execute':'it\'s "b"' , "arguments":{"x":[1,{}]}}
            {"execute":"\u00e9\\"}"#;
        let expect =
            vec![json!({"execute":"a","id":1}), json!({"execute":"it's \"b\"","arguments":{"x":[1,{}]}}), json!({"execute":"é\\"})];
        for size in [1, 2, 3, 7, text.len()] {
            let found = all(text.chunks(size)).into_iter().collect::<std::result::Result<Vec<_>, _>>();
            assert_eq!(found.as_ref(), Ok(&expect), "pieces of {size}");
        }
    }

    #[test]
    fn ff_resets_everywhere() {
        for start in ["", "{", "{\"a", "{\"a\\", "{]", "{'", "nope"] {
            let mut text = start.as_bytes().to_vec();
            text.extend(b"\xff{\"execute\":\"a\"}");
            let found = all([text.as_slice()]);
            assert_eq!(found.last(), Some(&Ok(json!({"execute":"a"}))), "{start}");
            assert!(found[found.len() - 2].as_ref().is_err_and(|e| e.contains("0xFF")), "{start}");
        }
    }

    #[test]
    fn one_error_for_one_broken_message() {
        for bad in [
            r#"{"execute":"a" "id":1}"#,
            r#"{"execute":"a",}"#,
            r#"{"execute":]"a", "x": {"execute":"quit"}}"#,
            "{\"execute\":\"a\u{1}}\", \"x\": {\"execute\":\"quit\"}}",
            "{\"execute\":\u{1}\"a\", \"x\": [{\"execute\":\"quit\"}]}",
            r#"{"id":1,"id":2,"execute":"a"}"#,
            r#"{"execute":"a","id":01}"#,
            r#"{"execute":"a","id":"\x"}"#,
            r#"{"execute":"a","id":"\ud800"}"#,
            "nope",
            "12",
            "]]]]",
            "{\"execute\":\"a}\n",
            "{\"execute\":\"\u{1}a}\n",
        ] {
            let text = format!("{bad} {{\"execute\":\"next\"}}");
            let found = all([text.as_bytes()]);
            assert_eq!(found.len(), 2, "{bad}: {found:?}");
            assert!(found[0].is_err(), "{bad}: {found:?}");
            assert_eq!(found[1], Ok(json!({"execute":"next"})), "{bad}");
        }
    }

    #[test]
    fn what_is_no_object_is_still_a_message() {
        assert_eq!(one("[1]"), Ok(json!([1])));
        assert_eq!(one("'{\"execute\":\"quit\"}'"), Ok(json!("{\"execute\":\"quit\"}")));
        assert!(one("\"a\u{1}").is_err());
        assert!(all([b"{\"a\": \"\xc3(\"}".as_slice()])[0].is_err());
    }

    #[test]
    fn nesting_is_limited() {
        let test = || {
            let deep = |n: usize| format!("{}{}", "[".repeat(n), "]".repeat(n));
            assert!(one(&deep(MAX_NESTING)).is_ok());
            let found = all([(deep(MAX_NESTING + 1) + "{}").as_bytes()]);
            assert!(found[0].as_ref().is_err_and(|e| e.contains("nested")));
            assert_eq!(found[1..], [Ok(json!({}))]);
        };
        std::thread::Builder::new().stack_size(STACK).spawn(test).unwrap().join().unwrap();
    }

    #[test]
    fn size_and_tokens_are_limited() {
        let found = all([b"[\"".as_slice(), &vec![b'a'; MAX_TEXT], b"b\"]{}"]);
        assert!(found[0].as_ref().is_err_and(|e| e.contains("bytes")));
        assert_eq!(found[1..], [Ok(json!({}))]);
        let found = all([b"[1".as_slice(), &b",1".repeat(MAX_TOKENS), b"]{}"]);
        assert!(found[0].as_ref().is_err_and(|e| e.contains("tokens")));
        assert_eq!(found[1..], [Ok(json!({}))]);
    }

    #[test]
    fn white_space_costs_nothing() {
        let mut framer = Framer::default();
        let mut input = [b"{".as_slice(), &b" \n".repeat(1000)].concat();
        input.extend(b"}");
        let mut rest = &input[..2000];
        assert!(framer.next(&mut rest).is_none());
        assert!(framer.text.len() < 4);
        let mut rest = &input[2000..];
        assert!(framer.next(&mut rest).is_some_and(|f| f.is_ok()));
    }

    proptest! {
        #[test]
        fn garbage_never_breaks_the_next_command(garbage in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut text = garbage;
            text.extend(b"\xff{\"execute\":\"a\"}");
            let found = all(text.chunks(5));
            prop_assert_eq!(found.last(), Some(&Ok(json!({"execute":"a"}))));
        }
    }
}
