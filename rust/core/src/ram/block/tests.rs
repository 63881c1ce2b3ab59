//! Blocks of every backing, their refusals, and that a load makes no memory exist that reads zero.
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation, clippy::single_range_in_vec_init)]

use proptest::prelude::*;

use super::*;
use crate::ram::PageTarget;

const HUGE: u64 = 2 << 20;

fn with(backing: Backing, size: u64, max: Option<u64>) -> Result<Arc<Block>> {
    Block::new("ram", size, &BlockOptions { backing, max_size: max, ..BlockOptions::default() })
}

fn on(path: &Path, size: u64) -> Result<Arc<Block>> {
    Block::new("ram", size, &BlockOptions { backing: Backing::File, path: Some(path.into()), ..BlockOptions::default() })
}

/// A file of memory that is gone after the test.
#[derive(Debug)]
struct Shm(PathBuf);

impl Shm {
    fn new(name: &str) -> Self {
        Self(PathBuf::from(format!("/dev/shm/qmig-{name}-{}", std::process::id())))
    }
}

impl Drop for Shm {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

fn untouched(block: &Block) -> Vec<std::ops::Range<usize>> {
    let mut map = Bitmap::new(block.pages());
    assert!(block.untouched(&mut map).unwrap());
    map.runs().collect()
}

#[test]
fn a_block_reads_what_was_written() {
    let shm = Shm::new("rw");
    for block in [with(Backing::Anon, HUGE, None).unwrap(), with(Backing::Memfd, HUGE, None).unwrap(), on(&shm.0, HUGE).unwrap()] {
        assert_eq!((block.used_length(), block.max_length(), block.page_size(), block.pages()), (HUGE, HUGE, 4096, 512));
        assert_eq!(block.dirty_log(), DirtyLogKind::WpAsync);
        assert_eq!(block.address() % (2 << 20), 0, "huge pages fit");
        block.write(HUGE - 3, b"end").unwrap();
        let mut back = [0; 5];
        block.read(HUGE - 5, &mut back).unwrap();
        assert_eq!(&back, b"\0\0end");
        assert!(block.is_zero(0, 4096).unwrap() && !block.is_zero(HUGE - 4096, 4096).unwrap());
        block.prefault(4097, 5000).unwrap();
        let range = block.range(4096, 100).unwrap();
        assert!(range.as_ptr().addr() == block.address() + 4096 && range.len() == 100 && !range.is_empty());
        block.fill(0, 10, 7).unwrap();
        block.read(6, &mut back).unwrap();
        assert_eq!(back, [7, 7, 7, 7, 0]);
    }
}

#[test]
fn nothing_outside_is_touched() {
    let block = with(Backing::Anon, 0x2000, Some(0x4000)).unwrap();
    let mut two = [0; 2];
    for (offset, len) in [(0x2000, 1), (0x1fff, 2), (u64::MAX, 1), (0, 0x2001)] {
        let bytes = vec![0; len];
        for error in [
            block.write(offset, &bytes).unwrap_err(),
            block.put_page(offset, &bytes).unwrap_err(),
            block.fill(offset, len, 1).unwrap_err(),
            block.mark_dirty(offset, len).unwrap_err(),
            block.range(offset, len).unwrap_err(),
            block.is_zero(offset, len).unwrap_err(),
            block.prefault(offset, len).unwrap_err(),
            block.discard(offset, len).unwrap_err(),
        ] {
            assert_eq!(error.kind, ErrorKind::InvalidArgument);
            assert!(error.message.contains("outside block \"ram\""), "{error}");
        }
    }
    assert_eq!(block.read(0x1fff, &mut two).unwrap_err().kind, ErrorKind::InvalidArgument);
    block.read(0x2000, &mut []).unwrap();
}

#[test]
fn sizes_and_names_are_checked() {
    for (size, max, word) in
        [(0, None, "positive"), (100, None, "multiples"), (4096, Some(4097), "multiples"), (8192, Some(4096), "less than")]
    {
        let error = with(Backing::Anon, size, max).unwrap_err();
        assert!(error.kind == ErrorKind::BadBlock && error.message.contains(word), "{error}");
    }
    for name in ["", &"x".repeat(256)] {
        assert_eq!(Block::anon(name, 4096).unwrap_err().kind, ErrorKind::InvalidArgument);
    }
    Block::anon(&"x".repeat(255), 4096).unwrap();
    let path = Some(PathBuf::from("/dev/shm/unused"));
    let error = Block::new("ram", 4096, &BlockOptions { path, ..BlockOptions::default() }).unwrap_err();
    assert!(error.message.contains("\"file\" only"));
    for backing in [Backing::File, Backing::Adopted] {
        assert_eq!(with(backing, 4096, None).unwrap_err().kind, ErrorKind::BadBlock);
    }
    let error = with(Backing::Anon, 1 << 62, None).unwrap_err();
    assert!(error.kind == ErrorKind::NoMemory && error.message.contains("cannot map"), "{error}");
}

#[test]
fn huge_pages_come_from_the_pool_or_say_how_to_fill_it() {
    let error = with(Backing::Hugetlb, 4096, None).unwrap_err();
    assert!(error.kind == ErrorKind::BadBlock && error.message.contains("huge page size"), "{error}");
    // More than any machine has reserved.
    let error = with(Backing::Hugetlb, 1 << 44, None).unwrap_err();
    assert!(error.kind == ErrorKind::NoMemory && error.message.contains("sysctl vm.nr_hugepages=8388608"), "{error}");
    let error = with(Backing::Hugetlb, 4096, Some(HUGE)).unwrap_err();
    assert!(matches!(error.kind, ErrorKind::BadBlock | ErrorKind::NoMemory), "{error}");
}

#[test]
fn a_file_keeps_what_it_has_and_is_extended() {
    let shm = Shm::new("file");
    std::fs::write(&shm.0, b"content").unwrap();
    let block = on(&shm.0, 0x3000).unwrap();
    let mut back = [0; 8];
    block.read(0, &mut back).unwrap();
    assert_eq!(&back, b"content\0");
    block.write(0x2000, b"more").unwrap();
    drop(block);
    let bytes = std::fs::read(&shm.0).unwrap();
    assert_eq!((bytes.len(), &bytes[0x2000..0x2004]), (0x3000, &b"more"[..]));
    let error = on(&shm.0, 0x2000).unwrap_err();
    assert!(error.kind == ErrorKind::BadBlock && error.message.contains("0x3000 bytes"), "{error}");
    for path in ["/dev", "/dev/null", "/no/such/directory/ram"] {
        let error = on(Path::new(path), 0x1000).unwrap_err();
        assert!(error.kind == ErrorKind::BadBlock && error.message.contains(path), "{error}");
    }
}

#[test]
fn the_size_changes_below_what_is_reserved() {
    for backing in [Backing::Anon, Backing::Memfd] {
        let block = with(backing, 0x2000, Some(0x4000)).unwrap();
        let address = block.address();
        for size in [0, 0x5000, 0x1001] {
            assert_eq!(block.resize(size).unwrap_err().kind, ErrorKind::BadBlock);
        }
        block.resize(0x4000).unwrap();
        block.write(0x3000, b"gone").unwrap();
        block.resize(0x1000).unwrap();
        assert_eq!(block.read(0x1000, &mut [0]).unwrap_err().kind, ErrorKind::InvalidArgument);
        block.resize(0x4000).unwrap();
        assert!(block.is_zero(0, 0x4000).unwrap() && block.address() == address);
    }
}

#[test]
fn what_was_never_stored_is_known() {
    let shm = Shm::new("holes");
    for block in [with(Backing::Anon, HUGE, None).unwrap(), with(Backing::Memfd, HUGE, None).unwrap(), on(&shm.0, HUGE).unwrap()] {
        // So that one write does not bring a huge page in.
        let block = if block.backing() == Backing::Anon {
            Block::new("ram", HUGE, &BlockOptions { thp: false, ..BlockOptions::default() }).unwrap()
        } else {
            block
        };
        assert_eq!(untouched(&block), [0..512]);
        for page in [0, 5, 6, 511] {
            block.write(page * 4096 + 100, &[1]).unwrap();
        }
        assert_eq!(untouched(&block), [1..5, 7..511]);
        block.discard(5 * 4096, 4096).unwrap();
        assert_eq!(untouched(&block), [1..6, 7..511]);
        block.discard(0, HUGE as usize).unwrap();
        assert_eq!(untouched(&block), [0..512]);
        assert_eq!(block.discard(100, 4096).unwrap_err().kind, ErrorKind::InvalidArgument);
    }
}

#[test]
fn loading_zeros_makes_nothing_exist() {
    let shm = Shm::new("zeros");
    let plain = |backing| BlockOptions { backing, thp: false, ..BlockOptions::default() };
    let anon = Block::new("ram", HUGE, &plain(Backing::Anon)).unwrap();
    for block in [anon, Block::new("ram", HUGE, &plain(Backing::Memfd)).unwrap(), on(&shm.0, HUGE).unwrap()] {
        block.write(8 * 4096, &[5; 4096]).unwrap();
        let target = PageTarget::new(Arc::clone(&block)).unwrap();
        for page in 0..512 {
            target.fill(page * 4096, 0).unwrap();
        }
        assert!(block.is_zero(8 * 4096, 4096).unwrap());
        assert_eq!(untouched(&block), [0..8, 9..512]);
        target.put(20 * 4096, &[3; 4096]).unwrap();
        target.put(20 * 4096, &[4; 4096]).unwrap();
        target.put(21 * 4096, &[4; 4096]).unwrap();
        target.fill(21 * 4096, 0).unwrap();
        target.fill(22 * 4096, 9).unwrap();
        // What the kernel is to fill exists, too.
        let place = target.place(24 * 4096, 2 * 4096).unwrap();
        assert_eq!((place.as_ptr().addr(), place.len()), (block.address() + 24 * 4096, 8192));
        block.put_page(24 * 4096, &[6; 8192]).unwrap();
        target.fill(25 * 4096, 0).unwrap();
        target.settle();
        let mut page = [0; 4096];
        for (index, value) in [(20, 4), (21, 0), (22, 9), (24, 6), (25, 0)] {
            target.block().read(index * 4096, &mut page).unwrap();
            assert_eq!(page, [value; 4096]);
        }
        assert_eq!(untouched(&block), [0..8, 9..20, 23..24, 26..512]);
        for offset in [HUGE, 1 << 40] {
            assert_eq!(target.put(offset, &page).unwrap_err().kind, ErrorKind::InvalidArgument);
            assert_eq!(target.fill(offset, 0).unwrap_err().kind, ErrorKind::InvalidArgument);
            assert_eq!(target.fill(offset, 1).unwrap_err().kind, ErrorKind::InvalidArgument);
            assert_eq!(target.place(offset, 4096).unwrap_err().kind, ErrorKind::InvalidArgument);
        }
    }
}

#[test]
fn loading_zeros_into_memory_that_does_not_tell_what_exists() {
    let mut memory = Mapping::memfd(HUGE as usize, false).unwrap();
    let file = memory.forget_file().unwrap();
    let adopted = BlockOptions { backing: Backing::Adopted, ..BlockOptions::default() };
    let block = Block::over("ram", memory, HUGE, &adopted, false);
    let blocks = || rustix::fs::fstat(&file).unwrap().st_blocks;
    assert!(!block.untouched(&mut Bitmap::new(512)).unwrap());
    block.write(3 * 4096, &[1; 8192]).unwrap();
    // In the file, but not in our page table.
    rustix::io::pwrite(&file, &[2; 4096], 9 * 4096).unwrap();
    assert_eq!(blocks(), 3 * 8);
    let target = PageTarget::new(Arc::clone(&block)).unwrap();
    for page in 0..512 {
        target.fill(page * 4096, 0).unwrap();
    }
    assert!(blocks() <= 3 * 8, "holes stay holes");
    let mut zero = [1; 4096];
    rustix::io::pread(&file, &mut zero, 9 * 4096).unwrap();
    assert!(zero == [0; 4096] && block.is_zero(0, HUGE as usize).unwrap());
}

#[test]
fn the_dirty_bitmap_as_text() {
    let block = Block::anon("ram", 300 * 4096).unwrap();
    assert_eq!(block.dump_dirty(false), "");
    let mut map = Bitmap::new(300);
    map.set_range(256..300);
    map.set(1);
    block.keep_dirty(map);
    let line = |start: &str, bits: String| format!("{start}: {bits}\n");
    let (first, last) = (line("0x00000000", format!(".1{}", ".".repeat(126))), line("0x00100000", "1".repeat(44)));
    assert_eq!(block.dump_dirty(false), format!("{first}{last}"));
    assert_eq!(block.dump_dirty(true), format!("{first}{}", line("0x00080000", ".".repeat(128))));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]
    /// A load in any order gives what a plain array gives, whatever was there before.
    #[test]
    fn a_load_gives_the_last_word(before in prop::collection::vec((0_u64..64, 1_u8..), 0..20), pages in prop::collection::vec((0_u64..64, any::<bool>(), any::<u8>()), 0..100), shared: bool) {
        let block = with(if shared { Backing::Memfd } else { Backing::Anon }, 64 * 4096, None).unwrap();
        let mut model = [0_u8; 64];
        for (page, value) in before {
            block.fill(page * 4096, 4096, value).unwrap();
            model[page as usize] = value;
        }
        let target = PageTarget::new(Arc::clone(&block)).unwrap();
        for (page, raw, value) in pages {
            if raw { target.put(page * 4096, &[value; 4096]).unwrap() } else { target.fill(page * 4096, value).unwrap() }
            model[page as usize] = value;
        }
        target.settle();
        let mut bytes = [0; 4096];
        for (page, value) in model.iter().enumerate() {
            block.read(page as u64 * 4096, &mut bytes).unwrap();
            prop_assert_eq!(bytes, [*value; 4096]);
        }
    }
}
