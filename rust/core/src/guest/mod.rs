//! The model guest: deterministic vCPU threads that read and write RAM, and the verifier that replays them.
//!
//! Each vCPU owns a disjoint share of the working set's pages, so threads never race and what they do depends on their registers
//! and on memory only. A guest can be stopped after any step, its registers and RAM moved elsewhere, and started again: it goes on
//! as if nothing had happened. Replaying all steps on fresh memory then gives the same bytes, unless a write was lost, doubled or
//! changed on the way. How fast it runs (rate, throttle) is no part of its state.

mod pace;
mod spec;
mod vcpu;
mod verify;

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;

use self::pace::{Pace, Throttle, nap};
pub use self::spec::{Pattern, Spec};
use self::vcpu::{Plan, STEPS};
pub use self::vcpu::{REGISTERS, Registers};
pub use self::verify::Verdict;
use crate::ram::{Bitmap, Block, TARGET_PAGE};
use crate::{Error, ErrorKind, Result};

/// Steps between two looks at the clock. The stop flag is looked at in every step, since one may wait for a missing page.
const CHUNK: u64 = 512;
/// The same of a throttled vCPU, whose every step may cost a fault: its share of time is short.
const THROTTLED_CHUNK: u64 = 16;

/// Model vCPUs over one RAM block.
#[derive(Debug)]
pub struct Guest {
    block: Arc<Block>,
    vcpus: Mutex<Vcpus>,
    run: Arc<Run>,
    running: AtomicBool,
}

#[derive(Debug)]
struct Vcpus {
    registers: Vec<Registers>,
    /// While running: the vCPU's number and its thread, which gives the registers back.
    threads: Vec<(usize, JoinHandle<Registers>)>,
}

/// What the threads see of the guest.
#[derive(Debug)]
struct Run {
    stop: AtomicBool,
    throttle_percent: AtomicU32,
    /// Steps done by each vCPU, for whoever looks on.
    steps: Vec<AtomicU64>,
}

impl Guest {
    /// A stopped guest of `vcpus` vCPUs; those beyond the spec's `threads` take no part.
    pub fn new(block: Arc<Block>, spec: &Spec, seed: u64, vcpus: usize) -> Result<Self> {
        let bad = |text: String| Error::new(ErrorKind::InvalidArgument, text);
        if !(1..=spec::THREADS_MAX).contains(&vcpus) {
            return Err(bad(format!("a model guest has 1 to {} vCPUs, not {vcpus}", spec::THREADS_MAX)));
        }
        let threads = spec.threads.unwrap_or(vcpus);
        if threads > vcpus {
            return Err(bad(format!("guest option threads={threads}: the machine has {vcpus} vCPUs")));
        }
        let pages = block.used_length() / TARGET_PAGE as u64;
        let wss_pages = spec.wss_pages.unwrap_or(pages.min(spec::WSS_PAGES_MAX));
        if wss_pages > pages || wss_pages < threads as u64 {
            let text =
                format!("a working set of {wss_pages} pages does not fit {threads} vCPUs and block {:?} of {pages} pages", block.name());
            return Err(bad(text));
        }
        let plan = |vcpu| Plan {
            pattern: spec.pattern,
            vcpu,
            threads,
            wss_pages,
            seed,
            rate: spec.rate.unwrap_or(0),
            read_share: spec.read_share,
            began_zero: false,
        };
        let registers = (0..vcpus)
            .map(|vcpu| if vcpu < threads && spec.pattern != Pattern::Idle { plan(vcpu).registers() } else { [0; REGISTERS] })
            .collect();
        Ok(Self {
            block,
            vcpus: Mutex::new(Vcpus { registers, threads: Vec::new() }),
            run: Arc::new(Run {
                stop: AtomicBool::new(false),
                throttle_percent: AtomicU32::new(0),
                steps: (0..vcpus).map(|_| AtomicU64::new(0)).collect(),
            }),
            running: AtomicBool::new(false),
        })
    }

    /// vCPUs, idle ones included.
    pub fn vcpus(&self) -> usize {
        self.run.steps.len()
    }

    /// True between start and stop.
    pub fn running(&self) -> bool {
        self.running.load(Ordering::Acquire)
    }

    /// Steps done by all vCPUs; may be read while they run.
    pub fn steps(&self) -> u64 {
        self.run.steps.iter().fold(0, |sum, steps| sum.wrapping_add(steps.load(Ordering::Relaxed)))
    }

    /// Takes `percent` (at most 99) of the time from every vCPU, at once; 0 ends that.
    pub fn throttle(&self, percent: u32) {
        self.run.throttle_percent.store(percent.min(99), Ordering::Relaxed);
    }

    /// Lets every vCPU run from its registers. Does nothing if they run already.
    pub fn start(&self) -> Result<()> {
        let mut vcpus = self.lock();
        if self.running() {
            return Ok(());
        }
        let plans = self.plans(&vcpus.registers)?;
        if vcpus.registers.iter().all(|r| r[STEPS] == 0) && !plans.is_empty() && self.ram_is_zero()? {
            for plan in &plans {
                vcpu::note_began_zero(&mut vcpus.registers[plan.vcpu]);
            }
        }
        self.run.stop.store(false, Ordering::Relaxed);
        self.running.store(true, Ordering::Release);
        for plan in plans {
            let (block, run, registers) = (Arc::clone(&self.block), Arc::clone(&self.run), vcpus.registers[plan.vcpu]);
            let thread =
                std::thread::Builder::new().name(format!("model-vcpu{}", plan.vcpu)).spawn(move || live(&plan, registers, &block, &run));
            match thread {
                Ok(thread) => vcpus.threads.push((plan.vcpu, thread)),
                Err(error) => {
                    let _ = self.halt(&mut vcpus);
                    return Err(Error::io("starting a thread for a model vCPU", error));
                }
            }
        }
        Ok(())
    }

    /// Returns when every vCPU has finished its step; one that waits for a missing page does so when that has come.
    pub fn stop(&self) -> Result<()> {
        self.run.stop.store(true, Ordering::Relaxed);
        self.halt(&mut self.lock())
    }

    fn halt(&self, vcpus: &mut Vcpus) -> Result<()> {
        self.run.stop.store(true, Ordering::Relaxed);
        for (_, thread) in &vcpus.threads {
            thread.thread().unpark();
        }
        let mut result = Ok(());
        for (vcpu, thread) in std::mem::take(&mut vcpus.threads) {
            match thread.join() {
                Ok(registers) => vcpus.registers[vcpu] = registers,
                Err(_) => result = Err(Error::new(ErrorKind::InvalidState, format!("model vCPU {vcpu} crashed; its state is lost"))),
            }
        }
        self.running.store(false, Ordering::Release);
        result
    }

    /// The registers of one vCPU. Only while stopped.
    pub fn registers(&self, vcpu: usize) -> Result<Registers> {
        let vcpus = self.stopped("read")?;
        vcpus.registers.get(vcpu).copied().ok_or_else(|| self.no_vcpu(vcpu))
    }

    /// Sets the registers of one vCPU: all zero (it takes no part), or what `registers` gave here or elsewhere. Only while stopped.
    pub fn set_registers(&self, vcpu: usize, registers: &Registers) -> Result<()> {
        let mut vcpus = self.stopped("set")?;
        self.plan(vcpu, registers)?;
        *vcpus.registers.get_mut(vcpu).ok_or_else(|| self.no_vcpu(vcpu))? = *registers;
        self.run.steps[vcpu].store(registers[STEPS], Ordering::Relaxed);
        Ok(())
    }

    /// Replays all steps on fresh memory and compares every byte and register. Only while stopped.
    pub fn verify(&self) -> Result<Verdict> {
        // The lock is kept: nobody starts the guest meanwhile.
        let vcpus = self.stopped("verified")?;
        verify::verify(&self.block, &self.plans(&vcpus.registers)?, &vcpus.registers)
    }

    fn lock(&self) -> MutexGuard<'_, Vcpus> {
        // A panic under the lock leaves registers and threads as they were.
        self.vcpus.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn stopped(&self, what: &str) -> Result<MutexGuard<'_, Vcpus>> {
        let running = || Error::new(ErrorKind::InvalidState, format!("the model guest runs; stop it before its state is {what}"));
        // Looked at before the lock too: a stop that waits for a missing page holds it.
        if self.running() {
            return Err(running());
        }
        let vcpus = self.lock();
        if self.running() { Err(running()) } else { Ok(vcpus) }
    }

    fn no_vcpu(&self, vcpu: usize) -> Error {
        Error::new(ErrorKind::InvalidArgument, format!("vCPU {vcpu} does not exist; there are {}", self.vcpus()))
    }

    /// The plan of one vCPU, checked against the block.
    fn plan(&self, vcpu: usize, registers: &Registers) -> Result<Option<Plan>> {
        let plan = Plan::read(vcpu, registers)?;
        let pages = self.block.used_length() / TARGET_PAGE as u64;
        match plan {
            Some(plan) if plan.wss_pages > pages => {
                let text = format!("vCPU {vcpu} works on {} pages, but block {:?} has {pages}", plan.wss_pages, self.block.name());
                Err(Error::new(ErrorKind::InvalidArgument, text))
            }
            plan => Ok(plan),
        }
    }

    /// The plans of those vCPUs that take part, checked against each other.
    fn plans(&self, registers: &[Registers]) -> Result<Vec<Plan>> {
        let mut plans: Vec<Plan> = Vec::new();
        for (vcpu, registers) in registers.iter().enumerate() {
            plans.extend(self.plan(vcpu, registers)?);
        }
        if let Some(first) = plans.first() {
            let alike = plans.iter().all(|plan| plan.shared() == first.shared());
            if !alike || plans.len() != first.threads {
                let text =
                    format!("{} vCPUs have registers of a model guest, and they are not one guest of {}", plans.len(), first.threads);
                return Err(Error::new(ErrorKind::InvalidState, text));
            }
        }
        Ok(plans)
    }

    fn ram_is_zero(&self) -> Result<bool> {
        let mut untouched = Bitmap::new(self.block.pages());
        self.block.untouched(&mut untouched)?;
        for page in (0..self.block.pages()).filter(|&page| !untouched.get(page)) {
            if !self.block.is_zero((page * TARGET_PAGE) as u64, TARGET_PAGE)? {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        // Not waited for: a thread that stands in a missing page holds the block and ends when it gets out.
        self.run.stop.store(true, Ordering::Relaxed);
        for (_, thread) in &self.lock().threads {
            thread.thread().unpark();
        }
    }
}

/// The life of one vCPU thread: from these registers until stop; gives the registers back.
fn live(plan: &Plan, mut registers: Registers, block: &Block, run: &Run) -> Registers {
    let mut pace = plan.own_rate().map(|rate| Pace::new(rate, Instant::now()));
    let mut throttle = Throttle::new(Instant::now());
    while !run.stop.load(Ordering::Relaxed) {
        let now = Instant::now();
        let percent = run.throttle_percent.load(Ordering::Relaxed);
        if let Some(pause) = throttle.pause(percent, now) {
            nap(pause, &run.stop);
            continue;
        }
        let chunk = if percent == 0 { CHUNK } else { THROTTLED_CHUNK };
        let due = match pace.as_mut().map_or(Ok(chunk), |pace| pace.due(now)) {
            Ok(due) => due.min(chunk),
            Err(pause) => {
                nap(pause, &run.stop);
                continue;
            }
        };
        let before = registers[STEPS];
        vcpu::run(plan, &mut registers, block.view(), due, &run.stop, |offset| {
            if block.wants_marks() {
                // The offset was just written, so it is inside the block.
                let _ = block.mark_dirty(offset, 8);
            }
        });
        if let Some(pace) = pace.as_mut() {
            // The count may have come from elsewhere, and wraps.
            pace.did(registers[STEPS].wrapping_sub(before));
        }
        run.steps[plan.vcpu].store(registers[STEPS], Ordering::Relaxed);
    }
    registers
}

#[cfg(test)]
mod tests;
