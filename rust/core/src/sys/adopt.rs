//! What memory of the caller's is made of, from `/proc/self/smaps`, and taking it as a [`Mapping`].

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::ops::Range;
use std::os::unix::fs::MetadataExt;

use super::mmap::{Mapping, Nature, PAGE, Under};
use crate::{Error, ErrorKind, Result};

/// One line group of `smaps`: a map and what matters of it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Area {
    range: Range<usize>,
    writable: bool,
    shared: bool,
    offset: u64,
    device: String,
    inode: u64,
    path: String,
    page_size: usize,
    locked: bool,
}

fn bad(text: impl Into<String>) -> Error {
    Error::new(ErrorKind::BadBlock, text)
}

/// Takes `len` bytes at `base` as they are. Refuses what cannot be guest RAM, with the remedy.
///
/// # Safety
/// The bytes stay mapped, readable and writable, until the result and all that was made of it are dropped, and nobody
/// holds a Rust reference to them meanwhile.
pub unsafe fn adopt(base: *mut u8, len: usize) -> Result<Mapping> {
    let address = base.addr();
    if !address.is_multiple_of(PAGE) || !len.is_multiple_of(PAGE) || len == 0 {
        return Err(bad(format!(
            "the buffer ({len:#x} bytes at {address:#x}) must begin at a page boundary and be a positive multiple of {PAGE} bytes; \
             use mmap.mmap(-1, size), np.memmap on tmpfs, or the block's own memory instead of np.zeros"
        )));
    }
    let mut smaps = BufReader::new(File::open("/proc/self/smaps").map_err(|e| Error::io("/proc/self/smaps", e))?);
    let areas = parse(&mut smaps, &(address..address + len)).map_err(|e| Error::io("/proc/self/smaps", e))?;
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let (nature, page_size) = judge(&areas, &(address..address + len), &mounts)?;
    let under = if nature == Nature::Shmem { file_under(&areas, address) } else { None };
    // SAFETY: the caller's promise; `judge` saw that the range is mapped and writable.
    unsafe { Mapping::foreign(base, len, page_size, nature, under) }
}

/// The file of a shared map, to look for its holes: by name, or by the kernel's own link, which needs a privilege.
fn file_under(areas: &[Area], address: usize) -> Option<Under> {
    let [area] = areas else { return None };
    let link = format!("/proc/self/map_files/{:x}-{:x}", area.range.start, area.range.end);
    let file = [link.as_str(), area.path.as_str()].into_iter().find_map(|path| {
        let file = File::open(path).ok()?;
        // Another file may have the name by now.
        let meta = file.metadata().ok()?;
        (meta.is_file() && meta.ino() == area.inode && Some(device(meta.dev())) == number(&area.device, 16)).then_some(file)
    })?;
    Some(Under { fd: file.into(), offset: area.offset + (address - area.range.start) as u64 })
}

fn device(dev: u64) -> (u32, u32) {
    (rustix::fs::major(dev), rustix::fs::minor(dev))
}

/// `fe:01`, in hex in smaps, in decimal in mountinfo.
fn number(text: &str, radix: u32) -> Option<(u32, u32)> {
    let (major, minor) = text.split_once(':')?;
    Some((u32::from_str_radix(major, radix).ok()?, u32::from_str_radix(minor, radix).ok()?))
}

/// The areas that overlap `wanted`.
fn parse(smaps: &mut impl BufRead, wanted: &Range<usize>) -> std::io::Result<Vec<Area>> {
    let (mut areas, mut line) = (Vec::new(), String::new());
    let mut inside = false;
    while {
        line.clear();
        smaps.read_line(&mut line)? > 0
    } {
        if let Some(area) = header(&line) {
            inside = area.range.start < wanted.end && wanted.start < area.range.end;
            if inside {
                areas.push(area);
            } else if area.range.start >= wanted.end {
                break;
            }
        } else if let (true, Some(area)) = (inside, areas.last_mut()) {
            if let Some(size) = line.strip_prefix("KernelPageSize:") {
                area.page_size = size.trim().trim_end_matches(" kB").parse::<usize>().unwrap_or(0) * 1024;
            } else if let Some(flags) = line.strip_prefix("VmFlags:") {
                area.locked = flags.split_ascii_whitespace().any(|flag| flag == "lo");
            }
        }
    }
    Ok(areas)
}

/// `55d0c0000000-55d0c0021000 rw-p 00000000 00:00 0    [heap]`
fn header(line: &str) -> Option<Area> {
    let mut words = line.splitn(6, ' ');
    let (start, end) = words.next()?.split_once('-')?;
    let range = usize::from_str_radix(start, 16).ok()?..usize::from_str_radix(end, 16).ok()?;
    let rights = words.next()?;
    let (offset, device, inode) =
        (u64::from_str_radix(words.next()?, 16).ok()?, words.next()?.to_owned(), words.next()?.trim().parse().ok()?);
    let path = words.next().unwrap_or_default().trim().to_owned();
    let (writable, shared) = (rights.starts_with("rw"), rights.ends_with('s'));
    Some(Area { range, writable, shared, offset, device, inode, path, page_size: PAGE, locked: false })
}

/// What `wanted` is made of, if that is one thing and can be guest RAM.
fn judge(areas: &[Area], wanted: &Range<usize>, mounts: &str) -> Result<(Nature, usize)> {
    let mut at = wanted.start;
    let mut found = None;
    for area in areas {
        if area.range.start > at {
            break;
        }
        at = area.range.end;
        if !area.writable {
            return Err(bad(format!("the memory at {:#x} is read-only; map it readable and writable", area.range.start)));
        }
        if area.locked {
            return Err(bad("the memory is locked (mlock): it could not be discarded; munlock it, or do not use MAP_LOCKED".to_owned()));
        }
        let nature = nature(area, mounts)?;
        if found.is_some_and(|other| other != (nature, area.page_size)) {
            return Err(bad("the buffer spans memory of different kinds; make it one map"));
        }
        found = Some((nature, area.page_size));
        if at >= wanted.end {
            break;
        }
    }
    let (nature, page_size) = found.filter(|_| at >= wanted.end).ok_or_else(|| bad(format!("no memory is mapped at {at:#x}")))?;
    if !wanted.start.is_multiple_of(page_size) || !wanted.end.is_multiple_of(page_size) {
        return Err(bad(format!("the buffer must begin and end at boundaries of its huge pages of {page_size:#x} bytes")));
    }
    Ok((nature, page_size))
}

fn nature(area: &Area, mounts: &str) -> Result<Nature> {
    // The first System V segment is number 0, and shared.
    if area.inode == 0 && !area.shared {
        return Ok(Nature::Private);
    }
    if !area.shared {
        let text = format!(
            "a private map of {} cannot be guest RAM: what is written there is no longer the file's; map it shared, or use anonymous memory",
            area.path
        );
        return Err(bad(text));
    }
    // Files of the kernel's own invisible mount, and of mounts whose type is memory.
    let invisible = ["/memfd:", "/dev/zero", "/SYSV", "/anon_hugepage"].iter().any(|own| area.path.starts_with(own))
        && area.path.ends_with(" (deleted)");
    Ok(if invisible || in_memory(mounts, &area.device) { Nature::Shmem } else { Nature::Disk })
}

/// Is the file system of device `fe:01` (hex, as in smaps) one that lives in memory?
fn in_memory(mounts: &str, device: &str) -> bool {
    let wanted = number(device, 16);
    wanted.is_some()
        && mounts.lines().any(|line| {
            // mountinfo: id, parent, device (decimal), root, point, options, tags ... - type source options
            let same = line.split(' ').nth(2).is_some_and(|found| number(found, 10) == wanted);
            let kind = line.split_once(" - ").and_then(|(_, rest)| rest.split(' ').next());
            same && matches!(kind, Some("tmpfs" | "ramfs" | "hugetlbfs" | "devtmpfs"))
        })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const SMAPS: &str = "\
10000-20000 rw-p 00000000 00:00 0 
KernelPageSize:        4 kB
VmFlags: rd wr mr mw me ac
20000-30000 rw-s 00000000 00:01 2051                     /dev/zero (deleted)
KernelPageSize:        4 kB
VmFlags: rd wr sh mr mw me ms
30000-40000 rw-s 00000000 fe:01 77                       /data/ram file
KernelPageSize:        4 kB
VmFlags: rd wr
40000-50000 rw-p 00000000 fe:01 77                       /data/ram
VmFlags: rd wr
50000-60000 r--s 00000000 00:17 5                        /dev/shm/x
VmFlags: rd
60000-70000 rw-s 00000000 00:17 5                        /dev/shm/x
VmFlags: rd wr lo
70000-80000 rw-s 00000000 00:17 5                        /dev/shm/x
VmFlags: rd wr
80000-90000 rw-s 00000000 00:01 0                        /SYSV00000000 (deleted)
VmFlags: rd wr sh mr mw me ms
200000-600000 rw-s 00000000 00:0f 9                      /anon_hugepage (deleted)
KernelPageSize:     2048 kB
VmFlags: rd wr ht
";
    const MOUNTS: &str = "\
20 1 254:1 / / rw,relatime - ext4 /dev/vda rw
22 20 0:23 / /dev/shm rw,nosuid shared:4 - tmpfs tmpfs rw
";

    fn look(range: Range<usize>) -> Result<(Nature, usize)> {
        judge(&parse(&mut SMAPS.as_bytes(), &range).unwrap(), &range, MOUNTS)
    }

    #[test]
    fn kinds_are_told_apart() {
        assert_eq!(look(0x11000..0x20000).unwrap(), (Nature::Private, PAGE));
        assert_eq!(look(0x20000..0x30000).unwrap(), (Nature::Shmem, PAGE));
        assert_eq!(look(0x30000..0x40000).unwrap(), (Nature::Disk, PAGE));
        assert_eq!(look(0x70000..0x80000).unwrap(), (Nature::Shmem, PAGE));
        assert_eq!(look(0x80000..0x90000).unwrap(), (Nature::Shmem, PAGE));
        assert_eq!(look(0x20_0000..0x40_0000).unwrap(), (Nature::Shmem, 2 << 20));
    }

    #[test]
    fn refusals_say_why() {
        for (range, word) in [
            (0x40000..0x50000, "private map of /data/ram"),
            (0x50000..0x60000, "read-only"),
            (0x60000..0x70000, "locked"),
            (0x10000..0x30000, "different kinds"),
            (0x80000..0xa0000, "no memory is mapped at 0x90000"),
            (0x90000..0xa0000, "no memory is mapped at 0x90000"),
            (0x20_1000..0x40_0000, "huge pages"),
        ] {
            let error = look(range).unwrap_err();
            assert_eq!(error.kind, ErrorKind::BadBlock);
            assert!(error.message.contains(word), "{} does not say {word:?}", error.message);
        }
    }

    #[test]
    fn alignment_is_asked_for_with_the_remedy() {
        let mut bytes = vec![0_u8; 3 * PAGE];
        let base = bytes.as_mut_ptr();
        for (shift, len) in [(8, PAGE), (0, 0), (0, 100)] {
            let aligned = base.wrapping_add(base.align_offset(PAGE));
            // SAFETY: refused before anything is touched.
            let error = unsafe { adopt(aligned.wrapping_add(shift), len) }.unwrap_err();
            assert!(error.kind == ErrorKind::BadBlock && error.message.contains("mmap.mmap(-1, size)"));
        }
    }
}
