//! Routes into the tunnel, and the rule that keeps our own packets out of it.
//!
//! ```text
//! rule:  not fwmark MARK  lookup TABLE     (TABLE is BASE + the interface's index)
//! TABLE: 100.64.0.0/10 dev hf0 src 100.64.0.7
//! ```
//!
//! Packets of our sockets are marked and use the main table as if there were no tunnel, even to an address that the overlay covers. Routes go with their
//! interface, whatever happens to us; the rule must be removed, and one that a killed agent left is known by its protocol number and a table without an interface.

use futures_util::StreamExt;
use ipnet::IpNet;
use nix::net::if_::{if_nameindex, if_nametoindex};
use rtnetlink::{
    Handle, IpVersion, RouteMessageBuilder,
    packet_route::{
        AddressFamily,
        route::{RouteMessage, RouteProtocol, RouteScope},
        rule::{RuleAction, RuleAttribute, RuleFlags, RuleMessage},
    },
};
use std::{collections::BTreeSet, io, net::IpAddr, sync::Arc};
use tokio::{sync::Mutex, task::AbortHandle};

/// How `ip rule` and `ip route` name us: proto 72.
const PROTOCOL: RouteProtocol = RouteProtocol::Other(72);
const TABLE_BASE: u32 = 52_000;
/// Before the main table (32766).
const PRIORITY: u32 = 5_200;

/// The event loop sets them; who serves looks whether they are still there. Held for as long as the kernel takes.
pub(crate) type SharedRoutes = Arc<Mutex<Option<Routes>>>;

/// The routes of one interface.
#[derive(Debug)]
pub(crate) struct Routes {
    handle: Handle,
    connection: AbortHandle,
    interface: String,
    index: u32,
    /// The own addresses, to send from.
    addresses: Vec<IpAddr>,
    mark: u32,
    rules: Vec<RuleMessage>,
    wanted: BTreeSet<IpNet>,
    routed: BTreeSet<IpNet>,
}

/// What becomes of a route to the same prefix that is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Existing {
    Replaced,
    Kept,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum RouteError {
    #[error("rtnetlink: {0}")]
    Netlink(#[from] io::Error),
    #[error("interface {0} is gone")]
    NoInterface(String),
    #[error("{prefix} cannot be routed into {interface}: {source}")]
    Route { prefix: IpNet, interface: String, source: rtnetlink::Error },
    #[error("the node's own address {address} cannot be set on {interface}: {source}")]
    Address { address: IpAddr, interface: String, source: rtnetlink::Error },
    #[error("no routing rule can be made: {0}")]
    Rule(rtnetlink::Error),
}

impl RouteError {
    /// Negative, as the kernel gives it.
    fn errno(&self) -> Option<i32> {
        match self {
            Self::Route { source, .. } | Self::Address { source, .. } | Self::Rule(source) => errno(source),
            Self::Netlink(_) | Self::NoInterface(_) => None,
        }
    }
}

/// The system has no IPv6, or the interface has it switched off.
fn is_no_ipv6(errno: i32) -> bool {
    [libc::EAFNOSUPPORT, libc::EOPNOTSUPP, libc::EPROTONOSUPPORT, libc::EACCES].contains(&-errno)
}

impl Routes {
    /// Ready to route into `interface`, with the own address of the same family as source.
    pub(crate) fn new(interface: &str, addresses: &[IpAddr], mark: u32) -> Result<Self, RouteError> {
        let index = if_nametoindex(interface).map_err(|_| RouteError::NoInterface(interface.to_owned()))?;
        let (handle, connection) = open()?;
        Ok(Self {
            handle,
            connection,
            interface: interface.to_owned(),
            index,
            addresses: addresses.to_vec(),
            mark,
            rules: Vec::new(),
            wanted: BTreeSet::new(),
            routed: BTreeSet::new(),
        })
    }

    /// Routes these prefixes and no others; a route that stays is not touched. A prefix of a family that we have no address of is left out, and so is IPv6
    /// where it cannot be routed. After an error the others are routed all the same.
    pub(crate) async fn set(&mut self, prefixes: &[IpNet]) -> Result<(), RouteError> {
        let wanted: BTreeSet<IpNet> = prefixes.iter().copied().collect();
        let mut failed = Ok(());
        for own in self.addresses.clone() {
            let is_new = |prefix: &&IpNet| source_for(prefix, &self.addresses) == Some(own);
            let new: Vec<IpNet> = wanted.difference(&self.routed).filter(is_new).copied().collect();
            if let Err(error) = self.add_all(own, &new, Existing::Replaced).await {
                match own.is_ipv6() && error.errno().is_some_and(is_no_ipv6) {
                    true => tracing::debug!(%error, "no IPv6 in the tunnel"),
                    false => failed = Err(error),
                }
            }
        }
        for prefix in self.routed.difference(&wanted).copied().collect::<Vec<_>>() {
            self.routed.remove(&prefix);
            let Some(route) = source_for(&prefix, &self.addresses).and_then(|own| self.route(&prefix, own))
            else {
                continue;
            };
            if let Err(error) = self.handle.route().del(route).execute().await {
                tracing::debug!(%prefix, %error, "a route was gone already");
            }
        }
        self.wanted = wanted;
        failed
    }

    /// Puts back what somebody took away of own addresses and routes, as switching IPv6 off takes all of it. What is there is not touched. For each own address what it came to.
    pub(crate) async fn look(&mut self) -> Vec<(IpAddr, Result<(), RouteError>)> {
        let mut outcomes = Vec::new();
        for own in self.addresses.clone() {
            let is_of = |prefix: &&IpNet| source_for(prefix, &self.addresses) == Some(own);
            let prefixes: Vec<IpNet> = self.wanted.iter().filter(is_of).copied().collect();
            let outcome = match self.keep_rules(own).await {
                Ok(()) => self.add_all(own, &prefixes, Existing::Kept).await,
                Err(error) => Err(error),
            };
            outcomes.push((own, outcome));
        }
        outcomes
    }

    /// The rule of this address's family, which somebody may have flushed.
    async fn keep_rules(&self, own: IpAddr) -> Result<(), RouteError> {
        for rule in self.rules.iter().filter(|rule| rule.header.family == family(own)) {
            let mut request = self.handle.rule().add().v4();
            request.message_mut().clone_from(rule);
            match request.execute().await {
                Ok(()) => tracing::warn!(%own, "somebody removed our routing rule; it is there again"),
                Err(error) if errno(&error) == Some(-libc::EEXIST) => {}
                Err(error) => return Err(RouteError::Rule(error)),
            }
        }
        Ok(())
    }

    /// All that can be, after the address that they are sent to from; the last error.
    async fn add_all(
        &mut self,
        own: IpAddr,
        prefixes: &[IpNet],
        existing: Existing,
    ) -> Result<(), RouteError> {
        self.add_address(own).await?;
        let mut failed = Ok(());
        for prefix in prefixes {
            match self.add(prefix, own, existing).await {
                Ok(()) => drop(self.routed.insert(*prefix)),
                Err(error) => failed = Err(error),
            }
        }
        failed
    }

    async fn add_address(&self, address: IpAddr) -> Result<(), RouteError> {
        let length = if address.is_ipv4() { 32 } else { 128 };
        match self.handle.address().add(self.index, address, length).execute().await {
            Ok(()) => {
                let interface = &self.interface;
                tracing::info!(%address, "the node's own address was gone from {interface} and is set again");
                Ok(())
            }
            Err(error) if errno(&error) == Some(-libc::EEXIST) => Ok(()),
            Err(source) => Err(RouteError::Address { address, interface: self.interface.clone(), source }),
        }
    }

    async fn add(&mut self, prefix: &IpNet, source: IpAddr, existing: Existing) -> Result<(), RouteError> {
        self.add_rule(family(source), TABLE_BASE + self.index, self.mark).await?;
        let Some(route) = self.route(prefix, source) else { return Ok(()) };
        let request = self.handle.route().add(route);
        let added = match existing {
            Existing::Replaced => request.replace().execute().await,
            Existing::Kept => match request.execute().await {
                Err(error) if errno(&error) == Some(-libc::EEXIST) => Ok(()),
                added => added,
            },
        };
        added.map_err(|source| RouteError::Route {
            prefix: *prefix,
            interface: self.interface.clone(),
            source,
        })
    }

    fn route(&self, prefix: &IpNet, source: IpAddr) -> Option<RouteMessage> {
        let route = RouteMessageBuilder::<IpAddr>::new()
            .destination_prefix(prefix.network(), prefix.prefix_len())
            .and_then(|route| route.pref_source(source))
            .ok()?;
        let route = route.output_interface(self.index).table_id(TABLE_BASE + self.index);
        Some(route.protocol(PROTOCOL).scope(RouteScope::Link).build())
    }

    /// One rule for each family.
    async fn add_rule(&mut self, family: AddressFamily, table: u32, mark: u32) -> Result<(), RouteError> {
        let mut request = self.handle.rule().add().v4().table_id(table).action(RuleAction::ToTable);
        request = request.priority(PRIORITY).fw_mark(mark);
        let rule = request.message_mut();
        rule.header.family = family;
        rule.header.flags |= RuleFlags::Invert;
        rule.attributes.push(RuleAttribute::Protocol(PROTOCOL));
        let rule = rule.clone();
        if self.rules.contains(&rule) {
            return Ok(());
        }
        match request.execute().await {
            Ok(()) => {}
            Err(error) if errno(&error) == Some(-libc::EEXIST) => {}
            Err(error) => return Err(RouteError::Rule(error)),
        }
        self.rules.push(rule);
        Ok(())
    }

    /// Takes the rules away. The routes go with the interface.
    pub(crate) async fn remove(mut self) {
        for rule in std::mem::take(&mut self.rules) {
            if let Err(error) = self.handle.rule().del(rule).execute().await {
                tracing::debug!(%error, "a routing rule was gone already");
            }
        }
    }
}

impl Drop for Routes {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

/// Removes the rules of agents that were killed: those of ours whose table's interface does not exist any more.
pub(crate) async fn clean_up() -> io::Result<()> {
    let (handle, connection) = open()?;
    let tables: Vec<u32> = if_nameindex()?.iter().map(|interface| TABLE_BASE + interface.index()).collect();
    for version in [IpVersion::V4, IpVersion::V6] {
        let rules: Vec<_> = handle.rule().get(version).execute().collect().await;
        for rule in rules.into_iter().flatten().filter(|rule| is_stale(rule, &tables)) {
            tracing::info!("a routing rule of an agent that was killed is removed");
            if let Err(error) = handle.rule().del(rule).execute().await {
                tracing::debug!(%error, "a routing rule was gone already");
            }
        }
    }
    connection.abort();
    Ok(())
}

fn is_stale(rule: &RuleMessage, tables: &[u32]) -> bool {
    let ours = rule.attributes.contains(&RuleAttribute::Protocol(PROTOCOL));
    let has_interface =
        |attribute: &RuleAttribute| tables.iter().any(|t| *attribute == RuleAttribute::Table(*t));
    ours && !rule.attributes.iter().any(has_interface)
}

pub(super) fn open() -> io::Result<(Handle, AbortHandle)> {
    let (connection, handle, _) = rtnetlink::new_connection()?;
    Ok((handle, tokio::spawn(connection).abort_handle()))
}

fn source_for(prefix: &IpNet, addresses: &[IpAddr]) -> Option<IpAddr> {
    addresses.iter().copied().find(|address| address.is_ipv4() == prefix.addr().is_ipv4())
}

fn family(address: IpAddr) -> AddressFamily {
    match address {
        IpAddr::V4(_) => AddressFamily::Inet,
        IpAddr::V6(_) => AddressFamily::Inet6,
    }
}

/// Negative, as the kernel gives it.
fn errno(error: &rtnetlink::Error) -> Option<i32> {
    if let rtnetlink::Error::NetlinkError(message) = error {
        message.code.map(|code| code.get())
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(protocol: RouteProtocol, table: u32) -> RuleMessage {
        let mut rule = RuleMessage::default();
        rule.attributes = vec![RuleAttribute::Protocol(protocol), RuleAttribute::Table(table)];
        rule
    }

    #[test]
    fn only_our_own_rules_without_an_interface_are_stale() {
        let living = [TABLE_BASE + 1, TABLE_BASE + 7];
        assert!(!is_stale(&rule(PROTOCOL, TABLE_BASE + 7), &living));
        assert!(is_stale(&rule(PROTOCOL, TABLE_BASE + 8), &living));
        assert!(!is_stale(&rule(RouteProtocol::Static, TABLE_BASE + 8), &living));
    }

    #[test]
    fn only_errors_that_mean_no_ipv6_are_taken_for_it() {
        assert!([libc::EAFNOSUPPORT, libc::EOPNOTSUPP, libc::EACCES].iter().all(|errno| is_no_ipv6(-errno)));
        let others = [libc::EPERM, libc::ENOBUFS, libc::EINVAL, libc::EEXIST, libc::ENODEV, libc::ENOMEM];
        assert!(!others.iter().any(|errno| is_no_ipv6(-errno)));
    }

    #[test]
    fn a_prefix_is_sent_to_from_the_own_address_of_its_family() {
        let own: Vec<IpAddr> = vec!["100.64.0.7".parse().unwrap()];
        assert_eq!(source_for(&"100.64.0.0/10".parse().unwrap(), &own), Some(own[0]));
        assert_eq!(source_for(&"fd00::/48".parse().unwrap(), &own), None);
    }
}
