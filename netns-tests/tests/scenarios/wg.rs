//! `agent wg` under Debian's `wg` and `wg-quick`: plain WireGuard interfaces without servers.
//!
//! ```text
//!   left  eth0 203.0.113.1, 2001:db8::1 ──┐        inside: left 10.77.0.1, right 10.77.0.2,
//!   right eth0 203.0.113.2, 2001:db8::2 ──┤ switch         third 10.77.0.3
//!   third eth0 203.0.113.3              ──┘
//! ```

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use netns_tests::figures::ms;
use netns_tests::ping::Pinger;
use netns_tests::scenario::Scenario;
use netns_tests::topology::{Host, Switch};
use netns_tests::wait::{hold_for, retry, wait_until};
use netns_tests::wireguard::{Device, KeyPair, Program, SOCKETS};

pub(crate) const TIMEOUT: Duration = Duration::from_secs(30);
const PING_INTERVAL: Duration = Duration::from_millis(10);
/// Some dozens of packets cross.
const CROSSING: Duration = Duration::from_millis(500);
pub(crate) const MANY_PEERS: u16 = 3000;

/// A host with one interface.
pub(crate) struct Node {
    pub(crate) device: Device,
    pub(crate) keys: KeyPair,
    number: u8,
}

impl Node {
    /// The interface has its key, listens at port 51820, is up and has its address.
    pub(crate) fn start(s: &Scenario, host: &Host, name: &str, number: u8) -> Result<Self> {
        let device = Program::ours(&s.binaries.agent).start(host, name, &s.directory)?;
        Self::configure(s, device, number)
    }

    pub(crate) fn configure(s: &Scenario, device: Device, number: u8) -> Result<Self> {
        Self::configure_where(s, device, number, |_| Ok(true))
    }

    /// With a public key that is as wanted.
    pub(crate) fn configure_where(
        s: &Scenario,
        device: Device,
        number: u8,
        is_wanted: impl Fn(&str) -> Result<bool>,
    ) -> Result<Self> {
        let name = device.name.clone();
        let file = s.directory.join(format!("{name}.key"));
        let keys = KeyPair::generate_where(&device.host, file, is_wanted)?;
        device.set(&format!("private-key {} listen-port 51820", keys.private.display()))?;
        let node = Self { device, keys, number };
        node.ip(&format!("address add {}/24 dev {name}", node.inner()))?;
        node.ip(&format!("link set {name} up"))?;
        Ok(node)
    }

    pub(crate) fn inner(&self) -> String {
        format!("10.77.0.{}", self.number)
    }

    pub(crate) fn outer(&self) -> String {
        format!("203.0.113.{}:51820", self.number)
    }

    /// `wg set .. peer OTHER` with its own address and more.
    pub(crate) fn add(&self, other: &Node, more: &str) -> Result<()> {
        self.peer(other, &format!("allowed-ips {}/32 {more}", other.inner()))
    }

    pub(crate) fn peer(&self, other: &Node, arguments: &str) -> Result<()> {
        self.device.set(&format!("peer {} {arguments}", other.keys.public))
    }

    pub(crate) fn ip(&self, arguments: &str) -> Result<()> {
        self.device.host.namespace.ip(arguments)
    }

    pub(crate) fn wg(&self, arguments: &[&str]) -> Result<String> {
        self.device.host.namespace.output("wg", arguments)
    }

    /// What `wg show .. WHAT` says of a peer.
    pub(crate) fn shows(&self, what: &str, of: &Node) -> Result<String> {
        let shown = self.wg(&["show", &self.device.name, what])?;
        let line = shown.lines().find_map(|line| line.strip_prefix(of.keys.public.as_str()));
        Ok(line.with_context(|| format!("no such peer in {shown:?}"))?.trim().to_owned())
    }

    pub(crate) fn wait_shows(&self, what: &str, of: &Node, expected: &str) -> Result<()> {
        let goal = format!("{} shows {what} {expected}", self.device.name);
        wait_until(&goal, TIMEOUT, || Ok((self.shows(what, of)? == expected).then_some(())))
    }

    /// One packet and its answer; what comes first may wait for a handshake.
    pub(crate) fn reaches(&self, address: &str) -> Result<()> {
        self.device.host.namespace.tool("ping", &["-q", "-c", "1", "-W", "10", address])
    }

    pub(crate) fn does_not_reach(&self, address: &str) -> Result<()> {
        let answered =
            self.device.host.namespace.tool("ping", &["-q", "-c", "2", "-i", "0.2", "-W", "1", address]);
        ensure!(answered.is_err(), "{} answers {}", address, self.device.name);
        Ok(())
    }

    pub(crate) fn pinger(&self, to: &Node) -> Result<Pinger> {
        let target = to.inner().parse().context("an address")?;
        Pinger::start(self.device.name.as_str(), &self.device.host.namespace, target, PING_INTERVAL)
    }

    pub(crate) fn socket(&self) -> PathBuf {
        PathBuf::from(SOCKETS).join(format!("{}.sock", self.device.name))
    }
}

/// `count` hosts on one switch, with interfaces named `{prefix}1`, `{prefix}2`, ..; nobody knows anybody.
pub(crate) fn nodes(s: &Scenario, prefix: &str, count: u8) -> Result<(Vec<Node>, Switch)> {
    let switch = Switch::new()?;
    let mut nodes = Vec::new();
    for number in 1..=count {
        let host = Host::new(format!("{prefix}{number}"))?;
        switch.attach(&host, &format!("203.0.113.{number}/24"))?;
        host.namespace.ip(&format!("address add 2001:db8::{number}/64 dev eth0 nodad"))?;
        nodes.push(Node::start(s, &host, &format!("{prefix}{number}"), number)?);
    }
    Ok((nodes, switch))
}

/// Both know each other; only the first knows where the other is.
pub(crate) fn pair(s: &Scenario, prefix: &str) -> Result<(Node, Node, Switch)> {
    let (mut nodes, switch) = nodes(s, prefix, 2)?;
    let (right, left) = (nodes.pop().context("two")?, nodes.pop().context("two")?);
    left.add(&right, &format!("endpoint {}", right.outer()))?;
    right.add(&left, "")?;
    Ok((left, right, switch))
}

/// `wg set`, `show`, `setconf`, `addconf`, `syncconf`: what is set is shown, what is synced loses no session.
pub(crate) fn is_configured_by_wg(s: &mut Scenario) -> Result<()> {
    let (left, right, _switch) = pair(s, "wga")?;
    left.reaches(&right.inner())?;
    ensure!(right.shows("endpoints", &left)? == left.outer(), "the right did not learn where the left is");
    ensure!(left.shows("latest-handshakes", &right)? != "0", "no handshake is shown");
    let bytes: Vec<u64> =
        left.shows("transfer", &right)?.split_whitespace().map(|word| word.parse().unwrap_or(0)).collect();
    // A response, and an echo with padding; a keepalive besides them.
    ensure!(bytes[0] >= 92 + 128 && bytes[1] >= 148 + 128 + 32, "transfer is {bytes:?}");
    let pinger = left.pinger(&right)?;
    let name = left.device.name.as_str();
    let file = s.directory.join("synced.conf");
    let shown = left.wg(&["showconf", name])?;
    std::fs::write(&file, format!("{shown}PersistentKeepalive = 25\n"))?;
    let file = file.to_string_lossy().into_owned();
    left.wg(&["syncconf", name, &file])?;
    ensure!(left.shows("persistent-keepalive", &right)? == "25", "syncconf changed nothing");
    hold_for(CROSSING, || Ok(()))?;
    left.device.set("fwmark 0x77")?;
    hold_for(CROSSING, || Ok(()))?;
    ensure!(left.wg(&["show", name, "fwmark"])?.trim() == "0x77", "the mark is not shown");
    s.none_lost(vec![pinger])?;
    left.wg(&["setconf", name, &file])?;
    ensure!(left.wg(&["show", name, "fwmark"])?.trim() == "off", "setconf left the mark");
    left.reaches(&right.inner())?;
    std::fs::write(&file, format!("[Peer]\nPublicKey = {}\nAllowedIPs = 10.9.0.0/16\n", left_out(&left)?))?;
    left.wg(&["addconf", name, &file])?;
    ensure!(left.wg(&["show", name, "peers"])?.lines().count() == 2, "addconf added nothing");
    left.peer(&right, "remove")?;
    ensure!(left.wg(&["show", name, "peers"])?.lines().count() == 1, "the peer was not removed");
    left.does_not_reach(&right.inner())
}

/// A key that nobody has.
fn left_out(node: &Node) -> Result<String> {
    let host = &node.device.host;
    host.namespace.output("sh", &["-c", "wg genkey | wg pubkey"]).map(|key| key.trim().to_owned())
}

/// A session lasts over a new preshared key on one side, then on both; what is renewed is renewed with it.
pub(crate) fn preshared_key_is_added_without_loss(s: &mut Scenario) -> Result<()> {
    let (left, right, _switch) = pair(s, "wgp")?;
    left.reaches(&right.inner())?;
    let key = KeyPair::generate(&left.device.host, s.directory.join("preshared"))?;
    let preshared = format!("preshared-key {}", key.private.display());
    let pinger = left.pinger(&right)?;
    hold_for(CROSSING, || Ok(()))?;
    left.peer(&right, &preshared)?;
    hold_for(CROSSING, || Ok(()))?;
    right.peer(&left, &preshared)?;
    hold_for(CROSSING, || Ok(()))?;
    s.none_lost(vec![pinger])?;
    // From nothing, both must have it.
    for (node, other) in [(&left, &right), (&right, &left)] {
        node.peer(other, "remove")?;
        node.add(other, &format!("endpoint {} {preshared}", other.outer()))?;
    }
    left.reaches(&right.inner())?;
    let other = KeyPair::generate(&left.device.host, s.directory.join("another"))?;
    right.peer(&left, "remove")?;
    right.add(&left, &format!("preshared-key {}", other.private.display()))?;
    left.peer(&right, "remove")?;
    left.add(&right, &format!("endpoint {} {preshared}", right.outer()))?;
    left.does_not_reach(&right.inner())
}

/// The endpoint follows its peer to another address, another port and another address family.
pub(crate) fn endpoints_follow_their_peers(s: &mut Scenario) -> Result<()> {
    let (left, right, _switch) = pair(s, "wgr")?;
    left.reaches(&right.inner())?;
    for (change, expected) in
        [("address", "203.0.113.77:51820"), ("port", "203.0.113.77:9999"), ("family", "[2001:db8::1]:9999")]
    {
        match change {
            "address" => {
                left.ip("address add 203.0.113.77/24 dev eth0")?;
                left.ip("address delete 203.0.113.1/24 dev eth0")?;
                // The first address takes others of its network with it.
                left.ip("address replace 203.0.113.77/24 dev eth0")?;
            }
            "port" => left.device.set("listen-port 9999")?,
            _ => left.peer(&right, "endpoint [2001:db8::2]:51820")?,
        }
        let at = Instant::now();
        left.reaches(&right.inner())?;
        right.wait_shows("endpoints", &left, expected)?;
        right.reaches(&left.inner())?;
        s.note(format!("another {change}: both ways after {}", ms(at.elapsed())));
    }
    Ok(())
}

/// A prefix within another's goes to the peer that has it, and comes from nobody else; what moves, moves at once.
pub(crate) fn the_most_specific_peer_is_spoken_to_and_believed(s: &mut Scenario) -> Result<()> {
    let (nodes, _switch) = nodes(s, "wgs", 3)?;
    let [left, right, third] = &nodes[..] else { anyhow::bail!("three") };
    left.peer(right, &format!("endpoint {} allowed-ips 10.77.0.0/24", right.outer()))?;
    left.peer(third, &format!("endpoint {} allowed-ips 10.77.0.3/32", third.outer()))?;
    for node in [right, third] {
        node.add(left, "")?;
    }
    let namespace = &left.device.host.namespace;
    namespace.nft(&format!(
        "table ip count {{ counter third {{}}; chain input {{ type filter hook input priority -300; \
         iifname \"{}\" ip saddr 10.77.0.3 counter name third; }}; }}",
        left.device.name
    ))?;
    let of_third = || arrived(left);
    left.reaches("10.77.0.2")?;
    left.reaches("10.77.0.3")?;
    let before = of_third()?;
    ensure!(before > 0, "what the third sends is not counted");
    // The right says it is the third: the wider prefix is its own, the address is not.
    right.ip(&format!("address add 10.77.0.3/32 dev {}", right.device.name))?;
    let forge = || {
        // Its answer goes to the third.
        let host = &right.device.host.namespace;
        let _ = host.tool("ping", &["-q", "-c", "1", "-W", "1", "-I", "10.77.0.3", "10.77.0.1"]);
    };
    let transfer = left.shows("transfer", right)?;
    forge();
    wait_until("the forged packet has come", TIMEOUT, || {
        Ok((left.shows("transfer", right)? != transfer).then_some(()))
    })?;
    ensure!(of_third()? == before, "the right was believed to be the third");
    // What the one is given, the other loses.
    left.peer(right, "allowed-ips 10.77.0.0/24,10.77.0.3/32")?;
    ensure!(left.shows("allowed-ips", third)? == "(none)", "two peers have one prefix");
    forge();
    wait_until("the right is believed once it may", TIMEOUT, || Ok((of_third()? > before).then_some(())))?;
    left.reaches("10.77.0.3")?;
    left.peer(right, "allowed-ips 10.77.0.2/32")?;
    left.peer(third, "allowed-ips 10.77.0.3/32")?;
    left.reaches("10.77.0.3")
}

/// How many packets of the third's address the node's system was given.
fn arrived(node: &Node) -> Result<u64> {
    let shown = node.device.host.namespace.output("nft", &["list", "counter", "ip", "count", "third"])?;
    let words: Vec<&str> = shown.split_whitespace().collect();
    let at = words.iter().position(|word| *word == "packets").context("no counter")?;
    Ok(words.get(at + 1).context("no number")?.parse()?)
}

/// Behind a translator that forgets in seconds, whoever has a persistent keepalive stays reachable.
pub(crate) fn keepalives_hold_a_translator_open(s: &mut Scenario) -> Result<()> {
    let (nodes, switch) = nodes(s, "wgk", 2)?;
    let [inside, outside] = &nodes[..] else { anyhow::bail!("two") };
    let router = Host::router("wgk-nat")?;
    netns_tests::topology::link((&inside.device.host, "192.168.7.2/24"), (&router, "192.168.7.1/24"))?;
    switch.attach(&router, "203.0.113.9/24")?;
    router.namespace.nft(
        "table ip nat { chain post { type nat hook postrouting priority 100; oifname \"eth1\" masquerade; }; }",
    )?;
    router.namespace.sysctl("net/netfilter/nf_conntrack_udp_timeout", "3")?;
    router.namespace.sysctl("net/netfilter/nf_conntrack_udp_timeout_stream", "3")?;
    inside.ip("link set eth0 down")?;
    inside.device.host.route("add default via 192.168.7.1")?;
    outside.add(inside, "")?;
    inside.add(outside, &format!("endpoint {} persistent-keepalive 1", outside.outer()))?;
    wait_until("the keepalive makes a session", TIMEOUT, || {
        Ok((outside.shows("endpoints", inside)? != "(none)").then_some(()))
    })?;
    hold_for(Duration::from_secs(6), || Ok(()))?;
    outside.reaches(&inside.inner())?;
    inside.peer(outside, "persistent-keepalive off")?;
    // The translator forgets after 3 s; after 15 s WireGuard's rules begin a handshake for what was not answered.
    hold_for(Duration::from_secs(5), || Ok(()))?;
    outside.does_not_reach(&inside.inner())
}

/// Thousands of peers in one file, and all of them again, one changed: nobody waits.
pub(crate) fn thousands_of_peers_are_loaded_at_once(s: &mut Scenario) -> Result<()> {
    let (left, right, _switch) = pair(s, "wgm")?;
    load_many(s, &left)?;
    left.reaches(&right.inner())
}

/// Loads [`MANY_PEERS`] besides those that are there, twice.
pub(crate) fn load_many(s: &mut Scenario, left: &Node) -> Result<()> {
    let name = left.device.name.as_str();
    let before = left.wg(&["show", name, "peers"])?.lines().count();
    let mut conf = left.wg(&["showconf", name])?;
    for number in 0..MANY_PEERS {
        let [high, low] = number.to_be_bytes();
        // Any 32 bytes are a public key.
        let mut key = [7; 32];
        key[..2].copy_from_slice(&[high, low]);
        conf += &format!(
            "\n[Peer]\nPublicKey = {}\nAllowedIPs = 10.{}.{low}.0/24, fd77:{number:x}::/64\nEndpoint = 203.0.113.200:{}\n",
            base64(&key),
            100 + high,
            1024 + number,
        );
    }
    let file = s.directory.join("many.conf");
    std::fs::write(&file, conf)?;
    for verb in ["setconf", "syncconf"] {
        let at = Instant::now();
        left.wg(&[verb, name, &file.to_string_lossy()])?;
        let took = at.elapsed();
        s.note(format!("{verb} of {MANY_PEERS} peers with two prefixes each: {}", ms(took)));
        s.require(took < s.widened(Duration::from_secs(5)), format!("{verb} took {}", ms(took)));
    }
    let at = Instant::now();
    let shown = left.wg(&["show", name, "peers"])?.lines().count();
    s.note(format!("wg show: {}", ms(at.elapsed())));
    ensure!(shown == usize::from(MANY_PEERS) + before, "{shown} peers are shown");
    Ok(())
}

fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let word =
            chunk.iter().fold(0u32, |word, byte| word << 8 | u32::from(*byte)) << (8 * (3 - chunk.len()));
        for place in 0..4 {
            let digit = DIGITS[(word >> (18 - 6 * place) & 63) as usize];
            text.push(if place <= chunk.len() { char::from(digit) } else { '=' });
        }
    }
    text
}

/// TCP with full-sized packets goes through, over IPv4 and over IPv6.
pub(crate) fn carries_tcp_over_both_families(s: &mut Scenario) -> Result<()> {
    let (left, right, _switch) = pair(s, "wgt")?;
    for endpoint in ["203.0.113.2:51820", "[2001:db8::2]:51820"] {
        left.peer(&right, &format!("endpoint {endpoint}"))?;
        left.reaches(&right.inner())?;
        let mut server = right.device.host.namespace.command("iperf3");
        server.args(["-s", "-1", "-B", &right.inner()]);
        let log = s.directory.join("iperf3.txt");
        let mut server = netns_tests::process::Process::start("iperf3", server, &log)?;
        let client =
            || left.device.host.namespace.output("iperf3", &["-c", &right.inner(), "-t", "1", "-f", "m"]);
        let said = retry("iperf3 connects", TIMEOUT, client)?;
        server.wait_end(TIMEOUT)?;
        let rate = said.lines().find(|line| line.contains("receiver")).context("no result")?;
        s.note(format!("by {endpoint}: {}", rate.trim()));
        ensure!(!rate.contains(" 0.00 bits/sec"), "nothing came through");
    }
    Ok(())
}

/// A program that others wrote understands us, whoever of the two begins, with a preshared key.
pub(crate) fn speaks_with_wireguard_go(s: &mut Scenario) -> Result<()> {
    let switch = Switch::new()?;
    let hosts = [Host::new("wgo1")?, Host::new("wgo2")?];
    for (host, number) in hosts.iter().zip(1..) {
        switch.attach(host, &format!("203.0.113.{number}/24"))?;
    }
    let ours = Node::start(s, &hosts[0], "wgo1", 1)?;
    let theirs = Node::configure(s, Program::wireguard_go().start(&hosts[1], "wgo2", &s.directory)?, 2)?;
    let key = KeyPair::generate(&hosts[0], s.directory.join("preshared"))?;
    let preshared = format!("preshared-key {}", key.private.display());
    for (first, second) in [(&ours, &theirs), (&theirs, &ours)] {
        second.add(first, &preshared)?;
        first.add(second, &format!("{preshared} endpoint {}", second.outer()))?;
        let at = Instant::now();
        first.reaches(&second.inner())?;
        s.note(format!("{} begins: an answer after {}", first.device.name, ms(at.elapsed())));
        second.reaches(&first.inner())?;
        let large = ["-q", "-c", "1", "-W", "10", "-M", "do", "-s", "1392", &second.inner()];
        first.device.host.namespace.tool("ping", &large)?;
        ensure!(second.shows("latest-handshakes", first)? != "0", "no handshake is shown");
        first.peer(second, "remove")?;
        second.peer(first, "remove")?;
    }
    Ok(())
}

/// Its peer comes long after WireGuard would have stopped trying (90 s).
pub(crate) fn a_persistent_keepalive_never_gives_up(s: &mut Scenario) -> Result<()> {
    let (mut nodes, _switch) = nodes(s, "wgg", 2)?;
    let (right, left) = (nodes.pop().context("two")?, nodes.pop().context("two")?);
    left.add(&right, &format!("endpoint {} persistent-keepalive 1", right.outer()))?;
    hold_for(Duration::from_secs(100), || Ok(()))?;
    ensure!(left.shows("latest-handshakes", &right)? == "0", "somebody answered");
    let at = Instant::now();
    right.add(&left, "")?;
    wait_until("there is a session", TIMEOUT, || {
        Ok((left.shows("latest-handshakes", &right)? != "0").then_some(()))
    })?;
    s.note(format!("a session {} after the peer came", ms(at.elapsed())));
    Ok(())
}
