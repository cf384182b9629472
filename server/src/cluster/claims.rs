//! Which prefixes nodes may be granted, and which addresses of the overlay that takes from newcomers.
//!
//! A shared address may lie in the overlay beside the nodes' own, which have one owner each: a prefix around them is fine, one of them alone is not, and none
//! that is granted is ever given to a newcomer.

use crate::cluster::{NodeError, State};
use imbl::OrdMap;
use ipnet::{IpNet, Ipv4Net};
use proto::claim::{Claim, Unclaimable};
use std::net::{IpAddr, Ipv4Addr};

/// Inside the overlay a grant takes its addresses from newcomers: at most so many at once.
const OVERLAY_BITS: u8 = 8;

/// The prefix as it may be granted: without host bits.
///
/// # Errors
/// Nobody can claim it, it takes too much of the overlay, or it is the own address of a node.
pub fn claimable(state: &State, prefix: IpNet) -> Result<IpNet, NodeError> {
    let prefix = prefix.trunc();
    Claim::check_prefix(&prefix)?;
    for overlay in [state.network.overlay_v4, state.network.overlay_v6] {
        if prefix.contains(&overlay) {
            return Err(Unclaimable::Overlay(prefix).into());
        }
        if overlay.contains(&prefix) && prefix.max_prefix_len() - prefix.prefix_len() > OVERLAY_BITS {
            return Err(NodeError::ClaimTooLarge(prefix, prefix.max_prefix_len() - OVERLAY_BITS));
        }
    }
    match owner(state, &prefix) {
        Some(owner) => Err(NodeError::ClaimOfOwn { prefix, owner }),
        None => Ok(prefix),
    }
}

/// Whose own address this is.
fn owner(state: &State, prefix: &IpNet) -> Option<String> {
    let is_host = prefix.prefix_len() == prefix.max_prefix_len();
    let node = is_host.then(|| state.node_by_address(prefix.addr()))??;
    Some(node.name.clone())
}

/// Whether a node's claim counts, given what it was granted: never where it is somebody's own address.
pub(crate) fn is_granted(state: &State, grants: &[IpNet], claim: &Claim) -> bool {
    grants.iter().any(|grant| grant.contains(&claim.prefix)) && owner(state, &claim.prefix).is_none()
}

/// The part of the overlay that is granted: how often each prefix is. IPv6 addresses count by the IPv4 ones that they would carry.
#[derive(Debug, Clone, Default)]
pub(crate) struct Taken(OrdMap<Ipv4Net, usize>);

impl Taken {
    pub(crate) fn add(&mut self, grants: &[IpNet]) {
        for prefix in grants.iter().filter_map(as_v4) {
            *self.0.entry(prefix).or_insert(0) += 1;
        }
    }

    pub(crate) fn remove(&mut self, grants: &[IpNet]) {
        for prefix in grants.iter().filter_map(as_v4) {
            match self.0.get_mut(&prefix) {
                Some(count) if *count > 1 => *count -= 1,
                Some(_) | None => {
                    self.0.remove(&prefix);
                }
            }
        }
    }

    pub(crate) fn contains(&self, address: Ipv4Addr) -> bool {
        let around = (32 - OVERLAY_BITS..=32).filter_map(|bits| Ipv4Net::new(address, bits).ok());
        !self.0.is_empty() && around.into_iter().any(|prefix| self.0.contains_key(&prefix.trunc()))
    }
}

/// Those that are too large lie outside of the overlay.
fn as_v4(grant: &IpNet) -> Option<Ipv4Net> {
    let bits = 32u8.checked_sub(grant.max_prefix_len() - grant.prefix_len())?;
    let address = match grant.addr() {
        IpAddr::V4(v4) => v4,
        IpAddr::V6(v6) => {
            let [.., a, b, c, d] = v6.octets();
            Ipv4Addr::new(a, b, c, d)
        }
    };
    Ipv4Net::new(address, bits).ok().map(|prefix| prefix.trunc())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::{allow_claim, remove, testing};

    fn prefix(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    #[test]
    fn what_nobody_can_claim_is_refused_with_the_reason() {
        let (state, node) = testing::with_node("web");
        let own = node.address_v4.to_string() + "/32";
        let own_v6 = node.address_v6.to_string() + "/128";
        for (text, reason) in [
            ("0.0.0.0/0", "exit node"),
            ("::/0", "exit node"),
            ("127.0.0.0/8", "loopback"),
            ("224.0.0.0/4", "multicast"),
            ("100.64.0.0/10", "overlay"),
            ("100.0.0.0/8", "overlay"),
            ("100.64.0.0/16", "/24"),
            (own.as_str(), "web"),
            (own_v6.as_str(), "web"),
        ] {
            let error = claimable(&state, prefix(text)).unwrap_err().to_string();
            assert!(error.contains(reason) && error.contains(text), "{text}: {error}");
        }
        for text in ["100.64.200.1/32", "10.0.0.0/8", "192.168.1.7/24"] {
            assert_eq!(claimable(&state, prefix(text)), Ok(prefix(text).trunc()));
        }
    }

    #[test]
    fn a_prefix_around_a_nodes_own_address_may_be_claimed_but_that_address_not() {
        let (mut state, owner) = testing::with_node("owner");
        let claimer = testing::enrol(&mut state, "claimer");
        let around = Ipv4Net::new(owner.address_v4, 31).unwrap().trunc();
        let ops = allow_claim(&state, &claimer, around.into(), testing::NOW).unwrap();
        testing::apply(&mut state, ops);
        let grants = [around.into()];
        let claim = |text: String| Claim::new(prefix(&text));
        assert!(is_granted(&state, &grants, &claim(around.to_string())));
        assert!(!is_granted(&state, &grants, &claim(owner.address_v4.to_string() + "/32")));
    }

    #[test]
    fn what_is_granted_is_given_to_no_newcomer_until_the_grant_is_gone() {
        let (mut state, node) = testing::with_node("a");
        let next = state.next_address().unwrap();
        let ops = allow_claim(&state, &node, IpNet::from(IpAddr::from(next)), testing::NOW).unwrap();
        testing::apply(&mut state, ops);
        assert_ne!(state.next_address(), Some(next));
        assert_eq!(State::from_snapshot(testing::snapshot(&state)).next_address(), state.next_address());
        let node = state.node(node.id).unwrap().clone();
        let ops = remove(&state, &node, testing::NOW);
        testing::apply(&mut state, ops);
        assert_eq!(state.next_address(), Some(next));
    }

    #[test]
    fn a_setup_keys_grants_are_kept_free_for_its_nodes() {
        let (mut state, _) = testing::with_node("a");
        let next = state.next_address().unwrap();
        let claims = vec![IpNet::from(IpAddr::from(next))];
        let terms = crate::cluster::SetupKeyTerms { claims, ..Default::default() };
        testing::setup_key(&mut state, &terms);
        assert_ne!(state.next_address(), Some(next));
    }
}
