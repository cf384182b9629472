//! Who serves an address: by prefix, and one after another, the same for every client.
//!
//! ```text
//!   s1 ── switch ── a1 .. a6: those who claim, their clients, and one whose own address is beside the shared one
//! ```

use std::net::Ipv4Addr;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use netns_tests::agent::{Agent, INTERFACE};
use netns_tests::figures::ms;
use netns_tests::mesh::{FIVE_MS, Mesh, ping};
use netns_tests::ping::Pinger;
use netns_tests::scenario::Scenario;
use netns_tests::wait::wait_until;

use crate::shared::{MOVED, TIMEOUT};

const SHARED: [u8; 4] = [10, 99, 0, 1];
const CLAIM: &str = "10.99.0.1/32";
const CLAIMERS: usize = 4;

/// One claims the address, another the /31 around it, whose other address is a third's own. Killed, the first is replaced by the second, which has the address on its machine by itself;
/// back, it serves again. Nothing is lost on that way, nor ever at the neighbour.
pub(crate) fn primary_and_secondary_by_prefix(s: &mut Scenario) -> Result<()> {
    let mut mesh = Mesh::plan(1, 4).start(s)?;
    let addresses: Vec<Ipv4Addr> = mesh.agents.iter().map(own_address).collect::<Result<_>>()?;
    let partner = |own: &Ipv4Addr| Ipv4Addr::from(u32::from(*own) ^ 1);
    let is_free = |own: &Ipv4Addr| !addresses.contains(&partner(own)) && partner(own).octets()[3] != 0;
    let neighbour = addresses.iter().position(is_free).context("somebody's neighbour is free")?;
    let others: Vec<usize> = (0..4).filter(|agent| *agent != neighbour).collect();
    let [primary, secondary, client] = others[..] else { anyhow::bail!("there are four agents") };
    let shared = partner(&addresses[neighbour]);
    let (host, around) = (format!("{shared}/32"), format!("{}/31", shared.min(addresses[neighbour])));
    for (claimer, prefix) in [(primary, &host), (secondary, &around)] {
        mesh.agents[claimer].ask(&["set", "--claim", prefix])?;
        allow(&mesh, &mesh.agents[claimer], prefix)?;
    }
    for claimer in [primary, secondary] {
        wait_until("the shared address is set", TIMEOUT, || {
            Ok(has(&mesh.agents[claimer], shared)?.then_some(()))
        })?;
    }
    ensure!(!has(&mesh.agents[secondary], addresses[neighbour])?, "the neighbour's own address was taken");
    let beside = ping(&mesh.agents[client], &mesh.agents[neighbour])?;
    let pinger = Pinger::start("shared", &mesh.agents[client].host.namespace, shared, FIVE_MS)?;
    pinger.first_reply_after(Instant::now(), TIMEOUT)?;
    serves(&mesh.agents[client], &host, &mesh.agents[primary].name)?;
    let killed = mesh.agents[primary].kill()?;
    serves(&mesh.agents[client], &host, &mesh.agents[secondary].name)?;
    let answered = pinger.first_reply_after(Instant::now(), MOVED)?;
    let returned = Instant::now();
    mesh.agents[primary].start()?;
    serves(&mesh.agents[client], &host, &mesh.agents[primary].name)?;
    pinger.first_reply_after(Instant::now(), MOVED)?;
    let report = pinger.finish()?;
    let on_return = report.losses_since(returned).iter().filter(|after| !after.is_zero()).count();
    s.note(format!("moved within {}; {on_return} pings lost on the return", ms(answered - killed)));
    s.require(on_return == 0, "the return of the primary lost packets");
    ensure!(has(&mesh.agents[neighbour], addresses[neighbour])?, "the neighbour lost its own address");
    s.none_lost(vec![beside])
}

/// Two clients, one of which knew another claimer first, use the same one; and the same again as one after another is killed.
pub(crate) fn four_serve_one_after_another(s: &mut Scenario) -> Result<()> {
    let mut mesh = Mesh::plan(1, 6).servers_only(s)?;
    for number in 0..6_u8 {
        let agent = mesh.add_agent(number)?;
        if usize::from(number) < CLAIMERS {
            agent.options.extend(["--claim", CLAIM].map(str::to_owned));
        }
    }
    mesh.start_agents()?;
    let clients = [CLAIMERS, CLAIMERS + 1];
    // The first client uses the last of them before it hears of the others.
    allow(&mesh, &mesh.agents[CLAIMERS - 1], CLAIM)?;
    let start = |client: usize| {
        let agent: &Agent = &mesh.agents[client];
        Pinger::start(&agent.name, &agent.host.namespace, SHARED.into(), FIVE_MS)
    };
    let mut pingers = vec![start(clients[0])?];
    pingers[0].first_reply_after(Instant::now(), TIMEOUT)?;
    for claimer in 0..CLAIMERS - 1 {
        allow(&mesh, &mesh.agents[claimer], CLAIM)?;
    }
    mesh.agents[clients[1]].wait_now(TIMEOUT, "knows all", |status| {
        status.claims.iter().any(|claim| claim.candidates.len() == CLAIMERS)
    })?;
    pingers.push(start(clients[1])?);
    pingers[1].first_reply_after(Instant::now(), TIMEOUT)?;
    let mut dead = Vec::new();
    while dead.len() < CLAIMERS - 1 {
        let active = agreed(&mesh, clients, &dead)?;
        let killed = mesh.agents[active].kill()?;
        dead.push(active);
        agreed(&mesh, clients, &dead)?;
        for pinger in &pingers {
            let back = pinger.first_reply_after(Instant::now(), MOVED)?;
            s.note(format!("{} dead: answered after {} at most", dead.len(), ms(back - killed)));
        }
    }
    pingers.into_iter().try_for_each(|pinger| pinger.finish().map(drop))
}

/// Whom both clients use, one that lives.
fn agreed(mesh: &Mesh, clients: [usize; 2], dead: &[usize]) -> Result<usize> {
    let used = |client: usize| -> Result<Option<usize>> {
        let status = mesh.agents[client].status()?;
        let active = status.claims.iter().find_map(|claim| claim.active.clone());
        Ok(active.and_then(|active| mesh.agents.iter().position(|agent| agent.name == active)))
    };
    wait_until("both clients use the same living one", TIMEOUT, || {
        let [one, other] = [used(clients[0])?, used(clients[1])?];
        Ok(one.filter(|one| Some(*one) == other && !dead.contains(one)))
    })
}

fn allow(mesh: &Mesh, agent: &Agent, prefix: &str) -> Result<()> {
    let output = mesh.servers[0].command(&["node", "allow-claim", &agent.name, prefix])?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    agent.wait_now(TIMEOUT, "serves its claim", |status| {
        status.own.claims.iter().any(|claim| claim.state == "served")
    })?;
    Ok(())
}

fn serves(client: &Agent, prefix: &str, name: &str) -> Result<()> {
    client.wait_now(TIMEOUT, &format!("uses {name} for {prefix}"), |status| {
        status.claims.iter().any(|claim| claim.prefix == prefix && claim.active.as_deref() == Some(name))
    })?;
    Ok(())
}

fn own_address(agent: &Agent) -> Result<Ipv4Addr> {
    let status = agent.status()?;
    let address = status.own.addresses.iter().find_map(|address| address.parse().ok());
    address.context("an agent has an IPv4 address")
}

fn has(agent: &Agent, address: Ipv4Addr) -> Result<bool> {
    let shown = agent.host.namespace.output("ip", &["addr", "show", "dev", INTERFACE])?;
    Ok(shown.contains(&format!("inet {address}/")))
}
