//! A certificate's distinguished name as text, the way QEMU's library writes it (RFC 4514's escapes and names).

use std::fmt::Write as _;

use x509_parser::prelude::{AttributeTypeAndValue, FromDer, X509Certificate, X509Name};

/// Object identifiers that have a short name; others are written as their numbers.
const NAMES: &[(&str, &str)] = &[
    ("2.5.4.3", "CN"),
    ("2.5.4.5", "serialNumber"),
    ("2.5.4.6", "C"),
    ("2.5.4.7", "L"),
    ("2.5.4.8", "ST"),
    ("2.5.4.9", "street"),
    ("2.5.4.10", "O"),
    ("2.5.4.11", "OU"),
    ("2.5.4.12", "title"),
    ("0.9.2342.19200300.100.1.1", "UID"),
    ("0.9.2342.19200300.100.1.25", "DC"),
    ("1.2.840.113549.1.9.1", "EMAIL"),
];

/// The subject of a certificate; none if it cannot be read.
pub fn subject(certificate: &[u8]) -> Option<String> {
    let (_, certificate) = X509Certificate::from_der(certificate).ok()?;
    Some(distinguished(certificate.subject()))
}

/// The innermost part stands first.
fn distinguished(name: &X509Name<'_>) -> String {
    let mut parts: Vec<String> = name.iter_rdn().map(|part| part.iter().map(attribute).collect::<Vec<_>>().join("+")).collect();
    parts.reverse();
    parts.join(",")
}

fn attribute(attribute: &AttributeTypeAndValue<'_>) -> String {
    let oid = attribute.attr_type().to_id_string();
    let short = NAMES.iter().find(|(number, _)| *number == oid).map(|(_, short)| *short);
    match (short, attribute.as_str()) {
        (Some(short), Ok(value)) => format!("{short}={}", escaped(value)),
        // What is no text, or of no known kind, is written in hexadecimal.
        _ => attribute.as_slice().iter().fold(format!("{}=#", short.unwrap_or(&oid)), |mut text, byte| {
            let _ = write!(text, "{byte:02X}");
            text
        }),
    }
}

fn escaped(value: &str) -> String {
    let last = value.chars().count().saturating_sub(1);
    let mut text = String::new();
    for (index, one) in value.chars().enumerate() {
        let special = matches!(one, ',' | '+' | '"' | '\\' | '<' | '>' | ';')
            || (index == 0 && matches!(one, '#' | ' '))
            || (index == last && one == ' ');
        if special {
            text.push('\\');
        }
        text.push(one);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::escaped;

    #[test]
    fn what_separates_is_escaped() {
        for (value, text) in [("a b", "a b"), (" a ", "\\ a\\ "), ("#a#", "\\#a#"), ("a,b+c", "a\\,b\\+c"), ("", ""), (" ", "\\ ")] {
            assert_eq!(escaped(value), text);
        }
    }
}
