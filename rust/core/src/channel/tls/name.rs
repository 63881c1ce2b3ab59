//! A certificate's distinguished name as text, as QEMU's library writes it: in the certificate's order (not RFC 4514's), with RFC 4514's
//! escapes.

use std::fmt::Write as _;

use x509_parser::asn1_rs::ToDer as _;
use x509_parser::prelude::{AttributeTypeAndValue, FromDer, X509Certificate, X509Name};

/// Object identifiers that have a name; others are written as their numbers.
const NAMES: &[(&str, &str)] = &[
    ("2.5.4.3", "CN"),
    ("2.5.4.4", "surName"),
    ("2.5.4.5", "serialNumber"),
    ("2.5.4.6", "C"),
    ("2.5.4.7", "L"),
    ("2.5.4.8", "ST"),
    ("2.5.4.9", "street"),
    ("2.5.4.10", "O"),
    ("2.5.4.11", "OU"),
    ("2.5.4.12", "title"),
    ("2.5.4.13", "description"),
    ("2.5.4.15", "businessCategory"),
    ("2.5.4.17", "postalCode"),
    ("2.5.4.41", "name"),
    ("2.5.4.42", "givenName"),
    ("2.5.4.43", "initials"),
    ("2.5.4.44", "generationQualifier"),
    ("2.5.4.46", "dnQualifier"),
    ("2.5.4.65", "pseudonym"),
    ("0.9.2342.19200300.100.1.1", "UID"),
    ("0.9.2342.19200300.100.1.25", "DC"),
    ("1.2.840.113549.1.9.1", "EMAIL"),
];

/// The subject of a certificate; none if it cannot be read.
pub fn subject(certificate: &[u8]) -> Option<String> {
    let (_, certificate) = X509Certificate::from_der(certificate).ok()?;
    distinguished(certificate.subject())
}

fn distinguished(name: &X509Name<'_>) -> Option<String> {
    let parts: Option<Vec<String>> =
        name.iter_rdn().map(|part| part.iter().map(attribute).collect::<Option<Vec<_>>>().map(|all| all.join("+"))).collect();
    parts.map(|parts| parts.join(","))
}

fn attribute(attribute: &AttributeTypeAndValue<'_>) -> Option<String> {
    let oid = attribute.attr_type().to_id_string();
    let name = NAMES.iter().find(|(number, _)| *number == oid).map(|(_, name)| *name);
    if let (Some(name), Ok(value)) = (name, attribute.as_str()) {
        return Some(format!("{name}={}", escaped(value)));
    }
    // What is no text, or of no known kind, is written in hexadecimal with its tag.
    let bytes = attribute.attr_value().to_der_vec().ok()?;
    let text = format!("{}=#", name.unwrap_or(&oid));
    Some(bytes.iter().fold(text, |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    }))
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
#[allow(clippy::unwrap_used)]
mod tests {
    use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair};

    use super::subject;

    #[test]
    fn a_name_is_written_as_qemu_writes_it() {
        let custom = |oid: &[u64]| DnType::CustomDnType(oid.to_vec());
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name = DistinguishedName::new();
        // What QEMU 7.2 said of a certificate with these parts.
        for (kind, value) in [
            (DnType::CountryName, "GB"),
            (DnType::StateOrProvinceName, "Some#State"),
            (DnType::LocalityName, "#Town"),
            (DnType::OrganizationName, "Some, Ltd"),
            (DnType::OrganizationalUnitName, "a\\b q <x>;y=z"),
            (custom(&[2, 5, 4, 9]), "1 Way"),
            (custom(&[2, 5, 4, 4]), "Sur"),
            (custom(&[2, 3, 4, 5]), "unknown"),
            (custom(&[2, 5, 4, 45]), "uid"),
            (custom(&[1, 2, 840, 113_549, 1, 9, 1]), "a@b.c"),
            (custom(&[2, 5, 4, 42]), "ä€"),
            (DnType::CommonName, " sp "),
        ] {
            params.distinguished_name.push(kind, value);
        }
        let certificate = params.self_signed(&KeyPair::generate().unwrap()).unwrap();
        let expected = "C=GB,ST=Some#State,L=\\#Town,O=Some\\, Ltd,OU=a\\\\b q \\<x\\>\\;y=z,street=1 Way,surName=Sur,\
                        2.3.4.5=#0c07756e6b6e6f776e,2.5.4.45=#0c03756964,EMAIL=a@b.c,givenName=ä€,CN=\\ sp\\ ";
        assert_eq!(subject(certificate.der()).unwrap(), expected);
        assert_eq!(subject(b"no certificate"), None);
    }
}
