//! One end of a pair: a machine, real or virtual, with a WireGuard interface that a program or the kernel makes.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use netns_tests::topology::{Host, Port};
use netns_tests::wait::wait_until;
use netns_tests::wireguard::{Device, KeyPair, Program, SOCKETS};

use crate::guest::Guest;

const LISTEN_PORT: u16 = 51820;
/// What roaming adds to the last byte of an address.
pub(crate) const ROAMED_BY: u8 = 100;
/// Changes show within this; the machine may be busy.
const SHOWN_TIMEOUT: Duration = Duration::from_secs(20);

/// What is beneath the tunnels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Underlay {
    V4,
    V6,
}

#[derive(Clone)]
pub(crate) enum Machine {
    Host(Host),
    Room { guest: Arc<Guest>, room: usize },
}

/// What makes the interface.
#[derive(Clone)]
pub(crate) enum Maker {
    Program(Program),
    Kernel,
}

/// How it is configured, but for the other's part.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub(crate) underlay: Underlay,
    pub(crate) preshared: Option<PathBuf>,
    /// Knows the other's endpoint from the beginning.
    pub(crate) begins: bool,
    pub(crate) keepalive: Option<u16>,
    pub(crate) keys: KeyPair,
}

/// Where an end is.
pub(crate) struct Place {
    pub(crate) machine: Machine,
    pub(crate) port: Port,
    /// The last byte of its address inside the tunnel.
    pub(crate) inner: u8,
    /// The last byte of its address outside. Roaming changes it.
    pub(crate) outer: u8,
}

pub(crate) struct End {
    pub(crate) name: String,
    pub(crate) place: Place,
    maker: Maker,
    settings: Settings,
    device: Option<Device>,
    directory: PathBuf,
}

impl End {
    /// Its machine gets its address; there is no interface yet.
    pub(crate) fn new(
        name: String,
        place: Place,
        maker: Maker,
        settings: Settings,
        directory: &Path,
    ) -> Result<Self> {
        let end = Self { name, place, maker, settings, device: None, directory: directory.to_owned() };
        end.ip(&format!("address add {}", end.outer_prefix()))?;
        end.ip("link set eth0 up")?;
        Ok(end)
    }

    fn ip(&self, arguments: &str) -> Result<()> {
        self.output("ip", &arguments.split_whitespace().collect::<Vec<_>>()).map(drop)
    }

    /// What a tool prints on its machine.
    pub(crate) fn output(&self, program: &str, arguments: &[&str]) -> Result<String> {
        match &self.place.machine {
            Machine::Host(host) => host.namespace.output(program, arguments),
            Machine::Room { guest, room } => guest.output(*room, program, arguments),
        }
    }

    pub(crate) fn host(&self) -> Option<&Host> {
        match &self.place.machine {
            Machine::Host(host) => Some(host),
            Machine::Room { .. } => None,
        }
    }

    pub(crate) fn begins(&self) -> bool {
        self.settings.begins
    }

    pub(crate) fn inner_address(&self) -> String {
        format!("10.77.0.{}", self.place.inner)
    }

    /// As `ip address` takes it.
    fn outer_prefix(&self) -> String {
        match self.settings.underlay {
            Underlay::V4 => format!("203.0.113.{}/24 dev eth0", self.place.outer),
            Underlay::V6 => format!("2001:db8::{:x}/64 dev eth0 nodad", self.place.outer),
        }
    }

    pub(crate) fn endpoint(&self) -> String {
        match self.settings.underlay {
            Underlay::V4 => format!("203.0.113.{}:{LISTEN_PORT}", self.place.outer),
            Underlay::V6 => format!("[2001:db8::{:x}]:{LISTEN_PORT}", self.place.outer),
        }
    }

    /// A new interface in place of an earlier one, which ends without a word.
    pub(crate) fn start(&mut self, other: &Self) -> Result<()> {
        let name = self.name.clone();
        if self.device.take().is_some() {
            // Killed; not every program takes its former socket for its own.
            std::fs::remove_file(format!("{SOCKETS}/{name}.sock")).ok();
        }
        match (&self.maker, &self.place.machine) {
            (Maker::Program(program), Machine::Host(host)) => {
                self.device = Some(program.start(host, &name, &self.directory)?);
            }
            (Maker::Program(_) | Maker::Kernel, _) => {
                // There is none at first.
                self.ip(&format!("link delete {name}")).ok();
                self.ip(&format!("link add {name} type wireguard"))?;
            }
        }
        let file = self.directory.join(format!("{name}.conf"));
        std::fs::write(&file, self.config(other)?)?;
        self.output("wg", &["setconf", &name, &file.to_string_lossy()])?;
        self.ip(&format!("address add {}/24 dev {name}", self.inner_address()))?;
        self.ip(&format!("link set {name} mtu 1420 up"))
    }

    fn config(&self, other: &Self) -> Result<String> {
        let mut text = format!(
            "[Interface]\nPrivateKey = {}\nListenPort = {LISTEN_PORT}\n\n[Peer]\nPublicKey = {}\nAllowedIPs = {}/32\n",
            std::fs::read_to_string(&self.settings.keys.private)?.trim(),
            other.settings.keys.public,
            other.inner_address()
        );
        if let Some(file) = &self.settings.preshared {
            text += &format!("PresharedKey = {}\n", std::fs::read_to_string(file)?.trim());
        }
        if self.settings.begins {
            text += &format!("Endpoint = {}\n", other.endpoint());
        }
        if let Some(seconds) = self.settings.keepalive {
            text += &format!("PersistentKeepalive = {seconds}\n");
        }
        Ok(text)
    }

    /// Another address in place of the one it had.
    pub(crate) fn roam(&mut self) -> Result<()> {
        let before = self.outer_prefix();
        self.place.outer += ROAMED_BY;
        self.ip(&format!("address add {}", self.outer_prefix()))?;
        self.ip(&format!("address delete {before}"))?;
        // The first address of a network takes the others with it.
        self.ip(&format!("address replace {}", self.outer_prefix()))
    }

    /// Sends a packet a second until one is answered; how many it took, and how long.
    pub(crate) fn reach(&self, other: &Self, patience: Duration) -> Result<(u32, Duration)> {
        let (begun, seconds) = (Instant::now(), patience.as_secs().to_string());
        let said = self.output("ping", &["-q", "-c", "1", "-w", &seconds, &other.inner_address()]);
        let said = said.with_context(|| format!("{} does not reach {}", self.name, other.name))?;
        let sent = said.lines().find_map(|line| line.split_once(" packets transmitted"));
        let sent = sent.context("ping does not say how many it sent")?.0.trim().parse()?;
        Ok((sent, begun.elapsed()))
    }

    /// What `wg show .. WHAT` says of its only peer.
    pub(crate) fn shows(&self, what: &str) -> Result<String> {
        let shown = self.output("wg", &["show", &self.name, what])?;
        let value = shown.split_once('\t').context("`wg show` shows no peer")?.1;
        Ok(value.trim().to_owned())
    }

    /// When the last handshake was, in seconds since 1970 by the machine's clock; 0 is never.
    pub(crate) fn handshake(&self) -> Result<u64> {
        Ok(self.shows("latest-handshakes")?.parse()?)
    }

    /// Waits until the other is known to be where it is.
    pub(crate) fn wait_follows(&self, other: &Self) -> Result<()> {
        let (goal, expected) = (format!("{} follows {}", self.name, other.name), other.endpoint());
        wait_until(&goal, SHOWN_TIMEOUT, || Ok((self.shows("endpoints")? == expected).then_some(())))
    }

    /// A program that ended by itself, and whatever ours warned of.
    pub(crate) fn judge(&mut self) -> Result<()> {
        let Some(device) = &mut self.device else { return Ok(()) };
        ensure!(
            device.process.ended()?.is_none(),
            "{} ended: {}",
            device.process.name,
            device.process.log_tail(5)
        );
        if device.process.name.starts_with("holdfast") {
            let log = device.process.log_tail(usize::MAX);
            let is_odd =
                |line: &&str| [" WARN ", " ERROR ", "panicked"].iter().any(|word| line.contains(word));
            let odd: Vec<&str> = log.lines().filter(is_odd).collect();
            ensure!(odd.is_empty(), "{} says: {}", device.process.name, odd.join("; "));
        }
        Ok(())
    }
}
