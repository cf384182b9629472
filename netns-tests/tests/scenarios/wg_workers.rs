//! `agent wg` with two workers at every end: packets of a flow keep their order, whatever happens to the tunnels.
//!
//! ```text
//!   hub   eth0 203.0.113.1 ──┐            inside: hub 10.77.0.1,
//!   peers eth0 203.0.113.2 ──┤ switch     peers 10.77.0.2 to 10.77.0.5, whose keys belong to the
//!   ..                       ┘            hub's workers in turn; the hub's to the peers' second
//! ```

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use agent_tunnel::{PublicKey, Workers};
use anyhow::{Context, Result, ensure};
use base64::{Engine, prelude::BASE64_STANDARD};
use netns_tests::agent::Agent;
use netns_tests::figures::ms;
use netns_tests::mesh::{Mesh, overlay_address};
use netns_tests::numbered::{End, Flow, Tally};
use netns_tests::process::Process;
use netns_tests::scenario::Scenario;
use netns_tests::topology::{Host, Switch};
use netns_tests::wait::{hold_for, retry, wait_until};
use netns_tests::wireguard::Program;

use super::wg::{MANY_PEERS, Node, TIMEOUT, load_many};
use super::wg_life::move_away;

const WORKERS: u8 = 2;
const PEERS: u8 = 4;
const FLOWS_EACH_WAY: u16 = 2;
/// Between two bursts: briskly, and so that others have the machine, too.
const BRISK: Duration = Duration::from_millis(5);
const CALM: Duration = Duration::from_millis(50);
/// A busy machine's sockets overflow now and then.
const MAX_LOST_PER_MILLE: u64 = 10;
/// Hundreds of bursts.
const SPAN: Duration = Duration::from_secs(3);
/// WireGuard renews a session with data after 120 s.
const REKEYED: Duration = Duration::from_secs(128);

/// The hub first. All know the hub, and the hub all.
fn star(s: &Scenario, prefix: &str) -> Result<(Vec<Node>, Switch)> {
    star_of(s, prefix, &Program::ours(&s.binaries.agent).with_workers(WORKERS))
}

fn star_of(s: &Scenario, prefix: &str, program: &Program) -> Result<(Vec<Node>, Switch)> {
    let switch = Switch::new()?;
    let mut nodes = Vec::new();
    for number in 1..=PEERS + 1 {
        let name = format!("{prefix}{number}");
        let host = Host::new(name.clone())?;
        switch.attach(&host, &format!("203.0.113.{number}/24"))?;
        let device = program.start(&host, &name, &s.directory)?;
        let wanted = usize::from(number % WORKERS);
        nodes.push(Node::configure_where(s, device, number, |key| Ok(owner(key)? == wanted))?);
    }
    for peer in &nodes[1..] {
        nodes[0].add(peer, &format!("endpoint {}", peer.outer()))?;
        peer.add(&nodes[0], &format!("endpoint {}", nodes[0].outer()))?;
    }
    Ok((nodes, switch))
}

/// The number of the worker that a peer with this key belongs to.
fn owner(key: &str) -> Result<usize> {
    let bytes = BASE64_STANDARD.decode(key)?.try_into().ok().context("a key of 32 bytes")?;
    Ok(Workers::new(WORKERS).context("a number of workers")?.owner(&PublicKey(bytes)))
}

fn start(s: &Scenario, host: &Host, name: &str, number: u8, workers: u8) -> Result<Node> {
    let program = Program::ours(&s.binaries.agent).with_workers(workers);
    Node::configure(s, program.start(host, name, &s.directory)?, number)
}

fn end(node: &Node) -> Result<End<'_>> {
    let address: Ipv4Addr = node.inner().parse().context("an address")?;
    Ok(End { namespace: &node.device.host.namespace, address })
}

/// Numbered flows between the hub and each peer, both ways.
struct Flows(Vec<(String, Flow)>);

impl Flows {
    fn start(nodes: &[Node], pause: Duration) -> Result<Self> {
        let mut flows = Vec::new();
        for (peer, number) in nodes[1..].iter().zip(0..) {
            for flow in 0..FLOWS_EACH_WAY {
                let port = 7000 + 10 * number + flow;
                flows.push((
                    format!("to {}", peer.device.name),
                    Flow::start(end(&nodes[0])?, end(peer)?, port, pause)?,
                ));
                flows.push((
                    format!("from {}", peer.device.name),
                    Flow::start(end(peer)?, end(&nodes[0])?, port, pause)?,
                ));
            }
        }
        Ok(Self(flows))
    }

    /// All of them added up. None is out of order, and none is empty.
    fn finish(self, s: &mut Scenario, during: &str) -> Result<Tally> {
        let mut sum = Tally::default();
        for (name, flow) in self.0 {
            let tally = flow.finish()?;
            s.require(tally.received > 0, format!("{during}: nothing arrived of a flow {name}"));
            s.require(tally.reordered == 0, format!("{during}: a flow {name}: {tally}"));
            sum += tally;
        }
        s.note(format!("{during}: {sum}"));
        Ok(sum)
    }
}

fn few_lost(s: &mut Scenario, tally: Tally) {
    let lost = tally.lost_per_mille();
    s.require(lost <= MAX_LOST_PER_MILLE, format!("{lost} of a thousand datagrams were lost: {tally}"));
}

/// Flows beside TCP in both directions; then through everything that makes sessions and sockets anew.
pub(crate) fn keep_every_flow_in_order(s: &mut Scenario) -> Result<()> {
    let (mut nodes, _switch) = star(s, "wgba")?;
    for peer in &nodes[1..] {
        nodes[0].reaches(&peer.inner())?;
    }
    let flows = Flows::start(&nodes, BRISK)?;
    hold_for(SPAN, || Ok(()))?;
    let quiet = flows.finish(s, "undisturbed")?;
    few_lost(s, quiet);
    let flows = Flows::start(&nodes, BRISK)?;
    for peer in &nodes[1..=2] {
        tcp(s, &nodes[0], peer)?;
    }
    flows.finish(s, "beside TCP")?;
    let flows = Flows::start(&nodes, BRISK)?;
    disturb(&nodes)?;
    flows.finish(s, "roaming, another port, peers removed and added")?;
    for peer in &nodes[1..] {
        nodes[0].reaches(&peer.inner())?;
    }
    let flows = Flows::start(&nodes, BRISK)?;
    let at = Instant::now();
    restart(s, &mut nodes)?;
    s.note(format!("one end killed and back after {}", ms(at.elapsed())));
    flows.finish(s, "the other end killed")?;
    let memory = |node: &Node| node.device.peak_memory();
    let one = start(s, &Host::new("wgw-one")?, "wgw-one", 9, 1)?;
    let two = start(s, &Host::new("wgw-two")?, "wgw-two", 9, 2)?;
    s.note(format!(
        "peak memory idle: {} KB with one worker, {} KB with two",
        memory(&one)? / 1024,
        memory(&two)? / 1024
    ));
    Ok(())
}

/// TCP both ways at once, with what it sent again.
fn tcp(s: &mut Scenario, hub: &Node, peer: &Node) -> Result<()> {
    let mut server = peer.device.host.namespace.command("iperf3");
    server.args(["-s", "-1", "-B", &peer.inner()]);
    let mut server = Process::start("iperf3", server, &s.directory.join("iperf3.txt"))?;
    let namespace = &hub.device.host.namespace;
    let arguments = ["-c", &peer.inner(), "-t", "2", "-f", "m", "--bidir"];
    let said = retry("iperf3 connects", TIMEOUT, || namespace.output("iperf3", &arguments))?;
    server.wait_end(TIMEOUT)?;
    for line in said.lines().filter(|line| line.ends_with("sender") || line.ends_with("receiver")) {
        s.note(format!("TCP with {}: {}", peer.device.name, line.trim()));
        ensure!(!line.contains(" 0.00 bits/sec"), "nothing came through");
    }
    Ok(())
}

fn disturb(nodes: &[Node]) -> Result<()> {
    let (hub, pause) = (&nodes[0], Duration::from_millis(500));
    // The hub has other sockets for all its workers, and its peers follow.
    hub.device.set("listen-port 51999")?;
    for peer in &nodes[1..] {
        peer.wait_shows("endpoints", hub, "203.0.113.1:51999")?;
    }
    nodes[1].device.set("listen-port 40000")?;
    hub.wait_shows("endpoints", &nodes[1], "203.0.113.2:40000")?;
    hub.peer(&nodes[2], "remove")?;
    hold_for(pause, || Ok(()))?;
    hub.add(&nodes[2], &format!("endpoint {}", nodes[2].outer()))?;
    nodes[3].ip("address add 203.0.113.77/24 dev eth0")?;
    nodes[3].ip("address delete 203.0.113.4/24 dev eth0")?;
    nodes[3].ip("address replace 203.0.113.77/24 dev eth0")?;
    hub.wait_shows("endpoints", &nodes[3], "203.0.113.77:51820")?;
    hub.device.set("fwmark 0x77")?;
    hold_for(pause, || Ok(()))?;
    hub.device.set("listen-port 51820")?;
    for peer in &nodes[1..] {
        peer.wait_shows("endpoints", hub, "203.0.113.1:51820")?;
    }
    Ok(())
}

/// The last peer is killed, and comes back under its key.
fn restart(s: &Scenario, nodes: &mut Vec<Node>) -> Result<()> {
    let mut dead = nodes.pop().context("a peer")?;
    dead.device.process.kill()?;
    let (host, name) = (dead.device.host.clone(), dead.device.name.clone());
    let program = Program::ours(&s.binaries.agent).with_workers(WORKERS);
    let device = retry("it starts again", TIMEOUT, || program.start(&host, &name, &s.directory))?;
    dead.device = device;
    dead.device.set(&format!("private-key {} listen-port 51820", dead.keys.private.display()))?;
    dead.ip(&format!("address add {}/24 dev {name}", dead.inner()))?;
    dead.ip(&format!("link set {name} up"))?;
    dead.add(&nodes[0], &format!("endpoint {}", nodes[0].outer()))?;
    dead.reaches(&nodes[0].inner())?;
    nodes.push(dead);
    Ok(())
}

/// Where the kernel is not told whose packets are whose, one worker reads them all and hands them over.
pub(crate) fn hand_over_in_order(s: &mut Scenario) -> Result<()> {
    let program = Program::ours(&s.binaries.agent).with_workers(WORKERS).without_ebpf();
    let (nodes, _switch) = star_of(s, "wgbb", &program)?;
    for node in &nodes {
        let log = node.device.process.log_tail(50);
        ensure!(log.contains("one worker reads them all"), "{} steers all the same: {log}", node.device.name);
    }
    for peer in &nodes[1..] {
        nodes[0].reaches(&peer.inner())?;
    }
    let flows = Flows::start(&nodes, BRISK)?;
    hold_for(SPAN, || Ok(()))?;
    let tally = flows.finish(s, "handed over")?;
    few_lost(s, tally);
    tcp(s, &nodes[0], &nodes[1])?;
    tcp(s, &nodes[0], &nodes[2])
}

/// An interface with several queues goes to another namespace, and is deleted there.
pub(crate) fn move_to_another_namespace(s: &mut Scenario) -> Result<()> {
    let switch = Switch::new()?;
    let mut nodes = Vec::new();
    for number in 1..=2 {
        let host = Host::new(format!("wgbe{number}"))?;
        switch.attach(&host, &format!("203.0.113.{number}/24"))?;
        nodes.push(start(s, &host, &format!("wgbe{number}"), number, WORKERS)?);
    }
    move_away(&nodes[0], &nodes[1])
}

/// Agents of a mesh take their number of workers as any setting, and change it while they run.
pub(crate) fn carry_a_mesh(s: &mut Scenario) -> Result<()> {
    let mut mesh = Mesh::plan(1, 3).options(&["--workers", "2"]).start(s)?;
    mesh.settle()?;
    let pings = mesh.ping_pairs()?;
    hold_for(SPAN, || Ok(()))?;
    for agent in &mut mesh.agents {
        ensure!(workers(agent)? == 2, "{} has another number of workers", agent.name);
    }
    s.none_lost(pings)?;
    mesh.agents[0].ask(&["set", "--workers", "1"])?;
    wait_until("one worker is left", TIMEOUT, || Ok((workers(&mut mesh.agents[0])? == 1).then_some(())))?;
    let target = overlay_address(&mesh.agents[0], &mesh.agents[1])?.to_string();
    let reached = || mesh.agents[0].host.namespace.tool("ping", &["-q", "-c", "1", "-W", "1", &target]);
    retry("the other answers again", TIMEOUT, reached)
}

/// Threads that carry packets, by their names.
fn workers(agent: &mut Agent) -> Result<usize> {
    let tasks = std::fs::read_dir(format!("/proc/{}/task", agent.process()?.pid()))?;
    let names = tasks.flatten().filter_map(|task| std::fs::read_to_string(task.path().join("comm")).ok());
    Ok(names.filter(|name| name.starts_with("tunnel")).count())
}

/// Sessions are renewed under traffic, by whoever began them.
pub(crate) fn renew_sessions_in_order(s: &mut Scenario) -> Result<()> {
    let (nodes, _switch) = star(s, "wgbc")?;
    for peer in &nodes[1..] {
        nodes[0].reaches(&peer.inner())?;
    }
    let handshake = |peer: &Node| nodes[0].shows("latest-handshakes", peer);
    let first: Vec<String> = nodes[1..].iter().map(handshake).collect::<Result<_>>()?;
    let flows = Flows::start(&nodes, CALM)?;
    hold_for(REKEYED, || Ok(()))?;
    for (peer, first) in nodes[1..].iter().zip(first) {
        wait_until("the session is renewed", TIMEOUT, || Ok((handshake(peer)? != first).then_some(())))?;
    }
    let tally = flows.finish(s, "over 128 s")?;
    few_lost(s, tally);
    Ok(())
}

/// Thousands of peers in one file, for two workers.
pub(crate) fn load_thousands_of_peers(s: &mut Scenario) -> Result<()> {
    let switch = Switch::new()?;
    let mut nodes = Vec::new();
    for (number, workers) in [(1, WORKERS), (2, WORKERS), (3, 1)] {
        let host = Host::new(format!("wgbd{number}"))?;
        switch.attach(&host, &format!("203.0.113.{number}/24"))?;
        nodes.push(start(s, &host, &format!("wgbd{number}"), number, workers)?);
    }
    let [left, right, alone] = &nodes[..] else { anyhow::bail!("three") };
    left.add(right, &format!("endpoint {}", right.outer()))?;
    right.add(left, "")?;
    let before = (left.device.process.usage()?.0, alone.device.process.usage()?.0);
    load_many(s, left)?;
    load_many(s, alone)?;
    let after = (left.device.process.usage()?.0, alone.device.process.usage()?.0);
    let each = |before: u64, after: u64| after.saturating_sub(before) / u64::from(MANY_PEERS);
    s.note(format!(
        "{MANY_PEERS} peers with two prefixes each: {} bytes a peer with two workers, {} with one",
        each(before.0, after.0),
        each(before.1, after.1)
    ));
    left.reaches(&right.inner())
}
