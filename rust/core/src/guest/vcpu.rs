//! One vCPU of the model guest: sixteen registers that hold everything, and the step that they and memory determine.
//!
//! Addresses come from the random state alone and written values from all that was read so far, so a wrong read spoils every
//! later write, while the next addresses never wait for memory. The same code runs the guest and replays it.

use std::sync::atomic::{AtomicBool, Ordering};

use super::spec::{Pattern, RATE_MAX, READ_SHARE_BITS, WSS_PAGES_MAX};
use crate::ram::{TARGET_PAGE, TARGET_PAGE_BITS};
use crate::sys::guest::GuestMem;
use crate::{Error, ErrorKind, Result};

/// Registers of a vCPU.
pub const REGISTERS: usize = 16;
/// All registers of a vCPU. All zero: a vCPU that takes no part.
pub type Registers = [u64; REGISTERS];

/// Bits 0-7 layout version, 8-15 pattern, 16-23 vCPU number, 24-31 vCPUs that take part, 32-55 read share, 63 RAM began as zeros.
pub(super) const KIND: usize = 0;
/// Pages of the whole working set.
const WSS: usize = 1;
/// The seed of all vCPUs.
const SEED: usize = 2;
/// Steps a second of all vCPUs together; 0: unlimited.
const RATE: usize = 3;
/// Steps done.
pub(super) const STEPS: usize = 4;
/// Random state.
const RNG: usize = 5;
/// `seq`: rounds done in the upper half, next page of the share in the lower.
const CURSOR: usize = 6;
/// Digest of everything read.
const SUM: usize = 7;
/// The values of the last eight steps, so that every register shows when it was lost.
const RECENT: usize = 8;

const CURSOR_PAGE: u64 = 0xffff_ffff;

const LAYOUT: u64 = 1;
const BEGAN_ZERO: u64 = 1 << 63;

/// Slots of 8 bytes in a page.
const SLOTS: u64 = TARGET_PAGE as u64 / 8;
const SLOT_BITS: u32 = SLOTS.trailing_zeros();
/// Odd constants with well-mixed bits (the golden ratio; two of the usual 64-bit finalizers).
const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;
const MIX1: u64 = 0xbf58_476d_1ce4_e5b9;
const MIX2: u64 = 0x94d0_49bb_1331_11eb;

/// A bijection that spreads every input bit over all output bits.
const fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(MIX1);
    z = (z ^ (z >> 27)).wrapping_mul(MIX2);
    z ^ (z >> 31)
}

/// What never changes while a vCPU runs, read from its registers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Plan {
    pub pattern: Pattern,
    pub vcpu: usize,
    /// vCPUs that take part.
    pub threads: usize,
    pub wss_pages: u64,
    pub seed: u64,
    /// Of all vCPUs together; 0: unlimited.
    pub rate: u64,
    pub read_share: u32,
    /// All of RAM read zero when the guest began, so that it can be replayed.
    pub began_zero: bool,
}

impl Plan {
    /// The registers before the first step.
    pub fn registers(&self) -> Registers {
        let mut r = [0; REGISTERS];
        r[KIND] = LAYOUT
            | u64::from(self.pattern.number()) << 8
            | (self.vcpu as u64) << 16
            | (self.threads as u64) << 24
            | u64::from(self.read_share) << 32
            | if self.began_zero { BEGAN_ZERO } else { 0 };
        r[WSS] = self.wss_pages;
        r[SEED] = self.seed;
        r[RATE] = self.rate;
        r[RNG] = mix(self.seed ^ mix(self.vcpu as u64 + 1));
        r
    }

    /// The plan in the registers of vCPU `vcpu`; none if it takes no part.
    pub fn read(vcpu: usize, r: &Registers) -> Result<Option<Self>> {
        if r == &[0; REGISTERS] {
            return Ok(None);
        }
        let byte = |shift: u32| r[KIND].to_le_bytes()[shift as usize / 8];
        let plan = Self {
            pattern: Pattern::from_number(byte(8)).unwrap_or_default(),
            vcpu: usize::from(byte(16)),
            threads: usize::from(byte(24)),
            wss_pages: r[WSS],
            seed: r[SEED],
            rate: r[RATE],
            read_share: u32::from_le_bytes([byte(32), byte(40), byte(48), 0]),
            began_zero: r[KIND] & BEGAN_ZERO != 0,
        };
        // What the fields give back must be the register itself: then no bit of it went unread.
        let valid = plan.registers()[KIND] == r[KIND]
            && plan.pattern != Pattern::Idle
            && plan.vcpu == vcpu
            && plan.vcpu < plan.threads
            && plan.read_share <= 1 << READ_SHARE_BITS
            && (plan.threads as u64..=WSS_PAGES_MAX).contains(&plan.wss_pages)
            && plan.rate <= RATE_MAX
            && r[CURSOR] & CURSOR_PAGE < plan.share().1;
        if !valid {
            let text = format!("the registers of vCPU {vcpu} hold no model guest's state (the first is {:#x})", r[KIND]);
            return Err(Error::new(ErrorKind::InvalidArgument, text));
        }
        Ok(Some(plan))
    }

    /// First page and number of pages that belong to this vCPU alone.
    pub fn share(&self) -> (u64, u64) {
        let start = |vcpu: usize| self.wss_pages * vcpu as u64 / self.threads as u64;
        let (from, to) = (start(self.vcpu), start(self.vcpu + 1));
        (from, to - from)
    }

    /// Steps a second of this vCPU; none: unlimited.
    pub fn own_rate(&self) -> Option<u64> {
        let part = |vcpu: usize| self.rate * vcpu as u64 / self.threads as u64;
        (self.rate != 0).then(|| part(self.vcpu + 1) - part(self.vcpu))
    }

    /// What all vCPUs of one guest have in common.
    pub fn shared(&self) -> Self {
        Self { vcpu: 0, ..*self }
    }
}

/// Says in the registers that RAM reads zero everywhere: called before the first step.
pub(super) fn note_began_zero(r: &mut Registers) {
    r[KIND] |= BEGAN_ZERO;
}

/// Does at most `count` steps, fewer if `stop` is set; `wrote(offset)` follows every write.
pub(super) fn run(plan: &Plan, r: &mut Registers, memory: GuestMem<'_>, count: u64, stop: &AtomicBool, wrote: impl Fn(u64)) {
    let (_, pages) = plan.share();
    match plan.pattern {
        Pattern::Idle => {}
        Pattern::Seq => steps(plan, r, memory, count, stop, wrote, |_, cursor| {
            let page = *cursor & CURSOR_PAGE;
            *cursor = if page + 1 == pages { (*cursor >> 32).wrapping_add(1) << 32 } else { *cursor + 1 };
            page
        }),
        Pattern::Random => steps(plan, r, memory, count, stop, wrote, |z, _| ((z >> 32) * pages) >> 32),
        Pattern::Zipf => {
            // All octaves of the rank equally often, and all ranks within one: 1/k in steps, with whole numbers only, so
            // that every host computes the same.
            let octaves = u64::from(u64::BITS - pages.leading_zeros());
            steps(plan, r, memory, count, stop, wrote, |z, _| {
                let octave = (((z >> 32) & 0xffff) * octaves) >> 16;
                let first = (1u64 << octave) - 1;
                let size = (first + 1).min(pages - first);
                first + (((z.wrapping_mul(GOLDEN) >> 32) * size) >> 32)
            });
        }
    }
}

#[inline(always)]
#[allow(clippy::inline_always)] // one copy for each pattern is the point
fn steps(
    plan: &Plan,
    r: &mut Registers,
    memory: GuestMem<'_>,
    count: u64,
    stop: &AtomicBool,
    wrote: impl Fn(u64),
    pick: impl Fn(u64, &mut u64) -> u64,
) {
    let (first, _) = plan.share();
    let read_share = u64::from(plan.read_share);
    let (mut rng, mut cursor, mut sum, begin) = (r[RNG], r[CURSOR], r[SUM], r[STEPS]);
    let mut done = 0;
    while done < count && !stop.load(Ordering::Relaxed) {
        rng = rng.wrapping_add(GOLDEN);
        let z = mix(rng);
        let offset = (first + pick(z, &mut cursor)) << TARGET_PAGE_BITS | (z & (SLOTS - 1)) << 3;
        let old = memory.load_u64(offset);
        // One-to-one in `old`, so whatever differs in memory differs in the sum.
        sum = (sum.rotate_left(23) ^ old).wrapping_mul(MIX1);
        let value = sum ^ z;
        if (z >> SLOT_BITS) & ((1 << READ_SHARE_BITS) - 1) >= read_share {
            memory.store_u64(offset, value);
            wrote(offset);
        }
        r[RECENT + usize::from((begin.wrapping_add(done) & 7) as u8)] = value;
        done += 1;
    }
    (r[RNG], r[CURSOR], r[SUM], r[STEPS]) = (rng, cursor, sum, begin.wrapping_add(done));
}
