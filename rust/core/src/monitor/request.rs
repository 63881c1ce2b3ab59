//! From a JSON value to a request, and from an answer to its line (control-plane 7.2).

use std::fmt::Write as _;

use serde_json::{Map, Value, json};

use crate::Error;

/// An error as QMP tells it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QmpError {
    /// `GenericError`, `CommandNotFound`, ...
    pub class: String,
    /// The sentence.
    pub text: String,
}

impl QmpError {
    /// An error that has no class of its own.
    pub fn generic(text: impl Into<String>) -> Self {
        Self { class: "GenericError".into(), text: text.into() }
    }

    /// A command that does not exist, or not now.
    pub fn not_found(text: impl Into<String>) -> Self {
        Self { class: "CommandNotFound".into(), text: text.into() }
    }
}

impl From<Error> for QmpError {
    fn from(error: Error) -> Self {
        Self::generic(error.to_string())
    }
}

/// What a command leads to.
pub type Answer = Result<Value, QmpError>;

/// One command of a client.
#[derive(Debug, PartialEq)]
pub struct Request {
    /// The command's name.
    pub name: String,
    /// Its arguments.
    pub arguments: Map<String, Value>,
    /// What the answer must repeat.
    pub id: Option<Value>,
    /// Asked for as `exec-oob`.
    pub oob: bool,
}

impl Request {
    /// It ends the process, and is not refused.
    pub fn quits(&self) -> bool {
        self.name == "quit" && self.arguments.is_empty() && !self.oob
    }
}

/// The request in a message; on failure the `id` to answer with, wherever there is one.
pub fn parse(message: Value, oob_enabled: bool) -> Result<Request, (Option<Value>, QmpError)> {
    let Value::Object(mut message) = message else {
        return Err((None, QmpError::generic("QMP input must be a JSON object: `{\"execute\": \"NAME\"}`")));
    };
    let id = message.remove("id");
    match shape(message, oob_enabled) {
        Ok((name, arguments, oob)) => Ok(Request { name, arguments, id, oob }),
        Err(text) => Err((id, QmpError::generic(text))),
    }
}

fn shape(message: Map<String, Value>, oob_enabled: bool) -> Result<(String, Map<String, Value>, bool), String> {
    let mut command = None;
    let mut arguments = Map::new();
    for (member, value) in message {
        match (member.as_str(), value) {
            ("execute" | "exec-oob", _) if command.is_some() => return Err("`execute` and `exec-oob` exclude each other".into()),
            ("exec-oob", _) if !oob_enabled => {
                return Err("member `exec-oob` is unexpected: enable the capability `oob` in qmp_capabilities first".into());
            }
            ("execute" | "exec-oob", Value::String(name)) => command = Some((name, member == "exec-oob")),
            ("execute" | "exec-oob", _) => return Err(format!("member `{member}` must be a string")),
            ("arguments", Value::Object(object)) => arguments = object,
            ("arguments", _) => return Err("member `arguments` must be an object".into()),
            _ => return Err(format!("member `{member}` is unexpected")),
        }
    }
    let (name, oob) = command.ok_or("member `execute` is missing")?;
    Ok((name, arguments, oob))
}

/// Takes arguments one by one; what is left in the end is an error.
#[derive(Debug)]
pub struct Arguments(pub Map<String, Value>);

impl Arguments {
    /// A mandatory string.
    pub fn string(&mut self, name: &str) -> Result<String, QmpError> {
        match self.0.remove(name) {
            Some(Value::String(text)) => Ok(text),
            Some(_) => Err(QmpError::generic(format!("parameter `{name}` must be a string"))),
            None => Err(QmpError::generic(format!("parameter `{name}` is missing"))),
        }
    }

    /// An optional list of strings.
    pub fn strings(&mut self, name: &str) -> Result<Vec<String>, QmpError> {
        let wrong = || QmpError::generic(format!("parameter `{name}` must be a list of strings"));
        match self.0.remove(name) {
            None => Ok(Vec::new()),
            Some(Value::Array(list)) => {
                list.into_iter().map(|v| if let Value::String(text) = v { Ok(text) } else { Err(wrong()) }).collect()
            }
            Some(_) => Err(wrong()),
        }
    }

    /// Nothing else was given.
    pub fn end(self) -> Result<(), QmpError> {
        match self.0.keys().next() {
            Some(name) => Err(QmpError::generic(format!("parameter `{name}` is unexpected"))),
            None => Ok(()),
        }
    }
}

/// The message that answers a request.
pub fn reply(answer: Answer, id: Option<Value>) -> Value {
    let mut message = Map::new();
    match answer {
        Ok(value) => message.insert("return".into(), value),
        Err(error) => message.insert("error".into(), json!({ "class": error.class, "desc": error.text })),
    };
    if let Some(id) = id {
        message.insert("id".into(), id);
    }
    Value::Object(message)
}

/// One line of output: ASCII only, ended by CR LF.
pub fn line(message: &Value) -> Vec<u8> {
    let text = message.to_string();
    let mut line = String::with_capacity(text.len() + 2);
    for c in text.chars() {
        // Beyond ASCII there are only the insides of strings, where an escape means the same.
        if c.is_ascii() && c != '\x7f' {
            line.push(c);
        } else {
            for unit in c.encode_utf16(&mut [0; 2]) {
                let _ = write!(line, "\\u{unit:04X}");
            }
        }
    }
    line.push_str("\r\n");
    line.into_bytes()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn error(message: Value, oob: bool) -> (Option<Value>, String) {
        let (id, error) = parse(message, oob).unwrap_err();
        assert_eq!(error.class, "GenericError");
        (id, error.text)
    }

    #[test]
    fn shapes() {
        let got = parse(json!({"execute": "a", "arguments": {"x": 1}, "id": {"y": []}}), false).unwrap();
        assert_eq!((got.name.as_str(), got.arguments.len(), got.id, got.oob), ("a", 1, Some(json!({"y": []})), false));
        assert!(parse(json!({"exec-oob": "a"}), true).unwrap().oob);
        for (message, oob, word) in [
            (json!({"execute": 1, "id": 5}), false, "string"),
            (json!({"exec-oob": 1, "id": 5}), true, "string"),
            (json!({"execute": "a", "foo": 1, "id": 5}), false, "foo"),
            (json!({"arguments": {}, "id": 5}), false, "missing"),
            (json!({"execute": "a", "arguments": [], "id": 5}), false, "object"),
            (json!({"execute": "a", "arguments": null, "id": 5}), false, "object"),
            (json!({"exec-oob": "a", "id": 5}), false, "oob"),
            (json!({"exec-oob": "a", "execute": "b", "id": 5}), true, "exclude"),
        ] {
            let (id, text) = error(message.clone(), oob);
            assert_eq!(id, Some(json!(5)), "{message}");
            assert!(text.contains(word), "{message}: {text}");
        }
        assert_eq!(error(json!([{"id": 5}]), true).0, None);
    }

    #[test]
    fn what_will_be_refused_ends_nothing() {
        let quits = |message: Value| parse(message, true).unwrap().quits();
        assert!(quits(json!({"execute": "quit"})) && quits(json!({"execute": "quit", "arguments": {}})));
        assert!(!quits(json!({"execute": "quit", "arguments": {"force": true}})) && !quits(json!({"exec-oob": "quit"})));
    }

    #[test]
    fn arguments_are_taken_strictly() {
        let args = |value: Value| Arguments(value.as_object().unwrap().clone());
        assert_eq!(args(json!({"a": "x"})).string("a").unwrap(), "x");
        assert!(args(json!({"a": 1})).string("a").unwrap_err().text.contains("string"));
        assert!(args(json!({})).string("a").unwrap_err().text.contains("missing"));
        assert_eq!(args(json!({"l": ["x"]})).strings("l").unwrap(), ["x"]);
        assert!(args(json!({"l": [1]})).strings("l").is_err());
        assert!(args(json!({"l": "x"})).strings("l").is_err());
        assert!(args(json!({})).strings("l").unwrap().is_empty());
        assert!(args(json!({"z": 1})).end().unwrap_err().text.contains("`z` is unexpected"));
    }

    #[test]
    fn lines_are_ascii() {
        let text = line(&reply(Ok(json!("é😀\u{7f}<\n")), Some(json!("é"))));
        assert_eq!(text, b"{\"return\":\"\\u00E9\\uD83D\\uDE00\\u007F<\\n\",\"id\":\"\\u00E9\"}\r\n");
        let back: Value = serde_json::from_slice(&text).unwrap();
        assert_eq!(back["return"], "é😀\u{7f}<\n");
        let text = line(&reply(Err(QmpError::not_found("x")), None));
        assert_eq!(text, b"{\"error\":{\"class\":\"CommandNotFound\",\"desc\":\"x\"}}\r\n");
    }
}
