//! Two hosts on one cable, with a tunnel of one program between them, or none.

use std::net::UdpSocket;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use netns_tests::process::Process;
use netns_tests::topology::{Host, link};
use netns_tests::wait::wait_until;
use netns_tests::wireguard::{Device, KeyPair, Program};

use crate::table::Figure;

const TIMEOUT: Duration = Duration::from_secs(10);
const PORT: u16 = 51820;
const MTU: u16 = 1420;
const LEFT: &str = "198.18.0.1";
/// Which the example's rules of a mesh allow.
const FLOW_PORTS: Range<u16> = 20_000..22_000;
/// What an interface's queue takes at once, and how long it gets.
const FLOW_BURST: usize = 100;
const FLOW_PAUSE: Duration = Duration::from_millis(1);

/// Ends that reach each other at [`Pair::target`].
pub(crate) struct Pair {
    pub left: Host,
    pub right: Host,
    /// What the right host is called through the tunnel, or on the cable if there is none.
    pub target: &'static str,
    pub directory: PathBuf,
    devices: Vec<Device>,
}

impl Pair {
    pub(crate) fn start(program: Option<&Program>, directory: &Path) -> Result<Self> {
        let (left, right) = (Host::new("left")?, Host::new("right")?);
        link((&left, "192.0.2.1/24"), (&right, "192.0.2.2/24"))?;
        let target = if program.is_some() { "198.18.0.2" } else { "192.0.2.2" };
        let devices = Vec::new();
        let mut pair = Self { left, right, target, directory: directory.to_owned(), devices };
        if let Some(program) = program {
            pair.connect(program)?;
        }
        pair.left.namespace.output("ping", &["-c", "1", "-W", "5", target]).context("no way through")?;
        Ok(pair)
    }

    fn connect(&mut self, program: &Program) -> Result<()> {
        let keys = |host: &Host| KeyPair::generate(host, self.directory.join(format!("{}.key", host.name)));
        let (left_keys, right_keys) = (keys(&self.left)?, keys(&self.right)?);
        let left = program.start(&self.left, "wgl", &self.directory)?;
        let right = program.start(&self.right, "wgr", &self.directory)?;
        let ends = [(left, &left_keys, &right_keys, 1, 2), (right, &right_keys, &left_keys, 2, 1)];
        for (device, own, peer, number, other) in ends {
            device.set(&format!("private-key {} listen-port {PORT}", own.private.display()))?;
            device.set(&format!(
                "peer {} allowed-ips 198.18.0.{other}/32 endpoint 192.0.2.{other}:{PORT}",
                peer.public
            ))?;
            let namespace = &device.host.namespace;
            namespace.ip(&format!("addr add 198.18.0.{number}/24 dev {}", device.name))?;
            namespace.ip(&format!("link set {} mtu {MTU} up", device.name))?;
            self.devices.push(device);
        }
        Ok(())
    }

    /// Datagrams both ways to thousands of ports, as a filter's table has them in a mesh. They were answered by nobody.
    pub(crate) fn open_flows(&self) -> Result<()> {
        for (host, to) in [(&self.left, self.target), (&self.right, LEFT)] {
            let socket = host.namespace.run(|| UdpSocket::bind(("0.0.0.0", 0)))??;
            for ports in FLOW_PORTS.collect::<Vec<u16>>().chunks(FLOW_BURST) {
                ports.iter().try_for_each(|&port| socket.send_to(&[0], (to, port)).map(drop))?;
                std::thread::sleep(FLOW_PAUSE);
            }
        }
        Ok(())
    }

    /// Processor time of both ends' programs.
    pub(crate) fn cpu(&self) -> Result<Duration> {
        self.devices.iter().map(|device| Ok(device.process.usage()?.1)).sum()
    }

    /// The most memory one of the programs ever had.
    pub(crate) fn memory(&self) -> Result<Vec<Figure>> {
        let peaks: Vec<u64> = self.devices.iter().map(Device::peak_memory).collect::<Result<_>>()?;
        let peak = peaks.into_iter().max();
        Ok(peak.map(|peak| Figure::less("peak MB", peak as f64 / 1e6)).into_iter().collect())
    }

    /// An `iperf3` server on the right host, for one test.
    pub(crate) fn listen(&self) -> Result<Process> {
        let mut command = self.right.namespace.command("iperf3");
        command.args(["-s", "-1", "--forceflush", "-B", self.target]);
        let log = self.directory.join("iperf3.txt");
        std::fs::write(&log, "")?;
        let server = Process::start("iperf3", command, &log)?;
        wait_until("iperf3 listens", TIMEOUT, || Ok(server.log_tail(5).contains("listening").then_some(())))?;
        Ok(server)
    }
}
