//! Hosts, switches, links and routers, and the faults of a port.
//!
//! ```text
//!   host eth0 ──── p1 ┐
//!   host eth0 ──── p2 ├ br0, in the switch's own namespace
//!   host eth0 ──── p3 ┘
//! ```
//!
//! Faults live on the switch, so that the host sees what a real network shows it: nothing.

use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result};

use crate::namespace::Namespace;

/// A machine: a namespace with interfaces `eth0`, `eth1`, .. in order of attachment.
#[derive(Clone)]
pub struct Host {
    pub name: String,
    pub namespace: Namespace,
    interfaces: std::sync::Arc<AtomicU32>,
}

impl Host {
    pub fn new(name: impl Into<String>) -> Result<Self> {
        let host = Self { name: name.into(), namespace: Namespace::new()?, interfaces: Default::default() };
        // Link-local IPv6 would add candidates and neighbour chatter that no scenario asked for.
        host.namespace.sysctl("net/ipv6/conf/default/addr_gen_mode", "1").ok();
        Ok(host)
    }

    /// A host that forwards between its interfaces.
    pub fn router(name: impl Into<String>) -> Result<Self> {
        let host = Self::new(name)?;
        host.namespace.sysctl("net/ipv4/ip_forward", "1")?;
        Ok(host)
    }

    /// `ip route ARGUMENTS`.
    pub fn route(&self, arguments: &str) -> Result<()> {
        self.namespace.ip(&format!("route {arguments}"))
    }

    fn next_interface(&self) -> String {
        format!("eth{}", self.interfaces.fetch_add(1, Ordering::Relaxed))
    }

    fn bring_up(&self, interface: &str, address: &str) -> Result<()> {
        self.namespace.ip(&format!("addr add {address} dev {interface}"))?;
        self.namespace.ip(&format!("link set {interface} up"))
    }
}

/// An Ethernet switch.
pub struct Switch {
    namespace: Namespace,
    ports: AtomicU32,
}

impl Switch {
    pub fn new() -> Result<Self> {
        let namespace = Namespace::new()?;
        namespace.ip("link add br0 type bridge forward_delay 0 mcast_snooping 0")?;
        namespace.ip("link set br0 up")?;
        Ok(Self { namespace, ports: AtomicU32::new(1) })
    }

    /// Plugs `host` in with `address` (in CIDR notation).
    pub fn attach(&self, host: &Host, address: &str) -> Result<Port> {
        let (port, interface) = self.cable(host)?;
        host.bring_up(&interface, address)?;
        Ok(port)
    }

    /// Plugs `host` in; its interface has no address yet, and is down.
    pub fn plug(&self, host: &Host) -> Result<Port> {
        self.cable(host).map(|(port, _)| port)
    }

    /// A port for a virtual machine: the TAP interface of this name, which a [`Switch::command`] can open.
    pub fn attach_tap(&self) -> Result<(Port, String)> {
        let name = self.next_port();
        self.namespace.ip(&format!("tuntap add dev {name} mode tap"))?;
        self.namespace.ip(&format!("link set {name} master br0 up"))?;
        Ok((Port { switch: self.namespace.clone(), name: name.clone() }, name))
    }

    /// A command that will run where the ports are.
    pub fn command(&self, program: &str) -> std::process::Command {
        self.namespace.command(program)
    }

    fn next_port(&self) -> String {
        format!("p{}", self.ports.fetch_add(1, Ordering::Relaxed))
    }

    /// The port, and the host's interface.
    fn cable(&self, host: &Host) -> Result<(Port, String)> {
        let port = self.next_port();
        let interface = host.next_interface();
        let far = host.namespace.path();
        self.namespace
            .ip(&format!("link add {port} type veth peer name {interface} netns {far}"))
            .with_context(|| format!("cannot plug {} in", host.name))?;
        self.namespace.ip(&format!("link set {port} master br0 up"))?;
        Ok((Port { switch: self.namespace.clone(), name: port }, interface))
    }
}

/// A cable between two hosts, without a switch.
pub fn link(one: (&Host, &str), other: (&Host, &str)) -> Result<()> {
    let (near, far) = (one.0.next_interface(), other.0.next_interface());
    let far_namespace = other.0.namespace.path();
    one.0.namespace.ip(&format!("link add {near} type veth peer name {far} netns {far_namespace}"))?;
    one.0.bring_up(&near, one.1)?;
    other.0.bring_up(&far, other.1)
}

/// What a port does to frames instead of passing them on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Nothing passes either way; the host's interface stays up.
    Cut,
    /// The host hears nothing; what it sends arrives.
    Deaf,
    /// What the host sends is dropped; it still hears.
    Mute,
    /// Frames are dropped at random, each way, this many in a thousand.
    Loss(u16),
    /// The host and the one with this address are cut from each other; all else passes.
    CutFrom(Ipv4Addr),
    /// The host hears nothing from this address; what it sends there arrives.
    DeafTo(Ipv4Addr),
    /// What the host sends to this address is dropped; it still hears from there.
    MuteTo(Ipv4Addr),
}

/// Where a host is plugged in.
pub struct Port {
    switch: Namespace,
    name: String,
}

impl Port {
    /// Puts a fault on the port, in place of an earlier one.
    pub fn fault(&self, fault: Fault) -> Result<()> {
        self.mend()?;
        let name = &self.name;
        let from = format!("iifname \"{name}\"");
        let to = format!("oifname \"{name}\"");
        let from_peer = |peer: Ipv4Addr| format!("{to} ip saddr {peer} drop;");
        let to_peer = |peer: Ipv4Addr| format!("{from} ip daddr {peer} drop;");
        let rules = match fault {
            Fault::Cut => format!("{from} drop; {to} drop;"),
            Fault::Deaf => format!("{to} drop;"),
            Fault::Mute => format!("{from} drop;"),
            Fault::Loss(share) => {
                let chance = format!("numgen random mod 1000 < {share} drop");
                format!("{from} {chance}; {to} {chance};")
            }
            Fault::CutFrom(peer) => from_peer(peer) + &to_peer(peer),
            Fault::DeafTo(peer) => from_peer(peer),
            Fault::MuteTo(peer) => to_peer(peer),
        };
        self.switch.nft(&format!(
            "table bridge {name} {{ chain faults {{ type filter hook forward priority 0; {rules} }}; }}"
        ))
    }

    /// Takes the fault away.
    pub fn mend(&self) -> Result<()> {
        // Declaring the table first makes deleting it an idempotent step of one transaction.
        self.switch.nft(&format!("table bridge {0} {{ }}; delete table bridge {0}", self.name))
    }

    /// Pulls the cable: the host sees its carrier go.
    pub fn unplug(&self) -> Result<()> {
        self.switch.ip(&format!("link set {} down", self.name))
    }

    pub fn plug(&self) -> Result<()> {
        self.switch.ip(&format!("link set {} up", self.name))
    }
}

/// The address of the nth machine of a /24: `subnet` is its first three bytes.
pub(crate) fn address_in(subnet: [u8; 3], last: u8) -> Ipv4Addr {
    Ipv4Addr::new(subnet[0], subnet[1], subnet[2], last)
}
