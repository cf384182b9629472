//! VpnCloud, as its page on high availability has it: servers with one address, clients with one each, everybody told of everybody.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use netns_tests::mesh::FIVE_MS;
use netns_tests::ping::Pinger;
use netns_tests::process::Process;
use netns_tests::topology::{Host, Port, Switch};
use netns_tests::wait::{hold_for, wait_until};

use crate::lab::{Lab, TIMEOUT};

const SHARED: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 2);
const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 100);
const PORT: u16 = 3210;
const INTERFACE: &str = "vpncloud0";
const END_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a timing must hold without a loss to be called stable.
const STABLE: Duration = Duration::from_secs(20);

/// In seconds: it knows no others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Timing {
    pub(crate) peer_timeout: u16,
    pub(crate) keepalive: u16,
}

/// What its page on high availability says.
pub(crate) const PAGE: Timing = Timing { peer_timeout: 5, keepalive: 2 };

impl Timing {
    pub(crate) fn name(self) -> String {
        format!("VpnCloud {}/{} s", self.peer_timeout, self.keepalive)
    }
}

struct Node {
    host: Host,
    port: Port,
    address: Ipv4Addr,
    inside: Ipv4Addr,
    process: Option<Process>,
}

/// It runs. The client is the last of the nodes.
pub(crate) struct VpnCloud {
    program: PathBuf,
    directory: PathBuf,
    timing: Timing,
    nodes: Vec<Node>,
    _switch: Switch,
}

impl VpnCloud {
    pub(crate) fn start(program: &Path, directory: &Path, timing: Timing) -> Result<Self> {
        std::fs::create_dir_all(directory)?;
        let switch = Switch::new()?;
        let mut nodes = Vec::new();
        for (number, inside) in [SHARED, SHARED, CLIENT].into_iter().enumerate() {
            let address = Ipv4Addr::new(192, 0, 2, 101 + u8::try_from(number)?);
            let host = Host::new(format!("v{}", number + 1))?;
            let port = switch.attach(&host, &format!("{address}/24"))?;
            // It asks the system which address leads to the Internet, and ends where none does.
            host.route("add default via 192.0.2.1")?;
            nodes.push(Node { host, port, address, inside, process: None });
        }
        let (program, directory) = (program.to_owned(), directory.to_owned());
        let mut lab = Self { program, directory, timing, nodes, _switch: switch };
        for number in 0..lab.nodes.len() {
            lab.launch(number)?;
        }
        for claimer in 0..lab.claimers() {
            lab.wait_ready(claimer)?;
        }
        Ok(lab)
    }

    fn launch(&mut self, number: usize) -> Result<Instant> {
        let node = &self.nodes[number];
        let mut command: Command = node.host.namespace.command(&self.program);
        command.args(["--password", "of the lab", "--no-port-forwarding", "--device", INTERFACE]);
        // With `--ip` it would claim 0.0.0.x: it reads an interface's address by a layout of std's that is no more.
        let set_up = format!("ip address add {}/24 dev $IFNAME; ip link set $IFNAME up", node.inside);
        command.args(["--listen", &PORT.to_string(), "--ifup", &set_up]);
        command.args(["--no-auto-claim", "--claim", &format!("{}/32", node.inside)]);
        command.args(["--peer-timeout", &self.timing.peer_timeout.to_string()]);
        command.args(["--keepalive", &self.timing.keepalive.to_string()]);
        for other in self.nodes.iter().filter(|other| other.address != node.address) {
            command.args(["--peer", &format!("{}:{PORT}", other.address)]);
        }
        let log = self.log(number);
        let at = Instant::now();
        self.nodes[number].process = Some(Process::start(format!("v{}", number + 1), command, &log)?);
        Ok(at)
    }

    fn log(&self, number: usize) -> PathBuf {
        self.directory.join(format!("v{}.log", number + 1))
    }

    /// Whether the client has a peer, by what it logged of it last.
    fn has_peer(&self, claimer: usize) -> Result<bool> {
        let log = std::fs::read_to_string(self.log(self.nodes.len() - 1))?;
        let peer = format!("{}:{PORT}", self.nodes[claimer].address);
        let mut about = log.lines().filter(|line| line.contains(&peer));
        Ok(about.rfind(|line| is_about_peer(line)).is_some_and(|line| line.contains("Added peer")))
    }

    /// How often the client lost a peer.
    fn lost_peers(&self) -> Result<usize> {
        let log = std::fs::read_to_string(self.log(self.nodes.len() - 1))?;
        Ok(log.lines().filter(|line| is_about_peer(line) && !line.contains("Added peer")).count())
    }
}

fn is_about_peer(line: &str) -> bool {
    ["Added peer", "Forgot peer", "Closing connection"].iter().any(|words| line.contains(words))
}

/// The tightest timing with which nothing is lost and nobody forgotten while nothing happens, and what became of tighter ones.
pub(crate) fn tightest(program: &Path, directory: &Path) -> Result<(Timing, String)> {
    let mut words = Vec::new();
    for peer_timeout in 1..PAGE.peer_timeout {
        let timing = Timing { peer_timeout, keepalive: 1 };
        let (lost, sent, forgotten) = quiet(program, &directory.join(timing.name()), timing)?;
        words.push(format!(
            "{}: {lost} of {sent} pings lost, {forgotten} times a peer forgotten",
            timing.name()
        ));
        if lost == 0 && forgotten == 0 {
            return Ok((timing, words.join("; ")));
        }
    }
    Ok((PAGE, words.join("; ")))
}

/// How many pings were lost, of how many, and how often a peer was forgotten.
fn quiet(program: &Path, directory: &Path, timing: Timing) -> Result<(usize, usize, usize)> {
    let lab = VpnCloud::start(program, directory, timing)?;
    let pinger = Pinger::start("while nothing happens", &lab.client().namespace, SHARED, FIVE_MS)?;
    pinger.first_reply_after(Instant::now(), TIMEOUT)?;
    let from = Instant::now();
    hold_for(STABLE, || Ok(()))?;
    let (sent, lost) = pinger.lost_between(from, Instant::now());
    Ok((lost, sent, lab.lost_peers()?))
}

impl Lab for VpnCloud {
    fn client(&self) -> &Host {
        &self.nodes[self.nodes.len() - 1].host
    }

    fn client_address(&self) -> Ipv4Addr {
        self.nodes[self.nodes.len() - 1].address
    }

    fn target(&self) -> Ipv4Addr {
        SHARED
    }

    fn claimers(&self) -> usize {
        self.nodes.len() - 1
    }

    fn host(&self, claimer: usize) -> &Host {
        &self.nodes[claimer].host
    }

    fn port(&self, claimer: usize) -> &Port {
        &self.nodes[claimer].port
    }

    fn interface(&self) -> &'static str {
        INTERFACE
    }

    fn process(&mut self, claimer: usize) -> Result<&mut Process> {
        self.nodes[claimer].process.as_mut().context("VpnCloud is not running")
    }

    fn kill(&mut self, claimer: usize) -> Result<Instant> {
        let at = self.process(claimer)?.kill()?;
        self.nodes[claimer].process = None;
        Ok(at)
    }

    fn start(&mut self, claimer: usize) -> Result<Instant> {
        self.launch(claimer)
    }

    fn stop(&mut self, claimer: usize) -> Result<Instant> {
        let process = self.process(claimer)?;
        let at = process.terminate()?;
        let status = process.wait_end(END_TIMEOUT)?;
        ensure!(
            status.success(),
            "VpnCloud was asked to end and ended with {status}: {}",
            process.log_tail(5)
        );
        self.nodes[claimer].process = None;
        Ok(at)
    }

    /// It has no command for that.
    fn drain(&mut self, claimer: usize) -> Result<Instant> {
        self.stop(claimer)
    }

    fn wait_ready(&mut self, claimer: usize) -> Result<()> {
        wait_until("the client has its peer", TIMEOUT, || Ok(self.has_peer(claimer)?.then_some(())))
    }
}
