//! Addresses that several nodes serve: what is set on the machines of those who claim them, and of their clients.
//!
//! ```text
//!   s1 ─┐         ┌─ a1 ─ 10.1.0.1 ─┐
//!       ├ switch ─┼─ a2 ─ 10.1.0.2 ─┴ lan ─ h1 10.1.0.10
//!       ┘         └─ a3, a client
//! ```

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use netns_tests::agent::{Agent, INTERFACE};
use netns_tests::figures::ms;
use netns_tests::mesh::{FIVE_MS, Mesh, overlay_address};
use netns_tests::ping::Pinger;
use netns_tests::scenario::Scenario;
use netns_tests::topology::{Host, Switch};
use netns_tests::wait::wait_until;

pub(crate) const SHARED: [u8; 4] = [10, 99, 0, 1];
pub(crate) const CLAIM: &str = "10.99.0.1/32";
pub(crate) const SUBNET: &str = "10.1.0.0/24";
const TABLE: &str = "holdfast-hf0";
pub(crate) const TIMEOUT: Duration = Duration::from_secs(15);
/// Beside others on a busy machine; how quick it is, is measured elsewhere.
pub(crate) const MOVED: Duration = Duration::from_secs(5);

/// Refused with what to do until it is granted; then the claimers have the address, and a client reaches it. One that is told to go loses nothing; one that is killed is replaced.
pub(crate) fn address_answers_and_goes_with_its_node(s: &mut Scenario) -> Result<()> {
    let mut mesh = claimers(s, &["--claim", "10.99.0.1@5"], &[])?;
    for claimer in &mesh.agents[..2] {
        let status = claimer.wait_now(TIMEOUT, "says that its claim is refused", |status| {
            status.own.claims.iter().any(|claim| claim.state == "refused")
        })?;
        let reason = status.own.claims[0].reason.clone().context("a refused claim has a reason")?;
        ensure!(
            reason.contains(&format!("allow-claim {} {CLAIM}", status.own.addresses[0])),
            "it says: {reason}"
        );
        let output = claimer.command(&["set", "--claim", "10.99.0.1@5"])?;
        let warned = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success() && warned.contains(&reason), "`set` warned: {warned}");
        ensure!(!has_address(claimer)?, "{} has an address that it was not granted", claimer.name);
    }
    grant(&mesh, CLAIM)?;
    for claimer in &mesh.agents[..2] {
        wait_until("the claimed address is set", TIMEOUT, || Ok(has_address(claimer)?.then_some(())))?;
    }
    let active = served(&mesh, CLAIM)?;
    let pinger = Pinger::start("client", &mesh.agents[2].host.namespace, SHARED.into(), FIVE_MS)?;
    pinger.first_reply_after(Instant::now(), TIMEOUT)?;
    mesh.agents[active].wait_now(TIMEOUT, "knows its client", |status| status.own.users == 1)?;
    mesh.agents[active].stop()?;
    wait_until("the other serves", TIMEOUT, || Ok((served(&mesh, CLAIM)? != active).then_some(())))?;
    pinger.first_reply_after(Instant::now(), MOVED)?;
    let lost = pinger.finish()?.lost();
    s.note(format!("one that was told to go: {lost} pings lost"));
    s.require(lost == 0, "a node that drained lost packets");
    mesh.agents[active].start()?;
    mesh.settle()?;
    wait_until("it claims again", TIMEOUT, || Ok(has_address(&mesh.agents[active])?.then_some(())))?;
    let pinger = Pinger::start("client", &mesh.agents[2].host.namespace, SHARED.into(), FIVE_MS)?;
    let begun = Instant::now();
    pinger.first_reply_after(begun, TIMEOUT)?;
    // Who serves next must be known to be there.
    mesh.agents[2].wait_now(TIMEOUT, "knows both", |status| status.claims[0].candidates.len() == 2)?;
    let victim = served(&mesh, CLAIM)?;
    let killed = mesh.agents[victim].kill()?;
    let moved =
        wait_until("the other serves", TIMEOUT, || Ok((served(&mesh, CLAIM)? != victim).then(Instant::now)))?;
    let back = pinger.first_reply_after(moved, MOVED)?;
    s.note(format!("one that was killed: answered again after {}", ms(back - killed)));
    pinger.finish()?;
    Ok(())
}

/// Two routers before one subnet: with masquerading hosts there need no way back, without it they do, and may open something themselves. What routers changed on their machines goes with them, and at the next start of one
/// that was killed.
pub(crate) fn subnet_is_routed_and_its_routers_leave_nothing_behind(s: &mut Scenario) -> Result<()> {
    let lan = Switch::new()?;
    let mut mesh = claimers(s, &["--claim", SUBNET, "--masquerade"], &["--accept-routes"])?;
    for (number, router) in mesh.agents[..2].iter().enumerate() {
        lan.attach(&router.host, &format!("10.1.0.{}/24", number + 1))?;
    }
    let host = Host::new("h1")?;
    lan.attach(&host, "10.1.0.10/24")?;
    grant(&mesh, SUBNET)?;
    let active = served(&mesh, SUBNET)?;
    for router in &mesh.agents[..2] {
        wait_until("the router forwards", TIMEOUT, || {
            Ok((forwards(router)? && masquerades(router)?).then_some(()))
        })?;
    }
    reaches(&mesh.agents[2], "masqueraded")?;
    for router in &mesh.agents[..2] {
        router.ask(&["set", "--masquerade=false"])?;
        wait_until("it masquerades no more", TIMEOUT, || Ok((!masquerades(router)?).then_some(())))?;
    }
    host.route(&format!("add 100.64.0.0/10 via 10.1.0.{}", active + 1))?;
    reaches(&mesh.agents[2], "routed")?;
    let client = overlay_address(&mesh.agents[active], &mesh.agents[2])?;
    let pinger = Pinger::start("from behind", &host.namespace, client, FIVE_MS)?;
    pinger.first_reply_after(Instant::now(), TIMEOUT).context("a host behind the router gets no answer")?;
    pinger.finish()?;
    mesh.agents[2].ask(&["set", "--accept-routes=false"])?;
    wait_until("the subnet's route is gone", TIMEOUT, || {
        Ok((!routes(&mesh.agents[2])?.contains("10.1.0.0/24 dev hf0")).then_some(()))
    })?;
    let left = routes(&mesh.agents[2])?;
    ensure!(left.contains("100.64.0.0/10 dev hf0"), "the overlay's route went with it: {left}");
    let other = 1 - active;
    mesh.agents[other].ask(&["set", "--masquerade"])?;
    wait_until("it masquerades again", TIMEOUT, || Ok(masquerades(&mesh.agents[other])?.then_some(())))?;
    mesh.agents[other].kill()?;
    ensure!(forwards(&mesh.agents[other])?, "nobody was there to switch forwarding off");
    mesh.agents[other].options.extend(["--claim", "none"].map(str::to_owned));
    let claim = mesh.agents[other].options.iter().position(|option| option == SUBNET);
    mesh.agents[other].options.drain(claim.context("it claimed")? - 1..=claim.context("it claimed")?);
    mesh.agents[other].start()?;
    mesh.settle()?;
    nothing_left(&mesh.agents[other])?;
    mesh.agents[active].ask(&["down"])?;
    nothing_left(&mesh.agents[active])
}

/// One server, two who claim and a client.
pub(crate) fn claimers(s: &Scenario, options: &[&str], of_client: &[&str]) -> Result<Mesh> {
    let mut mesh = Mesh::plan(1, 3).servers_only(s)?;
    for (number, options) in [options, options, of_client].into_iter().enumerate() {
        let agent = mesh.add_agent(u8::try_from(number)?)?;
        agent.options.extend(options.iter().map(|option| (*option).to_owned()));
    }
    mesh.start_agents()?;
    Ok(mesh)
}

pub(crate) fn grant(mesh: &Mesh, prefix: &str) -> Result<()> {
    for claimer in ["a1", "a2"] {
        let output = mesh.servers[0].command(&["node", "allow-claim", claimer, prefix])?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    for claimer in &mesh.agents[..2] {
        claimer.wait_now(TIMEOUT, "serves its claim", |status| {
            status.own.claims.iter().any(|claim| claim.state == "served")
        })?;
    }
    Ok(())
}

/// Which agent serves the client, once it knows of both.
pub(crate) fn served(mesh: &Mesh, prefix: &str) -> Result<usize> {
    let status = mesh.agents[2].wait_now(TIMEOUT, "knows who claims", |status| {
        status.claims.iter().any(|claim| claim.prefix == prefix && claim.candidates.len() == 2)
    })?;
    let of_prefix = status.claims.iter().find(|claim| claim.prefix == prefix);
    let active = of_prefix.and_then(|claim| claim.active.clone()).context("nobody serves")?;
    mesh.agents.iter().position(|agent| agent.name == active).context("an agent of ours serves")
}

fn reaches(client: &Agent, what: &str) -> Result<()> {
    let pinger = Pinger::start(what, &client.host.namespace, [10, 1, 0, 10].into(), FIVE_MS)?;
    pinger.first_reply_after(Instant::now(), TIMEOUT).with_context(|| format!("{what}: no answer"))?;
    Ok(())
}

fn has_address(agent: &Agent) -> Result<bool> {
    Ok(agent.host.namespace.output("ip", &["addr", "show", "dev", INTERFACE])?.contains("inet 10.99.0.1/32"))
}

fn routes(agent: &Agent) -> Result<String> {
    agent.host.namespace.output("ip", &["route", "show", "table", "all"])
}

pub(crate) fn forwards(agent: &Agent) -> Result<bool> {
    let read = agent.host.namespace.run(|| std::fs::read_to_string("/proc/sys/net/ipv4/ip_forward"))??;
    Ok(read.trim() == "1")
}

pub(crate) fn masquerades(agent: &Agent) -> Result<bool> {
    Ok(agent.host.namespace.output("nft", &["list", "tables"])?.contains(TABLE))
}

fn nothing_left(agent: &Agent) -> Result<()> {
    ensure!(!forwards(agent)?, "{} forwards still", agent.name);
    ensure!(!masquerades(agent)?, "{} has its table still", agent.name);
    let note = agent.state_directory.join("machine");
    ensure!(!note.exists(), "{} remembers what is not", agent.name);
    Ok(())
}
