//! The hand-over between placers, the fault thread and who asks: each page comes, once, and nobody waits in vain.

use std::sync::Arc;

use loom::thread;

use super::{Latency, Memory, Placer, Requester, Requests};
use crate::Result;
use crate::ram::TARGET_PAGE;
use crate::sys::uffd::Fault;

/// What was asked for over one connection. Loom need not know of this lock: it is only taken under the core's.
type Asked = Arc<std::sync::Mutex<Vec<u64>>>;

struct Link(Asked);

impl Requester for Link {
    fn request(&mut self, _block: usize, offset: u64, _len: u32) -> Result<()> {
        self.0.lock().unwrap().push(offset);
        Ok(())
    }
}

fn link(requests: &Requests) -> Asked {
    let asked = Asked::default();
    requests.set_requester(Some(Box::new(Link(Arc::clone(&asked)))));
    asked
}

fn machine() -> Arc<Requests> {
    Requests::new(Memory::new(1), Arc::new(Latency))
}

/// A vCPU touches the page: if it is missing the kernel tells the fault thread.
fn touch(requests: &Requests) -> bool {
    let missing = !requests.memory().touch(0);
    if missing {
        requests.fault(&Fault { address: 0, thread: 1 }, 1).unwrap();
    }
    missing
}

fn bring(requests: &Arc<Requests>) -> bool {
    Placer::new(Arc::clone(requests)).page(0, 0, &[1; TARGET_PAGE]).is_ok()
}

/// However they meet, the page is there and nothing is outstanding.
pub fn fault_or_page() {
    let requests = machine();
    let asked = link(&requests);
    let theirs = Arc::clone(&requests);
    let faults = thread::spawn(move || touch(&theirs));
    assert!(bring(&requests));
    let missing = faults.join().unwrap();
    assert!(requests.memory().touch(0));
    assert_eq!(requests.outstanding(), 0, "counted down once for each time up");
    assert!(asked.lock().unwrap().len() <= usize::from(missing));
}

/// The background and the channel for requested pages: one places it, the other is told.
pub fn two_channels() {
    let requests = machine();
    let _asked = link(&requests);
    let theirs = Arc::clone(&requests);
    let second = thread::spawn(move || bring(&theirs));
    touch(&requests);
    let first = bring(&requests);
    assert!(first != second.join().unwrap(), "placed by one of them");
    assert_eq!(requests.outstanding(), 0);
}

/// Whatever is asked for while the connection is replaced is asked for over the new one, or had come before.
pub fn fault_or_new_link() {
    let requests = machine();
    let _old = link(&requests);
    let theirs = Arc::clone(&requests);
    let faults = thread::spawn(move || touch(&theirs));
    requests.set_requester(None);
    let asked = link(&requests);
    faults.join().unwrap();
    // Twice if the fault was noted before the new connection and sent after: the source has nothing to send the second time.
    assert!((1..=2).contains(&asked.lock().unwrap().len()), "a thread waits, and nobody was asked");
    assert_eq!(requests.outstanding(), 1);
    assert!(bring(&requests));
    assert_eq!(requests.outstanding(), 0);
}

/// The kernel tells of two threads that wait for one page.
pub fn two_faults() {
    let requests = machine();
    let asked = link(&requests);
    let (one, other) = (Arc::clone(&requests), Arc::clone(&requests));
    let faults = [thread::spawn(move || touch(&one)), thread::spawn(move || touch(&other))];
    assert!(bring(&requests));
    for fault in faults {
        fault.join().unwrap();
    }
    assert!(asked.lock().unwrap().len() <= 1, "asked for once");
    assert_eq!(requests.outstanding(), 0);
}
