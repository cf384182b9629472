//! Looking into tunnels that run: what is counted, and captures of what goes through them.
//!
//! ```text
//!   mesh:  s1 ── switch ── a1, a2, a3        plain: left 203.0.113.1 ── switch ── right 203.0.113.2
//! ```

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use netns_tests::agent::Agent;
use netns_tests::figures::ms;
use netns_tests::mesh::{Mesh, overlay_address};
use netns_tests::pcapng::{self, Recorded};
use netns_tests::process::Process;
use netns_tests::scenario::Scenario;
use netns_tests::wait::{retry, wait_until};
use netns_tests::wireguard::SOCKETS;

use super::wg::{TIMEOUT, pair};

const PINGS: u16 = 20;
const TO_A2: u16 = 4711;
const TO_A3: u16 = 4712;
const TCP_BYTES: usize = 2_000_000;
const LIMIT: u64 = 40_000;
/// An agent has no more at once.
const MAX_CAPTURES: usize = 8;
const METRICS_PORT: u16 = 9586;
const LOCAL: Ipv4Addr = Ipv4Addr::LOCALHOST;

/// A capture that runs as a process of its own.
struct Running {
    process: Process,
    file: PathBuf,
}

impl Running {
    /// Returns when it captures.
    fn start(s: &Scenario, agent: &Agent, name: &str, options: &[&str]) -> Result<Self> {
        let file = s.directory.join(format!("{name}.pcapng"));
        let mut command = agent.host.namespace.command(&s.binaries.agent);
        command.arg("--state-dir").arg(&agent.state_directory).args(["debug", "capture", "--write"]);
        command.arg(&file).args(options);
        let process = Process::start(name, command, &s.directory.join(format!("{name}.txt")))?;
        let mut running = Self { process, file };
        running.wait_for_head()?;
        Ok(running)
    }

    fn wait_for_head(&mut self) -> Result<()> {
        let has_head = || Ok(pcapng::read(&self.file).is_ok().then_some(()));
        wait_until("the capture begins", TIMEOUT, has_head).with_context(|| self.process.log_tail(5))
    }

    /// SIGTERM, as Ctrl-C: a good end, and whole.
    fn finish(mut self) -> Result<Recorded> {
        self.process.terminate()?;
        let ended = self.process.wait_end(TIMEOUT)?;
        ensure!(ended.success(), "it ended with {ended}: {}", self.process.log_tail(5));
        let recorded = pcapng::read(&self.file)?;
        let said = self.process.log_tail(3);
        let expected = format!("{} packets captured, 0 dropped", recorded.packets.len());
        ensure!(recorded.dropped == Some(0) && said.contains(&expected), "{:?}, {said}", recorded.dropped);
        Ok(recorded)
    }
}

fn send_pings(from: &Agent, to: &str, identifier: u16, count: u16) -> Result<()> {
    let (identifier, count) = (identifier.to_string(), count.to_string());
    let arguments = ["-q", "-e", &identifier, "-c", &count, "-i", "0.01", "-W", "10", to];
    from.host.namespace.tool("ping", &arguments)
}

/// Every echo of that identifier, asked and answered, once each and in the direction that it had.
fn ensure_pings(recorded: &Recorded, identifier: u16, count: u16, peer: &str) -> Result<()> {
    for (kind, is_inbound) in [(8, false), (0, true)] {
        let of = |number| move |packet: &&pcapng::Packet| packet.echo() == Some((kind, identifier, number));
        for number in 1..=count {
            let found: Vec<_> = recorded.packets.iter().filter(of(number)).collect();
            ensure!(found.len() == 1, "echo {number} of kind {kind} is there {} times", found.len());
            let (packet, named) = (found[0], format!("peer {peer}"));
            ensure!(packet.is_inbound == is_inbound && packet.comment == named, "echo {number}: {packet:?}");
        }
    }
    Ok(())
}

/// Captures of all and of one peer, while pings and TCP cross; two with limits; as many as there may be, whose clients are killed.
pub(crate) fn captures_show_what_crosses_and_end_with_their_client(s: &mut Scenario) -> Result<()> {
    let mesh = Mesh::plan(1, 3).start(s)?;
    let [a1, a2, a3] = &mesh.agents[..] else { anyhow::bail!("three agents") };
    let (to_a2, to_a3) = (overlay_address(a1, a2)?.to_string(), overlay_address(a1, a3)?.to_string());
    let all = Running::start(s, a1, "all", &[])?;
    let one = Running::start(s, a1, "one", &["--peer", &a2.name])?;
    let mut small = Running::start(s, a1, "small", &["--limit", &LIMIT.to_string()])?;
    let mut few = Running::start(s, a1, "few", &["--count", "3", "--snaplen", "40", "--peer", &to_a3])?;
    send_pings(a1, &to_a2, TO_A2, PINGS)?;
    send_pings(a1, &to_a3, TO_A3, PINGS)?;
    carry_tcp(a1, a2, overlay_address(a1, a2)?)?;
    let (all_file, all, one) = (all.file.clone(), all.finish()?, one.finish()?);
    s.note(format!("{} packets captured, {} of {}", all.packets.len(), one.packets.len(), a2.name));
    ensure_pings(&all, TO_A2, PINGS, &a2.name)?;
    ensure_pings(&all, TO_A3, PINGS, &a3.name)?;
    ensure_pings(&one, TO_A2, PINGS, &a2.name)?;
    for recorded in [&all, &one] {
        let sent = recorded.packets.iter().filter(|packet| !packet.is_inbound);
        let carried: usize = sent.filter_map(pcapng::Packet::tcp_payload).sum();
        ensure!(carried >= TCP_BYTES, "{carried} bytes of TCP are there");
        let is_late = |pair: &&[pcapng::Packet]| pair[1].nanoseconds < pair[0].nanoseconds;
        ensure!(recorded.packets.windows(2).find(is_late).is_none(), "time goes backwards");
    }
    let a3_bytes = overlay_address(a1, a3)?.octets();
    let is_a3 =
        |packet: &pcapng::Packet| packet.ipv4().is_some_and(|(from, to)| [from, to].contains(&a3_bytes));
    ensure!(!one.packets.iter().any(is_a3), "the other peer's packets are there");
    read_with_tcpdump(&all_file, all.packets.len())?;
    ensure!(small.process.wait_end(TIMEOUT)?.success(), "{}", small.process.log_tail(5));
    let (len, small) = (small.file.metadata()?.len(), pcapng::read(&small.file)?);
    ensure!(len <= LIMIT && len > LIMIT - 2_000, "{len} bytes with a limit of {LIMIT}");
    ensure!(small.dropped.is_some(), "the counts are missing");
    ensure!(few.process.wait_end(TIMEOUT)?.success(), "{}", few.process.log_tail(5));
    let few = pcapng::read(&few.file)?;
    let is_cut = |packet: &pcapng::Packet| packet.bytes.len() == 40 && packet.len > 40;
    ensure!(few.packets.len() == 3 && few.packets.iter().all(is_cut), "{:?}", few.packets);
    killed_clients_end_their_captures(s, a1, &to_a2)?;
    mistakes_are_named(s, a1, a2)
}

fn carry_tcp(from: &Agent, to: &Agent, address: Ipv4Addr) -> Result<()> {
    let listener = to.host.namespace.run(|| TcpListener::bind((address, 5000)))??;
    let reader = std::thread::spawn(move || std::io::copy(&mut listener.accept()?.0, &mut std::io::sink()));
    let mut stream = from.host.namespace.run(|| TcpStream::connect((address, 5000)))??;
    stream.write_all(&vec![7; TCP_BYTES])?;
    drop(stream);
    let read = reader.join().map_err(|_| anyhow::anyhow!("the reader panicked"))??;
    ensure!(read == TCP_BYTES as u64, "{read} bytes arrived");
    Ok(())
}

fn read_with_tcpdump(file: &Path, packets: usize) -> Result<()> {
    let output = std::process::Command::new("tcpdump").args(["-nn", "-r"]).arg(file).output();
    let output = output.context("tcpdump is missing: packaging/install-deps.sh installs it")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "tcpdump: {said}");
    let lines = String::from_utf8_lossy(&output.stdout).lines().filter(|line| line.contains(" IP")).count();
    ensure!(lines == packets, "tcpdump sees {lines} packets of {packets}");
    Ok(())
}

/// As many as there may be, and one more, which is refused; all are killed, and as many begin again.
fn killed_clients_end_their_captures(s: &mut Scenario, agent: &Agent, address: &str) -> Result<()> {
    let ends = || -> Result<usize> {
        Ok(std::fs::read_to_string(agent.log())?.matches("a capture has ended").count())
    };
    let before = ends()?;
    let mut killed = Vec::new();
    for number in 0..MAX_CAPTURES {
        killed.push(Running::start(s, agent, &format!("killed{number}"), &[])?);
    }
    let refused = agent.command(&["debug", "capture", "-w", "-"])?;
    let said = String::from_utf8_lossy(&refused.stderr);
    ensure!(refused.status.code() == Some(1) && said.contains("captures run already"), "it says {said}");
    killed.iter_mut().try_for_each(|capture| capture.process.kill().map(drop))?;
    wait_until("the captures end", TIMEOUT, || Ok((ends()? >= before + MAX_CAPTURES).then_some(())))?;
    let mut again = Vec::new();
    for number in 0..MAX_CAPTURES {
        again.push(Running::start(s, agent, &format!("again{number}"), &[])?);
    }
    send_pings(agent, address, TO_A2, 3)?;
    again.into_iter().try_for_each(|capture| ensure_captured(&capture.finish()?))
}

fn ensure_captured(recorded: &Recorded) -> Result<()> {
    let echoes = recorded.packets.iter().filter(|packet| packet.echo().is_some()).count();
    ensure!(echoes == 6, "{echoes} echoes of 3 and their answers");
    Ok(())
}

fn mistakes_are_named(s: &Scenario, agent: &Agent, peer: &Agent) -> Result<()> {
    let refused = |arguments: &[&str], code: i32, words: &[&str]| -> Result<()> {
        let mut all = vec!["debug", "capture"];
        all.extend(arguments);
        let output = agent.command(&all)?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(output.status.code() == Some(code), "{all:?} ended with {}: {said}", output.status);
        ensure!(words.iter().all(|word| said.contains(word)), "{all:?} says {said}");
        Ok(())
    };
    let file = s.directory.join("all.pcapng").display().to_string();
    refused(&["--write", &file], 1, &[&file, "--force"])?;
    refused(&["--peer", &format!("{}x", peer.name), "-w", "-"], 1, &["no peer is known", &peer.name])?;
    refused(&["--limit", "much"], 2, &["much"])?;
    let mut nobody = agent.host.namespace.command(&s.binaries.agent);
    nobody.args(["--state-dir", "/nonexistent", "debug", "capture", "-w", "-"]);
    let code = nobody.output()?.status.code();
    ensure!(code == Some(3), "without a daemon it ends with {code:?}");
    let mut other = agent.host.namespace.command(&s.binaries.agent);
    let output = other.args(["--interface", "none0", "debug", "capture", "-w", "-"]).output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.code() == Some(3) && said.contains("none0"), "{}: {said}", output.status);
    Ok(())
}

/// `agent wg` has no mesh's socket: it is captured through its configuration socket, and `wg` goes on.
pub(crate) fn a_plain_interface_is_captured(s: &mut Scenario) -> Result<()> {
    let (left, right, _switch) = pair(s, "wgca")?;
    left.reaches(&right.inner())?;
    let file = s.directory.join("plain.pcapng");
    let mut command = left.device.host.namespace.command(&s.binaries.agent);
    command.args([
        "--interface",
        "wgca1",
        "debug",
        "capture",
        "--count",
        "4",
        "--peer",
        &right.inner(),
        "-w",
    ]);
    command.arg(&file);
    let mut capture = Process::start("capture", command, &s.directory.join("capture.txt"))?;
    wait_until("the capture begins", TIMEOUT, || Ok(pcapng::read(&file).is_ok().then_some(())))
        .with_context(|| capture.log_tail(5))?;
    left.reaches(&right.inner())?;
    left.reaches(&right.inner())?;
    ensure!(capture.wait_end(TIMEOUT)?.success(), "{}", capture.log_tail(5));
    let recorded = pcapng::read(&file)?;
    let kinds: Vec<u8> = recorded.packets.iter().filter_map(|packet| Some(packet.echo()?.0)).collect();
    ensure!(kinds == [8, 0, 8, 0], "echoes of kinds {kinds:?}");
    let named = format!("peer {}", right.keys.public);
    ensure!(recorded.packets.iter().all(|packet| packet.comment == named), "{:?}", recorded.packets[0]);
    left.wg(&["show", "wgca1", "dump"])?;
    Ok(())
}

/// A peer that uses a wrong address is counted and named everywhere: status, metrics by command and by HTTP, and what `wg` reads over.
pub(crate) fn counters_are_told_everywhere(s: &mut Scenario) -> Result<()> {
    let mut mesh = Mesh::plan(1, 0).servers_only(s)?;
    for (number, interface) in (0..).zip(["wgcb1", "wgcb2"]) {
        let agent = mesh.add_agent(number)?;
        interface.clone_into(&mut agent.interface);
        agent.options.extend(["--metrics-listen".to_owned(), METRICS_PORT.to_string()]);
    }
    mesh.start_agents()?;
    let [a1, a2] = &mesh.agents[..] else { anyhow::bail!("two agents") };
    let (own, other) = (overlay_address(a2, a1)?, overlay_address(a1, a2)?.to_string());
    send_pings(a1, &other, TO_A2, 5)?;
    a2.host.namespace.ip("address add 100.127.255.9/32 dev wgcb2")?;
    let forged = ["-q", "-c", "1", "-W", "1", "-I", "100.127.255.9", &own.to_string()];
    ensure!(a2.host.namespace.tool("ping", &forged).is_err(), "an answer to a forged source");
    wait_until("it is counted", TIMEOUT, || Ok(a1.ask(&["status"])?.contains("1 bad source").then_some(())))?;
    let status: serde_json::Value = serde_json::from_str(&a1.ask(&["status", "--json"])?)?;
    let peer = &status["peers"][0];
    ensure!(status["drops"]["bad_source"] == 1 && status["drops"]["no_endpoint"] == 0, "{}", status["drops"]);
    ensure!(
        peer["drops"] == serde_json::json!({"bad_source": 1}) && peer["handshakes"].as_u64() >= Some(1),
        "{peer}"
    );
    ensure!(peer["tx_packets"] == 5 && peer["rx_packets"] == 5, "{peer}");
    ensure!(
        status["traffic"]["sessions"] == 1 && status["traffic"]["tx_packets"] == 5,
        "{}",
        status["traffic"]
    );
    metrics_are_served(s, a1, &a2.name)?;
    let shown = a1.host.namespace.output("wg", &["show", "wgcb1", "dump"])?;
    ensure!(shown.lines().count() == 2, "`wg show wgcb1 dump` shows\n{shown}");
    let told = configuration("wgcb1")?;
    ensure!(
        told.matches("drop_bad_source=1\n").count() == 2 && told.contains("\nrx_packets=5\n"),
        "no counters"
    );
    Ok(())
}

fn metrics_are_served(s: &mut Scenario, agent: &Agent, peer: &str) -> Result<()> {
    let (served, printed) = (get(agent, LOCAL, "/metrics")?, agent.ask(&["metrics"])?);
    for text in [&served, &printed] {
        for line in [
            "# HELP holdfast_drops_total ",
            "holdfast_drops_total{reason=\"bad_source\"} 1",
            "holdfast_packets_total{direction=\"tx\"} 5",
            "holdfast_peers{tunnel=\"connected\"} 1",
            "holdfast_sessions_live 1",
            "holdfast_served 1",
            "holdfast_failovers_total 0",
            "role=\"active\"",
            "holdfast_map_age_seconds ",
        ] {
            ensure!(text.contains(line), "{line:?} is missing in\n{text}");
        }
        ensure!(!text.contains("holdfast_peer_"), "series of peers that nobody asked for");
    }
    let of_peer = format!("holdfast_peer_drops_total{{peer=\"{peer}\",reason=\"bad_source\"}} 1");
    for text in [get(agent, LOCAL, "/metrics?peers=1")?, agent.ask(&["metrics", "--peers"])?] {
        ensure!(text.contains(&of_peer), "{of_peer:?} is missing in\n{text}");
    }
    s.note(format!("{} series without peers", served.lines().filter(|line| !line.starts_with('#')).count()));
    ensure!(get(agent, LOCAL, "/")?.starts_with("HTTP/1.1 404"), "another path is served");
    let _holder = agent.host.namespace.run(|| TcpListener::bind(("127.0.0.1", 9999)))??;
    let refused = agent.command(&["set", "--metrics-listen", "9999"])?;
    ensure!(!refused.status.success(), "a taken address is taken");
    ensure!(get(agent, LOCAL, "/metrics").is_ok(), "the former address is given up");
    agent.ask(&["set", "--metrics-listen", "off"])?;
    let is_closed = || Ok(get(agent, LOCAL, "/metrics").is_err().then_some(()));
    wait_until("metrics are off", TIMEOUT, is_closed)
}

/// At a node's own address in the overlay, once that is there: peers read them through the tunnel, and nobody else does. A start begins without the interface.
pub(crate) fn metrics_are_served_in_the_overlay(s: &mut Scenario) -> Result<()> {
    let mut mesh = Mesh::plan(1, 2).start(s)?;
    let own = overlay_address(&mesh.agents[1], &mesh.agents[0])?;
    let at = format!("{own}:{METRICS_PORT}");
    mesh.agents[0].ask(&["set", "--metrics-listen", &at])?;
    let is_served = |mesh: &Mesh| -> Result<()> {
        let told = get(&mesh.agents[1], own, "/metrics")?;
        ensure!(told.contains("holdfast_served 1"), "it says {told}");
        ensure!(get(&mesh.agents[0], LOCAL, "/metrics").is_err(), "they are served outside the overlay");
        Ok(())
    };
    is_served(&mesh)?;
    let stranger = mesh.bystander("x", 0)?;
    let underlay = mesh.agents[0].underlay;
    let outside = stranger.namespace.run(|| TcpStream::connect((underlay, METRICS_PORT)))?;
    ensure!(outside.is_err(), "they are served to the network outside");
    let foreign = format!("192.0.2.250:{METRICS_PORT}");
    let refused = mesh.agents[0].command(&["set", "--metrics-listen", &foreign])?;
    let said = String::from_utf8_lossy(&refused.stderr);
    ensure!(!refused.status.success() && said.contains(&foreign), "an address of nobody's: {said}");
    is_served(&mesh)?;
    mesh.agents[0].stop()?;
    let restarted = mesh.agents[0].launch()?;
    mesh.agents[0].follow()?;
    retry("metrics are served again", TIMEOUT, || is_served(&mesh))?;
    s.note(format!("a restart: served at its overlay address after {}", ms(restarted.elapsed())));
    Ok(())
}

/// The head and body of an answer.
fn get(from: &Agent, address: Ipv4Addr, path: &str) -> Result<String> {
    let mut stream = from.host.namespace.run(|| TcpStream::connect((address, METRICS_PORT)))??;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: agent\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

/// What a `get` at the configuration socket tells.
fn configuration(interface: &str) -> Result<String> {
    let mut stream = UnixStream::connect(Path::new(SOCKETS).join(format!("{interface}.sock")))?;
    stream.write_all(b"get=1\n\n")?;
    let (mut told, mut buffer) = (String::new(), [0; 4096]);
    while !told.contains("errno=") {
        let count = stream.read(&mut buffer)?;
        ensure!(count > 0, "the socket was closed");
        told.push_str(std::str::from_utf8(&buffer[..count])?);
    }
    Ok(told)
}
