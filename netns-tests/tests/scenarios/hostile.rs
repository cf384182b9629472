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
use netns_tests::wait::wait_until;
use proto::session::{AgentMessage, Facts, Reason, ServerMessage, Signal};
use proto::setup_key::SetupKey;

const HALF_OPEN: usize = 3000;
const FLOODERS: usize = 20;
const FLOOD: u64 = 20_000;
/// Heartbeats, signals and updates, in this order; the number of the first who floods signals.
const KINDS: usize = 3;
const SIGNALS: usize = 1;
/// What the half-open, the floods and the slow readers may cost together, bytes.
const MEMORY_BOUND: u64 = 256 << 20;
/// A TLS hello that does not end, or a flood that is endured for some seconds, and much more.
const GIVEN_UP: Duration = Duration::from_secs(60);

pub(crate) fn garbage_floods_and_half_open_connections_harm_nobody(s: &mut Scenario) -> Result<()> {
    raise_descriptor_limit()?;
    let mut mesh = Mesh::plan(1, 2).start(s)?;
    let pings = mesh.ping_pairs()?;
    let failovers: Vec<u64> =
        mesh.agents.iter().map(|a| Ok(a.status()?.control.failovers)).collect::<Result<_>>()?;
    let x = mesh.bystander("x", 0)?;
    let server: SocketAddr = mesh.servers[0].url.parse()?;
    let before = mesh.servers[0].process()?.usage()?.0;

    garbage(&x.namespace, &mesh)?;
    mesh.servers[0].host.namespace.run(|| garbage_over_tcp(SocketAddr::from(([127, 0, 0, 1], 7480))))??;
    let half_open = x.namespace.run(|| half_open(server))??;
    let key: SetupKey = mesh.setup_key.parse()?;
    let victim = mesh.agents[0].status()?.own.public_key.parse()?;
    let flooding = Instant::now();
    within(&x.namespace, || async {
        let mut talks = Vec::new();
        for number in 0..FLOODERS {
            let member = Member::new(format!("flood-{number}"))?;
            member.join(server, &key).await?;
            talks.push(member.serving(server, key.fingerprint, 1).await?);
        }
        talks.iter().enumerate().try_for_each(|(number, talk)| flood(number, talk, victim))?;
        until_read(&mesh.servers[0]).await?;
        // One of those who read nothing until now looks what it was told.
        let told = talks[SIGNALS].find("is told why it ends", |said| {
            let ServerMessage::Refused(refused) = said else { return None };
            Some(refused.clone())
        });
        ensure!(told.await?.reason == Reason::Full, "a flood is ended for another reason");
        Ok(())
    })?;
    s.note(format!(
        "{FLOODERS} members said {FLOOD} things each and read nothing; those of signals were ended and all were slowed down after {:?}",
        flooding.elapsed()
    ));
    wait_until("half-open connections are closed", GIVEN_UP, || {
        ensure!(mesh.agents.iter().all(|a| a.status().is_ok_and(|s| s.served_by().is_some())), "not served");
        let slow = mesh.servers[0].metric("holdfast_handshakes_failed_total{reason=\"slow\"}")?;
        Ok((slow >= HALF_OPEN as f64).then_some(()))
    })?;
    s.note(format!("{} half-open connections were ended by time", half_open.len()));
    drop(half_open);
    let process = mesh.servers[0].process()?;
    let (peak, after) = (process.peak_memory()?, process.usage()?.0);
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

/// All that the flooders say was read, as far as it is ever: by the metrics, each kind is delayed, and who floods signals was ended.
async fn until_read(server: &Server) -> Result<()> {
    let of_signals = (SIGNALS..FLOODERS).step_by(KINDS).count();
    let deadline = Instant::now() + GIVEN_UP;
    loop {
        let delayed =
            |kind: &str| server.metric(&format!("holdfast_messages_delayed_total{{kind=\"{kind}\"}}"));
        let counts = (delayed("heartbeats")?, delayed("signals")?, delayed("updates")?);
        let refused = server.metric("holdfast_sessions_refused_total")?;
        if counts.0 > 0.0 && counts.1 > 0.0 && counts.2 > 0.0 && refused >= of_signals as f64 {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "delayed {counts:?}, refused {refused}: the flood was not read");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// One kind of flood each, in turns.
fn flood(number: usize, talk: &Talk, victim: proto::key::PublicKey) -> Result<()> {
    for sequence in 0..FLOOD {
        let port = u16::try_from(sequence % 60_000)? + 1;
        let endpoints = vec![SocketAddr::from(([198, 51, 100, 1], port))];
        talk.say(match number % KINDS {
            0 => AgentMessage::Heartbeat { sequence, standby: false, interval: Duration::ZERO },
            SIGNALS => AgentMessage::Signal(Signal { peer: victim, id: sequence, endpoints }),
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
