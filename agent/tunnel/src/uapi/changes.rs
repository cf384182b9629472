//! What a `set` asks for. Absent means unchanged.

use std::{net::SocketAddr, time::Duration};

use ipnet::IpNet;

use crate::{PresharedKey, PrivateKey, PublicKey};

/// A whole `set=1`.
#[derive(Debug, Clone, Default)]
pub struct Changes {
    /// `Some(None)`, the key of zeros, takes the key away.
    pub private_key: Option<Option<PrivateKey>>,
    /// 0 is any free port.
    pub listen_port: Option<u16>,
    /// `Some(None)` takes the mark away.
    pub fwmark: Option<Option<u32>>,
    /// All peers go before those of this change come.
    pub replace_peers: bool,
    /// In order; a key may appear more than once.
    pub peers: Vec<PeerChanges>,
}

/// What a `set` asks for one peer, which is added if it is not there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerChanges {
    pub key: PublicKey,
    pub remove: bool,
    /// A peer that is not there is not added.
    pub update_only: bool,
    /// `Some(None)`, the key of zeros, takes the key away.
    pub preshared_key: Option<Option<PresharedKey>>,
    pub endpoint: Option<SocketAddr>,
    /// `Some(None)` switches it off.
    pub keepalive: Option<Option<Duration>>,
    /// In order.
    pub allowed_ips: Vec<AllowedIpChange>,
}

/// One step on a peer's list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AllowedIpChange {
    /// Empties the list.
    Clear,
    /// Adds a prefix, taking it from whichever peer had it.
    Add(IpNet),
    Remove(IpNet),
}

impl PeerChanges {
    /// Only that there is such a peer.
    pub fn new(key: PublicKey) -> Self {
        Self {
            key,
            remove: false,
            update_only: false,
            preshared_key: None,
            endpoint: None,
            keepalive: None,
            allowed_ips: Vec::new(),
        }
    }
}
