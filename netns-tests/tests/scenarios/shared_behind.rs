//! What lies behind those who serve: hosts of a subnet with two routers, over IPv4 and IPv6, while programs talk.
//!
//! ```text
//!   s1 ─┐         ┌─ a1 ─ 10.1.0.1, fd78:1::1 ─┐
//!       ├ switch ─┼─ a2 ─ 10.1.0.2, fd78:1::2 ─┴ lan ─ h1 10.1.0.10, fd78:1::10
//!       ┘         └─ a3, a client
//! ```

use std::net::SocketAddr;
use std::time::Instant;

use anyhow::Result;
use netns_tests::agent::INTERFACE;
use netns_tests::exchange::{Echo, Exchange};
use netns_tests::figures::ms;
use netns_tests::scenario::Scenario;
use netns_tests::topology::{Host, Switch};
use netns_tests::wait::wait_until;

use crate::shared::{MOVED, SUBNET, TIMEOUT, claimers, grant, served};

const ADDRESS_V6: &str = "fd77::1/128";
const SUBNET_V6: &str = "fd78:1::/64";

/// One address and one subnet of IPv6, with masquerading: both answer, and go on to when the one that serves is killed.
pub(crate) fn ipv6_address_and_subnet(s: &mut Scenario) -> Result<()> {
    let lan = Switch::new()?;
    let options = ["--claim", "fd77::1", "--claim", SUBNET_V6, "--masquerade"];
    let mut mesh = claimers(s, &options, &["--accept-routes"])?;
    for (number, router) in mesh.agents[..2].iter().enumerate() {
        lan.attach(&router.host, &format!("fd78:1::{}/64 nodad", number + 1))?;
    }
    let host = Host::new("h1")?;
    lan.attach(&host, "fd78:1::10/64 nodad")?;
    grant(&mesh, ADDRESS_V6)?;
    grant(&mesh, SUBNET_V6)?;
    let (shared, behind): (SocketAddr, SocketAddr) =
        ("[fd77::1]:7007".parse()?, "[fd78:1::10]:7007".parse()?);
    let mut echoes = vec![Echo::start(&host.namespace, behind)?];
    for claimer in &mesh.agents[..2] {
        wait_until("the claimed address is set", TIMEOUT, || {
            let shown = claimer.host.namespace.output("ip", &["-6", "addr", "show", "dev", INTERFACE])?;
            Ok(shown.contains(ADDRESS_V6).then_some(()))
        })?;
        echoes.push(Echo::start(&claimer.host.namespace, shared)?);
    }
    served(&mesh, SUBNET_V6)?;
    let client = mesh.agents[2].host.namespace.clone();
    let exchanges = [Exchange::udp(&client, shared)?, Exchange::udp(&client, behind)?];
    for exchange in &exchanges {
        exchange.reply_after(Instant::now(), TIMEOUT)?;
    }
    let active = served(&mesh, ADDRESS_V6)?;
    let killed = mesh.agents[active].kill()?;
    for prefix in [ADDRESS_V6, SUBNET_V6] {
        wait_until("the other serves", TIMEOUT, || Ok((served(&mesh, prefix)? != active).then_some(())))?;
    }
    let moved = Instant::now();
    for (exchange, what) in exchanges.iter().zip(["the address", "the subnet"]) {
        let answered = exchange.reply_after(moved, MOVED)?;
        s.note(format!("{what} answered again after {} at most", ms(answered - killed)));
    }
    Ok(())
}

/// The host's answers go by the other router all the time. The router that serves is killed: datagrams and a TCP connection go on, since neither end of that has changed.
pub(crate) fn streams_outlive_a_router(s: &mut Scenario) -> Result<()> {
    let lan = Switch::new()?;
    let mut mesh = claimers(s, &["--claim", SUBNET], &["--accept-routes"])?;
    for (number, router) in mesh.agents[..2].iter().enumerate() {
        lan.attach(&router.host, &format!("10.1.0.{}/24", number + 1))?;
    }
    let host = Host::new("h1")?;
    lan.attach(&host, "10.1.0.10/24")?;
    grant(&mesh, SUBNET)?;
    let active = served(&mesh, SUBNET)?;
    host.route(&format!("add 100.64.0.0/10 via 10.1.0.{}", 2 - active))?;
    let behind: SocketAddr = "10.1.0.10:7007".parse()?;
    let _echo = Echo::start(&host.namespace, behind)?;
    let client = mesh.agents[2].host.namespace.clone();
    let datagrams = Exchange::udp(&client, behind)?;
    datagrams.reply_after(Instant::now(), TIMEOUT)?;
    let connection = Exchange::tcp(&client, behind)?;
    connection.reply_after(Instant::now(), TIMEOUT)?;
    let killed = mesh.agents[active].kill()?;
    wait_until("the other serves", TIMEOUT, || Ok((served(&mesh, SUBNET)? != active).then_some(())))?;
    let moved = Instant::now();
    for (exchange, what) in [(datagrams, "datagrams"), (connection, "the connection")] {
        let answered = exchange.reply_after(moved, MOVED)?;
        s.note(format!("{what} went on after {} at most", ms(answered - killed)));
    }
    Ok(())
}
