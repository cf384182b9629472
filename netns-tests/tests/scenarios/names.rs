//! Dynamic DNS: one name, which leads to another server when the one it led to is gone.
//!
//! ```text
//!   agents ── switch ── s1 192.0.2.11, s2 192.0.2.12      vpn.example.net: the address of one of them
//! ```
//!
//! The name is all that servers advertise and agents know: there is no standby but at an address that it led to before.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use netns_tests::figures::{Bound, Samples};
use netns_tests::mesh::{Mesh, Served};
use netns_tests::names::Names;
use netns_tests::scenario::Scenario;
use netns_tests::topology::Fault;

const NAME: &str = "vpn.example.net";
const AGENTS: u8 = 4;
const TIMEOUT: Duration = Duration::from_secs(20);
/// A name is looked up once a second at most.
const KILLED: Duration = Duration::from_millis(1500);
/// Until silence is suspected, and then the same.
const SILENT: Duration = Duration::from_millis(2500);

pub(crate) fn dynamic_dns(s: &mut Scenario) -> Result<()> {
    let names = Names::new(&s.directory)?;
    let mut mesh = Mesh::plan(2, 0).database_only(s)?;
    for number in 0..2 {
        let server = mesh.add_server(number)?;
        server.only(&["--listen", "--admin-listen", "--data-dir", "--database", "--name"]);
        server.add_options(&["--advertise".to_owned(), format!("{NAME}:7443")]);
        server.start()?;
    }
    mesh.setup_key = mesh.servers[0].first_setup_key()?;
    names.set(NAME, mesh.servers[0].address()?)?;
    for number in 0..AGENTS {
        let agent = mesh.add_agent(number)?;
        agent.options[1] = NAME.to_owned();
        agent.start()?;
    }
    for agent in &mesh.agents {
        agent.wait_now(TIMEOUT, "is served and knows every peer", |status| {
            status.served_by().is_some() && status.peers.len() + 1 == usize::from(AGENTS)
        })?;
    }
    let pings = mesh.ping_pairs()?;
    let mut silent = Samples::new("cut off as its name moves: served by the other server");
    let mut killed = Samples::new("killed as its name moves: served by the other server");
    for round in 0..4 {
        let (old, new) = (round % 2, (round + 1) % 2);
        let served = served_by(&mesh, old)?;
        names.set(NAME, mesh.servers[new].address()?)?;
        if old == 0 {
            let at = Instant::now();
            mesh.servers[old].port.fault(Fault::Cut)?;
            silent.extend(mesh.moved(&served, at, TIMEOUT)?);
            mesh.servers[old].port.mend()?;
        } else {
            let at = mesh.servers[old].kill()?;
            killed.extend(mesh.moved(&served, at, TIMEOUT)?);
            mesh.servers[old].start()?;
        }
    }
    s.figure(&silent, &[Bound::Worst(SILENT)]);
    s.figure(&killed, &[Bound::Worst(KILLED)]);
    s.none_lost(pings)
}

/// Who is at this server, by its id: all servers have one URL. One that is killed and back at once may have kept somebody, whose name had not been looked up again.
fn served_by(mesh: &Mesh, server: usize) -> Result<Vec<Served>> {
    let health = mesh.servers[server].admin_json("/readyz")?.1;
    let id = health["server"].as_str().context("a server tells its id")?;
    let mut here = Vec::new();
    for (agent, it) in mesh.agents.iter().enumerate() {
        let status = it.wait_now(TIMEOUT, "is served", |status| status.served_by().is_some())?;
        let by = status.served_by().context("it is served")?.id.clone();
        here.extend((by == id).then_some(Served { agent, by }));
    }
    Ok(here)
}
