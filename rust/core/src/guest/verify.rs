//! The replay: all steps of all vCPUs again on fresh memory, then every byte and every register compared.

use std::sync::atomic::AtomicBool;

use super::vcpu::{self, Plan, REGISTERS, Registers, STEPS};
use crate::ram::{Bitmap, Block, TARGET_PAGE};
use crate::{Error, ErrorKind, Result};

/// More steps are not replayed: it takes about as long as the steps took when they were done, and this is minutes.
pub(super) const STEPS_MAX: u64 = 10_000_000_000;

/// What a replay found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Verdict {
    /// Steps replayed, of all vCPUs together.
    pub steps: u64,
    /// The first byte that differs: its offset in the block; from the block's used length on, the registers follow as if they
    /// stood behind it, 16 words of 8 bytes for each vCPU in order.
    pub first_difference: Option<u64>,
}

impl Verdict {
    /// RAM and registers are what the steps make of fresh memory.
    pub fn equal(&self) -> bool {
        self.first_difference.is_none()
    }
}

/// Replays `plans` and compares with `block` and `registers`, both at rest.
pub(super) fn verify(block: &Block, plans: &[Plan], registers: &[Registers]) -> Result<Verdict> {
    let refused = |text: String| Err(Error::new(ErrorKind::InvalidState, text));
    let Some(any) = plans.first() else {
        return refused("the model guest is idle: there is nothing to replay".into());
    };
    if registers.iter().all(|r| r[STEPS] == 0) {
        return refused("the model guest has not made a step: there is nothing to replay".into());
    }
    if !any.began_zero {
        return refused("RAM was not all zero when the model guest began, so it cannot be replayed".into());
    }
    // Summed with care: the counts may have come from elsewhere.
    let steps = plans.iter().try_fold(0u64, |sum, plan| sum.checked_add(registers[plan.vcpu][STEPS]));
    let Some(steps) = steps.filter(|&steps| steps <= STEPS_MAX) else {
        return refused(format!("the model guest made more than {STEPS_MAX} steps, too many to replay; verify earlier, or give it a rate"));
    };

    let fresh = Block::anon("replay", any.wss_pages * TARGET_PAGE as u64)?;
    let mut untouched = Bitmap::new(block.pages());
    block.untouched(&mut untouched)?;
    let tail = usize::try_from(any.wss_pages).unwrap_or(usize::MAX)..block.pages();

    let (fresh, untouched) = (&fresh, &untouched);
    let found = std::thread::scope(|scope| {
        let replays: Vec<_> =
            plans.iter().map(|plan| scope.spawn(move || replay(plan, &registers[plan.vcpu], block, fresh, untouched))).collect();
        // Nothing was ever written behind the working set.
        let mut found = vec![first_difference(block, None, untouched, tail)];
        found.extend(replays.into_iter().map(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))));
        found
    });
    let mut first: Option<u64> = None;
    for difference in found {
        first = [first, difference?].into_iter().flatten().min();
    }
    Ok(Verdict { steps, first_difference: first })
}

/// Replays one vCPU and compares its share of the pages and its registers.
fn replay(plan: &Plan, wanted: &Registers, block: &Block, fresh: &Block, untouched: &Bitmap) -> Result<Option<u64>> {
    let mut registers = plan.registers();
    vcpu::run(plan, &mut registers, fresh.view(), wanted[STEPS], &AtomicBool::new(false), |_| {});
    let (first, pages) = plan.share();
    let page = |number: u64| usize::try_from(number).unwrap_or(usize::MAX);
    if let Some(difference) = first_difference(block, Some(fresh), untouched, page(first)..page(first + pages))? {
        return Ok(Some(difference));
    }
    let differs = registers.iter().zip(wanted).position(|(ours, theirs)| ours != theirs);
    Ok(differs.map(|register| block.used_length() + 8 * (REGISTERS * plan.vcpu + register) as u64))
}

/// The first byte in `pages` where `block` differs from `fresh`, or from zero.
fn first_difference(block: &Block, fresh: Option<&Block>, untouched: &Bitmap, pages: std::ops::Range<usize>) -> Result<Option<u64>> {
    let (mut ours, mut theirs) = ([0; TARGET_PAGE], [0; TARGET_PAGE]);
    for page in pages {
        let offset = (page * TARGET_PAGE) as u64;
        match fresh {
            Some(fresh) => fresh.read(offset, &mut theirs)?,
            None if untouched.get(page) => continue,
            None => {}
        }
        // A page that was never touched is zero, and is not read: that would make the kernel allocate it in shared memory.
        if untouched.get(page) {
            ours.fill(0);
        } else {
            block.read(offset, &mut ours)?;
        }
        if ours != theirs {
            let at = ours.iter().zip(&theirs).position(|(a, b)| a != b);
            return Ok(at.map(|at| offset + at as u64));
        }
    }
    Ok(None)
}
