//! What others may open here: told to the data plane when a whole map, or what this node serves, says something else than before. Rules reach the node's own addresses and what it
//! serves, and nothing beyond: a machine that forwards for another reason is nobody's way out.

use super::Agent;
use crate::{
    io::TunnelCommand,
    rules::{Allow, confine, lets_reach, resolve},
};
use ipnet::IpNet;

/// What the data plane was told, and whether the map has changed since.
#[derive(Debug, Default)]
pub(super) struct Told {
    /// Of the last whole map.
    of_map: Vec<Allow>,
    /// The part of it that the data plane has.
    allows: Vec<Allow>,
    is_behind: bool,
}

impl Agent {
    pub(super) fn on_rules_changed(&mut self, changed: bool) {
        self.rules.is_behind |= changed;
    }

    /// The map is whole: a part of one may lack what another part has.
    pub(super) fn tell_rules(&mut self) {
        if !std::mem::take(&mut self.rules.is_behind) {
            return;
        }
        let resolved = resolve(self.netmap.objects());
        if let Some(reason) = resolved.refused.first() {
            let more = resolved.refused.len() - 1;
            tracing::warn!(reason, more, "a rule of the map allows nothing here");
        }
        self.rules.of_map = resolved.allows;
        self.users.judge_anew();
        self.confine_rules();
    }

    /// The node's addresses or what it serves may have changed.
    pub(super) fn confine_rules(&mut self) {
        let allows = confine(&self.rules.of_map, &self.reached());
        if self.rules.allows != allows {
            self.rules.allows.clone_from(&allows);
            self.tunnel(TunnelCommand::SetRules(allows));
        }
    }

    /// Whether packets from these sources may open anything at a prefix, if this node serves it.
    pub(super) fn rules_let_reach(&self, sources: &[IpNet], prefix: &IpNet) -> bool {
        lets_reach(&self.rules.of_map, sources, prefix)
    }

    /// What packets may be for that come here.
    fn reached(&self) -> Vec<IpNet> {
        let Some((_, membership)) = &self.membership else { return Vec::new() };
        membership.addresses.iter().map(|address| IpNet::from(*address)).chain(self.served()).collect()
    }
}
