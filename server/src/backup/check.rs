//! Whether a snapshot is what a cluster can be. Whoever could make a server load another would own the network, so names, numbers, addresses and every
//! signature are checked before a database sees them.

use crate::cluster::{Node, Removed, Snapshot, in_ula, is_valid_name};
use ipnet::IpNet;
use proto::statement::{Statement, StatementError};
use std::collections::HashSet;

const NAME_LIMIT: usize = 255;
const GAPS_LIMIT: usize = 64;

/// # Errors
/// What is wrong, and of what.
pub(crate) fn check(snapshot: &Snapshot) -> Result<(), String> {
    snapshot.check_ranges()?;
    let network = &snapshot.founding.network;
    if !matches!((network.overlay_v4, network.overlay_v6), (IpNet::V4(_), IpNet::V6(_))) {
        return Err("the overlay is not one IPv4 and one IPv6 prefix".to_owned());
    }
    if network.name.len() > NAME_LIMIT {
        return Err("the network's name is too long".to_owned());
    }
    if snapshot.recovery.as_ref().is_some_and(|recovery| recovery.gaps.len() > GAPS_LIMIT) {
        return Err("more gaps of addresses than are kept".to_owned());
    }
    if snapshot.settings.is_some_and(|settings| !settings.is_valid()) {
        return Err("a membership lifetime that nobody can set".to_owned());
    }
    let founding = &snapshot.founding;
    if let Some(roots) = &snapshot.roots {
        roots.check(founding.network_id, founding.root.public())?;
    }
    let (nodes, keys) = (&snapshot.nodes, &snapshot.setup_keys);
    unique("node number", nodes.iter().map(|node| node.id))?;
    unique("node key", nodes.iter().map(|node| node.key))?;
    unique("node name", nodes.iter().map(|node| &node.name))?;
    unique("node address", nodes.iter().map(|node| node.address_v4))?;
    unique("setup key number", keys.iter().map(|key| key.id))?;
    unique("setup key", keys.iter().map(|key| key.hash))?;
    let removed = snapshot.removals.iter().map(|removed| removed.key);
    unique("node key of a node or a removal", nodes.iter().map(|node| node.key).chain(removed))?;
    nodes.iter().try_for_each(|node| {
        check_node(snapshot, node).map_err(|reason| format!("node {}: {reason}", node.id))
    })?;
    snapshot.removals.iter().try_for_each(|removed| {
        check_removed(snapshot, removed)
            .map_err(|reason| format!("the removal of {}: {reason}", removed.name))
    })
}

fn unique<T: Eq + std::hash::Hash>(what: &str, values: impl Iterator<Item = T>) -> Result<(), String> {
    let mut seen = HashSet::new();
    for value in values {
        if !seen.insert(value) {
            return Err(format!("a {what} that stands there twice"));
        }
    }
    Ok(())
}

fn check_node(snapshot: &Snapshot, node: &Node) -> Result<(), String> {
    let network = &snapshot.founding.network;
    if node.id >= snapshot.next_node_id {
        return Err("its number is above those given out".to_owned());
    }
    if !is_valid_name(&node.name) {
        return Err(format!("{:?} is no name", node.name));
    }
    if !network.overlay_v4.contains(&IpNet::from(std::net::IpAddr::V4(node.address_v4))) {
        return Err(format!("its address {} is not in the overlay", node.address_v4));
    }
    if node.address_v6 != in_ula(network.overlay_v6, node.address_v4) {
        return Err(format!("its address {} does not go with {}", node.address_v6, node.address_v4));
    }
    if node.confirmed_root > newest_root(snapshot) {
        return Err("it keeps a root that is not there yet".to_owned());
    }
    match verify(snapshot, &node.membership, node.root)? {
        Statement::Membership(membership)
            if membership.node_key == node.key
                && membership.node_id == node.id
                && membership.addresses == node.addresses() =>
        {
            Ok(())
        }
        Statement::Membership(_) | Statement::Removal(_) | Statement::NextRoot(_) | Statement::Unknown => {
            Err("its certificate says something else".to_owned())
        }
    }
}

fn check_removed(snapshot: &Snapshot, removed: &Removed) -> Result<(), String> {
    match verify(snapshot, &removed.signed, removed.root)? {
        Statement::Removal(removal) if removal.node_key == removed.key => Ok(()),
        Statement::Membership(_) | Statement::Removal(_) | Statement::NextRoot(_) | Statement::Unknown => {
            Err("what is signed says something else".to_owned())
        }
    }
}

fn newest_root(snapshot: &Snapshot) -> u32 {
    snapshot.roots.as_ref().map_or(0, |roots| roots.number)
}

/// `root`: the number of the one that is said to have signed it.
fn verify(snapshot: &Snapshot, signed: &[u8], root: u32) -> Result<Statement, String> {
    let founding = &snapshot.founding;
    let former = snapshot.roots.iter().flat_map(|roots| roots.former.iter().rev());
    let keys = [founding.root.public()].into_iter().chain(former.map(|former| former.key));
    for (key, back) in keys.zip(0..) {
        match Statement::verify(signed, founding.network_id, &key) {
            Err(StatementError::Signature) => {}
            Ok(_) if newest_root(snapshot).checked_sub(back) != Some(root) => {
                return Err("another root signed it than the one it names".to_owned());
            }
            verified => return verified.map_err(|error| error.to_string()),
        }
    }
    Err(StatementError::Signature.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::testing;

    #[test]
    fn a_root_that_a_row_names_is_the_one_that_signed_it_and_no_newer_one_is_kept() {
        let (state, _) = testing::with_node("a");
        let mut snapshot = testing::snapshot(&testing::rotated(&state, 1));
        assert_eq!(check(&snapshot), Ok(()));
        snapshot.nodes[0].root = 1;
        assert!(check(&snapshot).unwrap_err().contains("another root signed it"));
        (snapshot.nodes[0].root, snapshot.nodes[0].confirmed_root) = (0, 2);
        assert!(check(&snapshot).unwrap_err().contains("not there yet"));
        snapshot.nodes[0].confirmed_root = 1;
        assert_eq!(check(&snapshot), Ok(()));
    }
}
