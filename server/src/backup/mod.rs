//! A cluster in a file: what `server backup` writes and `server restore` reads, the same for both databases.
//!
//! ```text
//! {"format":"holdfast-backup","version":1,..}     the header: cluster, root as the database holds it, counts
//! {"node":{..}}  {"setup-key":{..}}  ..           an entity per line
//! {"end":{"checksum":".."}}                       BLAKE2s-256 of every byte before this line
//! ```
//!
//! A file is read as from a stranger: bounded, every field checked (`check`), and nothing is done with a part of one. Presence, leases and the log's past
//! are not in it.

mod check;
mod read;
mod write;

pub(crate) use check::check;
pub(crate) use read::read;
pub(crate) use write::write;

use crate::cluster::{
    ChangeId, Founding, Head, Holdings, Recovery, Roots, Settings, Snapshot, StoredRoot, WrappedRoot,
    base64_text,
};
use proto::{
    map::{MapVersion, Network},
    root::{RootKey, RootSecret},
    statement::{NetworkId, NodeId},
    time::UnixTime,
};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

const FORMAT: &str = "holdfast-backup";
const VERSION: u32 = 1;

/// The file cannot be restored.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BackupError {
    #[error("cannot be read: {0}")]
    Io(#[from] std::io::Error),
    #[error("is no Holdfast backup; name a file that `server backup` wrote")]
    Foreign,
    #[error(
        "is a backup of format {found}, newer than the {VERSION} of this program; use a newer server program"
    )]
    Newer { found: u32 },
    #[error("is cut short: {0}; use another backup")]
    Truncated(String),
    #[error("is damaged (line {line}): {reason}; use another backup")]
    Damaged { line: usize, reason: String },
    /// Whole, and not what a cluster can be.
    #[error("holds what no cluster has: {0}; use another backup")]
    Invalid(String),
}

/// What every version's header has.
#[derive(Deserialize)]
struct Preamble {
    format: String,
    version: u32,
}

#[derive(Serialize, Deserialize)]
struct Header {
    format: String,
    version: u32,
    /// Of the program that wrote it.
    software: String,
    created_at: UnixTime,
    #[serde(with = "base64_text")]
    network_id: [u8; 16],
    network_name: String,
    overlay_v4: ipnet::IpNet,
    overlay_v6: ipnet::IpNet,
    root: RootLine,
    epoch: u64,
    revision: u64,
    #[serde(with = "base64_text")]
    change: [u8; 16],
    next_node_id: NodeId,
    nodes: usize,
    setup_keys: usize,
    removals: usize,
    recovery: Option<Recovery>,
    settings: Option<Settings>,
    #[serde(default)]
    roots: Option<Roots>,
    #[serde(default)]
    holdings: Option<Holdings>,
}

/// The root as the database holds it.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum RootLine {
    /// In the clear: who has the file has the network.
    Plain {
        #[serde(with = "secret_text")]
        seed: Zeroizing<Vec<u8>>,
    },
    /// Of no use without the cluster key.
    Wrapped {
        #[serde(with = "base64_text")]
        public: [u8; 32],
        #[serde(with = "base64_text")]
        sealed: Vec<u8>,
    },
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Trailer {
    End {
        #[serde(with = "base64_text")]
        checksum: [u8; 32],
    },
}

/// What a backup says of itself.
#[derive(Debug, Clone)]
pub(crate) struct Backup {
    pub(crate) snapshot: Snapshot,
    pub(crate) created_at: UnixTime,
    pub(crate) software: String,
}

impl Header {
    fn of(snapshot: &Snapshot, created_at: UnixTime) -> Self {
        let Founding { network_id, root, network } = &snapshot.founding;
        Self {
            format: FORMAT.to_owned(),
            version: VERSION,
            software: env!("CARGO_PKG_VERSION").to_owned(),
            created_at,
            network_id: network_id.0,
            network_name: network.name.clone(),
            overlay_v4: network.overlay_v4,
            overlay_v6: network.overlay_v6,
            root: RootLine::of(root),
            epoch: snapshot.head.version.epoch,
            revision: snapshot.head.version.revision,
            change: snapshot.head.id.0,
            next_node_id: snapshot.next_node_id,
            nodes: snapshot.nodes.len(),
            setup_keys: snapshot.setup_keys.len(),
            removals: snapshot.removals.len(),
            recovery: snapshot.recovery.clone(),
            settings: snapshot.settings,
            roots: snapshot.roots.clone(),
            holdings: snapshot.holdings.clone(),
        }
    }

    /// The snapshot, without its entities.
    fn begin(self) -> Result<Snapshot, String> {
        let version = MapVersion { epoch: self.epoch, revision: self.revision };
        let network =
            Network { name: self.network_name, overlay_v4: self.overlay_v4, overlay_v6: self.overlay_v6 };
        Ok(Snapshot {
            founding: Founding {
                network_id: NetworkId(self.network_id),
                root: self.root.into_stored()?,
                network,
            },
            head: Head { version, id: ChangeId(self.change) },
            next_node_id: self.next_node_id,
            nodes: Vec::new(),
            setup_keys: Vec::new(),
            removals: Vec::new(),
            recovery: self.recovery,
            settings: self.settings,
            roots: self.roots,
            holdings: self.holdings,
        })
    }
}

impl RootLine {
    fn of(root: &StoredRoot) -> Self {
        match root {
            StoredRoot::Plain(secret) => Self::Plain { seed: Zeroizing::new(secret.expose().to_vec()) },
            StoredRoot::Wrapped(WrappedRoot { public, sealed }) => {
                Self::Wrapped { public: public.to_bytes(), sealed: sealed.clone() }
            }
        }
    }

    fn into_stored(self) -> Result<StoredRoot, String> {
        match self {
            Self::Plain { seed } => {
                let seed = seed.as_slice().try_into().map_err(|_| "a root of the wrong length")?;
                Ok(StoredRoot::Plain(RootSecret::from_seed(seed)))
            }
            Self::Wrapped { public, sealed } => {
                let public = RootKey::from_bytes(&public).map_err(|error| error.to_string())?;
                Ok(StoredRoot::Wrapped(WrappedRoot { public, sealed }))
            }
        }
    }
}

/// As `base64_text`, for what is cleared on drop.
mod secret_text {
    use super::{Zeroizing, base64_text};
    use serde::{Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(
        bytes: &Zeroizing<Vec<u8>>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        base64_text::serialize(bytes.as_slice(), serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Zeroizing<Vec<u8>>, D::Error> {
        base64_text::deserialize::<D, Vec<u8>>(deserializer).map(Zeroizing::new)
    }
}
