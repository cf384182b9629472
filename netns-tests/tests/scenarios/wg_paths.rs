//! How an `agent wg` interface finds its peers and is found: forged and repeated datagrams, several addresses, links without
//! addresses of their own, large packets, one tunnel inside another, a session's renewal. The topology is that of `wg`, if not drawn.

use std::net::UdpSocket;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use netns_tests::capture::{Capture, Frame};
use netns_tests::figures::ms;
use netns_tests::process::Process;
use netns_tests::scenario::Scenario;
use netns_tests::topology::{Host, Switch};
use netns_tests::wait::{hold_for, retry, wait_until};
use netns_tests::wireguard::{KeyPair, Program};

use super::wg::{Node, TIMEOUT, nodes};

/// Some dozens of packets cross.
const CROSSING: Duration = Duration::from_millis(500);
/// Ethernet, IPv4 and UDP before WireGuard's message.
const HEADER_BYTES: usize = 14 + 20 + 8;
/// So many of a side's messages, the handshake's first: fewer copies than wait for a neighbour, and than a capture holds.
const COPIED: usize = 6;
const INITIATION: u8 = 1;
const RESPONSE: u8 = 2;
/// A packet of 34,816 bytes outside.
const JUMBO_MTU: u32 = 34_736;
/// WireGuard renews a session that carries data after 120 s.
const RENEWED_AFTER: Duration = Duration::from_secs(110);
const RENEWED_WITHIN: Duration = Duration::from_secs(140);
/// Longer than any session lives.
const SILENCE: Duration = Duration::from_secs(185);

/// Whoever repeats what the left sent, or changes it, is answered by nobody and moves nobody's endpoint.
pub(crate) fn copies_from_elsewhere_move_nobody(s: &mut Scenario) -> Result<()> {
    let (nodes, _switch) = nodes(s, "wgx", 3)?;
    let [left, right, third] = &nodes[..] else { bail!("three") };
    let begun = Instant::now();
    let capture = Capture::start(&right.device.host.namespace, "eth0")?;
    right.add(left, "")?;
    left.add(right, &format!("endpoint {}", right.outer()))?;
    left.reaches(&right.inner())?;
    let pinger = left.pinger(right)?;
    hold_for(CROSSING, || Ok(()))?;
    let socket = third.device.host.namespace.run(|| UdpSocket::bind("203.0.113.3:4444"))??;
    let mut sent = 0;
    for (from, to) in [(left, right), (right, left)] {
        for message in messages(&capture, begun, from).into_iter().take(COPIED) {
            for copy in copies(&message) {
                socket.send_to(&copy, to.outer())?;
                sent += usize::from(std::ptr::eq(to, right));
            }
        }
    }
    wait_until("all copies have come", TIMEOUT, || {
        Ok((capture.since(begun, |frame| source(frame) == Some(3)).len() >= sent).then_some(()))
    })?;
    hold_for(CROSSING, || Ok(()))?;
    s.note(format!("{sent} copies came to the right"));
    for (node, other) in [(right, left), (left, right)] {
        ensure!(node.shows("endpoints", other)? == other.outer(), "{} was led astray", node.device.name);
    }
    s.none_lost(vec![pinger])?;
    a_repeated_initiation_is_answered_and_not_followed(&socket, &capture, begun, [left, right])
}

/// Who forgot the left cannot know that its initiation is old. It answers, and learns no endpoint by it.
fn a_repeated_initiation_is_answered_and_not_followed(
    socket: &UdpSocket,
    capture: &Capture,
    begun: Instant,
    [left, right]: [&Node; 2],
) -> Result<()> {
    let initiation = messages(capture, begun, left).into_iter().find(|message| message[0] == INITIATION);
    right.peer(left, "remove")?;
    right.add(left, &format!("endpoint {}", left.outer()))?;
    socket.send_to(&initiation.context("no initiation was seen")?, right.outer())?;
    socket.set_read_timeout(Some(TIMEOUT))?;
    let mut answer = [0; 256];
    let (len, _) = socket.recv_from(&mut answer).context("a repeated initiation is not answered")?;
    ensure!(answer[..len][0] == RESPONSE, "the answer is no response");
    ensure!(right.shows("endpoints", left)? == left.outer(), "an unproven session moved the endpoint");
    right.reaches(&left.inner())?;
    ensure!(right.shows("endpoints", left)? == left.outer(), "the endpoint moved");
    Ok(())
}

/// The WireGuard messages of `node` that were captured.
fn messages(capture: &Capture, since: Instant, node: &Node) -> Vec<Vec<u8>> {
    let last = node.inner().rsplit_once('.').and_then(|(_, last)| last.parse().ok());
    let frames = capture.since(since, |frame| frame.is_tunnel(51820) && source(frame) == last);
    frames.into_iter().map(|frame| frame.bytes[HEADER_BYTES..].to_vec()).collect()
}

/// The last byte of the address that sent it.
fn source(frame: &Frame) -> Option<u8> {
    frame.udp_ports()?;
    frame.bytes.get(14 + 15).copied()
}

/// As it was; with a later counter, or another index; cut; and with a bit turned.
fn copies(message: &[u8]) -> Vec<Vec<u8>> {
    let changed = |place: usize, by: u8| {
        let mut copy = message.to_vec();
        copy[place] = copy[place].wrapping_add(by);
        copy
    };
    let half = message[..message.len() / 2].to_vec();
    vec![message.to_vec(), changed(9, 1), changed(4, 1), half, changed(message.len() - 1, 1)]
}

/// What comes to one of several addresses is answered from there; an address that goes is not missed.
pub(crate) fn sources_stay_and_may_go(s: &mut Scenario) -> Result<()> {
    let (nodes, _switch) = nodes(s, "wgy", 2)?;
    let [left, right] = &nodes[..] else { bail!("two") };
    right.add(left, "")?;
    left.add(right, "")?;
    for (address, first, second) in [
        ("203.0.113.22/24", "203.0.113.2:51820", "203.0.113.22:51820"),
        ("2001:db8::22/64", "[2001:db8::2]:51820", "[2001:db8::22]:51820"),
    ] {
        let flags = if address.contains(':') { "nodad" } else { "" };
        right.ip(&format!("address add {address} dev eth0 {flags}"))?;
        for endpoint in [second, first, second] {
            left.peer(right, &format!("endpoint {endpoint}"))?;
            left.reaches(&right.inner())?;
            ensure!(left.shows("endpoints", right)? == endpoint, "{endpoint} answers from elsewhere");
        }
        right.ip(&format!("address delete {address} dev eth0"))?;
        let at = Instant::now();
        right.reaches(&left.inner())?;
        left.wait_shows("endpoints", right, first)?;
        left.reaches(&right.inner())?;
        s.note(format!("{address} went: both ways after {}", ms(at.elapsed())));
    }
    Ok(())
}

/// Two peers of one link-local address on two links are two peers.
///
/// ```text
///   left eth0 fe80::1 ── switch ── fe80::2 eth0 right
///        eth1 fe80::1 ── switch ── fe80::2 eth0 third
/// ```
pub(crate) fn speaks_between_link_local_addresses(s: &mut Scenario) -> Result<()> {
    let switches = [Switch::new()?, Switch::new()?];
    let hosts = [Host::new("wgz1")?, Host::new("wgz2")?, Host::new("wgz3")?];
    for (host, switch, interface, last) in
        [(0, 0, "eth0", 1), (0, 1, "eth1", 1), (1, 0, "eth0", 2), (2, 1, "eth0", 2)]
    {
        let _: netns_tests::topology::Port = switches[switch].plug(&hosts[host])?;
        let namespace = &hosts[host].namespace;
        namespace.ip(&format!("address add fe80::{last}/64 dev {interface} nodad"))?;
        namespace.ip(&format!("link set {interface} up"))?;
    }
    let mut nodes = Vec::new();
    for (host, number) in hosts.iter().zip(1..) {
        nodes.push(Node::start(s, host, &format!("wgz{number}"), number)?);
    }
    let [left, right, third] = &nodes[..] else { bail!("three") };
    for (node, interface) in [(right, "eth0"), (third, "eth1")] {
        node.add(left, "")?;
        left.add(node, &format!("endpoint [fe80::2%{interface}]:51820"))?;
        left.reaches(&node.inner())?;
        let shown = node.shows("endpoints", left)?;
        ensure!(shown == "[fe80::1%eth0]:51820", "{} shows {shown}", node.device.name);
    }
    // Whoever learned its endpoint speaks there, too.
    for node in [right, third] {
        node.reaches(&left.inner())?;
        left.reaches(&node.inner())?;
    }
    Ok(())
}

/// Packets of 34 KB cross whole, as fragments of the cable's, over both families, and TCP with them.
pub(crate) fn carries_packets_of_34_kilobytes(s: &mut Scenario) -> Result<()> {
    let (nodes, _switch) = nodes(s, "wgj", 2)?;
    let [left, right] = &nodes[..] else { bail!("two") };
    right.add(left, "")?;
    left.add(right, &format!("endpoint {}", right.outer()))?;
    left.reaches(&right.inner())?;
    for node in [left, right] {
        node.ip(&format!("link set {} mtu {JUMBO_MTU}", node.device.name))?;
    }
    let (namespace, target) = (&left.device.host.namespace, right.inner());
    let largest = (JUMBO_MTU - 28).to_string();
    let large = ["-q", "-c", "5", "-i", "0.2", "-W", "5", "-M", "do", "-s", &largest, &target];
    for endpoint in ["203.0.113.2:51820", "[2001:db8::2]:51820"] {
        left.peer(right, &format!("endpoint {endpoint}"))?;
        retry("large packets pass", TIMEOUT, || namespace.tool("ping", &large))?;
        let mut server = right.device.host.namespace.command("iperf3");
        server.args(["-s", "-1", "-B", &target]);
        let mut server = Process::start("iperf3", server, &s.directory.join("iperf3.txt"))?;
        let client = || namespace.output("iperf3", &["-c", &target, "-n", "50M", "-f", "m"]);
        let said = retry("iperf3 connects", TIMEOUT, client)?;
        server.wait_end(TIMEOUT)?;
        let rate = said.lines().find(|line| line.contains("receiver")).context("no result")?;
        s.note(format!("by {endpoint}: {}", rate.trim()));
    }
    Ok(())
}

/// Two interfaces on each of two hosts, the second's packets inside the first's; each ends by itself.
pub(crate) fn one_interface_carries_another(s: &mut Scenario) -> Result<()> {
    let (nodes, _switch) = nodes(s, "wgi", 2)?;
    let [left, right] = &nodes[..] else { bail!("two") };
    right.add(left, "")?;
    left.add(right, &format!("endpoint {}", right.outer()))?;
    let program = Program::ours(&s.binaries.agent);
    let mut inside = Vec::new();
    for (node, number) in [(left, 1), (right, 2)] {
        let (host, name) = (&node.device.host, format!("wgi{number}in"));
        let device = program.start(host, &name, &s.directory)?;
        let keys = KeyPair::generate(host, s.directory.join(format!("{name}.key")))?;
        device.set(&format!("private-key {} listen-port 51821", keys.private.display()))?;
        node.ip(&format!("address add 10.78.0.{number}/24 dev {name}"))?;
        node.ip(&format!("link set {name} mtu 1340 up"))?;
        inside.push((device, keys));
    }
    let [(first, first_keys), (second, second_keys)] = &inside[..] else { bail!("two") };
    second.set(&format!("peer {} allowed-ips 10.78.0.1/32", first_keys.public))?;
    first.set(&format!("peer {} allowed-ips 10.78.0.2/32 endpoint 10.77.0.2:51821", second_keys.public))?;
    left.reaches("10.78.0.2")?;
    right.reaches("10.78.0.1")?;
    let largest = ["-q", "-c", "1", "-W", "5", "-M", "do", "-s", "1312", "10.78.0.2"];
    left.device.host.namespace.tool("ping", &largest)?;
    ensure!(right.shows("endpoints", left)? == left.outer(), "the outer tunnel goes elsewhere");
    // The inner one goes, and nobody else notices.
    let pinger = left.pinger(right)?;
    left.ip(&format!("link delete {}", first.name))?;
    left.does_not_reach("10.78.0.2")?;
    s.none_lost(vec![pinger])
}

/// Both ways a packet every 10 ms, while the session of 120 s becomes another.
pub(crate) fn a_session_is_renewed_under_traffic(s: &mut Scenario) -> Result<()> {
    let (nodes, _switch) = nodes(s, "wgw", 2)?;
    let [left, right] = &nodes[..] else { bail!("two") };
    right.add(left, "")?;
    left.add(right, &format!("endpoint {}", right.outer()))?;
    left.reaches(&right.inner())?;
    let (begun, first) = (Instant::now(), left.shows("latest-handshakes", right)?);
    let pingers = vec![left.pinger(right)?, right.pinger(left)?];
    let renewed = || {
        hold_for(Duration::from_secs(1), || Ok(()))?;
        Ok((left.shows("latest-handshakes", right)? != first).then_some(()))
    };
    wait_until("the session is renewed", RENEWED_WITHIN, renewed)?;
    s.note(format!("renewed after {}", ms(begun.elapsed())));
    s.require(begun.elapsed() > RENEWED_AFTER, "the session was renewed before its time");
    hold_for(Duration::from_secs(3), || Ok(()))?;
    s.none_lost(pingers)
}

/// Who has said what there was to say says nothing at 120 s either. The session ends, and the next packet makes another.
pub(crate) fn a_session_that_nobody_uses_is_not_renewed(s: &mut Scenario) -> Result<()> {
    let (nodes, _switch) = nodes(s, "wgea", 2)?;
    let [left, right] = &nodes[..] else { bail!("two") };
    right.add(left, "")?;
    left.add(right, &format!("endpoint {}", right.outer()))?;
    left.reaches(&right.inner())?;
    // Not with the handshake alone: data of the session's own time.
    let pinger = left.pinger(right)?;
    hold_for(2 * CROSSING, || Ok(()))?;
    s.none_lost(vec![pinger])?;
    let begun = Instant::now();
    let capture = Capture::start(&left.device.host.namespace, "eth0")?;
    let first = left.shows("latest-handshakes", right)?;
    hold_for(SILENCE, || Ok(()))?;
    let said = capture.since(begun, |frame| frame.is_tunnel(51820)).len();
    s.note(format!("{said} datagrams in {} s of silence", SILENCE.as_secs()));
    ensure!(left.shows("latest-handshakes", right)? == first, "a session that nobody used was renewed");
    // The answer to the last packet, and a keepalive to that at most.
    ensure!(said <= 2, "{said} datagrams were sent for nothing");
    left.reaches(&right.inner())?;
    ensure!(left.shows("latest-handshakes", right)? != first, "there was no new handshake");
    right.reaches(&left.inner())
}
