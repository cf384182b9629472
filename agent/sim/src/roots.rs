//! Changes of the cluster's root, and certificates that are renewed: what servers do for both, and what must come of it.
//!
//! A server shows the roots that it knows itself, so one that is behind is refused by agents that are not. Whoever ticks with the database at hand signs one thing anew; the trust in former
//! roots ends only when nothing is under them and every node has said that it keeps the newest.

use crate::{atlas::Change, faults::Fault, members, stream::StreamId, world::World};
use agent_core::{Agent, BootTime};
use proto::{root::Fingerprint, root_list::RootList, session::ServerMessage};
use std::time::Duration;

/// A certificate is renewed when it is so old.
const RENEWAL: Duration = Duration::from_secs(10);
/// A list, the disk, a confirmation, with messages that are lost.
const LEARNT_BOUND: Duration = Duration::from_secs(20);
/// How long before their ends certificates may be those that a peer holds: renewal, the way to it, and a server that is silent, not gone.
const CERTIFICATE_MARGIN: Duration = Duration::from_secs(30);

impl World {
    pub(crate) fn rotate(&mut self) {
        self.write_if_possible(&Change::Rotate);
        self.rotated_at = self.now;
    }

    pub(crate) fn retire(&mut self) {
        self.write_if_possible(&Change::Retire);
    }

    /// Whether an agent would believe this server: by the root that it keeps, or that of its setup key, which is the first.
    pub(crate) fn shows_known_root(&self, server: usize, agent: usize) -> bool {
        self.servers[server].state.roots().contains(&self.root_of(agent).unwrap_or_default())
    }

    /// The newest root that an agent believes.
    pub(crate) fn root_of(&self, agent: usize) -> Option<usize> {
        let pins = self.nodes[agent].agent.as_ref().and_then(Agent::pins)?;
        members::number_of(pins.newest)
    }

    pub(crate) fn root_list(&self, server: usize) -> Option<RootList> {
        let state = &self.servers[server].state;
        (state.newest_root > 0).then(|| members::root_list(state.roots(), state.version))
    }

    pub(crate) fn own_certificate(&self, server: usize, agent: usize) -> Vec<u8> {
        let state = &self.servers[server].state;
        state.certificate(agent).map_or_else(Vec::new, |certificate| state.signed(agent, certificate))
    }

    /// Roots before anything that they signed.
    pub(crate) fn tell_standing(&mut self, server: usize, id: StreamId) {
        let it = &mut self.servers[server];
        let state = it.state.clone();
        let Some(session) = it.sessions.get_mut(&id) else { return };
        let (agent, certificate) = (session.agent, state.certificate(session.agent));
        let roots_are_news = std::mem::replace(&mut session.roots_told, state.roots()) != state.roots();
        let is_renewed = std::mem::replace(&mut session.certificate_told, certificate) != certificate;
        if let Some(list) = self.root_list(server).filter(|_| roots_are_news) {
            self.answer(id, ServerMessage::Roots(list));
        }
        if is_renewed {
            let own = self.own_certificate(server, agent);
            self.answer(id, ServerMessage::Membership(own));
        }
    }

    /// An agent says that it keeps this root.
    pub(crate) fn on_root_kept(&mut self, server: usize, id: StreamId, root: Option<Fingerprint>) {
        let Some(session) = self.servers[server].sessions.get_mut(&id) else { return };
        session.kept_root = root.and_then(members::number_of).or(session.kept_root);
        self.confirm_roots(server);
    }

    /// What was said while the database was away is written when it is back.
    fn confirm_roots(&mut self, server: usize) {
        let head = self.database.head.clone();
        let sessions = self.servers[server].sessions.values();
        let kept = sessions.filter_map(|session| Some((session.agent, session.kept_root?)));
        let news: Vec<(usize, usize)> =
            kept.filter(|(agent, root)| head.lacks_confirmation(*agent, *root)).collect();
        for (agent, root) in news.into_iter().filter(|_| self.has_database(server)).collect::<Vec<_>>() {
            self.write(&Change::Confirm(agent, root));
        }
    }

    /// Once a second: signs one thing anew, and renews what is old of those that are served here.
    pub(crate) fn keep_certificates(&mut self, server: usize) {
        if self.database.head.is_under_former() {
            self.write(&Change::SignAnew);
        }
        self.confirm_roots(server);
        if self.database.head.lifetime().is_none() {
            return;
        }
        let served = self.servers[server].sessions.values().filter(|session| session.serving.is_some());
        let served: Vec<usize> = served.map(|session| session.agent).collect();
        for agent in served {
            let held = self.database.head.certificate(agent);
            if held.is_some_and(|held| self.time().since(held.issued_at) >= RENEWAL) {
                self.write(&Change::Renew(agent));
            }
        }
    }

    /// Whether the certificates of both, as the other has them, last: each was served not too long ago, and knows the time.
    pub(crate) fn are_certified(&self, one: usize, other: usize) -> bool {
        let Some(lifetime) = self.database.head.lifetime() else { return true };
        let lasts = |at: usize| {
            let (node, bound) = (&self.nodes[at], lifetime.saturating_sub(CERTIFICATE_MARGIN));
            let knows_time = node.clock_ahead_s == 0 || node.watch.last_served_at >= node.watch.launched_at;
            knows_time && self.now.since(node.watch.last_synced_at) < bound
        };
        lasts(one) && lasts(other)
    }

    /// Whether every agent that runs believes the cluster's newest root.
    pub fn all_have_newest_root(&self) -> bool {
        let newest = Some(self.database.head.newest_root);
        (0..self.nodes.len()).filter(|at| self.nodes[*at].is_awake()).all(|at| {
            let is_member = self.database.head.is_member(&members::of(at).key);
            !is_member || self.root_of(at) == newest
        })
    }

    /// How many roots the cluster trusts.
    pub fn trusted_roots(&self) -> usize {
        self.database.head.roots().count()
    }

    /// Nobody is left behind on a root that is trusted no more, and who is served by a server that is level learns the newest.
    pub(crate) fn check_roots(&self, at: usize) {
        let (head, node) = (&self.database.head, &self.nodes[at]);
        if head.newest_root == 0 || !head.is_member(&members::of(at).key) {
            return;
        }
        let kept = node.saved.pins().and_then(|pins| members::number_of(pins.newest));
        if let Some(kept) = kept.filter(|kept| *kept < head.first_root) {
            self.fail(&format!("agent {at} keeps root {kept}, which is retired, and no newer one"));
        }
        let synced = node.watch.synced_since.filter(|_| node.is_awake() && !self.network.was_lossy);
        let entitled = synced.map(|since: BootTime| since.max(self.rotated_at).max(node.watch.steady_since));
        if entitled.is_some_and(|at| self.now.since(at) > LEARNT_BOUND)
            && self.root_of(at) != Some(head.newest_root)
        {
            let (known, newest) = (self.root_of(at), head.newest_root);
            self.fail(&format!("agent {at} is served, believes root {known:?}, and not root {newest}"));
        }
    }

    /// After everything is healed: all keep the newest root, all is signed under it, and it is all that is needed.
    pub(crate) fn settle_roots(&mut self) {
        if self.database.head.newest_root == 0 {
            return;
        }
        self.run_for(LEARNT_BOUND);
        let nodes: Vec<usize> =
            (0..self.nodes.len()).filter(|at| self.database.head.is_member(&members::of(*at).key)).collect();
        self.apply(&Fault::Retire);
        if self.database.head.roots().count() > 1 {
            self.fail("somebody or something still needs a former root");
        }
        self.run_for(LEARNT_BOUND);
        for at in nodes.iter().filter(|at| self.database.head.removal(&members::of(**at).key).is_none()) {
            if self.root_of(*at) != Some(self.database.head.newest_root) {
                self.fail(&format!("agent {at} ends with root {:?}", self.root_of(*at)));
            }
        }
    }
}
