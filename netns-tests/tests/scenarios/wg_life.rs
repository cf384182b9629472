//! The life of an `agent wg` interface: how it starts, moves, is disturbed, and ends. The topology is that of `wg`.

use std::io::{Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use netns_tests::figures::ms;
use netns_tests::mesh::{Mesh, ping};
use netns_tests::namespace::Namespace;
use netns_tests::process::Process;
use netns_tests::scenario::Scenario;
use netns_tests::topology::{Host, Switch};
use netns_tests::wait::wait_until;
use netns_tests::wireguard::{Device, KeyPair, Program};

use super::wg::{Node, TIMEOUT, nodes};

/// `wg-quick up` and `down` with a file, our program as the userspace implementation, by a link and by a copy.
pub(crate) fn wg_quick_brings_it_up_and_down(s: &mut Scenario) -> Result<()> {
    let switch = Switch::new()?;
    let hosts = [Host::new("quick1")?, Host::new("quick2")?];
    let (link, copy) = (s.directory.join("agent-wg"), s.directory.join("copy/agent-wg"));
    std::os::unix::fs::symlink(&s.binaries.agent, &link)?;
    std::fs::create_dir(s.directory.join("copy"))?;
    std::fs::copy(&s.binaries.agent, &copy)?;
    let programs = [link, copy];
    let keys: Vec<KeyPair> = (1..=2)
        .map(|number| KeyPair::generate(&hosts[0], s.directory.join(format!("quick{number}.key"))))
        .collect::<Result<_>>()?;
    for (index, host) in hosts.iter().enumerate() {
        let (number, other) = (index + 1, 2 - index);
        switch.attach(host, &format!("203.0.113.{number}/24"))?;
        let conf = format!(
            "[Interface]\nPrivateKey = {}\nAddress = 10.77.0.{number}/24\nListenPort = 51820\nMTU = 1400\n\n\
             [Peer]\nPublicKey = {}\nEndpoint = 203.0.113.{other}:51820\nAllowedIPs = 10.77.0.{other}/32, 10.88.0.0/16\n",
            std::fs::read_to_string(&keys[index].private)?.trim(),
            keys[other - 1].public
        );
        let file = s.directory.join(format!("wgq{number}.conf"));
        std::fs::write(&file, conf)?;
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600))?;
        let at = Instant::now();
        quick(&host.namespace, &programs[index], "up", &file)?;
        s.note(format!("wg-quick up: {}", ms(at.elapsed())));
    }
    hosts[0].namespace.tool("ping", &["-q", "-c", "1", "-W", "10", "10.77.0.2"])?;
    let routes = hosts[0].namespace.output("ip", &["route"])?;
    ensure!(routes.contains("10.88.0.0/16 dev wgq1"), "wg-quick made no route: {routes}");
    for (host, number) in hosts.iter().zip(1..) {
        quick(&host.namespace, &programs[0], "down", &s.directory.join(format!("wgq{number}.conf")))?;
        let socket = Path::new("/var/run/wireguard").join(format!("wgq{number}.sock"));
        wait_until("the socket goes with the interface", TIMEOUT, || Ok((!socket.exists()).then_some(())))?;
    }
    Ok(())
}

fn quick(namespace: &Namespace, program: &Path, verb: &str, file: &Path) -> Result<()> {
    let mut command = namespace.command("wg-quick");
    command.env("WG_QUICK_USERSPACE_IMPLEMENTATION", program).arg(verb).arg(file);
    let output = command.output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "wg-quick {verb}: {said}");
    Ok(())
}

/// Interface and socket were opened by whoever starts the program; the interface's own name counts.
pub(crate) fn takes_over_what_was_opened_for_it(s: &mut Scenario) -> Result<()> {
    let (mut nodes, switch) = nodes(s, "wgf", 1)?;
    let (right, host) = (nodes.remove(0), Host::new("wgf2")?);
    switch.attach(&host, "203.0.113.2/24")?;
    let socket = Path::new("/var/run/wireguard/wgf2.sock");
    // A copy of a descriptor is left open to the program that is started.
    let tun = dup(&host.namespace.run(|| open_tun("wgf2"))??)?;
    let listener = dup(&UnixListener::bind(socket)?.into())?;
    let mut command = host.namespace.command(&s.binaries.agent);
    command.args(["wg", "--foreground", "another"]);
    command.env("WG_TUN_FD", tun.as_raw_fd().to_string());
    command.env("WG_UAPI_FD", listener.as_raw_fd().to_string());
    let process = Process::start("agent wg", command, &s.directory.join("wgf2.txt"))?;
    drop((tun, listener));
    let left = Node::configure(s, Device { host, name: "wgf2".into(), process }, 2)?;
    right.add(&left, "")?;
    left.add(&right, &format!("endpoint {}", right.outer()))?;
    left.reaches(&right.inner())?;
    left.device.host.namespace.ip("link delete wgf2")?;
    let mut process = left.device.process;
    let ended = process.wait_end(TIMEOUT)?;
    ensure!(ended.success() && !socket.exists(), "the interface's end: {ended}, {}", process.log_tail(5));
    Ok(())
}

/// Without the right to as many descriptors as it waits for, the data plane cannot work: that is told from a deletion.
pub(crate) fn a_fault_is_no_good_end(s: &mut Scenario) -> Result<()> {
    let (mut nodes, _switch) = nodes(s, "wgd", 1)?;
    let Node { device, .. } = nodes.remove(0);
    let Device { host, name, mut process } = device;
    let pid = libc::pid_t::try_from(process.pid())?;
    let none = libc::rlimit { rlim_cur: 1, rlim_max: 1 };
    // SAFETY: the limit lives through the call, and nothing is asked for in return.
    let done = unsafe { libc::prlimit(pid, libc::RLIMIT_NOFILE, &raw const none, std::ptr::null_mut()) };
    ensure!(done == 0, "prlimit: {}", std::io::Error::last_os_error());
    // A packet wakes it.
    let _ = host.namespace.tool("ping", &["-q", "-c", "1", "-W", "1", "10.77.0.9"]);
    let ended = process.wait_end(TIMEOUT)?;
    let log = process.log_tail(20);
    ensure!(ended.code() == Some(1) && log.contains("ERROR"), "{name} ended with {ended}: {log}");
    Ok(())
}

fn dup(descriptor: &OwnedFd) -> Result<OwnedFd> {
    // SAFETY: takes and returns integers; the copy is nobody's but ours.
    let copy = unsafe { libc::dup(descriptor.as_raw_fd()) };
    ensure!(copy >= 0, "dup: {}", std::io::Error::last_os_error());
    // SAFETY: as above.
    Ok(unsafe { OwnedFd::from_raw_fd(copy) })
}

/// A new interface in the calling thread's namespace.
fn open_tun(name: &str) -> Result<OwnedFd> {
    // _IOW('T', 202, int)
    const TUNSETIFF: libc::Ioctl = 0x4004_54ca;
    let file = std::fs::File::options().read(true).write(true).open("/dev/net/tun")?;
    // SAFETY: all-zero bytes are a valid ifreq, which lives through the call.
    let done = unsafe {
        let mut request: libc::ifreq = std::mem::zeroed();
        for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
            *to = from.cast_signed() as libc::c_char;
        }
        request.ifr_ifru.ifru_flags = (libc::IFF_TUN | libc::IFF_NO_PI) as libc::c_short;
        libc::ioctl(file.as_raw_fd(), TUNSETIFF, &raw mut request)
    };
    ensure!(done == 0, "TUNSETIFF: {}", std::io::Error::last_os_error());
    Ok(file.into())
}

/// The interface goes to a namespace without any other network; its own packets still leave where it was made.
pub(crate) fn moves_to_another_namespace(s: &mut Scenario) -> Result<()> {
    let (nodes, _switch) = nodes(s, "wgn", 2)?;
    let [left, right] = &nodes[..] else { anyhow::bail!("two") };
    move_away(left, right)
}

/// The left's interface goes elsewhere, has another MTU, and is deleted there.
pub(crate) fn move_away(left: &Node, right: &Node) -> Result<()> {
    left.add(right, &format!("endpoint {}", right.outer()))?;
    right.add(left, "")?;
    left.reaches(&right.inner())?;
    let room = Host::new(format!("{}-room", left.device.name))?;
    let name = left.device.name.as_str();
    // `ip` finds a namespace by a process in it.
    let sleeper = room.namespace.command("sleep").arg("60").spawn()?;
    let moved = left.ip(&format!("link set {name} netns {}", sleeper.id()));
    let mut sleeper = sleeper;
    sleeper.kill()?;
    sleeper.wait()?;
    moved?;
    room.namespace.ip(&format!("address add {}/24 dev {name}", left.inner()))?;
    room.namespace.ip(&format!("link set {name} mtu 1300 up"))?;
    let reach = |size: &str| {
        room.namespace.tool("ping", &["-q", "-c", "3", "-i", "0.2", "-W", "10", "-s", size, &right.inner()])
    };
    reach("56")?;
    // Larger than what the interface was made for.
    for device in [&room.namespace, &right.device.host.namespace] {
        let name = if std::ptr::eq(device, &room.namespace) { name } else { &right.device.name };
        device.ip(&format!("link set {name} mtu 9000"))?;
    }
    wait_until("large packets pass", TIMEOUT, || Ok(reach("8900").ok()))?;
    // `wg` sees it from anywhere, and the socket is configured as before.
    left.peer(right, "persistent-keepalive 5")?;
    room.namespace.ip(&format!("link delete {name}"))?;
    wait_until("the socket goes with the interface", TIMEOUT, || Ok((!left.socket().exists()).then_some(())))
}

/// Garbage, an endless line, half a request, and much of it at once: the next caller is served at once.
pub(crate) fn hostile_callers_harm_nobody(s: &mut Scenario) -> Result<()> {
    let (mut nodes, _switch) = nodes(s, "wgh", 2)?;
    let [left, right] = &nodes[..] else { anyhow::bail!("two") };
    left.add(right, &format!("endpoint {}", right.outer()))?;
    right.add(left, "")?;
    // A handshake's first packet may be lost while links come up; the next is sent after 5 s.
    left.reaches(&right.inner())?;
    let pinger = left.pinger(right)?;
    let socket = left.socket();
    let mode = |path: &Path| Ok::<_, std::io::Error>(std::fs::metadata(path)?.permissions().mode() & 0o777);
    ensure!(mode(&socket)? == 0o600, "the socket is open to others");
    let garbage: Vec<u8> = (0..100_000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    for bytes in [&garbage[..], &b"x".repeat(10_000_000), b"get=1\nget=1\n\n", b"\0\n\n"] {
        let answer = say(&socket, bytes)?;
        ensure!(answer.is_empty() || answer.starts_with("errno=-22"), "{answer:?} to garbage");
    }
    for (request, expected) in [
        ("set=1\nlisten_port=99999\n\n", "errno=-22\n\n"),
        ("set=1\nprivate_key=00\nlisten_port=1\n\n", "errno=-22\n\n"),
        ("set=1\n\n", "errno=0\n\n"),
    ] {
        ensure!(say(&socket, request.as_bytes())? == expected, "{request:?} is answered otherwise");
    }
    // A port of somebody else, in one request with what could be done: nothing of it is done.
    let taken = left.device.host.namespace.run(|| std::net::UdpSocket::bind(("0.0.0.0", 0)))??;
    let request = format!("set=1\nfwmark=5\nlisten_port={}\n\n", taken.local_addr()?.port());
    ensure!(say(&socket, request.as_bytes())? == "errno=-98\n\n", "a taken port is no error");
    ensure!(left.wg(&["show", &left.device.name, "fwmark"])?.trim() == "off", "half of a request was done");
    let mut halves: Vec<UnixStream> = Vec::new();
    for _ in 0..60 {
        let mut half = UnixStream::connect(&socket)?;
        half.write_all(b"set=1\nlisten_po")?;
        halves.push(half);
    }
    let at = Instant::now();
    let two = say(&socket, b"get=1\n\nget=1\n\n")?;
    ensure!(two.contains("listen_port=51820\n"), "no answer beside halves of requests: {two}");
    s.note(format!("answered beside 60 halves of requests after {}", ms(at.elapsed())));
    let mut rest = String::new();
    halves[0].set_read_timeout(Some(Duration::from_secs(60)))?;
    halves[0].read_to_string(&mut rest)?;
    s.note(format!("half a request is let go after {}", ms(at.elapsed())));
    s.none_lost(vec![pinger])?;
    for node in &mut nodes {
        ensure!(node.device.process.ended()?.is_none(), "{} ended", node.device.name);
    }
    Ok(())
}

/// Says it all, and reads what is answered until the first end of an answer or of the connection.
fn say(socket: &Path, bytes: &[u8]) -> Result<String> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    // Who is not listened to any more cannot say all.
    let _ = stream.write_all(bytes);
    let (mut answer, mut buffer) = (Vec::new(), [0; 4096]);
    while !answer.ends_with(b"\n\n") {
        match stream.read(&mut buffer) {
            Ok(len) if len > 0 => answer.extend_from_slice(&buffer[..len]),
            _ => break,
        }
    }
    Ok(String::from_utf8(answer)?)
}

/// After kill -9 the name is free at once; while it is served, nobody else gets it.
pub(crate) fn starts_again_after_kill_9_and_only_once(s: &mut Scenario) -> Result<()> {
    let (mut nodes, _switch) = nodes(s, "wgl", 1)?;
    let mut left = nodes.remove(0);
    let host = left.device.host.clone();
    let again = host.namespace.command(&s.binaries.agent).args(["wg", "wgl1"]).output()?;
    let said = String::from_utf8_lossy(&again.stderr).into_owned();
    ensure!(
        again.status.code() == Some(1) && said.contains("wgl1"),
        "a second start: {} {said}",
        again.status
    );
    // In another namespace the interface's name is free, but not the socket's.
    let elsewhere = Host::new("wgl-else")?;
    let again = elsewhere.namespace.command(&s.binaries.agent).args(["wg", "wgl1"]).output()?;
    let said = String::from_utf8_lossy(&again.stderr).into_owned();
    ensure!(!again.status.success() && said.contains("wgl1.sock"), "a second start elsewhere: {said}");
    for _ in 0..3 {
        left.device.process.kill()?;
        ensure!(left.socket().exists(), "kill -9 leaves the socket");
        left = Node::start(s, &host, "wgl1", 1)?;
    }
    std::fs::remove_file(left.socket())?;
    let ended = left.device.process.wait_end(TIMEOUT)?;
    ensure!(ended.success(), "the end of the socket is the end of the process, and a good one: {ended}");
    // In the background the same.
    let program = Program::ours(&s.binaries.agent);
    let mut device = program.start(&host, "wgl1", &s.directory)?;
    device.process.terminate()?;
    ensure!(device.process.wait_end(TIMEOUT)?.success(), "SIGTERM is a good end");
    ensure!(!left.socket().exists(), "the socket is left");
    let links = host.namespace.output("ip", &["-o", "link"])?;
    ensure!(!links.contains("wgl1"), "the interface is left: {links}");
    Ok(())
}

/// Nobody else's name: agents of other scenarios run meanwhile.
const SHOWN: &str = "wgv1";

/// `wg show` sees the mesh's interface, and `wg set` cannot touch it.
pub(crate) fn the_meshs_interface_is_shown_and_not_set(s: &mut Scenario) -> Result<()> {
    let mut mesh = Mesh::plan(1, 0).servers_only(s)?;
    for (number, interface) in (0..).zip([SHOWN, "wgv2"]) {
        let agent = mesh.add_agent(number)?;
        interface.clone_into(&mut agent.interface);
        agent.start()?;
    }
    for agent in &mesh.agents {
        agent.wait_now(TIMEOUT, "is served and knows the other", |status| {
            status.served_by().is_some() && status.peers.len() == 1
        })?;
    }
    ping(&mesh.agents[0], &mesh.agents[1])?.finish()?;
    let namespace = &mesh.agents[0].host.namespace;
    let shown = namespace.output("wg", &["show", SHOWN])?;
    for word in ["listening port", "latest handshake", "allowed ips: 100.64.", "transfer"] {
        ensure!(shown.contains(word), "`wg show {SHOWN}` shows no {word:?}:\n{shown}");
    }
    let refused = namespace.command("wg").args(["set", SHOWN, "listen-port", "1"]).output()?;
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    ensure!(!refused.status.success() && said.contains("not supported"), "`wg set {SHOWN}` says: {said}");
    ping(&mesh.agents[0], &mesh.agents[1])?.finish()?;
    Ok(())
}
