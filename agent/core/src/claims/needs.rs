//! What follows for claimants from what prefixes need them for: who is asked, whose tunnel is kept, whose silence is told.

use super::{Claims, Output, pulse::Need};
use crate::time::BootTime;
use proto::key::PublicKey;

impl Claims {
    /// A peer is needed for the most that any prefix needs it for.
    pub(super) fn need(&mut self, peer: &PublicKey, now: BootTime) {
        let choices = self.in_use.iter().filter_map(|prefix| self.choices.get(prefix));
        let needs = choices.flat_map(|choice| &choice.needs).filter(|(key, _)| key == peer);
        let need = needs.map(|(_, need)| *need).max().unwrap_or_default();
        let Some(claimant) = self.claimants.get_mut(peer) else { return };
        let before = claimant.pulse.need();
        claimant.pulse.set_need(need, &self.config, now);
        match need {
            Need::None => self.engaged.remove(peer),
            Need::Standby | Need::Return | Need::Sole | Need::Active | Need::Proof => {
                self.engaged.insert(*peer)
            }
        };
        if (before == Need::None) != (need == Need::None) {
            self.outputs.push_back(Output::Keep { peer: *peer, kept: need != Need::None });
        }
        self.watch(peer);
    }

    pub(super) fn watch(&mut self, peer: &PublicKey) {
        let Some(claimant) = self.claimants.get_mut(peer) else { return };
        let silence = match claimant.pulse.need() {
            Need::Active => Some(claimant.pulse.silence(&self.config)),
            Need::None | Need::Standby | Need::Return | Need::Sole | Need::Proof => None,
        };
        if claimant.watched != silence {
            claimant.watched = silence;
            self.outputs.push_back(Output::Watch { peer: *peer, silence });
        }
    }

    pub(super) fn probe(&mut self, next_probe: &mut u64, now: BootTime) {
        for peer in &self.engaged {
            let Some(claimant) = self.claimants.get_mut(peer) else { continue };
            let id = next_probe.wrapping_add(1);
            if claimant.pulse.poll_probe(id, &self.config, now) {
                *next_probe = id;
                self.outputs.push_back(Output::Probe { peer: *peer, id });
            }
        }
    }
}
