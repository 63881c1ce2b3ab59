//! A relay that is a link of a given speed and length: bytes leave it as fast as its bandwidth lets them, and arrive a delay later.
//!
//! All connections through it share the bandwidth, each way its own; what they send is served in pieces of at most a millisecond in
//! the order of its coming. What waits for the link waits where it would with a real one: at the sender, in small buffers. Bytes
//! under way are not limited, so a window that is too small for the length never shows. Two threads a connection and way.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::num::NonZeroU64;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::net::sockopt;

use crate::{Error, Result};

/// The largest piece; with a bandwidth, what passes in a millisecond if that is less.
const PIECE: usize = 64 << 10;
/// The smallest piece: about what one packet carries.
const PACKET: usize = 1460;
/// Pieces under way, each way of each connection.
const UNDER_WAY: usize = 4096;
/// Receive buffer, where bytes wait for the link.
const WAITING: usize = 64 << 10;
/// The link may be late by this much and catch up: a thread sleeps longer than it wants to.
const CATCH_UP: Duration = Duration::from_millis(1);
/// Shorter waits are not worth a sleep.
const NO_WAIT: Duration = Duration::from_micros(2);

/// What a link is like; zero in both: only a relay.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Link {
    /// From one end to the other.
    pub delay: Duration,
    /// Bits a second, each way; 0: no limit.
    pub bits_per_second: u64,
}

impl Link {
    fn transmission(&self, bytes: usize) -> Duration {
        match self.bits_per_second {
            0 => Duration::ZERO,
            rate => Duration::from_nanos(u64::try_from(bytes as u128 * 8_000_000_000 / u128::from(rate)).unwrap_or(u64::MAX)),
        }
    }

    fn piece(&self) -> usize {
        match self.bits_per_second {
            0 => PIECE,
            rate => usize::try_from(rate / 8000).unwrap_or(PIECE).clamp(PACKET, PIECE),
        }
    }
}

/// One way of the link: when it will be free.
#[derive(Debug)]
struct Way {
    link: Link,
    free: Mutex<Instant>,
}

impl Way {
    /// When the last of `bytes` that are here now has been sent.
    fn send(&self, bytes: usize) -> Instant {
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        *free = (*free).max(now.checked_sub(CATCH_UP).unwrap_or(now)) + self.link.transmission(bytes);
        // Catching up makes the link no shorter.
        (*free).max(now)
    }
}

/// What the threads share.
#[derive(Debug)]
struct Shared {
    target: SocketAddr,
    over: AtomicBool,
    forth: Arc<Way>,
    back: Arc<Way>,
    sockets: Mutex<Vec<TcpStream>>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

/// A listening relay.
#[derive(Debug)]
pub struct Shaper {
    address: SocketAddr,
    shared: Arc<Shared>,
    accepting: Mutex<Option<JoinHandle<()>>>,
}

fn wait_until(moment: Instant) {
    let left = moment.saturating_duration_since(Instant::now());
    if left > NO_WAIT {
        std::thread::sleep(left);
    }
}

impl Shaper {
    /// Listens on a free port of 127.0.0.1 and relays every connection to `target`.
    pub fn new(target: SocketAddr, link: Link) -> Result<Self> {
        let io = |error| Error::io("a relay on 127.0.0.1", error);
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).map_err(io)?;
        // Inherited by what it accepts.
        sockopt::set_socket_recv_buffer_size(&listener, WAITING).map_err(|error| io(error.into()))?;
        let address = listener.local_addr().map_err(io)?;
        let way = || Arc::new(Way { link, free: Mutex::new(Instant::now()) });
        let shared = Arc::new(Shared {
            target,
            over: AtomicBool::new(false),
            forth: way(),
            back: way(),
            sockets: Mutex::default(),
            threads: Mutex::default(),
        });
        let own = Arc::clone(&shared);
        let accepting = std::thread::Builder::new().name("shaper".into()).spawn(move || accept(&listener, &own)).map_err(io)?;
        Ok(Self { address, shared, accepting: Mutex::new(Some(accepting)) })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Cuts every connection and ends the threads. Nothing if that was done.
    pub fn close(&self) {
        self.shared.over.store(true, Ordering::Release);
        let Some(accepting) = self.accepting.lock().unwrap_or_else(PoisonError::into_inner).take() else { return };
        let _ = TcpStream::connect(self.address); // wakes it
        let _ = accepting.join();
        for socket in self.shared.sockets.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            let _ = socket.shutdown(Shutdown::Both);
        }
        let threads = std::mem::take(&mut *self.shared.threads.lock().unwrap_or_else(PoisonError::into_inner));
        for thread in threads {
            let _ = thread.join();
        }
    }
}

impl Drop for Shaper {
    fn drop(&mut self) {
        self.close();
    }
}

fn accept(listener: &TcpListener, shared: &Arc<Shared>) {
    while let Ok((near, _)) = listener.accept() {
        if shared.over.load(Ordering::Acquire) {
            return;
        }
        // Whoever connected sees the refusal as a connection that ends.
        let _ = relay(near, shared);
    }
}

fn relay(near: TcpStream, shared: &Arc<Shared>) -> std::io::Result<()> {
    let far = TcpStream::connect(shared.target)?;
    sockopt::set_socket_recv_buffer_size(&far, WAITING)?;
    for socket in [&near, &far] {
        socket.set_nodelay(true)?;
    }
    let mut threads = Vec::new();
    for (from, to, way) in [(&near, &far, &shared.forth), (&far, &near, &shared.back)] {
        let (send, receive) = sync_channel(UNDER_WAY);
        let (from, to, way) = (from.try_clone()?, to.try_clone()?, Arc::clone(way));
        let delay = way.link.delay;
        threads.push(std::thread::Builder::new().name("shaper-in".into()).spawn(move || take_in(from, &way, &send))?);
        threads.push(std::thread::Builder::new().name("shaper-out".into()).spawn(move || give_out(to, delay, &receive))?);
    }
    shared.sockets.lock().unwrap_or_else(PoisonError::into_inner).extend([near, far]);
    shared.threads.lock().unwrap_or_else(PoisonError::into_inner).extend(threads);
    Ok(())
}

/// Waits in this thread are exact to a few microseconds, not to the usual fifty.
fn sleep_exactly() {
    let _ = rustix::thread::set_current_timer_slack(NonZeroU64::new(1));
}

fn take_in(mut from: TcpStream, way: &Way, under_way: &SyncSender<(Instant, Vec<u8>)>) {
    sleep_exactly();
    let mut buffer = vec![0; way.link.piece()];
    while let Ok(got @ 1..) = from.read(&mut buffer) {
        let sent = way.send(got);
        if under_way.send((sent, buffer[..got].to_vec())).is_err() {
            break;
        }
        // The next piece stays where it is until this one has left.
        wait_until(sent);
    }
    let _ = from.shutdown(Shutdown::Read);
}

fn give_out(mut to: TcpStream, delay: Duration, receive: &Receiver<(Instant, Vec<u8>)>) {
    sleep_exactly();
    while let Ok((sent, bytes)) = receive.recv() {
        wait_until(sent + delay);
        if to.write_all(&bytes).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Write);
}
