//! What a node that serves shared prefixes needs of its machine: their single addresses on the interface, forwarding for subnets, and masquerading where it is asked for.
//!
//! ```text
//! hf0: 10.99.0.1/32               never chosen as a source by the kernel
//! net.ipv4.ip_forward = 1         back to 0 at the end, if it was 0
//! table inet holdfast-hf0         what comes from hf0 to a claimed subnet leaves with this machine's address
//! ```
//!
//! Addresses go with the interface, whatever happens to us. The rest would outlive a killed agent: it is noted in the state directory before it is done ([`Memory`]), and [`recover`]
//! takes it back at the next start.

use super::{super::Trouble, memory::Memory, nat, routes::open};
use ipnet::IpNet;
use nix::net::if_::if_nametoindex;
use rtnetlink::{
    AddressMessageBuilder,
    packet_route::address::{AddressAttribute, AddressFlags, AddressMessage, AddressScope, CacheInfo},
};
use std::{
    collections::BTreeSet,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::Path,
};

/// IPv4 and IPv6.
const SWITCHES: [&str; 2] = ["/proc/sys/net/ipv4/ip_forward", "/proc/sys/net/ipv6/conf/all/forwarding"];
const FAMILIES: [&str; 2] = ["IPv4", "IPv6"];

/// What is done on the machine for what this node serves.
#[derive(Debug)]
pub(crate) struct Serving {
    interface: String,
    memory: Memory,
    addresses: BTreeSet<IpAddr>,
}

impl Serving {
    /// `directory` keeps what a successor must take back.
    pub(crate) fn new(interface: &str, directory: &Path) -> Self {
        Self { interface: interface.to_owned(), memory: Memory::load(directory), addresses: BTreeSet::new() }
    }

    /// Makes the machine serve these and no others, whatever was done or undone before; returns what could not be done.
    pub(crate) async fn apply(&mut self, served: &[IpNet], masquerade: bool) -> Vec<Trouble> {
        let (hosts, subnets): (Vec<IpNet>, Vec<IpNet>) =
            served.iter().partition(|prefix| prefix.prefix_len() == prefix.max_prefix_len());
        let mut troubles = Vec::new();
        let hosts = hosts.iter().map(IpNet::addr).collect();
        if let Err(error) = self.set_addresses(hosts, &mut troubles).await {
            troubles
                .push(unserved(format!("claimed addresses cannot be set on {}: {error}", self.interface)));
        }
        let has = |is_ipv4: bool| subnets.iter().any(|subnet| subnet.addr().is_ipv4() == is_ipv4);
        for (family, is_unserved) in [has(true), has(false)].into_iter().enumerate() {
            if let Err(error) = self.forward(family, is_unserved) {
                let family = FAMILIES[family];
                let what = if is_unserved { "on, which claimed subnets need" } else { "off again" };
                let text = format!("{family} forwarding cannot be switched {what}: {error}");
                troubles.push(Trouble { text, is_unserved });
            }
        }
        let masqueraded = if masquerade { subnets } else { Vec::new() };
        let is_unserved = !masqueraded.is_empty();
        if let Err(error) = self.masquerade(&masqueraded).await {
            let text = match is_unserved {
                true => format!("claimed subnets cannot be masqueraded: {error}"),
                false => format!("the masquerading of claimed subnets cannot be removed: {error}"),
            };
            troubles.push(Trouble { text, is_unserved });
        }
        troubles
    }

    async fn set_addresses(
        &mut self,
        wanted: BTreeSet<IpAddr>,
        troubles: &mut Vec<Trouble>,
    ) -> io::Result<()> {
        if wanted.is_empty() && self.addresses.is_empty() {
            return Ok(());
        }
        let Ok(index) = if_nametoindex(self.interface.as_str()) else {
            // They went with it.
            self.addresses.clear();
            return if wanted.is_empty() { Ok(()) } else { Err(io::ErrorKind::NotFound.into()) };
        };
        let (handle, connection) = open()?;
        for address in self.addresses.difference(&wanted) {
            if let Err(error) = handle.address().del(message(*address, index)).execute().await {
                tracing::debug!(%address, %error, "a claimed address was gone already");
            }
        }
        self.addresses.retain(|address| wanted.contains(address));
        for address in wanted {
            let mut request = handle.address().add(index, address, if address.is_ipv4() { 32 } else { 128 });
            *request.message_mut() = message(address, index);
            match request.replace().execute().await {
                Ok(()) => drop(self.addresses.insert(address)),
                Err(error) => {
                    let interface = &self.interface;
                    let text = format!("the claimed address {address} cannot be set on {interface}: {error}");
                    troubles.push(unserved(text));
                }
            }
        }
        connection.abort();
        Ok(())
    }

    /// Forwarding that somebody else switched on is left alone.
    fn forward(&mut self, family: usize, wanted: bool) -> io::Result<()> {
        let is_ours = self.memory.forwarding[family];
        match (wanted, is_ours) {
            (true, false) if !is_forwarding(family)? => {
                self.memory.forwarding[family] = true;
                self.memory.save()?;
                tracing::info!("{} forwarding is switched on for claimed subnets", FAMILIES[family]);
                std::fs::write(SWITCHES[family], "1")
            }
            (false, true) => {
                std::fs::write(SWITCHES[family], "0")?;
                tracing::info!("{} forwarding is switched off again", FAMILIES[family]);
                self.memory.forwarding[family] = false;
                self.memory.save()
            }
            (true, true) if !is_forwarding(family)? => std::fs::write(SWITCHES[family], "1"),
            (true | false, _) => Ok(()),
        }
    }

    async fn masquerade(&mut self, subnets: &[IpNet]) -> io::Result<()> {
        if subnets.is_empty() {
            return remove_table(&mut self.memory).await;
        }
        let table = nat::table(&self.interface);
        if self.memory.table.as_ref() != Some(&table) {
            self.memory.table = Some(table.clone());
            self.memory.save()?;
        }
        nat::masquerade(&table, &self.interface, subnets).await
    }
}

fn unserved(text: String) -> Trouble {
    Trouble { text, is_unserved: true }
}

/// Takes back what an agent that was killed had changed.
pub(crate) async fn recover(directory: &Path) {
    let mut memory = Memory::load(directory);
    for (family, switch) in SWITCHES.iter().enumerate() {
        if !std::mem::take(&mut memory.forwarding[family]) {
            continue;
        }
        match std::fs::write(switch, "0") {
            Ok(()) => {
                tracing::info!("{} forwarding that a killed agent left is switched off", FAMILIES[family])
            }
            Err(error) => {
                let family = FAMILIES[family];
                tracing::warn!(%error, family, "forwarding that a killed agent left cannot be switched off");
            }
        }
    }
    if let Err(error) = remove_table(&mut memory).await {
        tracing::warn!(%error, "the masquerading that a killed agent left cannot be removed");
    }
    if let Err(error) = memory.save() {
        tracing::warn!(%error, "what was changed on this machine cannot be noted");
    }
}

async fn remove_table(memory: &mut Memory) -> io::Result<()> {
    if let Some(table) = &memory.table {
        nat::remove(table).await?;
        memory.table = None;
        memory.save()?;
    }
    Ok(())
}

fn is_forwarding(family: usize) -> io::Result<bool> {
    Ok(std::fs::read_to_string(SWITCHES[family])?.trim() != "0")
}

/// An address that is delivered here, and that the kernel does not choose to send from: in IPv4 it is not of global scope, in IPv6 it is
/// deprecated from the start. No duplicate is looked for, since others have it, too.
fn message(address: IpAddr, index: u32) -> AddressMessage {
    match address {
        IpAddr::V4(v4) => {
            let mut message = AddressMessageBuilder::<Ipv4Addr>::new().index(index).address(v4, 32).build();
            message.header.scope = AddressScope::Link;
            message
        }
        IpAddr::V6(v6) => {
            let mut message = AddressMessageBuilder::<Ipv6Addr>::new().index(index).address(v6, 128).build();
            let mut lifetime = CacheInfo::default();
            (lifetime.ifa_preferred, lifetime.ifa_valid) = (0, u32::MAX);
            message.attributes.push(AddressAttribute::CacheInfo(lifetime));
            message.attributes.push(AddressAttribute::Flags(AddressFlags::Nodad));
            message
        }
    }
}
