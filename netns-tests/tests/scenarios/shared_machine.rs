//! Machines that cannot serve all that their nodes claim: those claims are withdrawn and no others, told with what to do, and served again once the machine is mended, by the same agent.
//!
//! ```text
//!   s1 ─┐         ┌─ a1 ─ 10.1.0.1 ─┐
//!       ├ switch ─┼─ a2 ─ 10.1.0.2 ─┴ lan ─ h1 10.1.0.10
//!       ┘         └─ a3, a client
//! ```

use std::fs::Permissions;
use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use netns_tests::agent::Agent;
use netns_tests::mesh::{FIVE_MS, Mesh};
use netns_tests::ping::Pinger;
use netns_tests::scenario::Scenario;
use netns_tests::status::OwnClaim;
use netns_tests::topology::{Host, Switch};
use netns_tests::wait::wait_until;

use crate::shared::{CLAIM, SHARED, SUBNET, TIMEOUT, claimers, forwards, grant, masquerades, served};

const ADDRESS_V6: &str = "fd77::1/128";
const SUBNET_V6: &str = "fd78::/64";
const V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, 1));
/// Nobody listens there.
const CLOSED_PORT: u16 = 9;
const HOST: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 10);
/// A mended machine is looked at after pauses that grow.
const MENDED: Duration = Duration::from_secs(40);

/// On the router that serves, `nft` fails: the subnet goes to the other router, and the address that it also claims stays where it is. Mended, the subnet is served there again.
pub(crate) fn without_nft_serves_its_other_claims(s: &mut Scenario) -> Result<()> {
    s.expect_warning("what this node claims may not be served");
    let programs = ["a1", "a2"].map(|name| s.directory.join(format!("programs of {name}")));
    let lan = Switch::new()?;
    let (subnet, address) = (format!("{SUBNET}@5"), format!("{CLAIM}@5"));
    let options = [
        ["--claim", &subnet, "--claim", &address, "--masquerade"],
        ["--claim", SUBNET, "--claim", CLAIM, "--masquerade"],
    ];
    let mut mesh = claimers(s, &[], &["--accept-routes"])?;
    for (number, router) in mesh.agents[..2].iter_mut().enumerate() {
        lan.attach(&router.host, &format!("10.1.0.{}/24", number + 1))?;
        router.stop()?;
        router.options.extend(options[number].map(str::to_owned));
        std::fs::create_dir(&programs[number])?;
        let path = std::env::var("PATH").context("there is a PATH")?;
        router.environment.push(("PATH".to_owned(), format!("{}:{path}", programs[number].display())));
        router.start()?;
    }
    let host = Host::new("h1")?;
    lan.attach(&host, "10.1.0.10/24")?;
    mesh.settle()?;
    grant(&mesh, SUBNET)?;
    grant(&mesh, CLAIM)?;
    let both = pingers(&mesh)?;
    let victim = 0;
    all_are_served_by(&mesh, victim)?;
    break_nft(&programs[victim])?;
    mesh.agents[victim].ask(&["set", "--masquerade=false"])?;
    mesh.agents[victim].ask(&["set", "--masquerade"])?;
    let reason = withdrawn(&mesh.agents[victim], SUBNET)?;
    s.note(format!("told: {reason}"));
    ensure!(reason.contains("cannot be masqueraded: nft failed: no such luck"), "it says: {reason}");
    wait_until("the other router serves the subnet", TIMEOUT, || {
        Ok((served(&mesh, SUBNET)? != victim).then_some(()))
    })?;
    both.1.first_reply_after(Instant::now(), TIMEOUT)?;
    ensure!(served(&mesh, CLAIM)? == victim, "the address moved with the subnet");
    ensure!(state(&mesh.agents[victim], CLAIM)? == "served", "the address is not served");
    std::fs::remove_file(programs[victim].join("nft"))?;
    let mended = Instant::now();
    mesh.agents[victim].wait(mended, MENDED, "serves the subnet again", |status| {
        of(&status.own.claims, SUBNET).is_some_and(|claim| claim.state == "served")
    })?;
    s.note(format!("served again {} s after the mend", mended.elapsed().as_secs()));
    ensure!(masquerades(&mesh.agents[victim])?, "it says that it masquerades, and does not");
    all_are_served_by(&mesh, victim)?;
    both.1.first_reply_after(Instant::now(), TIMEOUT)?;
    let lost = both.0.finish()?.lost();
    s.note(format!("{lost} pings to the address lost"));
    s.require(lost == 0, "a claim beside one that cannot be served lost packets");
    Ok(())
}

/// IPv6 is switched off on the node that serves: its IPv6 claims, a subnet too, go to the other one, its IPv4 claim stays. Switched on again, it serves all, and answers.
pub(crate) fn without_ipv6_serves_its_ipv4_claim(s: &mut Scenario) -> Result<()> {
    s.expect_warning("what this node claims may not be served");
    let mesh = claimers(s, &["--claim", "10.99.0.1", "--claim", "fd77::1"], &[])?;
    grant(&mesh, CLAIM)?;
    grant(&mesh, ADDRESS_V6)?;
    let pinger = Pinger::start("client", &mesh.agents[2].host.namespace, SHARED.into(), FIVE_MS)?;
    pinger.first_reply_after(Instant::now(), TIMEOUT)?;
    let victim = 0;
    mesh.agents[victim].ask(&["set", "--claim", "10.99.0.1@5", "--claim", "fd77::1@5"])?;
    all_are_served_by(&mesh, victim)?;
    let own = own_v6(&mesh.agents[victim])?;
    for address in [own, V6] {
        answers(&mesh.agents[2], address)?;
    }
    let switch = "net/ipv6/conf/hf0/disable_ipv6";
    mesh.agents[victim].host.namespace.sysctl(switch, "1")?;
    // It is looked at once a minute, and when something else is served.
    let router = &mesh.agents[victim];
    grant_one(&mesh, &router.name, SUBNET_V6)?;
    router.ask(&["set", "--claim", "10.99.0.1@5", "--claim", "fd77::1@5", "--claim", SUBNET_V6])?;
    withdrawn(router, SUBNET_V6)?;
    let reason = withdrawn(&mesh.agents[victim], ADDRESS_V6)?;
    s.note(format!("told: {reason}"));
    ensure!(reason.contains(&format!("sysctl -w {switch}=0")), "it says: {reason}");
    wait_until("the other one serves IPv6", TIMEOUT, || {
        Ok((served(&mesh, ADDRESS_V6)? != victim).then_some(()))
    })?;
    answers(&mesh.agents[2], V6)?;
    ensure!(served(&mesh, CLAIM)? == victim, "the IPv4 address moved as well");
    ensure!(state(&mesh.agents[victim], CLAIM)? == "served", "the IPv4 address is not served");
    // Nor are answers sent without the rule by which the tunnel's routes are found.
    s.expect_warning("somebody removed our routing rule");
    mesh.agents[victim].host.namespace.output("ip", &["-6", "rule", "del", "priority", "5200"])?;
    mesh.agents[victim].host.namespace.sysctl(switch, "0")?;
    let mended = Instant::now();
    mesh.agents[victim].wait(mended, MENDED, "serves IPv6 again", |status| {
        of(&status.own.claims, ADDRESS_V6).is_some_and(|claim| claim.state == "served")
    })?;
    s.note(format!("served again {} s after the mend", mended.elapsed().as_secs()));
    let shown = mesh.agents[victim].host.namespace.output("ip", &["-6", "addr", "show", "dev", "hf0"])?;
    ensure!(shown.contains(ADDRESS_V6), "it says that it serves {ADDRESS_V6}, and has not got it: {shown}");
    wait_until("it serves the client again", TIMEOUT, || {
        Ok((served(&mesh, ADDRESS_V6)? == victim).then_some(()))
    })?;
    for address in [own, V6] {
        answers(&mesh.agents[2], address)?;
    }
    ensure!(state(&mesh.agents[victim], SUBNET_V6)? == "served", "the IPv6 subnet is not served");
    let lost = pinger.finish()?.lost();
    s.note(format!("{lost} pings to the IPv4 address lost"));
    s.require(lost == 0, "a claim beside one that cannot be served lost packets");
    Ok(())
}

/// Another's firewall that drops what is forwarded is told, with what to do, while a subnet is claimed; let through, it is told no more.
pub(crate) fn behind_a_firewall_that_drops_says_so(s: &mut Scenario) -> Result<()> {
    s.expect_warning("what this node claims may not be served");
    let mesh = claimers(s, &["--claim", "10.99.0.1"], &[])?;
    let router = &mesh.agents[0];
    router.host.namespace.nft("add table ip filter")?;
    for rule in [
        "add chain ip filter INPUT { type filter hook input priority 0; policy accept; }",
        "add rule ip filter INPUT iifname hf0 accept",
    ] {
        // It says nothing of what is forwarded.
        router.host.namespace.nft(rule)?;
    }
    router
        .host
        .namespace
        .nft("add chain ip filter FORWARD { type filter hook forward priority 0; policy drop; }")?;
    grant(&mesh, CLAIM)?;
    grant_one(&mesh, "a1", SUBNET)?;
    ensure!(router.status()?.warnings.is_empty(), "an address needs no forwarding");
    router.ask(&["set", "--claim", SUBNET])?;
    let status = router.wait_now(TIMEOUT, "warns of the firewall", |status| {
        status.warnings.iter().any(|warning| warning.contains("`ip filter FORWARD` is drop"))
    })?;
    s.note(format!("told: {}", status.warnings.join("; ")));
    ensure!(state(router, SUBNET)? == "served", "a firewall that may let it through withdraws nothing");
    for direction in ["iifname", "oifname"] {
        router.host.namespace.nft(&format!("insert rule ip filter FORWARD {direction} hf0 accept"))?;
    }
    router.wait_now(MENDED, "warns no more", |status| status.warnings.is_empty())?;
    Ok(())
}

/// Two agents on one machine forward: it stays on while one of them does, whoever had switched it on and however that ended; after the last one it is off.
pub(crate) fn forwards_until_its_last_agent_ends(s: &mut Scenario) -> Result<()> {
    let mut mesh = Mesh::plan(1, 2).servers_only(s)?;
    for number in [0, 1] {
        let first = mesh.agents.first().map(|first| first.host.clone());
        let agent = mesh.add_agent(number)?;
        agent
            .options
            .extend(["--claim", ["10.1.0.0/24", "10.2.0.0/24"][usize::from(number)]].map(str::to_owned));
        if let Some(first) = first {
            (agent.host, agent.interface) = (first, "hf1".to_owned());
        }
    }
    mesh.start_agents()?;
    grant_one(&mesh, "a1", "10.1.0.0/24")?;
    forwarding_is(&mesh, true)?;
    grant_one(&mesh, "a2", "10.2.0.0/24")?;
    for agent in &mesh.agents {
        agent.wait_now(TIMEOUT, "serves its claim", |status| status.own.claims[0].state == "served")?;
    }
    // It is told before the machine is done with it.
    let pid = mesh.agents[1].process()?.pid();
    let note = wait_until("the second needs it", TIMEOUT, || note_of(pid))?;
    wait_until("both need it", TIMEOUT, || Ok((holders(&note)? == 2).then_some(())))?;
    mesh.agents[0].kill()?;
    mesh.agents[0].options.retain(|option| !["--claim", "10.1.0.0/24"].contains(&&**option));
    mesh.agents[0].options.extend(["--claim", "none"].map(str::to_owned));
    mesh.agents[0].start()?;
    mesh.settle()?;
    ensure!(forwards(&mesh.agents[0])?, "a killed agent's successor switched forwarding off under another");
    mesh.agents[0].ask(&["set", "--claim", "10.1.0.0/24"])?;
    wait_until("both need it again", TIMEOUT, || Ok((holders(&note)? == 2).then_some(())))?;
    mesh.agents[0].stop()?;
    ensure!(forwards(&mesh.agents[0])?, "an agent switched forwarding off under another");
    mesh.agents[1].stop()?;
    forwarding_is(&mesh, false)?;
    ensure!(!note.exists(), "{} stays behind", note.display());
    Ok(())
}

/// The file that an agent has open for as long as it needs IPv4 forwarding.
fn note_of(pid: u32) -> Result<Option<PathBuf>> {
    let files = std::fs::read_dir(format!("/proc/{pid}/fd"))?;
    let paths = files.filter_map(|file| std::fs::read_link(file.ok()?.path()).ok());
    let is_note = |path: &PathBuf| {
        let name = path.to_string_lossy();
        name.starts_with("/run/holdfast/forwarding-") && name.ends_with("-4")
    };
    Ok(paths.into_iter().find(is_note))
}

/// The IPv6 address that is the node's own.
fn own_v6(node: &Agent) -> Result<IpAddr> {
    let own = node
        .status()?
        .own
        .addresses
        .iter()
        .filter_map(|address| address.split('/').next()?.parse().ok())
        .find(IpAddr::is_ipv6);
    own.context("it has an IPv6 address")
}

/// Whoever has the address refuses a connection to a port that is closed.
fn answers(client: &Agent, address: IpAddr) -> Result<()> {
    let target = SocketAddr::new(address, CLOSED_PORT);
    wait_until(&format!("{address} answers"), TIMEOUT, || {
        let tried =
            client.host.namespace.run(|| TcpStream::connect_timeout(&target, Duration::from_secs(1)))?;
        Ok(tried.is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused).then_some(()))
    })
}

fn forwarding_is(mesh: &Mesh, wanted: bool) -> Result<()> {
    let what = if wanted { "forwarding is on" } else { "forwarding is off" };
    wait_until(what, TIMEOUT, || Ok((forwards(&mesh.agents[0])? == wanted).then_some(())))
}

/// How many processes hold a lock on this file.
fn holders(path: &Path) -> Result<usize> {
    let inode = format!(":{} ", std::fs::metadata(path)?.ino());
    Ok(std::fs::read_to_string("/proc/locks")?.lines().filter(|line| line.contains(&inode)).count())
}

/// The client has come to whom it is configured to prefer.
fn all_are_served_by(mesh: &Mesh, node: usize) -> Result<()> {
    let name = mesh.agents[node].name.as_str();
    mesh.agents[2].wait_now(TIMEOUT, "is served by the preferred one", |status| {
        status.claims.len() == 2 && status.claims.iter().all(|claim| claim.active.as_deref() == Some(name))
    })?;
    Ok(())
}

/// Pings the address, and the host behind the routers.
fn pingers(mesh: &Mesh) -> Result<(Pinger, Pinger)> {
    let client = &mesh.agents[2].host.namespace;
    let pingers = (
        Pinger::start("to the address", client, SHARED.into(), FIVE_MS)?,
        Pinger::start("to the host", client, HOST, FIVE_MS)?,
    );
    pingers.0.first_reply_after(Instant::now(), TIMEOUT)?;
    pingers.1.first_reply_after(Instant::now(), TIMEOUT)?;
    Ok(pingers)
}

fn break_nft(programs: &Path) -> Result<()> {
    let nft = programs.join("nft");
    std::fs::write(&nft, "#!/bin/sh\necho no such luck >&2\nexit 1\n")?;
    Ok(std::fs::set_permissions(nft, Permissions::from_mode(0o755))?)
}

fn grant_one(mesh: &Mesh, node: &str, prefix: &str) -> Result<()> {
    let output = mesh.servers[0].command(&["node", "allow-claim", node, prefix])?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

fn of<'a>(claims: &'a [OwnClaim], prefix: &str) -> Option<&'a OwnClaim> {
    claims.iter().find(|claim| claim.prefix == prefix)
}

fn state(node: &Agent, prefix: &str) -> Result<String> {
    Ok(of(&node.status()?.own.claims, prefix).context("it is claimed")?.state.clone())
}

/// Why one of its claims is withdrawn, once it is.
fn withdrawn(node: &Agent, prefix: &str) -> Result<String> {
    let status = node.wait_now(TIMEOUT, "has withdrawn one claim", |status| {
        of(&status.own.claims, prefix).is_some_and(|claim| claim.state == "withdrawn")
    })?;
    of(&status.own.claims, prefix).and_then(|claim| claim.reason.clone()).context("it says why")
}
