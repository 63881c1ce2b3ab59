//! The bare limit that benchmarks stand beside: pages framed as on the wire, from one process to another over TCP loopback.
//!
//! ```text
//! bare_loop [--size BYTES] [--prefault-destination yes|no] [--backing anon|memfd] [--socket-buffers BYTES]
//! ```
//!
//! The sender is this process: 512 records of 8 + 4096 bytes a call, straight from memory that was filled with random bytes.
//! The receiver is a second process of the same program: it receives into a buffer of 1 MiB and copies each page to where its
//! header says, checked. No protocol, no dirty log, no zero test: what a migration adds shows as the difference. Prints one
//! line of JSON: `seconds` from the first send until the receiver has placed the last page, and `cpu_seconds` of both
//! processes in that time. Memory is made as RAM blocks are (huge pages asked for); sockets get the buffers that channels
//! between processes of one machine have (`--socket-buffers 0` leaves their sizes to the kernel).

use std::error::Error;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use qmig_core::sys::io::{IoVec, send};
use qmig_core::sys::mmap::Mapping;
use rustix::net::sockopt;

const PAGE: usize = 4096;
const RECORDS: usize = 512;
const FLAGS: u64 = 0x28; // a page, of the same block as the one before
const BUFFER: usize = 1 << 20;

struct Options {
    size: usize,
    prefault: bool,
    backing: String,
    socket_buffers: usize,
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut options = Options { size: 1 << 30, prefault: true, backing: "anon".into(), socket_buffers: 1 << 20 };
    let mut receive_from = None;
    let mut arguments = std::env::args().skip(1);
    while let Some(name) = arguments.next() {
        let value = arguments.next().ok_or_else(|| format!("{name} needs a value"))?;
        match name.as_str() {
            "--size" => options.size = value.parse()?,
            "--prefault-destination" => options.prefault = value == "yes",
            "--backing" => options.backing = value,
            "--socket-buffers" => options.socket_buffers = value.parse()?,
            "--receive-from" => receive_from = Some(value),
            _ => return Err(format!("unknown option {name}").into()),
        }
    }
    if options.size == 0 || !options.size.is_multiple_of(PAGE) {
        return Err("--size is a multiple of 4096".into());
    }
    match receive_from {
        Some(address) => receive(&options, &address),
        None => both(&options),
    }
}

fn both(options: &Options) -> Result<(), Box<dyn Error>> {
    let memory = map(options)?;
    fill(&memory, options.size);
    let listener = TcpListener::bind(("127.0.0.1", 0))?;
    let mut receiver = Command::new(std::env::current_exe()?)
        .args(["--receive-from", &listener.local_addr()?.to_string()])
        .args(["--size", &options.size.to_string(), "--backing", &options.backing])
        .args(["--prefault-destination", if options.prefault { "yes" } else { "no" }])
        .args(["--socket-buffers", &options.socket_buffers.to_string()])
        .stdin(Stdio::null())
        .spawn()?;
    let (mut socket, _) = listener.accept()?; // the receiver connects when its memory is ready
    prepare(&socket, options)?;
    let (start, cpu) = (Instant::now(), cpu_time());
    send_all(&socket, &memory, options.size)?;
    let mut receiver_cpu = [0; 8];
    socket.read_exact(&mut receiver_cpu)?;
    let seconds = start.elapsed().as_secs_f64();
    let cpu_seconds = cpu_time() - cpu + f64::from_be_bytes(receiver_cpu);
    if !receiver.wait()?.success() {
        return Err("the receiver failed".into());
    }
    writeln!(std::io::stdout(), "{}", serde_json::json!({"seconds": seconds, "cpu_seconds": cpu_seconds}))?;
    Ok(())
}

fn send_all(socket: &TcpStream, memory: &Mapping, size: usize) -> Result<(), Box<dyn Error>> {
    let view = memory.view();
    let mut at = 0;
    while at < size {
        let pages: Vec<usize> = (at..size).step_by(PAGE).take(RECORDS).collect();
        let headers: Vec<[u8; 8]> = pages.iter().map(|&page| (page as u64 | FLAGS).to_be_bytes()).collect();
        let mut records: Vec<_> = headers
            .iter()
            .zip(&pages)
            .flat_map(|(header, &page)| [IoVec::from_slice(header), IoVec::from_guest(view.range(page, PAGE))])
            .collect();
        let mut next = 0;
        while next < records.len() {
            let mut sent = send(socket.as_fd(), &records[next..], true)?;
            while next < records.len() && sent >= records[next].len() {
                sent -= records[next].len();
                next += 1;
            }
            if sent > 0 {
                records[next] = records[next].after(sent); // cut short by a signal
            }
        }
        at += pages.len() * PAGE;
    }
    Ok(())
}

fn receive(options: &Options, address: &str) -> Result<(), Box<dyn Error>> {
    let memory = map(options)?;
    if options.prefault {
        memory.populate(0, options.size, true)?;
    }
    let view = memory.view();
    let mut socket = TcpStream::connect(address)?;
    prepare(&socket, options)?;
    let cpu = cpu_time();
    let mut buffer = vec![0; BUFFER];
    let (mut start, mut end) = (0, 0);
    for _ in 0..options.size / PAGE {
        let mut header = [0; 8];
        let mut done = 0;
        while done < header.len() {
            if start == end {
                (start, end) = (0, fill_buffer(&mut socket, &mut buffer)?);
            }
            let part = (end - start).min(header.len() - done);
            header[done..done + part].copy_from_slice(&buffer[start..start + part]);
            (start, done) = (start + part, done + part);
        }
        let word = u64::from_be_bytes(header);
        let page = usize::try_from(word & !0xfff)?;
        if word & 0xfff != FLAGS || page >= options.size {
            return Err(format!("bad record {word:#x}").into());
        }
        done = 0;
        while done < PAGE {
            if start == end {
                (start, end) = (0, fill_buffer(&mut socket, &mut buffer)?);
            }
            let part = (end - start).min(PAGE - done);
            view.write(page + done, &buffer[start..start + part]);
            (start, done) = (start + part, done + part);
        }
    }
    socket.write_all(&(cpu_time() - cpu).to_be_bytes())?;
    Ok(())
}

fn fill_buffer(socket: &mut TcpStream, buffer: &mut [u8]) -> Result<usize, Box<dyn Error>> {
    match socket.read(buffer)? {
        0 => Err("the sender has gone".into()),
        got => Ok(got),
    }
}

fn prepare(socket: &TcpStream, options: &Options) -> Result<(), Box<dyn Error>> {
    socket.set_nodelay(true)?;
    if options.socket_buffers > 0 {
        sockopt::set_socket_send_buffer_size(socket, options.socket_buffers)?;
        sockopt::set_socket_recv_buffer_size(socket, options.socket_buffers)?;
    }
    Ok(())
}

fn map(options: &Options) -> Result<Mapping, Box<dyn Error>> {
    match options.backing.as_str() {
        "anon" => Ok(Mapping::anon(options.size, true)?),
        "memfd" => Ok(Mapping::memfd(options.size, true)?),
        other => Err(format!("unknown backing {other}: anon or memfd").into()),
    }
}

/// Random bytes, so that nothing on the way can be clever about them.
fn fill(memory: &Mapping, size: usize) {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut page = [0; PAGE];
    for offset in (0..size).step_by(PAGE) {
        for word in page.chunks_exact_mut(8) {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            word.copy_from_slice(&state.to_le_bytes());
        }
        memory.view().write(offset, &page);
    }
}

fn cpu_time() -> f64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::try_from(time).unwrap_or_default().as_secs_f64()
}
