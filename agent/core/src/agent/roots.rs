//! Changes of the cluster's root, as servers tell them: believed, kept on disk, and then confirmed, so that the cluster knows who would be lost without the former root.
//! Only what the driver reports as written is confirmed.

use super::Agent;
use crate::{
    io::{ConnId, Output},
    netmap::Changes,
    time::BootTime,
    trust::Pins,
};
use proto::{map::MapVersion, root::Fingerprint, root_list::RootList, session::AgentMessage};
use std::collections::BTreeMap;

/// What sessions were told of the root that we keep.
#[derive(Debug, Clone, Default)]
pub(super) struct Confirmed {
    told: BTreeMap<ConnId, Option<Fingerprint>>,
    /// The newest root that the disk has.
    kept: Option<Fingerprint>,
}

impl Agent {
    /// What servers have to show; `None` before we are a member.
    pub fn pins(&self) -> Option<Pins> {
        self.netmap.trust().map(|trust| trust.pins())
    }

    pub(super) fn on_roots(&mut self, list: &RootList) {
        let before = self.newest_root();
        match self.netmap.learn_roots(list) {
            Ok(None) => self.look_for_fork(list),
            Ok(Some((learned, changes))) => {
                let root = self.newest_root();
                if root != before {
                    tracing::info!(root = root.map(tracing::field::display), "the cluster has a new root");
                }
                if learned.strays {
                    tracing::warn!(
                        "peers led to a root that is none of the cluster's: somebody may have the secret of a former root, and sign removals"
                    );
                }
                self.on_trust_changed(changes);
            }
            Err(error) => {
                tracing::warn!(%error, "a server tells of roots that do not follow from the one known here; they are not believed");
            }
        }
    }

    fn look_for_fork(&self, list: &RootList) {
        if let Some(trust) = self.netmap.trust().filter(|trust| trust.is_forked_by(list)) {
            let root = trust.newest().fingerprint();
            tracing::warn!(
                %root,
                "a server tells of roots that go another way than to the newest known here, and is not believed: somebody may have the secret of a former root"
            );
        }
    }

    /// A peer leads on from the newest root known here: its removals can be judged. Servers must show no other root for that. Whether it did.
    pub(super) fn follow_roots(&mut self, links: &[Vec<u8>]) -> bool {
        let led = self.netmap.follow_roots(links);
        if led {
            tracing::debug!("a peer leads to a root that no server told of");
            self.outputs.push_back(Output::SaveState);
        }
        led
    }

    /// What servers named no more goes when nothing needs it; called where that may have come true.
    pub(super) fn release_roots(&mut self) {
        let own = self.membership.as_ref().map_or(&[][..], |(signed, _)| signed);
        if let Some(changes) = self.netmap.release_roots(own) {
            tracing::info!("a former root is trusted no more");
            self.on_trust_changed(changes);
        }
    }

    fn on_trust_changed(&mut self, changes: Changes) {
        self.on_map_changes(changes);
        self.save_map_soon();
        self.outputs.push_back(Output::SaveState);
    }

    /// The server of `conn` has told us its map of this version in full.
    pub(super) fn on_map_told(&mut self, conn: ConnId, version: MapVersion) {
        if self.control.serving() == Some(conn) && self.fetching.is_none() {
            if self.netmap.on_level(version) {
                self.on_map_level();
            }
            if version > MapVersion::default() {
                self.on_confirmed();
            }
        }
    }

    /// The disk has a state with this root as the newest; `None`: with none. Until that is said nothing is confirmed.
    pub fn handle_root_kept(&mut self, root: Option<Fingerprint>, now: BootTime) {
        self.advance(now);
        self.confirmed.kept = root;
        if self.kept_root().is_some() {
            let sessions: Vec<ConnId> = self.control.sessions().collect();
            sessions.into_iter().for_each(|conn| self.confirm_root(conn));
        }
    }

    /// What a Hello confirms.
    pub(super) fn kept_root(&self) -> Option<Fingerprint> {
        self.newest_root().filter(|newest| self.confirmed.kept == Some(*newest))
    }

    pub(super) fn newest_root(&self) -> Option<Fingerprint> {
        self.netmap.trust().map(|trust| trust.newest().fingerprint())
    }

    /// Hello has told it.
    pub(super) fn on_root_told(&mut self, conn: ConnId) {
        let kept = self.kept_root();
        self.confirmed.told.insert(conn, kept);
    }

    pub(super) fn forget_root_told(&mut self, conn: ConnId) {
        self.confirmed.told.remove(&conn);
    }

    pub(super) fn confirm_root(&mut self, conn: ConnId) {
        let Some(root) = self.kept_root() else {
            // The disk may take now what it did not take then.
            return self.save_state_soon();
        };
        let Some(told) = self.confirmed.told.get_mut(&conn) else { return };
        if *told != Some(root) {
            *told = Some(root);
            self.outputs.push_back(Output::Send { conn, message: AgentMessage::Root(root) });
        }
    }

    pub(super) fn roots_load(&self) -> usize {
        self.confirmed.told.len()
    }
}
