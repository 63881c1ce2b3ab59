//! What the kernel and the permissions of this process allow, tried out rather than read off version numbers.

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::mmap::{HUGE_PAGE, Mapping, PAGE};
use super::pagemap::{Pagemap, Query};
use super::uffd::{Fault, Faults, Features, Modes, REMEDY, Refusal, Uffd};
use crate::{Error, ErrorKind, Result};

/// One fact: can it be used, what was seen, and what to do if not (empty if nothing is to be done).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Check {
    /// Stable name.
    pub name: &'static str,
    /// It can be used.
    pub ok: bool,
    /// What was seen.
    pub detail: String,
    /// What to do about it.
    pub remedy: String,
}

/// All the facts, in the order in which they build on each other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Probe {
    /// One for each name.
    pub checks: Vec<Check>,
}

type Trial = fn() -> Result<String>;

impl Probe {
    /// Tries everything.
    pub fn run() -> Self {
        let trials: [(&'static str, Trial, &str); 12] = [
            ("userfaultfd", userfaultfd, "a kernel with CONFIG_USERFAULTFD=y (needed for postcopy and for the kernel's dirty log)"),
            ("missing", || missing(&Mapping::anon(PAGE, false)?), "Linux 5.11 or newer, and a userfaultfd (needed for postcopy)"),
            ("missing-shmem", || missing(&Mapping::memfd(PAGE, false)?), "Linux 5.11 or newer; else use backing anon for postcopy"),
            ("missing-hugetlb", || missing(&Mapping::hugetlb(HUGE_PAGE)?), "sysctl vm.nr_hugepages=N; else use backing anon for postcopy"),
            ("kernel-faults", kernel_faults, REMEDY),
            ("minor", minor, "Linux 5.14 or newer; postcopy works without it"),
            ("poison", poison, "Linux 6.6 or newer; postcopy works without it"),
            ("wp-async", wp_async, "Linux 6.7 or newer; else use the explicit dirty log (mark_dirty after each write)"),
            ("pagemap-scan", pagemap_scan, "Linux 6.7 or newer with CONFIG_PROC_PAGE_MONITOR=y, and /proc mounted"),
            ("memfd", memfd, "a kernel with CONFIG_MEMFD_CREATE=y, or use backing anon"),
            ("hugetlb", hugetlb, "reserve pages of 2 MiB: sysctl vm.nr_hugepages=N"),
            ("thp", thp, "echo madvise > /sys/kernel/mm/transparent_hugepage/enabled"),
        ];
        let check = |(name, trial, remedy): (&'static str, Trial, &str)| match trial() {
            Ok(detail) => Check { name, ok: true, detail, remedy: String::new() },
            Err(error) => Check { name, ok: false, detail: error.message, remedy: remedy.to_owned() },
        };
        Self { checks: trials.into_iter().map(check).collect() }
    }
}

fn failed(what: &str, why: impl std::fmt::Display) -> Error {
    Error::new(ErrorKind::NotPermitted, format!("{what}: {why}"))
}

fn userfaultfd() -> Result<String> {
    let features = Uffd::features()?;
    Ok(format!("features {:#x}", features.bits()))
}

/// A thread that reads one byte of `memory`, and what it read once `serve` has seen its fault.
fn touched(uffd: &Uffd, memory: &Mapping, modes: Modes, serve: impl FnOnce(Fault) -> Option<Refusal>) -> Result<u8> {
    let len = memory.view().len();
    let address = memory.view().range(0, len).as_ptr().addr();
    uffd.register(address, len, modes).map_err(|e| failed("register", e))?;
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let mut byte = [0];
            memory.view().read(8, &mut byte);
            byte[0]
        });
        let served = first_fault(uffd).and_then(|fault| {
            let fault = fault.ok_or_else(|| failed("a touched page", "no fault was reported"))?;
            serve(fault).map_or(Ok(()), |why| Err(failed("a page could not be placed", format!("{why:?}"))))
        });
        // Whatever happened, the thread must end.
        uffd.unregister(address, len).map_err(|e| failed("unregister", e))?;
        let read = reader.join().map_err(|_| failed("the touching thread", "panicked"))?;
        served.map(|()| read)
    })
}

/// The first fault within a second.
fn first_fault(uffd: &Uffd) -> Result<Option<Fault>> {
    let second = Timespec { tv_sec: 1, tv_nsec: 0 };
    poll(&mut [PollFd::new(uffd, PollFlags::IN)], Some(&second)).map_err(|e| failed("poll", e))?;
    let mut fault = [Fault::default()];
    let found = uffd.read_faults(&mut fault).map_err(|e| failed("read", e))?;
    Ok((found > 0).then_some(fault[0]))
}

/// Places a page where a thread waits for it.
fn missing(memory: &Mapping) -> Result<String> {
    let found = Uffd::features()?;
    let uffd = Uffd::open((Features::MISSING_SHMEM | Features::MISSING_HUGETLBFS) & found, Faults::Best)?;
    let page = vec![7; memory.page_size()];
    let read = touched(&uffd, memory, Modes::MISSING, |fault| uffd.copy(fault.address & !(page.len() - 1), &page).why)?;
    if read == 7 { Ok("a missing page was placed".to_owned()) } else { Err(failed("a placed page", "was not read back")) }
}

fn kernel_faults() -> Result<String> {
    Uffd::open(Features::empty(), Faults::All)?;
    Ok("missing pages also stop the kernel (recv_into, readinto)".to_owned())
}

/// Maps a page that exists in its file where a thread waits for it.
fn minor() -> Result<String> {
    let uffd = Uffd::open(Features::MINOR_SHMEM, Faults::Best)?;
    let memory = Mapping::memfd(PAGE, false)?;
    memory.view().fill(0, PAGE, 7);
    memory.unmap_pages(0, PAGE).map_err(|e| failed("unmapping a page", e))?;
    let read = touched(&uffd, &memory, Modes::MINOR, |fault| uffd.continue_(fault.address & !(PAGE - 1), PAGE).why)?;
    if read == 7 { Ok("a page of shared memory was mapped".to_owned()) } else { Err(failed("a mapped page", "was not read back")) }
}

fn poison() -> Result<String> {
    let uffd = Uffd::open(Features::POISON, Faults::Best)?;
    let page = Mapping::anon(PAGE, false)?;
    let address = page.view().range(0, PAGE).as_ptr().addr();
    uffd.register(address, PAGE, Modes::MISSING).map_err(|e| failed("register", e))?;
    let poisoned = uffd.poison(address, PAGE).why;
    let touched = page.populate(0, PAGE, false);
    uffd.unregister(address, PAGE).map_err(|e| failed("unregister", e))?;
    match (poisoned, touched) {
        (None, Err(_)) => Ok("a page was made an error to touch".to_owned()),
        (why, _) => Err(failed("a page", format!("could not be made an error to touch ({why:?})"))),
    }
}

/// The features of the kernel's dirty log.
pub const WP_ASYNC: Features = Features::WP_ASYNC.union(Features::WP_UNPOPULATED).union(Features::WP_HUGETLBFS_SHMEM);

fn wp_async() -> Result<String> {
    let uffd = Uffd::open(WP_ASYNC, Faults::User)?;
    let page = Mapping::anon(PAGE, false)?;
    let address = page.view().range(0, PAGE).as_ptr().addr();
    uffd.register(address, PAGE, Modes::WP).map_err(|e| failed("register", e))?;
    uffd.write_protect(address, PAGE, true).map_err(|e| failed("write-protect", e))?;
    let mut pagemap = Pagemap::open()?;
    let mut written = |what| {
        let mut seen = 0;
        pagemap.scan(address, PAGE, Query::WRITTEN, |start, end| seen += end - start).map_err(|e| failed("PAGEMAP_SCAN", e))?;
        if seen == what { Ok(()) } else { Err(failed("a write", "not seen as it should be")) }
    };
    written(0)?;
    page.view().fill(0, 1, 1);
    written(PAGE)?;
    uffd.unregister(address, PAGE).map_err(|e| failed("unregister", e))?;
    Ok("a write was seen".to_owned())
}

fn pagemap_scan() -> Result<String> {
    let page = Mapping::anon(PAGE, false)?;
    let address = page.view().range(0, PAGE).as_ptr().addr();
    Pagemap::open()?.scan(address, PAGE, Query::ABSENT, |_, _| {}).map_err(|e| failed("PAGEMAP_SCAN", e))?;
    Ok("works".to_owned())
}

fn memfd() -> Result<String> {
    Mapping::memfd(PAGE, false).map(|_| "works".to_owned())
}

fn hugetlb() -> Result<String> {
    let text = read("/proc/meminfo")?;
    let value = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)).map_or("0", str::trim);
    let (free, size) = (value("HugePages_Free:"), value("Hugepagesize:"));
    let detail = format!("{free} pages of {size} free");
    if free == "0" { Err(Error::new(ErrorKind::NoMemory, detail)) } else { Ok(detail) }
}

fn thp() -> Result<String> {
    let text = read("/sys/kernel/mm/transparent_hugepage/enabled")?;
    let text = text.trim().to_owned();
    if text.contains("[never]") { Err(failed("transparent huge pages", text)) } else { Ok(text) }
}

fn read(path: &str) -> Result<String> {
    std::fs::read_to_string(path).map_err(|e| failed(path, e))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn says_something_about_each() {
        let probe = Probe::run();
        let names: Vec<_> = probe.checks.iter().map(|check| check.name).collect();
        let wanted = "userfaultfd missing missing-shmem missing-hugetlb kernel-faults minor poison wp-async pagemap-scan memfd hugetlb thp";
        assert_eq!(names.join(" "), wanted);
        for check in &probe.checks {
            assert_eq!(check.ok, check.remedy.is_empty(), "{check:?}");
            assert!(!check.detail.is_empty(), "{check:?}");
        }
    }
}
