//! What the kernel and the permissions of this process allow, tried out rather than read off version numbers.

use super::mmap::{Mapping, PAGE};
use super::pagemap::{Pagemap, Query};
use super::uffd::{Faults, Features, Modes, Uffd};
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
        let trials: [(&'static str, Trial, &str); 7] = [
            ("userfaultfd", userfaultfd, "a kernel with CONFIG_USERFAULTFD=y (needed for postcopy and for the kernel's dirty log)"),
            (
                "missing",
                missing,
                "run as root, `sysctl vm.unprivileged_userfaultfd=1`, or `setfacl -m u:$USER:rw /dev/userfaultfd` (needed for postcopy)",
            ),
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

fn missing() -> Result<String> {
    let uffd = Uffd::open(Features::MISSING_SHMEM | Features::MISSING_HUGETLBFS, Faults::All)?;
    let page = Mapping::anon(PAGE, false)?;
    let address = page.view().range(0, PAGE).as_ptr().addr();
    uffd.register(address, PAGE, Modes::MISSING).map_err(|e| failed("register", e))?;
    uffd.unregister(address, PAGE).map_err(|e| failed("unregister", e))?;
    Ok("faults of the kernel included".to_owned())
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
        assert_eq!(names, ["userfaultfd", "missing", "wp-async", "pagemap-scan", "memfd", "hugetlb", "thp"]);
        for check in &probe.checks {
            assert_eq!(check.ok, check.remedy.is_empty(), "{check:?}");
            assert!(!check.detail.is_empty(), "{check:?}");
        }
    }
}
