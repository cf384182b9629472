//! What a node that serves shared prefixes needs of its machine: their single addresses on the interface, forwarding for subnets, and masquerading where it is asked for.
//!
//! ```text
//! hf0: 10.99.0.1/32               never chosen as a source by the kernel
//! net.ipv4.ip_forward = 1         back to 0 after the last agent, if it was 0
//! table inet holdfast-hf0         what comes from hf0 to a claimed subnet leaves with this machine's address
//! ```
//!
//! Addresses go with the interface, whatever happens to us. The rest would outlive a killed agent: it is noted in the state directory before it is done ([`Memory`]), and [`recover`]
//! takes it back at the next start.

use super::{
    super::Trouble,
    firewall,
    forwarding::{Released, Switch},
    memory::Memory,
    nat,
    routes::{SharedRoutes, open},
};
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

const FAMILIES: [&str; 2] = ["IPv4", "IPv6"];

/// What is done on the machine for what this node serves.
#[derive(Debug)]
pub(crate) struct Serving {
    interface: String,
    memory: Memory,
    /// IPv4, IPv6.
    switches: [Switch; 2],
    addresses: BTreeSet<IpAddr>,
    routes: SharedRoutes,
}

impl Serving {
    /// `directory` keeps what a successor must take back; `routes` are what answers leave by.
    pub(crate) fn new(interface: &str, directory: &Path, routes: SharedRoutes) -> Self {
        Self {
            interface: interface.to_owned(),
            memory: Memory::load(directory),
            switches: [Switch::ipv4(), Switch::ipv6()],
            addresses: BTreeSet::new(),
            routes,
        }
    }

    /// Makes the machine serve these and no others, whatever was done or undone before; returns what could not be done.
    pub(crate) async fn apply(&mut self, served: &[IpNet], masquerade: bool) -> Vec<Trouble> {
        let (hosts, subnets): (Vec<IpNet>, Vec<IpNet>) =
            served.iter().partition(|prefix| prefix.prefix_len() == prefix.max_prefix_len());
        let mut troubles = self.ways_back(served).await;
        let wanted = hosts.iter().map(IpNet::addr).collect();
        if let Err(error) = self.set_addresses(wanted, &mut troubles).await {
            let text = format!("claimed addresses cannot be set on {}: {error}", self.interface);
            troubles.push(Trouble { text, unserved: hosts });
        }
        for family in [0, 1] {
            let unserved = of_family(&subnets, family);
            if let Err(error) = self.forward(family, !unserved.is_empty()).await {
                let family = FAMILIES[family];
                let what = if unserved.is_empty() { "off again" } else { "on, which claimed subnets need" };
                let text = format!("{family} forwarding cannot be switched {what}: {error}");
                troubles.push(Trouble { text, unserved });
            }
        }
        let unserved = if masquerade { subnets } else { Vec::new() };
        if let Err(error) = self.masquerade(&unserved).await {
            let text = match unserved.is_empty() {
                false => format!("claimed subnets cannot be masqueraded: {error}"),
                true => format!("the masquerading of claimed subnets cannot be removed: {error}"),
            };
            troubles.push(Trouble { text, unserved });
        }
        troubles
    }

    /// What answers need: own addresses and routes. A family without them serves nothing.
    async fn ways_back(&self, served: &[IpNet]) -> Vec<Trouble> {
        if served.is_empty() {
            return Vec::new();
        }
        let Some(routes) = &mut *self.routes.lock().await else { return Vec::new() };
        let mut troubles = Vec::new();
        for (own, outcome) in routes.look().await {
            let unserved = of_family(served, usize::from(own.is_ipv6()));
            if let (Err(error), false) = (outcome, unserved.is_empty()) {
                let text = format!("{error}{}", hint(own, &self.interface));
                troubles.push(Trouble { text, unserved });
            }
        }
        troubles
    }

    /// Another's firewall that may be in the way. Where `nft` cannot tell, nothing is said. May be dropped at any time.
    pub(crate) async fn look(&self, served: &[IpNet]) -> Vec<Trouble> {
        let is_subnet = |prefix: &&IpNet| prefix.prefix_len() < prefix.max_prefix_len();
        let subnets: Vec<IpNet> = served.iter().filter(is_subnet).copied().collect();
        let families = [0, 1].map(|family| !of_family(&subnets, family).is_empty());
        if families == [false; 2] {
            return Vec::new();
        }
        let chains = firewall::dropping(&self.interface, families).await.unwrap_or_else(|error| {
            tracing::debug!(%error, "the firewall cannot be looked at");
            Vec::new()
        });
        let texts = chains.iter().map(|chain| chain.warning(&self.interface));
        texts.map(|text| Trouble { text, unserved: Vec::new() }).collect()
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
                // It is told why already.
                Err(_) if troubles.iter().any(|trouble| trouble.unserved.contains(&address.into())) => {}
                Err(error) => {
                    let interface = &self.interface;
                    let hint = hint(address, interface);
                    let text =
                        format!("the claimed address {address} cannot be set on {interface}: {error}{hint}");
                    troubles.push(Trouble { text, unserved: vec![address.into()] });
                }
            }
        }
        connection.abort();
        Ok(())
    }

    /// Forwarding that somebody else switched on is left alone.
    async fn forward(&mut self, family: usize, wanted: bool) -> io::Result<()> {
        let is_ours = self.memory.forwarding[family];
        let switch = &mut self.switches[family];
        if wanted {
            if !is_ours && !switch.is_on()? {
                self.memory.forwarding[family] = true;
                self.memory.save()?;
                tracing::info!("{} forwarding is switched on for claimed subnets", FAMILIES[family]);
            }
            return switch.hold().await;
        }
        if is_ours || switch.is_held() {
            released(family, switch.release(is_ours)?);
            self.memory.forwarding[family] = false;
            self.memory.save()?;
        }
        Ok(())
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

fn of_family(subnets: &[IpNet], family: usize) -> Vec<IpNet> {
    subnets.iter().filter(|subnet| subnet.addr().is_ipv4() == (family == 0)).copied().collect()
}

/// What to do about an address that cannot be set.
fn hint(address: IpAddr, interface: &str) -> String {
    let switch = format!("net/ipv6/conf/{interface}/disable_ipv6");
    match address.is_ipv6().then(|| std::fs::read_to_string(format!("/proc/sys/{switch}"))) {
        Some(Ok(value)) if value.trim() != "0" => {
            format!(" (IPv6 is disabled there: run `sysctl -w {switch}=0`)")
        }
        Some(Err(_)) => " (this machine has no IPv6)".to_owned(),
        Some(Ok(_)) | None => String::new(),
    }
}

fn released(family: usize, released: Released) {
    let family = FAMILIES[family];
    match released {
        Released::SwitchedOff => tracing::info!("{family} forwarding is switched off again"),
        Released::StaysOn => tracing::info!("{family} forwarding stays on: another agent needs it"),
        Released::NotOurs => {}
    }
}

/// Takes back what an agent that was killed had changed.
pub(crate) async fn recover(directory: &Path) {
    let mut memory = Memory::load(directory);
    for (family, mut switch) in [Switch::ipv4(), Switch::ipv6()].into_iter().enumerate() {
        match switch.release(memory.forwarding[family]) {
            Ok(done) => {
                memory.forwarding[family] = false;
                released(family, done);
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
