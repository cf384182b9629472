//! What others may open here: told to the data plane when a whole map says something else than before.

use super::Agent;
use crate::{
    io::TunnelCommand,
    rules::{Allow, resolve},
};

/// What the data plane was told, and whether the map has changed since.
#[derive(Debug, Default)]
pub(super) struct Told {
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
        if self.rules.allows != resolved.allows {
            self.rules.allows.clone_from(&resolved.allows);
            self.tunnel(TunnelCommand::SetRules(resolved.allows));
        }
    }
}
