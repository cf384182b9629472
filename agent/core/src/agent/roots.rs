//! Changes of the cluster's root, as servers tell them: believed, kept on disk, and then confirmed, so that the cluster knows who would be lost without the former root.

use super::Agent;
use crate::{
    io::{ConnId, Output},
    time::BootTime,
    trust::Pins,
};
use proto::{root::Fingerprint, root_list::RootList, session::AgentMessage};
use std::{collections::BTreeMap, time::Duration};

/// By then the disk has what was learned.
const KEPT_AFTER: Duration = Duration::from_secs(1);

/// What sessions were told of the root that we keep.
#[derive(Debug, Clone, Default)]
pub(super) struct Confirmed {
    told: BTreeMap<ConnId, Option<Fingerprint>>,
    /// When a newer root was learned in this start.
    learned_at: Option<BootTime>,
}

impl Agent {
    /// What servers have to show; `None` before we are a member.
    pub fn pins(&self) -> Option<Pins> {
        self.netmap.trust().map(|trust| trust.pins())
    }

    pub(super) fn on_roots(&mut self, list: &RootList) {
        let own = self.membership.as_ref().map_or(&[][..], |(signed, _)| signed);
        let before = self.newest_root();
        match self.netmap.learn_roots(list, own) {
            Ok(None) => {}
            Ok(Some(changes)) => {
                let root = self.newest_root();
                if root != before {
                    self.confirmed.learned_at = Some(self.now);
                    tracing::info!(root = root.map(tracing::field::display), "the cluster has a new root");
                }
                self.on_map_changes(changes);
                self.save_map_soon();
                self.outputs.push_back(Output::SaveState);
            }
            Err(error) => {
                tracing::warn!(%error, "a server tells of roots that do not follow from the one known here; they are not believed");
            }
        }
    }

    pub(super) fn newest_root(&self) -> Option<Fingerprint> {
        self.netmap.trust().map(|trust| trust.newest().fingerprint())
    }

    /// Hello has told it.
    pub(super) fn on_root_told(&mut self, conn: ConnId) {
        let newest = self.newest_root();
        self.confirmed.told.insert(conn, newest);
    }

    pub(super) fn forget_root_told(&mut self, conn: ConnId) {
        self.confirmed.told.remove(&conn);
    }

    pub(super) fn confirm_root(&mut self, conn: ConnId) {
        let is_kept = self.confirmed.learned_at.is_none_or(|at| self.now >= at + KEPT_AFTER);
        let newest = self.newest_root().filter(|_| is_kept);
        let (Some(root), Some(told)) = (newest, self.confirmed.told.get_mut(&conn)) else { return };
        if *told != Some(root) {
            *told = Some(root);
            self.outputs.push_back(Output::Send { conn, message: AgentMessage::Root(root) });
        }
    }

    pub(super) fn roots_load(&self) -> usize {
        self.confirmed.told.len()
    }
}
