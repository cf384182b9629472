//! Live traffic beside the crowd's: a steady stream of datagrams with their numbers, each way timed, and pings.

use std::net::{SocketAddrV4, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};

use crate::figures::Samples;
use crate::namespace::Namespace;
use crate::ping::Pinger;

const PORT: u16 = 9001;
const PACE: Duration = Duration::from_millis(1);
const PING_PACE: Duration = Duration::from_millis(5);
/// What comes later is lost.
const PATIENCE: Duration = Duration::from_secs(1);
const PAYLOAD_BYTES: usize = 200;

/// Traffic under way.
pub(crate) struct Live {
    begun_at: Instant,
    stop: Arc<AtomicBool>,
    sent: Arc<AtomicU64>,
    threads: Vec<JoinHandle<std::io::Result<Vec<Duration>>>>,
    pinger: Pinger,
}

/// What became of it.
pub struct LiveReport {
    /// Datagrams.
    pub sent: u64,
    pub lost: u64,
    /// One way.
    pub latencies: Samples,
    pub pings: usize,
    pub lost_pings: usize,
    pub round_trips: Samples,
}

impl Live {
    pub(crate) fn start(from: &Namespace, to: (&Namespace, std::net::Ipv4Addr)) -> Result<Self> {
        let target = SocketAddrV4::new(to.1, PORT);
        let sender = from.run(|| UdpSocket::bind(("0.0.0.0", 0)))??;
        let receiver = to.0.run(|| UdpSocket::bind(target))?.context("the stream's end")?;
        receiver.set_read_timeout(Some(PATIENCE))?;
        let begun_at = Instant::now();
        let (stop, sent) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (stop_of_sender, sent_of_sender) = (Arc::clone(&stop), Arc::clone(&sent));
        let threads = vec![
            std::thread::spawn(move || send(&sender, target, begun_at, &stop_of_sender, &sent_of_sender)),
            std::thread::spawn(move || Ok(receive(&receiver, begun_at))),
        ];
        let pinger = Pinger::start("live", from, to.1, PING_PACE)?;
        Ok(Self { begun_at, stop, sent, threads, pinger })
    }

    pub(crate) fn finish(self) -> Result<LiveReport> {
        self.stop.store(true, Ordering::Relaxed);
        let mut latencies = Samples::new("live, one way");
        for thread in self.threads {
            latencies.extend(thread.join().map_err(|_| anyhow!("live traffic panicked"))??);
        }
        let sent = self.sent.load(Ordering::Relaxed);
        let pings = self.pinger.finish().with_context(|| format!("{:?}", self.begun_at.elapsed()))?;
        let mut round_trips = Samples::new("live, pings");
        round_trips.extend(pings.echoes.iter().filter_map(|echo| Some(echo.replied_at? - echo.sent_at)));
        let lost = sent.saturating_sub(latencies.len() as u64);
        Ok(LiveReport { sent, lost, latencies, pings: pings.sent(), lost_pings: pings.lost(), round_trips })
    }
}

/// A datagram says when it left. A machine that stood still is not made up for by a burst.
fn send(
    socket: &UdpSocket,
    to: SocketAddrV4,
    begun_at: Instant,
    stop: &AtomicBool,
    sent: &AtomicU64,
) -> std::io::Result<Vec<Duration>> {
    let mut next = Instant::now();
    while !stop.load(Ordering::Relaxed) {
        let mut payload = [0; PAYLOAD_BYTES];
        let at = begun_at.elapsed().as_nanos() as u64;
        payload[..8].copy_from_slice(&at.to_le_bytes());
        sent.fetch_add(1, Ordering::Relaxed);
        socket.send_to(&payload, to)?;
        next = (next + PACE).max(Instant::now());
        std::thread::sleep(next.saturating_duration_since(Instant::now()));
    }
    Ok(Vec::new())
}

/// Until nothing comes any more.
fn receive(socket: &UdpSocket, begun_at: Instant) -> Vec<Duration> {
    let mut took = Vec::new();
    let mut buffer = [0; PAYLOAD_BYTES];
    while let Ok((_, _)) = socket.recv_from(&mut buffer) {
        let at = buffer[..8].try_into().map(u64::from_le_bytes).unwrap_or_default();
        took.push(begun_at.elapsed().saturating_sub(Duration::from_nanos(at)));
    }
    took
}
