//! The migration parameters that Rust threads read. Python has and checks the whole set (control-plane 6).

use std::ops::RangeInclusive;

use serde_json::Value;

use crate::wire::consts::PAGE_SIZE;
use crate::{Error, ErrorKind, Result};

/// How the pages of multifd packets are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// Not at all.
    None,
    /// By zlib at this level.
    Zlib(u32),
    /// By zstd at this level.
    Zstd(i32),
}

/// Who looks for pages that are zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ZeroPageDetection {
    /// Nobody.
    None,
    /// The migration thread.
    Legacy,
    /// The senders of multifd, where there are any and the format has it.
    Multifd,
}

/// What happens when the time allowed for a migration is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeadlineAction {
    /// It is cancelled.
    Cancel,
    /// It switches to postcopy.
    Postcopy,
    /// The machine is stopped and the rest is sent, however long that takes.
    Force,
}

/// How auto-converge slows the machine down; percentages (spec/control-plane 3.9).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ThrottleSettings {
    /// Of the bytes sent in a period: more dirtied bytes than this are too many.
    pub threshold: u8,
    /// Of the time of the vCPUs: what the first step takes away.
    pub initial: u8,
    /// What each further step takes away more.
    pub increment: u8,
    /// What is taken away at most.
    pub most: u8,
    /// Steps become smaller where a smaller one will do.
    pub tailslow: bool,
}

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
    /// Milliseconds that a migration may take up to the switchover; 0 is for ever.
    pub deadline: u64,
    /// What happens then.
    pub deadline_action: DeadlineAction,
    /// How `auto-converge` works.
    pub throttle: ThrottleSettings,
    /// Channels of multifd, 1 to 255.
    pub multifd_channels: u8,
    /// How they carry pages.
    pub multifd_compression: Compression,
    /// Who looks for zero pages.
    pub zero_page_detection: ZeroPageDetection,
    /// Bytes of pages that the cache of `xbzrle` holds; a power of two, a page at least.
    pub xbzrle_cache_size: u64,
    /// Level of zlib for compressed pages, 0 to 9.
    pub compress_level: u8,
    /// Threads that compress pages.
    pub compress_threads: u8,
    /// A page waits for one of them rather than travel as it is.
    pub compress_wait_thread: bool,
    /// Threads that decompress pages.
    pub decompress_threads: u8,
}

impl Default for Parameters {
    fn default() -> Self {
        Self {
            max_bandwidth: 128 << 20,
            avail_switchover_bandwidth: 0,
            max_postcopy_bandwidth: 0,
            downtime_limit: 300,
            deadline: 0,
            deadline_action: DeadlineAction::Cancel,
            throttle: ThrottleSettings { threshold: 50, initial: 20, increment: 10, most: 99, tailslow: false },
            multifd_channels: 2,
            multifd_compression: Compression::None,
            zero_page_detection: ZeroPageDetection::Multifd,
            xbzrle_cache_size: 64 << 20,
            compress_level: 1,
            compress_threads: 8,
            compress_wait_thread: true,
            decompress_threads: 2,
        }
    }
}

impl Parameters {
    /// From the JSON object of all parameters by QMP name; what is absent has its default, what is not read here is passed over.
    /// Fails with `invalid-argument` if the text is no object or one of ours is not of its type and range.
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
        let within = |name: &str, default: u8, range: RangeInclusive<u8>| {
            let value = read(name, default.into())?;
            let fits = u8::try_from(value).ok().filter(|value| range.contains(value));
            fits.ok_or_else(|| bad(format!("parameter {name} must be from {} to {}, not {value}", range.start(), range.end())))
        };
        let switch = |name: &str, default: bool| match object.get(name) {
            None => Ok(default),
            Some(value) => value.as_bool().ok_or_else(|| bad(format!("parameter {name} must be a boolean, not {value}"))),
        };
        let name = |name: &str, default: &'static str| match object.get(name) {
            None => Ok(default.to_owned()),
            Some(Value::String(value)) => Ok(value.clone()),
            Some(value) => Err(bad(format!("parameter {name} must be a name, not {value}"))),
        };
        let default = Self::default();
        let (zlib, zstd) = (read("multifd-zlib-level", 1)?, read("multifd-zstd-level", 1)?);
        let multifd_compression = match name("multifd-compression", "none")?.as_str() {
            "none" => Compression::None,
            "zlib" => Compression::Zlib(u32::try_from(zlib).map_err(|_| bad(format!("zlib has no level {zlib}")))?),
            "zstd" => Compression::Zstd(i32::try_from(zstd).map_err(|_| bad(format!("zstd has no level {zstd}")))?),
            other => return Err(bad(format!("there is no multifd-compression {other:?}"))),
        };
        let zero_page_detection = match name("zero-page-detection", "multifd")?.as_str() {
            "none" => ZeroPageDetection::None,
            "legacy" => ZeroPageDetection::Legacy,
            "multifd" => ZeroPageDetection::Multifd,
            other => return Err(bad(format!("there is no zero-page-detection {other:?}"))),
        };
        let deadline_action = match name("x-deadline-action", "cancel")?.as_str() {
            "cancel" => DeadlineAction::Cancel,
            "postcopy" => DeadlineAction::Postcopy,
            "force" => DeadlineAction::Force,
            other => return Err(bad(format!("there is no x-deadline-action {other:?}"))),
        };
        let throttle = ThrottleSettings {
            threshold: within("throttle-trigger-threshold", default.throttle.threshold, 1..=100)?,
            initial: within("cpu-throttle-initial", default.throttle.initial, 1..=99)?,
            increment: within("cpu-throttle-increment", default.throttle.increment, 1..=99)?,
            most: within("max-cpu-throttle", default.throttle.most, 1..=99)?,
            tailslow: switch("cpu-throttle-tailslow", default.throttle.tailslow)?,
        };
        let xbzrle_cache_size = read("xbzrle-cache-size", default.xbzrle_cache_size)?;
        if !xbzrle_cache_size.is_power_of_two() || xbzrle_cache_size < PAGE_SIZE {
            let text = format!("parameter xbzrle-cache-size must be a power of two from {PAGE_SIZE} on, not {xbzrle_cache_size}");
            return Err(bad(text));
        }
        Ok(Self {
            max_bandwidth: read("max-bandwidth", default.max_bandwidth)?,
            avail_switchover_bandwidth: read("avail-switchover-bandwidth", default.avail_switchover_bandwidth)?,
            max_postcopy_bandwidth: read("max-postcopy-bandwidth", default.max_postcopy_bandwidth)?,
            downtime_limit: read("downtime-limit", default.downtime_limit)?,
            deadline: read("x-deadline", default.deadline)?,
            deadline_action,
            throttle,
            multifd_channels: within("multifd-channels", default.multifd_channels, 1..=255)?,
            multifd_compression,
            zero_page_detection,
            xbzrle_cache_size,
            compress_level: within("compress-level", default.compress_level, 0..=9)?,
            compress_threads: within("compress-threads", default.compress_threads, 1..=255)?,
            compress_wait_thread: switch("compress-wait-thread", default.compress_wait_thread)?,
            decompress_threads: within("decompress-threads", default.decompress_threads, 1..=255)?,
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
    fn what_has_a_name() {
        let got = Parameters::parse(
            r#"{"multifd-channels": 255, "multifd-compression": "zlib", "multifd-zlib-level": 9, "multifd-zstd-level": 20, "zero-page-detection": "legacy"}"#,
        );
        let got = got.unwrap();
        assert_eq!((got.multifd_channels, got.multifd_compression), (255, Compression::Zlib(9)));
        assert_eq!(got.zero_page_detection, ZeroPageDetection::Legacy);
        let got = Parameters::parse(r#"{"multifd-compression": "zstd", "multifd-zstd-level": 20, "zero-page-detection": "none"}"#).unwrap();
        assert_eq!((got.multifd_compression, got.zero_page_detection), (Compression::Zstd(20), ZeroPageDetection::None));
    }

    #[test]
    fn ranges() {
        let text = r#"{"xbzrle-cache-size": 4096, "compress-level": 0, "compress-threads": 255, "compress-wait-thread": false}"#;
        let got = Parameters::parse(text).unwrap();
        assert_eq!((got.xbzrle_cache_size, got.compress_level, got.compress_threads), (4096, 0, 255));
        assert!(!got.compress_wait_thread);
    }

    #[test]
    fn of_auto_converge_and_the_deadline() {
        let got = Parameters::parse(
            r#"{"throttle-trigger-threshold": 100, "cpu-throttle-initial": 1, "cpu-throttle-increment": 99, "max-cpu-throttle": 2,
                "cpu-throttle-tailslow": true, "x-deadline": 4294967295, "x-deadline-action": "postcopy"}"#,
        );
        let got = got.unwrap();
        let wanted = ThrottleSettings { threshold: 100, initial: 1, increment: 99, most: 2, tailslow: true };
        assert_eq!((got.throttle, got.deadline, got.deadline_action), (wanted, 0xffff_ffff, DeadlineAction::Postcopy));
        let got = Parameters::parse(r#"{"x-deadline-action": "force"}"#).unwrap();
        assert_eq!((got.deadline, got.deadline_action), (0, DeadlineAction::Force));
    }

    #[test]
    fn refuses_what_is_of_another_type_or_out_of_range() {
        for text in [
            "",
            "[]",
            r#"{"max-bandwidth": -1}"#,
            r#"{"downtime-limit": "20"}"#,
            r#"{"downtime-limit": 1.5}"#,
            r#"{"multifd-channels": 0}"#,
            r#"{"multifd-channels": 256}"#,
            r#"{"multifd-compression": 1}"#,
            r#"{"multifd-compression": "lz4"}"#,
            r#"{"multifd-compression": "zlib", "multifd-zlib-level": 5000000000}"#,
            r#"{"multifd-compression": "zstd", "multifd-zstd-level": 5000000000}"#,
            r#"{"zero-page-detection": "both"}"#,
            r#"{"compress-threads": 256}"#,
            r#"{"xbzrle-cache-size": 2048}"#,
            r#"{"xbzrle-cache-size": 12288}"#,
            r#"{"compress-level": 10}"#,
            r#"{"compress-threads": 0}"#,
            r#"{"decompress-threads": 256}"#,
            r#"{"compress-wait-thread": 1}"#,
            r#"{"throttle-trigger-threshold": 0}"#,
            r#"{"cpu-throttle-initial": 100}"#,
            r#"{"cpu-throttle-increment": 0}"#,
            r#"{"max-cpu-throttle": 100}"#,
            r#"{"cpu-throttle-tailslow": 1}"#,
            r#"{"x-deadline": -1}"#,
            r#"{"x-deadline-action": "hope"}"#,
        ] {
            assert_eq!(Parameters::parse(text).unwrap_err().kind, ErrorKind::InvalidArgument, "{text}");
        }
    }
}
