//! Programs that talk through tunnels, over IPv4 or IPv6: one that says something every few milliseconds by UDP or over one TCP connection, and the echo at the other end.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::namespace::Namespace;
use crate::wait::wait_until;

const PACE: Duration = Duration::from_millis(10);
/// How soon a thread that waits sees that it is to end.
const TICK: Duration = Duration::from_millis(100);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const WORD: [u8; 64] = [7; 64];

/// A thread that ends when it is dropped.
struct Task {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

/// Sends everything back, until it is dropped.
pub struct Echo {
    _tasks: [Task; 2],
}

#[derive(Default)]
struct Heard {
    replies: Vec<Instant>,
    broken: Option<std::io::Error>,
}

/// A client, and when answers came.
pub struct Exchange {
    name: &'static str,
    heard: Arc<Mutex<Heard>>,
    _task: Task,
}

impl Task {
    fn start(work: impl FnOnce(&AtomicBool) + Send + 'static) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&stop);
        Self { stop, thread: Some(std::thread::spawn(move || work(&seen))) }
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().ok();
        }
    }
}

impl Echo {
    /// Both protocols at one address, of which answers come, too.
    pub fn start(namespace: &Namespace, at: SocketAddr) -> Result<Self> {
        let datagrams = namespace.run(|| UdpSocket::bind(at))?.context("cannot listen for datagrams")?;
        let listener = namespace.run(|| TcpListener::bind(at))?.context("cannot listen")?;
        datagrams.set_read_timeout(Some(TICK))?;
        listener.set_nonblocking(true)?;
        Ok(Self {
            _tasks: [
                Task::start(move |stop| echo_datagrams(&datagrams, stop)),
                Task::start(move |stop| accept(&listener, stop)),
            ],
        })
    }
}

fn echo_datagrams(socket: &UdpSocket, stop: &AtomicBool) {
    let mut buffer = [0; 256];
    while !stop.load(Ordering::Relaxed) {
        if let Ok((length, from)) = socket.recv_from(&mut buffer) {
            socket.send_to(&buffer[..length], from).ok();
        }
    }
}

fn accept(listener: &TcpListener, stop: &AtomicBool) {
    let mut connections = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        match listener.accept() {
            Ok((stream, _)) => connections.push(Task::start(move |stop| echo_stream(stream, stop))),
            Err(_) => std::thread::sleep(PACE),
        }
    }
}

fn echo_stream(mut stream: TcpStream, stop: &AtomicBool) {
    let mut buffer = [0; 4096];
    if stream.set_nonblocking(false).and_then(|()| stream.set_read_timeout(Some(TICK))).is_err() {
        return;
    }
    while !stop.load(Ordering::Relaxed) {
        match stream.read(&mut buffer) {
            Ok(0) => return,
            Ok(length) if stream.write_all(&buffer[..length]).is_ok() => {}
            Err(error) if is_slow(&error) => {}
            Ok(_) | Err(_) => return,
        }
    }
}

fn is_slow(error: &std::io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted)
}

impl Exchange {
    /// Datagrams, whatever becomes of each.
    pub fn udp(namespace: &Namespace, to: SocketAddr) -> Result<Self> {
        let any: SocketAddr = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" }.parse()?;
        let socket = namespace.run(|| {
            let socket = UdpSocket::bind(any)?;
            socket.connect(to)?;
            socket.set_read_timeout(Some(PACE))?;
            Ok::<_, std::io::Error>(socket)
        })??;
        let mut buffer = [0; 256];
        Ok(Self::start("UDP", move || {
            // What an ICMP message said of an earlier one is no end.
            socket.send(&WORD).ok();
            Ok(socket.recv(&mut buffer).is_ok())
        }))
    }

    /// One connection, which is never made again.
    pub fn tcp(namespace: &Namespace, to: SocketAddr) -> Result<Self> {
        let connect = || TcpStream::connect_timeout(&to, CONNECT_TIMEOUT);
        let mut stream = namespace.run(connect)?.with_context(|| format!("cannot connect to {to}"))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(TICK))?;
        let (mut buffer, mut waits) = ([0; WORD.len()], false);
        Ok(Self::start("TCP", move || {
            if !std::mem::replace(&mut waits, true) {
                stream.write_all(&WORD)?;
            }
            match stream.read(&mut buffer) {
                Ok(0) => Err(ErrorKind::UnexpectedEof.into()),
                Ok(_) => {
                    waits = false;
                    Ok(true)
                }
                Err(error) if is_slow(&error) => Ok(false),
                Err(error) => Err(error),
            }
        }))
    }

    fn start(
        name: &'static str,
        mut step: impl FnMut() -> Result<bool, std::io::Error> + Send + 'static,
    ) -> Self {
        let heard = Arc::new(Mutex::new(Heard::default()));
        let told = Arc::clone(&heard);
        let work = move |stop: &AtomicBool| {
            while !stop.load(Ordering::Relaxed) {
                let answered = step();
                let mut heard = told.lock().unwrap_or_else(PoisonError::into_inner);
                match answered {
                    Ok(true) => heard.replies.push(Instant::now()),
                    Ok(false) => continue,
                    Err(error) => {
                        heard.broken = Some(error);
                        return;
                    }
                }
                drop(heard);
                std::thread::sleep(PACE);
            }
        };
        Self { name, heard, _task: Task::start(work) }
    }

    /// When the first answer after `moment` came.
    ///
    /// # Errors
    /// None came in time, or the connection broke.
    pub fn reply_after(&self, moment: Instant, timeout: Duration) -> Result<Instant> {
        wait_until(&format!("an answer over {}", self.name), timeout, || {
            let heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(error) = &heard.broken {
                bail!("the {} exchange broke: {error}", self.name);
            }
            Ok(heard.replies.iter().find(|at| **at > moment).copied())
        })
    }
}
