//! The migration parameters that Rust threads read. Python has and checks the whole set (control-plane 6).

use serde_json::Value;

use crate::{Error, ErrorKind, Result};

/// A snapshot of the parameters; a change replaces the snapshot and takes effect at the next look.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parameters {
    /// Bytes per second of the precopy flow; 0 is unlimited.
    pub max_bandwidth: u64,
    /// Bytes per second that decisions assume instead of the measured rate; 0 is measure.
    pub avail_switchover_bandwidth: u64,
    /// Bytes per second of the background flow in postcopy; 0 is unlimited.
    pub max_postcopy_bandwidth: u64,
    /// Milliseconds that the machine may stand still.
    pub downtime_limit: u64,
}

impl Default for Parameters {
    fn default() -> Self {
        Self { max_bandwidth: 128 << 20, avail_switchover_bandwidth: 0, max_postcopy_bandwidth: 0, downtime_limit: 300 }
    }
}

impl Parameters {
    /// From the JSON object of all parameters by QMP name; what is absent has its default, what is not read here is passed over.
    /// Fails with `invalid-argument` if the text is no object or one of ours is no unsigned integer.
    pub fn parse(json: &str) -> Result<Self> {
        let bad = |text: String| Error::new(ErrorKind::InvalidArgument, text);
        let object = match serde_json::from_str(json) {
            Ok(Value::Object(object)) => object,
            Ok(_) => return Err(bad("the parameters must be a JSON object".into())),
            Err(e) => return Err(bad(format!("the parameters are no JSON: {e}"))),
        };
        let read = |name: &str, default: u64| match object.get(name) {
            None => Ok(default),
            Some(value) => value.as_u64().ok_or_else(|| bad(format!("parameter {name} must be an unsigned integer, not {value}"))),
        };
        let default = Self::default();
        Ok(Self {
            max_bandwidth: read("max-bandwidth", default.max_bandwidth)?,
            avail_switchover_bandwidth: read("avail-switchover-bandwidth", default.avail_switchover_bandwidth)?,
            max_postcopy_bandwidth: read("max-postcopy-bandwidth", default.max_postcopy_bandwidth)?,
            downtime_limit: read("downtime-limit", default.downtime_limit)?,
        })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn defaults_and_strangers() {
        assert_eq!(Parameters::parse("{}").unwrap(), Parameters::default());
        let got = Parameters::parse(r#"{"max-bandwidth": 18446744073709551615, "tls-creds": "", "downtime-limit": 20}"#).unwrap();
        assert_eq!((got.max_bandwidth, got.downtime_limit), (u64::MAX, 20));
    }

    #[test]
    fn refuses_what_is_no_number() {
        for text in ["", "[]", r#"{"max-bandwidth": -1}"#, r#"{"downtime-limit": "20"}"#, r#"{"downtime-limit": 1.5}"#] {
            assert_eq!(Parameters::parse(text).unwrap_err().kind, ErrorKind::InvalidArgument, "{text}");
        }
    }
}
