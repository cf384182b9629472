//! One `agent wg` with thousands of peers, a crowd that plays them, and live traffic beside.
//!
//! ```text
//!   hub    eth0 192.0.2.1 ─┐          inside: hub 198.18.0.1, friend 198.18.0.2,
//!   crowd  eth0 192.0.2.2 ─┤ switch           the crowd 198.19.0.0/16
//!          10.128.0.0/16   │
//!   friend eth0 192.0.2.3 ─┘
//! ```
//!
//! The friend is a second `agent wg`. At the hub's desk (a socket on its inner address) the crowd's packets are counted.

mod crowd;
mod desk;
mod intake;
mod live;

use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;

use crate::namespace::Namespace;
use crate::topology::{Host, Switch};
use crate::wait::{hold_for, retry, wait_until};
use crate::wireguard::{Device, KeyPair, Program};
use crowd::{Crowd, Hub, PORT};
use desk::Desk;
use live::Live;
pub use live::LiveReport;

const HUB: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 1);
const FRIEND: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 2);
const DESK_PORT: u16 = 9002;
const TIMEOUT: Duration = Duration::from_secs(30);
/// Beyond [`Waking::bound`]: who is late is still told from who never comes; repetitions after 5, 10, .. s are among them.
const WAKE_TIMEOUT: Duration = Duration::from_secs(60);
/// Live traffic before and after, for comparison.
const CALM: Duration = Duration::from_secs(2);

/// A packet with next to nothing in it, and one as TCP sends them.
pub const SMALL_BYTES: usize = 33;
pub const FULL_BYTES: usize = 1400;
/// What an idle peer may cost, with what reading a configuration leaves behind.
pub const MAX_IDLE_BYTES: u64 = 700;
/// What a live tunnel may cost beyond that.
pub const MAX_LIVE_BYTES: u64 = 13 * 1024;

/// Who begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Waking {
    /// A packet from the hub to every peer, as fast as its program takes them, 200 at a time.
    FromHub,
    /// An initiation of every peer's to the hub.
    FromCrowd,
}

impl Waking {
    /// From the first packet until so many peers are awake, where others use the processors too. The crowd computes longer than the hub,
    /// and gives way to everything else.
    pub fn bound(self, peers: usize) -> Duration {
        let each = match self {
            Self::FromHub => Duration::from_micros(2500),
            Self::FromCrowd => Duration::from_micros(7500),
        };
        each * u32::try_from(peers).unwrap_or(u32::MAX)
    }
}

/// What the hub's process has.
#[derive(Clone, Copy, Debug)]
pub struct Resources {
    pub resident_bytes: u64,
    pub descriptors: usize,
    pub threads: usize,
}

impl Resources {
    /// The memory that each of `peers` costs more than `before`.
    pub fn bytes_each_since(self, before: Self, peers: usize) -> u64 {
        self.resident_bytes.saturating_sub(before.resident_bytes) / peers.max(1) as u64
    }
}

/// How a waking went.
pub struct Woken {
    /// Of so many peers the first packet came through, and back if it went out.
    pub delivered: usize,
    pub half_after: Duration,
    pub all_after: Duration,
    /// Of the hub's process, meanwhile.
    pub cpu: Duration,
    pub live: LiveReport,
    /// What the hub's interface refused to take from its own system.
    pub refused_by_interface: u64,
}

/// The whole, running.
pub struct Room {
    hub: Device,
    friend: Device,
    crowd_host: Host,
    crowd: Option<Crowd>,
    identity: Hub,
    desk: Desk,
    count: usize,
    configuration: PathBuf,
    _switch: Switch,
}

impl Room {
    /// The hub knows its friend only; both listen.
    pub fn start(agent: &Path, directory: &Path, count: usize) -> Result<Self> {
        let switch = Switch::new()?;
        let hosts = ["hub", "crowd", "friend"].map(Host::new);
        let [hub_host, crowd_host, friend_host] = hosts;
        let (hub_host, crowd_host, friend_host) = (hub_host?, crowd_host?, friend_host?);
        for (host, last) in [(&hub_host, 1), (&crowd_host, 2), (&friend_host, 3)] {
            switch.attach(host, &format!("192.0.2.{last}/24"))?;
        }
        let [outer, inner] = crowd::networks();
        crowd_host.namespace.ip(&format!("route add local {outer} dev lo"))?;
        hub_host.route(&format!("add {outer} via 192.0.2.2"))?;
        let program = Program::ours(agent);
        let keys = |host: &Host| KeyPair::generate(host, directory.join(format!("{}.key", host.name)));
        let (hub_keys, friend_keys) = (keys(&hub_host)?, keys(&friend_host)?);
        let hub = program.start(&hub_host, "wgmany", directory)?;
        let friend = program.start(&friend_host, "wgfriend", directory)?;
        let ends = [
            (&hub, HUB, &hub_keys, &friend_keys, FRIEND, 3),
            (&friend, FRIEND, &friend_keys, &hub_keys, HUB, 1),
        ];
        for (device, own, keys, peer, inside, outside) in ends {
            device.set(&format!(
                "private-key {} listen-port {PORT} peer {} allowed-ips {inside}/32 endpoint 192.0.2.{outside}:{PORT}",
                keys.private.display(),
                peer.public
            ))?;
            let namespace = &device.host.namespace;
            namespace.ip(&format!("address add {own}/24 dev {}", device.name))?;
            namespace.ip(&format!("link set {} up", device.name))?;
        }
        hub_host.route(&format!("add {inner} dev {}", hub.name))?;
        let key = BASE64_STANDARD.decode(&hub_keys.public)?;
        let key = key.try_into().ok().context("a key has 32 bytes")?;
        let desk_address = SocketAddrV4::new(HUB, DESK_PORT);
        let identity =
            Hub { key, endpoint: SocketAddrV4::new([192, 0, 2, 1].into(), PORT), desk: desk_address };
        let desk = Desk::open(&hub_host.namespace, (desk_address, &hub.name), count)?;
        let configuration = directory.join("crowd.conf");
        std::fs::write(&configuration, crowd::configuration(count))?;
        let room = Self {
            hub,
            friend,
            crowd_host,
            crowd: None,
            identity,
            desk,
            count,
            configuration,
            _switch: switch,
        };
        room.reach_friend()?;
        Ok(room)
    }

    fn namespace(&self) -> &Namespace {
        &self.hub.host.namespace
    }

    fn reach_friend(&self) -> Result<()> {
        retry("the friend answers", TIMEOUT, || {
            self.namespace().tool("ping", &["-q", "-c", "1", "-W", "1", &FRIEND.to_string()])
        })
    }

    /// The hub gets all peers by `wg addconf`; how long that took.
    pub fn configure(&self) -> Result<Duration> {
        let begun = Instant::now();
        let file = self.configuration.to_string_lossy();
        self.namespace().tool("wg", &["addconf", &self.hub.name, &file])?;
        Ok(begun.elapsed())
    }

    /// The crowd is there, anew: nobody has a session.
    pub fn assemble(&mut self) -> Result<()> {
        if let Some(crowd) = self.crowd.take() {
            crowd.finish()?;
        }
        self.crowd = Some(Crowd::start(&self.crowd_host, self.identity, self.count)?);
        Ok(())
    }

    pub fn resources(&self) -> Result<Resources> {
        let entries = |what: &str| -> Result<usize> {
            Ok(std::fs::read_dir(format!("/proc/{}/{what}", self.hub.process.pid()))?.count())
        };
        Ok(Resources {
            resident_bytes: self.hub.process.usage()?.0,
            descriptors: entries("fd")?,
            threads: entries("task")?,
        })
    }

    /// The hub's processor time in per cent, while each of the first `active` peers is sent a packet a second, and answers.
    pub fn idle_cpu(&self, active: usize, span: Duration) -> Result<f64> {
        self.desk.begin();
        self.desk.send(0..active, SMALL_BYTES)?;
        wait_until("the active peers answer", TIMEOUT, || Ok((self.desk.heard() >= active).then_some(())))?;
        let (begun, before) = (Instant::now(), self.hub.process.usage()?.1);
        let mut sent = 0;
        hold_for(span, || {
            let due = (begun.elapsed().as_secs_f64() * active as f64) as usize;
            (sent..due)
                .try_for_each(|number| self.desk.send(number % active..number % active + 1, SMALL_BYTES))?;
            sent = due;
            Ok(())
        })?;
        let used = self.hub.process.usage()?.1.saturating_sub(before);
        Ok(100.0 * used.as_secs_f64() / begun.elapsed().as_secs_f64())
    }

    /// Live traffic alone.
    pub fn calm(&self) -> Result<LiveReport> {
        let live = Live::start(self.namespace(), (&self.friend.host.namespace, FRIEND))?;
        hold_for(CALM, || Ok(()))?;
        live.finish()
    }

    /// All peers wake at once, beside live traffic; before, none may have a session. Ends when every first packet came
    /// through, or a minute after the bound: whoever calls decides about those that did not.
    pub fn wake(&self, waking: Waking, packet_bytes: usize) -> Result<Woken> {
        let crowd = self.crowd.as_ref().context("the crowd is to assemble first")?;
        let awake = self.awake()?;
        ensure!(awake == 0, "{awake} peers have sessions before they are woken");
        let live = Live::start(self.namespace(), (&self.friend.host.namespace, FRIEND))?;
        let (refused, before) = (self.desk.refused()?, self.hub.process.usage()?.1);
        self.desk.begin();
        match waking {
            Waking::FromHub => self.desk.send(0..self.count, packet_bytes)?,
            Waking::FromCrowd => crowd.speak(packet_bytes),
        }
        let timeout = waking.bound(self.count) + WAKE_TIMEOUT;
        let deadline = Instant::now() + timeout;
        wait_until("everybody is heard, or time is up", 2 * timeout, || {
            Ok((self.desk.heard() >= self.count || Instant::now() > deadline).then_some(()))
        })?;
        let cpu = self.hub.process.usage()?.1.saturating_sub(before);
        hold_for(CALM, || Ok(()))?;
        let live = live.finish()?;
        let arrivals = self.desk.arrivals();
        let after = |count: usize| arrivals.get(count.saturating_sub(1)).copied().unwrap_or_default();
        Ok(Woken {
            delivered: arrivals.len(),
            half_after: after(self.count / 2),
            all_after: after(arrivals.len()),
            cpu,
            live,
            refused_by_interface: self.desk.refused()? - refused,
        })
    }

    /// How many of the crowd the hub ever had a handshake with.
    fn awake(&self) -> Result<usize> {
        let shown = self.namespace().output("wg", &["show", &self.hub.name, "latest-handshakes"])?;
        let all = shown.lines().filter(|line| !line.ends_with("\t0")).count();
        // The friend's.
        Ok(all.saturating_sub(1))
    }

    /// Fails if the crowd had; the hub must still run.
    pub fn finish(mut self) -> Result<()> {
        if let Some(crowd) = self.crowd.take() {
            crowd.finish()?;
        }
        let log = self.hub.process.log_tail(usize::MAX);
        ensure!(!log.contains("panicked"), "the hub panicked: {log}");
        self.reach_friend()
    }
}
