//! Everything hostile at once, while two agents are served and talk.
//!
//! ```text
//!   s1 192.0.2.11 ── switch ── a1, a2 (a ping every 5 ms between them)
//!                       │
//!                       x 192.0.2.2xx: garbage, half-open connections, floods of a member that never reads
//! ```

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use netns_tests::client::{Member, Talk, within};
use netns_tests::mesh::Mesh;
use netns_tests::namespace::Namespace;
use netns_tests::scenario::Scenario;
use netns_tests::server::Server;
use netns_tests::wait::{hold_for, wait_until};
use proto::session::{AgentMessage, Facts, Signal};
use proto::setup_key::SetupKey;

const HALF_OPEN: usize = 3000;
const FLOODERS: usize = 20;
const FLOOD: u64 = 20_000;
/// What the half-open, the floods and the slow readers may cost together, bytes.
const MEMORY_BOUND: u64 = 256 << 20;
/// A TLS hello that does not end, and a little.
const GIVEN_UP: Duration = Duration::from_secs(20);

pub(crate) fn garbage_floods_and_half_open_connections_harm_nobody(s: &mut Scenario) -> Result<()> {
    raise_descriptor_limit()?;
    let mut mesh = Mesh::plan(1, 2).start(s)?;
    let pings = mesh.ping_pairs()?;
    let failovers: Vec<u64> =
        mesh.agents.iter().map(|a| Ok(a.status()?.control.failovers)).collect::<Result<_>>()?;
    let x = mesh.bystander("x", 0)?;
    let server: SocketAddr = mesh.servers[0].url.parse()?;
    let before = rss(&mut mesh.servers[0])?;

    garbage(&x.namespace, &mesh)?;
    mesh.servers[0].host.namespace.run(|| garbage_over_tcp(SocketAddr::from(([127, 0, 0, 1], 7480))))??;
    let half_open = x.namespace.run(|| half_open(server))??;
    let mut peak = rss(&mut mesh.servers[0])?;
    let key: SetupKey = mesh.setup_key.parse()?;
    let victim = mesh.agents[0].status()?.own.public_key.parse()?;
    let flooding = Instant::now();
    within(&x.namespace, || async move {
        let mut talks = Vec::new();
        for number in 0..FLOODERS {
            let member = Member::new(format!("flood-{number}"))?;
            member.join(server, &key).await?;
            talks.push(member.serving(server, key.fingerprint, 1).await?);
        }
        talks.iter().enumerate().try_for_each(|(number, talk)| flood(number, talk, victim))?;
        // Nobody reads what is answered.
        tokio::time::sleep(Duration::from_secs(5)).await;
        Ok(())
    })?;
    s.note(format!(
        "{FLOODERS} members said {FLOOD} things each and read nothing, for {:?}",
        flooding.elapsed()
    ));
    wait_until("half-open connections are closed", GIVEN_UP, || {
        peak = peak.max(rss(&mut mesh.servers[0])?);
        ensure!(mesh.agents.iter().all(|a| a.status().is_ok_and(|s| s.served_by().is_some())), "not served");
        Ok(counted(&mesh.servers[0], "holdfast_handshakes_failed_total{reason=\"slow\"}")?
            .filter(|slow| *slow >= HALF_OPEN))
    })?;
    s.note(format!("{} half-open connections were ended by time", half_open.len()));
    drop(half_open);
    hold_for(Duration::from_secs(1), || Ok(()))?;
    let after = rss(&mut mesh.servers[0])?;
    s.note(format!(
        "server memory: {} MB before, {} MB at most, {} MB after",
        before >> 20,
        peak >> 20,
        after >> 20
    ));
    s.require(peak.saturating_sub(before) < MEMORY_BOUND, "the server's memory grew beyond its bound");
    for (agent, failovers) in mesh.agents.iter().zip(failovers) {
        let status = agent.status()?;
        ensure!(status.served_by().is_some(), "{} is not served any more", agent.name);
        s.require(
            status.control.failovers == failovers,
            format!("{} lost its session meanwhile", agent.name),
        );
    }
    s.none_lost(pings)
}

/// One kind of flood each, in turns.
fn flood(number: usize, talk: &Talk, victim: proto::key::PublicKey) -> Result<()> {
    for sequence in 0..FLOOD {
        let port = u16::try_from(sequence % 60_000)? + 1;
        let endpoints = vec![SocketAddr::from(([198, 51, 100, 1], port))];
        talk.say(match number % 3 {
            0 => AgentMessage::Heartbeat { sequence, standby: false, interval: Duration::ZERO },
            1 => AgentMessage::Signal(Signal { peer: victim, id: sequence, endpoints }),
            _ => AgentMessage::Update { facts: Facts::default(), endpoints },
        })?;
    }
    Ok(())
}

/// On every port that listens.
fn garbage(from: &Namespace, mesh: &Mesh) -> Result<()> {
    let server: SocketAddr = mesh.servers[0].url.parse()?;
    from.run(|| garbage_over_tcp(server))??;
    for agent in &mesh.agents {
        let to = SocketAddr::from((agent.underlay, 51820));
        from.run(|| -> Result<()> {
            let socket = UdpSocket::bind("0.0.0.0:0")?;
            for length in 0..1400u16 {
                // Of every length, with the first bytes of each kind of WireGuard message.
                let mut datagram = vec![0xa5; usize::from(length)];
                if let Some(first) = datagram.first_chunk_mut::<4>() {
                    *first = u32::from(length % 6).to_le_bytes();
                }
                socket.send_to(&datagram, to).ok();
            }
            Ok(())
        })??;
    }
    Ok(())
}

fn garbage_over_tcp(to: SocketAddr) -> Result<()> {
    let long = vec![b'A'; 1 << 20];
    let kinds = [
        &b"GET / HTTP/1.1\r\n\r\n"[..],
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\x16\x03\x01\xff\xff",
        b"\x16\x03\x01\x00\x05\x01\x00\x00\x01\x00",
        b"SSH-2.0-x\r\n",
        &[0; 512],
        &[0xff; 512],
        &long,
    ];
    for garbage in kinds {
        let mut stream = TcpStream::connect(to).with_context(|| format!("cannot connect to {to}"))?;
        stream.set_read_timeout(Some(Duration::from_millis(200)))?;
        // A reset is the answer that garbage deserves.
        stream.write_all(garbage).ok();
        let _answer = stream.read(&mut [0; 64]);
    }
    Ok(())
}

/// A TLS hello begun, and nothing more.
fn half_open(to: SocketAddr) -> Result<Vec<TcpStream>> {
    (0..HALF_OPEN)
        .map(|number| {
            let mut stream = TcpStream::connect(to).with_context(|| format!("half-open number {number}"))?;
            stream.write_all(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03")?;
            Ok(stream)
        })
        .collect()
}

fn rss(server: &mut Server) -> Result<u64> {
    Ok(server.process()?.usage()?.0)
}

/// A counter of the server's metrics, once it counted.
fn counted(server: &Server, name: &str) -> Result<Option<usize>> {
    let (_, text) = server.admin("/metrics")?;
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    Ok(line.and_then(|count| count.trim().parse().ok()))
}

fn raise_descriptor_limit() -> Result<()> {
    // SAFETY: both calls read or write one struct of ours.
    unsafe {
        let mut limit = std::mem::zeroed::<libc::rlimit>();
        ensure!(
            libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) == 0,
            "cannot read the limit of open files"
        );
        limit.rlim_cur = limit.rlim_max;
        ensure!(
            libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) == 0,
            "cannot raise the limit of open files"
        );
    }
    Ok(())
}
