//! Interfaces of every MTU that IP knows, over cables of 1500 bytes and both families outside; both families inside where
//! the MTU lets IPv6 be. What comes back is compared byte for byte.
//!
//! ```text
//!   left  203.0.113.1, 2001:db8::1 ─┐ switch     inside: left 10.77.0.1, fd77::1
//!   right 203.0.113.2, 2001:db8::2 ─┘                    right 10.77.0.2, fd77::2, where both are echoed
//! ```

use std::io::{Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use netns_tests::figures::ms;
use netns_tests::namespace::Namespace;
use netns_tests::scenario::Scenario;

use super::wg::{Node, TIMEOUT, nodes};

/// The least that IPv4 and IPv6 know, what is usual, jumbo frames, and the most.
const MTUS: [usize; 7] = [576, 1280, 1420, 9000, 32_000, 65_000, 65_535];
const MIN_IPV6_MTU: usize = 1280;
/// The largest payload of a UDP datagram over IPv4; over IPv6 a little more would do.
const MAX_UDP: usize = 65_507;
const TCP_BYTES: usize = 2_000_000;
/// A datagram may be lost where the system has no room for it, or learns the way's MTU by it.
const UDP_ATTEMPTS: usize = 20;
const UDP_TIMEOUT: Duration = Duration::from_millis(300);
const ECHO_PORT: u16 = 4000;

/// Datagrams and streams of all sizes come back as they were, whatever the interface's MTU, which changes meanwhile.
pub(crate) fn every_mtu_carries_everything(s: &mut Scenario) -> Result<()> {
    let (nodes, _switch) = nodes(s, "wgu", 2)?;
    let [left, right] = &nodes[..] else { bail!("two") };
    let addresses = ["10.77.0.2", "fd77::2"].map(str::parse::<IpAddr>);
    let [v4, v6] = addresses;
    for (node, other, number) in [(left, right, 2), (right, left, 1)] {
        let endpoint = format!("endpoint 203.0.113.{number}:51820");
        node.peer(other, &format!("allowed-ips {}/32,fd77::{number}/128 {endpoint}", other.inner()))?;
    }
    left.reaches(&right.inner())?;
    let _echo = Echo::start(&right.device.host.namespace)?;
    for endpoint in ["203.0.113.2:51820", "[2001:db8::2]:51820"] {
        left.peer(right, &format!("endpoint {endpoint}"))?;
        for mtu in MTUS {
            let began_at = Instant::now();
            let families = set_mtu([left, right], mtu)?;
            for address in [v4.clone()?, v6.clone()?].into_iter().take(families) {
                let what = || format!("{address} over {endpoint} with an MTU of {mtu}");
                let namespace = &left.device.host.namespace;
                namespace.run(|| datagrams(address, mtu))?.with_context(what)?;
                namespace.run(|| stream(address))?.with_context(what)?;
            }
            left.device
                .host
                .namespace
                .tool("ping", &["-q", "-c", "1", "-W", "10", "-s", "60000", "10.77.0.2"])?;
            s.note(format!("MTU {mtu} by {endpoint}: {} families, {}", families, ms(began_at.elapsed())));
        }
    }
    Ok(())
}

/// How many families there are under this MTU. Below its least, the system forgets IPv6 on an interface.
fn set_mtu(nodes: [&Node; 2], mtu: usize) -> Result<usize> {
    for (node, number) in nodes.into_iter().zip(1..) {
        let name = &node.device.name;
        node.ip(&format!("link set {name} mtu {mtu}"))?;
        if mtu >= MIN_IPV6_MTU {
            node.ip(&format!("address replace fd77::{number}/64 dev {name} nodad"))?;
        }
        // What was learned about the way under another MTU.
        node.ip("route flush cache")?;
        node.ip("-6 route flush cache")?;
    }
    Ok(if mtu >= MIN_IPV6_MTU { 2 } else { 1 })
}

/// Bytes that differ wherever they are.
fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at ^ at >> 8 ^ len) as u8).collect()
}

/// Around everything that is split or not; what is larger than the MTU goes as fragments.
fn datagrams(to: IpAddr, mtu: usize) -> Result<()> {
    let headers = if to.is_ipv4() { 28 } else { 48 };
    let most = if to.is_ipv4() { MAX_UDP } else { MAX_UDP - 20 };
    let full = mtu - headers;
    let sizes =
        [0, 1, 15, 16, 17, full - 17, full - 16, full - 1, full, full + 1, 3 * mtu, 20_000, 60_000, most];
    let socket = UdpSocket::bind(if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" })?;
    socket.connect((to, ECHO_PORT))?;
    socket.set_read_timeout(Some(UDP_TIMEOUT))?;
    for size in sizes.into_iter().filter(|size| *size <= most) {
        let sent = pattern(size);
        let came = (0..UDP_ATTEMPTS).any(|_| echoed(&socket, &sent).unwrap_or(false));
        ensure!(came, "a datagram of {size} bytes did not come back as it was");
    }
    Ok(())
}

fn echoed(socket: &UdpSocket, sent: &[u8]) -> Result<bool> {
    socket.send(sent)?;
    let mut buffer = vec![0; 1 << 16];
    loop {
        let len = socket.recv(&mut buffer)?;
        // An answer to an earlier attempt may still come.
        if buffer[..len] == *sent {
            return Ok(true);
        }
    }
}

/// As much as many super-packets hold, in writes of odd sizes, there and back at once.
fn stream(to: IpAddr) -> Result<()> {
    let mut stream = TcpStream::connect_timeout(&SocketAddr::new(to, ECHO_PORT), TIMEOUT)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    let sent = pattern(TCP_BYTES);
    let mut into = stream.try_clone()?;
    let bytes = &sent;
    let received = std::thread::scope(|scope| -> Result<Vec<u8>> {
        let writer = scope.spawn(move || -> Result<()> {
            for chunk in bytes.chunks(70_001) {
                into.write_all(chunk)?;
            }
            Ok(into.shutdown(Shutdown::Write)?)
        });
        let mut received = Vec::new();
        stream.read_to_end(&mut received)?;
        writer.join().map_err(|_| anyhow::anyhow!("the writer panicked"))??;
        Ok(received)
    })?;
    ensure!(received == sent, "of {} bytes {} came back, or others", sent.len(), received.len());
    Ok(())
}

/// Gives back what comes to it, by UDP and TCP over both families, until it is dropped.
struct Echo {
    stop: Arc<AtomicBool>,
    tcp: TcpListener,
}

impl Echo {
    fn start(namespace: &Namespace) -> Result<Self> {
        let (udp, tcp) = namespace.run(|| -> Result<_> {
            Ok((UdpSocket::bind(("::", ECHO_PORT))?, TcpListener::bind(("::", ECHO_PORT))?))
        })??;
        udp.set_read_timeout(Some(UDP_TIMEOUT))?;
        let echo = Self { stop: Arc::default(), tcp: tcp.try_clone()? };
        let stop = Arc::clone(&echo.stop);
        std::thread::spawn(move || echo_datagrams(&udp, &stop));
        std::thread::spawn(move || echo_streams(&tcp));
        Ok(echo)
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        use std::os::fd::AsRawFd;
        self.stop.store(true, Ordering::Relaxed);
        // SAFETY: takes and returns integers; it is open. Whoever waits for a connection is woken, and ends.
        unsafe { libc::shutdown(self.tcp.as_raw_fd(), libc::SHUT_RDWR) };
    }
}

fn echo_datagrams(socket: &UdpSocket, stop: &AtomicBool) {
    let mut buffer = vec![0; 1 << 16];
    while !stop.load(Ordering::Relaxed) {
        // Nothing came for a while, or word of an earlier answer that nobody wanted.
        let Ok((len, from)) = socket.recv_from(&mut buffer) else { continue };
        // What is larger than the way's MTU may be refused once, by which that is learned.
        let _ = socket.send_to(&buffer[..len], from);
    }
}

fn echo_streams(listener: &TcpListener) {
    while let Ok((stream, _)) = listener.accept() {
        let Ok(mut out) = stream.try_clone() else { return };
        std::thread::spawn(move || {
            let _ = std::io::copy(&mut &stream, &mut out);
            let _ = stream.shutdown(Shutdown::Write);
        });
    }
}
