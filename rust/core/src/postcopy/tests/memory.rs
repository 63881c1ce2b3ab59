//! ADVISE, DISCARD, LISTEN: what is dropped, what is kept, what is refused.

use super::*;

/// Target pages in a host page.
fn ratio(block: &Block) -> usize {
    block.page_size() as usize / TARGET_PAGE
}

#[test]
fn advise_empties_everything() {
    for (kind, block) in kinds("advise_empties_everything", 2 * HUGE) {
        block.fill(0, 2 * HUGE as usize, 7).unwrap();
        let memory = Memory::new(std::slice::from_ref(&block)).unwrap();
        memory.note_received(0, 3);
        memory.prepare().unwrap();
        assert!(block.is_zero(0, 2 * HUGE as usize).unwrap(), "{kind}");
        assert_eq!(memory.received(0).count(), 0, "{kind}");
        assert_eq!((memory.page_sizes(), memory.len(), memory.is_empty()), (block.page_size(), 1, false), "{kind}");
        assert_eq!((memory.index_of(b"ram"), memory.index_of(b"rom")), (Some(0), None), "{kind}");
    }
}

#[test]
fn listen_keeps_what_was_received_and_drops_the_rest() {
    for (kind, block) in kinds("listen_keeps_what_was_received_and_drops_the_rest", 4 * HUGE) {
        let ratio = ratio(&block);
        let rig = Rig::new(std::slice::from_ref(&block), |memory| {
            // Everything exists; every third page was received.
            block.fill(0, 4 * HUGE as usize, 5).unwrap();
            for host in (0..block.pages() / ratio).step_by(3) {
                (host * ratio..(host + 1) * ratio).for_each(|page| memory.note_received(0, page));
            }
        });
        let size = rig.memory.page_size(0);
        assert_eq!(wait(&touch(&block, 3 * size, 3)), [5; 3], "{kind}: received");
        let read = touch(&block, 2 * size + 9, 1);
        assert_eq!(rig.next_request(), (0, 2 * size, size as u32), "{kind}: not received");
        rig.serve(&mut rig.placer(), 0, 2 * size, 9).unwrap();
        assert_eq!(wait(&read), [9], "{kind}");
        assert_eq!(rig.memory.locate(block.address() + 3 * size as usize + 1), Some((0, 3 * size)), "{kind}");
        assert_eq!(rig.memory.locate(block.address() + 4 * HUGE as usize), None, "{kind}");
        assert_eq!(rig.memory.locate(block.address() - 1), None, "{kind}");
    }
}

#[test]
fn a_skipped_zero_page_is_made_here() {
    for (kind, block) in kinds("a_skipped_zero_page_is_made_here", 2 * HUGE) {
        let rig = Rig::new(std::slice::from_ref(&block), |memory| {
            (0..block.pages()).for_each(|page| memory.note_received(0, page));
        });
        let reads: Vec<_> = (0..4).map(|_| touch(&block, HUGE + 5, 2)).collect();
        assert!(reads.iter().all(|read| wait(read) == [0, 0]), "{kind}");
        // A write too, and memory that the guest has given back.
        block.fill(HUGE, 2, 8).unwrap();
        assert_eq!(bytes(&block, HUGE, 3), [8, 8, 0], "{kind}");
        block.discard(HUGE, HUGE as usize).unwrap();
        assert_eq!(wait(&touch(&block, HUGE, 1)), [0], "{kind}");
        assert_eq!((rig.requests.sent(), rig.requests.outstanding()), (0, 0), "{kind}: nobody was asked");
        rig.memory.check_complete().unwrap();
    }
}

#[test]
fn discards_are_checked() {
    for (kind, block) in kinds("discards_are_checked", 2 * HUGE) {
        let memory = Memory::new(std::slice::from_ref(&block)).unwrap();
        let size = block.page_size();
        block.fill(0, 2 * HUGE as usize, 1).unwrap();
        (0..block.pages()).for_each(|page| memory.note_received(0, page));
        memory.discard(0, size, size).unwrap();
        assert!(block.is_zero(size, size as usize).unwrap() && !block.is_zero(0, size as usize).unwrap(), "{kind}");
        let ratio = ratio(&block);
        assert_eq!(memory.received(0).next_clear(0), Some(ratio), "{kind}");
        assert_eq!(memory.received(0).count() as usize, block.pages() - ratio, "{kind}");
        refused(ErrorKind::Truncated, &format!("{ratio} pages never came, the first at {size:#x}"), memory.check_complete());
        for (start, len, words) in [
            (0, 0, "not whole pages"),
            (100, size, "not whole pages"),
            (0, size + PAGE / 2, "not whole pages"),
            (2 * HUGE, size, "outside"),
            (size, 2 * HUGE, "outside"),
            (u64::MAX - size + 1, size, "outside"),
            (size, u64::MAX - size + 1, "outside"),
        ] {
            refused(ErrorKind::BadAddress, words, memory.discard(0, start, len));
        }
        memory.arm().unwrap();
        refused(ErrorKind::InvalidState, "after LISTEN", memory.discard(0, 0, size));
        refused(ErrorKind::InvalidState, "after LISTEN", memory.prepare());
        refused(ErrorKind::InvalidState, "after LISTEN", memory.arm());
    }
}

#[test]
fn a_huge_page_received_in_part_is_refused() {
    let Some(block) = huge(2) else { return skip("a_huge_page_received_in_part_is_refused", "no huge pages") };
    for page in [0, 300, 511] {
        let memory = Memory::new(std::slice::from_ref(&block)).unwrap();
        memory.note_received(0, 512 + page);
        refused(ErrorKind::BadCommand, "at 0x200000 was received in part only", memory.arm());
    }
    // And nothing was left behind by that.
    Memory::new(std::slice::from_ref(&block)).unwrap().arm().unwrap();
}

#[test]
fn a_watched_block_keeps_its_size_and_has_no_other_watcher() {
    let options = BlockOptions { max_size: Some(2 * HUGE), ..BlockOptions::default() };
    let block = Block::new("ram", HUGE, &options).unwrap();
    let memory = Memory::new(std::slice::from_ref(&block)).unwrap();
    block.resize(2 * HUGE).unwrap();
    memory.arm().unwrap();
    assert_eq!(memory.received(0).len(), 1024, "as it was at LISTEN");
    refused(ErrorKind::InvalidState, "during a migration", block.resize(HUGE));
    let other = Memory::new(std::slice::from_ref(&block)).unwrap();
    refused(ErrorKind::InvalidState, "already", other.arm());
    memory.disarm();
    memory.disarm();
    refused(ErrorKind::InvalidState, "not watched", memory.uffd());
    block.resize(HUGE).unwrap();
    other.arm().unwrap();
    drop(other);
    crate::ram::dirty::open(&block, crate::ram::DirtyMode::Auto).unwrap().start(&mut crate::ram::Bitmap::new(512)).unwrap();
}

#[test]
fn disarming_lets_everybody_go() {
    for (kind, block) in kinds("disarming_lets_everybody_go", 2 * HUGE) {
        let rig = Rig::new(std::slice::from_ref(&block), |_| {});
        let read = touch(&block, HUGE, 1);
        rig.next_request();
        let mut placer = rig.placer();
        rig.memory.disarm();
        assert_eq!(wait(&read), [0], "{kind}");
        refused(ErrorKind::InvalidState, "not watched", rig.serve(&mut placer, 0, 0, 1));
        // The right to place it was given back.
        refused(ErrorKind::InvalidState, "not watched", rig.serve(&mut placer, 0, 0, 1));
        rig.faults.stop().unwrap();
        rig.faults.stop().unwrap();
    }
}

#[test]
fn a_file_on_disk_is_refused_with_the_remedy() {
    let path = std::path::PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(format!("../../target/postcopy-disk-{}", std::process::id()));
    let options = BlockOptions { backing: Backing::File, path: Some(path.clone()), ..BlockOptions::default() };
    let made = Block::new("ram", HUGE, &options).map(|block| support(&[block]));
    std::fs::remove_file(path).unwrap();
    refused(ErrorKind::NotPermitted, "put the file on tmpfs", made.unwrap());
}

#[test]
fn a_file_in_memory_will_do() {
    let path = std::path::PathBuf::from(format!("/dev/shm/qmig-postcopy-{}", std::process::id()));
    let options = BlockOptions { backing: Backing::File, path: Some(path.clone()), ..BlockOptions::default() };
    let block = Block::new("ram", HUGE, &options);
    std::fs::remove_file(path).unwrap();
    let block = block.unwrap();
    let rig = Rig::new(std::slice::from_ref(&block), |_| block.fill(0, HUGE as usize, 1).unwrap());
    let read = touch(&block, PAGE, 1);
    assert_eq!(rig.next_request(), (0, PAGE, 4096));
    rig.serve(&mut rig.placer(), 0, PAGE, 2).unwrap();
    assert_eq!(wait(&read), [2]);
}

#[test]
fn several_blocks_are_told_apart() {
    let blocks = [block("a", HUGE, Backing::Anon, true), block("b", 2 * HUGE, Backing::Memfd, true), block("c", PAGE, Backing::Anon, true)];
    let rig = Rig::new(&blocks, |_| {});
    let mut placer = rig.placer();
    for (index, block) in blocks.iter().enumerate().rev() {
        let last = block.used_length() - PAGE;
        let read = touch(block, last + 1, 1);
        assert_eq!(rig.next_request(), (index, last, 4096));
        placer.page(index, last, &[index as u8 + 1; TARGET_PAGE]).unwrap();
        assert_eq!(wait(&read), [index as u8 + 1]);
        assert_eq!(rig.memory.received(index).count(), 1);
    }
}

#[test]
fn the_kernel_waits_as_well() {
    let block = block("ram", HUGE, Backing::Anon, true);
    let rig = Rig::new(std::slice::from_ref(&block), |_| {});
    if rig.memory.uffd().unwrap().faults() != crate::sys::uffd::Faults::All {
        return skip("the_kernel_waits_as_well", "this process may not see the kernel's faults");
    }
    let (done, in_there) = channel();
    let prefaulted = Arc::clone(&block);
    std::thread::spawn(move || done.send(prefaulted.prefault(PAGE, TARGET_PAGE)));
    assert_eq!(rig.next_request(), (0, PAGE, 4096));
    rig.serve(&mut rig.placer(), 0, PAGE, 3).unwrap();
    wait(&in_there).unwrap();
    assert_eq!(bytes(&block, PAGE, 1), [3]);
}

/// The `VmFlags` of the map that holds an address.
fn flags(address: usize) -> String {
    let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
    let mut inside = false;
    for line in smaps.lines() {
        let range = line.split(' ').next().and_then(|range| range.split_once('-'));
        if let Some((Ok(start), Ok(end))) = range.map(|(a, b)| (usize::from_str_radix(a, 16), usize::from_str_radix(b, 16))) {
            inside = (start..end).contains(&address);
        } else if let (true, Some(flags)) = (inside, line.strip_prefix("VmFlags:")) {
            return format!("{flags} ");
        }
    }
    panic!("{address:#x} is not mapped");
}

#[test]
fn huge_pages_pause_meanwhile() {
    for (thp, after) in [(true, " hg "), (false, " nh ")] {
        let block = block("ram", 2 * HUGE, Backing::Anon, thp);
        let memory = Memory::new(std::slice::from_ref(&block)).unwrap();
        memory.arm().unwrap();
        assert!(flags(block.address()).contains(" nh ") && flags(block.address()).contains(" um "), "{}", flags(block.address()));
        drop(memory);
        assert!(flags(block.address()).contains(after) && !flags(block.address()).contains(" um "), "{}", flags(block.address()));
    }
}
