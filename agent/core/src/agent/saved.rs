//! What an agent keeps on disk beside its key and its map, so that it comes up with every server down.

use super::Agent;
use crate::trust::{Pins, Retiring, Trust};
use proto::{
    holding::Holding,
    key::PublicKey,
    map::MapVersion,
    root::{Fingerprint, RootKey},
    server_url::ServerUrl,
    statement::{Membership, NetworkId, Statement},
    time::UnixTime,
};
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;

/// Written and read by the driver, opaque to it. Unknown or missing fields are survived.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Saved {
    network: Option<Network>,
    servers: Vec<Server>,
    peers: Vec<SavedPeer>,
    /// When a server last confirmed the map.
    level_at: Option<UnixTime>,
    /// Who holds what, as holders told inside tunnels and the map does not know.
    heard: Vec<Holding>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Network {
    id: [u8; 16],
    /// The newest.
    root: [u8; 32],
    /// Roots before it that are still trusted, oldest first.
    #[serde(default)]
    former_roots: Vec<RootKey>,
    /// Roots that servers name no more, while something stands under them.
    #[serde(default)]
    retiring_roots: Vec<RetiringRoot>,
    #[serde(default)]
    retired_roots: Vec<Fingerprint>,
    /// By which the roots named the next.
    #[serde(default)]
    root_links: Vec<Vec<u8>>,
    /// By which peers led on from the newest.
    #[serde(default)]
    led_links: Vec<Vec<u8>>,
    /// Our own certificate, as signed.
    membership: Vec<u8>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct RetiringRoot {
    root: RootKey,
    /// Of the maps that do without it.
    epoch: u64,
    revision: u64,
}

impl From<&Retiring> for RetiringRoot {
    fn from(retiring: &Retiring) -> Self {
        let MapVersion { epoch, revision } = retiring.after;
        Self { root: retiring.root, epoch, revision }
    }
}

impl From<&RetiringRoot> for Retiring {
    fn from(kept: &RetiringRoot) -> Self {
        Self { root: kept.root, after: MapVersion { epoch: kept.epoch, revision: kept.revision } }
    }
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Server {
    url: ServerUrl,
    addresses: Vec<SocketAddr>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct SavedPeer {
    pub(super) key: PublicKey,
    pub(super) endpoints: Vec<SocketAddr>,
    /// It had a tunnel.
    pub(super) live: bool,
}

impl Saved {
    /// What the cluster's servers must show.
    pub fn pins(&self) -> Option<Pins> {
        self.trust().map(|trust| trust.pins())
    }

    /// Whether we are a member of a network.
    pub fn is_enrolled(&self) -> bool {
        self.membership().is_some()
    }

    pub(super) fn trust(&self) -> Option<Trust> {
        let Network { id, root, former_roots, retiring_roots, retired_roots, .. } = self.network.as_ref()?;
        let Network { root_links, led_links, .. } = self.network.as_ref()?;
        let newest = RootKey::from_bytes(root).ok()?;
        let retiring = retiring_roots.iter().map(Retiring::from).collect();
        let trust =
            Trust::restored(NetworkId(*id), newest, former_roots.clone(), retiring, retired_roots.clone());
        Some(trust.with_links(root_links.clone()).with_led(led_links))
    }

    pub(super) fn membership(&self) -> Option<(Vec<u8>, Membership)> {
        let signed = &self.network.as_ref()?.membership;
        match self.trust()?.verify_held(signed) {
            Ok((Statement::Membership(membership), _)) => Some((signed.clone(), membership)),
            Ok((Statement::Removal(_) | Statement::NextRoot(_) | Statement::Unknown, _)) | Err(_) => None,
        }
    }

    pub(super) fn known_servers(&self) -> Vec<(ServerUrl, Vec<SocketAddr>)> {
        self.servers.iter().map(|server| (server.url.clone(), server.addresses.clone())).collect()
    }

    pub(super) fn peers(&self) -> impl Iterator<Item = &SavedPeer> {
        self.peers.iter()
    }

    pub(super) fn heard(&self) -> &[Holding] {
        &self.heard
    }

    pub(super) fn level_at(&self) -> Option<UnixTime> {
        self.level_at
    }
}

impl Agent {
    /// What is to be written to disk.
    pub fn saved(&self) -> Saved {
        let network = self.netmap.trust().zip(self.membership.as_ref());
        let network = network.map(|(trust, (signed, _))| Network {
            id: trust.network.0,
            root: trust.newest().to_bytes(),
            former_roots: trust.former().to_vec(),
            retiring_roots: trust.retiring().iter().map(RetiringRoot::from).collect(),
            retired_roots: trust.retired().to_vec(),
            root_links: trust.links().to_vec(),
            led_links: trust.led().map(<[u8]>::to_vec).collect(),
            membership: signed.clone(),
        });
        let servers = self.control.known().into_iter();
        let peers = self.peers.iter().map(|(key, peer)| SavedPeer {
            key: *key,
            endpoints: peer.paths.worked().collect(),
            live: peer.is_connected(),
        });
        Saved {
            network,
            servers: servers.map(|(url, addresses)| Server { url, addresses }).collect(),
            peers: peers.filter(|peer| peer.live || !peer.endpoints.is_empty()).collect(),
            level_at: self.level_unix().or(self.restored_level),
            heard: self.netmap.holdings().heard().copied().collect(),
        }
    }

    fn level_unix(&self) -> Option<UnixTime> {
        let (level_at, time) = (self.level_at?, self.time.at(self.now)?);
        Some(UnixTime(time.0.saturating_sub(self.now.since(level_at).as_secs())))
    }
}
