//! What a model guest does: the text of `--guest` as a checked value.

use std::str::FromStr;

use crate::ram::TARGET_PAGE;
use crate::{Error, ErrorKind, Result};

/// Resolution of the read share: the random bits a step spends on "read or write".
pub(super) const READ_SHARE_BITS: u32 = 23;
/// More pages than this do not fit the registers' cursor (16 TiB of working set).
pub(super) const WSS_PAGES_MAX: u64 = u32::MAX as u64;
/// Faster than any machine; keeps sums of steps within 64 bits.
pub(super) const RATE_MAX: u64 = u32::MAX as u64;
/// More threads than this do not fit the registers' number; real machines here have at most 8.
pub(super) const THREADS_MAX: usize = 255;

/// Which page a step touches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Pattern {
    /// None: no steps at all.
    #[default]
    Idle,
    /// One page after the other, round and round.
    Seq,
    /// Any page, all equally often.
    Random,
    /// Few pages often and many rarely: page `k` of a share about `1/k` as often as its first.
    Zipf,
}

impl Pattern {
    const ALL: [(Self, &'static str); 4] = [(Self::Idle, "idle"), (Self::Seq, "seq"), (Self::Random, "random"), (Self::Zipf, "zipf")];

    /// The number that stands in the registers.
    pub(super) const fn number(self) -> u8 {
        match self {
            Self::Idle => 0,
            Self::Seq => 1,
            Self::Random => 2,
            Self::Zipf => 3,
        }
    }

    pub(super) fn from_number(number: u8) -> Option<Self> {
        Self::ALL.into_iter().map(|(pattern, _)| pattern).find(|pattern| pattern.number() == number)
    }
}

/// A parsed `--guest` text; what it leaves open is filled in when the guest is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Spec {
    /// Which pages.
    pub pattern: Pattern,
    /// vCPUs that take part; none: all.
    pub threads: Option<usize>,
    /// Pages of the working set, from the start of the block; none: all of it.
    pub wss_pages: Option<u64>,
    /// Steps a second of all vCPUs together; none: as fast as it goes.
    pub rate: Option<u64>,
    /// Share of steps that only read, in units of 2^-23.
    pub(super) read_share: u32,
}

fn invalid(text: String) -> Error {
    Error::new(ErrorKind::InvalidArgument, text)
}

impl FromStr for Spec {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let mut parts = text.split(',');
        let name = parts.next().unwrap_or_default();
        let Some((pattern, _)) = Pattern::ALL.into_iter().find(|(_, known)| *known == name) else {
            return Err(invalid(format!("guest {name:?} is unknown; there are idle, seq, random and zipf")));
        };
        let mut spec = Self { pattern, ..Self::default() };
        let mut seen: Vec<&str> = Vec::new();
        for part in parts {
            let (key, value) =
                part.split_once('=').ok_or_else(|| invalid(format!("guest option {part:?} has no value; write KEY=VALUE")))?;
            if seen.contains(&key) {
                return Err(invalid(format!("guest option {key:?} stands twice")));
            }
            seen.push(key);
            match key {
                "threads" => {
                    let threads = number(key, value, THREADS_MAX as u64)?;
                    spec.threads = Some(usize::try_from(threads).unwrap_or(THREADS_MAX));
                }
                "wss" => spec.wss_pages = Some(size(value)?),
                "rate" => spec.rate = Some(number(key, value, RATE_MAX)?),
                "read" => spec.read_share = share(value)?,
                _ => return Err(invalid(format!("guest option {key:?} is unknown; there are threads, wss, rate and read"))),
            }
        }
        Ok(spec)
    }
}

fn number(key: &str, value: &str, max: u64) -> Result<u64> {
    value
        .parse()
        .ok()
        .filter(|n| (1..=max).contains(n))
        .ok_or_else(|| invalid(format!("guest option {key}={value}: a whole number from 1 to {max} is wanted")))
}

/// Bytes with a K, M or G suffix; a bare number is MiB, as for `-m`. In pages, rounded up.
fn size(value: &str) -> Result<u64> {
    let (digits, unit) = match value.char_indices().next_back() {
        Some((at, 'K' | 'k')) => (&value[..at], 1 << 10),
        Some((at, 'M' | 'm')) => (&value[..at], 1 << 20),
        Some((at, 'G' | 'g')) => (&value[..at], 1 << 30),
        _ => (value, 1u64 << 20),
    };
    digits
        .parse::<u64>()
        .ok()
        .and_then(|n| n.checked_mul(unit))
        .map(|bytes| bytes.div_ceil(TARGET_PAGE as u64))
        .filter(|pages| (1..=WSS_PAGES_MAX).contains(pages))
        .ok_or_else(|| invalid(format!("guest option wss={value}: a size such as 64M or 1G is wanted")))
}

fn share(value: &str) -> Result<u32> {
    let units = f64::from(1u32 << READ_SHARE_BITS);
    match value.parse::<f64>() {
        // Within 0 to 2^23 after the check, so the cast keeps the value.
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        Ok(share) if (0.0..=1.0).contains(&share) => Ok((share * units).round() as u32),
        _ => Err(invalid(format!("guest option read={value}: a share from 0 to 1 is wanted"))),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn everything_said() {
        let spec: Spec = "zipf,threads=3,wss=6K,rate=1000,read=0.25".parse().unwrap();
        let wanted = Spec { pattern: Pattern::Zipf, threads: Some(3), wss_pages: Some(2), rate: Some(1000), read_share: 1 << 21 };
        assert_eq!(spec, wanted);
    }

    #[test]
    fn nothing_but_a_pattern() {
        for (pattern, name) in Pattern::ALL {
            assert_eq!(name.parse::<Spec>().unwrap(), Spec { pattern, ..Spec::default() });
            assert_eq!(Pattern::from_number(pattern.number()), Some(pattern));
        }
    }

    #[test]
    fn sizes() {
        let pages = |text: &str| format!("seq,wss={text}").parse::<Spec>().unwrap().wss_pages.unwrap();
        assert_eq!([pages("4k"), pages("3"), pages("2M"), pages("1g")], [1, 768, 512, 262_144]);
    }

    #[test]
    fn each_mistake_is_named() {
        for (text, word) in [
            ("", "unknown"),
            ("walk", "\"walk\" is unknown"),
            ("seq,", "no value"),
            ("seq,fast", "no value"),
            ("seq,speed=1", "\"speed\" is unknown"),
            ("seq,rate=1,rate=2", "twice"),
            ("seq,threads=0", "from 1 to 255"),
            ("seq,threads=256", "from 1 to 255"),
            ("seq,rate=0", "from 1"),
            ("seq,rate=fast", "from 1"),
            ("seq,wss=0", "size"),
            ("seq,wss=1T", "size"),
            ("seq,wss=99999999999999999999G", "size"),
            ("seq,wss=99999999999G", "size"),
            ("seq,read=1.5", "from 0 to 1"),
            ("seq,read=nan", "from 0 to 1"),
            ("seq,read=", "from 0 to 1"),
        ] {
            let error = text.parse::<Spec>().unwrap_err();
            assert_eq!(error.kind, ErrorKind::InvalidArgument, "{text}");
            assert!(error.message.contains(word), "{text}: {}", error.message);
        }
    }
}
