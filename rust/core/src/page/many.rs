//! Many pages at a time through the workers that a migration has, for experiments.

use super::pool::{Pool, Taken};
use crate::wire::consts::PAGE_BYTES;
use crate::wire::limits::COMPRESSED_PAGE_MAX;
use crate::{Error, ErrorKind, Result};

/// Threads that compress and threads that decompress, each from its first use on.
#[derive(Debug)]
pub struct CompressPool {
    threads: usize,
    level: i32,
    deflate: Option<Pool<usize>>,
    inflate: Option<Pool<usize>>,
}

impl CompressPool {
    /// `threads` of either kind, 1 to 255; `level` of zlib, 0 to 9.
    ///
    /// # Errors
    /// `invalid-argument`: another number of either.
    pub fn new(threads: usize, level: i32) -> Result<Self> {
        let refused = |text: String| Err(Error::new(ErrorKind::InvalidArgument, text));
        if !(1..=255).contains(&threads) {
            return refused(format!("{threads} threads: 1 to 255 can be had"));
        }
        if !(0..=9).contains(&level) {
            return refused(format!("level {level}: zlib has 0 to 9"));
        }
        Ok(Self { threads, level, deflate: None, inflate: None })
    }

    /// How `count` pages travel: a zero page as nothing, one that does not shrink as its 4096 bytes, any other as a zlib stream. `zero`
    /// says of a page whether it is zero, and `read` copies it.
    pub fn compress(&mut self, count: usize, zero: impl Fn(usize) -> bool, read: impl Fn(usize, &mut [u8])) -> Result<Vec<Vec<u8>>> {
        let pool = started(&mut self.deflate, || Pool::deflate(self.threads, self.level))?;
        let found = compress(pool, count, zero, read);
        if found.is_err() {
            self.deflate = None; // with what is still under way
        }
        found
    }

    /// The pages that travelled as `packed` says, into `out`, which has room for just them.
    ///
    /// # Errors
    /// `bad-page` with its number: a page that is no such form of one.
    pub fn decompress(&mut self, packed: &[Vec<u8>], out: &mut [u8]) -> Result<()> {
        let pool = started(&mut self.inflate, || Pool::inflate(self.threads))?;
        let done = decompress(pool, packed, out);
        if done.is_err() {
            self.inflate = None;
        }
        done
    }
}

fn compress(pool: &mut Pool<usize>, count: usize, zero: impl Fn(usize) -> bool, read: impl Fn(usize, &mut [u8])) -> Result<Vec<Vec<u8>>> {
    let mut found = vec![Vec::new(); count];
    let mut keep = |page: usize, taken: Taken<'_>| match taken {
        Taken::Packed(bytes) | Taken::Page(bytes) => {
            found[page] = bytes.to_vec();
            Ok(())
        }
        Taken::Bad(error) => Err(error),
    };
    for page in (0..count).filter(|page| !zero(*page)) {
        while !pool.room() {
            collect(pool, &mut keep)?;
        }
        pool.put_page(page, |room| {
            read(page, room);
            Ok(())
        })?;
    }
    finish(pool, keep)?;
    Ok(found)
}

fn decompress(pool: &mut Pool<usize>, packed: &[Vec<u8>], out: &mut [u8]) -> Result<()> {
    let mut failed: Option<(usize, Error)> = None;
    let mut keep = |page: usize, taken: Taken<'_>| {
        match taken {
            Taken::Packed(bytes) | Taken::Page(bytes) => out[page * PAGE_BYTES..][..PAGE_BYTES].copy_from_slice(bytes),
            Taken::Bad(error) if failed.as_ref().is_none_or(|(first, _)| page < *first) => failed = Some((page, error)),
            Taken::Bad(_) => {}
        }
        Ok(())
    };
    for (page, bytes) in packed.iter().enumerate() {
        match bytes.len() {
            0 => keep(page, Taken::Page(&[0; PAGE_BYTES]))?,
            PAGE_BYTES => keep(page, Taken::Page(bytes))?,
            length if length > COMPRESSED_PAGE_MAX as usize => {
                let text = format!("{length} bytes; {COMPRESSED_PAGE_MAX} are accepted (COMPRESSED_PAGE_MAX)");
                keep(page, Taken::Bad(Error::new(ErrorKind::BadPage, text)))?;
            }
            _ => {
                while !pool.room() {
                    collect(pool, &mut keep)?;
                }
                pool.put_packed(page, bytes);
            }
        }
    }
    finish(pool, keep)?;
    failed.map_or(Ok(()), |(page, error)| Err(error.within(&format!("page {page}"))))
}

fn started(pool: &mut Option<Pool<usize>>, start: impl FnOnce() -> Result<Pool<usize>>) -> Result<&mut Pool<usize>> {
    match pool {
        Some(pool) => Ok(pool),
        none => Ok(none.insert(start()?)),
    }
}

/// The next batch that is done; false if none is under way.
fn collect(pool: &mut Pool<usize>, keep: &mut impl FnMut(usize, Taken<'_>) -> Result<()>) -> Result<bool> {
    let Some(batch) = pool.taken(true)? else { return Ok(false) };
    let kept = batch.pages().try_for_each(|(page, taken)| keep(page, taken));
    pool.give_back(batch);
    kept.map(|()| true)
}

fn finish(pool: &mut Pool<usize>, mut keep: impl FnMut(usize, Taken<'_>) -> Result<()>) -> Result<()> {
    pool.flush();
    while collect(pool, &mut keep)? {}
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn after_an_error_nothing_is_left_of_the_pages_before() {
        let page = |number: usize| [u8::try_from(number + 1).unwrap(); PAGE_BYTES];
        let read = |number: usize, room: &mut [u8]| room.copy_from_slice(&page(number));
        let mut pool = CompressPool::new(2, 1).unwrap();
        // More than the workers' batches hold, and less.
        for count in [100, 3] {
            let packed = pool.compress(count, |_| false, read).unwrap();
            let mut out = vec![0; count * PAGE_BYTES];
            pool.decompress(&packed, &mut out).unwrap();

            pool.deflate.as_mut().unwrap().break_down();
            let error = pool.compress(count, |_| false, |_, room| room.fill(0xee)).unwrap_err();
            assert_eq!(error.kind, ErrorKind::InvalidState, "{error}");
            pool.inflate.as_mut().unwrap().break_down();
            assert_eq!(pool.decompress(&packed, &mut out).unwrap_err().kind, ErrorKind::InvalidState);

            // Others do it now, and have none of that.
            assert!(pool.compress(count, |_| false, read).unwrap() == packed);
            out.fill(0);
            pool.decompress(&packed, &mut out).unwrap();
            assert!((0..count).all(|number| out[number * PAGE_BYTES..][..PAGE_BYTES] == page(number)));
        }
    }
}
