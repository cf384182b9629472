//! What this node serves for others, and what it routes to those who serve: addresses and routes of the interface follow from the certificate, the map, who is active, and the networks of
//! the machine.

use super::Agent;
use crate::{
    claims::{ClaimStatus, ClaimsConfig},
    io::Output,
    routing::{Obstacle, Surroundings, is_host},
    status,
    time::BootTime,
};
use ipnet::IpNet;
use proto::{claim::Claim, key::PublicKey, statement::Membership};

impl Agent {
    /// What this node claims from now on.
    pub fn set_claims(&mut self, claims: Vec<Claim>, now: BootTime) {
        self.advance(now);
        let before = std::mem::replace(&mut self.config.facts.claims, claims);
        self.users.judge_anew();
        self.configure_interface();
        self.on_holdings_changed();
        self.on_claims_changed(&before);
        self.tell_facts();
    }

    /// How claims of others are used.
    pub fn set_claims_config(&mut self, config: ClaimsConfig, now: BootTime) {
        self.advance(now);
        self.config.claims = config.clone();
        self.claims.set_config(config);
        self.configure_interface();
    }

    /// The addresses of the machine's interfaces but the tunnel's, each with the length of its network.
    pub fn handle_networks(&mut self, networks: Vec<IpNet>, now: BootTime) {
        self.advance(now);
        if self.networks != networks {
            self.networks = networks;
            self.configure_interface();
        }
    }

    pub(super) fn configure_interface(&mut self) {
        let Some((_, membership)) = &self.membership else { return };
        let (node, addresses) = (membership.node_id, membership.addresses.clone());
        self.claims.set_client(node);
        let served = self.served();
        if self.serving != served {
            self.serving.clone_from(&served);
            self.users.judge_anew();
        }
        self.tell_users();
        let mut overlay = self.overlay();
        let routed: Vec<IpNet> =
            self.claims.routed().filter(|prefix| self.obstacle(prefix, &served).is_none()).collect();
        overlay.extend(routed);
        let served = served.iter().copied().chain(self.stood_in_for(&served)).collect();
        self.put_configure(Output::Configure { addresses, overlay, served });
        self.confine_rules();
    }

    /// Whether an own claim is served depends on others, too: who claims the same exclusively, and whose own address it is.
    pub(super) fn follow_members(&mut self) {
        if self.serving != self.served() {
            self.configure_interface();
        }
    }

    /// Takes the place of one that was not done yet: a whole map brings many.
    fn put_configure(&mut self, configure: Output) {
        let is_configure = |output: &&mut Output| matches!(output, Output::Configure { addresses, .. } if !addresses.is_empty());
        match self.outputs.iter_mut().rev().find(is_configure) {
            Some(waiting) => *waiting = configure,
            None => self.outputs.push_back(configure),
        }
    }

    fn overlay(&self) -> Vec<IpNet> {
        let network = self.netmap.network();
        network.map_or_else(Vec::new, |network| vec![network.overlay_v4, network.overlay_v6])
    }

    fn obstacle(&self, prefix: &IpNet, served: &[IpNet]) -> Option<Obstacle> {
        let surroundings = Surroundings {
            overlay: &self.overlay(),
            served,
            connected: &self.networks,
            accept_routes: self.config.claims.accept_routes,
        };
        surroundings.obstacle(prefix)
    }

    /// Own claims that are granted.
    pub(super) fn served(&self) -> Vec<IpNet> {
        let claims = self.config.facts.claims.iter();
        let is_its = |claim: &&Claim| !claim.exclusive || self.holds(&claim.prefix);
        claims
            .filter(is_its)
            .filter(|claim| self.refusal(claim).is_none())
            .map(|claim| claim.prefix)
            .collect()
    }

    /// Addresses that others claim, within what this node serves of the overlay: they are its own if those others are gone. Outside of the overlay a subnet is a network behind this
    /// node, where somebody else has them; and nobody stands in for a node's own address.
    fn stood_in_for(&self, served: &[IpNet]) -> Vec<IpNet> {
        let overlay = self.overlay();
        let is_shared = |prefix: &IpNet| overlay.iter().any(|overlay| overlay.contains(prefix));
        let around: Vec<&IpNet> =
            served.iter().filter(|prefix| !is_host(prefix) && is_shared(prefix)).collect();
        if around.is_empty() {
            return Vec::new();
        }
        let claimed = self.claims.routed().filter(|host| is_host(host) && !self.claims.is_exclusive(host));
        let within = claimed.filter(|host| around.iter().any(|around| around.contains(host)));
        within.filter(|host| !served.contains(host) && !self.is_own_of_a_node(host)).collect()
    }

    fn is_own_of_a_node(&self, host: &IpNet) -> bool {
        let is_ours = |(_, own): &(Vec<u8>, Membership)| own.addresses.contains(&host.addr());
        self.membership.as_ref().is_some_and(is_ours) || self.netmap.owner_of(&host.addr()).is_some()
    }

    /// The other node whose own address it is, as a grant around it may be older than that node.
    fn owner_of(&self, prefix: &IpNet) -> Option<&str> {
        if !is_host(prefix) || !self.overlay().iter().any(|overlay| overlay.contains(prefix)) {
            return None;
        }
        self.netmap.owner_of(&prefix.addr()).map(|owner| owner.peer.name.as_str())
    }

    /// Why an own claim is not served, for people.
    pub(super) fn refusal(&self, claim: &Claim) -> Option<String> {
        let prefix = claim.prefix;
        let Some((_, Membership { claims, addresses, .. })) = &self.membership else {
            return Some("this node is not enrolled".to_owned());
        };
        if let Some(overlay) = self.overlay().into_iter().find(|overlay| prefix.contains(overlay)) {
            return Some(format!("it covers the whole overlay, {overlay}"));
        }
        if is_host(&prefix) && addresses.contains(&prefix.addr()) {
            return Some("it is this node's own address, which nobody can share".to_owned());
        }
        if let Some(owner) = self.owner_of(&prefix) {
            return Some(format!("it is the own address of {owner}, which nobody else can serve"));
        }
        if let Some(reason) = self.refusal_by_exclusive(claim) {
            return Some(reason);
        }
        (!claims.iter().any(|grant| grant.contains(&prefix))).then(|| {
            // Its address names the node; the machine's name may be another node's.
            let node = addresses.first().map_or_else(String::new, ToString::to_string);
            format!("not granted: run `server node allow-claim {node} {prefix}` on a server")
        })
    }

    pub(super) fn own_claims_status(&self) -> Vec<status::OwnClaim> {
        let claims = self.config.facts.claims.iter().map(|claim| {
            let refusal = self.refusal(claim);
            let withdrawn = self.withdrawal(claim);
            let (state, reason) = match (refusal, withdrawn, self.standby_reason(claim)) {
                (Some(refusal), _, _) => (status::OwnClaimState::Refused, Some(refusal)),
                (None, Some(reason), _) => (status::OwnClaimState::Withdrawn, Some(reason)),
                (None, None, Some(reason)) => (status::OwnClaimState::Standby, Some(reason)),
                (None, None, None) => (status::OwnClaimState::Served, None),
            };
            let (prefix, priority) = (claim.prefix, claim.priority);
            let holder = if claim.exclusive { self.holder_status(&prefix) } else { None };
            status::OwnClaim { prefix, priority, state, reason, users: self.users.count_of(&prefix), holder }
        });
        claims.collect()
    }

    pub(super) fn claims_status(&self) -> Vec<status::Claim> {
        let served = self.served();
        let name = |key: &PublicKey| self.name_of(key).map_or_else(|| key.short(), str::to_owned);
        let claims = self.claims.status().into_iter();
        claims
            .map(|ClaimStatus { prefix, active, standby, candidates, switches, is_exclusive }| {
                status::Claim {
                    prefix,
                    active: active.as_ref().map(name),
                    standby: standby.as_ref().map(name),
                    candidates: candidates.iter().map(name).collect(),
                    switches,
                    unused: self.obstacle(&prefix, &served).and_then(unused),
                    exclusive: is_exclusive,
                    holder: if is_exclusive { self.holder_status(&prefix) } else { None },
                }
            })
            .collect()
    }

    /// Subnets that are asked for and yet not used.
    pub(super) fn warnings_of_claims(&self) -> Vec<String> {
        let served = self.served();
        let warning = |prefix: IpNet| match self.obstacle(&prefix, &served)? {
            Obstacle::Connected(own) if is_host(&prefix) || self.config.claims.accept_routes => {
                let active = self.claims.active(&prefix)?;
                let name = self.name_of(&active).map_or_else(|| active.short(), str::to_owned);
                Some(format!("{prefix}, which {name} claims, is not used: this machine is itself in {own}"))
            }
            Obstacle::CoversOverlay => {
                Some(format!("{prefix}, which another node claims, is not used: it covers the whole overlay"))
            }
            Obstacle::Connected(_) | Obstacle::WithinOverlay | Obstacle::Served | Obstacle::NotAccepted => {
                None
            }
        };
        self.claims.routed().filter_map(warning).collect()
    }
}

/// For people; what lies in the overlay is used.
fn unused(obstacle: Obstacle) -> Option<String> {
    match obstacle {
        Obstacle::WithinOverlay => None,
        Obstacle::CoversOverlay => Some("it covers the whole overlay".to_owned()),
        Obstacle::Served => Some("this node serves it itself".to_owned()),
        Obstacle::Connected(own) => Some(format!("this machine is itself in {own}")),
        Obstacle::NotAccepted => Some("subnets are used with --accept-routes".to_owned()),
    }
}
