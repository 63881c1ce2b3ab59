//! The commands that the monitor answers by itself, with no help from Python: whatever must work while the interpreter is stuck.

use serde_json::{Value, json};

use super::client::{Client, Mode};
use super::request::{Answer, Arguments, QmpError};
use crate::channel::{Address, Uri};
use crate::control::Control;

/// A command answered here: its name and whether it may overtake (`exec-oob`).
const ANSWERED: &[(&str, bool)] = &[
    ("closefd", false),
    ("getfd", false),
    ("migrate-pause", true),
    ("migrate-recover", true),
    ("migrate_cancel", false),
    ("qmp_capabilities", false),
    ("query-commands", false),
    ("query-migrate", true),
    ("query-status", true),
    ("query-version", false),
    ("x-migrate-give-up", true),
];

/// What all clients are told alike.
#[derive(Debug)]
pub(super) struct Facts {
    version: Value,
    commands: Vec<String>,
}

impl Facts {
    /// `python`: the commands that are answered elsewhere.
    pub(super) fn new(python: &[String], package: &str) -> Self {
        let mut commands: Vec<_> = ANSWERED.iter().map(|(name, _)| (*name).to_owned()).chain(python.iter().cloned()).collect();
        commands.sort_unstable();
        commands.dedup();
        Self { version: json!({ "qemu": { "micro": 0, "minor": 2, "major": 7 }, "package": package }), commands }
    }

    pub(super) fn greeting(&self) -> Value {
        json!({ "QMP": { "version": self.version, "capabilities": ["oob"] } })
    }

    pub(super) fn knows(&self, name: &str) -> bool {
        self.commands.binary_search_by(|known| known.as_str().cmp(name)).is_ok()
    }

    /// True if the monitor answers `name` itself.
    pub(super) fn answers(name: &str) -> bool {
        ANSWERED.iter().any(|(known, _)| *known == name)
    }

    pub(super) fn allows_oob(name: &str) -> bool {
        ANSWERED.contains(&(name, true))
    }

    /// Runs a command for which `answers` is true.
    pub(super) fn run(
        &self,
        control: &Control,
        client: &mut Client,
        name: &str,
        mut arguments: Arguments,
        fd: Option<std::os::fd::OwnedFd>,
    ) -> Answer {
        match name {
            "qmp_capabilities" => {
                let enable = arguments.strings("enable")?;
                arguments.end()?;
                if client.mode != Mode::Negotiation {
                    return Err(QmpError::not_found("the capabilities were negotiated already"));
                }
                if let Some(unknown) = enable.iter().find(|c| *c != "oob") {
                    return Err(QmpError::generic(format!("parameter `enable` does not accept `{unknown}`; there is only `oob`")));
                }
                client.mode = if enable.is_empty() { Mode::InBand } else { Mode::OutOfBand };
                Ok(json!({}))
            }
            "getfd" => {
                let name = arguments.string("fdname")?;
                arguments.end()?;
                if name.starts_with(|c: char| c.is_ascii_digit()) {
                    return Err(QmpError::generic("parameter `fdname` must not start with a digit"));
                }
                let Some(fd) = fd else {
                    return Err(QmpError::generic("no descriptor came with the command; pass it with SCM_RIGHTS over a unix socket"));
                };
                client.names.insert(name, fd);
                Ok(json!({}))
            }
            "closefd" => {
                let name = arguments.string("fdname")?;
                arguments.end()?;
                let missing = || QmpError::generic(format!("no descriptor is named `{name}` on this connection"));
                client.names.remove(&name).map(|_| json!({})).ok_or_else(missing)
            }
            "migrate-recover" => {
                let uri = arguments.string("uri")?;
                arguments.end()?;
                let uri = Uri::parse(&uri)?;
                let fd = match uri.address() {
                    Address::Fd(name) => client.names.remove(name),
                    _ => None,
                };
                control.recover_incoming(&uri, fd)?;
                Ok(json!({}))
            }
            "migrate-pause" | "x-migrate-give-up" => {
                arguments.end()?;
                if name == "migrate-pause" { control.pause() } else { control.give_up_outgoing() }?;
                Ok(json!({}))
            }
            _ => {
                arguments.end()?;
                Ok(match name {
                    "migrate_cancel" => {
                        control.cancel();
                        json!({})
                    }
                    "query-commands" => self.commands.iter().map(|name| json!({ "name": name })).collect(),
                    "query-migrate" => control.query_migrate(),
                    "query-status" => control.query_status(),
                    "query-version" => self.version.clone(),
                    _ => return Err(QmpError::not_found(format!("the command {name} has not been found"))),
                })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_sorted_and_merged() {
        let facts = Facts::new(&["stop".into(), "query-status".into(), "a".into()], "p");
        assert!(facts.commands.is_sorted());
        assert_eq!(facts.commands.len(), ANSWERED.len() + 2);
        assert!(facts.knows("stop") && facts.knows("getfd") && !facts.knows("cont"));
        assert!(Facts::answers("query-status") && !Facts::answers("stop"));
        assert!(Facts::allows_oob("query-migrate") && !Facts::allows_oob("getfd") && !Facts::allows_oob("stop"));
    }
}
